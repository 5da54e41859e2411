"""New frames of all kinds, right ones most of them: the same ones for the same seed."""

from __future__ import annotations

import struct
from functools import cache
from ipaddress import IPv4Address, IPv6Address
from random import Random
from typing import Any, Final

from ctl.core.abi import Ip
from tests import packets
from tests.datapath import BRIDGE_MAC, MAC, PEER_MAC, Cast
from tests.fuzz import kernel
from tests.fuzz.trial import DIRECTIONS, PORTS
from tests.netns.parity import rows, rows_ipv6
from tests.netns.parity.rows import Ends

FLAGS: Final = (packets.ACK,) * 4 + (packets.SYN, packets.FIN, packets.RST, packets.ACK | packets.PSH)
WIRE: Final = ("from_wire", "from_wire_xdp")
LARGEST: Final = 3000
"""Bytes of a frame; a test run takes no more than a page with all that belongs to it."""
ROWS: Final = {4: rows.SENT, 6: rows_ipv6.SENT}
CORPUS_SHOTS: Final = 4
"""Frames of a row that are taken: many rows are one packet in many sizes."""
SCOPED: Final = tuple(map(IPv6Address, ("::", "::1", "fe80::5", "ff02::1", "ff0e::1", "::ffff:10.1.2.9")))
"""Addresses of IPv6 that are no node's in the network, or no more than on a link."""
JUMBO: Final = bytes((0xC2, 4))
"""The option that has the length of a jumbogram (RFC 2675), without that."""


@cache
def corpus(cast: Cast, program: str) -> list[bytes]:
    """The rows of the comparison with the kernel path, between the containers of this node."""
    out = DIRECTIONS[program] == DIRECTIONS["from_container"]
    ends = (
        Ends(cast.local, cast.remote, MAC, BRIDGE_MAC, 1000)
        if out
        else Ends(cast.remote, cast.local, PEER_MAC, cast.node.vtep_mac, 1000)
    )
    frames = [shot.frame for row in ROWS[cast.version] for shot in row.send(ends)[:CORPUS_SHOTS]]
    if program == "to_overlay":
        frames = [leaving(cast, frame) for frame in frames]
    return [
        cast.wire(frame) if program in WIRE else frame
        for frame in frames
        if len(frame) < LARGEST - cast.outer_len
    ]


def leaving(cast: Cast, frame: bytes) -> bytes:
    """The same with the MACs that it has at the vxlan device."""
    return PEER_MAC.packed + cast.node.vtep_mac.packed + frame[12:]


def new_frame(rng: Random, cast: Cast, program: str) -> bytes:
    """A right one, from and to addresses of all kinds."""
    l4, proto = _l4(rng, cast)
    tos, ttl = (
        rng.choice((0, 1, 2, 3, 46 << 2, rng.randrange(256))),
        rng.choice((1, 2, 64, rng.randrange(256))),
    )
    l4, proto, beside = _odd(rng, cast, l4, proto)
    ip: dict[str, Any] = {"tos": tos, "ttl": ttl, **beside}
    if DIRECTIONS[program] == DIRECTIONS["from_container"]:
        other = {} if rng.random() < 0.8 else {"dst": address(rng, cast)}
        out = cast.sent(l4, proto, **other, **ip)
        return leaving(cast, out) if program == "to_overlay" else out
    if rng.random() < 0.1:
        ip["dst"] = address(rng, cast)
    other = {} if rng.random() < 0.8 else {"src": address(rng, cast)}
    inner = cast.received(l4, proto, **other, **ip)
    return _around(rng, cast, inner) if program in WIRE else inner


def _odd(rng: Random, cast: Cast, l4: bytes, proto: int) -> tuple[bytes, int, dict[str, Any]]:
    """Sometimes with what few packets have: the payload, its protocol, fields of the IP header."""
    return (_odd_ipv4 if cast.version == 4 else _odd_ipv6)(rng, l4, proto)


def _odd_ipv4(rng: Random, l4: bytes, proto: int) -> tuple[bytes, int, dict[str, Any]]:
    """Options, fragments."""
    ip: dict[str, Any] = {}
    if rng.random() < 0.05:
        ip["options"] = rng.randbytes(4 * rng.randrange(1, 11))
    if rng.random() < 0.05:
        ip["fragment"] = rng.getrandbits(16)
    return l4, proto, ip


