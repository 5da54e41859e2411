"""What a host and its network are set to, and the kernel path goes by: eBPF does, too.

The hosts' own addresses lie in the overlay's network, as in flannel's documentation; leases are handed
out from the middle of it. Node a has another default TTL, node b a hoplimit on its route to a.
"""

from __future__ import annotations

import socket
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address

import pytest

from ctl.core.model import MacAddress
from ctl.core.reasons import reason
from ctl.kernel.bpf.maps import Maps, open_maps
from tests import packets
from tests.capture import Capture
from tests.host import Container, Host, started
from tests.lab import Lab, TimedOut, wait_until
from tests.namespace import Netns
from tests.netns.conftest import Pair
from tests.netns.parity.capture import Shot, Tap
from tests.netns.parity.capture import partial as unfinished
from tests.netns.test_source_check import device_mac
from tests.packets import ETH_LEN, IP_LEN, TCP, UDP, Ip
from tests.stream import TcpSink, tcp_send

SOON = 10
NETWORK = ("10.0.0.0/8", 24, "--subnet-min", "10.10.0.0", "--subnet-max", "10.99.0.0")
A, B, SERVICE = "10.240.0.11", "10.240.0.12", "10.250.0.1"
TTL, HOPLIMIT, LATER = 128, 77, 33
RESYNC_S = 2
SILENT = "table ip silent { chain in { type filter hook input priority -300; policy drop; }; }"
RTM_NEWLINK, REQUEST_ACK = 16, 5
SIZES = (41, 58, 63, 64)
"""IFLA_GSO_MAX_SIZE, IFLA_GRO_MAX_SIZE and those for IPv4 (linux/if_link.h); Debian 12's `ip` lacks them."""
USUAL, BIG = 65_536, 150_000
"""Largest packets that a device gets, in bytes: as they are, and with BIG TCP."""
SEGMENT = 1400
TUNNELLED = 65_535 - packets.TUNNEL_LEN
"""The largest IP packet whose length the outer header can say."""
BEYOND = (TUNNELLED + 1, USUAL - ETH_LEN - 1, USUAL - ETH_LEN, 65_535)
LONGEST = (65_536, 100_000)
"""Larger ones; those whose own length is beyond their header, too: it says 0."""


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Lab() as lab:
        a, b, outside = lab.host("a", A), lab.host("b", B), lab.outside()
        lab.init_network(*NETWORK)
        a.sysctl("net.ipv4.ip_default_ttl", str(TTL))
        b.ip("route", "add", A, "dev", "eth0", "hoplimit", str(HOPLIMIT))
        agents = started((a, b), "--approval-ttl", "60", "--resync-interval", str(RESYNC_S))
        for host in (a, b):
            wait_until(host.knows_a_peer, SOON, f"{host.name} knows its peer")
        yield Pair(lab, a, b, outside, a.container("one"), b.container("one"), agents)


def ping(source: Netns, target: str, count: int = 3) -> None:
    done = source.run("ping", "-c", str(count), "-i0.05", "-W2", target, check=False)
    assert f" {count} received" in done.stdout, done.stdout


def test_a_container_reaches_the_peers_own_address(pair: Pair) -> None:
    """The host answers through the tunnel: by its route to the container's subnet."""
    before = pair.a.counters().get(("from_wire", "foreign_source"), 0)
    ping(pair.on_a, B)
    server = pair.b.serve("python3", "tests/traffic.py", "tcp-sink", "9100", port=9100)
    assert tcp_send(pair.on_a, B, 100_000)["seen_as"] == pair.on_a.address
    server.stop()
    counters = pair.a.counters()
    assert counters["from_wire", "foreign_source"] > before + 3
    assert ("from_wire", "spoofed_source") not in counters


def test_a_container_reaches_what_the_network_has_beside_its_leases(pair: Pair) -> None:
    """A service's address, or one that keepalived moves about: in the network, but of no lease."""
    pair.b.ip("addr", "add", f"{SERVICE}/32", "dev", "lo")
    pair.a.ip("route", "add", SERVICE, "via", B)
    try:
        ping(pair.on_a, SERVICE)
        assert ("from_wire", "spoofed_source") not in pair.a.counters()
    finally:
        pair.a.ip("route", "del", SERVICE)
        pair.b.ip("addr", "del", f"{SERVICE}/32", "dev", "lo")


