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
from functools import partial
from ipaddress import IPv6Address
from random import Random
from typing import Any, Final

from ctl.core.model import Bypass
from ctl.kernel.bpf.source import PROGRAMS
from tests import packets
from tests.datapath import INET, INET6, Cast, Datapath, flow_hash
from tests.fuzz import kernel
from tests.fuzz.frames import LARGEST, address, corpus, new_frame
from tests.fuzz.trial import APPROVED, DIRECTIONS, Trial, World, signature

LEARNING: Final = ("to_overlay", "to_container")
SIGNATURES: Final = {
    (version, program): tuple(flow_hash(key) for key in approved if key.direction == DIRECTIONS[program])
    for version, approved in APPROVED.items()
    for program in LEARNING
}
KEPT: Final = 16
"""Frames that are remembered for each reason of each program."""


def furnish(datapath: Datapath) -> Datapath:
    """The usual node, with the flows of `trial.APPROVED`."""
    World(version=datapath.cast.version).furnish(datapath)
    return datapath


def draw_wire(rng: Random, cast: Cast = INET) -> bytes:
    """A frame for the uplink."""
    return damaged(rng, cast, new_frame(rng, cast, "from_wire"))


def draw_world(rng: Random, cast: Cast = INET) -> World:
    """Mostly the default mode."""
    bypass = rng.choice((Bypass.LEARNED,) * 6 + (Bypass.ALWAYS,) * 2 + (Bypass.TUNNEL,) * 2 + (Bypass.OFF,))
    tunnel = bypass is not Bypass.OFF and rng.random() < 0.8
    incomplete, kernel_path, no_ethernet = (int(rng.random() < chance) for chance in (0.1, 0.1, 0.2))
    return World(bypass, incomplete, kernel_path, no_ethernet, int(tunnel), cast.version)


class Mutator:
    """Draws trials; told what became of them, it goes on from the rare ones."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._kept: dict[str, dict[str, list[bytes]]] = {program: defaultdict(list) for program in PROGRAMS}

    def draw(self, world: World) -> Trial:
        rng = self._rng
        program = rng.choice(PROGRAMS)
        frame = damaged(rng, world.cast, self._frame(world.cast, program))
        trial = partial(Trial, program, frame, world)
        if program in LEARNING:
            return trial(hash=_signature(rng, world.cast, program, frame))
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

    def _frame(self, cast: Cast, program: str) -> bytes:
        rng, kept, chance = self._rng, self._kept[program], self._rng.random()
        if chance < 0.5 or (chance < 0.8 and not kept):
            return new_frame(rng, cast, program)
        if chance < 0.8:
            return rng.choice(kept[rng.choice(list(kept))])
        return rng.choice(corpus(cast, program))


def _signature(rng: Random, cast: Cast, program: str, frame: bytes) -> int:
    """Mostly its own, else another flow's or none."""
    with suppress(ValueError):
        if rng.random() < 0.6:
            return signature(program, frame)
    return rng.choice((0, *SIGNATURES[cast.version, program]))


def damaged(rng: Random, cast: Cast, frame: bytes) -> bytes:
    """Up to four mutations, checksums mended or not, in a size that a test run takes."""
    for _ in range(rng.choice((0, 0, 1, 1, 2, 4))):
        frame = rng.choice(MUTATIONS)(rng, cast, frame)
    if rng.random() < 0.5:
        frame = mended(cast, frame)
    # Less than an IP header, a test run does not take.
    head = packets.IPV6_LEN if frame[12:14] == b"\x86\xdd" else packets.IP_LEN
    return frame[:LARGEST].ljust(packets.ETH_LEN + head, b"\0")


def heads(cast: Cast) -> tuple[int, int]:
    """Where the IP headers begin in a frame from the wire: the outer and the inner one."""
    return packets.ETH_LEN, cast.outer_len + packets.ETH_LEN


