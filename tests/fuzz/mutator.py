"""Frames of all kinds, some right, most of them damaged: the same ones for the same seed.

A frame is made new, taken from the corpus (the rows of the comparison with the kernel
path, and what has failed once), or from those that have left a program for a rare reason.
Then it is damaged, and half of the time its checksums are mended, so that the damage is
seen by more than the first check.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from ipaddress import IPv4Address
from random import Random
from typing import Any, Final

from ctl.core.abi import Ip
from ctl.core.model import Bypass
from ctl.kernel.bpf.source import PROGRAMS
from tests import packets
from tests.datapath import (
    BRIDGE_MAC,
    FOREIGN,
    LOCAL,
    MAC,
    NOBODY,
    NODE,
    OTHER,
    PEER,
    PEER_MAC,
    REMOTE,
    SERVICE,
    THIRD,
    Datapath,
    flow_hash,
    received,
    sent,
    wire,
)
from tests.fuzz.trial import APPROVED, DIRECTIONS, PORTS, Trial, World, signature
from tests.netns.parity.rows import SENT, Ends

ADDRESSES: Final = (LOCAL, OTHER, REMOTE, NOBODY, SERVICE, FOREIGN, NODE.host, PEER.host, THIRD.host)
FLAGS: Final = (packets.ACK,) * 4 + (packets.SYN, packets.FIN, packets.RST, packets.ACK | packets.PSH)
LEARNING: Final = ("to_overlay", "to_container")
WIRE: Final = ("from_wire", "from_wire_xdp")
SIGNATURES: Final = {
    program: tuple(flow_hash(key) for key in APPROVED if key.direction == DIRECTIONS[program])
    for program in LEARNING
}
LARGEST: Final = 3000
"""Bytes of a frame; a test run takes no more than a page with all that belongs to it."""
IPV6_LEN: Final = 40
KEPT: Final = 16
"""Frames that are remembered for each reason of each program."""
CORPUS_SHOTS: Final = 4
"""Frames of a row that are taken: many rows are one packet in many sizes."""
OUTER, INNER = packets.ETH_LEN, packets.OUTER_LEN + packets.ETH_LEN
"""Where the IPv4 headers begin in a frame from the wire."""


def furnish(datapath: Datapath) -> Datapath:
    """The usual node, with the flows of `trial.APPROVED`."""
    World().furnish(datapath)
    return datapath


def draw_wire(rng: Random) -> bytes:
    """A frame for the uplink."""
    return damaged(rng, new_frame(rng, "from_wire"))


def draw_world(rng: Random) -> World:
    """Mostly the default mode."""
    bypass = rng.choice((Bypass.LEARNED,) * 6 + (Bypass.ALWAYS,) * 2 + (Bypass.TUNNEL,) * 2 + (Bypass.OFF,))
    tunnel = bypass is not Bypass.OFF and rng.random() < 0.8
    incomplete, kernel_path, no_ethernet = (int(rng.random() < chance) for chance in (0.1, 0.1, 0.2))
    return World(bypass, incomplete, kernel_path, no_ethernet, int(tunnel))


class Mutator:
    """Draws trials; told what became of them, it goes on from the rare ones."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._kept: dict[str, dict[str, list[bytes]]] = {program: defaultdict(list) for program in PROGRAMS}

    def draw(self, world: World) -> Trial:
        rng = self._rng
        program = rng.choice(PROGRAMS)
        frame = damaged(rng, self._frame(program))
        trial = partial(Trial, program, frame, world)
        if program in LEARNING:
            return trial(hash=_signature(rng, program, frame))
        if program == "from_wire_xdp" or rng.random() < 0.9:
            return trial()
        # The MACs, or they would be another size than what the tag displaces.
        beside: tuple[dict[str, Any], ...] = (
            {"vlan": rng.choice((7, 0x2000, 0x2007, rng.randrange(1, 0x10000)))},
            {"gso_size": rng.randrange(1, 1500), "gso_segs": rng.randrange(1, 40)},
            {"note": rng.randbytes(20)} if program == "from_wire" else {},
        )
        return trial(**rng.choice(beside))

    def learn(self, trial: Trial, reason: str) -> None:
        """Remember the frame among those of this reason, in the place of a chance one."""
        kept = self._kept[trial.program][reason]
        if len(kept) < KEPT:
            kept.append(trial.frame)
        elif self._rng.random() < 0.01:
            kept[self._rng.randrange(KEPT)] = trial.frame

    def _frame(self, program: str) -> bytes:
        rng, kept, chance = self._rng, self._kept[program], self._rng.random()
        if chance < 0.5 or (chance < 0.8 and not kept):
            return new_frame(rng, program)
        if chance < 0.8:
            return rng.choice(kept[rng.choice(list(kept))])
        return rng.choice(corpus(program))


def _signature(rng: Random, program: str, frame: bytes) -> int:
    """Mostly its own, else another flow's or none."""
    with suppress(ValueError):
        if rng.random() < 0.6:
            return signature(program, frame)
    return rng.choice((0, *SIGNATURES[program]))


@cache
def corpus(program: str) -> list[bytes]:
    """The rows of the comparison with the kernel path, between the containers of this node."""
    out = DIRECTIONS[program] == DIRECTIONS["from_container"]
    ends = (
        Ends(LOCAL, REMOTE, MAC, BRIDGE_MAC, 1000)
        if out
        else Ends(REMOTE, LOCAL, PEER_MAC, NODE.vtep_mac, 1000)
    )
    frames = [shot.frame for row in SENT for shot in row.send(ends)[:CORPUS_SHOTS]]
    if program == "to_overlay":
        frames = list(map(leaving, frames))
    return [
        wire(frame) if program in WIRE else frame
        for frame in frames
        if len(frame) < LARGEST - packets.OUTER_LEN
    ]


