"""Drops as seen through the ring."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator

import pytest

from ctl.core import abi
from ctl.core.abi import Event, Hook
from ctl.core.errors import KernelError
from ctl.kernel.bpf.maps import RING_BYTES
from ctl.kernel.bpf.ring import Ring
from tests import packets
from tests.datapath import FOREIGN, LO, NOBODY, THIRD, Datapath, received, sent, wire

UNKNOWN_VTEP, SPOOFED, OUTER_FRAGMENT, ABORTED = 40, 41, 42, 60
RECORD = 8 + abi.EVENT.size
"""Bytes that an event takes in the ring."""


@pytest.fixture
def ring(datapath: Datapath) -> Iterator[Ring[Event]]:
    opened = Ring(datapath.maps.fd("events"), RING_BYTES, Event.unpack)
    yield opened
    opened.close()


def let_report(datapath: Datapath, reason: int, hook: Hook = Hook.FROM_WIRE) -> None:
    """Forget that an event was sent just now."""
    datapath.fill("counters", struct.pack("=I", hook * abi.REASON_MAX + reason), bytes(abi.COUNTER.size))


def test_each_reason_to_drop_is_reported(datapath: Datapath, ring: Ring[Event]) -> None:
    drops = {
        UNKNOWN_VTEP: wire(received(), host=FOREIGN),
        SPOOFED: wire(received(), host=THIRD.host),
        OUTER_FRAGMENT: wire(received(), fragment=packets.MF),
    }
    before = time.monotonic_ns()
    for packet in drops.values():
        datapath.run("from_wire", packet)
    events = list(ring.drain())
    assert {event.reason: event.data for event in events} == {r: p[:96] for r, p in drops.items()}
    for event in events:
        assert (event.hook, event.ifindex) == (Hook.FROM_WIRE, LO)
        assert event.packet_len == len(drops[event.reason])
        assert before <= event.time_ns <= time.monotonic_ns()
    assert list(ring.drain()) == []


def test_an_abort_is_reported(datapath: Datapath, ring: Ring[Event]) -> None:
    datapath.run("probe_aborted", sent())
    assert [(event.reason, event.data) for event in ring.drain()] == [(ABORTED, sent())]


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 1000])
def test_the_first_bytes_are_shown(datapath: Datapath, ring: Ring[Event], size: int) -> None:
    packet = wire(bytes(size), host=FOREIGN)
    datapath.run("from_wire", packet)
    (event,) = ring.drain()
    assert (event.data, event.packet_len) == (packet[:96], len(packet))


def test_what_is_no_drop_is_not_reported(datapath: Datapath, ring: Ring[Event]) -> None:
    datapath.run("from_wire", wire(received()))
    datapath.run("from_container", sent())
    assert list(ring.drain()) == []


def test_a_flood_is_one_event_and_does_not_hide_another_reason(datapath: Datapath, ring: Ring[Event]) -> None:
    started = time.monotonic()
    for _ in range(200):
        datapath.run("from_wire", wire(received(), host=FOREIGN))
    datapath.run("from_wire", wire(received(src=NOBODY)))
    reasons = [event.reason for event in ring.drain()]
    intervals = int((time.monotonic() - started) / 0.1) + 1
    assert 1 <= reasons.count(UNKNOWN_VTEP) <= intervals
    assert reasons.count(SPOOFED) == 1


def numbered(number: int) -> bytes:
    return wire(struct.pack("!I", number), host=FOREIGN)


def number_of(event: Event) -> int:
    (number,) = struct.unpack_from("!I", event.data, packets.OUTER_LEN)
    return int(number)


def test_the_ring_goes_round(datapath: Datapath, ring: Ring[Event]) -> None:
    fits = RING_BYTES // RECORD
    seen = []
    for number in range(3 * fits):
        let_report(datapath, UNKNOWN_VTEP)
        datapath.run("from_wire", numbered(number))
        if number % 100 == 99:
            seen += [number_of(event) for event in ring.drain()]
    seen += [number_of(event) for event in ring.drain()]
    assert seen == list(range(3 * fits))


def test_a_full_ring_loses_the_newest_and_recovers(datapath: Datapath, ring: Ring[Event]) -> None:
    for number in range(2 * RING_BYTES // RECORD):
        let_report(datapath, UNKNOWN_VTEP)
        datapath.run("from_wire", numbered(number))
    seen = [number_of(event) for event in ring.drain()]
    assert seen == list(range(len(seen)))
    assert RING_BYTES // RECORD - 1 <= len(seen) <= RING_BYTES // RECORD
    let_report(datapath, UNKNOWN_VTEP)
    datapath.run("from_wire", numbered(4711))
    assert [number_of(event) for event in ring.drain()] == [4711]


def test_a_reader_may_stop_halfway(datapath: Datapath, ring: Ring[Event]) -> None:
    for number in range(3):
        let_report(datapath, UNKNOWN_VTEP)
        datapath.run("from_wire", numbered(number))
    assert number_of(next(ring.drain())) == 0
    assert number_of(next(ring.drain())) in (0, 1), "an event is gone only when the next is asked for"
    assert [number_of(event) for event in ring.drain()][-1] == 2


def test_what_is_no_ring_is_one_line() -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    with pytest.raises(KernelError, match="cannot map a ring buffer: "):
        Ring(null, RING_BYTES, Event.unpack)
    os.close(null)
