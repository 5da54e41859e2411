"""What container one sends by IPv6 (or what comes over the wire), and who carries it: as rows.py, but only
rows in which the family can matter. Tests of names and numbers that are the same in both are not repeated.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv6Address
from itertools import product
from typing import Any, Final

from ctl.core.abi import Ip
from ctl.core.model import MacAddress
from tests import packets
from tests.netns.parity.capture import Shot
from tests.netns.parity.rows import (
    Ends,
    Outer,
    Row,
    Send,
    after_good,
    cut,
    edited,
    left_to_nic,
    of_protocol,
    padded,
    pattern,
    tcp,
    together,
    udp,
)
from tests.packets import (
    ACK,
    AH,
    DESTINATION,
    FIN,
    FRAGMENT,
    HOP_BY_HOP,
    ICMPV6,
    IPV6_LEN,
    PSH,
    ROUTING,
    SYN,
    UDP,
    extension,
    fragment,
)

MTU: Final = 1430
UDP_MAX: Final = MTU - IPV6_LEN - 8
TCP_MAX: Final = MTU - IPV6_LEN - 20
L4_AT: Final = packets.ETH_LEN + IPV6_LEN
PAYLOAD_LENGTH, UDP_CHECK = packets.ETH_LEN + 4, L4_AT + 6
"""Where these stand in a frame."""
ALL_NODES: Final = MacAddress.parse("33:33:00:00:00:01")
IPV6: Final = IPv6Address


PLAIN: Final = udp()


def icmp(kind: int, body: bytes = b"", *, code: int = 0, **ip: Any) -> Send:
    """Of any type; with the port of the row where an echo has its identifier."""
    return lambda ends: [Shot(ends.frame(packets.icmp(body, kind, ends.port, code=code), ICMPV6, **ip))]


def behind(first: int, *heads: bytes, send: Send = PLAIN) -> Send:
    """The same packets with extension headers in front, of which the first one is of that kind."""

    def with_heads(frame: bytes) -> bytes:
        ip = packets.Ip.parse(frame[packets.ETH_LEN :])
        payload = b"".join(heads) + frame[L4_AT:]
        head = ip.head[:4] + struct.pack("!HB", len(payload), first) + ip.head[7:]
        return frame[: packets.ETH_LEN] + head + payload

    return lambda ends: [Shot(with_heads(shot.frame)) for shot in send(ends)]


def options(following: int, *body: int) -> bytes:
    """A hop-by-hop or destination header of eight bytes with these options, and padding behind."""
    rest = 6 - len(body)
    padding = b"" if not rest else b"\0" if rest == 1 else bytes((1, rest - 2)) + bytes(rest - 2)
    return bytes((following, 0, *body)) + padding


def fragments(size: int, order: tuple[int, ...], *, extra: int = 0) -> Send:
    """A datagram in three fragments, which overlap by `extra`; `order`: which, and when."""

    def send(ends: Ends) -> list[Shot]:
        (whole,) = udp(size)(ends)
        body = whole.frame[L4_AT:]
        ends_at = (512, 1024, len(body))
        pieces = [
            behind(FRAGMENT, fragment(UDP, start // 8, more=end < len(body)),
                   send=_payload(whole.frame, body[start : end + (extra if end < len(body) else 0)]))
            for start, end in zip((0, *ends_at[:2]), ends_at, strict=True)
        ]  # fmt: skip
        return [shot for number in order for shot in pieces[number](ends)]

    return send


def _payload(frame: bytes, payload: bytes) -> Send:
    return lambda ends: [Shot(frame[:L4_AT] + payload)]


def labelled(*labels: int) -> Send:
    return together(*(udp(ident=label) for label in labels))


SIZES: Final = (
    Row("UDP, sizes of all remainders, and the MTU", together(*map(udp, (0, 1, 2, 3, 4, 5, 1001, UDP_MAX)))),
    Row("TCP, sizes of all remainders, and the MTU", together(*map(tcp, (0, 1, 2, 3, 1001, TCP_MAX)))),
    Row("ICMPv6 echo replies, and the MTU",
        together(*(icmp(129, pattern(size)) for size in (0, 1, UDP_MAX)))),
    Row("UDP, one byte above the MTU: packet too big", udp(UDP_MAX + 1), "oversize", "", mtu=1500),
    Row("TCP, one byte above the MTU: packet too big", tcp(TCP_MAX + 1), "oversize", "", mtu=1500),
)  # fmt: skip

OFFLOADS: Final = (
    Row("UDP with an unfinished checksum", left_to_nic(udp(900))),
    Row("TCP with an unfinished checksum", left_to_nic(tcp(901))),
    Row("TCP, 40 segments of one length in one packet", left_to_nic(tcp(40 * TCP_MAX), TCP_MAX)),
    Row("TCP segments, the last one short", left_to_nic(tcp(3 * TCP_MAX + 1), TCP_MAX), "super_packet"),
    Row("TCP segments, PSH", left_to_nic(tcp(6 * TCP_MAX, flags=ACK | PSH), TCP_MAX)),
    Row("TCP segments, one byte too large for the MTU", left_to_nic(tcp(6 * TCP_MAX + 6), TCP_MAX + 1),
        "oversize", ""),
    Row("UDP, 20 segments in one packet", left_to_nic(udp(20 * UDP_MAX), UDP_MAX), into="udp_gso|decap"),
)  # fmt: skip

CHECKSUMS: Final = (
    Row("UDP without a checksum", edited(udp(100), UDP_CHECK, bytes(2)), "outer_checksum", "outer_checksum"),
    Row("UDP that says it is longer than its packet", udp(100, total=IPV6_LEN + 8 + 90), "truncated",
        "outer_checksum"),
    Row("UDP with options behind the datagram",
        lambda ends: [Shot(ends.frame(packets.udp(pattern(100), ends.port, 20000, length=8 + 90), UDP))],
        "outer_checksum", "outer_checksum"),
)  # fmt: skip

HEADERS: Final = (
    *(Row(f"hop limit {ttl}", udp(ttl=ttl)) for ttl in (3, 64, 255)),
    Row("hop limit 2: it ends at the second node", udp(ttl=2), into="ttl"),
    Row("hop limit 1: it ends at the first node", udp(ttl=1), "ttl", ""),
    Row("hop limit 0", udp(ttl=0), "ttl", ""),
    Row("traffic class, all 256 values", together(*(udp(tos=tos) for tos in range(256)))),
    Row("flow labels 0, 1 and the largest", labelled(0, 1, 0xFFFFF)),
    Row("hop-by-hop options: padding", behind(HOP_BY_HOP, options(UDP)), "ip_options", "outer_checksum"),
    Row("hop-by-hop options: router alert", behind(HOP_BY_HOP, options(UDP, 5, 2, 0, 0)), "ip_options",
        "outer_checksum"),
    Row("hop-by-hop options: one that has to be known", behind(HOP_BY_HOP, options(UDP, 0xFE, 0)),
        "ip_options", ""),
    Row("hop-by-hop options: a jumbogram that is none",
        behind(HOP_BY_HOP, options(UDP, 0xC2, 4, 0, 0, 0, 48)), "ip_options", ""),
    Row("destination options", behind(DESTINATION, options(UDP)), "ip_options", "outer_checksum"),
    Row("a routing header of type 0", behind(ROUTING, bytes((UDP, 0, 0, 0, 0, 0, 0, 0))), "ip_options",
        "outer_checksum"),
    Row("an authentication header", behind(AH, bytes((UDP, 1)) + bytes(10)), "ip_options", "outer_checksum"),
    Row("three extension headers",
        behind(HOP_BY_HOP, options(DESTINATION), options(DESTINATION), options(UDP)),
        "ip_options", "outer_checksum"),
    Row("hop-by-hop options in the wrong place",
        behind(DESTINATION, options(HOP_BY_HOP), options(UDP)), "ip_options", "outer_checksum"),
    Row("an extension header longer than the packet", behind(DESTINATION, extension(UDP, 0)[:1] + b"\xff"
        + bytes(6)), "ip_options", "outer_checksum"),
    Row("IP version 5", udp(version=5), "not_ipv6", ""),
    Row("a payload length beyond the frame", after_good(edited(udp(100), PAYLOAD_LENGTH, b"\x05\x00")),
        "encap truncated"),
    Row("a payload length of 0", after_good(edited(udp(100), PAYLOAD_LENGTH, bytes(2))), "encap truncated",
        "decap outer_checksum"),
    Row("padding behind the packet", after_good(padded(udp(10), 8)), "encap truncated"),
    Row("a frame cut in the IPv6 header", cut(udp(), 53), "truncated", ""),
)  # fmt: skip

FRAGMENTS: Final = (
    *(Row(f"fragments in order {order}", fragments(1300, order), "fragment")
      for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2))),
    Row("a first fragment alone", fragments(1300, (0,)), "fragment", ""),
    Row("a last fragment alone", fragments(1300, (2,)), "fragment", ""),
    Row("fragments that overlap", fragments(1300, (0, 1, 2), extra=8), "fragment", ""),
    Row("a fragment that is the whole packet", behind(FRAGMENT, fragment(UDP)), "fragment", ""),
)  # fmt: skip

ADDRESSES: Final = (
    Row("to the VTEP's own address", icmp(129, dst=IPV6("fd00:10:0:1e::")), into="no_endpoint"),
    Row("to the remote gateway", icmp(129, dst=IPV6("fd00:10:0:1e::1")), into="no_endpoint"),
    Row("to a subnet that nobody holds", udp(dst=IPV6("fd00:10:0:77::7")), "not_overlay", ""),
    Row("to the own gateway", icmp(129, dst=IPV6("fd00:10:0:14::1")), "not_overlay", ""),
    Row("to all nodes of the link", udp(dst=IPV6("ff02::1"), to=ALL_NODES), "not_overlay", ""),
    Row("to a group of the site", udp(dst=IPV6("ff05::7")), "not_overlay", ""),
    *(Row(f"from {src}", udp(src=IPV6(src)), "no_endpoint", "")
      for src in ("::", "::1", "ff02::1", "fe80::5")),
)  # fmt: skip

PROTOCOLS: Final = (
    *(Row(f"TCP flags {flags:#04x}", tcp(flags=flags), "tcp_control", "tcp_control")
      for flags in (SYN, SYN | ACK, FIN | ACK)),
    Row("ICMPv6 echo reply with a code", icmp(129, code=7)),
    *(Row(f"ICMPv6 type {kind}, about a flow that nobody knows", icmp(kind, bytes(48)), "protocol",
          "protocol") for kind in (1, 2, 3, 4)),
    *(Row(f"neighbour discovery, type {kind}, to another node", icmp(kind, bytes(20), ttl=64), "protocol",
          "protocol") for kind in (133, 135, 136, 137)),
    *(Row(name, of_protocol(number), "protocol", "outer_checksum")
      for name, number in (("no next header", 59), ("ESP", 50), ("SCTP", packets.SCTP),
                           ("IPv6 in IPv6", 41))),
)  # fmt: skip

SENT: Final = (*SIZES, *OFFLOADS, *CHECKSUMS, *HEADERS, *FRAGMENTS, *ADDRESSES, *PROTOCOLS)
"""Everything that container one sends."""


@dataclass(frozen=True, slots=True)
class IPv6Outer(Outer):
    """The same around IPv6; the checksum outside is there unless a row says otherwise."""

    checksum: str = "right"
    ident: int = 0
    """The flow label."""

    def _around(self, sent: bytes, macs: tuple[MacAddress, ...], hosts: tuple[Ip, ...]) -> bytes:
        frame = packets.ether(sent[packets.ETH_LEN :] + bytes(self.padding), macs[2], macs[3], packets.IPV6)
        tunnel = packets.udp(packets.vxlan(frame, self.vni, flags=self.flags), self.sport, 8472)
        fields = {"tos": self.tos, "ttl": self.ttl, "ident": self.ident, "summed": self.checksum != "none"}
        packet = packets.ip(tunnel, hosts[0], hosts[1], UDP, **fields)
        if self.checksum == "wrong":
            packet = packet[:46] + bytes((packet[46] ^ 0x55, packet[47])) + packet[48:]
        return packets.ether(packet, macs[0], macs[1], packets.IPV6)


FOREIGN_SOURCES: Final = {
    "the sending host's": "fd77::b",
    "another host's": "fd77::d",
    "of nobody, outside of the network": "2001:db8::9",
    "of the link": "fe80::5",
}

ARRIVING: Final = (
    *(
        IPv6Outer(
            f"ECN {inner} inside, {outer} outside",
            udp(tos=46 << 2 | inner, ttl=63),
            tos=outer,
            into="ecn" if (inner, outer) == (0, 3) else "decap",
        )
        for inner, outer in product(range(4), repeat=2)
    ),
    IPv6Outer("no outer checksum", udp(), "outer_checksum", checksum="none"),
    IPv6Outer("a wrong outer checksum", udp(), "outer_checksum", checksum="wrong"),
    IPv6Outer("outer hop limit 1", udp(), ttl=1),
    IPv6Outer("outer traffic class", udp(), tos=46 << 2),
    IPv6Outer("an outer flow label", udp(), ident=0xABCDE),
    IPv6Outer("padding behind the inner packet", udp(4), "outer_checksum", padding=10),
    IPv6Outer("inner hop limit 1", udp(ttl=1), "ttl"),
    IPv6Outer("inner hop limit 2", udp(ttl=2)),
    IPv6Outer("an inner flow label", udp(ident=0x12345)),
    IPv6Outer("a wrong inner UDP checksum", edited(udp(), UDP_CHECK, b"\x12\x34"), "outer_checksum"),
    IPv6Outer("no inner UDP checksum", edited(udp(), UDP_CHECK, bytes(2)), "outer_checksum"),
    IPv6Outer("inner fragments", fragments(1300, (2, 0, 1)), "outer_checksum"),
    IPv6Outer("inner options", behind(DESTINATION, options(UDP)), "outer_checksum"),
    IPv6Outer("no next header inside", of_protocol(59), "outer_checksum"),
    IPv6Outer("inner packet of MTU size", udp(UDP_MAX)),
    IPv6Outer("neighbour discovery", icmp(136, bytes(20), ttl=255), "protocol"),
    *(
        IPv6Outer(f"inner source {whose}", udp(src=IPV6(src)), "foreign_source")
        for whose, src in FOREIGN_SOURCES.items()
    ),
    IPv6Outer("another VNI", udp(), "vxlan_header", vni=2),
    IPv6Outer("a reserved flag", udp(), "vxlan_header", flags=packets.VXLAN_I | 1),
)
"""Everything that comes over the wire, for container two."""
