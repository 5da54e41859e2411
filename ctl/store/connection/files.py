"""What is read from files that others renew while we run: certificates, keys, CAs, tokens, passwords.

A certificate lives for a year, or for an hour, and so do CAs and tokens: whoever renews them writes the
files anew, or swaps a symbolic link to them as kubelet does. So what was made of files is asked for each
time that it is used for something new (a connection, a log-in), which costs a stat for each of them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from ctl.core.errors import ConfigError

T = TypeVar("T")

Look = tuple[int, int, int, int, int]
"""What tells a file from what it was: device, inode, size, and when content and inode were changed, ns."""


def look(path: str) -> Look | None:
    """A file as it is now, symbolic links followed; None: it is not there."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class Followed(Generic[T]):
    """A value that is as its files are. `load` makes it, or raises ConfigError. One thread's at a time."""

    def __init__(self, load: Callable[[], T], files: Iterable[str]) -> None:
        """ConfigError if the files cannot be used as they are; "" is none."""
        self._load, self._files = load, tuple(filter(None, files))
        self._looked: tuple[Look | None, ...] | None = self._look()
        """The files as they were when the value was made; None: it is to be made again in any case."""
        self._value = load()
        self.trouble = ""
        """Why the files as they are now cannot be used, one line; empty: they can."""

    def now(self) -> T:
        """The value; the same object for as long as the files are the same.

        Files that cannot be used (half of a pair is written, one is missing for a moment) change nothing,
        and are tried again the next time.
        """
        looked = self._look()
        self.trouble = ""
        if looked != self._looked:
            try:
                self._value, self._looked = self._load(), looked
            except ConfigError as error:
                self.trouble = str(error)
        return self._value

    def doubt(self) -> None:
        """The value has turned out to be wrong: `now` reads the files again, whatever they look like."""
        self._looked = None

    def _look(self) -> tuple[Look | None, ...]:
        return tuple(map(look, self._files))


class FileWatch:
    """Calls `changed` from a thread of its own soon after a file has become another one, has come or gone.

    It polls: the links of a mounted ConfigMap are swapped above the file, and instances of inotify are few
    where every pod takes one. A failure of `changed` is a bug and ends the process (see ctl.cli.main).
    """

    def __init__(self, path: str, changed: Callable[[], None], every: float) -> None:
        """`every`: seconds between two looks, each of them a stat."""
        self._path, self._changed, self._every = path, changed, every
        self._closing = threading.Event()
        self._seen = look(path)
        self._thread = threading.Thread(target=self._run, name="file-watch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._closing.wait(self._every):
            now = look(self._path)
            if now != self._seen:
                self._seen = now
                self._changed()

    def close(self) -> None:
        """No callback begins after this."""
        self._closing.set()
        self._thread.join()
