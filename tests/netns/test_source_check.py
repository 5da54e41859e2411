"""Forged VXLAN, from the underlay and from a container: none of it arrives, all of it is counted.

    outside --+                              the attacker's host, no peer
    b --------+-- underlay -- a -- ovnet0 -- one: the victim
                                   ovnet0 -- evil: an attacker in a container

What an attacker on the underlay cannot be kept from is to send as the peer itself.
"""

from __future__ import annotations

import json
import re
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import IPv4Address

import pytest

from ctl.core.model import MacAddress
from tests import packets
from tests.host import Container
from tests.lab import wait_until
from tests.namespace import Netns
from tests.netns.conftest import Pair

VICTIM_PORT = 5555
VXLAN_PORT = 8472
TAG = struct.Struct("!HH")
"""TCI, and the type of what follows."""
EVIL, GOOD = b"evil", b"good"


@dataclass(frozen=True)
class Forgery:
    """A frame with VXLAN in it; the defaults are those of a true one from b to the victim."""

    macs: tuple[MacAddress, MacAddress]
    """Outer source and destination."""
    inner_macs: tuple[MacAddress, MacAddress]
    host: IPv4Address
    to: IPv4Address
    source: IPv4Address
    target: IPv4Address
    vni: int
    tags: tuple[int, ...] = ()
    """TCIs of VLAN tags outside."""
    inner_tags: tuple[int, ...] = ()
    options: bytes = b""
    fragment: int = 0
    padding: bytes = b""
    udp_check: int = 0
    payload: bytes = EVIL

    def frame(self) -> bytes:
        datagram = packets.udp(self.payload, 1, VICTIM_PORT)
        packet = packets.ipv4(datagram, self.source, self.target, packets.UDP, ttl=60)
        inner = packets.ether(*tagged(packet, self.inner_tags, self.inner_macs))
        tunnel = packets.udp(packets.vxlan(inner, self.vni), 40000, VXLAN_PORT)
        tunnel = tunnel[:6] + struct.pack("!H", self.udp_check) + tunnel[8:]
        outer = packets.ipv4(
            tunnel, self.host, self.to, packets.UDP, options=self.options, fragment=self.fragment
        )
        return packets.ether(*tagged(outer + self.padding, self.tags, self.macs))


def tagged(
    packet: bytes, tags: tuple[int, ...], macs: tuple[MacAddress, MacAddress]
) -> tuple[bytes, MacAddress, MacAddress, int]:
    """Arguments of `packets.ether` for a packet behind VLAN tags."""
    kind = packets.IPV4
    for tci in reversed(tags):
        packet, kind = TAG.pack(tci, kind) + packet, packets.VLAN
    return packet, *macs, kind


def send(place: Netns, frame: bytes) -> None:
    """Put a frame on `eth0` of a namespace."""

    def put() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("eth0", 0))
            raw.send(frame)

    place.call(put)


def device_mac(place: Netns, device: str) -> MacAddress:
    (link,) = json.loads(place.run("ip", "-j", "link", "show", "dev", device).stdout)
    return MacAddress.parse(link["address"])


