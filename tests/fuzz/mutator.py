"""Frames of all kinds, some right, most of them damaged: the same ones for the same seed."""

from __future__ import annotations

import struct
from collections.abc import Callable
from ipaddress import IPv4Address
from random import Random
from typing import Any, Final

from ctl.kernel.source import PROGRAMS
from tests import packets
from tests.datapath import (
    FOREIGN,
    LOCAL,
    NOBODY,
    NODE,
    OTHER,
    PEER,
    REMOTE,
    THIRD,
    Datapath,
    flow_hash,
    flow_in,
    flow_out,
    received,
    sent,
    wire,
)

ADDRESSES: Final = (LOCAL, OTHER, REMOTE, NOBODY, FOREIGN, NODE.host, PEER.host, THIRD.host)
FLAGS: Final = (packets.ACK,) * 4 + (packets.SYN, packets.FIN, packets.RST, packets.ACK | packets.PSH)
PORTS: Final = (1000, 2000)
LEARNING: Final = ("to_overlay", "to_container")
SIGNATURES: Final = (
    *(flow_hash(flow_out(packets.UDP, sport, dport)) for sport in PORTS for dport in PORTS),
    *(flow_hash(flow_in(packets.UDP, sport, dport)) for sport in PORTS for dport in PORTS),
    0,
)
LARGEST: Final = 3000
"""Bytes of a frame; a test run takes no more than a page with all that belongs to it."""


def furnish(datapath: Datapath) -> Datapath:
    """The usual node, with every flow of PORTS between LOCAL and REMOTE approved."""
    datapath.furnish(approval_ttl_ns=1 << 62)
    for proto in (packets.UDP, packets.TCP):
        for sport in PORTS:
            for dport in PORTS:
                datapath.approve(flow_out(proto, sport, dport))
                datapath.approve(flow_in(proto, sport, dport))
    return datapath


def draw(rng: Random) -> tuple[str, bytes, int]:
    """A program, a frame for it, and the signature (skb->hash) that it carries, or 0."""
    program = rng.choice(PROGRAMS)
    return program, _damaged(rng, program), rng.choice(SIGNATURES) if program in LEARNING else 0


def draw_wire(rng: Random) -> bytes:
    """A frame for the uplink."""
    return _damaged(rng, "from_wire")


def _damaged(rng: Random, program: str) -> bytes:
    frame = _frame(rng, program)
    for _ in range(rng.choice((0, 0, 1, 1, 2, 4))):
        frame = rng.choice(MUTATIONS)(rng, frame)
    # Less than an IP header, a test run does not take.
    return frame[:LARGEST].ljust(packets.ETH_LEN + packets.IP_LEN, b"\0")


def _frame(rng: Random, program: str) -> bytes:
    l4, proto = _l4(rng)
    tos, ttl = rng.choice((0, 1, 2, 3, rng.randrange(256))), rng.choice((1, 2, 64, rng.randrange(256)))
    ip: dict[str, Any] = {"tos": tos, "ttl": ttl}
    if program in {"from_container", "to_overlay"}:
        return sent(l4, proto, **ip) if rng.random() < 0.8 else sent(l4, proto, dst=_address(rng), **ip)
    inner = received(l4, proto, **ip) if rng.random() < 0.8 else received(l4, proto, src=_address(rng), **ip)
    if program == "to_container":
        return inner
    host = PEER.host if rng.random() < 0.8 else _address(rng)
    return wire(inner, host=host, tos=rng.randrange(256))


def _address(rng: Random) -> IPv4Address:
    return rng.choice((*ADDRESSES, IPv4Address(rng.getrandbits(32))))


def _l4(rng: Random) -> tuple[bytes, int]:
    body = bytes(rng.choice((0, 1, 8, rng.randrange(1500), 1422)))
    sport, dport = rng.choice(PORTS), rng.choice(PORTS)
    kind = rng.randrange(8)
    if kind < 4:
        return packets.udp(body, sport, dport), packets.UDP
    if kind < 7:
        return packets.tcp(body[:1400], sport, dport, flags=rng.choice(FLAGS)), packets.TCP
    return packets.icmp(body, rng.choice((0, 3, 8, 11)), 1), rng.choice((packets.ICMP, rng.randrange(256)))


def _flip(rng: Random, frame: bytes) -> bytes:
    at = rng.randrange(min(len(frame), 100))
    return frame[:at] + bytes([frame[at] ^ 1 << rng.randrange(8)]) + frame[at + 1 :]


def _overwrite(rng: Random, frame: bytes) -> bytes:
    at = rng.randrange(min(len(frame), 100))
    value = rng.choice((b"\0", b"\xff", b"\0\0", b"\xff\xff", rng.randbytes(4)))
    return (frame[:at] + value + frame[at + len(value) :])[: len(frame)]


def _cut(rng: Random, frame: bytes) -> bytes:
    return frame[: rng.randrange(1, len(frame) + 1)]


def _grow(rng: Random, frame: bytes) -> bytes:
    return frame + rng.randbytes(rng.randrange(1, 64))


def _insert(rng: Random, frame: bytes) -> bytes:
    at = rng.randrange(len(frame) + 1)
    return frame[:at] + rng.randbytes(4) + frame[at:]


def _length(rng: Random, frame: bytes) -> bytes:
    at = rng.choice((16, 38, 66))  # outer total, UDP length, inner total
    value = rng.choice((0, 1, 19, 20, 0xFFFF, len(frame), rng.randrange(0x10000)))
    return (frame[:at] + struct.pack("!H", value) + frame[at + 2 :])[: max(len(frame), at)]


def _again(rng: Random, frame: bytes) -> bytes:
    return wire(frame[:LARGEST])


MUTATIONS: Final[tuple[Callable[[Random, bytes], bytes], ...]] = (
    _flip, _flip, _overwrite, _cut, _grow, _insert, _length, _again,
)  # fmt: skip
