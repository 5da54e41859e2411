"""Two dual-stack nodes without eBPF: what IPv6 has of the kernel path, by packets."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from ctl.core.family import IPV6
from ctl.core.model import Lease
from tests.dual import (
    Guest,
    give,
    guest,
    init_network,
    lease,
    ping,
    reaches,
    underlay,
    with_ipv6,
)
from tests.host import METRICS_PORT, Agent, Host
from tests.lab import Lab, wait_until
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
    agents = {host.name: host.agent("--bypass", "off", wait=False) for host in hosts}
    for agent in agents.values():
        agent.wait_ready()
    return agents


@pytest.fixture(scope="module")
def nodes() -> Iterator[Duals]:
    with Lab() as lab:
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
        duals.agents[host.name] = host.agent("--bypass", "off")
    stream.advance(0.5)
    sent, tally = stream.finish()
    assert (tally.received, tally.duplicates) == (sent, 0)
    assert tally.sources == (duals.on_a.address,)


def test_what_fits_goes_whole_and_what_does_not_is_told_by_the_gateway(duals: Duals) -> None:
    source, sink = duals.on_a, duals.on_b
    largest = duals.a.subnet_env()["FLANNEL_MTU"]
    assert largest == "1430", "70 bytes less than the uplink's"
    assert ping(source.place, sink.address, "-Mdo", "-s", "1382")
    to_b = f"{underlay(duals.b)}/128"
    duals.a.ip("-6", "route", "add", to_b, "dev", "eth0", "mtu", "1400")
    try:
        wait_until(lambda: "mtu 1330" in routes(duals.a), 10, lambda: routes(duals.a))
        said = source.place.run("ping", "-6", "-c2", "-W1", "-Mdo", "-s", "1382", sink.address, check=False)
        gateway = source.place.ip("-6", "route", "show", "default").split()[2]
        assert f"From {gateway} icmp_seq=1 Packet too big: mtu=1330" in said.stdout
        server = TcpSink(sink.place, address=sink.address)
        assert tcp_send(source.place, sink.address, MEGABYTE)["seen_as"] == source.address
        server.stop()
    finally:
        duals.a.ip("-6", "route", "del", to_b)
    wait_until(lambda: "mtu" not in routes(duals.a), 10, lambda: routes(duals.a))


def routes(host: Host) -> str:
    """Its IPv6 routes to peers."""
    return host.ip("-6", "route", "show", "proto", "147")


def test_who_is_outside_sees_the_nodes_address(duals: Duals) -> None:
    server = TcpSink(duals.outside, address=underlay(duals.outside))
    for source, host in ((duals.on_a, duals.a), (duals.on_b, duals.b)):
        assert tcp_send(source.place, underlay(duals.outside))["seen_as"] == underlay(host)
    server.stop()


def test_a_hand_made_vxlan_device_is_a_stranger_until_it_has_a_lease(duals: Duals) -> None:
    """The kernel's own device, with its checksums, at the other end: nothing of ours is there."""
    a, outside = duals.a, duals.outside
    stranger, ours = lease(outside, 9).ipv6, duals.leases["a"].ipv6
    assert stranger and ours
    named = ("vx6", "address", str(stranger.vtep_mac), "mtu", "1430", "type", "vxlan", "id", "1")
    where = ("dev", "eth0", "local", str(stranger.host), "dstport", "8472")
    outside.ip("link", "add", *named, *where, "nolearning")
    try:
        outside.sysctl("net.ipv6.conf.vx6.disable_ipv6", "0")
        outside.ip("address", "add", f"{stranger.subnet.network_address}/128", "dev", "vx6", "nodad")
        outside.ip("link", "set", "vx6", "up")
        base, mac = str(ours.subnet.network_address), str(ours.vtep_mac)
        outside.ip("neigh", "add", base, "lladdr", mac, "dev", "vx6", "nud", "permanent")
        outside.run("bridge", "fdb", "add", mac, "dev", "vx6", "dst", str(ours.host), "self", "permanent")
        outside.ip("-6", "route", "add", str(ours.subnet), "via", base, "dev", "vx6", "onlink")
        assert not ping(outside, duals.on_a.address)
        assert refused(a) > 0
        before = refused(a)
        give(a, lease(outside, 9))
        reaches(outside, duals.on_a.address)
        assert ping(duals.on_a.place, str(stranger.subnet.network_address))
        assert refused(a) < before + 20, "no more than until the agent had heard of it"
        counted = a.http(f"http://127.0.0.1:{METRICS_PORT}/metrics")[1]
        assert re.search(r'ovnet_rule_drop_packets_total\{rule="VXLAN of no peer"\} [1-9]', counted), counted
    finally:
        outside.ip("link", "del", "vx6")
        a.ovctl("lease", "release", "172.17.9.0/24", check=False)


