"""The headers of a packet's first bytes, outside and inside of the tunnel, and a line about them. Pure.

It reads what it can: a packet may be cut short, damaged, or of anything.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from ctl.core.abi import Ip, address

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
PROTOCOLS: Final = {ICMP: "icmp", TCP: "tcp", UDP: "udp", ICMPV6: "icmpv6"}
"""By number of IANA's; these have names here."""
_ETHERNET, _VXLAN, _IPV6_LEN = 14, 8, 40
_IPV4, _ARP, _IPV6 = 0x0800, 0x0806, 0x86DD
_OFFSET: Final = 0x1FFF
_FLAGS: Final = "FSRP.UEW"
"""TCP's flags from the lowest bit on, by tcpdump's letters."""
_ECHO: Final = {
    ICMP: {0: "echo reply", 8: "echo request"},
    ICMPV6: {129: "echo reply", 128: "echo request"},
}
_EXTENSIONS: Final = (0, 43, 60)
"""IPv6's headers in front of the protocol that say how long they are: hop-by-hop, routing, destination."""
_FRAGMENT: Final = 44


def icmp_of(version: int) -> int:
    """Each family has an ICMP of its own."""
    return ICMP if version == 4 else ICMPV6


def in_family(proto: int, version: int) -> int:
    """The protocol, and of ICMP the one that goes with this IP version: people mean what there is."""
    return icmp_of(version) if proto in _ECHO else proto


@dataclass(frozen=True, slots=True)
class Headers:
    """Of an IP packet; ports are None where there are none to be seen."""

    src: Ip
    dst: Ip
    proto: int
    length: int
    """Total length by the IP header, bytes."""
    ttl: int
    df: bool
    """No router may cut it to fragments; of IPv6 none ever may."""
    sport: int | None = None
    dport: int | None = None
    words: str = ""
    """What else is worth telling of it."""

    def __str__(self) -> str:
        ends = (_end(self.src, self.sport), _end(self.dst, self.dport))
        name = PROTOCOLS.get(self.proto, f"proto {self.proto}").upper()
        return " ".join(
            [f"{ends[0]} > {ends[1]}: {name}", *filter(None, [self.words]), f"length {self.length}"]
        )


@dataclass(frozen=True, slots=True)
class Packet:
    """What is known of a packet."""

    outer: Headers | None = None
    """None: it is not in the tunnel."""
    vni: int = 0
    inner: Headers | None = None
    """Of what a container sends or gets; None: it is no IP, or cut short."""
    other: str = ""
    """What it is, if it is no IP."""
    bare: bool = False
    """Whether it begins with the IP header: an uplink may be no Ethernet."""

    def __str__(self) -> str:
        inner = str(self.inner) if self.inner else self.other or "cut short"
        return f"{self.outer}: VXLAN vni {self.vni}: {inner}" if self.outer else inner


def dissect(data: bytes, port: int) -> Packet:
    """A frame, or an IP packet without one. `port`: VXLAN's."""
    offset, other = _link(data)
    bare = not (offset or other)
    if other:
        return Packet(other=other)
    headers, body = _ip(data[offset:])
    if headers is None or headers.proto != UDP or headers.dport != port or len(body) < 8 + _VXLAN:
        return Packet(inner=headers, bare=bare)
    vni = int.from_bytes(body[12:15], "big")
    frame = body[8 + _VXLAN :]
    offset, other = _link(frame)
    return Packet(headers, vni, None if other else _ip(frame[offset:])[0], other, bare)


def _link(data: bytes) -> tuple[int, str]:
    """Where the IP header begins; or what it is instead."""
    if len(data) < _ETHERNET:
        return 0, "cut short"
    kind = int.from_bytes(data[12:14], "big")
    if kind in (_IPV4, _IPV6):
        return _ETHERNET, ""
    if kind != _ARP and _is_bare(data):
        return 0, ""
    return 0, _arp(data[_ETHERNET:]) if kind == _ARP else f"ethertype 0x{kind:04x}"


