"""Masquerade and forwarding with traffic: which source address arrives where.

Flannel's rules, C being the network and P the node's own subnet, first match:

    mark 0x4000/0x4000   left alone        ! -s C -d P                left alone
    -s P -d C            left alone        -s C ! -d 224.0.0.0/4      masquerade
    -s C -d P            left alone        ! -s C -d C                masquerade

and forwarding accepts -s C and -d C. Each backend, with FORWARD's policy ACCEPT and DROP.

    near, on_a --- a ---+--- b --- on_b
                        +--- outside, which has a route to C by way of a
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address

import pytest

from ctl.backend.udp.client import ForwarderProcess
from tests.host import Container, Host
from tests.lab import Lab, wait_until
from tests.namespace import Netns
from tests.netns.test_netfilter import rules

GROUP = "239.7.7.7"
FAR, FAR_NET = "10.1.1.1", "10.1.1.0/24"
"""An address of host b that belongs to no overlay; host a has a route to it."""
PORT = 7000
DATAGRAMS = 5
"""Of each row; the first takes the kernel path, later ones may be carried by eBPF."""
SECONDS = 20.0


@dataclass(frozen=True)
class Row:
    """One way from a place to a place."""

    source: str
    target: str
    seen_as: str
    """Name of the address that the target sees."""
    to: str = ""
    """Name of the address to send to; default: the target's own."""
    bound_to: str = ""
    """Name of the address to send from; default: what the kernel chooses."""
    mark: int = 0
    """What a rule of host a's puts on the packets."""

    def __str__(self) -> str:
        words = [
            self.source,
            *([f"as-{self.bound_to}"] if self.bound_to else []),
            "to",
            self.to or self.target,
        ]
        return "-".join([*words, *([f"mark-{self.mark:x}"] if self.mark else [])])


ROWS = (
    # From the network to the outside: masqueraded with the host's address.
    Row("on_a", "outside", seen_as="a"),
    Row("on_b", "outside", seen_as="b"),
    Row("on_a", "b", seen_as="a"),
    Row("a", "outside", bound_to="gateway_a", seen_as="a"),
    # But not what somebody else masquerades: any mark that has the bit.
    Row("on_a", "outside", mark=0x4000, seen_as="on_a"),
    Row("on_a", "outside", mark=0x4001, seen_as="on_a"),
    Row("on_a", "outside", mark=0xFFFF, seen_as="on_a"),
    Row("on_a", "outside", mark=0x8001, seen_as="a"),
    # Within the network: nobody is anybody else.
    Row("on_a", "on_b", seen_as="on_a"),
    Row("on_b", "on_a", seen_as="on_b"),
    Row("on_a", "near", seen_as="on_a"),
    Row("a", "on_b", seen_as="tunnel_a"),
    Row("a", "on_b", bound_to="gateway_a", seen_as="gateway_a"),
    # To the host itself: nothing leaves it.
    Row("on_a", "a", seen_as="on_a"),
    Row("on_a", "a", to="gateway_a", seen_as="on_a"),
    # From outside the network into the own subnet: left alone.
    Row("outside", "on_a", seen_as="outside"),
    Row("a", "on_a", bound_to="a", seen_as="a"),
    # From outside the network into another node's subnet: masqueraded, so that the answer comes back here.
    Row("outside", "on_b", seen_as="tunnel_a"),
    Row("a", "on_b", bound_to="a", seen_as="tunnel_a"),
)


@dataclass(frozen=True)
class Site:
    """Two nodes of one backend, and who lives around them."""

    places: dict[str, Netns]
    addresses: dict[str, str]
    a: Host
    b: Host

    def exchange(self, row: Row) -> set[str]:
        """Send some datagrams, answer each; the source addresses that the target saw."""
        target = self.places[row.target]
        to = self.addresses[row.to or row.target]
        with marked(self.a, row.mark), open_udp(target, to, PORT) as sink, self.sender(row) as sender:
            return {ping_pong(sender, sink, to) for _ in range(DATAGRAMS)}

    def sender(self, row: Row) -> socket.socket:
        return open_udp(self.places[row.source], self.addresses.get(row.bound_to, ""))


def open_udp(place: Netns, address: str = "", port: int = 0) -> socket.socket:
    def make() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.settimeout(SECONDS)
        made.bind((address, port))
        return made

    return place.call(make)


def ping_pong(sender: socket.socket, sink: socket.socket, to: str) -> str:
    """One datagram and its answer, which must come from `to`; the address that the sink saw."""
    sender.sendto(b"hello", (to, PORT))
    data, seen = sink.recvfrom(100)
    sink.sendto(data, seen)
    assert sender.recvfrom(100) == (b"hello", (to, PORT))
    return str(seen[0])


