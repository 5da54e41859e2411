"""What counters say of a node's own work."""

from __future__ import annotations

import pytest

from ctl.core.sight import LATELY_S, LEAST, Growth, Sight


def looks(sight: Sight, *counts: tuple[int, int]) -> list[bool]:
    """(passed, seen) each time."""
    return [sight.looked(seen, passed, seen) for passed, seen in counts]


@pytest.mark.parametrize(
    ("counts", "blind"),
    [
        ([(5, 900), (5, 900), (5, 900)], False),
        ([(5, 900), (5 + LEAST, 900)], True),
        ([(5, 900), (5 + LEAST - 1, 900)], False),
        ([(5, 900), (5 + LEAST, 900 + LEAST)], False),
        ([(5, 900), (5 + LEAST, 900 + 10 * LEAST)], False),
        ([(5, 900), (500, 901)], True),
        ([(5, 900), (3, 900)], False),
        ([(5, 900), (500, 2)], False),
    ],
    ids=["an idle node", "nothing seen", "too few to tell", "all seen", "as many segments", "ARP seen",
         "another device", "other maps"],
)  # fmt: skip
def test_a_program_is_blind_if_what_passes_is_not_seen(counts: list[tuple[int, int]], blind: bool) -> None:
    assert looks(Sight(), *counts)[-1] is blind


def test_a_trickle_adds_up() -> None:
    assert looks(Sight(), *((each, 0) for each in range(LEAST + 1))) == [False] * LEAST + [True]


def test_what_is_on_its_way_between_two_readings_is_no_blindness() -> None:
    """A burst that ends just then: the place has counted all of it at the next look, and nothing is new."""
    sight = Sight()
    assert [sight.looked(*each) for each in ((0, 0, 0), (900, 1000, 1100), (1100, 1100, 1100))] == [False] * 3


def test_a_blind_program_that_sees_the_next_packet_is_not_blind() -> None:
    sight = Sight()
    assert looks(sight, (0, 0), (50, 0), (50, 0)) == [False, True, True]
    assert looks(sight, (51, 1)) == [False]


def test_another_program_is_judged_anew() -> None:
    sight = Sight()
    assert looks(sight, (0, 0), (50, 0))[-1]
    sight.forget()
    assert looks(sight, (60, 0), (60, 0)) == [False, False]


def test_a_count_grows_until_it_has_stood_still_for_a_while() -> None:
    growth = Growth()
    assert list(growth.looked({"one": 7, "two": 0}, 100)) == [], "what an earlier life has counted"
    assert list(growth.looked({"one": 8, "two": 0}, 105)) == ["one"]
    assert list(growth.looked({"one": 8, "two": 3, "three": 1}, 110)) == ["one", "two", "three"]
    assert list(growth.looked({"one": 8, "two": 3, "three": 1}, 105 + LATELY_S)) == ["two", "three"]
    assert list(growth.looked({"one": 8, "two": 3, "three": 1}, 110 + LATELY_S)) == []


def test_a_count_that_began_anew_grows_from_nothing() -> None:
    growth = Growth()
    growth.looked({"one": 700}, 0)
    assert list(growth.looked({"one": 0}, 5)) == []
    assert list(growth.looked({}, 10)) == [], "the rule is gone"
    assert list(growth.looked({"one": 2}, 15)) == ["one"]
