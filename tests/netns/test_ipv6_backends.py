"""What two dual-stack nodes have of IPv6 with each backend, and what is left of it; flannel's, taken over."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ctl.kernel.netlink.session import Netlink
from ctl.node import forwarding
from tests.dual import give, guest, init_network, lease, ping, reaches, underlay, with_ipv6
from tests.host import Host, started
from tests.lab import Lab, wait_until
from tests.namespace import Netns
from tests.stream import UdpStream


@dataclass
class Place:
    """Two hosts with both families, and a store."""

    lab: Lab
    a: Host
    b: Host


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with Lab() as lab:
        lab.etcd()
        yield Place(lab, with_ipv6(lab.host("a")), with_ipv6(lab.host("b")))


@pytest.mark.parametrize(
    ("backend", "device", "mtu"),
    [
        ('{"Type":"vxlan"}', "ovnet-v6.1", "1430"),
        ('{"Type":"vxlan","DirectRouting":true}', "eth0", "1430"),
        ('{"Type":"host-gw"}', "eth0", "1500"),
    ],
    ids=["vxlan", "DirectRouting", "host-gw"],
)
def test_both_families_go_with_each_backend_and_teardown_leaves_nothing(
    place: Place, backend: str, device: str, mtu: str
) -> None:
    a, b = place.a, place.b
    init_network(a, backend)
    kind = "host-gw" if "host-gw" in backend else "vxlan"
    leases = lease(a, 1, kind), lease(b, 2, kind)
    give(a, *leases)
    for host in (a, b):  # what stays is not the network's: others rely on it by then
        host.sysctl("net.ipv4.ip_forward", "1")
        host.sysctl("net.ipv6.conf.all.forwarding", "1")
    before = a.footprint()
    agents = started((a, b), "--bypass", "off")
    on_a, on_b = guest(a, leases[0]), guest(b, leases[1])
    reaches(on_a.place, on_b.address)
    assert ping(on_b.place, on_a.address)
    on_a.place.run("ping", "-c1", "-W2", on_b.place.address)
    (route,) = a.ip("-6", "route", "show", "proto", "147").splitlines()
    assert f"dev {device}" in route
    assert (f"via {underlay(b)}" in route) is (device == "eth0")
    assert a.subnet_env()["FLANNEL_MTU"] == mtu
    for each in (on_a, on_b):
        each.place.remove()
    for host in (a, b):
        agents[host.name].stop()
        host.teardown()
    assert a.footprint() == before


def test_where_ipv6_cannot_be_had_ipv4_goes_on_and_ipv6_comes_when_it_can(place: Place) -> None:
    a, b = place.a, place.b
    init_network(a)
    give(a, lease(a, 1), lease(b, 2))
    a.ip("link", "add", "ovnet-v6.1", "type", "bridge")  # somebody else's
    agents = {"b": b.agent("--bypass", "off"), "a": a.agent("--bypass", "off", wait=False)}
    wait_until(lambda: "ovnet-v6.1 exists, is not ours" in agents["a"].log(), 20, agents["a"].log)
    wait_until((a.state_dir / "subnet.env").exists, 10, "containers are told")
    wait_until(lambda: a.reaches(b), 10, "IPv4 goes on")
    a.ip("link", "del", "ovnet-v6.1")
    there = lease(b, 2).ipv6
    assert there
    reaches(a, str(there.subnet.network_address + 1))
    for host in (a, b):
        agents[host.name].stop()
        host.teardown()


@pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
def test_a_node_goes_back_to_ipv4_alone_and_its_ipv6_is_gone(place: Place, backend: str) -> None:
    a, text = place.a, f'{{"Type":"{backend}"}}'
    init_network(a, text)
    give(a, lease(a, 1, backend), lease(place.b, 2, backend))
    with_both = a.agent("--bypass", "off")
    bridge = ("ip", "-6", "address", "show", "dev", "ovnet0", "scope", "global")
    assert "fd00:10:0:1::1/64" in a.run(*bridge).stdout
    assert "fd00:10:0:2::/64" in a.ip("-6", "route", "show", "proto", "147")
    with_both.stop()
    init_network(a, text, ipv6=False)
    alone = a.agent("--bypass", "off")
    assert a.run(*bridge).stdout == ""
    assert a.ip("-6", "route", "show", "proto", "147") == ""
    assert "ovnet-v6" not in a.ip("-br", "link")
    assert "ip6 ovnet" not in a.run("nft", "list", "tables").stdout
    alone.stop()
    a.teardown()


def test_a_network_of_both_families_is_refused_where_the_backend_is_udp(place: Place) -> None:
    init_network(place.a, '{"Type":"udp"}')
    done = place.a.ovctl("agent", check=False)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert "backend udp carries IPv4 only: EnableIPv6 must be false" in line


# --- flannel -------------------------------------------------------------------------


def flannels(host: Host, peer: Host) -> None:
    """What flanneld and CNI's plugin `bridge` leave of IPv6 on a host with the subnet of number 1."""
    own, other = lease(host, 1).ipv6, lease(peer, 2).ipv6
    assert own and other
    gateway, via, mac = own.subnet.network_address + 1, str(other.subnet.network_address), str(other.vtep_mac)
    host.ip("link", "add", "flannel-v6.1", "address", str(own.vtep_mac), "mtu", "1430", "type", "vxlan",
            "id", "1", "dev", "eth0", "local", str(own.host), "dstport", "8472", "nolearning")  # fmt: skip
    host.ip("link", "add", "cni0", "mtu", "1430", "type", "bridge")
    for device, address in (("flannel-v6.1", f"{own.subnet.network_address}/128"), ("cni0", f"{gateway}/64")):
        host.run("sysctl", "-qw", f"net/ipv6/conf/{device}/disable_ipv6=0")
        host.ip("address", "add", address, "dev", device, "nodad")
        host.ip("link", "set", device, "up")
    host.ip("neigh", "add", via, "lladdr", mac, "dev", "flannel-v6.1", "nud", "permanent")
    host.run("bridge", "fdb", "add", mac, "dev", "flannel-v6.1", "dst", str(other.host), "self", "permanent")
    host.ip("-6", "route", "add", str(other.subnet), "via", via, "dev", "flannel-v6.1", "onlink")
    host.ip("address", "add", "172.17.1.1/24", "dev", "cni0")
    host.state_dir.mkdir(exist_ok=True)
    (host.state_dir / "subnet.env").write_text("FLANNEL_SUBNET=172.17.1.1/24\nFLANNEL_MTU=1430\n")
    host.run("nft", "-f", "-", stdin=FLANNELS_TABLE)
    host.bridge = "cni0"


