"""The vxlan backend's kernel path in one family: who the peers are, how each is reached, its tables of them.

Where a plan fails there is none to go on from: the next one is made from the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network
from typing import Generic

from ctl.backend.settle import Tracked, settle
from ctl.backend.site import Site
from ctl.core.family import Family, Member
from ctl.core.findings import Findings
from ctl.core.host import Change, Hop, Removed, Uplink
from ctl.core.model import A, Lease, N, Network
from ctl.core.peers import KernelTables
from ctl.core.roster import Moves, Roster
from ctl.kernel.netlink.socket import Rtnl
from ctl.kernel.netlink.tables import Fdb, Routes, VtepNeighbours
from ctl.kernel.senders import Senders

Place = tuple[Network, Lease, Uplink, tuple[IPv4Network | IPv6Network, ...], int]
"""Network, own lease, uplink, its networks and ifindex of the tunnel device: what a plan is made for."""

Ways = Callable[[set[A], bool], Mapping[A, Hop[A] | None]]
"""How the FIB reaches these hosts; True: they are all that there are. KernelError."""


@dataclass(frozen=True, slots=True)
class Step(Generic[A, N]):
    """What a plan has come to, beside what was before."""

    anew: bool
    """Whether there is nothing before: all peers are new."""
    moves: Moves[Member[A, N]]
    rehopped: Collection[A]
    """Hosts known before that are reached in another way."""


class KernelPath(Generic[A, N]):
    """Plan and tables of the peers. One thread's, but for `wants`."""

    def __init__(self, rtnl: Rtnl, family: Family[A, N]) -> None:
        self._rtnl, self._family = rtnl, family
        self.place: Place | None = None
        """What the plan is for; None: there is none to go on from."""
        self.roster: Roster[A, N]
        self.hops: dict[A, Hop[A] | None] = {}
        """How the FIB reaches each peer's host; None: it does not, or not by one way for all packets."""
        self.tables: KernelTables[A, N] | None = None
        """The plan; None: there has been none yet."""

    @property
    def problems(self) -> tuple[str, ...]:
        """A line for each lease that is not used, by the last plan."""
        return self.roster.problems if self.tables else ()

    def wants(self, entry: Removed) -> bool:
        """Whether an entry that is no more should be there. Any thread may ask."""
        tables = self.tables
        return tables is not None and tables.wants(entry)

    def senders(self) -> Collection[A] | None:
        """Hosts that may send us VXLAN; None as long as nobody knows who they are."""
        return None if self.tables is None else self.tables.senders.desired.keys()

    def hop_interfaces(self) -> frozenset[int]:
        """Ifindexes of the underlay through which peers are reached now."""
        return frozenset(hop.ifindex for hop in self.hops.values() if hop is not None)

    def plan(
        self,
        site: Site,
        device: int,
        leases: Sequence[Lease],
        changes: frozenset[Change],
        ways: Ways[A],
    ) -> Step[A, N]:
        """What these leases ask for. KernelError. `device`: ifindex of the vxlan device; 0: there is none."""
        place = site.network, replace(site.lease, expires_at=None), site.uplink, site.underlay, device
        anew, self.place = place != self.place, None
        if anew:
            self.roster = Roster(self._family, site.lease, site.network, site.underlay)
        moves = self.roster.update(leases)
        rehopped = self._follow_hops(moves, ways, everyone=anew or Change.HOPS in changes)
        # Not before: without their entries the maps, which follow, would refuse all peers.
        if anew or self.tables is None:
            self.tables = KernelTables(self._family, self.roster, site.network, device)
        self.tables.move(moves, rehopped, self.hops)
        self.place = place
        if Change.PEERS in changes:
            self.tables.doubt()
        elif Change.HOPS in changes and site.network.direct_routing:
            # The underlay's interfaces take plain routes along without a word: down, or no address.
            self.tables.routes.doubt()
        return Step(anew, moves, rehopped)

    def _follow_hops(self, moves: Moves[Member[A, N]], ways: Ways[A], *, everyone: bool) -> list[A]:
        """Look up how to reach new hosts, or all; returns those known before whose way has changed."""
        new = {lease.host for lease in moves.new if lease.host not in self.hops}
        found = ways(set(self.roster.hosts()) if everyone else new, everyone)
        changed = [host for host, hop in found.items() if self.hops.get(host, hop) != hop]
        if everyone:
            self.hops = {}
        self.hops.update(found)
        for lease in moves.gone:
            if not self.roster.at(lease.host):
                self.hops.pop(lease.host, None)
        return changed

    def route(self, findings: Findings) -> None:
        """The kernel's tables, if there is a plan and a device for it. KernelError."""
        if self.tables is None or self.place is None:
            return
        *_, device = self.place
        if device:
            rtnl, family, tables = self._rtnl, self._family, self.tables
            settle(
                [
                    Tracked("senders", Senders(family), tables.senders),
                    Tracked("fdb", Fdb(rtnl, family, device), tables.fdb),
                    Tracked("neighbours", VtepNeighbours(rtnl, family, device), tables.neighbours),
                    Tracked("routes", Routes(rtnl, family), tables.routes),
                ],
                findings,
            )