def _is_bare(data: bytes) -> bool:
    """Whether it begins with an IP header. A MAC may begin as that of IPv6, which says its length, too."""
    if data[0] >> 4 == 6:
        return int.from_bytes(data[4:6], "big") + _IPV6_LEN >= len(data)
    return data[0] == 0x45


def _arp(body: bytes) -> str:
    if len(body) < 28:
        return "ARP, cut short"
    sender, target = IPv4Address(body[14:18]), IPv4Address(body[24:28])
    if body[7] == 1:
        return f"ARP who-has {target} tell {sender}"
    return f"ARP {sender} is-at {body[8:14].hex(':')}"


def _ip(data: bytes) -> tuple[Headers | None, bytes]:
    """Its headers, and what is behind the IP header; None if there is no whole one."""
    read = _READERS.get(data[0] >> 4) if data else None
    return read(data) if read else (None, b"")


def _ipv4(data: bytes) -> tuple[Headers | None, bytes]:
    if len(data) < 20:
        return None, b""
    length, fragment, ttl, proto = struct.unpack_from("!2xH2xHBB", data)
    body = data[(data[0] & 15) * 4 :]
    sport, dport, words = (None, None, "fragment") if fragment & _OFFSET else _l4(proto, body)
    src, dst = IPv4Address(data[12:16]), IPv4Address(data[16:20])
    return Headers(src, dst, proto, length, ttl, bool(fragment & 0x4000), sport, dport, words), body


def _ipv6(data: bytes) -> tuple[Headers | None, bytes]:
    if len(data) < _IPV6_LEN:
        return None, b""
    payload, following, ttl = struct.unpack_from("!4xHBB", data)
    proto, body, first = _behind_extensions(following, data[_IPV6_LEN:])
    sport, dport, words = _l4(proto, body) if first else (None, None, "fragment")
    src, dst = address(data[8:24]), address(data[24:40])
    return Headers(src, dst, proto, _IPV6_LEN + payload, ttl, True, sport, dport, words), body


def _behind_extensions(proto: int, body: bytes) -> tuple[int, bytes, bool]:
    """(protocol, what is of it, whether it begins there: false in a fragment that is not the first)."""
    while len(body) >= 8 and (proto in _EXTENSIONS or proto == _FRAGMENT):
        if proto == _FRAGMENT and int.from_bytes(body[2:4], "big") & ~7:
            return body[0], body[8:], False
        length = 8 if proto == _FRAGMENT else 8 * (body[1] + 1)
        proto, body = body[0], body[length:]
    return proto, body, True


_READERS: Final[dict[int, Callable[[bytes], tuple[Headers | None, bytes]]]] = {4: _ipv4, 6: _ipv6}
"""By IP version."""


def _l4(proto: int, body: bytes) -> tuple[int | None, int | None, str]:
    """(source port, destination port, words)."""
    if proto in _ECHO and len(body) >= 8:
        kind, code, number, sequence = struct.unpack_from("!BB2xHH", body)
        if kind in _ECHO[proto]:
            return None, None, f"{_ECHO[proto][kind]} id {number} seq {sequence}"
        return None, None, f"type {kind} code {code}"
    if proto not in (TCP, UDP) or len(body) < 8:
        return None, None, ""
    sport, dport = struct.unpack_from("!HH", body)
    return sport, dport, _tcp(body) if proto == TCP else ""


def _tcp(body: bytes) -> str:
    if len(body) < 16:
        return ""
    sequence, acknowledged, flags = struct.unpack_from("!II x B", body, 4)
    letters = "".join(letter for bit, letter in enumerate(_FLAGS) if flags & 1 << bit)
    ack = f" ack {acknowledged}" if flags & 0x10 else ""
    return f"[{letters or 'none'}] seq {sequence}{ack}"


def _end(ip: Ip, port: int | None) -> str:
    return str(ip) if port is None else f"{ip}.{port}"
