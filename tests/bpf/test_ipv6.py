"""What only the programs for IPv6 have to do: the outer checksum, extension headers, neighbour discovery."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv6Address
from typing import Any

import pytest

from ctl.core.abi import Ip
from ctl.core.model import MacAddress
from tests import packets
from tests.datapath import (
    ENDPOINT,
    INET6,
    LO,
    MAC,
    PEER_MAC,
    UPLINK,
    UPLINK_MAC,
    Action,
    Datapath,
    Result,
    underlay,
)
from tests.lab import Lab
from tests.namespace import Namespace
from tests.packets import (
    AH,
    DESTINATION,
    FRAGMENT,
    HOP_BY_HOP,
    ICMPV6,
    ROUTING,
    SCTP,
    SYN,
    TCP,
    UDP,
    extension,
    fragment,
)

CAST = INET6
UDP_AT = packets.ETH_LEN + packets.IPV6_LEN
"""Where the outer UDP header begins."""
QUESTION = packets.udp(b"question", 1000, 2000)
NS, NA = 135, 136
NOBODY = IPv6Address("::")
ALL_NODES = IPv6Address("ff02::1")
LINK_LOCAL = IPv6Address("fe80::5")


@pytest.fixture
def datapath(loaded_ipv6: Datapath) -> Datapath:
    """The programs for IPv6 on empty maps, furnished, with one flow approved in both directions."""
    loaded_ipv6.clear().furnish()
    loaded_ipv6.approve(CAST.flow_out())
    loaded_ipv6.approve(CAST.flow_in())
    return loaded_ipv6


@pytest.fixture(scope="module")
def house() -> Iterator[Namespace]:
    with Lab() as lab:
        yield underlay(lab)


def is_right(frame: bytes) -> bool:
    """Whether the checksum of the outer UDP header is there, and that of the whole packet."""
    ip = packets.Ip.parse(frame[packets.ETH_LEN :])
    datagram = frame[UDP_AT:]
    return datagram[6:8] != bytes(2) and packets.with_checksum(datagram, ip.src, ip.dst, UDP) == datagram


def patched(frame: bytes, offset: int, value: bytes) -> bytes:
    return frame[:offset] + value + frame[offset + len(value) :]


@pytest.mark.parametrize("size", [0, 1, 2, 7, 100, 1001, 1382])
@pytest.mark.parametrize("tos", [0, 0xB9, 0xFF])
def test_the_outer_checksum_is_that_of_the_whole_packet(datapath: Datapath, size: int, tos: int) -> None:
    body = packets.udp(bytes(range(256)) * 6, 1000, 2000)[: 8 + size]
    body = patched(body, 4, struct.pack("!H", len(body)))
    datapath.approve(CAST.flow_out(dscp=tos >> 2))
    result = datapath.run("from_container", CAST.sent(body, tos=tos, ident=0xABCDE))
    assert result.reason == "encap"
    assert is_right(result.packet)


def test_it_is_so_whatever_the_addresses_and_ports(datapath: Datapath) -> None:
    for number in range(1, 200):
        local = CAST.local + number * 0x1003000500070009 % (1 << 60)
        sport = number * 331 % 0x10000
        datapath.endpoint(local, ENDPOINT)
        datapath.approve(CAST.flow_out(saddr=local, sport=sport))
        result = datapath.run("from_container", CAST.sent(packets.udp(b"odd", sport, 2000), src=local))
        assert result.reason == "encap" and is_right(result.packet)


def test_a_checksum_that_the_nic_is_to_fill_in_comes_out_the_same(datapath: Datapath) -> None:
    """Then the pseudo-header alone is in the field, and the outer checksum is as if all were."""
    whole = CAST.sent(QUESTION)
    pseudo = CAST.local.packed + CAST.remote.packed + struct.pack("!II", len(QUESTION), UDP)
    open_ = patched(whole, UDP_AT + 6, struct.pack("!H", ~packets.checksum(pseudo) & 0xFFFF))
    one, other = (datapath.run("from_container", frame).tunnel for frame in (whole, open_))
    assert one.udp_check == other.udp_check != 0
    assert one.frame != other.frame


def test_what_comes_with_a_wrong_checksum_is_for_the_kernel_to_judge(datapath: Datapath) -> None:
    frame = CAST.wire(CAST.received())
    assert datapath.run("from_wire", frame).reason == "decap"
    for bit in range(16):
        check = int.from_bytes(frame[UDP_AT + 6 : UDP_AT + 8], "big") ^ 1 << bit
        result = datapath.run("from_wire", patched(frame, UDP_AT + 6, struct.pack("!H", check)))
        assert (result.action, result.reason) == (Action.UNSPEC, "outer_checksum")
        assert datapath.xdp(patched(frame, UDP_AT + 6, struct.pack("!H", check))).reason == "outer_checksum"


def test_damage_in_a_header_shows_in_the_checksum(datapath: Datapath) -> None:
    """Or it is refused for what it says: nothing that is damaged there is delivered."""
    frame = CAST.wire(CAST.received())
    for at in range(UDP_AT, UDP_AT + 16 + 14 + 40):
        damaged = patched(frame, at, bytes([frame[at] ^ 0x10]))
        assert datapath.run("from_wire", damaged).reason != "decap", at


def test_none_is_refused_as_the_device_refuses_it(datapath: Datapath) -> None:
    frame = patched(CAST.wire(CAST.received()), UDP_AT + 6, bytes(2))
    assert datapath.run("from_wire", frame).reason == "outer_checksum"


def test_a_stranger_is_refused_whatever_the_checksum(datapath: Datapath) -> None:
    frame = CAST.wire(CAST.received(), host=CAST.third.host)
    for check in (b"\x12\x34", bytes(2)):
        assert datapath.run("from_wire", patched(frame, UDP_AT + 6, check)).reason == "spoofed_source"


def test_a_datagram_without_a_checksum_of_its_own_is_the_kernels(datapath: Datapath) -> None:
    assert datapath.run("from_container", CAST.sent(QUESTION, summed=False)).reason == "outer_checksum"
    frame = CAST.wire(CAST.received(packets.udp(b"", 2000, 1000), summed=False))
    assert datapath.run("from_wire", frame).reason == "outer_checksum"


def test_what_udp_does_not_count_as_its_own_is_not_in_its_checksum(datapath: Datapath) -> None:
    """Options behind the datagram (RFC 9868), so all is the kernel's."""
    frame = CAST.sent(packets.udp(b"question" + b"options!", 1000, 2000, length=8 + 8))
    assert datapath.run("from_container", frame).reason == "outer_checksum"
    frame = CAST.wire(CAST.received(packets.udp(b"answer" + b"options!", 2000, 1000, length=8 + 6)))
    assert datapath.run("from_wire", frame).reason == "outer_checksum"


