"""When the loop does what: no hot loop, nothing put off, no look at everything without need."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ctl.agent.describe import ReportFile
from ctl.agent.schedule import MAX_GAP_S, MIN_GAP_S, TICK_S
from ctl.agent.steps import NOTHING, Part
from ctl.core.errors import AgentError, KernelError
from ctl.core.host import Change
from ctl.core.report import AgentReport
from ctl.process.backoff import BACK_OFF_MAX_S
from tests.unit.world import DAY, LEASE_TTL, MARGIN, RESYNC, World, new_world

PORTS = frozenset({Change.PORTS})
LEASES = frozenset({Change.LEASES})


def test_an_idle_agent_resyncs_and_ticks(world: World) -> None:
    turned = world.run(10 * RESYNC)
    assert 10 <= world.passes() <= 12
    assert turned <= 10 * RESYNC / TICK_S + 20


def test_what_is_looked_at_closely_is_asked_for_before_the_next_tick(world: World) -> None:
    world.run(RESYNC)
    before = world.passes()
    world.kernel.looks_in = TICK_S / 20
    assert world.run(2 * TICK_S) >= 30
    assert world.passes() - before <= 2, "it is no reason for a pass"


def test_a_renewal_that_is_due_while_the_store_is_away_does_not_spin(world: World) -> None:
    world.run(RESYNC)
    world.store.away = "store is away"
    world.clock.now += world.left - MARGIN + 1
    before, seconds = world.passes(), 20 * BACK_OFF_MAX_S
    world.run(seconds)
    # 0.5, 1, 2 ... 30 s, each at three quarters at the least, and the resyncs.
    assert world.passes() - before <= 8 + seconds / (0.75 * BACK_OFF_MAX_S) + seconds / RESYNC


def test_a_lease_is_renewed_when_the_store_is_back(world: World) -> None:
    world.run(RESYNC)
    world.store.away = "store is away"
    world.clock.now += world.left - MARGIN + 1
    world.run(RESYNC)
    world.store.away = ""
    world.run(2 * BACK_OFF_MAX_S)
    assert world.left > LEASE_TTL - 3 * BACK_OFF_MAX_S
    assert world.report.store.up
    assert world.report.reconcile.back_off == 0


def test_a_lease_is_renewed_in_time_again_and_again(world: World) -> None:
    shortest = [LEASE_TTL]

    def look() -> None:
        shortest[0] = min(shortest[0], world.left)

    turned = world.run(10 * LEASE_TTL, each=look)
    assert shortest[0] > MARGIN - 2 * TICK_S
    assert turned < 10 * LEASE_TTL / TICK_S * 1.3


def test_an_uplink_without_its_address_does_not_spin_and_keeps_the_lease(world: World) -> None:
    world.run(RESYNC)
    world.kernel.failing[Part.UPLINK] = AgentError("eth0 has no IPv4 address")
    before, seconds = world.passes(), 2 * LEASE_TTL
    world.run(seconds)
    assert world.passes() - before <= 8 + seconds / (0.75 * BACK_OFF_MAX_S) + seconds / RESYNC
    assert world.left > 0
    assert "eth0 has no IPv4 address" in world.report.reconcile.error


@pytest.mark.parametrize("jumps", [(-DAY,), (DAY,), (-DAY, DAY), (DAY, -DAY), (LEASE_TTL / 2,), (5.0, -5.0)])
def test_a_clock_that_is_set_costs_no_lease_no_peer_and_no_rest(
    world: World, jumps: tuple[float, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """A day is more than the life of every lease here; the store judges by the wall clock."""
    peers = world.peers(10, 20, 30)
    for lease in peers:
        world.store.put(replace(lease, expires_at=world.clock() + LEASE_TTL), lease)
    world.run(RESYNC)
    before, subnet, start = world.passes(), world.lease.subnet, world.clock.now
    pending = [(start + (2 * n + 0.5) * RESYNC, jump) for n, jump in enumerate(jumps)]
    world.kernel.routed.clear()

    def set_clock() -> None:
        if pending and world.clock.now >= pending[0][0]:
            world.clock.ahead += pending.pop(0)[1]
        # Their agents, on the same machine, notice a little later.
        mine = {lease.subnet for lease in world.store.snapshot().leases}
        if world.clock.now % (4 * TICK_S) < TICK_S:
            for lease in peers:
                if lease.subnet not in mine:
                    world.store.put(replace(lease, expires_at=world.clock() + LEASE_TTL), None)

    world.run(10 * RESYNC, each=set_clock)
    assert not pending
    assert world.passes() - before <= 10 + 3 * (1 + len(jumps)), "no hot loop"
    assert world.passes() - before >= 10, "the resync is not put off"
    for routed in world.kernel.routed:
        assert {lease.subnet for lease in peers} <= set(routed)
    assert MARGIN <= world.left <= LEASE_TTL, "its end is by today's clock"
    assert world.lease.subnet == subnet
    assert world.stored().subnet == subnet
    assert world.stored().expires_at == world.lease.expires_at
    said = [record.getMessage() for record in caplog.records if "wall clock" in record.getMessage()]
    assert len(said) == len(jumps)


def test_a_retry_is_not_put_off_by_a_clock_set_back(world: World) -> None:
    world.kernel.failing[Part.PROGRAMS] = KernelError("no compiler")
    world.full()
    world.kernel.failing.clear()
    world.clock.ahead -= DAY
    world.run(1)
    assert world.report.ready


def test_a_process_of_ours_that_keeps_dying_is_looked_after_without_spinning(world: World) -> None:
    world.run(RESYNC)
    world.kernel.whole = False
    world.kernel.failing[Part.PEERS] = KernelError("the forwarder does not start")
    before = world.passes()
    world.run(10 * RESYNC)
    assert world.passes() - before < 10 * RESYNC / TICK_S + 50
    del world.kernel.failing[Part.PEERS]
    world.kernel.whole = True
    world.run(2 * BACK_OFF_MAX_S)
    assert world.report.reconcile.error == ""


def test_a_process_of_ours_that_dies_is_noticed_at_the_next_turn(world: World) -> None:
    world.full()
    world.kernel.calls.clear()
    alive = iter([True, False])

    def look() -> None:
        world.kernel.whole = next(alive, True)

    world.run(4 * TICK_S, each=look)
    assert world.kernel.calls == [Part.PEERS]


# --- What costs no look at everything -------------------------------------------------


@pytest.fixture
def rare(tmp_path: Path) -> World:
    """An agent that has looked at everything, and has no reason to do so again for a year."""
    world = new_world(tmp_path, resync=365 * DAY)
    world.full()
    world.kernel.calls.clear()
    return world


def test_a_lease_that_leaves_costs_no_look_at_everything(rare: World) -> None:
    leases = rare.peers(10, 20, 30, 40, 50)
    rare.read_store()
    begun = rare.clock.now

    def leave() -> frozenset[Change]:
        if leases and rare.clock.now > begun + 10 * (6 - len(leases)):
            rare.store.delete(leases.pop())
            return LEASES
        return NOTHING

    rare.run(100, each=leave)
    assert not leases
    assert rare.kernel.routed[-1] == (rare.lease.subnet,), "they are gone"
    assert rare.resyncs() == 0


def test_a_renewal_costs_no_look_at_everything(rare: World) -> None:
    rare.run(2 * LEASE_TTL)
    assert rare.left > MARGIN - TICK_S
    assert rare.resyncs() == 0


def test_a_store_that_stays_away_costs_no_look_at_everything(rare: World) -> None:
    rare.store.away = "store is away"
    rare.run(LEASE_TTL)
    assert rare.report.reconcile.back_off == BACK_OFF_MAX_S
    rare.store.away = ""
    rare.run(2 * BACK_OFF_MAX_S)
    assert rare.report.store.up
    assert rare.report.reconcile.back_off == 0
    assert rare.resyncs() == 0


def test_a_clock_that_is_set_costs_no_look_at_everything(rare: World) -> None:
    jumps = iter([0.0, DAY])

    def set_clock() -> None:
        rare.clock.ahead += next(jumps, 0.0)

    rare.run(RESYNC, each=set_clock)
    assert rare.left > LEASE_TTL - RESYNC
    assert rare.resyncs() == 0


# --- Storms of events -----------------------------------------------------------------


def storm(world: World, seconds: float, cost: float) -> tuple[int, float]:
    """Events without a pause for that long, each pass taking `cost` seconds: (passes, share of the time)."""
    begun, before = world.clock.now, world.passes()
    world.kernel.cost, world.kernel.spent = cost, 0.0
    world.run(seconds, turns=1_000_000, each=lambda: PORTS)
    world.kernel.cost = 0.0
    return world.passes() - before, world.kernel.spent / (world.clock.now - begun)


@pytest.mark.parametrize("cost", [0.001, 0.1, 2.0])
def test_a_storm_takes_half_of_the_time_at_the_most(world: World, cost: float) -> None:
    world.full()
    passes, share = storm(world, 60, cost)
    assert 60 / 2 / MAX_GAP_S < passes <= 60 / MIN_GAP_S, "events are still followed"
    assert share <= 0.52


@pytest.mark.parametrize("cost", [0.001, 0.1, 1.0])
@pytest.mark.parametrize("at_first", [True, False])
def test_a_step_that_always_fails_is_not_tried_with_every_event_of_a_storm(
    world: World, at_first: bool, cost: float
) -> None:
    """Such as one whose own attempts are the events, or the compiler that takes a second."""
    if at_first:
        world.full()
    world.kernel.failing[Part.PORTS] = KernelError("no")
    world.full()
    passes, share = storm(world, 200, cost)
    # 0.5, 1, 2, 4, 5 s, 5 s ...
    assert 200 / MAX_GAP_S / 2 < passes <= 200 / MAX_GAP_S + 5
    assert share <= 0.25


def test_what_fails_in_a_storm_is_mended_in_it(world: World) -> None:
    world.full()
    world.kernel.failing[Part.PORTS] = KernelError("no")
    storm(world, 30, 0.1)
    world.kernel.failing.clear()
    storm(world, 2 * RESYNC, 0.1)
    assert (world.report.reconcile.error, world.report.reconcile.back_off) == ("", 0.0)


def test_the_report_is_in_its_file_before_anybody_is_told_by_http(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node was ready by /readyz, and there was no status.json yet."""
    told: list[object] = []
    write = ReportFile.write

    def watched(self: ReportFile, report: AgentReport) -> None:
        assert world.report is not report
        write(self, report)
        told.append(report)

    monkeypatch.setattr(ReportFile, "write", watched)
    world.run(RESYNC)
    assert told
    assert world.report is told[-1]