@dataclass
class Attack:
    """The victim's socket, and what an attacker knows."""

    pair: Pair
    sink: socket.socket
    true: Forgery
    """As b itself would send it."""
    evil: Container
    got: list[bytes] = field(default_factory=list)

    def received(self) -> list[bytes]:
        """Everything that the victim has got so far."""
        with suppress(BlockingIOError):
            while True:
                self.got.append(self.sink.recv(1 << 16))
        return self.got

    def reset(self) -> None:
        """Forget what the victim has got."""
        self.received()
        self.got.clear()

    def counted(self, reason: str) -> int:
        return self.pair.a.counters().get(("from_wire", reason), 0)

    def refused_by_rules(self) -> int:
        """Packets that chain `vtep` has dropped."""
        listing = self.pair.a.run("nft", "list", "chain", "ip", "ovnet", "vtep", check=False).stdout
        return sum(map(int, re.findall(r"counter packets (\d+)", listing)))

    def fate(self, sender: Netns, forged: Forgery, count: Callable[[], int]) -> str:
        """`arrived`, or `counted` by `count`, for each of several copies of a frame."""
        self.reset()
        before, copies = count(), 3
        for _ in range(copies):
            send(sender, forged.frame())
        wait_until(
            lambda: self.received() or count() >= before + copies,
            5,
            lambda: f"it arrives or is counted (+{count() - before}); counters {self.pair.a.counters()}",
        )
        self.send_true()
        return "arrived" if EVIL in self.received() else "counted"

    def send_true(self) -> None:
        """What comes after: when it is there, nothing sent earlier is still on its way."""
        send(self.pair.outside, replace(self.true, payload=GOOD).frame())
        wait_until(lambda: GOOD in self.received(), 5, "a true packet arrives")


def listener() -> socket.socket:
    sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sink.bind(("", VICTIM_PORT))
    sink.setblocking(False)
    return sink


@pytest.fixture(scope="module")
def evil(nodes: Pair) -> Container:
    return nodes.a.container("evil")


@pytest.fixture
def attack(pair: Pair, evil: Container) -> Iterator[Attack]:
    a, b = pair.a, pair.b
    pair.on_a.run("ping", "-c1", "-W2", pair.on_b.address)
    (peer,) = a.json("map", "dump", "peers")
    (us,) = b.json("map", "dump", "peers")
    true = Forgery(
        macs=(device_mac(pair.outside, "eth0"), device_mac(a, "eth0")),
        inner_macs=(MacAddress.parse(peer["vtep_mac"]), MacAddress.parse(us["vtep_mac"])),
        host=IPv4Address(b.address),
        to=IPv4Address(a.address),
        source=IPv4Address(pair.on_b.address),
        target=IPv4Address(pair.on_a.address),
        vni=peer["vni"],
    )
    with pair.on_a.call(listener) as sink:
        yield Attack(pair, sink, true, evil)


def test_a_true_packet_arrives(attack: Attack) -> None:
    """Else the rest of this file would show nothing."""
    for _ in range(3):  # by the kernel path and, its flow approved, by eBPF
        attack.reset()
        attack.send_true()
    before = attack.counted("decap")
    attack.send_true()
    assert attack.counted("decap") > before


def test_a_priority_tag_does_no_harm_to_a_true_packet(attack: Attack) -> None:
    """Tag 0 is no VLAN: the kernel takes it off, and so it may arrive, by the kernel path."""
    before = attack.counted("vlan")
    send(attack.pair.outside, replace(attack.true, tags=(3 << 13,), payload=b"tag 0").frame())
    wait_until(lambda: b"tag 0" in attack.received(), 5, "the packet behind tag 0 arrives")
    assert attack.counted("vlan") > before


PRIORITY = 3 << 13
"""TCI of a tag that names no VLAN, only a priority."""

DISGUISES = {
    "plain": ({}, "unknown_vtep"),
    "priority tag": ({"tags": (PRIORITY,)}, "unknown_vtep"),
    "tag 0": ({"tags": (0,)}, "unknown_vtep"),
    "two tags": ({"tags": (0, 0)}, "tagged"),
    "a tag inside": ({"inner_tags": (0,)}, "unknown_vtep"),
    "IPv4 options": ({"options": bytes(4)}, "outer_options"),
    "first fragment": ({"fragment": packets.MF}, "outer_fragment"),
    "padding": ({"padding": bytes(6)}, "unknown_vtep"),
    "UDP checksum": ({"udp_check": 0x1234}, "unknown_vtep"),
}


