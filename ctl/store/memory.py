"""The lease store of one process: the contract in its shortest form, for tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Network

from ctl.core.errors import LeaseConflict
from ctl.core.lease import moves, rank, require_free
from ctl.core.model import Lease, Network, Snapshot
from ctl.core.ports import Closing
from ctl.store.choosing import Choosing


class MemoryStore(Choosing):
    """A LeaseStore in a dictionary, safe to share between threads."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._network: Network | None = None
        self._leases: dict[IPv4Network, Lease] = {}
        self._revision = 0
        self._watches: list[_Watch] = []

    def read_network(self) -> Network | None:
        return self._network

    def write_network(self, network: Network, *, replace: bool = False) -> None:
        with self._lock:
            if self._network not in (None, network) and not replace:
                raise LeaseConflict("another network config is stored")
            self._network = network
            self._changed()

    def snapshot(self, *, fresh: bool = False) -> Snapshot:
        with self._lock:
            return Snapshot(tuple(sorted(self._live(), key=rank)), self._revision)

    def put(self, lease: Lease, expected: Lease | None) -> Lease:
        with self._lock:
            if expected is None:
                require_free(lease, self._live())
            else:
                self._check(expected)
                if moves(lease, expected):
                    require_free(lease, (live for live in self._live() if live.subnet != expected.subnet))
            self._revision += 1
            self._leases = {live.subnet: live for live in self._live()}
            stored = self._leases[lease.subnet] = replace(lease, revision=self._revision)
            self._changed()
            return stored

    def delete(self, lease: Lease) -> None:
        with self._lock:
            self._check(lease)
            del self._leases[lease.subnet]
            self._revision += 1
            self._changed()

    def watch(self, changed: Callable[[], None]) -> Closing:
        watch = _Watch(changed)
        self._watches.append(watch)
        return watch

    def close(self) -> None:
        """Nothing to close."""

    def _live(self) -> list[Lease]:
        now = self._clock()
        return [lease for lease in self._leases.values() if not lease.expired(now)]

    def _check(self, expected: Lease) -> None:
        stored = self._leases.get(expected.subnet)
        if stored is None or stored.expired(self._clock()) or stored.revision != expected.revision:
            raise LeaseConflict(f"the lease on {expected.subnet} has changed")

    def _changed(self) -> None:
        for watch in self._watches:
            watch.notify()


class _Watch:
    """Calls back from a thread of its own, so that a writer never runs a reader's code."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._event = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="memory-watch", daemon=True)
        self._thread.start()

    def notify(self) -> None:
        self._event.set()

    def _run(self) -> None:
        while self._event.wait():
            self._event.clear()
            if self._closed:
                return
            self._changed()

    def close(self) -> None:
        self._closed = True
        self._event.set()
        self._thread.join()
