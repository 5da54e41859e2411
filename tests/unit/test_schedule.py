"""When the agent does what."""

from __future__ import annotations

import math

import pytest

from ctl.agent.schedule import MAX_GAP_S, MIN_GAP_S, TICK_S, Schedule
from ctl.agent.steps import NOTHING, Outcome
from ctl.core.host import EVERYTHING, Change
from ctl.core.report import ReconcileReport
from tests.unit.world import DAY, RESYNC

NEVER = math.inf
PORTS = frozenset({Change.PORTS})
LEASES = frozenset({Change.LEASES})
GOOD, BAD = Outcome(()), Outcome((), "no compiler")


def reconciled(took: float = 0.01, ok: int = 2, error: str = "") -> ReconcileReport:
    return ReconcileReport(RESYNC, ok=ok, last_duration=took, error=error)


def ready(now: float = 0.0, took: float = 0.01, interval: float = RESYNC) -> Schedule:
    """Of an agent that has looked at everything, which ended at `now`."""
    schedule = Schedule(interval)
    schedule.passed(now, EVERYTHING, GOOD, reconciled(took))
    return schedule


def test_it_begins_with_everything() -> None:
    assert Schedule(RESYNC).due(0, NOTHING, NEVER) == EVERYTHING


def test_nothing_is_due_while_nothing_happens() -> None:
    assert ready().due(RESYNC - 1, NOTHING, NEVER) == NOTHING


def test_what_is_posted_is_due_and_no_more() -> None:
    assert ready().due(1, PORTS, NEVER) == PORTS


def test_everything_is_due_again_an_interval_after_the_last_one_began() -> None:
    schedule = ready(now=10, took=2)
    assert schedule.due(8 + RESYNC - 0.1, NOTHING, NEVER) == NOTHING
    assert schedule.due(8 + RESYNC, NOTHING, NEVER) == EVERYTHING


def test_a_store_that_is_to_be_looked_at_is_all_that_is_due() -> None:
    assert ready().due(1, NOTHING, 0) == LEASES
    assert ready().due(1, PORTS, -3) == PORTS | LEASES
    assert ready().due(1, NOTHING, 0.1) == NOTHING


def test_a_store_that_did_not_answer_is_asked_again_by_its_own_back_off() -> None:
    schedule = ready()
    schedule.asked(0, answered=False)
    assert schedule.due(0.3, NOTHING, -1) == NOTHING, "due or not, it has just been asked"
    assert schedule.due(1, NOTHING, -1) == LEASES
    assert schedule.back_off == 0.5
    schedule.asked(1, answered=True)
    assert schedule.back_off == 0
    assert schedule.due(2, NOTHING, NEVER) == NOTHING


def test_what_failed_is_tried_again_as_everything_less_and_less_often() -> None:
    schedule, now, waits = ready(interval=DAY), 0.0, []
    for _ in range(10):
        schedule.passed(now, PORTS, BAD, reconciled(error="no compiler"))
        waits.append(schedule.back_off)
        assert schedule.due(now, NOTHING, NEVER) == NOTHING
        now += 1.25 * schedule.back_off
        assert schedule.due(now, NOTHING, NEVER) == EVERYTHING
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30]


def test_only_a_pass_over_everything_ends_the_tries() -> None:
    schedule = ready()
    schedule.passed(0, EVERYTHING, BAD, reconciled(error="no compiler"))
    schedule.passed(0.1, PORTS, GOOD, reconciled(error="no compiler"))
    assert schedule.back_off == 0.5
    schedule.passed(0.2, EVERYTHING, GOOD, reconciled())
    assert schedule.back_off == 0


def test_any_word_makes_an_agent_that_is_not_ready_try_everything() -> None:
    schedule = Schedule(RESYNC)
    schedule.passed(0, EVERYTHING, BAD, reconciled(ok=0, error="no compiler"))
    assert schedule.due(0.2, NOTHING, NEVER) == NOTHING
    assert schedule.due(0.2, PORTS, NEVER) == EVERYTHING


def test_only_a_pass_over_everything_makes_it_ready_and_nothing_takes_that_back() -> None:
    schedule, seen = Schedule(RESYNC), []
    for changes, outcome in ((PORTS, GOOD), (EVERYTHING, BAD), (EVERYTHING, GOOD), (EVERYTHING, BAD)):
        schedule.passed(0, changes, outcome, reconciled(error=outcome.error))
        seen.append(schedule.ready)
    assert seen == [False, False, True, True], "it forwards, though something is wrong"


@pytest.mark.parametrize(
    ("changes", "took", "gap"),
    [
        (PORTS, 0.001, MIN_GAP_S),
        (PORTS, 2.0, 2.0),
        (EVERYTHING, 30.0, MAX_GAP_S),
        (LEASES, 0.001, 0.001),
        (LEASES, 2.0, MIN_GAP_S),
    ],
)
def test_a_pass_is_followed_by_a_gap_as_long_as_it_took(
    changes: frozenset[Change], took: float, gap: float
) -> None:
    schedule = ready()
    schedule.passed(100, changes, GOOD, reconciled(took))
    assert schedule.gather(100) == pytest.approx(gap)
    assert schedule.gather(100 + gap) <= 1e-9


def test_the_first_pass_which_compiles_is_followed_by_a_short_gap() -> None:
    schedule = Schedule(RESYNC)
    schedule.passed(100, EVERYTHING, GOOD, reconciled(took=3, ok=1))
    assert schedule.gather(100) == pytest.approx(MIN_GAP_S)


def test_a_pass_that_failed_is_followed_by_a_longer_gap() -> None:
    schedule = ready()
    schedule.passed(100, PORTS, BAD, reconciled(0.5, error="no"))
    assert schedule.gather(100) == pytest.approx(2.0), "a fifth of the time at the most"
    schedule.passed(100, PORTS, BAD, reconciled(10, error="no"))
    assert schedule.gather(100) == pytest.approx(MAX_GAP_S)


def test_a_pause_is_as_long_as_the_next_thing_due_lets_it() -> None:
    schedule = ready(took=0)
    assert schedule.pause(0, NEVER) == TICK_S
    assert schedule.pause(RESYNC - 1, NEVER) == 1
    assert schedule.pause(0, 2) == 2
    schedule.asked(0, answered=False)
    assert 0.3 < schedule.pause(0, -1) < 1, "until the back-off ends"
    schedule = ready()
    schedule.passed(0, PORTS, BAD, reconciled(error="no"))
    assert 0.3 < schedule.pause(0, NEVER) < 1


def test_a_pause_is_no_longer_than_systemd_waits_for_a_sign_of_life() -> None:
    schedule = Schedule(RESYNC, 1.5)
    schedule.passed(0, EVERYTHING, GOOD, reconciled())
    assert schedule.pause(0, NEVER) == 1.5
    assert Schedule(RESYNC, 100).pause(0, NEVER) <= TICK_S