@pytest.mark.parametrize(("size", "reason"), [(300, "no_room"), (299, "super_packet"), (201, "super_packet")])
def test_only_segments_of_one_length_have_one_checksum(datapath: Datapath, size: int, reason: str) -> None:
    # A test run cannot say which offload it is, so the kernel refuses room for what could go.
    datapath.approve(CAST.flow_out(TCP))
    frame = CAST.sent(packets.tcp(bytes(size), 1000, 2000), TCP)
    assert datapath.run("from_container", frame, gso_size=100, gso_segs=3).reason == reason


@pytest.mark.parametrize("proto", [HOP_BY_HOP, ROUTING, DESTINATION, AH])
def test_extension_headers_are_the_kernels(datapath: Datapath, proto: int) -> None:
    assert datapath.run("from_container", CAST.sent(extension(UDP) + QUESTION, proto)).reason == "ip_options"
    inner = CAST.received(extension(UDP) + packets.udp(b"", 2000, 1000), proto)
    assert datapath.run("from_wire", CAST.wire(inner)).reason == "outer_checksum"


def test_fragments_are_the_kernels(datapath: Datapath) -> None:
    for head in (fragment(UDP, more=True), fragment(UDP, 8), fragment(UDP)):
        assert datapath.run("from_container", CAST.sent(head + QUESTION, FRAGMENT)).reason == "fragment"


def chained(*heads: bytes, first: int, port: int = CAST.node.port) -> bytes:
    """VXLAN for us behind extension headers, of which the first is of that kind."""
    datagram = packets.udp(packets.vxlan(CAST.received(), CAST.node.vni), 40000, port)
    payload = b"".join(heads) + datagram
    packet = packets.ip(payload, CAST.peer.host, CAST.node.host, first)
    return packets.ether(packet, MAC, UPLINK_MAC, packets.IPV6)