def _odd_ipv6(rng: Random, l4: bytes, proto: int) -> tuple[bytes, int, dict[str, Any]]:
    """Flow labels, extension headers in any order, fragments, payload lengths of 0, no checksum."""
    ip: dict[str, Any] = {}
    if rng.random() < 0.3:
        ip["ident"] = rng.choice((0, 1, 0xFFFFF, rng.getrandbits(20)))
    if rng.random() < 0.1:
        ip["summed"] = False
    if rng.random() < 0.05:
        l4, proto = packets.fragment(proto, rng.choice((0, 0, 1, rng.getrandbits(13))),
                                     more=rng.random() < 0.5) + l4, packets.FRAGMENT  # fmt: skip
    if rng.random() < 0.1:
        for _ in range(rng.choice((1, 1, 2, 3, 7, 8, 9))):
            l4, proto = _extension(rng, proto) + l4, rng.choice(kernel.EXTENSIONS)
    if rng.random() < 0.03:
        ip["total"] = packets.IPV6_LEN
    if rng.random() < 0.01:
        size = struct.pack("!I", rng.choice((0, len(l4) + 8, 0x10000)))
        l4, proto = bytes((proto, 0)) + JUMBO + size + l4, packets.HOP_BY_HOP
        ip["total"] = packets.IPV6_LEN
    return l4, proto, ip


def _extension(rng: Random, following: int) -> bytes:
    """As long as it says, if it is none of AH; mostly of padding."""
    header = packets.extension(following, rng.choice((0, 0, 1, rng.randrange(32))))
    return header if rng.random() < 0.8 else header[:2] + rng.randbytes(len(header) - 2)


def _around(rng: Random, cast: Cast, inner: bytes) -> bytes:
    host = cast.peer.host if rng.random() < 0.8 else address(rng, cast)
    ip: dict[str, Any] = {"tos": rng.randrange(256)}
    frame = cast.wire(inner, host=host, **ip)
    at = packets.ETH_LEN + cast.ip_len
    outer = packets.Ip.parse(frame[packets.ETH_LEN :])
    datagram, proto, beside = _odd(rng, cast, frame[at:], packets.UDP)
    if not beside and proto == packets.UDP:
        return frame
    plain = {"fragment": 0} if cast.version == 4 else {"summed": False}
    packet = packets.ip(datagram, outer.src, outer.dst, proto, **{**plain, **ip, **beside})
    return frame[: packets.ETH_LEN] + packet


def address(rng: Random, cast: Cast) -> Ip:
    known = (cast.local, cast.other, cast.remote, cast.nobody, cast.service, cast.foreign,
             cast.node.host, cast.peer.host, cast.third.host)  # fmt: skip
    if cast.version == 4:
        return rng.choice((*known, IPv4Address(rng.getrandbits(32))))
    return rng.choice((*known, *SCOPED, IPv6Address(rng.getrandbits(128))))


def _l4(rng: Random, cast: Cast) -> tuple[bytes, int]:
    body = bytes(rng.choice((0, 1, 8, rng.randrange(1500), cast.node.mtu - cast.ip_len - 8)))
    sport, dport = rng.choice(PORTS), rng.choice(PORTS)
    kind = rng.randrange(8)
    if kind < 4:
        said = rng.randrange(8, 9 + len(body)) if rng.random() < 0.05 else None
        return packets.udp(body, sport, dport, length=said), packets.UDP
    if kind < 7:
        return packets.tcp(body[:1400], sport, dport, flags=rng.choice(FLAGS)), packets.TCP
    proto = cast.ping[0]
    if cast.version == 6 and rng.random() < 0.3:
        return _neighbour_discovery(rng, cast), proto
    kinds = (0, 3, 8, 8, 11) if cast.version == 4 else (129, 1, 128, 128, 2, 3, 4)
    return packets.icmp(body, rng.choice(kinds), sport), rng.choice((proto,) * 4 + (rng.randrange(256),))


def _neighbour_discovery(rng: Random, cast: Cast) -> bytes:
    """Router and neighbour, solicitation and advertisement, redirect (RFC 4861)."""
    target = address(rng, cast).packed
    return struct.pack("!BBHI", rng.randrange(133, 138), 0, 0, rng.getrandbits(32)) + target
