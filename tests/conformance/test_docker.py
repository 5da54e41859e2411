"""Real Docker on two hosts, its bridge set up from the lease, over a real etcd.

Host a has a network of its own beside docker0, and host b runs with --icc=false. Dockerd
sets the FORWARD policy to DROP when it was the one to turn ip_forward on: both cases.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import pytest

from tests.docker import DockerContainer, Dockerd, flags_from_lease
from tests.etcd import Etcd
from tests.host import Agent, Host
from tests.lab import Lab, wait_until
from tests.namespace import Netns
from tests.stream import TRAFFIC, Tally, TcpSink, UdpStream, tcp_send

PORT, INNER = 9100, 9200
"""Of a container's servers: one that may be published, one that never is."""
OTHER_NET = "172.30.0.0/24"
SERVERS = {"ACCEPT": "3.4", "DROP": "3.5"}
"""Etcd's version by FORWARD policy: both are met."""


@dataclass(frozen=True)
class Way:
    """From a place to a port of a place; whom the target sees, by FORWARD policy, `""` for nobody."""

    source: str
    target: str
    port: int
    accept: str
    drop: str


def way(source: str, target: str, port: int, seen_as: str, drop: str | None = None) -> Way:
    return Way(source, target, port, seen_as, seen_as if drop is None else drop)


WAYS = (
    # Containers of the overlay, by their own addresses.
    way("on_a", "on_b", INNER, "on_a"),
    way("on_b", "on_a", INNER, "on_b"),
    way("near_b", "on_a", INNER, "near_b"),
    way("b", "on_a", INNER, "tunnel_b"),
    way("outside", "on_a", INNER, "outside"),
    # Published ports. From another network of the same host Docker does not let them through.
    way("on_a", "b", 8000, "a"),
    way("on_b", "a", 8000, "b"),
    way("b", "a", 8000, "b"),
    way("outside", "a", 8000, "outside"),
    way("outside", "b", 8000, "outside"),
    way("on_b", "a", 8001, "b"),
    way("outside", "a", 8001, "outside"),
    way("on_a", "a", 8001, ""),
    # The networks of a host are isolated from each other, published or not.
    way("on_a", "other", INNER, ""),
    way("on_a", "other", PORT, ""),
    way("other", "on_a", INNER, ""),
    way("other", "on_a", PORT, ""),
    # The other network reaches the overlay of other hosts as it reaches everything: by its host.
    way("other", "on_b", INNER, "tunnel_a"),
    # It is reached where a port is published; else only if FORWARD's policy is ACCEPT.
    way("on_b", "other", PORT, "b"),
    way("on_b", "other", INNER, "b", drop=""),
    way("outside", "other", INNER, "outside", drop=""),
    # --icc=false: containers of one bridge are kept from each other.
    way("on_b", "near_b", INNER, ""),
    way("near_b", "on_b", INNER, ""),
)


@dataclass
class Hosts:
    policy: str
    etcd: Etcd
    agents: dict[str, Agent]
    dockers: dict[str, Dockerd]
    places: dict[str, Netns]
    a: Host
    b: Host
    outside: Host
    on_a: DockerContainer
    on_b: DockerContainer
    near_b: DockerContainer
    other: DockerContainer
    without_ebpf: dict[Way, str] = field(default_factory=dict)

    def restart(self, *flags: str) -> None:
        """Both agents, with these flags."""
        for name, host in (("a", self.a), ("b", self.b)):
            self.agents[name].stop()
            self.agents[name] = host.agent(*flags, wait=False)
        for agent in self.agents.values():
            agent.wait_ready()


def reach(hosts: Hosts, each: Way) -> str:
    """The address that the target sees on a connection with some data in it; empty if there is none."""
    target = hosts.places[each.target]
    assert isinstance(target, Host | DockerContainer)

    def dial() -> str:
        try:
            with socket.create_connection((target.address, each.port), timeout=2) as sock:
                seen = sock.makefile("r").readline().strip()
                sock.sendall(bytes(200_000))
                sock.shutdown(socket.SHUT_WR)
                assert sock.recv(1) == b"", "the sink closes when it has everything"
                return seen
        except TimeoutError:
            return ""

    return hosts.places[each.source].call(dial)


def who_reaches_whom(hosts: Hosts) -> dict[Way, str]:
    """All ways at once: those that lead nowhere take their time."""
    names = {place.address: name for name, place in hosts.places.items()}  # type: ignore[attr-defined]
    for host in (hosts.a, hosts.b):
        names[str(host.gateway.network.network_address)] = f"tunnel_{host.name}"
    with ThreadPoolExecutor(len(WAYS)) as pool:
        seen = pool.map(partial(reach, hosts), WAYS)
        return {each: names.get(address, address) for each, address in zip(WAYS, seen, strict=True)}


