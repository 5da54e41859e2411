"""Frames as bytes: built field by field (so that each can lie) and taken apart again."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from ctl.core.model import MacAddress

ETH_LEN: Final = 14
IP_LEN: Final = 20
TUNNEL_LEN: Final = 50
"""Outer IPv4, UDP and VXLAN headers, inner Ethernet header."""
OUTER_LEN: Final = 14 + 20 + 8 + 8
"""All that stands before the inner frame."""

IPV4, ARP, VLAN, IPV6 = 0x0800, 0x0806, 0x8100, 0x86DD
ICMP, TCP, UDP, SCTP = 1, 6, 17, 132
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
    """An IPv4 header as it stands in a packet."""

    head: bytes
    tos: int
    total: int
    ident: int
    fragment: int
    ttl: int
    proto: int
    src: IPv4Address
    dst: IPv4Address

    @classmethod
    def parse(cls, raw: bytes) -> Ip:
        """ValueError if there is no header, or not a whole one."""
        if len(raw) < IP_LEN or raw[0] >> 4 != 4 or len(raw) < (raw[0] & 15) * 4:
            raise ValueError(f"no IPv4 header: {raw[:IP_LEN].hex()}")
        tos, total, ident, fragment, ttl, proto, src, dst = struct.unpack_from("!xBHHHBBxx4s4s", raw)
        head = raw[: (raw[0] & 15) * 4]
        return cls(head, tos, total, ident, fragment, ttl, proto, IPv4Address(src), IPv4Address(dst))

    @property
    def valid(self) -> bool:
        """Whether the checksum is right."""
        return checksum(self.head) == 0


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
        """ValueError if it is not Ethernet, IPv4 without options, UDP, VXLAN, one in the other."""
        ip = Ip.parse(raw[ETH_LEN:])
        if raw[12:14] != b"\x08\0" or len(ip.head) != IP_LEN or ip.proto != UDP or len(raw) < OUTER_LEN:
            raise ValueError(f"no VXLAN: {raw[:OUTER_LEN].hex()}")
        sport, dport, udp_len, udp_check, flags, vni = struct.unpack_from("!HHHHII", raw, ETH_LEN + IP_LEN)
        return cls(raw[:12], ip, sport, dport, udp_len, udp_check, flags, vni >> 8, raw[OUTER_LEN:])


def forwarded(packet: bytes, *, tos: int | None = None) -> bytes:
    """What a router makes of an IPv4 packet without options: TTL down, checksum computed anew."""
    head = bytearray(packet[:IP_LEN])
    head[8] -= 1
    if tos is not None:
        head[1] = tos
    head[10:12] = bytes(2)
    head[10:12] = struct.pack("!H", checksum(bytes(head)))
    return bytes(head) + packet[IP_LEN:]
