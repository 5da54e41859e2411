"""`ovctl trace` says of a packet what the programs say of it."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from ctl.core.abi import NODE_F_OTHERS_BEHIND, PEER_F_KERNEL_PATH
from ctl.core.decision import Probe, View, arriving, leaving
from ctl.core.dissect import UDP
from ctl.core.model import Bypass
from tests import packets
from tests.datapath import Cast, Datapath


@pytest.fixture
def datapath(of_each_family: Datapath) -> Datapath:
    return of_each_family


def out(cast: Cast) -> Probe:
    """What `cast.sent` is."""
    return Probe(cast.local, cast.remote, UDP, 1000, 2000, len(cast.sent()) - packets.ETH_LEN)


def back(cast: Cast) -> Probe:
    """What `cast.received` is."""
    return Probe(cast.remote, cast.local, UDP, 2000, 1000, len(cast.received()) - packets.ETH_LEN)


def view(datapath: Datapath, probe: Probe) -> View:
    """As ctl.node.path has it, as far as it matters."""
    maps = datapath.maps
    peer = maps.lookup_peer(datapath.cast.peer_subnet.network_address)
    return View(
        maps.configured(),
        source=maps.lookup_endpoint(probe.src),
        target=maps.lookup_endpoint(probe.dst),
        origin=peer,
        peer=peer,
        flows={key: flow for key, flow in maps.flows().items() if probe.is_of(key)},
        now_ns=time.clock_gettime_ns(time.CLOCK_MONOTONIC),
    )


@pytest.mark.parametrize("age_s", [None, 0, 60])
def test_the_decision_is_the_programs(datapath: Datapath, age_s: float | None) -> None:
    if age_s is not None:
        datapath.approve(datapath.cast.flow_out(), age_s=age_s)
        datapath.approve(datapath.cast.flow_in(), age_s=age_s)
    assert_told_of(datapath)


@pytest.mark.parametrize("bypass", Bypass)
def test_of_each_mode_it_is_the_programs(datapath: Datapath, bypass: Bypass) -> None:
    datapath.node(bypass=bypass)
    assert_told_of(datapath)


@pytest.mark.parametrize("flags", [PEER_F_KERNEL_PATH, 0])
def test_of_a_peer_left_to_the_kernel_it_is_the_programs(datapath: Datapath, flags: int) -> None:
    cast = datapath.cast
    datapath.approve(cast.flow_out())
    datapath.approve(cast.flow_in())
    datapath.peer(cast.peer_subnet, replace(cast.peer, flags=flags))
    assert_told_of(datapath)


@pytest.mark.parametrize("changes", [{"flags": NODE_F_OTHERS_BEHIND}, {"mtu": 35}, {"routing_marks": 1}])
def test_of_a_node_like_that_it_is_the_programs(datapath: Datapath, changes: dict[str, int]) -> None:
    datapath.approve(datapath.cast.flow_out(), mark=1)
    datapath.approve(datapath.cast.flow_in())
    datapath.node(**changes)
    assert_told_of(datapath)


def test_of_a_protocol_that_is_never_bypassed_it_is_the_programs(datapath: Datapath) -> None:
    unverified = "outer_checksum" if datapath.cast.version == 6 else ""
    assert_told_of(datapath, proto=50, unverified=unverified)


def test_of_a_container_that_is_not_known_it_is_the_programs(datapath: Datapath) -> None:
    cast = datapath.cast
    stranger = cast.local + 77
    probe = replace(out(cast), src=stranger)
    assert datapath.run("from_container", cast.sent(src=stranger)).reason == told(datapath, probe)


def test_of_an_echo_it_is_the_programs(datapath: Datapath) -> None:
    cast = datapath.cast
    proto, question, _ = cast.ping
    key = cast.flow_out(proto, 7, question << 8)
    frame = cast.sent(packets.icmp(b"ping", question, 7), proto)
    probe = Probe(cast.local, cast.remote, proto, 7, size=len(frame) - packets.ETH_LEN)
    assert told(datapath, probe) == "flow_unknown"
    datapath.approve(key)
    assert told(datapath, probe) == datapath.run("from_container", frame).reason == "encap"


def assert_told_of(datapath: Datapath, proto: int = UDP, unverified: str = "") -> None:
    """Of a packet each way, program and telling agree. First what is told: programs change approvals.

    `unverified`: what is said of one that comes in, as no NIC has verified it; empty: nothing of that.
    """
    cast = datapath.cast
    there, here = (told(datapath, replace(probe, proto=proto)) for probe in (out(cast), back(cast)))
    assert datapath.run("from_container", cast.sent(proto=proto)).reason == there
    assert datapath.run("from_wire", cast.wire(cast.received(proto=proto))).reason == (unverified or here)


def told(datapath: Datapath, probe: Probe) -> str:
    decide = arriving if probe.dst == datapath.cast.local else leaving
    return decide(probe, view(datapath, probe)).label
