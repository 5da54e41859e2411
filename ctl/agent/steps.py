"""What a pass of the agent does: a table of steps, walked from top to bottom.

A change is a hint that a part of the node may differ from what is wanted; a step is taken if one
of its changes is there, and may add changes for the steps below it. So the table answers which
steps a change means, and in which order: a route of the underlay is HOPS, which is the peers' step
alone. The kernel path comes before the shortcut, and is whole whatever becomes of that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from ctl.cluster.membership import Membership
from ctl.core import following
from ctl.core.errors import Failures
from ctl.core.host import EVERYTHING, Change
from ctl.core.ports import Kernel

log = logging.getLogger(__name__)

NOTHING: Final = frozenset[Change]()


class Part(StrEnum):
    """What a step looks after."""

    UPLINK = "uplink"
    """Which address and interface of the underlay are ours."""
    STORE = "store"
    """Our lease in the store, and everyone else's."""
    DEVICES = "devices"
    """Kernel settings, tunnel device and bridge."""
    PEERS = "peers"
    """The ways to the other nodes: routes, and the maps once there are any."""
    FIREWALL = "firewall"
    """Our rules."""
    PROGRAMS = "programs"
    """Maps and programs: compiled, loaded, pinned."""
    PORTS = "ports"
    """Containers, and programs on interfaces."""


@dataclass(frozen=True, slots=True)
class Step:
    """A row of the table."""

    part: Part
    on: frozenset[Change]
    """The step is taken if one of these is there."""
    adds: frozenset[Change] = NOTHING
    """What it may add. All of it, if it fails: nobody knows how far it has come."""


STEPS: Final = (
    Step(Part.UPLINK, frozenset({Change.DEVICES}), adds=frozenset({Change.LEASES, Change.FIREWALL})),
    Step(Part.STORE, frozenset({Change.LEASES}), adds=EVERYTHING),
    Step(Part.DEVICES, frozenset({Change.DEVICES}), adds=EVERYTHING),
    Step(Part.PEERS, frozenset({Change.LEASES, Change.HOPS, Change.PEERS})),
    Step(Part.FIREWALL, frozenset({Change.FIREWALL})),
    Step(Part.PROGRAMS, frozenset({Change.DEVICES}), adds=frozenset({Change.MAPS})),
    Step(Part.PEERS, frozenset({Change.MAPS})),
    Step(Part.PORTS, frozenset({Change.DEVICES, Change.PORTS, Change.FILTERS})),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a pass."""

    parts: tuple[Part, ...]
    """The parts that had their turn, in order."""
    error: str = ""
    """Why it failed, one line; empty if it did not."""
    about: frozenset[Change] = NOTHING
    """The changes that it was begun for, and those that were heard in time."""
    left: frozenset[Change] = NOTHING
    """Those that were not, for the next pass."""


Do = Callable[[Part, frozenset[Change]], frozenset[Change]]
"""Looks after a part because of these changes, and returns those that follow. Raises OvnetError."""


Heard = Callable[[], frozenset[Change]]
"""What others have posted since it was called last."""


def walk(changes: frozenset[Change], do: Do, heard: Heard = lambda: NOTHING) -> Outcome:
    """Take the steps that `changes` mean. Every step has its turn, whatever became of those above.

    What has happened before a step looks, it sees: so what is heard by then (mostly of this pass's own
    work) is this pass's affair, unless a step above would have to look at it again.
    """
    parts: list[Part] = []
    failures = Failures()
    about, above, left = changes, NOTHING, NOTHING
    for step in STEPS:
        news = heard()
        left |= news & above
        about |= news - above
        changes |= news - above
        above |= step.on
        due = step.on & changes
        if due:
            parts.append(step.part)
            added = failures.take(do, step.part, due)
            changes |= step.adds if added is None else added
    return Outcome(tuple(parts), str(failures), about, left)


class Pass:
    """Takes the steps on one node. One thread's."""

    def __init__(self, kernel: Kernel, membership: Membership, heard: Heard) -> None:
        self._kernel, self._membership, self._heard = kernel, membership, heard
        self._fenced = False
        """Whether the kernel has been told that another host holds our subnet."""

    def run(self, changes: frozenset[Change]) -> Outcome:
        """Look after what `changes` mean. Anything but an OvnetError is a bug, and is raised."""
        return walk(changes, self._do, self._heard)

    def _do(self, part: Part, changes: frozenset[Change]) -> frozenset[Change]:
        kernel, holding = self._kernel, self._membership.holding
        match part:
            case Part.UPLINK:
                return self._follow_uplink()
            case Part.STORE:
                return self._read_store()
            case Part.DEVICES:
                return kernel.reconcile_devices(holding)
            case Part.PEERS:
                self._reconcile_peers(changes)
            case Part.FIREWALL:
                kernel.reconcile_firewall(holding)
            case Part.PROGRAMS:
                return kernel.load_programs(holding)
            case Part.PORTS:
                kernel.reconcile_ports(holding, changes)
        return NOTHING

    def _follow_uplink(self) -> frozenset[Change]:
        """The lease and the rules have to name the address and the interface that are ours now."""
        identity = self._kernel.follow_uplink()
        if identity is None:
            return NOTHING
        self._membership.present(identity)
        return frozenset({Change.LEASES, Change.FIREWALL})

    def _read_store(self) -> frozenset[Change]:
        """The store being away changes nothing else. Where fencing begins or ends, all has to be told."""
        self._membership.sync()
        before, self._fenced = self._fenced, self._membership.holding.fenced
        return EVERYTHING if self._follow_network() or self._fenced is not before else NOTHING

    def _follow_network(self) -> bool:
        """Whether the node is to be another one. KernelError or AgentError if it cannot be that."""
        membership, wanted = self._membership, self._membership.wanted
        if wanted == membership.network:
            return False
        self._kernel.follow_network(wanted)
        said = following.changes(membership.network, wanted)
        log.warning("the network's config has changed, and is followed: %s", said)
        membership.network = wanted
        return True

    def _reconcile_peers(self, changes: frozenset[Change]) -> None:
        """Not before the leases have been read once: what an earlier life has left is not to be removed."""
        snapshot = self._membership.snapshot
        if snapshot is not None:
            self._kernel.reconcile_peers(self._membership.holding, snapshot.leases, changes)
