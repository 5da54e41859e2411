"""The vxlan backend's way to each peer: tables of the kernel path, maps of the shortcut.

At start the kernel path is whole before there is a map. Later the maps come first: they say
who may send to us, and a route brings answers.

Follows the leases change by change. Whatever fails, the next time begins from the whole:
plan and tables are then made anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address

from ctl.backend.site import Site, Tracked, apply_fitting, settle
from ctl.core.errors import KernelError
from ctl.core.findings import Findings
from ctl.core.host import Change, Hop, Removed, Uplink
from ctl.core.model import VXLAN_OVERHEAD, Lease, Network
from ctl.core.peers import PeerTables
from ctl.core.roster import Moves, Roster
from ctl.kernel.bpf.maps import Maps
from ctl.kernel.netlink import fib, xfrm
from ctl.kernel.netlink.socket import Rtnl
from ctl.kernel.netlink.tables import Fdb, Routes, VtepNeighbours

Place = tuple[Network, Lease, Uplink, int]
"""Network, own lease, uplink and ifindex of the tunnel device: what a plan is made for."""


class Peering:
    """Plan and tables of the peers. One thread's, but for `wants`.

    `room`: how many entries the maps have for peers.
    """

    def __init__(self, rtnl: Rtnl, findings: Findings, room: int) -> None:
        self._rtnl, self._findings, self._room = rtnl, findings, room
        self._policies = xfrm.Policies()
        self._place: Place | None = None
        """What the plan is for; None: there is none to go on from."""
        self._roster: Roster
        self._tables: PeerTables | None = None
        self._hops: dict[IPv4Address, Hop | None] = {}
        self._filled: Maps | None = None
        """The maps that the plan's trackers are about."""

    def wants(self, entry: Removed) -> bool:
        """Whether an entry that is no more should be there. Any thread may ask."""
        tables = self._tables
        return tables is not None and tables.wants(entry)

    def fits(self) -> bool:
        """Whether the maps have room for all peers; False as long as nobody knows who they are."""
        tables = self._tables
        return tables is not None and max(len(tables.peers.desired), len(tables.vteps.desired)) <= self._room

    def hop_interfaces(self) -> frozenset[int]:
        """Ifindexes of the underlay through which peers are reached now."""
        return frozenset(hop.ifindex for hop in self._hops.values() if hop is not None)

    def reconcile_routes(
        self, site: Site, device: int, leases: Sequence[Lease], changes: frozenset[Change]
    ) -> None:
        """The kernel path: FDB and neighbours of `device`, routes. KernelError."""
        place = site.network, replace(site.lease, expires_at=None), site.uplink, device
        anew, self._place = place != self._place, None
        if anew:
            self._roster = Roster(site.lease, site.network)
        moves = self._roster.update(leases)
        rehopped = self._follow_hops(moves, site, everyone=anew or Change.HOPS in changes)
        # Not before: without their entries the maps, which follow, would refuse all peers.
        if anew:
            self._tables = PeerTables(self._roster, site.network, device)
        assert self._tables is not None
        self._tables.move(moves, rehopped, self._hops)
        self._place = place
        if Change.PEERS in changes:
            self._tables.doubt()
        elif Change.HOPS in changes and site.network.direct_routing:
            # The underlay's interfaces take plain routes along without a word: down, or no address.
            self._tables.routes.doubt()
        self._findings.problems["leases"] = self._roster.problems
        self._findings.peers_ebpf, self._findings.peers_kernel_path = 0, len(self._roster.usable)
        if self._filled is not None and self.fits():
            # Who is routed to answers at once, and must not be a stranger then.
            with suppress(KernelError):  # said when the maps have their own turn
                self._fill(self._filled, self._tables)
        if device:
            self._settle_routes(self._tables, device)

    def _follow_hops(self, moves: Moves, site: Site, *, everyone: bool) -> list[IPv4Address]:
        """Look up how to reach new hosts, or all; returns those known before whose way has changed.

        None by eBPF where IPsec has a say.
        """
        ipsec = self._policies.any()
        text = "IPsec policies are set: all peers by the kernel path, which meets them"
        self._findings.problems["ipsec"] = (text,) if ipsec else ()
        new = {lease.host for lease in moves.new if lease.host not in self._hops}
        hosts = set(self._roster.hosts()) if everyone else new
        underlay = site.mtu + VXLAN_OVERHEAD
        found = dict.fromkeys(hosts) if ipsec else fib.hops(self._rtnl, hosts, site.uplink, underlay)
        changed = [host for host, hop in found.items() if self._hops.get(host, hop) != hop]
        if everyone:
            self._hops = found
        self._hops.update(found)
        for lease in moves.gone:
            if not self._roster.at(lease.host):
                self._hops.pop(lease.host, None)
        return changed

    def _settle_routes(self, tables: PeerTables, device: int) -> None:
        settle(
            [
                Tracked("fdb", Fdb(self._rtnl, device), tables.fdb),
                Tracked("neighbours", VtepNeighbours(self._rtnl, device), tables.neighbours),
                Tracked("routes", Routes(self._rtnl), tables.routes),
            ],
            self._findings,
        )

    def reconcile_maps(self, maps: Maps, *, bypassing: bool) -> None:
        """The shortcut. What does not fit stays on the kernel path. KernelError."""
        tables = self._tables
        if tables is None:
            return
        left = self._fill(maps, tables)
        text = f"map peers is full: {left} subnets by the kernel path only, raise --peers-max"
        self._findings.problems["peers"] = (text,) if left else ()
        if bypassing:
            subnets = len(tables.routes.desired)
            self._findings.peers_ebpf = max(subnets - left - tables.slow(), 0)
            self._findings.peers_kernel_path = subnets - self._findings.peers_ebpf

    def _fill(self, maps: Maps, tables: PeerTables) -> int:
        """Bring both maps in line; returns how many entries of `peers` there is no room for."""
        if maps is not self._filled:
            self._filled = maps
            tables.vteps.doubt()
            tables.peers.doubt()
        if self.fits():
            vteps = Tracked("vteps", maps.vtep_table, tables.vteps)
            settle([vteps, Tracked("peers", maps.peer_table, tables.peers)], self._findings, stale_first=True)
            return 0
        tables.vteps.doubt()
        tables.peers.doubt()
        apply_fitting("vteps", maps.vtep_table, tables.vteps.desired, self._room, self._findings)
        return apply_fitting("peers", maps.peer_table, tables.peers.desired, self._room, self._findings)
