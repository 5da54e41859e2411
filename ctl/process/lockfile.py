"""A file that one process holds at a time, and in which that one says who it is.

The lock is flock(2)'s, so it ends with the process. A holder may remove the file before
it lets go: who waits for it would then lock a file that nobody else can find, and two
would hold. So a lock counts only on the file that has the name now.
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from ctl.process.directory import make_public

_POLL_S: Final = 0.01
_SAID_MAX: Final = 256
"""The longest line, in bytes, that a holder may write about itself."""


class Held(Exception):
    """Another process holds the lock; the argument is what that one says of itself."""


def take(path: Path, says: str, patience: float, *, mode: int = 0o600, make_directory: bool = False) -> int:
    """Hold the lock until the descriptor that is returned is closed, or the process ends.

    `says` is one line for those who find it held. Held if it is still another's after
    `patience` seconds: who only looks at a lock holds it for an instant. `make_directory`
    makes the file's directory, again if the last holder has just removed it. The file's mode is
    `mode`, whatever the umask. OSError.
    """
    deadline = time.monotonic() + patience
    while (fd := _attempt(path, mode, make_directory)) is None:
        if time.monotonic() > deadline:
            raise Held(holder(path) or "")
        time.sleep(_POLL_S)
    # A full disk is no reason not to hold it.
    with suppress(OSError):
        os.fchmod(fd, mode)  # the umask may have taken some of it
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{says}\n".encode(), 0)
    return fd


def _attempt(path: Path, mode: int, make_directory: bool) -> int | None:
    """The descriptor of the locked file; None if it is another's, or has just been removed. OSError."""
    try:
        if make_directory:
            make_public(path.parent)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
    except FileNotFoundError:
        if make_directory:
            return None  # the last holder has removed it since
        raise
    held = False
    try:
        held = _lock(fd, fcntl.LOCK_EX) and _has_the_name(fd, path)
    finally:
        if not held:
            os.close(fd)
    return fd if held else None


def holder(path: Path) -> str | None:
    """What the lock's holder says of itself ("": it is about to); None if nobody holds it. OSError."""
    while True:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            # Shared, so that two who look do not take each other for a holder.
            if not _lock(fd, fcntl.LOCK_SH):
                return _said(fd)
            if _has_the_name(fd, path):
                return None
        finally:
            os.close(fd)


def _lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _has_the_name(fd: int, path: Path) -> bool:
    """Whether `path` is still the file that is open, and so the one that others find."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _said(fd: int) -> str:
    return os.pread(fd, _SAID_MAX, 0).decode(errors="replace").strip()
