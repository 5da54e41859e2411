"""A tracer: the programs tell of packets as long as it is open, and a few seconds longer if it is killed."""

from __future__ import annotations

import heapq
import mmap
import select
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any, Final, Self

from ctl.core.errors import KernelError
from ctl.core.tracer import Selection, Trace, TracerEntry
from ctl.kernel.bpf.maps import TRACE_RING_BYTES, Maps
from ctl.kernel.bpf.ring import Ring

LEASE_S: Final = 10.0
"""How long the programs go on for a tracer that has not said that it still listens."""
RENEW: Final = 512
"""After how many packets it says so at the latest: in a flood there are always more."""
POLL_S: Final = 0.5
"""How long it waits for packets before it says so again."""


class _Armed:
    """The tracer of one family's maps: its programs tell of packets as long as it is renewed."""

    def __init__(self, maps: Maps[Any], entry: TracerEntry) -> None:
        """KernelError."""
        self._maps = maps
        self._ring = Ring(maps.fd("traces"), TRACE_RING_BYTES, Trace.unpack)
        try:
            self._memory = mmap.mmap(maps.fd("tracer"), mmap.PAGESIZE)
        except OSError as error:
            self._ring.close()
            raise KernelError(f"cannot map the map tracer: {error.strerror}") from error
        self._ring.clear()
        maps.write_tracer(replace(entry, until_ns=_end(), skipped=0))

    def close(self) -> None:
        """The programs are told to stop."""
        self.set_end(0)
        self._memory.close()
        self._ring.close()

    @property
    def fd(self) -> int:
        """Readable when packets have come."""
        return self._maps.fd("traces")

    def drain(self) -> Iterator[Trace]:
        """What has come since the last call, oldest first."""
        return self._ring.drain()

    @property
    def skipped(self) -> int:
        return self._maps.tracer().skipped

    def set_end(self, until_ns: int) -> None:
        # By memory: to write the map's value anew would undo what the programs count in it.
        struct.pack_into("=Q", self._memory, 0, until_ns)


class Tracing:
    """The packets of this node that are asked for. Only one at a time: whoever opens it sees to that."""

    def __init__(self, maps: Iterable[Maps[Any]], asked: Selection) -> None:
        """`maps`: of the families that are asked for. KernelError."""
        self._poll = select.poll()
        with ExitStack() as undone:
            self._armed = [
                undone.enter_context(closing(_Armed(each, asked.entry(each.family.version)))) for each in maps
            ]
            self._undone = undone.pop_all()
        for each in self._armed:
            self._poll.register(each.fd, select.POLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """The programs are told to stop."""
        self._undone.close()

    def packets(self, patience_s: float = POLL_S) -> Iterator[Trace]:
        """What has come, waiting for the first of them for `patience_s` seconds at the most."""
        self._renew()
        self._poll.poll(1000 * min(patience_s, POLL_S))
        come = heapq.merge(*(each.drain() for each in self._armed), key=lambda trace: trace.time_ns)
        for number, trace in enumerate(come):
            if number % RENEW == 0:
                self._renew()
            yield trace

    @property
    def skipped(self) -> int:
        """Packets for which there was no room."""
        return sum(each.skipped for each in self._armed)

    def _renew(self) -> None:
        for each in self._armed:
            each.set_end(_end())


def _end() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) + int(LEASE_S * 1e9)