def outer_ttls(capture: Capture, source: str) -> set[int]:
    """Of the VXLAN that a host has sent."""
    return {
        ip.ttl
        for frame in capture.frames()
        if (ip := Ip.parse(frame[ETH_LEN:])).proto == UDP and str(ip.src) == source
    }


def ttl_of_peer(host: Host) -> int:
    (row,) = host.json("map", "dump", "peers")
    found: int = row["ttl"]
    return found


def test_the_outer_ttl_is_the_hosts_or_the_routes_on_either_path(pair: Pair) -> None:
    before = [host.bypassed() for host in (pair.a, pair.b)]
    capture = Capture(pair.lab.wire, "a", pair.lab.dir / "ttl.pcap")
    ping(pair.on_a, pair.on_b.address, 5)
    for host, then in zip((pair.a, pair.b), before, strict=True):
        assert all(now > old for now, old in zip(host.bypassed(), then, strict=True)), "not by both paths"
    wait_until(lambda: outer_ttls(capture, A) and outer_ttls(capture, B), SOON, "both have sent")
    assert (outer_ttls(capture, A), outer_ttls(capture, B)) == ({TTL}, {HOPLIMIT})
    capture.stop()


def test_a_ttl_that_changes_is_followed(pair: Pair) -> None:
    assert (ttl_of_peer(pair.a), ttl_of_peer(pair.b)) == (TTL, HOPLIMIT)
    pair.a.sysctl("net.ipv4.ip_default_ttl", str(LATER))
    pair.b.ip("route", "replace", A, "dev", "eth0", "hoplimit", str(LATER + 1))
    try:
        wait_until(lambda: (ttl_of_peer(pair.a), ttl_of_peer(pair.b)) == (LATER, LATER + 1), SOON, "followed")
    finally:
        pair.a.sysctl("net.ipv4.ip_default_ttl", str(TTL))
        pair.b.ip("route", "replace", A, "dev", "eth0", "hoplimit", str(HOPLIMIT))


def let_through(place: Netns, device: str, size: int) -> None:
    """Have a device take, and GRO make, packets of up to that many bytes."""

    def change() -> None:
        attributes = b"".join(struct.pack("=HHI", 8, kind, size) for kind in SIZES)
        body = struct.pack("=BxHiII", 0, 0, socket.if_nametoindex(device), 0, 0) + attributes
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as rtnetlink:
            rtnetlink.send(struct.pack("=IHHII", 16 + len(body), RTM_NEWLINK, REQUEST_ACK, 1, 0) + body)
            (error,) = struct.unpack_from("=i", rtnetlink.recv(4096), 16)
        assert error == 0, f"{device}: {error}"

    place.call(change)


def uplinks(pair: Pair, size: int) -> None:
    """The same for the way from host to host, in both directions."""
    for host in (pair.a, pair.b):
        let_through(host, "eth0", size)
        let_through(pair.lab.wire, host.name, size)


