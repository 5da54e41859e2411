"""A dual-stack network from the store on: leases of both families, nothing put in by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from ipaddress import IPv6Interface

import pytest

from ctl.core.model import Lease
from ctl.store import open_store
from tests.dual import NETWORK, Guest, guest, init_network, ping, reaches, underlay, with_ipv6
from tests.host import Agent, Host
from tests.lab import Lab
from tests.process import wait_until
from tests.stream import TcpSink, tcp_send


@dataclass
class Duals:
    """Two nodes of a network of both families."""

    lab: Lab
    a: Host
    b: Host
    agents: dict[str, Agent]


@pytest.fixture(params=["etcd", "sqlite"])
def duals(request: pytest.FixtureRequest) -> Iterator[Duals]:
    with Lab() as lab:
        if request.param == "etcd":
            lab.etcd()
        a, b = with_ipv6(lab.host("a")), with_ipv6(lab.host("b"))
        init_network(a)
        yield Duals(lab, a, b, {host.name: host.agent() for host in (a, b)})


def leases(host: Host) -> dict[str, Lease]:
    """By the node's name."""

    def read() -> dict[str, Lease]:
        with closing(open_store(host.lab.store_url)) as store:
            return {each.node: each for each in store.snapshot(fresh=True).leases}

    return host.call(read)


def pair(duals: Duals, name: str) -> tuple[Guest, Guest]:
    """A container on each node, with an address out of what it has leased."""
    held = leases(duals.a)
    one, two = guest(duals.a, held["a"], name), guest(duals.b, held["b"], name)
    reaches(one.place, two.address)
    return one, two


def test_nodes_lease_both_families_as_one_and_containers_talk_by_both(duals: Duals) -> None:
    held = leases(duals.a)
    for host in (duals.a, duals.b):
        part, env = held[host.name].ipv6, host.subnet_env()
        assert part is not None and part.host is not None and part.vtep_mac is not None
        assert (str(part.host), part.vni, part.subnet.prefixlen) == (underlay(host), 1, 64)
        assert part.subnet.subnet_of(NETWORK)
        assert host.status()["lease"]["ipv6"] == str(part.subnet)
        wait_until(lambda host=host: host.status()["peers_ipv6"] == 1, 20, "its peer is counted")  # type: ignore[misc]
        assert env["FLANNEL_IPV6_NETWORK"] == str(NETWORK)
        assert IPv6Interface(env["FLANNEL_IPV6_SUBNET"]).network == part.subnet
    one, two = pair(duals, "one")
    assert ping(one.place, two.address)
    one.place.run("ping", "-c1", "-W2", two.place.address)
    sink = TcpSink(two.place, address=two.address)
    assert tcp_send(one.place, two.address, 1_000_000)["seen_as"] == one.address
    sink.stop()


@pytest.mark.parametrize("duals", ["etcd"], indirect=True)
def test_a_node_goes_to_both_families_and_back_with_its_subnets(duals: Duals) -> None:
    both = leases(duals.a)
    duals.agents["a"].stop()
    init_network(duals.a, ipv6=False)
    duals.a.agent()
    plain = leases(duals.a)
    assert (plain["a"].subnet, plain["a"].ipv6) == (both["a"].subnet, None)
    assert len(plain) == 2, "one lease for each node: what was there under another key has gone"
    assert "FLANNEL_IPV6_SUBNET" not in duals.a.subnet_env()
    assert "ovnet-v6.1" not in links(duals.a)
    assert plain["b"].ipv6 == both["b"].ipv6, "it goes on with what it started with"
    duals.a.stop_processes()
    init_network(duals.a)
    duals.a.agent()
    again = leases(duals.a)
    assert len(again) == 2
    assert again["a"].subnet == both["a"].subnet and again["a"].ipv6 is not None
    assert again["a"].ipv6.subnet not in (None, again["b"].ipv6 and again["b"].ipv6.subnet)
    one, two = pair(duals, "two")
    assert ping(two.place, one.address)


def links(host: Host) -> set[str]:
    return {each["ifname"] for each in json.loads(host.ip("-json", "link", "show"))}


def test_an_uplink_without_ipv6_is_refused_in_one_line(lab: Lab) -> None:
    lab.etcd()
    host = lab.host("a")
    init_network(host)
    agent = host.agent(wait=False)
    assert agent.wait(20) == 1
    assert (
        agent.log()
        .strip()
        .splitlines()[-1]
        .startswith("ovctl: error: the network has IPv6, and uplink eth0 no")
    )
