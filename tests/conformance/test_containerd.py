"""Containers of containerd on two nodes, made by the agents' own CNI configuration and Debian's plugins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address

import pytest

from ctl.kernel.bpf.maps import Maps, open_maps
from tests.containerd import Containerd, ContainerdContainer
from tests.host import Agent, Host, meet
from tests.kube.cluster import POD_NETWORK, started_on
from tests.lab import Lab, wait_until
from tests.stream import TcpSink, UdpStream, tcp_send


@dataclass
class Node:
    """A host with its agent, its containerd, and a container."""

    host: Host
    agent: Agent
    containerd: Containerd
    pod: ContainerdContainer
    maps: Maps[IPv4Address]

    def restart(self) -> None:
        """Another agent in the place of the one that runs."""
        self.agent.stop()
        self.agent = started_on(self.host)

    def knows_its_pod(self) -> bool:
        """Whether eBPF can deliver to it, which takes a word of its own first."""
        self.pod.run("ping", "-c1", "-W1", str(self.host.gateway.ip), check=False)
        return self.maps.lookup_endpoint(IPv4Address(self.pod.address)) is not None


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[Node, Node]]:
    with Lab() as lab, ExitStack() as stack:
        hosts = lab.host("a"), lab.host("b")
        lab.init_network(POD_NETWORK)
        for host in hosts:
            host.bridge = "cni0"
        agents = [started_on(host, wait=False) for host in hosts]
        made = []
        for host, agent in zip(hosts, agents, strict=True):
            agent.wait_ready()
            containerd = Containerd(host)
            maps = stack.enter_context(open_maps(host.bpffs))
            made.append(Node(host, agent, containerd, containerd.run("pod"), maps))
        meet(*hosts)
        for each in made:
            wait_until(each.knows_its_pod, 30, f"{each.host.name} knows its pod")
        a, b = made
        yield a, b


def test_containers_have_what_the_lease_says(nodes: tuple[Node, Node]) -> None:
    for each in nodes:
        assert IPv4Address(each.pod.address) in each.host.gateway.network
        assert each.pod.mtu == int(each.host.subnet_env()["FLANNEL_MTU"])
        assert f"default via {each.host.gateway.ip}" in each.pod.run("ip", "route").stdout


def test_tcp_and_udp_between_them_go_by_ebpf_while_agents_restart(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    sink = TcpSink(b.pod)
    stream = UdpStream(a.pod, b.pod, b.pod.address, rate=500)
    for each in nodes:
        before = [node.host.bypassed()[0] for node in nodes]
        assert tcp_send(a.pod, b.pod.address, 2_000_000)["seen_as"] == a.pod.address
        stream.advance(0.5)
        carried = [node.host.bypassed()[0] - then for node, then in zip(nodes, before, strict=True)]
        assert min(carried) > 250, f"of each node, with {each.host.name}'s agent to be restarted"
        each.restart()
    stream.advance(0.5)
    sent, tally = stream.finish()
    sink.stop()
    assert (tally.received, tally.sources) == (sent, (a.pod.address,))


def test_a_container_that_is_removed_gives_its_address_back(nodes: tuple[Node, Node]) -> None:
    b = nodes[1]
    second = b.containerd.run("second")
    assert b.containerd.addresses() == {b.pod.address, second.address}
    second.remove()
    assert b.containerd.addresses() == {b.pod.address}
    ports = partial(b.host.ip, "-br", "link", "show", "master", "cni0", "up")
    wait_until(lambda: len(ports().splitlines()) == 1, 10, "its port is gone")