def marked(host: Host, mark: int) -> AbstractContextManager[None]:
    """A rule that marks what is sent to the sink's port, for the length of the block."""
    if not mark:
        return nullcontext()
    hook = "type filter hook prerouting priority mangle"
    return rules(host, "test_mark", f"chain pre {{ {hook}; udp dport {PORT} meta mark set {mark}\n}}")


@contextmanager
def forward_policy(hosts: Sequence[Host], policy: str) -> Iterator[None]:
    """What Docker does to the FORWARD chain of iptables, here without Docker."""
    for host in hosts:
        host.run("iptables", "-P", "FORWARD", policy)
    try:
        yield
    finally:
        for host in hosts:
            host.run("iptables", "-P", "FORWARD", "ACCEPT")


def reaches(source: Container, target: Container) -> bool:
    return source.run("ping", "-c1", "-W1", target.address, check=False).returncode == 0


def build(lab: Lab, network: Sequence[str], *flags: str) -> Site:
    a, b, outside = lab.host("a"), lab.host("b"), lab.outside()
    lab.init_network("172.17.0.0/16", 24, *network)
    for host in (a, b):
        host.agent(*flags)
    on_a, near, on_b = a.container("one"), a.container("near"), b.container("one")
    outside.sysctl("net.ipv4.conf.all.accept_redirects", "0")  # else it learns of b by itself
    outside.sysctl("net.ipv4.conf.eth0.accept_redirects", "0")
    outside.ip("route", "add", "172.17.0.0/16", "via", a.address)
    b.ip("address", "add", f"{FAR}/32", "dev", "lo")
    for host, hop in ((outside, a), (a, b)):
        host.ip("route", "add", FAR_NET, "via", hop.address)
    for one, other in ((on_a, on_b), (on_b, on_a)):
        wait_until(partial(reaches, one, other), 30, "the nodes know each other")
    tunnel = a.address if "host-gw" in network else str(a.gateway.network.network_address)
    places: dict[str, Host | Container] = {
        "a": a, "b": b, "outside": outside, "on_a": on_a, "near": near, "on_b": on_b
    }  # fmt: skip
    addresses = {name: place.address for name, place in places.items()}
    addresses |= {"gateway_a": str(a.gateway.ip), "tunnel_a": tunnel, "far": FAR}
    return Site(dict(places), addresses, a, b)


SITES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "ebpf": ((), ()),
    "kernel-vxlan": ((), ("--bypass=off",)),
    "host-gw": (("--backend", "host-gw"), ()),
    "udp": (("--backend", "udp"), ()),
}


@pytest.fixture(scope="module", params=SITES)
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    network, flags = SITES[request.param]
    with Lab() as lab:
        yield build(lab, network, *flags)


@pytest.mark.parametrize("site", ["ebpf"], indirect=True)
def test_only_flows_within_the_network_are_carried_by_ebpf(site: Site) -> None:
    """So the rows below are about both ways."""

    def carried() -> bool:
        so_far = site.a.bypassed()[0]
        site.exchange(Row("on_a", "on_b", seen_as="on_a"))
        return site.a.bypassed()[0] > so_far

    wait_until(carried, SECONDS, "the agents know both containers")
    before = site.a.bypassed()[0]
    site.exchange(Row("on_a", "outside", seen_as="a"))
    site.exchange(Row("outside", "on_a", seen_as="outside"))
    assert site.a.bypassed()[0] == before
    site.exchange(Row("on_a", "on_b", seen_as="on_a"))
    assert site.a.bypassed()[0] == before + 2 * (DATAGRAMS - 1)


@pytest.fixture(params=["ACCEPT", "DROP"])
def policy(request: pytest.FixtureRequest, site: Site) -> Iterator[str]:
    with forward_policy((site.a, site.b), request.param):
        yield request.param


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_the_source_that_arrives(site: Site, policy: str, row: Row) -> None:
    assert site.exchange(row) == {site.addresses[row.seen_as]}


# --- Multicast ------------------------------------------------------------------


MRT_INIT, MRT_ADD_VIF, MRT_ADD_MFC = 200, 202, 204
VIFF_USE_IFINDEX = 8


