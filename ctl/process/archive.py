"""An archive of texts, compressed: a tar that zstd has packed, or gzip where there is no zstd."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from ctl.core.errors import AgentError

ZSTD: Final = ("-q", "-9", "-c")
_PATIENCE_S: Final = 60.0
_MODE: Final = 0o600


def tar(files: Mapping[str, str], directory: str, now: float) -> bytes:
    """These texts by name, below `directory`; `now`: their time, seconds since the epoch. Root's alone."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, text in files.items():
            content = text.encode(errors="replace")
            member = tarfile.TarInfo(f"{directory}/{name}")
            member.size, member.mtime, member.mode = len(content), int(now), _MODE
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def compressed(content: bytes, zstd: str | None) -> bytes:
    """By the tool `zstd` at that place; by gzip if it is None. AgentError if the tool fails.

    Python has zstd from 3.14 on, and a library for the older ones would be a wheel for each of them.
    """
    if zstd is None:
        return gzip.compress(content)
    try:
        return subprocess.run(
            [zstd, *ZSTD], input=content, capture_output=True, check=True, timeout=_PATIENCE_S
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise AgentError(f"{zstd} did not compress: {error}") from error


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Make this file, for our user alone, before what is to be in it is there.

    AgentError if it exists or cannot be. If the block fails, nothing is left of it.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
    except FileExistsError:
        raise AgentError(f"{path} exists: name another file") from None
    except OSError as error:
        raise AgentError(f"{path}: {error.strerror}") from error
    try:
        with os.fdopen(fd, "wb") as file:
            yield file
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise AgentError(f"{path}: {error.strerror}") from error
        raise
