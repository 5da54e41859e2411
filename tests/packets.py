"""Frames as bytes: built field by field (so that each can lie) and taken apart again."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final

from ctl.core.abi import Ip as Address
from ctl.core.model import MacAddress

ETH_LEN: Final = 14
IP_LEN: Final = 20
IPV6_LEN: Final = 40
TUNNEL_LEN: Final = 50
"""Outer IPv4, UDP and VXLAN headers, inner Ethernet header."""
OUTER_LEN: Final = 14 + 20 + 8 + 8
"""All that stands before the inner frame, with IPv4 outside."""

IPV4, ARP, VLAN, IPV6 = 0x0800, 0x0806, 0x8100, 0x86DD
ICMP, TCP, UDP, ICMPV6, SCTP = 1, 6, 17, 58, 132
HOP_BY_HOP, ROUTING, FRAGMENT, AH, DESTINATION = 0, 43, 44, 51, 60
FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10
DF, MF = 0x4000, 0x2000
VXLAN_I: Final = 0x08000000


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071); 0 over data that contains a right one."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ether(payload: bytes, src: MacAddress, dst: MacAddress, proto: int = IPV4) -> bytes:
    return dst.packed + src.packed + struct.pack("!H", proto) + payload


def arp(
    sender: IPv4Address,
    mac: MacAddress,
    target: IPv4Address,
    *,
    reply: bool = False,
    head: tuple[int, int, int, int] = (1, IPV4, 6, 4),
) -> bytes:
    """`head`: hardware, protocol and the lengths of their addresses, which may lie."""
    return (
        struct.pack("!HHBBH", *head, 2 if reply else 1)
        + mac.packed
        + sender.packed
        + bytes(6)
        + target.packed
    )


def ipv4(
    payload: bytes,
    src: IPv4Address,
    dst: IPv4Address,
    proto: int,
    *,
    tos: int = 0,
    ttl: int = 64,
    ident: int = 0x1234,
    fragment: int = DF,
    options: bytes = b"",
    version: int = 4,
    ihl: int | None = None,
    total: int | None = None,
) -> bytes:
    """`fragment`: flags and offset as they stand in the header; `ihl` (words) and `total` may lie."""
    words = 5 + len(options) // 4 if ihl is None else ihl
    length = IP_LEN + len(options) + len(payload) if total is None else total
    head = struct.pack(
        "!BBHHHBBH4s4s",
        version << 4 | words,
        tos,
        length,
        ident,
        fragment,
        ttl,
        proto,
        0,
        src.packed,
        dst.packed,
    )
    check = checksum(head + options)
    return head[:10] + struct.pack("!H", check) + head[12:] + options + payload


def ipv6(
    payload: bytes,
    src: IPv6Address,
    dst: IPv6Address,
    proto: int,
    *,
    tos: int = 0,
    ttl: int = 64,
    ident: int = 0x12345,
    version: int = 6,
    total: int | None = None,
    summed: bool = True,
) -> bytes:
    """`ident`: the flow label; `total`: with the header, may lie; `summed`: the payload gets its checksum."""
    length = len(payload) if total is None else total - IPV6_LEN
    first = version << 28 | tos << 20 | ident
    head = struct.pack("!IHBB16s16s", first, length, proto, ttl, src.packed, dst.packed)
    return head + (with_checksum(payload, src, dst, proto) if summed else payload)


CHECK_AT: Final = {TCP: 16, UDP: 6, ICMPV6: 2}
"""Where the checksum stands in the header of each protocol that has one."""


def with_checksum(l4: bytes, src: Address, dst: Address, proto: int) -> bytes:
    """With its checksum behind IPv6; as it is, if it is of a protocol that has none, or is cut off."""
    at = CHECK_AT.get(proto)
    if at is None or len(l4) < at + 2:
        return l4
    l4, rest = summed_part(l4, proto)
    zeroed = l4[:at] + bytes(2) + l4[at + 2 :]
    pseudo = src.packed + dst.packed + struct.pack("!II", len(l4), proto)
    return zeroed[:at] + struct.pack("!H", checksum(pseudo + zeroed) or 0xFFFF) + zeroed[at + 2 :] + rest


def summed_part(l4: bytes, proto: int) -> tuple[bytes, bytes]:
    """What a checksum is of, and what is behind that: UDP may say that it is shorter than its packet."""
    length = int.from_bytes(l4[4:6], "big") if proto == UDP and len(l4) >= 8 else 0
    end = length if 8 <= length < len(l4) else len(l4)
    return l4[:end], l4[end:]


def ip(payload: bytes, src: Address, dst: Address, proto: int, **fields: Any) -> bytes:
    """A packet of the family that the addresses are of."""
    if isinstance(src, IPv4Address) and isinstance(dst, IPv4Address):
        return ipv4(payload, src, dst, proto, **fields)
    assert isinstance(src, IPv6Address) and isinstance(dst, IPv6Address)
    return ipv6(payload, src, dst, proto, **fields)


def extension(following: int, units: int = 0) -> bytes:
    """An extension header of 8 bytes and `units` times 8 more, of padding."""
    return bytes((following, units, 1, 4)) + bytes(4 + 8 * units)


def fragment(following: int, offset: int = 0, *, more: bool = False) -> bytes:
    """The header of a fragment; `offset` in units of 8 bytes."""
    return struct.pack("!BBHI", following, 0, offset << 3 | more, 7)


def udp(payload: bytes, sport: int, dport: int, *, length: int | None = None) -> bytes:
    """Without a checksum, which IPv4 allows."""
    return struct.pack("!HHHH", sport, dport, 8 + len(payload) if length is None else length, 0) + payload


def tcp(payload: bytes, sport: int, dport: int, *, flags: int = ACK, options: bytes = b"") -> bytes:
    """The checksum is 0: nothing between two containers looks at it."""
    offset = (5 + len(options) // 4) << 4
    return struct.pack("!HHIIBBHHH", sport, dport, 1, 1, offset, flags, 512, 0, 0) + options + payload


def icmp(payload: bytes, kind: int, ident: int, *, code: int = 0, sequence: int = 1) -> bytes:
    head = struct.pack("!BBHHH", kind, code, 0, ident, sequence)
    return head[:2] + struct.pack("!H", checksum(head + payload)) + head[4:] + payload


def vxlan(frame: bytes, vni: int, *, flags: int = VXLAN_I) -> bytes:
    return struct.pack("!II", flags, vni << 8) + frame


@dataclass(frozen=True, slots=True)
class Ip:
    """An IP header as it stands in a packet; of IPv6, `ident` is the flow label."""

    head: bytes
    tos: int
    total: int
    ident: int
    fragment: int
    ttl: int
    proto: int
    src: Address
    dst: Address

    @classmethod
    def parse(cls, raw: bytes) -> Ip:
        """ValueError if there is no header, or not a whole one."""
        if len(raw) >= IPV6_LEN and raw[0] >> 4 == 6:
            first, length, proto, ttl, one, other = struct.unpack_from("!IHBB16s16s", raw)
            ends = IPv6Address(one), IPv6Address(other)
            total = length + IPV6_LEN
            return cls(raw[:IPV6_LEN], first >> 20 & 0xFF, total, first & 0xFFFFF, 0, ttl, proto, *ends)
        if len(raw) < IP_LEN or raw[0] >> 4 != 4 or len(raw) < (raw[0] & 15) * 4:
            raise ValueError(f"no IPv4 header: {raw[:IP_LEN].hex()}")
        tos, total, ident, fragment, ttl, proto, src, dst = struct.unpack_from("!xBHHHBBxx4s4s", raw)
        head = raw[: (raw[0] & 15) * 4]
        return cls(head, tos, total, ident, fragment, ttl, proto, IPv4Address(src), IPv4Address(dst))

    @property
    def valid(self) -> bool:
        """Whether the checksum is right; IPv6 has none."""
        return len(self.head) == IPV6_LEN or checksum(self.head) == 0


@dataclass(frozen=True, slots=True)
class Tunnel:
    """A frame with VXLAN in it, taken apart."""

    macs: bytes
    ip: Ip
    sport: int
    dport: int
    udp_len: int
    udp_check: int
    flags: int
    vni: int
    frame: bytes

    @classmethod
    def parse(cls, raw: bytes) -> Tunnel:
        """ValueError if it is not Ethernet, IP without options, UDP, VXLAN, one in the other."""
        ip = Ip.parse(raw[ETH_LEN:])
        kind, plain = (IPV4, IP_LEN) if ip.src.version == 4 else (IPV6, IPV6_LEN)
        at = ETH_LEN + plain
        if (
            raw[12:14] != kind.to_bytes(2, "big")
            or len(ip.head) != plain
            or ip.proto != UDP
            or len(raw) < at + 16
        ):
            raise ValueError(f"no VXLAN: {raw[: at + 16].hex()}")
        sport, dport, udp_len, udp_check, flags, vni = struct.unpack_from("!HHHHII", raw, at)
        return cls(raw[:12], ip, sport, dport, udp_len, udp_check, flags, vni >> 8, raw[at + 16 :])


def forwarded(packet: bytes, *, tos: int | None = None) -> bytes:
    """What a router makes of a packet without options: TTL down, checksum computed anew."""
    if packet[0] >> 4 == 6:
        word, ttl = int.from_bytes(packet[:4], "big"), packet[7] - 1
        if tos is not None:
            word = word & ~(0xFF << 20) | tos << 20
        return word.to_bytes(4, "big") + packet[4:7] + bytes([ttl]) + packet[8:]
    head = bytearray(packet[:IP_LEN])
    head[8] -= 1
    if tos is not None:
        head[1] = tos
    head[10:12] = bytes(2)
    head[10:12] = struct.pack("!H", checksum(bytes(head)))
    return bytes(head) + packet[IP_LEN:]