@pytest.mark.parametrize(("disguise", "reason"), DISGUISES.values(), ids=DISGUISES.keys())
def test_a_stranger_cannot_speak_for_a_peers_container(
    attack: Attack, disguise: dict[str, object], reason: str
) -> None:
    forged = replace(attack.true, host=IPv4Address(attack.pair.outside.address), **disguise)  # type: ignore[arg-type]
    assert attack.fate(attack.pair.outside, forged, partial(attack.counted, reason)) == "counted"


PEERS_LIES = {
    "plain": ({}, "spoofed_source"),
    "priority tag": ({"tags": (PRIORITY,)}, "spoofed_source"),
    "two tags": ({"tags": (0, 0)}, "tagged"),
    "a tag inside": ({"inner_tags": (0,)}, "tagged"),
    "a VLAN inside": ({"inner_tags": (5,)}, "tagged"),
    "two tags inside": ({"inner_tags": (0, 0)}, "tagged"),
    "padding": ({"padding": bytes(6)}, "spoofed_source"),
    "UDP checksum": ({"udp_check": 0x1234}, "spoofed_source"),
}


@pytest.mark.parametrize(("disguise", "reason"), PEERS_LIES.values(), ids=PEERS_LIES.keys())
@pytest.mark.parametrize("whose", ["ours", "nobody's"])
def test_a_peer_cannot_speak_for_others(
    attack: Attack, whose: str, disguise: dict[str, object], reason: str
) -> None:
    a = attack.pair.a
    source = a.gateway.network[77] if whose == "ours" else IPv4Address("172.17.250.9")
    forged = replace(attack.true, source=source, **disguise)  # type: ignore[arg-type]
    assert attack.fate(attack.pair.outside, forged, partial(attack.counted, reason)) == "counted"


def test_a_true_packet_with_a_tag_inside_is_refused(attack: Attack) -> None:
    """The check would look at the tag, the kernel behind it: so nobody may send one."""
    forged = replace(attack.true, inner_tags=(0,))
    assert attack.fate(attack.pair.outside, forged, partial(attack.counted, "tagged")) == "counted"


@pytest.mark.parametrize("to", ["uplink", "gateway", "vtep"])
@pytest.mark.parametrize("claims", ["itself", "the peer"])
def test_a_container_cannot_speak_vxlan_to_its_own_host(attack: Attack, to: str, claims: str) -> None:
    a, evil = attack.pair.a, attack.evil
    target = {"uplink": IPv4Address(a.address), "gateway": a.gateway.ip, "vtep": a.gateway.network[0]}[to]
    forged = replace(
        attack.true,
        macs=(MacAddress.parse(evil.mac), device_mac(a, a.bridge)),
        host=IPv4Address(evil.address) if claims == "itself" else attack.true.host,
        to=target,
    )
    assert attack.fate(evil, forged, attack.refused_by_rules) == "counted"


@pytest.mark.parametrize("to", ["second address", "gateway", "vtep"])
@pytest.mark.parametrize("by", ["stranger", "peer"])
def test_only_the_vteps_own_address_takes_vxlan(attack: Attack, to: str, by: str) -> None:
    """The programs look at nothing that is not for it, so the device must not see it either."""
    a, second = attack.pair.a, "192.168.77.200"
    target = {
        "second address": IPv4Address(second),
        "gateway": a.gateway.ip,
        "vtep": a.gateway.network[0],
    }[to]
    host = attack.true.host if by == "peer" else IPv4Address(attack.pair.outside.address)
    a.ip("addr", "add", f"{second}/24", "dev", "eth0")
    try:
        forged = replace(attack.true, host=host, to=target)
        assert attack.fate(attack.pair.outside, forged, attack.refused_by_rules) == "counted"
    finally:
        a.ip("addr", "del", f"{second}/24", "dev", "eth0")


def test_true_traffic_goes_on_after_all_of_this(attack: Attack) -> None:
    on_a, on_b = attack.pair.on_a, attack.pair.on_b
    assert " 0% packet loss" in on_a.run("ping", "-c5", "-i0.05", "-W2", on_b.address).stdout
