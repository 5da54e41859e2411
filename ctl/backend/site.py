"""What the parts of a node share: where it stands, how it applies deltas."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ctl.core.errors import KernelError
from ctl.core.findings import Findings
from ctl.core.host import Uplink
from ctl.core.model import Lease, Network
from ctl.core.plan import Delta, diff
from ctl.core.ports import Table
from ctl.core.tracker import Tracker

log = logging.getLogger(__name__)

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Site:
    """Where a node stands at one moment."""

    network: Network
    lease: Lease
    uplink: Uplink
    mtu: int
    """Largest inner IP packet, bytes."""
    bridge: int
    """ifindex; 0: not made yet."""
    sysctls: Path
    """Where kernel settings are noted as they were before us."""
    fenced: bool = False
    """Another host holds our subnet: eBPF carries nothing from or to it."""


def apply(name: str, table: Table[Any, Any], delta: Delta[Any, Any], findings: Findings) -> None:
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


def settle(tables: Sequence[Tracked], findings: Findings, *, stale_first: bool = False) -> None:
    """Bring tables in line with what is wanted of them. KernelError.

    What is new goes in in this order, what is stale comes out in the reverse one: an
    entry never points at one of an earlier table that is not there. `stale_first` makes
    room before, for tables that can be full. After a failure the table is in doubt, and the
    others have their turn all the same: one entry that the kernel refuses keeps no peer out.
    """
    due = [each for each in tables if each.tracker]
    for each in due:
        if not each.tracker.known:
            each.tracker.saw(each.table.read())
    deltas = [(each, each.tracker.delta()) for each in due]
    new = [(each, replace(delta, removals=())) for each, delta in deltas]
    stale = [(each, replace(delta, puts=())) for each, delta in reversed(deltas)]
    failed: list[str] = []
    for each, delta in (*stale, *new) if stale_first else (*new, *stale):
        known = each.tracker.known
        each.tracker.doubt()
        try:
            apply(each.name, each.table, delta, findings)
        except KernelError as error:
            failed.append(str(error))
        else:
            if known:  # not after the first half has failed
                each.tracker.done(delta)
    if failed:
        raise KernelError("; ".join(dict.fromkeys(failed)))


def apply_fitting(
    name: str, table: Table[K, V], desired: Mapping[K, V], room: int, findings: Findings
) -> int:
    """As many of `desired` as there is room for; returns how many have none. KernelError."""
    kept = fitting(desired, table, room)
    delta = diff(kept, table.read())
    apply(name, table, replace(delta, puts=()), findings)  # makes room
    apply(name, table, replace(delta, removals=()), findings)
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
