"""The vxlan backend's look at its own work, in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from ctl.backend.vxlan.lookout import CLOSE_S, CLOSELY_S, EVERY_S, Lookout
from ctl.core.abi import Counter, Hook
from ctl.core.findings import UNHEALTHY, WARNINGS, Concern, Findings
from ctl.core.host import Change, Filter, FilterKey
from ctl.core.losing import Device
from ctl.core.reasons import REASONS
from ctl.core.sight import LEAST
from ctl.kernel import firewall
from ctl.kernel.firewall import Tunnel
from ctl.kernel.netlink import link
from tests.unit.test_edges import NETWORK, OWN
from tests.unit.test_roster import OWN as LEASE

DEVICE, UPLINK = 7, 2
PLACES = {Hook.FROM_WIRE: FilterKey(UPLINK, True), Hook.TO_OVERLAY: FilterKey(DEVICE, False)}
NUMBERS = {row.label: row.number for row in REASONS.values()}


@dataclass
class World:
    """What is counted where, what hangs where, what time it is."""

    findings: Findings = field(default_factory=Findings)
    now: float = 100.0
    packets: tuple[int, int] = (0, 0)
    rules: dict[str, int] = field(default_factory=dict)
    seen: dict[Hook, dict[str, int]] = field(default_factory=dict)
    places: dict[FilterKey, Filter] = field(
        default_factory=lambda: {place: Filter(hook.label, 9) for hook, place in PLACES.items()}
    )
    others: list[str] = field(default_factory=lambda: ["program monitor (id 33) at tcx"])
    tcx: bool = True

    def __post_init__(self) -> None:
        filters: Any = SimpleNamespace(
            read=lambda: self.places, others=lambda _: list(self.others), has_tcx=self.tcx
        )
        rtnl: Any = None
        self.maps: Any = SimpleNamespace(counters=self._counters)
        self.lookout = Lookout(
            rtnl, filters, self.findings, dropped=lambda: dict(self.rules), steady=lambda: self.now
        )

    def _counters(self) -> dict[tuple[Hook, int], Counter]:
        return {
            (hook, NUMBERS[label]): Counter(count, 0)
            for hook, counts in self.seen.items()
            for label, count in counts.items()
        }

    def place(self, program: int, *, first: bool = False) -> None:
        self.places = {
            place: Filter(hook.label, program, first=first and hook is Hook.FROM_WIRE)
            for hook, place in PLACES.items()
        }

    def first(self) -> bool:
        """Whether from_wire has to go before the others."""
        return self.lookout.first

    def look(self, seconds: float = EVERY_S) -> frozenset[Change]:
        self.now += seconds
        return self.lookout.look({DEVICE: self.maps}, UPLINK)

    def lines(self, concern: Concern) -> tuple[str, ...]:
        return self.findings.problems.get(concern, ())


def started(monkeypatch: pytest.MonkeyPatch, *, tcx: bool) -> World:
    made = World(tcx=tcx)
    monkeypatch.setattr(link, "traffic", lambda *_: Device(*made.packets))
    made.look()
    return made


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return started(monkeypatch, tcx=True)


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> World:
    """On a kernel without tcx."""
    return started(monkeypatch, tcx=False)


def test_who_ends_it_before_from_wire_is_named_and_the_node_is_not_healthy(old: World) -> None:
    old.packets = (100, 0)
    old.seen = {Hook.FROM_WIRE: {"not_overlay": 5000, "not_ipv4": 70}}
    assert old.look() == {Change.FILTERS}
    (line,) = old.lines(Concern.BLIND)
    assert line.startswith("from_wire sees nothing") and "monitor (id 33)" in line
    assert old.findings.blind == ("from_wire",)
    assert Concern.BLIND in UNHEALTHY
    assert not old.first(), "it cannot go before it"
    assert old.look() == frozenset(), "said once"
    old.packets, old.seen = (101, 0), {Hook.FROM_WIRE: {"not_overlay": 5000, "flow_unknown": 1}}
    assert old.look() == {Change.FILTERS}
    assert not old.lines(Concern.BLIND) and not old.findings.blind


def test_from_wire_goes_before_who_kept_packets_from_it_as_long_as_these_are_the_same(world: World) -> None:
    world.packets = (100, 0)
    world.look()
    assert world.first()
    world.place(9, first=True)
    world.packets, world.seen = (200, 0), {Hook.FROM_WIRE: {"bypass_off": 100}}
    assert world.look() == {Change.FILTERS}
    assert not world.lines(Concern.BLIND) and not world.findings.blind
    (line,) = world.lines(Concern.OTHERS)
    assert "monitor (id 33)" in line
    assert Concern.OTHERS not in UNHEALTHY, "all that is lost is speed"
    assert world.look() == frozenset()
    world.others.append("bpf filter theirs at priority 1")
    assert world.look() == {Change.FILTERS}
    assert not world.first(), "it may pass packets on by now"
    assert world.lines(Concern.OTHERS) == ()


def test_who_ends_it_before_to_overlay_is_named(world: World) -> None:
    world.packets = (0, 100)
    world.look()
    (line,) = world.lines(Concern.BLIND)
    assert line.startswith("to_overlay sees nothing")


def test_who_has_just_come_is_judged_by_the_next_packets(world: World) -> None:
    """It says so within a fraction of a second of traffic, and not before there is any."""
    world.packets = (0, 0)
    world.others = []
    world.look()
    assert world.lookout.look_in() == math.inf
    world.others = ["bpf filter theirs at priority 1"]
    world.lookout.heed({DEVICE}, UPLINK)
    assert world.lookout.look_in() == CLOSE_S
    for count in range(LEAST):
        world.packets = (count, 0)
        assert world.look(CLOSE_S) == frozenset()
    world.packets = (LEAST, 0)
    assert world.look(CLOSE_S) == {Change.FILTERS}
    assert world.first()


def test_who_passes_packets_on_is_soon_looked_at_no_closer_than_ever(world: World) -> None:
    world.packets, world.others = (0, 0), ["bpf filter theirs at priority 1"]
    world.look()
    world.packets = (LEAST, LEAST)
    world.seen = {hook: {"flow_unknown": LEAST} for hook in PLACES}
    assert world.look(CLOSE_S) == frozenset()
    assert not world.first()
    assert world.lookout.look_in() == math.inf


def test_an_idle_node_is_not_kept_awake_by_who_has_come(world: World) -> None:
    world.others = ["bpf filter theirs at priority 1"]
    world.lookout.heed({DEVICE}, UPLINK)
    world.now += CLOSELY_S
    assert world.lookout.look_in() == math.inf
    world.lookout.heed({DEVICE}, UPLINK)
    assert world.lookout.look_in() == math.inf, "it is the same"


def test_who_comes_beside_one_that_ends_it_is_judged_anew(world: World) -> None:
    """It may have replaced it: from_wire is to see whether packets come now."""
    world.packets = (100, 0)
    world.look()
    assert world.first()
    world.others.append("bpf filter theirs at priority 1")
    world.lookout.heed({DEVICE}, UPLINK)
    assert not world.first()
    assert world.lookout.look_in() == CLOSE_S


def test_what_the_programs_see_is_well(world: World) -> None:
    world.packets = (100, 80)
    world.seen = {Hook.FROM_WIRE: {"flow_unknown": 60, "vlan": 40}, Hook.TO_OVERLAY: {"learned": 80}}
    assert world.look() == frozenset()
    assert not world.findings.blind


def test_ipv6_that_from_wire_does_not_see_is_no_better_for_what_it_sees_of_ipv4(world: World) -> None:
    """Each family has a vxlan device and counters of its own."""
    device, seen = 8, {Hook.FROM_WIRE: {"flow_unknown": 0}}
    unseen: Any = SimpleNamespace(counters=dict)
    world.places[FilterKey(device, False)] = Filter(Hook.TO_OVERLAY.label, 9)
    world.seen = seen
    for packets in (0, 100):
        world.packets, seen[Hook.FROM_WIRE]["flow_unknown"] = (packets, 0), packets
        world.now += EVERY_S
        world.lookout.look({DEVICE: world.maps, device: unseen}, UPLINK)
    (line,) = world.lines(Concern.BLIND)
    assert line.startswith("from_wire sees nothing")
    world.now += EVERY_S
    world.lookout.look({DEVICE: world.maps, device: None}, UPLINK)
    assert not world.lines(Concern.BLIND), "without programs for IPv6 it has nothing to see there"


def test_where_none_of_ours_hangs_nobody_asks_who_else_does() -> None:
    """Without eBPF a host may forbid bpf(2), and a node is none the worse for it."""
    world = World(places={})
    world.lookout.heed({DEVICE}, UPLINK)
    assert world.lookout.look_in() == math.inf


@pytest.mark.parametrize("why", ["no programs", "IPsec"])
def test_where_nothing_can_be_said_nothing_is(world: World, why: str) -> None:
    """What IPsec decrypts comes out of the tunnel without another look at tc."""
    if why == "IPsec":
        world.findings.problems[Concern.IPSEC] = ("IPsec policies are set",)
    else:
        world.places.clear()
    world.packets = (100, 100)
    assert world.look() == frozenset()
    assert not world.findings.blind


def test_programs_that_were_exchanged_are_judged_anew(world: World) -> None:
    world.packets = (100, 100)
    world.place(10)
    assert world.look() == frozenset()


def test_what_went_by_while_a_program_was_off_tells_nothing_of_it(world: World) -> None:
    world.packets = (0, 0)
    world.look()
    world.packets = (50, 50)
    world.lookout.forget()  # found to be off, and put back
    world.look()
    assert world.lines(Concern.BLIND) == ()
    world.packets = (100, 100)
    world.seen = {hook: {"flow_unknown": 50} for hook in PLACES}
    world.look()
    assert world.lines(Concern.BLIND) == ()


def test_it_looks_every_few_seconds_however_often_it_is_asked(world: World) -> None:
    world.look(CLOSELY_S)  # nobody has come lately
    world.packets = (100, 100)
    assert world.look(EVERY_S / 2) == frozenset()
    assert world.look(EVERY_S / 2) == {Change.FILTERS}


@pytest.mark.parametrize(
    ("rule", "concern"),
    [("VXLAN of no peer", Concern.RULES), ("VXLAN not from the underlay", Concern.ASTRAY)],
)
def test_what_our_rules_drop_is_said_while_it_goes_on(world: World, rule: str, concern: Concern) -> None:
    world.rules = {rule: 3, "no relaying": 0}
    assert world.look() == {Change.FIREWALL}
    assert [rule in line for line in world.lines(concern)] == [True]
    assert world.look() == frozenset()
    assert world.look(60) == {Change.FIREWALL}
    assert world.lines(concern) == ()


def test_every_rule_of_ours_that_counts_has_a_meaning(world: World) -> None:
    """And one that lets peers' packets go astray is the only kind for which the node is not healthy."""
    tunnel = Tunnel(8472, 1, "eth0", LEASE.host, "ovnet.1", (LEASE.host,))
    text = firewall.ruleset(NETWORK, OWN, masquerade=True, tunnel=tunnel, bridge="ovnet0")
    comments = [part.split('"')[1] for part in text.split("drop comment ")[1:]]
    assert len(comments) == text.count("counter ") == 6
    world.rules = dict.fromkeys(comments, 1)
    world.look()
    said = [*world.lines(Concern.RULES), *world.lines(Concern.ASTRAY)]
    assert [comment for comment in comments if not any(f'"{comment}"' in line for line in said)] == []
    assert Concern.ASTRAY in UNHEALTHY and Concern.RULES in WARNINGS