FLANNELS_TABLE = """\
table ip6 flannel-ipv6 {
	chain forward {
		type filter hook forward priority filter; policy accept;
		ip6 saddr fd00:10::/48 accept
	}
}
"""


def test_flannels_ipv6_is_taken_over_and_given_back_and_no_datagram_is_lost(place: Place) -> None:
    a, b = place.a, place.b
    init_network(a)
    leases = lease(a, 1), lease(b, 2)
    give(a, *leases)
    for host in (a, b):
        host.sysctl("net.ipv6.conf.all.forwarding", "1")
    flannels(a, b)
    agents = started((b,), "--bypass", "off")
    on_a, on_b = guest(a, leases[0], "kept"), guest(b, leases[1], "kept")
    reaches(on_a.place, on_b.address)
    stream = UdpStream(on_a.place, on_b.place, on_b.address)
    stream.advance(0.5)
    agents |= started((a,), "--bypass", "off")
    stream.advance(0.5)
    links = a.ip("-br", "link")
    assert "flannel" not in links
    assert str(leases[0].ipv6 and leases[0].ipv6.vtep_mac) in a.ip("link", "show", "ovnet-v6.1")
    assert "fe80::" in a.ip("-6", "route", "show", "proto", "147")
    assert "flannel" not in a.run("nft", "list", "ruleset").stdout
    agents["a"].stop()
    a.ovctl("teardown", "--to-flannel")
    stream.advance(0.5)
    sent, tally = stream.finish()
    assert (tally.received, tally.duplicates) == (sent, 0)
    assert a.ip("-6", "route", "show", "proto", "147") == ""
    assert "dev flannel-v6.1" in a.ip("-6", "route", "show", str(leases[1].ipv6 and leases[1].ipv6.subnet))


# --- Routers -------------------------------------------------------------------------

ROUTER_ADVERTISEMENT = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
"""A default route for half an hour (RFC 4861, 4.2); the kernel fills the checksum in."""


def advertise(router: Netns) -> None:
    """To all nodes on the link of its eth0."""

    def send() -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
            eth0 = socket.if_nametoindex("eth0")
            sock.sendto(ROUTER_ADVERTISEMENT, ("ff02::1", 0, 0, eth0))

    router.call(send)


def test_an_uplink_keeps_the_default_route_that_its_router_advertises(lab: Lab, tmp_path: Path) -> None:
    """Which goes at once where a host begins to forward and its uplink was told nothing."""
    host, router = with_ipv6(lab.host("a")), with_ipv6(lab.host("r"))
    router.ip("address", "add", "fe80::1/64", "dev", "eth0", "nodad")

    def has_default() -> bool:
        return "via fe80::1 dev eth0 proto ra" in host.ip("-6", "route", "show", "default")

    advertise(router)
    wait_until(has_default, 5, "the router is heard")
    host.sysctl("net.ipv6.conf.all.forwarding", "1")
    assert not has_default(), "else there is nothing to keep"
    host.sysctl("net.ipv6.conf.all.forwarding", "0")
    advertise(router)
    wait_until(has_default, 5, "the router is heard again")

    def forward() -> None:
        with Netlink() as netlink:
            forwarding.ensure_ipv6(netlink, "eth0", tmp_path / "sysctl.json")

    host.call(forward)
    assert host.sysctl("net.ipv6.conf.all.forwarding") == "1"
    assert has_default()
    host.ip("-6", "route", "del", "default")
    advertise(router)
    wait_until(has_default, 5, "and it is heard from now on")