def leaving(frame: bytes) -> bytes:
    """The same with the MACs that it has at the vxlan device."""
    return PEER_MAC.packed + NODE.vtep_mac.packed + frame[12:]


def damaged(rng: Random, frame: bytes) -> bytes:
    """Up to four mutations, checksums mended or not, in a size that a test run takes."""
    for _ in range(rng.choice((0, 0, 1, 1, 2, 4))):
        frame = rng.choice(MUTATIONS)(rng, frame)
    if rng.random() < 0.5:
        frame = mended(frame)
    # Less than an IP header, a test run does not take.
    head = IPV6_LEN if frame[12:14] == b"\x86\xdd" else packets.IP_LEN
    return frame[:LARGEST].ljust(packets.ETH_LEN + head, b"\0")


def mended(frame: bytes) -> bytes:
    """With right checksums in both IPv4 headers, as far as there are any."""
    for at in (INNER, OUTER):
        if len(frame) >= at + packets.IP_LEN and frame[at - 2 : at] == b"\x08\0":
            size = max((frame[at] & 15) * 4, packets.IP_LEN)
            head = frame[at : at + 10] + b"\0\0" + frame[at + 12 : at + size]
            frame = frame[: at + 10] + struct.pack("!H", packets.checksum(head)) + frame[at + 12 :]
    return frame


def new_frame(rng: Random, program: str) -> bytes:
    """A right one, from and to addresses of all kinds."""
    l4, proto = _l4(rng)
    tos, ttl = (
        rng.choice((0, 1, 2, 3, 46 << 2, rng.randrange(256))),
        rng.choice((1, 2, 64, rng.randrange(256))),
    )
    ip: dict[str, Any] = {"tos": tos, "ttl": ttl}
    if rng.random() < 0.05:
        ip["options"] = rng.randbytes(4 * rng.randrange(1, 11))
    if rng.random() < 0.05:
        ip["fragment"] = rng.getrandbits(16)
    if DIRECTIONS[program] == DIRECTIONS["from_container"]:
        out = sent(l4, proto, **ip) if rng.random() < 0.8 else sent(l4, proto, dst=_address(rng), **ip)
        return leaving(out) if program == "to_overlay" else out
    if rng.random() < 0.1:
        ip["dst"] = _address(rng)
    inner = received(l4, proto, **ip) if rng.random() < 0.8 else received(l4, proto, src=_address(rng), **ip)
    return _around(rng, inner) if program in WIRE else inner


def _around(rng: Random, inner: bytes) -> bytes:
    host = PEER.host if rng.random() < 0.8 else _address(rng)
    ip: dict[str, Any] = {"tos": rng.randrange(256)}
    if rng.random() < 0.05:
        ip["options"] = rng.randbytes(4 * rng.randrange(1, 11))
    if rng.random() < 0.05:
        ip["fragment"] = rng.getrandbits(16)
    return wire(inner, host=host, **ip)


def _address(rng: Random) -> Ip:
    return rng.choice((*ADDRESSES, IPv4Address(rng.getrandbits(32))))


def _l4(rng: Random) -> tuple[bytes, int]:
    body = bytes(rng.choice((0, 1, 8, rng.randrange(1500), 1422)))
    sport, dport = rng.choice(PORTS), rng.choice(PORTS)
    kind = rng.randrange(8)
    if kind < 4:
        return packets.udp(body, sport, dport), packets.UDP
    if kind < 7:
        return packets.tcp(body[:1400], sport, dport, flags=rng.choice(FLAGS)), packets.TCP
    return packets.icmp(body, rng.choice((0, 3, 8, 8, 11)), sport), rng.choice(
        (packets.ICMP,) * 4 + (rng.randrange(256),)
    )


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
    at = rng.choice((16, 38, 66, 88))  # outer total, UDP length, inner total, inner UDP length
    value = rng.choice((0, 1, 7, 8, 19, 20, 0xFFFF, len(frame), rng.randrange(0x10000)))
    return (frame[:at] + struct.pack("!H", value) + frame[at + 2 :])[: max(len(frame), at)]


def _again(rng: Random, frame: bytes) -> bytes:
    return wire(frame[:LARGEST])


def _tag(rng: Random, frame: bytes) -> bytes:
    """A VLAN tag in front of the packet, or of the one in the tunnel."""
    at = rng.choice((12, packets.OUTER_LEN + 12))
    tag = struct.pack("!HH", rng.choice((0x8100, 0x88A8)), rng.choice((0, 7, rng.getrandbits(16))))
    return frame[:at] + tag + frame[at:]


def _address_at(rng: Random, frame: bytes) -> bytes:
    """One of the four addresses of a frame from the wire, or one of the two of another."""
    at = rng.choice((26, 30, 76, 80))
    return (frame[:at] + _address(rng).packed + frame[at + 4 :])[: max(len(frame), at)]


MUTATIONS: Final[tuple[Callable[[Random, bytes], bytes], ...]] = (
    _flip, _flip, _overwrite, _cut, _grow, _insert, _length, _again, _tag, _address_at,
)  # fmt: skip
