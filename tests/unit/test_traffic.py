"""Rates between two readings."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctl.core.abi import Counter, Direction, Hook
from ctl.core.reasons import labelled
from ctl.core.traffic import Place, Reading, Span, rates, short
from tests.datapath import flow_in, flow_out

SECOND = 10**9
COUNTS = st.integers(0, 2**64 - 1)
TABLES = st.dictionaries(st.integers(0, 5), st.tuples(COUNTS, COUNTS))


@given(TABLES, TABLES, st.floats(0.1, 3600))
def test_a_rate_is_never_less_than_nothing_nor_more_than_was_counted(
    before: dict[int, tuple[int, int]], after: dict[int, tuple[int, int]], seconds: float
) -> None:
    """Whatever was removed, came or began to count anew meanwhile."""
    found = rates(before, after, seconds)
    assert found.keys() == after.keys()
    for key, each in found.items():
        assert all(
            0 <= rate * seconds <= now * (1 + 1e-9) for rate, now in zip(each, after[key], strict=True)
        )


@given(st.dictionaries(st.integers(), st.tuples(COUNTS)), COUNTS, st.floats(0.1, 3600))
def test_what_has_counted_on_is_told_exactly(
    before: dict[int, tuple[int]], more: int, seconds: float
) -> None:
    after = {key: (was + more,) for key, (was,) in before.items()}
    assert rates(before, after, seconds) == dict.fromkeys(before, (more / seconds,))


def reading(at_s: float, **parts: object) -> Reading:
    return Reading(int(at_s * SECOND), **parts)  # type: ignore[arg-type]


def test_flows_that_rest_are_left_out_and_new_ones_are_in() -> None:
    busy, idle, new = (flow_out(sport=port).pack() for port in (1, 2, 3))
    before = reading(10, flows={busy: (100,), idle: (7,)})
    after = reading(12, flows={busy: (300,), idle: (7,), new: (50,)})
    assert Span(before, after).flows == {busy: 100.0, new: 25.0}


def test_of_a_container_both_directions_of_its_port_bypass() -> None:
    out, back, other = flow_out(), flow_in(), flow_out(ifindex=99)
    place = Place(IPv4Address("10.1.1.5"), out.ifindex)
    before = reading(0, containers={place: (0, 0, 0, 0)})
    after = reading(
        2,
        containers={place: (20, 2000, 40, 4000)},
        flows={out.pack(): (10,), back.pack(): (6,), other.pack(): (1000,)},
    )
    assert Span(before, after).containers == {place: (10, 1000, 20, 2000, 8)}


def test_gears_are_of_the_time_between_not_since_the_maps_were_made() -> None:
    encap, learned = labelled("encap").number, labelled("learned").number
    before = reading(0, counters={(Hook.FROM_CONTAINER, encap): Counter(1000, 10)})
    after = reading(
        1,
        counters={
            (Hook.FROM_CONTAINER, encap): Counter(1075, 7510),
            (Hook.TO_OVERLAY, learned): Counter(25, 2500),
        },
    )
    found = Span(before, after).gears
    assert found[Direction.OUT, "bypass"] == (75, 7500, 75)
    assert found[Direction.OUT, "kernel"] == (25, 2500, 25)
    assert found[Direction.IN, "bypass"] == (0, 0, 0)


@pytest.mark.parametrize(
    ("rate", "text"),
    [(0, "0"), (0.5, "0.5"), (7, "7"), (999.4, "999"), (999.6, "1k"), (12_345, "12.3k"), (4.1e9, "4.1G")],
)
def test_rates_for_people_have_three_digits(rate: float, text: str) -> None:
    assert short(rate) == text