@dataclass
class Ends:
    """Both containers, silent and with room for large packets; one sends, the other sees."""

    pair: Pair
    at_one: Tap
    at_two: Tap
    maps: tuple[Maps[IPv4Address], Maps[IPv4Address]]
    """Of both nodes: to ask `ovctl` each time takes longer than the rest."""

    def counted(self) -> Counter[tuple[str, str]]:
        """Packets by (hook, reason), of both nodes together."""
        found = Counter[tuple[str, str]]()
        for maps in self.maps:
            for (hook, number), entry in maps.counters().items():
                found[hook.label, reason(number).label] += entry.packets
        return found

    def shot(self, proto: int, size: int) -> Shot:
        """A packet of `size` bytes, in segments if it is more than one."""
        one, two = self.pair.on_a, self.pair.on_b
        room = size - IP_LEN - (20 if proto == TCP else 8)
        payload = (b"%08d" * (room // 8 + 1) % tuple(range(room // 8 + 1)))[:room]
        l4 = packets.tcp(payload, 1000, 2000) if proto == TCP else packets.udp(payload, 1000, 2000)
        total = size if size <= 65_535 else 0
        packet = packets.ipv4(l4, IPv4Address(one.address), IPv4Address(two.address), proto, total=total)
        macs = MacAddress.parse(one.mac), device_mac(self.pair.a, self.pair.a.bridge)
        return unfinished(packets.ether(packet, *macs), gso=SEGMENT if room > SEGMENT else 0)

    def arrive(self, proto: int, size: int) -> bool:
        """Send such a packet; whether all its segments come to the other container, each once."""
        shot = self.shot(proto, size)
        self.at_two.frames()
        self.at_one.send(shot)
        head = ETH_LEN + IP_LEN + (20 if proto == TCP else 8)
        payload, found = shot.frame[head:], list[bytes]()
        wanted = sorted(payload[at : at + SEGMENT] for at in range(0, len(payload), SEGMENT))

        def came() -> bool:
            for _, frame in self.at_two.frames():
                if frame[12:14] == b"\x08\0" and Ip.parse(frame[ETH_LEN:]).proto == proto:
                    found.append(frame[head:])
            return len(found) >= len(wanted)

        with suppress(TimedOut):
            wait_until(came, 5, "it arrives")
        return sorted(found) == wanted

    def bypass(self, proto: int) -> bool:
        """Whether a small packet of the flow goes by eBPF: it is approved then, and stays so for a while."""
        before = self.counted()
        return self.arrive(proto, 100) and ("from_container", "encap") in self.counted() - before


@pytest.fixture
def ends(pair: Pair) -> Iterator[Ends]:
    containers: tuple[tuple[Host, Container], ...] = ((pair.a, pair.on_a), (pair.b, pair.on_b))
    for host, container in containers:
        container.nft(SILENT)
        # The host forgets whom nobody sends to, and so does the map.
        neighbour = (container.address, "lladdr", container.mac, "dev", host.bridge)
        host.ip("neigh", "replace", *neighbour, "nud", "permanent")
        let_through(container, "eth0", BIG)
        let_through(host, container.port, BIG)
    with (
        closing(Tap(pair.on_a)) as at_one,
        closing(Tap(pair.on_b)) as at_two,
        open_maps(pair.a.bpffs) as of_a,
        open_maps(pair.b.bpffs) as of_b,
    ):
        yield Ends(pair, at_one, at_two, (of_a, of_b))
    uplinks(pair, USUAL)
    for host, container in containers:
        let_through(container, "eth0", USUAL)
        let_through(host, container.port, USUAL)
        container.nft("delete table ip silent")
        host.ip(
            "neigh", "replace", container.address, "lladdr", container.mac, "dev", host.bridge, "nud", "stale"
        )


@pytest.mark.parametrize("uplink", [USUAL, BIG])
@pytest.mark.parametrize("proto", [TCP, UDP])
def test_segments_of_every_size_arrive_whole(ends: Ends, uplink: int, proto: int) -> None:
    """What the outer header cannot count is the kernel's. With UDP and large uplinks that loses what is
    not cut apart in front of the vxlan device and has no length behind it: that is left out.
    """
    uplinks(ends.pair, uplink)
    lost = range(TUNNELLED + 1, USUAL - ETH_LEN) if (proto, uplink) == (UDP, BIG) else ()
    for size in (TUNNELLED, *BEYOND, *(LONGEST if proto == TCP else ())):
        if size in lost:
            continue
        wait_until(partial(ends.bypass, proto), SOON, lambda: f"the flow is approved: {ends.counted()}")
        before = ends.counted()
        assert ends.arrive(proto, size), f"{size}: {ends.counted() - before}"
        grown = ends.counted() - before
        assert ("from_container", "encap" if size <= TUNNELLED else "outer_length") in grown, (
            f"{size}: {grown}"
        )
        assert ("to_overlay", "changed") not in grown, f"{size} is not signed: {grown}"
        assert "truncated" not in {why for _, why in grown}, f"{size} is not understood: {grown}"


def test_tcp_of_large_packets_passes_whole(pair: Pair) -> None:
    for host, container in ((pair.a, pair.on_a), (pair.b, pair.on_b)):
        let_through(container, "eth0", BIG)
        let_through(host, container.port, BIG)
    uplinks(pair, BIG)
    try:
        for source, sink in ((pair.on_a, pair.on_b), (pair.on_b, pair.on_a)):
            server = TcpSink(sink)
            tcp_send(source, sink.address, 50_000_000)
            (end,) = server.wait_for(1)
            server.stop()
            assert (end["bytes"], end["end"]) == (50_000_000, "fin")
        assert ("from_wire", "truncated") not in pair.b.counters()
    finally:
        uplinks(pair, USUAL)
        for host, container in ((pair.a, pair.on_a), (pair.b, pair.on_b)):
            let_through(container, "eth0", USUAL)
            let_through(host, container.port, USUAL)
