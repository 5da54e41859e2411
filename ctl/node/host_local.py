"""The directory of addresses of the CNI plugin `host-local` (ctl.core.ipam has the format)."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from ctl.core.errors import AgentError, NotFound
from ctl.core.ipam import Reservation, parse

_LOCK: Final = "lock"
_PATIENCE_S: Final = 5.0
"""How long the plugin may hold its lock, which it does for milliseconds."""
_POLL_S: Final = 0.01


def reservations(directory: Path) -> list[Reservation]:
    """All addresses that are given out there. NotFound if there is no such directory; AgentError."""
    try:
        return [found for path in directory.iterdir() if (found := _read(path))]
    except FileNotFoundError:
        raise NotFound(
            f"no {directory}: no container was ever added here, or --cni-data-dir is another one (in a pod it"
            " has to be mounted)"
        ) from None
    except OSError as error:
        raise AgentError(f"cannot read {directory}: {error.strerror}") from error


def release(directory: Path, chosen: Collection[Reservation]) -> list[Reservation]:
    """Free those that are as they were seen, and return them. AgentError, with some freed perhaps.

    An address stays its container's as long as its file is there, so what was seen of it holds for as long as
    the file is the same one. The plugin's own lock is held meanwhile.
    """
    freed = []
    try:
        with _locked(directory / _LOCK):
            for each in chosen:
                path = directory / str(each.address)
                if _read(path) == each:
                    path.unlink()
                    freed.append(each)
    except OSError as error:
        raise AgentError(f"cannot free addresses in {directory}: {error.strerror}") from error
    return freed


def _read(path: Path) -> Reservation | None:
    """None if it is no address's, or gone. OSError."""
    with suppress(FileNotFoundError, IsADirectoryError), path.open(errors="replace") as file:
        return parse(path.name, file.read(4096), os.fstat(file.fileno()).st_mtime)
    return None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """As the plugin does it: flock(2), whole, on a file that stays. AgentError; OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise AgentError(
                        f"{path} is held for {_PATIENCE_S:g} s: which plugin hangs? (fuser -v)"
                    ) from None
                time.sleep(_POLL_S)
        yield
    finally:
        os.close(fd)
