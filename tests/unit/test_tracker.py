"""A table followed change by change ends up as one that is compared whole."""

from __future__ import annotations

import sys
from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from ctl.core.errors import KernelError, Unapplied
from ctl.core.plan import Delta, diff
from ctl.core.tracker import Tracker
from tests.unit.test_plan import applied

keys, values = st.integers(0, 5), st.integers(0, 2)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), keys, values),
        st.tuples(st.just("drop"), keys, st.just(0)),
        st.tuples(st.just("settle"), st.just(0), st.just(0)),
        st.tuples(st.just("fail"), st.just(0), st.just(0)),
        st.tuples(st.just("refuse"), keys, st.just(0)),
        st.tuples(st.just("vandal"), keys, values),
    ),
    max_size=30,
)


def tolerant(actual: dict[int, int], delta: Delta[int, int]) -> dict[int, int]:
    """As a kernel's table: what is missing is removed already."""
    present = tuple(key for key in delta.removals if key in actual)
    return applied(actual, Delta(delta.puts, present))


@given(st.dictionaries(keys, values), steps)
def test_whatever_happens_settling_gives_what_is_wanted(
    actual: dict[int, int], story: list[tuple[str, int, int]]
) -> None:
    tracker = Tracker[int, int]()
    for what, key, value in story:
        if what == "put":
            tracker.put(key, value)
        elif what == "drop":
            tracker.drop(key)
        elif what == "vandal":
            actual[key] = value
            tracker.doubt()
        elif what == "refuse":
            actual = refused(tracker, actual, key)
            assert all(actual.get(other) == tracker.desired.get(other) for other in range(6) if other != key)
            assert tracker.known
        else:
            actual = settled(tracker, actual, fail=what == "fail")
            assert what == "fail" or actual == tracker.desired
    assert settled(tracker, actual) == tracker.desired
    assert not tracker


def settled(tracker: Tracker[int, int], actual: dict[int, int], *, fail: bool = False) -> dict[int, int]:
    """What is there after one round; a failing one does half of it."""
    if not tracker.known:
        tracker.saw(actual)
    delta = tracker.delta()
    done = Delta(delta.puts[: len(delta.puts) // 2]) if fail else delta
    with suppress(KernelError), tracker.applying(delta):
        if fail:
            raise KernelError("half of it is done")
    return tolerant(actual, done)


def refused(tracker: Tracker[int, int], actual: dict[int, int], key: int) -> dict[int, int]:
    """What is there after one round in which the kernel refuses to touch `key`."""
    if not tracker.known:
        tracker.saw(actual)
    delta = tracker.delta()
    with suppress(KernelError), tracker.applying(delta):
        raise Unapplied("one entry not applied", [key])
    puts = tuple(put for put in delta.puts if put[0] != key)
    return tolerant(actual, Delta(puts, tuple(gone for gone in delta.removals if gone != key)))


def test_what_is_refused_stays_due_and_nothing_else() -> None:
    tracker = Tracker[int, int]()
    tracker.want({1: 1, 2: 2})
    refused(tracker, {9: 9}, 2)
    assert tracker.delta() == Delta(puts=((2, 2),))
    tracker.doubt()
    refused(tracker, {1: 1, 2: 2, 9: 9}, 9)
    assert tracker.delta() == Delta(removals=(9,))


def test_a_second_half_does_not_settle_what_the_first_left_in_doubt() -> None:
    tracker = Tracker[int, int]()
    tracker.put(1, 1)
    tracker.saw({9: 9})
    with suppress(KernelError), tracker.applying(Delta(puts=((1, 1),))):
        raise KernelError("no memory")
    with tracker.applying(Delta(removals=(9,))):
        pass
    assert not tracker.known


@given(st.dictionaries(keys, values), st.dictionaries(keys, values), st.dictionaries(keys, values))
def test_a_change_costs_what_it_changes(
    actual: dict[int, int], first: dict[int, int], second: dict[int, int]
) -> None:
    tracker = Tracker[int, int]()
    tracker.want(first)
    settled(tracker, actual)
    tracker.want(second)
    assert set(tracker.delta().puts) == set(diff(second, first).puts)
    assert set(tracker.delta().removals) == set(diff(second, first).removals)


def test_what_went_and_came_back_is_not_touched() -> None:
    tracker = Tracker[int, int]()
    tracker.put(1, 1)
    settled(tracker, {})
    tracker.drop(1)
    assert tracker.delta() == Delta(removals=(1,))
    tracker.put(1, 1)
    assert not tracker


def test_a_table_that_was_filled_takes_no_more_memory_than_one_that_was_full() -> None:
    filled, full = Tracker[int, int](), Tracker[int, int]()
    for key in range(1000):
        filled.put(key, key)
        full.put(key, key)
    filled.saw({})
    with filled.applying(delta := filled.delta()):
        pass
    full.saw(dict(delta.puts))
    assert _bytes(filled) == _bytes(full)


def _bytes(tracker: Tracker[int, int]) -> int:
    return sum(map(sys.getsizeof, vars(tracker).values()))
