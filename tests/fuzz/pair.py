"""Random packets through two pairs of nodes: `python -m tests.fuzz.pair [BATCHES [SEED]]`.

One pair has eBPF, one has not. As the rows of tests/netns/parity: a container sends, or VXLAN
is put on the wire, and what shows on the wire and in the containers has to be the same. Each
batch is sent twice: the second time the flows that the kernel path has carried are approved.

Of hostile VXLAN (outer headers damaged, too, inner sources and tags that are refused) nothing may
show that the kernel path does not show, and what is missing has to be counted as dropped.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from random import Random
from typing import Final

from ctl.backend.vxlan.device import vtep_mac
from ctl.core.model import MacAddress
from ctl.core.reasons import REASONS, Verdict
from tests import packets
from tests.datapath import INET
from tests.fuzz.mutator import MUTATIONS, mended
from tests.netns.parity.capture import Shot, Tap
from tests.netns.parity.rows import ARRIVING, SENT, Ends
from tests.netns.parity.rules import CALL_IPTABLES
from tests.netns.parity.site import UPLINK_MACS, Seen, Site, inner_of

BATCH: Final = 40
LARGEST: Final = 1450 + packets.ETH_LEN
FLAGS: Final = {"off": ("--bypass", "off"), "learned": ("--bypass", "learned", "--approval-ttl", "60")}
OVERLAY: Final = IPv4Network("172.17.0.0/16")
POOL: Final = OVERLAY[1 << 8], OVERLAY[-1]
"""Where leases are handed out: behind the first subnet."""
SILENT: Final = "table ip silent { chain in { type filter hook input priority -300; policy drop; }; }"
DROPS: Final = {row.label for row in REASONS.values() if row.verdict is Verdict.DROP}
SOURCES: Final = tuple(
    IPv4Address(each)
    for each in ("172.17.30.2", "172.17.30.1", "172.17.77.7", "192.168.77.12", "192.168.77.13", "203.0.113.9")
)
"""Inner sources that node a has no right to, or that are none of the network's."""
Draw = Callable[[Random, Site], list[bytes]]


def ends(site: Site) -> Ends:
    return Ends(*site.addresses(), MacAddress.parse(site.one.mac), site.gateway, 20001)


def mutated(rng: Random, frame: bytes, start: int) -> bytes:
    """What stands before `start` stays: it says who gets the frame."""
    for _ in range(rng.choice((0, 1, 1, 2))):
        frame = frame[:start] + rng.choice(MUTATIONS)(rng, INET, frame)[start:]
    return mended(INET, frame) if rng.random() < 0.7 else frame


def sent(rng: Random, site: Site) -> list[bytes]:
    """What container one sends. Not with sources of other subnets, which the receiver refuses, or of none
    of them, which masquerade gives random ports.
    """
    rows = [rng.choice(SENT) for _ in range(BATCH)]
    frames = [rng.choice(row.send(ends(site))[:4]).frame for row in rows if not row.offloads]
    found = [mutated(rng, frame, packets.ETH_LEN) for frame in frames]
    return [frame[:LARGEST] for frame in found if len(frame) > packets.ETH_LEN and own(site, frame)]


def own(site: Site, frame: bytes) -> bool:
    """Whether an IPv4 packet has a source of node a's subnet."""
    source = frame[26:30]
    if frame[12:14] != b"\x08\0" or len(source) < 4:
        return True
    return IPv4Address(source) in site.a.gateway.network


def from_the_wire(rng: Random, site: Site, start: int) -> list[bytes]:
    """VXLAN as if from node a, damaged from byte `start` on."""
    hosts = tuple(IPv4Address(host.address) for host in (site.a, site.b))
    macs = tuple(MacAddress.parse(UPLINK_MACS[name]) for name in "ab")
    rows = [rng.choice(ARRIVING) for _ in range(BATCH)]
    macs += tuple(vtep_mac(host, 1) for host in hosts)
    frames = [rng.choice(row.send(ends(site), macs, hosts)).frame for row in rows]
    return [mutated(rng, frame, start)[:LARGEST] for frame in frames]


def arriving(rng: Random, site: Site) -> list[bytes]:
    """Outer headers stay true, and so does who sends: a plain kernel asks neither for a source nor a tag."""
    found = from_the_wire(rng, site, packets.OUTER_LEN)
    return [frame for frame in found if not refused(site, frame[packets.OUTER_LEN :])]


def refused(site: Site, inner: bytes) -> bool:
    """Whether eBPF refuses it where the kernel path lets it in: docs/security.md."""
    kind, source = inner[12:14], inner[26:30]
    if kind != b"\x08\0" or len(source) < 4:
        return kind in (b"\x81\0", b"\x88\xa8")
    address = IPv4Address(source)
    return POOL[0] <= address <= POOL[1] and address not in site.a.gateway.network


