"""The vxlan backend looks at its own work: programs that see nothing, packets that our rules drop.

Nothing tells of either. A program of someone else that runs before ours and does not pass packets
on ends what is run in that place: the kernel path goes on, and what ours would have checked is
not checked. On the uplink ours then goes before it, where it checks and redirects nothing: who comes
behind sees all that it saw before. Whether it passes packets on nobody can read off a program, so packets
have to tell; after somebody has come, the next ones do: it is looked closely until enough have passed.
What a rule drops may be an attack, or a peer whose packets come
in another way than its lease says.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ctl.core.abi import Hook
from ctl.core.findings import Concern, Findings
from ctl.core.host import Change, FilterKey
from ctl.core.losing import Device
from ctl.core.reasons import Reason, Verdict, total
from ctl.core.sight import Growth, Sight
from ctl.kernel.bpf.maps import Maps
from ctl.kernel.firewall import TABLE
from ctl.kernel.hooks.filters import Filters
from ctl.kernel.netlink import link, nft
from ctl.kernel.netlink.socket import Rtnl, suppress_missing

log = logging.getLogger(__name__)

EVERY_S: Final = 4.0
"""Less than from one turn of the agent's loop to the next: seconds between two looks, at the least."""
CLOSE_S: Final = 0.25
"""The same while it is looked closely, and how soon the loop has to turn then."""
CLOSELY_S: Final = 60.0
"""For so long at the most: a node that is idle for longer is not kept awake."""

_ELSEWHERE: Final = frozenset({"not_configured", "not_ipv4", "not_ipv6", "not_overlay", "vxlan_header"})
"""Reasons for which a program passes what is not the tunnel's."""

_LOOKS: Final = {
    Concern.RULES: Change.FIREWALL,
    Concern.ASTRAY: Change.FIREWALL,
    Concern.BLIND: Change.FILTERS,
    Concern.OTHERS: Change.FILTERS,
}
"""What is looked for, and what of the node is looked at again when it comes or goes."""

_FIRST: Final = (
    "from_wire runs before {others} on the uplink, which would keep packets from it: it checks sources, "
    "and bypasses nothing inwards, so that these see all. Have them return TC_ACT_UNSPEC (TCX_NEXT)"
)

_MEANING: Final = {
    Hook.FROM_WIRE: "from_wire sees nothing of what comes out of the tunnel: {others} ends what is run on "
    "the uplink before it. Inner sources are not checked, and nothing is bypassed inwards: have that return "
    "TC_ACT_UNSPEC (TCX_NEXT), or remove it",
    Hook.TO_OVERLAY: "to_overlay sees nothing of what goes into the tunnel: {others} ends what is run on "
    "the vxlan device before it. Nothing is bypassed outwards: have that return TC_ACT_UNSPEC (TCX_NEXT), or "
    "remove it",
}

_RULES: Final = {
    "VXLAN of no peer": "a host without a lease sends it, or a peer with another address than its lease has",
    "VXLAN of a container": "a container sends it to the underlay",
    "VXLAN masqueraded as ours": "a guest of this host sends it to the underlay",
    "no relaying": "a peer sends us packets for another node's subnet",
}
"""Rules of ctl.kernel.firewall, by comment, and what it means that they drop: no peer has lost anything."""

_ASTRAY: Final = {
    "VXLAN not from the underlay": "a peer's packets come in by another interface than the uplink, "
    "or a container sends it",
    "VXLAN not for the VTEP's address": "a peer sends to another address of this host than its lease has",
}
"""The same, of rules whose drops may be what peers send to our containers."""


Watched = Mapping[int, Maps[Any] | None]
"""Maps that a family's programs count in, by the ifindex of its vxlan device; None: none are loaded."""


@dataclass(frozen=True, slots=True)
class _Spot:
    """Where a program is to see what passes one of the vxlan devices."""

    hook: Hook
    place: FilterKey
    device: int


