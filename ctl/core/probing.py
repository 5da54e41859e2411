"""What a probe of the other nodes finds: round trips, loss, the largest packet. Pure.

    carriers(backend, entry, gear=True)      by what packets of the host's own get to a peer
    Probed(sent, round_trips, largest)       what one of these has shown

Times are seconds, sizes bytes of IP packets inside the tunnel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address

from ctl.core.abi import PEER_F_KERNEL_PATH, PeerEntry, PeerStats
from ctl.core.model import A


class Carrier(StrEnum):
    """What puts the tunnel's header on a packet of the host's own, or sends it plainly."""

    EBPF = "ebpf"
    """`to_overlay`: the tunnel gear."""
    KERNEL = "kernel"
    """The vxlan device, or a route to the peer's host."""
    UDP = "udp"
    """The udp backend's forwarder."""


def carriers(backend: str, entry: PeerEntry | None, *, gear: bool) -> tuple[Carrier, ...]:
    """By what a peer is reached; the first is what carries the host's own packets without being asked.

    `entry`: its first one in `peers`; `gear`: whether the tunnel gear is on.
    """
    if backend == "udp":
        return (Carrier.UDP,)
    if gear and entry is not None and not entry.flags & PEER_F_KERNEL_PATH and entry.next_hop is not None:
        return (Carrier.EBPF, Carrier.KERNEL)
    return (Carrier.KERNEL,)


class State(StrEnum):
    """What became of the echoes to a peer, the worst that applies."""

    UNREACHABLE = "unreachable"
    """It answers nothing."""
    ELSEWHERE = "elsewhere"
    """It answers, and eBPF, which was to carry the echoes, has carried none."""
    LOSSY = "lossy"
    """Some were not answered."""
    SMALL = "small"
    """Only packets that are smaller than the overlay's largest are."""
    OK = "ok"


@dataclass(frozen=True, slots=True)
class Carried:
    """How many packets eBPF has carried to and from a peer's host meanwhile, whosoever they were."""

    out: int
    back: int


@dataclass(frozen=True, slots=True)
class Probed:
    """What the echoes to one peer by one carrier have shown."""

    sent: int
    round_trips: tuple[float, ...]
    """Seconds, of those that were answered."""
    largest: int = 0
    """The largest packet that is answered, bytes; 0: none, or it was not asked for."""
    carried: Carried | None = None
    """None: there is no eBPF that counts."""

    @property
    def reachable(self) -> bool:
        """Whether it answers at all: if not echoes of the size that was asked for, then smaller ones."""
        return bool(self.round_trips or self.largest)

    @property
    def loss(self) -> float:
        """Share of the echoes that were not answered, 0 to 1; 0 if none was sent."""
        return 1 - len(self.round_trips) / self.sent if self.sent else 0.0

    @property
    def times(self) -> tuple[float, float, float] | None:
        """Shortest, median and longest round trip, seconds; None if nothing was answered."""
        trips = sorted(self.round_trips)
        middle = len(trips) // 2
        # Not of statistics: it is imported with decimal and fractions, 0.6 MB on each node.
        return (trips[0], (trips[middle] + trips[~middle]) / 2, trips[-1]) if trips else None

    def state(self, carrier: Carrier, mtu: int) -> State:
        """The verdict; `mtu`: the overlay's, bytes."""
        if not self.reachable:
            return State.UNREACHABLE
        if carrier is Carrier.EBPF and self.carried is not None and not self.carried.out:
            return State.ELSEWHERE
        if 0 < self.largest < mtu:
            return State.SMALL
        return State.LOSSY if self.loss else State.OK


Counted = Mapping[IPv4Address, PeerStats]
"""What `peer_stats` holds at one moment."""


def carried(before: Counted | None, after: Counted | None, host: A) -> Carried | None:
    """What was counted of a host between two moments; None: nothing is counted."""
    if before is None or after is None or not isinstance(host, IPv4Address):
        return None
    nothing = PeerStats(0, 0, 0, 0)
    first, last = before.get(host, nothing), after.get(host, nothing)
    return Carried(last.tx_packets - first.tx_packets, last.rx_packets - first.rx_packets)


def verdict(states: Iterable[State]) -> int:
    """The exit code: 1 if anybody answers nothing."""
    return int(State.UNREACHABLE in states)