def mended(cast: Cast, frame: bytes) -> bytes:
    """With right checksums in, or behind, both IP headers, as far as there are any."""
    for at in reversed(heads(cast)):
        if len(frame) >= at + cast.ip_len and frame[at - 2 : at] == cast.kind.to_bytes(2, "big"):
            frame = frame[:at] + (_header_mended if cast.version == 4 else _l4_mended)(frame[at:])
    return frame


def _header_mended(packet: bytes) -> bytes:
    size = max((packet[0] & 15) * 4, packets.IP_LEN)
    head = packet[:10] + b"\0\0" + packet[12:size]
    return packet[:10] + struct.pack("!H", packets.checksum(head)) + packet[12:]


def _l4_mended(packet: bytes) -> bytes:
    """Behind extension headers, too; what follows the packet stays."""
    proto, at, _ = kernel.chain(b"\x60" + packet[1:])
    total = int.from_bytes(packet[4:6], "big") + packets.IPV6_LEN
    source, target = (IPv6Address(packet[each]) for each in INET6.addresses)
    return (
        packet[:at]
        + packets.with_checksum(packet[at:total], source, target, proto)
        + packet[max(at, total) :]
    )


def _looked_at(cast: Cast, frame: bytes) -> int:
    """Bytes that programs see of it, with the inner L4 header."""
    return min(len(frame), heads(cast)[1] + cast.ip_len + 16)


def _flip(rng: Random, cast: Cast, frame: bytes) -> bytes:
    at = rng.randrange(_looked_at(cast, frame))
    return frame[:at] + bytes([frame[at] ^ 1 << rng.randrange(8)]) + frame[at + 1 :]


def _overwrite(rng: Random, cast: Cast, frame: bytes) -> bytes:
    at = rng.randrange(_looked_at(cast, frame))
    value = rng.choice((b"\0", b"\xff", b"\0\0", b"\xff\xff", rng.randbytes(4)))
    return (frame[:at] + value + frame[at + len(value) :])[: len(frame)]


def _cut(rng: Random, cast: Cast, frame: bytes) -> bytes:
    return frame[: rng.randrange(1, len(frame) + 1)]


def _grow(rng: Random, cast: Cast, frame: bytes) -> bytes:
    return frame + rng.randbytes(rng.randrange(1, 64))


def _insert(rng: Random, cast: Cast, frame: bytes) -> bytes:
    at = rng.randrange(len(frame) + 1)
    return frame[:at] + rng.randbytes(4) + frame[at:]


def _length(rng: Random, cast: Cast, frame: bytes) -> bytes:
    outer, inner = heads(cast)
    in_ip, in_udp = (2, 20 + 4) if cast.version == 4 else (4, 40 + 4)
    at = rng.choice((outer + in_ip, outer + in_udp, inner + in_ip, inner + in_udp))
    value = rng.choice((0, 1, 7, 8, 19, 20, 0xFFFF, len(frame), rng.randrange(0x10000)))
    return (frame[:at] + struct.pack("!H", value) + frame[at + 2 :])[: max(len(frame), at)]


def _again(rng: Random, cast: Cast, frame: bytes) -> bytes:
    return cast.wire(frame[:LARGEST])


def _tag(rng: Random, cast: Cast, frame: bytes) -> bytes:
    """A VLAN tag in front of the packet, or of the one in the tunnel."""
    at = rng.choice((12, cast.outer_len + 12))
    tag = struct.pack("!HH", rng.choice((0x8100, 0x88A8)), rng.choice((0, 7, rng.getrandbits(16))))
    return frame[:at] + tag + frame[at:]


def _address_at(rng: Random, cast: Cast, frame: bytes) -> bytes:
    """One of the four addresses of a frame from the wire, or one of the two of another."""
    at = rng.choice(heads(cast)) + rng.choice(cast.addresses).start
    new = address(rng, cast).packed
    return (frame[:at] + new + frame[at + len(new) :])[: max(len(frame), at)]


MUTATIONS: Final[tuple[Callable[[Random, Cast, bytes], bytes], ...]] = (
    _flip, _flip, _overwrite, _cut, _grow, _insert, _length, _again, _tag, _address_at,
)  # fmt: skip
