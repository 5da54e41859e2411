"""Tables brought in line together: order, and what a failure does to the others."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from ctl.backend.settle import Tracked, settle
from ctl.core.errors import KernelError, Unapplied
from ctl.core.findings import Findings
from ctl.core.plan import Delta
from ctl.core.tracker import Tracker


class Fake:
    """A table that writes down what it is told, and refuses one key."""

    def __init__(self, name: str, story: list[str], refuses: int = 0, tells: bool = False) -> None:
        self.name, self.story, self.refuses, self.tells = name, story, refuses, tells
        self.there: dict[int, int] = {}
        self.readable = True

    def read(self) -> Mapping[int, int]:
        if not self.readable:
            raise KernelError(f"{self.name} cannot be read")
        return dict(self.there)

    def apply(self, delta: Delta[int, int]) -> None:
        self.story.append(f"{self.name} +{len(delta.puts)} -{len(delta.removals)}")
        for key in delta.removals:
            self.there.pop(key, None)
        self.there.update((key, value) for key, value in delta.puts if key != self.refuses)
        if any(key == self.refuses for key, _ in delta.puts):
            why = f"{self.name}: 1 entries not applied"
            raise Unapplied(why, [self.refuses]) if self.tells else KernelError(why)


def tracked(*tables: Fake) -> list[Tracked]:
    made = []
    for table in tables:
        tracker = Tracker[int, int]()
        tracker.want({1: 1, 2: 2})
        made.append(Tracked(table.name, table, tracker))
    return made


def test_new_in_order_stale_in_reverse() -> None:
    story: list[str] = []
    first, second = Fake("first", story), Fake("second", story)
    first.there = second.there = {9: 9}
    tables = tracked(first, second)
    settle(tables, Findings())
    assert story == ["first +2 -0", "second +2 -0", "second +0 -1", "first +0 -1"]
    story.clear()
    settle(tables, Findings())
    assert story == []


def test_one_entry_that_is_refused_keeps_no_other_out() -> None:
    story: list[str] = []
    first, second = Fake("first", story, refuses=1), Fake("second", story)
    tables = tracked(first, second)
    with pytest.raises(KernelError, match="first: 1 entries not applied"):
        settle(tables, Findings())
    assert (first.there, second.there) == ({2: 2}, {1: 1, 2: 2})
    assert not tables[0].tracker.known, "what is there has to be read again"
    first.refuses = 0
    settle(tables, Findings())
    assert first.there == {1: 1, 2: 2}


def test_a_table_that_says_what_it_refused_is_asked_for_no_more_than_that() -> None:
    story: list[str] = []
    table = Fake("first", story, refuses=1, tells=True)
    tables = tracked(table)
    with pytest.raises(KernelError, match="first: 1 entries not applied"):
        settle(tables, Findings())
    table.refuses, table.readable = 0, False
    settle(tables, Findings())
    assert (table.there, story) == ({1: 1, 2: 2}, ["first +2 -0", "first +1 -0"])


def test_a_table_that_cannot_be_read_keeps_no_other_from_its_turn() -> None:
    story: list[str] = []
    first, second = Fake("first", story), Fake("second", story)
    first.readable = False
    with pytest.raises(KernelError, match="first cannot be read"):
        settle(tracked(first, second), Findings())
    assert (first.there, second.there) == ({}, {1: 1, 2: 2})
