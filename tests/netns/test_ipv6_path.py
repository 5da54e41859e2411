"""Two dual-stack nodes: what IPv6 has of the kernel path, by packets."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from ctl.core.model import Lease
from tests.dual import (
    OVCTL,
    Guest,
    give,
    guest,
    init_network,
    lease,
    ping,
    reaches,
    with_ipv6,
)
from tests.host import Agent, Host
from tests.lab import Lab
from tests.stream import TcpSink, UdpStream, tcp_send

MEGABYTE = 1_000_000


@dataclass
class Duals:
    """Two nodes with a container each, and a host outside; all have both families."""

    lab: Lab
    a: Host
    b: Host
    outside: Host
    leases: dict[str, Lease]
    on_a: Guest
    on_b: Guest
    agents: dict[str, Agent]


def start(lab: Lab, hosts: tuple[Host, ...]) -> dict[str, Agent]:
    agents = {host.name: host.agent(wait=False) for host in hosts}
    for agent in agents.values():
        agent.wait_ready()
    return agents


@pytest.fixture(scope="module")
def nodes() -> Iterator[Duals]:
    with pytest.MonkeyPatch.context() as patch, Lab() as lab:
        patch.setattr("tests.host.ovctl_argv", lambda: OVCTL)
        lab.etcd()
        a, b, outside = with_ipv6(lab.host("a")), with_ipv6(lab.host("b")), with_ipv6(lab.outside())
        init_network(a)
        leases = {host.name: lease(host, number) for number, host in enumerate((a, b), 1)}
        give(a, *leases.values())
        agents = start(lab, (a, b))
        made = Duals(lab, a, b, outside, leases, guest(a, leases["a"]), guest(b, leases["b"]), agents)
        reaches(made.on_a.place, made.on_b.address)
        yield made


@pytest.fixture
def duals(nodes: Duals) -> Iterator[Duals]:
    """The module's nodes; what the test has started in them ends with the test."""
    yield nodes
    for place in (nodes.on_a.place, nodes.on_b.place, nodes.outside):
        place.stop_processes()


def both_ways(duals: Duals) -> list[tuple[Guest, Guest]]:
    return [(duals.on_a, duals.on_b), (duals.on_b, duals.on_a)]


def test_both_families_go_between_containers(duals: Duals) -> None:
    for source, sink in both_ways(duals):
        assert ping(source.place, sink.address)
        source.place.run("ping", "-c1", "-W2", sink.place.address)


def test_tcp_shows_the_containers_own_address(duals: Duals) -> None:
    for source, sink in both_ways(duals):
        server = TcpSink(sink.place, address=sink.address)
        assert tcp_send(source.place, sink.address, 10 * MEGABYTE)["seen_as"] == source.address
        (end,) = server.wait_for(1)
        server.stop()
        assert (end["bytes"], end["end"]) == (10 * MEGABYTE, "fin")


def test_an_agent_that_is_killed_and_comes_back_loses_no_datagram(duals: Duals) -> None:
    stream = UdpStream(duals.on_a.place, duals.on_b.place, duals.on_b.address)
    for host in (duals.a, duals.b):
        stream.advance(0.5)
        duals.agents[host.name].kill(signal.SIGKILL)
        duals.agents[host.name] = host.agent()
    stream.advance(0.5)
    sent, tally = stream.finish()
    assert (tally.received, tally.duplicates) == (sent, 0)
    assert tally.sources == (duals.on_a.address,)
