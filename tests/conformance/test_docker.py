"""Real Docker on two hosts, its bridge set up from the lease."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import pytest

from tests.docker import DockerContainer, Dockerd, flags_from_lease
from tests.host import Host
from tests.lab import Lab, wait_until
from tests.stream import TRAFFIC, TcpSink, UdpStream, tcp_send

PORT = 9100


@dataclass
class Hosts:
    a: Host
    b: Host
    outside: Host
    on_a: DockerContainer
    on_b: DockerContainer


def start(lab: Lab, docker_turns_forwarding_on: bool) -> Hosts:
    """Agents, then dockerd as the lease says, then a container on each host."""
    a, b, outside = lab.host("a"), lab.host("b"), lab.outside()
    lab.init_network()
    containers = []
    for host in (a, b):
        host.bridge = "docker0"
        agent = host.agent()
        if docker_turns_forwarding_on:
            agent.stop()  # it would turn it on again at once
            host.sysctl("net.ipv4.ip_forward", "0")
        docker = Dockerd(host, *flags_from_lease(host))
        if docker_turns_forwarding_on:
            host.agent()
        command = (*TRAFFIC, "tcp-sink", str(PORT))
        containers.append(docker.run(f"on-{host.name}", *command, options=("--publish", f"8000:{PORT}")))
    for container in containers:
        wait_until(partial(container.listens, PORT), 10, "the container listens")
    return Hosts(a, b, outside, *containers)


@pytest.fixture(scope="module", params=[False, True], ids=["forward-accept", "forward-drop"])
def hosts(request: pytest.FixtureRequest) -> Iterator[Hosts]:
    """Dockerd sets the FORWARD policy to DROP when it was the one to turn ip_forward on."""
    with Lab() as lab:
        made = start(lab, request.param)
        policy = "DROP" if request.param else "ACCEPT"
        for host in (made.a, made.b):
            assert f"-P FORWARD {policy}" in host.run("iptables", "-S", "FORWARD").stdout
        yield made


def test_docker_uses_the_lease(hosts: Hosts) -> None:
    for host, container in ((hosts.a, hosts.on_a), (hosts.b, hosts.on_b)):
        assert container.address.startswith(str(host.gateway.network).rpartition(".")[0])
        assert f"mtu {host.subnet_env()['FLANNEL_MTU']} " in container.ip("link", "show", "eth0")


def test_containers_see_each_others_own_address(hosts: Hosts) -> None:
    for source, sink in ((hosts.on_a, hosts.on_b), (hosts.on_b, hosts.on_a)):
        source.run("ping", "-c3", "-i0.05", "-W2", sink.address)
        assert tcp_send(source, sink.address, 20_000_000, port=PORT)["seen_as"] == source.address


def test_udp_is_carried_by_ebpf_and_nothing_is_lost(hosts: Hosts) -> None:
    before = hosts.a.bypassed(), hosts.b.bypassed()
    stream = UdpStream(hosts.on_a, hosts.on_b, hosts.on_b.address)
    stream.advance(2)
    sent, tally = stream.finish()
    assert (tally.received, tally.sources) == (sent, (hosts.on_a.address,))
    for host, then in zip((hosts.a, hosts.b), before, strict=True):
        assert host.bypassed()[0] - then[0] > sent * 0.9


def test_published_port_is_reached_from_the_other_host_and_from_outside(hosts: Hosts) -> None:
    tcp_send(hosts.a, hosts.b.address, 1_000_000, port=8000)
    tcp_send(hosts.outside, hosts.b.address, 1_000_000, port=8000)


def test_published_port_is_reached_from_a_container_of_the_other_host(hosts: Hosts) -> None:
    """The client's packets leave the overlay; conntrack on host b translates both ways."""
    tcp_send(hosts.on_a, hosts.b.address, 20_000_000, port=8000)


def test_containers_reach_the_outside_as_their_host(hosts: Hosts) -> None:
    server = TcpSink(hosts.outside, 9101)
    assert tcp_send(hosts.on_a, hosts.outside.address, port=9101)["seen_as"] == hosts.a.address
    server.stop()