CHAINS: dict[str, tuple[str, bytes]] = {
    "hop-by-hop": ("outer_options", chained(extension(UDP), first=HOP_BY_HOP)),
    "routing": ("outer_options", chained(extension(UDP), first=ROUTING)),
    "destination": ("outer_options", chained(extension(UDP, 2), first=DESTINATION)),
    "long": ("outer_options", chained(extension(UDP, 31), first=DESTINATION)),
    "authentication": ("outer_options", chained(bytes((UDP, 4)) + bytes(22), first=AH)),
    "several": (
        "outer_options",
        chained(extension(DESTINATION), extension(AH), bytes((UDP, 1)) + bytes(10), first=HOP_BY_HOP),
    ),
    "first fragment": ("outer_fragment", chained(fragment(UDP, more=True), first=FRAGMENT)),
    "atomic fragment": ("outer_fragment", chained(fragment(UDP), first=FRAGMENT)),
    "fragment behind options": (
        "outer_fragment", chained(extension(FRAGMENT), fragment(UDP, more=True), first=DESTINATION)
    ),
    "more than are looked behind": (
        "unreadable", chained(*[extension(DESTINATION)] * 8, extension(UDP), first=DESTINATION)
    ),
    "later fragment": ("not_overlay", chained(fragment(UDP, 8), first=FRAGMENT)),
    "another port": ("not_overlay", chained(extension(UDP), first=DESTINATION, port=53)),
    "no UDP behind": ("not_overlay", chained(extension(TCP), first=DESTINATION)),
    "nothing behind": ("not_overlay", chained(extension(59), first=DESTINATION)),
}  # fmt: skip


@pytest.mark.parametrize(("reason", "frame"), CHAINS.values(), ids=CHAINS)
def test_vxlan_behind_extension_headers_is_refused(datapath: Datapath, reason: str, frame: bytes) -> None:
    result = datapath.run("from_wire", frame)
    passes = reason == "not_overlay"
    assert (result.reason, result.action) == (reason, Action.UNSPEC if passes else Action.SHOT)
    assert datapath.xdp(frame).reason == "not_overlay", "tc decides"


def test_it_is_not_hidden_by_tags_that_the_kernel_looks_behind(datapath: Datapath) -> None:
    frame = chained(extension(UDP), first=DESTINATION)
    tagged = frame[:12] + struct.pack("!HH", packets.VLAN, 0) + frame[12:]
    assert datapath.run("from_wire", tagged, vlan=3 << 13).reason == "outer_options"


@pytest.mark.parametrize("target", [ALL_NODES, LINK_LOCAL, IPv6Address("fe80::1"), IPv6Address("ff05::2")])
def test_link_local_and_multicast_stay(datapath: Datapath, target: IPv6Address) -> None:
    assert datapath.run("from_container", CAST.sent(dst=target)).reason == "not_overlay"
    assert datapath.run("to_overlay", CAST.sent(dst=target, ttl=63)).gear in ("", "not_overlay")


def test_what_comes_from_a_link_local_address_is_no_containers(datapath: Datapath) -> None:
    assert datapath.run("from_container", CAST.sent(src=LINK_LOCAL)).reason == "no_endpoint"
    assert datapath.run("from_wire", CAST.wire(CAST.received(src=LINK_LOCAL))).reason == "foreign_source"


def message(kind: int, target: Ip, src: Ip, *, ttl: int = 255, flags: int = 0) -> bytes:
    """Neighbour discovery, as a frame to all."""
    body = struct.pack("!BBHI", kind, 0, 0, flags) + target.packed
    packet = packets.ip(body, src, ALL_NODES, ICMPV6, ttl=ttl)
    return packets.ether(packet, MAC, MacAddress.parse("33:33:00:00:00:01"), packets.IPV6)


@pytest.mark.parametrize(
    ("frame", "claimed"),
    [
        (message(NA, CAST.other, LINK_LOCAL), True),
        (message(NS, CAST.remote, CAST.other), True),
        (message(NS, CAST.other, NOBODY), False),
        (message(NS, CAST.other, CAST.local), False),
        (message(NA, CAST.other, LINK_LOCAL, ttl=254), False),
        (message(NA, CAST.local, LINK_LOCAL), False),
        (message(NA, CAST.other, LINK_LOCAL)[:70], False),
    ],
    ids=["advertised", "asked from", "probed", "asked for", "through a router", "another", "cut"],
)
def test_who_speaks_for_an_address_has_it(datapath: Datapath, frame: bytes, claimed: bool) -> None:
    """OTHER is behind another port than the frame comes from."""
    assert datapath.run("from_container", frame).reason == "not_overlay"
    assert (datapath.maps.lookup_endpoint(CAST.other) is None) == claimed
    datapath.furnish()
    datapath.run("to_container", frame, ingress=LO)
    assert (datapath.maps.lookup_endpoint(CAST.other) is None) == claimed


def test_other_messages_are_the_kernels(datapath: Datapath) -> None:
    for kind in (1, 2, 3, 4, 130, 133, 134, NS, NA, 137):
        body = packets.icmp(bytes(28), kind, 0)
        assert datapath.run("from_container", CAST.sent(body, ICMPV6)).reason == "protocol"


