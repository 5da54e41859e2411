"""Real dockerd with IPv6 on both hosts of a dual-stack network; `ovctl docker-opts` tells it of the lease."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Interface

import pytest

from tests.docker import DockerContainer, Dockerd
from tests.dual import NETWORK, reaches, with_ipv6, write_network
from tests.host import Host, started
from tests.lab import Lab
from tests.stream import TcpSink, UdpStream, tcp_send


@dataclass(frozen=True)
class End:
    """A container, and its host."""

    host: Host
    docker: Dockerd
    container: DockerContainer

    @property
    def address(self) -> str:
        """Its IPv6 address, as Docker says it."""
        shown = json.loads(self.docker.docker("inspect", self.container.name))
        (network,) = shown[0]["NetworkSettings"]["Networks"].values()
        return str(network["GlobalIPv6Address"])


@pytest.fixture(scope="module")
def ends() -> Iterator[tuple[End, End]]:
    with Lab() as lab:
        hosts = [with_ipv6(lab.host(name)) for name in "ab"]
        write_network(lab.store_url)
        for host in hosts:
            host.bridge = "docker0"
        started(hosts)
        made = []
        for host in hosts:
            docker = Dockerd(host, *host.ovctl("docker-opts").stdout.split())
            made.append(End(host, docker, docker.run(f"on-{host.name}", "sleep", "infinity")))
        reaches(made[0].container, made[1].address)
        yield made[0], made[1]


def test_docker_uses_the_lease_of_both_families(ends: tuple[End, End]) -> None:
    for end in ends:
        lease = end.host.subnet_env()
        own = IPv6Interface(lease["FLANNEL_IPV6_SUBNET"])
        assert IPv6Address(end.address) in own.network
        assert IPv6Address(end.address) in NETWORK
        assert f"via {own.ip} " in end.container.ip("-6", "route", "show", "default")
        assert f"mtu {lease['FLANNEL_MTU']} " in end.container.ip("link", "show", "eth0")


@pytest.mark.parametrize("turn", ["there", "back"])
def test_containers_reach_each_other_by_ipv6_as_themselves(ends: tuple[End, End], turn: str) -> None:
    one, two = ends if turn == "there" else ends[::-1]
    sink = TcpSink(two.container, address=two.address)
    said = tcp_send(one.container, two.address, 1_000_000)
    sink.stop()
    assert said["seen_as"] == one.address
    stream = UdpStream(one.container, two.container, two.address, echo=10)
    stream.advance(0.5)
    sent, tally = stream.finish()
    assert (tally.received, tally.lost, tally.sources) == (sent, 0, (one.address,))