def sink(docker: Dockerd, name: str, *options: str) -> DockerContainer:
    """A container that takes connections on PORT and logs each."""
    made = docker.run(name, *TRAFFIC, "tcp-sink", str(PORT), options=options)
    wait_until(partial(made.listens, PORT), 10, f"{name} listens")
    return made


def start(lab: Lab, policy: str) -> Hosts:
    """Agents, then dockerd as the lease says, then containers."""
    etcd = lab.etcd(SERVERS[policy])
    a, b, outside = lab.host("a"), lab.host("b"), lab.outside()
    lab.init_network()
    agents, dockers = {}, {}
    for host in (a, b):
        host.bridge = "docker0"
        agents[host.name] = host.agent("--bypass=off")
        if policy == "DROP":
            agents[host.name].stop()  # it would turn forwarding on again at once
            host.sysctl("net.ipv4.ip_forward", "0")
        strict = ["--icc=false"] if host is b else []
        dockers[host.name] = Dockerd(host, *flags_from_lease(host), *strict)
        if policy == "DROP":
            agents[host.name] = host.agent("--bypass=off")
    dockers["a"].docker("network", "create", "--subnet", OTHER_NET, "other")
    on_a = sink(dockers["a"], "on-a", "--publish", f"8000:{PORT}")
    on_b, near_b = sink(dockers["b"], "on-b", "--publish", f"8000:{PORT}"), sink(dockers["b"], "near-b")
    other = sink(dockers["a"], "other", "--network", "other", "--publish", f"8001:{PORT}")
    for container in (on_a, on_b, near_b, other):
        container.serve(*TRAFFIC, "tcp-sink", str(INNER), port=INNER)
    outside.ip("route", "add", str(a.gateway.network), "via", a.address)
    for host in (b, outside):
        host.ip("route", "add", OTHER_NET, "via", a.address)
    for host in (a, b):
        wait_until(host.knows_a_peer, 10, f"{host.name} knows its peer")
    places: dict[str, Netns] = {
        "a": a, "b": b, "outside": outside, "on_a": on_a, "on_b": on_b, "near_b": near_b, "other": other
    }  # fmt: skip
    hosts = Hosts(policy, etcd, agents, dockers, places, a, b, outside, on_a, on_b, near_b, other)
    hosts.without_ebpf = who_reaches_whom(hosts)
    hosts.restart()
    return hosts


@pytest.fixture(scope="module", params=SERVERS)
def hosts(request: pytest.FixtureRequest) -> Iterator[Hosts]:
    with Lab() as lab:
        made = start(lab, request.param)
        for host in (made.a, made.b):
            assert f"-P FORWARD {request.param}" in host.run("iptables", "-S", "FORWARD").stdout
        yield made


def test_docker_uses_the_lease(hosts: Hosts) -> None:
    for host, container in ((hosts.a, hosts.on_a), (hosts.b, hosts.on_b)):
        lease = host.subnet_env()
        (network,) = json.loads(hosts.dockers[host.name].docker("network", "inspect", "bridge"))
        assert network["IPAM"]["Config"] == [
            {"Subnet": str(host.gateway.network), "Gateway": str(host.gateway.ip)}
        ]
        assert network["Options"]["com.docker.network.driver.mtu"] == lease["FLANNEL_MTU"]
        assert network["Options"]["com.docker.network.bridge.enable_ip_masquerade"] == "false"
        assert container.address in network["Containers"][container.id]["IPv4Address"]
        assert f"mtu {lease['FLANNEL_MTU']} " in container.ip("link", "show", "eth0")


def test_a_shell_takes_dockers_options_from_subnet_env(hosts: Hosts) -> None:
    """As the README has it."""
    file = hosts.a.state_dir / "subnet.env"
    script = '. "$0" && echo "--bip=$FLANNEL_SUBNET --mtu=$FLANNEL_MTU --ip-masq=false"'
    assert hosts.a.run("sh", "-c", script, str(file)).stdout.split() == list(flags_from_lease(hosts.a))


def test_the_leases_are_in_etcd(hosts: Hosts) -> None:
    for host in (hosts.a, hosts.b):
        key = f"/coreos.com/network/subnets/{str(host.gateway.network).replace('/', '-')}"
        assert json.loads(hosts.etcd.value(key))["PublicIP"] == host.address


