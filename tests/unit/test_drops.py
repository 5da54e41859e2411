"""Dropped packets in the log."""

from __future__ import annotations

import pytest

from ctl.agent.drops import SHOWN, WINDOW_S, DropLog
from ctl.core.abi import Event, Hook

UNKNOWN_VTEP, SPOOFED = 40, 41


def event(number: int = SPOOFED, hook: Hook = Hook.FROM_WIRE) -> Event:
    return Event(0, 2, 1450, number, hook, b"\x02\x42")


def test_a_dropped_packet_is_shown_with_where_and_why_and_its_bytes() -> None:
    assert DropLog().lines([event()], 0) == [
        "dropped at from_wire, interface 2: inner source address is not the sending peer's; 1450 bytes: 0242"
    ]


def test_few_drops_are_all_shown() -> None:
    log = DropLog()
    said = [line for turn in range(SHOWN) for line in log.lines([event()], turn)]
    assert len(said) == SHOWN
    assert log.lines([], 10 * WINDOW_S) == [], "nothing was left out"


def test_a_flood_gives_a_few_lines_and_a_count_of_what_was_left_out() -> None:
    """A ring full of samples every five seconds, for ten minutes."""
    log = DropLog()
    said = [line for turn in range(120) for line in log.lines([event()] * 512, 5.0 * turn)]
    said += log.lines([], 600)
    assert len(said) == 10 * (SHOWN + 1)
    left_out = [line for line in said if "more samples" in line]
    assert (
        left_out
        == [
            "dropped at from_wire: inner source address is not the sending peer's: "
            f"{12 * 512 - SHOWN} more samples in 60 s, not shown"
        ]
        * 10
    )


@pytest.mark.parametrize("other", [event(UNKNOWN_VTEP), event(hook=Hook.FROM_CONTAINER)])
def test_a_flood_of_one_kind_hides_no_other(other: Event) -> None:
    log = DropLog()
    log.lines([event()] * 512, 0)
    assert len(log.lines([event(), other, event()], 5)) == 1


def test_what_is_over_is_told_though_nothing_follows() -> None:
    log = DropLog()
    log.lines([event()] * 10, 0)
    assert log.lines([], WINDOW_S - 1) == []
    assert len(log.lines([], WINDOW_S + 5)) == 1
    assert log.lines([], 3 * WINDOW_S) == [], "once"