def hostile(rng: Random, site: Site) -> list[bytes]:
    """From anyone, with anything inside; only the MACs outside are true."""
    found = [frame for frame in from_the_wire(rng, site, packets.ETH_LEN) if len(frame) > packets.ETH_LEN]
    return [rng.choice((disguised, same))(rng, frame) for frame in found]


def same(_rng: Random, frame: bytes) -> bytes:
    return frame


def disguised(rng: Random, frame: bytes) -> bytes:
    """With another inner source, or an inner tag: what nobody but eBPF looks at."""
    at = packets.OUTER_LEN
    if rng.random() < 0.3:
        return frame[: at + 12] + b"\x81\0" + rng.choice((b"\0\0", b"\0\5")) + frame[at + 12 :]
    address = rng.choice(SOURCES).packed
    return mended(INET, (frame[: at + 26] + address + frame[at + 30 :])[: len(frame)])


DRAWS: Final[dict[str, Draw]] = {"sent": sent, "arriving": arriving, "hostile": hostile}


def shoot(tap: Tap, frames: list[bytes]) -> None:
    for frame in frames:
        tap.send(Shot(frame))


def told_by_chance(frame: bytes) -> bool:
    """ICMP host and net unreachable, redirects: told at a rate, some by arp seconds later."""
    kind, code = frame[34:35], frame[35:36]
    by_rate = kind == b"\5" or (kind == b"\3" and code in (b"\0", b"\1"))
    return by_rate and frame[23:24] == bytes([packets.ICMP])


def exchanged(kind: str, site: Site, batch: list[bytes]) -> Seen:
    """What a batch shows on one site."""
    tap = site.at_one if kind == "sent" else site.at_a
    shown = site.exchange(partial(shoot, tap, batch), from_a=kind == "sent")
    shown.one = [frame for frame in shown.one if not told_by_chance(frame)]
    shown.wire = [frame for frame in shown.wire if not told_by_chance(inner_of(frame) or frame)]
    return shown


def differences(kernel: Site, ebpf: Site, kind: str, frames: list[list[bytes]]) -> list[str]:
    """Of one batch, both times; `frames`: as they are for either site."""
    found = []
    for turn in ("first", "second"):
        theirs, ours = (exchanged(kind, *pair) for pair in zip((kernel, ebpf), frames, strict=True))
        wrong = not_counted(kind, ours, len(frames[1]))
        if kind == "hostile":
            wrong += ours.beyond(theirs) + not_dropped(ours, theirs) + let_in(ebpf, ours)
        else:
            wrong += ours.differences(theirs, ordered=False)
        found += [f"{turn} time: {text}" for text in wrong]
        if found:
            found.append(f"{ours.reasons()}")
    return found


def not_counted(kind: str, ours: Seen, sent: int) -> list[str]:
    """Whether some have left the first program without a reason. Others may be there: the marks, ARP."""
    counted = ours.counted[("a", "from_container") if kind == "sent" else ("b", "from_wire")].total()
    return [f"{counted} counted of {sent}"] if counted < sent else []


def let_in(site: Site, ours: Seen) -> list[str]:
    """What should have been refused, and has come into the container."""
    return [f"let in: {frame.hex()}" for frame in ours.two if refused(site, frame)]


def not_dropped(ours: Seen, kernel: Seen) -> list[str]:
    """Whether more are missing in the container than were dropped by our rules."""
    missing = len(kernel.two) - len(ours.two)
    drops = sum(number for label, number in ours.counted["b", "from_wire"].items() if label in DROPS)
    return [f"{missing} missing, {drops} dropped"] if missing > drops else []


@contextmanager
def quiet(site: Site) -> Iterator[None]:
    """Containers that do not answer, and a switch that does not judge what it passes on.

    Otherwise it stays with br_netfilter, which takes the sender's socket off a packet, as a wire
    does. With one on its last segment GRO would put that before the others.
    """
    with ExitStack() as stack:
        for container in (site.one, site.two):
            container.nft(SILENT)
            stack.callback(container.nft, "delete table ip silent")
        with suppress(FileNotFoundError):  # without br_netfilter there is nothing to turn off
            before = site.lab.wire.sysctl(CALL_IPTABLES)
            site.lab.wire.sysctl(CALL_IPTABLES, "0")
            stack.callback(site.lab.wire.sysctl, CALL_IPTABLES, before)
        yield


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
            stack.enter_context(quiet(site))
        for number in range(seed, seed + batches):
            for kind in DRAWS:
                broken += not compare(sites, kind, number)
            print(f"{number - seed + 1} of {batches} batches, {broken} differ", file=sys.stderr, flush=True)
    return min(broken, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
