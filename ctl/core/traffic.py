"""Rates: what counters say of the time between two readings. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

from ctl.core.abi import Counter, Direction, FlowKey, Hook, Ip
from ctl.core.report import gears

K = TypeVar("K")

Counts = tuple[int, ...]
"""What one thing has counted so far, by kind: packets sent, bytes sent and so on."""
Rates = tuple[float, ...]
"""The same each second."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a container is: its address, and the interface of its port."""

    address: Ip
    ifindex: int


@dataclass(frozen=True, slots=True)
class Reading:
    """Counters at one moment; of those that nobody asked for, none."""

    at_ns: int
    """CLOCK_MONOTONIC."""
    counters: Mapping[tuple[Hook, int], Counter] = field(default_factory=dict)
    peers: Mapping[Ip, Counts] = field(default_factory=dict)
    """By host: packets and bytes sent, packets and bytes received, as far as eBPF had a part in it."""
    flows: Mapping[bytes, Counts] = field(default_factory=dict)
    """By packed FlowKey: packets that bypassed."""
    containers: Mapping[Place, Counts] = field(default_factory=dict)
    """Packets and bytes sent, packets and bytes received by its interface, whoever carried them."""


def grown(was: int, now: int) -> int:
    """By how much a counter has risen. One that is lower than it was has begun anew meanwhile."""
    return now - was if now >= was else now


def rates(before: Mapping[K, Counts], after: Mapping[K, Counts], seconds: float) -> dict[K, Rates]:
    """What each that is there now counted per second. What is new began to count meanwhile, at 0.

    `seconds`: between the readings, more than 0.
    """
    return {
        key: tuple(
            grown(was, value) / seconds
            for was, value in zip(before.get(key, (0,) * len(now)), now, strict=True)
        )
        for key, now in after.items()
    }


@dataclass(frozen=True, slots=True)
class Span:
    """Two readings, one after the other."""

    before: Reading
    after: Reading

    @property
    def seconds(self) -> float:
        """Between them; never 0."""
        return max(1, self.after.at_ns - self.before.at_ns) / 1e9

    @property
    def peers(self) -> dict[Ip, Rates]:
        """By host, as `Reading.peers`."""
        return rates(self.before.peers, self.after.peers, self.seconds)

    @property
    def flows(self) -> dict[bytes, float]:
        """Packets per second of those flows that bypassed meanwhile, by packed FlowKey."""
        found = rates(self.before.flows, self.after.flows, self.seconds)
        return {key: rate for key, (rate,) in found.items() if rate}

    @property
    def containers(self) -> dict[Place, Rates]:
        """As `Reading.containers`, and last the packets per second of them that bypassed, both ways."""
        bypassing: dict[int, float] = {}
        for raw, rate in self.flows.items():
            port = FlowKey.unpack(raw).ifindex
            bypassing[port] = bypassing.get(port, 0) + rate
        found = rates(self.before.containers, self.after.containers, self.seconds)
        return {place: (*each, bypassing.get(place.ifindex, 0)) for place, each in found.items()}

    @property
    def gears(self) -> dict[tuple[Direction, str], Rates]:
        """Packets and bytes per second, and the share of the packets in percent, by direction and gear."""
        nothing = Counter(0, 0)
        counted = {}
        for key, now in self.after.counters.items():
            was = self.before.counters.get(key, nothing)
            counted[key] = Counter(grown(was.packets, now.packets), grown(was.bytes, now.bytes))
        return {
            (way, name): (
                counter.packets / self.seconds,
                counter.bytes / self.seconds,
                each.packets_percent[name] or 0.0,
            )
            for way, each in gears(counted).items()
            for name, counter in each.by_name.items()
        }


_UNITS: Final = ("", "k", "M", "G", "T", "P")


def short(rate: float) -> str:
    """A rate for people, with three digits: 0, 7, 12.3k, 999M."""
    unit = 0
    while float(f"{rate:.3g}") >= 1000 and unit < len(_UNITS) - 1:
        rate, unit = rate / 1000, unit + 1
    return f"{rate:.3g}{_UNITS[unit]}"
