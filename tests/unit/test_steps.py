"""What a pass does: which steps a change means, in which order."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctl.agent.steps import NOTHING, STEPS, Part, Step, walk
from ctl.core.errors import AgentError, KernelError
from ctl.core.host import EVERYTHING, Change
from tests.unit.world import KERNEL_PARTS, World


def parts(*changes: Change) -> tuple[Part, ...]:
    """Those that are looked after, where nothing adds to the changes."""
    return walk(frozenset(changes), lambda part, why: NOTHING).parts


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (Change.DEVICES, (Part.UPLINK, Part.DEVICES, Part.PROGRAMS, Part.PORTS)),
        (Change.LEASES, (Part.STORE, Part.PEERS)),
        (Change.HOPS, (Part.PEERS,)),
        (Change.PEERS, (Part.PEERS,)),
        (Change.PORTS, (Part.PORTS,)),
        (Change.FILTERS, (Part.PORTS,)),
        (Change.FIREWALL, (Part.FIREWALL,)),
        (Change.MAPS, (Part.PEERS,)),
    ],
)
def test_a_change_means_these_parts(change: Change, expected: tuple[Part, ...]) -> None:
    assert parts(change) == expected


def test_everything_means_every_part_once_and_the_kernel_path_before_the_shortcut() -> None:
    assert parts(*EVERYTHING) == (
        Part.UPLINK,
        Part.STORE,
        Part.DEVICES,
        Part.PEERS,
        Part.FIREWALL,
        Part.PROGRAMS,
        Part.PORTS,
    )


def test_a_part_is_told_the_changes_that_are_its_reason_and_no_others() -> None:
    told = {}

    def do(part: Part, why: frozenset[Change]) -> frozenset[Change]:
        told[part] = why
        return NOTHING

    walk(frozenset({Change.HOPS, Change.LEASES, Change.FILTERS}), do)
    assert told[Part.PEERS] == {Change.HOPS, Change.LEASES}
    assert told[Part.PORTS] == {Change.FILTERS}


def test_what_a_part_adds_is_done_by_those_below_it() -> None:
    def do(part: Part, why: frozenset[Change]) -> frozenset[Change]:
        return frozenset({Change.FIREWALL, Change.LEASES}) if part is Part.UPLINK else NOTHING

    assert walk(frozenset({Change.DEVICES}), do).parts == (
        Part.UPLINK,
        Part.STORE,
        Part.DEVICES,
        Part.PEERS,
        Part.FIREWALL,
        Part.PROGRAMS,
        Part.PORTS,
    )


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.part)
def test_nothing_is_added_for_a_part_above_alone(step: Step) -> None:
    """It would wait for the next event."""
    below = STEPS[STEPS.index(step) + 1 :]
    assert step.adds - {Change.LEASES, Change.DEVICES} <= NOTHING.union(*(each.on for each in below))


def test_a_part_that_fails_adds_all_that_it_may() -> None:
    def do(part: Part, why: frozenset[Change]) -> frozenset[Change]:
        if part is Part.PROGRAMS:
            raise KernelError("no compiler")
        return NOTHING

    outcome = walk(frozenset({Change.DEVICES}), do)
    assert outcome.error == "no compiler"
    assert outcome.parts[-2:] == (Part.PEERS, Part.PORTS), "the maps may be new already"


def test_all_that_fails_is_named_in_one_line_and_each_but_once() -> None:
    def do(part: Part, why: frozenset[Change]) -> frozenset[Change]:
        if part in (Part.PEERS, Part.PORTS):
            raise KernelError("no netlink")
        if part is Part.UPLINK:
            raise AgentError("no uplink")
        return NOTHING

    assert walk(EVERYTHING, do).error == "no uplink; no netlink"


def test_what_is_heard_before_a_part_looks_is_what_that_part_sees() -> None:
    """Its own work on devices tells of routes, which are looked at in the same pass anyway."""
    news = [NOTHING] * 3 + [frozenset({Change.DEVICES, Change.HOPS, Change.FILTERS})]
    told = {}

    def do(part: Part, why: frozenset[Change]) -> frozenset[Change]:
        told[part] = why
        return NOTHING

    outcome = walk(frozenset({Change.DEVICES}), do, lambda: news.pop(0) if news else NOTHING)
    assert STEPS[3].part is Part.PEERS
    assert told[Part.PEERS] == {Change.HOPS}
    assert told[Part.PORTS] == {Change.DEVICES, Change.FILTERS}
    assert outcome.about == {Change.DEVICES, Change.HOPS, Change.FILTERS}
    assert outcome.left == {Change.DEVICES}, "these have been looked at before"


@given(st.lists(st.frozensets(st.sampled_from(sorted(EVERYTHING))), max_size=len(STEPS)))
def test_nothing_that_is_heard_is_lost(news: list[frozenset[Change]]) -> None:
    """Whatever is heard, each of its steps is taken after it, in this pass or in the next one."""
    heard: list[frozenset[Change]] = []
    seen: list[tuple[int, frozenset[Change]]] = []

    def hear() -> frozenset[Change]:
        heard.append(news[len(heard)] if len(heard) < len(news) else NOTHING)
        return heard[-1]

    def do(part: Part, why: frozenset[Change]) -> frozenset[Change]:
        seen.append((len(heard), why))
        return NOTHING

    outcome = walk(NOTHING, do, hear)
    for turn, changes in enumerate(heard, 1):
        for change in changes - outcome.left:
            steps = [number for number, step in enumerate(STEPS, 1) if change in step.on]
            assert steps == [number for number, why in seen if change in why and number >= turn]


# --- On a node ---------------------------------------------------------------------


def test_new_maps_are_filled_before_programs_that_go_by_them_are_attached(world: World) -> None:
    world.kernel.adds[Part.PROGRAMS] = frozenset({Change.MAPS})
    world.full()
    assert world.kernel.calls[-3:] == [Part.PROGRAMS, Part.PEERS, Part.PORTS]
    assert world.kernel.told[-1] == {Change.MAPS}


def test_a_new_device_is_looked_at_whole(world: World) -> None:
    world.full()
    world.kernel.calls.clear()
    world.kernel.adds[Part.DEVICES] = EVERYTHING
    world.part(Change.DEVICES)
    assert tuple(world.kernel.calls) == KERNEL_PARTS, "routes and programs went with the old one"


def test_another_address_of_ours_is_in_the_lease_before_the_device_is_made_for_it(world: World) -> None:
    world.full()
    moved = replace(world.kernel.identity, host=IPv4Address("10.0.0.99"))
    world.kernel.moved = moved
    world.kernel.calls.clear()
    world.part(Change.DEVICES)
    (lease,) = world.store.snapshot().leases
    assert lease.host == moved.host
    assert tuple(world.kernel.calls) == KERNEL_PARTS, "peers by the new lease, and the rules"
