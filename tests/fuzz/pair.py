"""Random packets through two pairs of nodes: `python -m tests.fuzz.pair [BATCHES [SEED]]`.

One pair has eBPF, one has not. As the rows of tests/netns/parity: a container sends, or VXLAN
is put on the wire, and what shows on the wire and in the containers has to be the same. Each
batch is sent twice: the second time the flows that the kernel path has carried are approved.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from random import Random
from typing import Final

from ctl.model import MacAddress
from ctl.vxlan import vtep_mac
from tests import packets
from tests.fuzz.mutator import MUTATIONS, mended
from tests.netns.parity.capture import Shot, Tap
from tests.netns.parity.rows import ARRIVING, SENT, Ends
from tests.netns.parity.site import UPLINK_MACS, Site, inner_of

BATCH: Final = 40
LARGEST: Final = 1450 + packets.ETH_LEN
FLAGS: Final = {"off": ("--bypass", "off"), "learned": ("--bypass", "learned", "--approval-ttl", "60")}
OVERLAY: Final = IPv4Network("172.17.0.0/16")
SILENT: Final = "table ip silent { chain in { type filter hook input priority -300; policy drop; }; }"
Draw = Callable[[Random, Site], list[bytes]]


def ends(site: Site) -> Ends:
    return Ends(*site.addresses(), MacAddress.parse(site.one.mac), site.gateway, 20001)


def mutated(rng: Random, frame: bytes, start: int) -> bytes:
    """What stands before `start` stays: it says who gets the frame."""
    for _ in range(rng.choice((0, 1, 1, 2))):
        frame = frame[:start] + rng.choice(MUTATIONS)(rng, frame)[start:]
    return mended(frame) if rng.random() < 0.7 else frame


def sent(rng: Random, site: Site) -> list[bytes]:
    """What container one sends."""
    rows = [rng.choice(SENT) for _ in range(BATCH)]
    frames = [rng.choice(row.send(ends(site))[:4]).frame for row in rows if not row.offloads]
    found = [mutated(rng, frame, packets.ETH_LEN) for frame in frames]
    return [frame[:LARGEST] for frame in found if len(frame) > packets.ETH_LEN]


def arriving(rng: Random, site: Site) -> list[bytes]:
    """What comes over the wire, as if from node a."""
    hosts = tuple(IPv4Address(host.address) for host in (site.a, site.b))
    macs = tuple(MacAddress.parse(UPLINK_MACS[name]) for name in "ab")
    rows = [rng.choice(ARRIVING) for _ in range(BATCH)]
    macs += tuple(vtep_mac(host, 1) for host in hosts)
    frames = [rng.choice(row.send(ends(site), macs, hosts)).frame for row in rows]
    # Outer headers stay true, and so does who sends: a plain kernel asks neither for a source nor a tag.
    found = [mutated(rng, frame, packets.OUTER_LEN)[:LARGEST] for frame in frames]
    return [frame for frame in found if not refused(site, frame[packets.OUTER_LEN :])]


def refused(site: Site, inner: bytes) -> bool:
    """Whether eBPF refuses it where the kernel path lets it in: docs/security.md."""
    kind, source = inner[12:14], inner[26:30]
    if kind != b"\x08\0" or len(source) < 4:
        return kind in (b"\x81\0", b"\x88\xa8")
    address = IPv4Address(source)
    return address in OVERLAY and address not in site.a.gateway.network


DRAWS: Final[dict[str, Draw]] = {"sent": sent, "arriving": arriving}


def shoot(tap: Tap, frames: list[bytes]) -> None:
    for frame in frames:
        tap.send(Shot(frame))


def told_by_chance(frame: bytes) -> bool:
    """ICMP host and net unreachable: ip_error() tells them at a rate, arp seconds later."""
    return frame[23:24] == bytes([packets.ICMP]) and frame[34:36] in (b"\3\0", b"\3\1")


def differences(kernel: Site, ebpf: Site, kind: str, frames: list[list[bytes]]) -> list[str]:
    """Of one batch, both times; `frames`: as they are for either site."""
    found = []
    for turn in ("first", "second"):
        seen = []
        for site, batch in zip((kernel, ebpf), frames, strict=True):
            tap = site.at_one if kind == "sent" else site.at_a
            shown = site.exchange(partial(shoot, tap, batch), from_a=kind == "sent")
            shown.one = [frame for frame in shown.one if not told_by_chance(frame)]
            shown.wire = [frame for frame in shown.wire if not told_by_chance(inner_of(frame))]
            seen.append(shown)
        found += [f"{turn} time: {text}" for text in seen[1].differences(seen[0], ordered=False)]
        if found:
            found.append(f"{seen[1].reasons()}")
    return found


def compare(sites: list[Site], kind: str, seed: int) -> bool:
    """Whether a batch is the same on both; if not, say which of its packets are not, alone."""
    frames = [DRAWS[kind](Random(seed), site) for site in sites]
    together = differences(sites[0], sites[1], kind, frames)
    if not together:
        return True
    print(f"{kind}, seed {seed}: differs", *together, sep="\n    ", flush=True)
    for pair in zip(*frames, strict=True):
        if alone := differences(sites[0], sites[1], kind, [[frame] for frame in pair]):
            print(f"alone: {pair[1].hex()}", *alone, sep="\n    ", flush=True)
    return False


def main(arguments: list[str]) -> int:
    batches, seed = (*map(int, arguments), *(1000, time.time_ns())[len(arguments) :])
    broken = 0
    with ExitStack() as stack:
        sites = [stack.enter_context(Site(*flags)) for flags in FLAGS.values()]
        for site in sites:
            for container in (site.one, site.two):
                container.nft(SILENT)
        for number in range(seed, seed + batches):
            for kind in DRAWS:
                broken += not compare(sites, kind, number)
            print(f"{number - seed + 1} of {batches} batches, {broken} differ", file=sys.stderr, flush=True)
    return min(broken, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
