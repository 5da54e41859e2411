"""What the programs tell a tracer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Network

import pytest

from ctl.core.abi import Hook
from ctl.core.dissect import dissect
from ctl.core.reasons import Verdict, reason
from ctl.core.tracer import Selection, Trace
from ctl.kernel.bpf.maps import TRACE_RING_BYTES
from ctl.kernel.bpf.ring import Ring
from ctl.kernel.bpf.tracing import RENEW, Tracing
from tests.datapath import (
    FOREIGN,
    INET6,
    LOCAL,
    NODE,
    PEER,
    REMOTE,
    Datapath,
    flow_in,
    flow_out,
    received,
    sent,
    wire,
)

EVERYTHING = Selection()


@pytest.fixture
def ring(datapath: Datapath) -> Iterator[Ring[Trace]]:
    opened = Ring(datapath.maps.fd("traces"), TRACE_RING_BYTES, Trace.unpack)
    yield opened
    opened.close()


def told(datapath: Datapath, asked: Selection) -> list[tuple[str, str]]:
    """Hook and reason of what is told of a packet each way, of an unapproved one and of one refused."""
    with Tracing([datapath.maps], asked) as tracing:
        datapath.approve(flow_out())
        datapath.approve(flow_in())
        datapath.run("from_container", sent())
        datapath.run("from_wire", wire(received()))
        datapath.run("from_wire", wire(received(), host=FOREIGN))
        return [(each.hook.label, reason(each.reason).label) for each in tracing.packets(0)]


def test_nothing_is_told_while_nobody_asks(datapath: Datapath, ring: Ring[Trace]) -> None:
    datapath.run("from_container", sent())
    assert list(ring.drain()) == []


def test_a_packet_is_told_as_it_leaves_the_hook(datapath: Datapath) -> None:
    datapath.approve(flow_out())
    with Tracing([datapath.maps], EVERYTHING) as tracing:
        left = datapath.run("from_container", sent())
        (seen,) = tracing.packets(0)
    assert seen.data == left.packet
    assert (seen.hook, seen.came_len, seen.packet_len) == (Hook.FROM_CONTAINER, len(sent()), len(left.packet))
    packet = dissect(seen.data, NODE.port)
    assert packet.outer and packet.inner and packet.vni == NODE.vni
    assert (packet.outer.dst, packet.inner.src, packet.inner.dst) == (PEER.host, LOCAL, REMOTE)


ALL = [("from_container", "encap"), ("from_wire", "decap"), ("from_wire", "unknown_vtep")]
FILTERS = {
    "everything": (EVERYTHING, ALL),
    "drops": (replace(EVERYTHING, verdicts=frozenset({Verdict.DROP})), ALL[2:]),
    "a flow, either way": (
        replace(EVERYTHING, ends=(IPv4Network(REMOTE), None), ports=(2000, 1000)),
        ALL,
    ),
    "ports the other way round": (
        replace(EVERYTHING, ends=(IPv4Network(REMOTE), None), ports=(1000, 0)),
        [],
    ),
    "another protocol": (replace(EVERYTHING, proto=6), []),
    "a peer, by its host": (replace(EVERYTHING, host=PEER.host), ALL[:2]),
    "a host that is no peer": (replace(EVERYTHING, host=FOREIGN), ALL[2:]),
}


@pytest.mark.parametrize("name", FILTERS)
def test_only_what_is_asked_for_is_told(datapath: Datapath, name: str) -> None:
    asked, expected = FILTERS[name]
    assert told(datapath, asked) == expected


def test_what_is_none_of_the_overlays_is_told_only_if_it_is_asked_for(datapath: Datapath) -> None:
    aside = replace(EVERYTHING, ends=(IPv4Network(LOCAL), None))
    for asked, expected in ((EVERYTHING, []), (aside, ["not_overlay"])):
        with Tracing([datapath.maps], asked) as tracing:
            datapath.run("from_container", sent(dst=FOREIGN))
            assert [reason(each.reason).label for each in tracing.packets(0)] == expected


def test_a_tracer_that_was_killed_is_over_by_itself(datapath: Datapath, ring: Ring[Trace]) -> None:
    datapath.maps.write_tracer(replace(EVERYTHING.entry(4), until_ns=time.monotonic_ns()))
    datapath.run("from_container", sent())
    assert list(ring.drain()) == []
    assert datapath.maps.tracer().until_ns == 0


def test_a_flood_is_counted(datapath: Datapath) -> None:
    with Tracing([datapath.maps], replace(EVERYTHING, snaplen=2016)) as tracing:
        for _ in range(600):
            datapath.run("from_container", sent(bytes(1000), 99))
        kept = len(list(tracing.packets(0)))
        assert 0 < kept < 600 and tracing.skipped == 600 - kept


def test_a_tracer_that_always_has_more_to_read_is_not_taken_for_dead(datapath: Datapath) -> None:
    with Tracing([datapath.maps], EVERYTHING) as tracing:
        for _ in range(RENEW + 1):
            datapath.run("from_container", sent())
        packets = tracing.packets(0)
        next(packets)
        until_ns = datapath.maps.tracer().until_ns
        assert len(list(packets)) == RENEW
        assert datapath.maps.tracer().until_ns > until_ns


def test_drops_of_xdp_are_told(datapath: Datapath) -> None:
    with Tracing([datapath.maps], EVERYTHING) as tracing:
        datapath.xdp(wire(received(), host=FOREIGN))
        (seen,) = tracing.packets(0)
    assert (seen.hook, reason(seen.reason).label) == (Hook.FROM_WIRE_XDP, "unknown_vtep")
    assert seen.data == wire(received(), host=FOREIGN)[:96]


@pytest.fixture
def of_ipv6(loaded_ipv6: Datapath) -> Datapath:
    return loaded_ipv6.clear().furnish()


def test_packets_of_both_families_are_told_in_the_order_of_their_times(
    datapath: Datapath, of_ipv6: Datapath
) -> None:
    with Tracing([datapath.maps, of_ipv6.maps], EVERYTHING) as tracing:
        for each in (datapath, of_ipv6, datapath, of_ipv6):
            each.run("from_container", each.cast.sent())
        seen = [dissect(each.data, NODE.port).inner for each in tracing.packets(0)]
    ends = [LOCAL, INET6.local, LOCAL, INET6.local]
    assert [each and each.src for each in seen] == ends


def test_a_tracer_of_one_family_leaves_the_other_alone(datapath: Datapath, of_ipv6: Datapath) -> None:
    asked = replace(EVERYTHING, ends=(INET6.peer_subnet, None))
    with Tracing([of_ipv6.maps], asked) as tracing:
        assert datapath.maps.tracer().until_ns == 0 < of_ipv6.maps.tracer().until_ns
        of_ipv6.run("from_container", INET6.sent())
        of_ipv6.run("from_container", INET6.sent(dst=INET6.third_subnet[9]))
        assert len(list(tracing.packets(0))) == 1
    assert of_ipv6.maps.tracer().until_ns == 0, "it is over when the tracer ends"
