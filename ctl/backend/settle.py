"""Tables brought in line with what is wanted of them: deltas logged, counted and applied."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ctl.core.errors import Failures
from ctl.core.findings import Findings
from ctl.core.plan import Delta, diff
from ctl.core.ports import Table
from ctl.core.tracker import Tracker

log = logging.getLogger(__name__)

K = TypeVar("K")
V = TypeVar("V")


def apply_counted(name: str, table: Table[Any, Any], delta: Delta[Any, Any], findings: Findings) -> None:
    """Apply a delta that is not empty, log and count it. KernelError."""
    if delta:
        log.debug("%s: %s", name, delta)
        findings.count(name, len(delta))
        table.apply(delta)


@dataclass(frozen=True, slots=True)
class Tracked:
    """A table whose desired state a tracker follows."""

    name: str
    table: Table[Any, Any]
    tracker: Tracker[Any, Any]

    def look(self) -> None:
        """Read the whole table. KernelError."""
        self.tracker.saw(self.table.read())

    def apply(self, delta: Delta[Any, Any], findings: Findings) -> None:
        """Apply it, and let the tracker know what became of it. KernelError."""
        with self.tracker.applying(delta):
            apply_counted(self.name, self.table, delta, findings)


def settle(tables: Sequence[Tracked], findings: Findings, *, stale_first: bool = False) -> None:
    """Bring tables in line with what is wanted of them. KernelError.

    What is new goes in in this order, what is stale comes out in the reverse one: an
    entry never points at one of an earlier table that is not there. `stale_first` makes
    room before, for tables that can be full. Each has its turn, whatever became of the
    others: one entry that the kernel refuses keeps no peer out.
    """
    failures = Failures()
    due = [each for each in tables if each.tracker]
    for each in due:
        if not each.tracker.known:
            failures.take(each.look)
    deltas = [(each, each.tracker.delta()) for each in due if each.tracker.known]
    new = [(each, replace(delta, removals=())) for each, delta in deltas]
    stale = [(each, replace(delta, puts=())) for each, delta in reversed(deltas)]
    for each, delta in (*stale, *new) if stale_first else (*new, *stale):
        failures.take(each.apply, delta, findings)
    failures.raise_any()


def apply_fitting(
    name: str, table: Table[K, V], desired: Mapping[K, V], room: int, findings: Findings
) -> int:
    """As many of `desired` as there is room for; returns how many have none. KernelError."""
    kept = fitting(desired, table, room)
    delta = diff(kept, table.read())
    apply_counted(name, table, replace(delta, puts=()), findings)  # makes room
    apply_counted(name, table, replace(delta, removals=()), findings)
    return len(desired) - len(kept)


def fitting(desired: Mapping[K, V], table: Table[K, V], room: int) -> Mapping[K, V]:
    """As many of `desired` as there is room for; what is in already stays in.

    The table is read only if it must be: mostly everything fits.
    """
    if len(desired) <= room:
        return desired
    present = table.read()
    keys = sorted(desired, key=lambda key: key not in present)  # stable: else in their order
    return {key: desired[key] for key in keys[:room]}