def refused(host: Host) -> int:
    """Packets that the rule about strangers has dropped."""
    rules = host.run("nft", "list", "chain", "ip6", "ovnet", "vtep").stdout
    found = re.search(r'counter packets (\d+) bytes \d+ drop comment "VXLAN of no peer"', rules)
    assert found, rules
    return int(found[1])


def test_what_somebody_removes_of_ipv6_comes_back(duals: Duals) -> None:
    a, part = duals.a, duals.leases["b"].ipv6
    assert part and part.vtep_mac
    member = IPV6.member(duals.leases["b"])
    assert member
    hop = str(member.overlay_hop)
    own = duals.leases["a"].ipv6
    assert own
    wanted = {
        "ip -6 route show proto 147": str(part.subnet),
        "ip -6 neigh show dev ovnet-v6.1 nud permanent": hop,
        "bridge fdb show dev ovnet-v6.1": str(part.vtep_mac),
        "nft list set ip6 ovnet senders": str(part.host),
        "ip -6 address show dev ovnet0": f"{own.subnet.network_address + 1}/64",
        "ip -6 address show dev ovnet-v6.1": f"{own.subnet.network_address}/128",
        "nft list table ip6 ovnet": "masquerade",
    }

    def missing() -> list[str]:
        return [
            shown for shown, word in wanted.items() if word not in a.run(*shown.split(), check=False).stdout
        ]

    removals = (
        ("ip", "-6", "route", "del", str(part.subnet), "proto", "147"),
        ("ip", "-6", "neigh", "del", hop, "dev", "ovnet-v6.1"),
        ("bridge", "fdb", "del", str(part.vtep_mac), "dev", "ovnet-v6.1"),
        ("nft", "delete", "element", "ip6", "ovnet", "senders", f"{{ {part.host} }}"),
        ("ip", "-6", "address", "del", f"{own.subnet.network_address + 1}/64", "dev", "ovnet0"),
        ("ip", "-6", "address", "del", f"{own.subnet.network_address}/128", "dev", "ovnet-v6.1"),
        ("nft", "delete", "table", "ip6", "ovnet"),
        ("ip", "link", "set", "ovnet-v6.1", "down"),
        ("ip", "link", "set", "ovnet0", "down"),
        ("ip", "link", "del", "ovnet-v6.1"),
    )
    for removal in removals:
        a.run(*removal)
        wait_until(lambda: not missing(), 10, f"all of it is there again after {' '.join(removal)}")
    reaches(duals.on_a.place, duals.on_b.address)
    assert json.loads(a.ovctl("map", "diff", "-o", "json").stdout) == []


def test_the_doctor_asks_by_ipv6_too(duals: Duals) -> None:
    a, found = duals.a, duals.a.json("doctor")
    seen = [each["seen"] for each in found if each["check"] == "peers"]
    assert seen == [f"1 of 1 answer{by}, packets of 1430 bytes too" for by in (" by IPv6", "")], found
    host = underlay(duals.b)
    a.run("nft", "add", "table", "ip6", "stopped")
    try:
        a.run("nft", "add", "chain", "ip6", "stopped", "out", "{ type filter hook output priority 0; }")
        a.run("nft", "add", "rule", "ip6", "stopped", "out", "udp", "dport", "8472", "drop")
        done = a.ovctl("doctor", "-o", "json", check=False)
        lines = [each["seen"] for each in json.loads(done.stdout) if each["check"] == "peer"]
    finally:
        a.run("nft", "delete", "table", "ip6", "stopped")
    assert (done.returncode, lines) == (1, [f"b (fd00:10:0:2::/64) answers nothing, its host {host} does"])