def multicast_router(host: Host, source: str) -> socket.socket:
    """Forward the group from the bridge to the uplink until the socket is closed (linux/mroute.h)."""

    def make() -> socket.socket:
        router = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_IGMP)
        router.setsockopt(socket.IPPROTO_IP, MRT_INIT, 1)
        for vif, device in enumerate((host.bridge, "eth0")):
            link = struct.pack("=HBBIi4x", vif, VIFF_USE_IFINDEX, 1, 0, socket.if_nametoindex(device))
            router.setsockopt(socket.IPPROTO_IP, MRT_ADD_VIF, link)
        route = struct.pack("=4s4sH32sxx16x", packed(source), packed(GROUP), 0, bytes((0, 1)))
        router.setsockopt(socket.IPPROTO_IP, MRT_ADD_MFC, route)
        return router

    return host.call(make)


def packed(address: str) -> bytes:
    return IPv4Address(address).packed


TO_GROUP = (
    Row("on_a", "outside", seen_as="on_a"),
    Row("a", "outside", bound_to="gateway_a", seen_as="gateway_a"),
)


@pytest.mark.parametrize("row", TO_GROUP, ids=str)
def test_multicast_keeps_its_source(site: Site, policy: str, row: Row) -> None:
    seen_as = site.addresses[row.seen_as]
    sink, sender = open_udp(site.places[row.target], GROUP, PORT), site.sender(row)
    with sink, sender, multicast_router(site.a, site.addresses["on_a"]):
        member = packed(GROUP) + packed(site.addresses[row.target])
        sink.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        device = site.a.address if row.source == "a" else seen_as
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, packed(device))
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 8)
        for _ in range(DATAGRAMS):
            sender.sendto(b"hello", (GROUP, PORT))
            assert sink.recvfrom(100)[1][0] == seen_as


# --- What is not ours -------------------------------------------------------------


FAR_ROW = Row("outside", "b", to="far", seen_as="outside")


def test_what_is_neither_from_nor_to_the_network_is_left_alone(site: Site) -> None:
    assert site.exchange(FAR_ROW) == {site.addresses["outside"]}


def test_a_drop_policy_still_holds_for_what_is_neither_from_nor_to_the_network(site: Site) -> None:
    with forward_policy((site.a,), "DROP"), open_udp(site.places["outside"]) as sender:
        before = dropped_by_policy(site.a)
        sender.sendto(b"hello", (FAR, PORT))
        wait_until(lambda: dropped_by_policy(site.a) > before, SECONDS, "the policy drops it")


def dropped_by_policy(host: Host) -> int:
    """Packets that the policy of the FORWARD chain had to decide on."""
    listing = host.run("iptables", "-v", "-x", "-n", "-L", "FORWARD").stdout
    return int(re.findall(r"policy \w+ (\d+) packets", listing)[0])


# --- When nobody masquerades ------------------------------------------------------


OUTSIDE_TO_PEER = Row("outside", "on_b", mark=0x4000, seen_as="outside")
"""Somebody else masquerades it, says the mark, but nobody does."""


def test_an_outside_source_arrives_but_by_udp(site: Site, policy: str) -> None:
    """The udp forwarder takes from a peer what is in the peer's subnet, and nothing else."""
    if "ovnetu" not in site.b.ip("link"):
        assert site.exchange(OUTSIDE_TO_PEER) == {site.addresses["outside"]}
        return
    before = spoofed(site.b)
    with marked(site.a, OUTSIDE_TO_PEER.mark), site.sender(OUTSIDE_TO_PEER) as sender:
        sender.sendto(b"hello", (site.addresses["on_b"], PORT))
        wait_until(lambda: spoofed(site.b) > before, SECONDS, "host b refuses it")


def spoofed(host: Host) -> int:
    counters = ForwarderProcess(host.state_dir, IPv4Address(host.address), 8285).stats()
    assert counters is not None, "the forwarder runs"
    return counters["drop_spoofed"]


UNMASQUERADED = (
    Row("on_a", "outside", seen_as="on_a"),
    Row("on_a", "b", seen_as="on_a"),
    Row("on_a", "on_b", seen_as="on_a"),
    Row("a", "on_b", seen_as="tunnel_a"),
    Row("a", "on_b", bound_to="a", seen_as="a"),
    Row("outside", "on_a", seen_as="outside"),
    Row("outside", "on_b", seen_as="outside"),
)


def test_without_masquerade_every_source_arrives_as_it_is(lab: Lab) -> None:
    site = build(lab, (), "--ip-masq=false")
    for policy in ("ACCEPT", "DROP"):
        with forward_policy((site.a, site.b), policy):
            for row in UNMASQUERADED:
                assert site.exchange(row) == {site.addresses[row.seen_as]}, (policy, row)
