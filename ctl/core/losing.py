"""Whether packets are lost between our hooks, told by what the programs count. Pure.

    look = Losing()
    lines = look(ways(counters, device))      every LOOK_S seconds, with what is counted then

What a program leaves to the kernel path comes by another program when it leaves that path: if a
good number goes in and nothing comes out, look after look, netfilter or routing drops it. An idle
node says nothing, and neither does one of whose packets some arrive: that some are dropped may
well be somebody's policy.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from ctl.core.abi import Counter, Hook
from ctl.core.reasons import total

LOOK_S: Final = 15.0
"""Seconds between two looks."""
PACKETS: Final = 3
"""Fewer of them between two looks say nothing."""

Counters = Mapping[tuple[Hook, int], Counter]


class Way(StrEnum):
    """Where packets may be lost."""

    OUT = "out"
    """Between a container's port and the vxlan device."""
    IN = "in"
    """Between the uplink and a container's port."""
    ANSWERS = "answers"
    """Beyond the uplink: nobody answers."""


LOOKS: Final = {Way.OUT: 2, Way.IN: 2, Way.ANSWERS: 4}
"""How many looks in a row have to say it. A peer may be gone for a moment."""


@dataclass(frozen=True, slots=True)
class Device:
    """What the vxlan device has counted: packets."""

    rx: int = 0
    tx: int = 0


@dataclass(frozen=True, slots=True)
class Passed:
    """What has passed on a way so far, packets."""

    sent: int
    """Those that went in, and should come out."""
    came: int
    """Those that came out and can be no others."""
    perhaps: int
    """Those that came out and may be of them: translated, say, or past a program that does not run."""

    def since(self, before: Passed) -> Passed:
        return Passed(self.sent - before.sent, self.came - before.came, max(self.perhaps - before.perhaps, 0))

    @property
    def lost(self) -> bool:
        """Whether of all these, which passed within a while, none came out."""
        return self.sent >= PACKETS and self.came == 0 and 2 * self.perhaps < self.sent


_SIGNED: Final = frozenset({"flow_unknown", "flow_expired", "tcp_control"})
"""Reasons of packets that are a container's to a peer or a peer's to a container, and are not bypassed."""
_OTHERS: Final = frozenset({"not_ipv4", "not_ipv6", "not_configured", "not_overlay", "no_endpoint"})
"""Reasons of packets that came by a learning hook and may be anybody's."""
_TRANSLATED: Final = frozenset({"not_overlay", "no_endpoint"})
"""Some of these, of which a packet is when its source was changed on the way."""
_FROM_NO_PEER: Final = frozenset(
    {"not_configured", "not_ipv4", "not_ipv6", "not_overlay", "vlan", "tagged", "truncated", "vxlan_header"}
    | {"outer_fragment", "outer_options", "unknown_vtep", "peers_incomplete", "unreadable"}
)
"""Reasons of packets off the wire that are not known to be a peer's."""


def ways(counters: Counters, device: Device) -> dict[Way, Passed]:
    """What has passed on each way, by what the programs and the vxlan device have counted."""
    overlay = _count(counters, Hook.TO_OVERLAY, without=_OTHERS)
    container = _count(counters, Hook.TO_CONTAINER, without=_OTHERS)
    return {
        Way.OUT: Passed(_count(counters, Hook.FROM_CONTAINER, of=_SIGNED), overlay, device.tx),
        Way.IN: Passed(
            _count(counters, Hook.FROM_WIRE, of=_SIGNED),
            container,
            _count(counters, Hook.TO_CONTAINER, of=_TRANSLATED),
        ),
        Way.ANSWERS: Passed(
            _count(counters, Hook.TO_OVERLAY, of={"tcp_control"}),
            _count(counters, Hook.FROM_WIRE, without=_FROM_NO_PEER),
            device.rx,
        ),
    }


def _count(
    counters: Counters, hook: Hook, *, of: Collection[str] | None = None, without: Collection[str] = ()
) -> int:
    """Packets of a hook with these reasons (labels; None: all), but not with the others."""
    return total(
        counters, hook, lambda row: row.label not in without and (of is None or row.label in of)
    ).packets


class Losing:
    """Remembers the look before, and how often in a row a way has lost all."""

    def __init__(self) -> None:
        self._before: Mapping[Way, Passed] = {}
        self._looks = dict.fromkeys(Way, 0)
        self._lost = dict.fromkeys(Way, 0)

    def __call__(self, now: Mapping[Way, Passed]) -> dict[Way, int]:
        """The ways on which all is lost, and how many packets were since the first look that said so."""
        for way, passed in now.items():
            grown = passed.since(self._before.get(way, passed))
            self._looks[way] = self._looks[way] + 1 if grown.lost else 0
            self._lost[way] = self._lost[way] + grown.sent if grown.lost else 0
        self._before = now
        return {way: self._lost[way] for way in now if self._looks[way] >= LOOKS[way]}