class Geared:
    """A node with its tunnel gear on, and with a route and a neighbour to its peer."""

    def __init__(self, datapath: Datapath, place: Namespace) -> None:
        self.datapath, self._place = datapath.clear().furnish(tunnel_ifindex=LO), place
        self.peer()

    def peer(self, **changes: Any) -> None:
        self.datapath.peer(CAST.peer_subnet, replace(CAST.peer, **{"ifindex": UPLINK, **changes}))

    def run(self, program: str, packet: bytes, **beside: Any) -> Result:
        return self._place.call(lambda: self.datapath.run(program, packet, **beside))


@pytest.fixture
def geared(loaded_ipv6: Datapath, house: Namespace) -> Geared:
    return Geared(loaded_ipv6, house)


def leaving(l4: bytes = QUESTION, proto: int = UDP, **ip: Any) -> bytes:
    """A frame as it comes to the vxlan device, routed and through netfilter."""
    packet = packets.ip(l4, CAST.local, CAST.remote, proto, **{"ttl": 63, **ip})
    return packets.ether(packet, CAST.node.vtep_mac, PEER_MAC, packets.IPV6)


@pytest.mark.parametrize(
    ("l4", "proto"),
    [
        (QUESTION, UDP),
        (packets.tcp(b"", 1000, 2000, flags=SYN), TCP),
        (packets.icmp(bytes(28), 1, 0), ICMPV6),
        (packets.icmp(b"ping", 128, 7), ICMPV6),
    ],
    ids=["UDP", "SYN", "ICMP error", "ping"],
)
def test_the_tunnel_gear_carries_what_has_a_checksum(geared: Geared, l4: bytes, proto: int) -> None:
    frame = leaving(l4, proto)
    result = geared.run("to_overlay", frame)
    assert (result.action, result.gear) == (Action.REDIRECT, "tunnel_encap")
    assert result.tunnel.frame == frame
    assert (result.tunnel.ip.src, result.tunnel.ip.dst) == (CAST.node.host, CAST.peer.host)
    assert is_right(result.packet)


@pytest.mark.parametrize(
    ("l4", "proto", "fields"),
    [
        (bytes(12), SCTP, {}),
        (QUESTION, UDP, {"summed": False}),
        (packets.udp(b"question" + b"options!", 1000, 2000, length=8 + 8), UDP, {}),
        (fragment(UDP, more=True) + QUESTION, FRAGMENT, {}),
        (extension(UDP) + QUESTION, DESTINATION, {}),
        (b"", 59, {}),
        (QUESTION + b"padding", UDP, {"total": 40 + len(QUESTION)}),
    ],
    ids=["SCTP", "UDP without", "UDP options", "fragment", "options", "no next header", "padded"],
)
def test_and_leaves_what_has_none_to_the_device(
    geared: Geared, l4: bytes, proto: int, fields: dict[str, Any]
) -> None:
    result = geared.run("to_overlay", leaving(l4, proto, **fields))
    assert (result.action, result.gear) == (Action.UNSPEC, "outer_checksum")
    frame = CAST.wire(CAST.received(l4, proto, **fields))
    result = geared.run("from_wire", frame)
    assert (result.action, result.gear, result.packet) == (Action.UNSPEC, "", frame)


def test_the_tunnel_gear_asks_for_the_next_hop(geared: Geared) -> None:
    geared.peer(next_hop=IPv6Address("fd50::254"))
    assert geared.run("to_overlay", leaving()).gear == "peer_kernel_path"
    geared.peer(host=IPv6Address("fd50::7"), next_hop=IPv6Address("fd50::7"))
    assert geared.run("to_overlay", leaving()).gear == "no_neighbour"


def test_the_tunnel_gear_takes_the_header_off_again(geared: Geared) -> None:
    frame = CAST.received(tos=2)
    result = geared.run("from_wire", CAST.wire(frame, tos=3))
    assert (result.reason, result.action, result.gear) == ("flow_unknown", Action.REDIRECT, "tunnel_decap")
    ip = packets.Ip.parse(result.packet[14:])
    assert (ip.tos, ip.ttl) == (3, 64), "ECN combined, and no hop: routing is the kernel's"
    assert result.packet[14 + packets.IPV6_LEN :] == frame[14 + packets.IPV6_LEN :]


def test_the_tunnel_gear_is_for_this_nodes_subnet(geared: Geared) -> None:
    for target in (CAST.nobody, CAST.foreign, ALL_NODES, LINK_LOCAL):
        assert geared.run("from_wire", CAST.wire(CAST.received(dst=target))).gear == "not_local"
