"""Stores of leases behind the seam `ctl.ports.LeaseStore`, chosen by URL."""

from __future__ import annotations

import time
from collections.abc import Callable

from ctl.errors import ConfigError
from ctl.ports import LeaseStore


def open_store(url: str, clock: Callable[[], float] = time.time, *, create: bool = False) -> LeaseStore:
    """The store at `url`; only the chosen kind's module is imported.

    memory:             of this process, for tests; every call gives an empty one
    sqlite:///PATH      a file that the nodes of one machine share (PATH is absolute)
    `create` makes the file and its directory if they are missing; `clock` gives seconds
    since the epoch. ConfigError on a bad URL, StoreError if it cannot be opened.
    """
    scheme, _, rest = url.partition(":")
    if scheme == "memory":
        from ctl.store.memory import MemoryStore

        return MemoryStore(clock)
    if scheme == "sqlite":
        from ctl.store.sqlite import SqliteStore

        return SqliteStore(_path(url, rest), clock, create=create)
    if scheme == "etcd":
        raise ConfigError(f"{url}: etcd stores come with a later release; use sqlite:///PATH")
    raise ConfigError(f"{url}: unknown kind of store; use sqlite:///PATH")


def _path(url: str, rest: str) -> str:
    """Four slashes as SQLAlchemy writes an absolute path, or three as in file URLs."""
    path = "/" + rest.removeprefix("//").lstrip("/")
    if not rest.startswith("///") or path == "/" or "\0" in path:
        raise ConfigError(f"{url}: not a store URL; write sqlite:///PATH with an absolute PATH")
    return path
