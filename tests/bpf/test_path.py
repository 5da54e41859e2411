"""`ovctl trace` says of a packet what the programs say of it."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from ctl.core.abi import NODE_F_OTHERS_BEHIND, PEER_F_KERNEL_PATH
from ctl.core.decision import Probe, View, arriving, leaving
from ctl.core.dissect import UDP
from ctl.core.model import Bypass
from tests.datapath import (
    LOCAL,
    PEER,
    PEER_SUBNET,
    REMOTE,
    Datapath,
    flow_in,
    flow_out,
    received,
    sent,
    wire,
)

OUT = Probe(LOCAL, REMOTE, UDP, 1000, 2000, 36)
IN = Probe(REMOTE, LOCAL, UDP, 2000, 1000, 36)


def view(datapath: Datapath, probe: Probe) -> View:
    """As ctl.node.path has it, as far as it matters."""
    maps, peer = datapath.maps, datapath.maps.lookup_peer(PEER_SUBNET.network_address)
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
        datapath.approve(flow_out(), age_s=age_s)
        datapath.approve(flow_in(), age_s=age_s)
    assert_told_of(datapath)


@pytest.mark.parametrize("bypass", Bypass)
def test_of_each_mode_it_is_the_programs(datapath: Datapath, bypass: Bypass) -> None:
    datapath.node(bypass=bypass)
    assert_told_of(datapath)


@pytest.mark.parametrize("flags", [PEER_F_KERNEL_PATH, 0])
def test_of_a_peer_left_to_the_kernel_it_is_the_programs(datapath: Datapath, flags: int) -> None:
    datapath.approve(flow_out())
    datapath.approve(flow_in())
    datapath.peer(PEER_SUBNET, replace(PEER, flags=flags))
    assert_told_of(datapath)


@pytest.mark.parametrize("changes", [{"flags": NODE_F_OTHERS_BEHIND}, {"mtu": 35}, {"routing_marks": 1}])
def test_of_a_node_like_that_it_is_the_programs(datapath: Datapath, changes: dict[str, int]) -> None:
    datapath.approve(flow_out(), mark=1)
    datapath.approve(flow_in())
    datapath.node(**changes)
    assert_told_of(datapath)


def test_of_a_protocol_that_is_never_bypassed_it_is_the_programs(datapath: Datapath) -> None:
    assert_told_of(datapath, proto=50)


def test_of_a_container_that_is_not_known_it_is_the_programs(datapath: Datapath) -> None:
    stranger = LOCAL + 77
    probe = replace(OUT, src=stranger)
    assert datapath.run("from_container", sent(src=stranger)).reason == told(datapath, probe)


def assert_told_of(datapath: Datapath, proto: int = UDP) -> None:
    """Of a packet each way, program and telling agree. First what is told: programs change approvals."""
    out, back = (told(datapath, replace(probe, proto=proto)) for probe in (OUT, IN))
    assert datapath.run("from_container", sent(proto=proto)).reason == out
    assert datapath.run("from_wire", wire(received(proto=proto))).reason == back


def told(datapath: Datapath, probe: Probe) -> str:
    decide = arriving if probe.dst == LOCAL else leaving
    return decide(probe, view(datapath, probe)).label