class Lookout:
    """Looks every few seconds, and says in the findings what is wrong. One thread's.

    `steady`: seconds that only go up.
    """

    def __init__(
        self,
        rtnl: Rtnl,
        filters: Filters,
        findings: Findings,
        *,
        dropped: Callable[[], Mapping[str, int]] = nft.dropped,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rtnl, self._filters, self._findings = rtnl, filters, findings
        self._dropped, self._steady = dropped, steady
        self._looked_at: float | None = None
        self._sights: dict[_Spot, Sight] = {}
        self._about: dict[_Spot, object] = {}
        """Which program each sight is about."""
        self._growth = Growth()
        self.first = False
        """Whether from_wire has to be before those of others on the uplink: one keeps packets from it."""
        self._others: dict[FilterKey, list[str]] = {}
        """Those of others in each place, in words."""
        self._closely_until = -math.inf

    def look(self, watched: Watched, uplink: int) -> frozenset[Change]:
        """What has to be looked at again because something is wrong, or is not any more. KernelError.

        `uplink`: ifindex of the interface with from_wire; 0: none.
        """
        now = self._steady()
        pause = CLOSE_S if self._is_close() else EVERY_S
        if self._looked_at is not None and now - self._looked_at < pause:
            return frozenset()
        self._looked_at = now
        problems = self._findings.problems
        before = {each: problems.get(each, ()) for each in _LOOKS}
        self._look_at_rules(now)
        self._look_at_programs(watched, uplink)
        changed = [each for each in _LOOKS if problems.get(each, ()) != before[each]]
        for each in changed:
            for line in problems[each]:
                log.warning("%s", line)
        return frozenset(_LOOKS[each] for each in changed)

    def look_in(self) -> float:
        """Seconds until it has to be looked again; inf: whenever there is a turn."""
        return CLOSE_S if self._is_close() else math.inf

    def _is_close(self) -> bool:
        """Whether someone has come to one of ours lately, and too little has passed to judge it by."""
        if self._steady() >= self._closely_until:
            return False
        told = {spot.place for spot, sight in self._sights.items() if sight.told}
        return any(others and place not in told for place, others in self._others.items())

    def heed(self, devices: Collection[int], uplink: int) -> None:
        """Filters may have changed: if others' beside ours have, it is judged anew, and soon. KernelError.

        Those on the uplink may pass packets on by now, so from_wire goes behind them, and sees.
        `devices`: ifindexes of the vxlan devices.
        """
        for place in dict.fromkeys(spot.place for spot in _spots(devices, uplink)):
            if place not in self._filters.read():  # without eBPF the host may forbid to ask
                continue
            others = self._filters.others(place)
            if others == self._others.get(place, []):
                continue
            self._others[place] = others
            for spot, sight in self._sights.items():
                if spot.place == place:
                    sight.forget()
            self._closely_until = self._steady() + CLOSELY_S
            if place.ingress:
                self.first = False

    def forget(self) -> None:
        """A program was taken off, or others came: what went by until it is back tells nothing of it."""
        for sight in self._sights.values():
            sight.forget()

    def _look_at_rules(self, now: float) -> None:
        growing = self._growth.looked(self._dropped(), now)
        for concern, meanings in ((Concern.RULES, _RULES), (Concern.ASTRAY, _ASTRAY)):
            self._findings.problems[concern] = tuple(
                f'our rule "{name}" drops packets: {meanings[name]} (see nft list ruleset, tables {TABLE})'
                for name in growing
                if name in meanings
            )

    def _look_at_programs(self, watched: Watched, uplink: int) -> None:
        self.heed(watched, uplink)
        text = _FIRST.format(others=" and ".join(self._others.get(FilterKey(uplink, True), ())))
        self._findings.problems[Concern.OTHERS] = (text,) if self.first else ()
        spots = frozenset(_spots(watched, uplink))
        self._sights = {spot: self._sights.get(spot) or Sight() for spot in spots}
        self._about = {spot: about for spot, about in self._about.items() if spot in spots}
        blind: dict[Hook, str] = {}
        for device, opened in watched.items():
            before, counted, after = _noticed(opened), self._counted(device), _noticed(opened)
            passed = {Hook.FROM_WIRE: counted.rx, Hook.TO_OVERLAY: counted.tx}
            for spot in _spots([device], uplink):
                hook = spot.hook
                if why := self._sees(spot, opened, (before[hook], passed[hook], after[hook])):
                    blind.setdefault(hook, why)
        self._findings.blind = tuple(hook.label for hook in blind)
        self._findings.problems[Concern.BLIND] = tuple(blind.values())

    def _counted(self, device: int) -> Device:
        """What came out of the tunnel and went into it; nothing without a device."""
        if device:
            with suppress_missing():
                return link.traffic(self._rtnl, device)
        return Device()

    def _sees(self, spot: _Spot, opened: Maps[Any] | None, counts: tuple[int, int, int]) -> str:
        """One line if our program there does not see what passes; empty if it does, or is none."""
        sight, there = self._sights[spot], self._filters.read().get(spot.place)
        about = None if there is None or opened is None else (there, opened)
        # What IPsec decrypts goes into the tunnel's device without another look at tc.
        if about is None or self._findings.problems.get(Concern.IPSEC):
            sight.forget()
            self._about.pop(spot, None)
            return ""
        if self._about.get(spot) != about:
            sight.forget()
            self._about[spot] = about
        if not sight.looked(*counts):
            return ""
        others = self._others.get(spot.place, [])
        if spot.hook is Hook.FROM_WIRE and others and self._filters.has_tcx:
            self.first = True
        return _MEANING[spot.hook].format(others=" and ".join(others) or "something")


def _spots(devices: Collection[int], uplink: int) -> Iterator[_Spot]:
    """Where our programs see all that goes through these tunnels; what comes in, those of each family."""
    for device in devices:
        yield _Spot(Hook.FROM_WIRE, FilterKey(uplink, True), device)
        yield _Spot(Hook.TO_OVERLAY, FilterKey(device, False), device)


def _noticed(opened: Maps[Any] | None) -> Mapping[Hook, int]:
    """Packets that each program has left to the kernel path as the overlay's; none without maps."""
    counters = opened.counters() if opened else {}
    return {hook: total(counters, hook, _is_overlays).packets for hook in (Hook.FROM_WIRE, Hook.TO_OVERLAY)}


def _is_overlays(row: Reason) -> bool:
    return row.verdict is Verdict.PASS and row.label not in _ELSEWHERE