def test_containers_see_each_others_own_address(hosts: Hosts) -> None:
    for source, target in ((hosts.on_a, hosts.on_b), (hosts.on_b, hosts.on_a)):
        source.run("ping", "-c3", "-i0.05", "-W2", target.address)
        assert tcp_send(source, target.address, 20_000_000, port=PORT)["seen_as"] == source.address


def test_udp_is_carried_by_ebpf_and_nothing_is_lost(hosts: Hosts) -> None:
    before = hosts.a.bypassed(), hosts.b.bypassed()
    stream = UdpStream(hosts.on_a, hosts.on_b, hosts.on_b.address)
    stream.advance(1)
    sent, tally = stream.finish()
    assert (tally.received, tally.sources) == (sent, (hosts.on_a.address,))
    for host, then in zip((hosts.a, hosts.b), before, strict=True):
        assert host.bypassed()[0] - then[0] > sent * 0.9


def test_containers_reach_the_outside_as_their_host(hosts: Hosts) -> None:
    server = TcpSink(hosts.outside, 9101)
    assert tcp_send(hosts.on_a, hosts.outside.address, port=9101)["seen_as"] == hosts.a.address
    server.stop()


def test_isolation_and_published_ports_are_dockers_with_ebpf_as_without(hosts: Hosts) -> None:
    expected = {each: each.accept if hosts.policy == "ACCEPT" else each.drop for each in WAYS}
    assert hosts.without_ebpf == expected
    before = hosts.a.bypassed()[0]
    assert who_reaches_whom(hosts) == expected
    assert hosts.a.bypassed()[0] > before


# --- Containers come and go -----------------------------------------------------------


def received(container: DockerContainer) -> list[int]:
    """How much it has got on each connection that has ended."""
    lines = map(json.loads, container.logs().splitlines())
    return [line["bytes"] for line in lines if "end" in line]


def sends(source: Netns, address: str, port: int, target: DockerContainer) -> None:
    """What is sent to that address and port arrives at that container."""
    size = 100_000 + len(received(target))
    tcp_send(source, address, size, port=port)
    wait_until(lambda: size in received(target), 5, f"{target.name} has it")


@pytest.mark.parametrize("hosts", ["DROP"], indirect=True)
def test_containers_that_swap_their_addresses_are_found_at_once(hosts: Hosts) -> None:
    docker = hosts.dockers["b"]
    one = sink(docker, "one", "--publish", f"8002:{PORT}")
    two = sink(docker, "two", "--publish", f"8003:{PORT}")
    old = one.address, two.address
    for container, published in ((one, 8002), (two, 8003)):
        sends(hosts.on_a, container.address, PORT, container)
        sends(hosts.on_a, hosts.b.address, published, container)
    for container in (one, two):
        container.stop()
    for container in (two, one):
        container.start()
    assert (two.address, one.address) == old
    for container, published in ((one, 8002), (two, 8003)):
        wait_until(partial(container.listens, PORT), 10, f"{container.name} listens")
        sends(hosts.on_a, container.address, PORT, container)
        sends(hosts.on_a, hosts.b.address, published, container)
        sends(hosts.outside, hosts.b.address, published, container)
    for container in (one, two):
        container.remove()


@pytest.mark.parametrize("hosts", ["DROP"], indirect=True)
def test_traffic_finds_a_container_that_was_restarted_and_one_that_took_its_address(hosts: Hosts) -> None:
    docker = hosts.dockers["b"]
    command = (*TRAFFIC, "udp-sink", "9000")
    first = docker.run("first", *command)
    address = first.address
    sender = hosts.on_a.popen(*TRAFFIC, "udp-send", address, "9000", "1000")
    flows(hosts, first)
    first.start()
    assert first.address == address
    flows(hosts, first)
    first.remove()
    second = docker.run("second", *command)
    assert second.address == address
    flows(hosts, second)
    assert sender.poll() is None
    sender.stop()
    second.remove()


def flows(hosts: Hosts, target: DockerContainer) -> None:
    """Datagrams of container on_a arrive, and soon by eBPF."""
    before = hosts.b.bypassed()[0]

    def tally() -> Tally:
        return Tally.parse(target.logs())

    wait_until(lambda: target.logs() and tally().received > 500, 15, lambda: f"flows: {target.logs()[-200:]}")
    assert tally().sources == (hosts.on_a.address,)
    wait_until(lambda: hosts.b.bypassed()[0] - before > 500, 15, "eBPF carries it")
