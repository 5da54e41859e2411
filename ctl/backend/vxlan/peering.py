"""The vxlan backend's way to each peer: tables of the kernel path, maps of the shortcut.

Follows the leases change by change, in this order:

    plan     who the peers are, and how each is reached
    maps     who may send to us. A route brings answers, so a peer is known before it is routed to
    routes   the kernel path: whom its rules let in, FDB, neighbours, routes

At start there is no map yet: then the kernel path is whole before there is one. Where a plan fails
there is none to go on from: the next one is made from the whole, and until then the maps stay as
they are, for without their entries the programs would refuse all peers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network

from ctl.backend.settle import Tracked, apply_fitting, settle
from ctl.backend.site import Site
from ctl.core.errors import Failures, KernelError
from ctl.core.findings import Concern, Findings
from ctl.core.host import EVERYTHING, Change, Hop, Removed, Uplink
from ctl.core.model import VXLAN_OVERHEAD, Lease, Network
from ctl.core.peers import PeerTables
from ctl.core.policy import Outer, Policy, describe, plan_policy
from ctl.core.roster import Moves, Roster
from ctl.kernel import sysctl
from ctl.kernel.bpf.maps import Maps
from ctl.kernel.netlink import fib, rules, xfrm
from ctl.kernel.netlink.socket import Refused, Rtnl
from ctl.kernel.netlink.tables import Fdb, Routes, VtepNeighbours
from ctl.kernel.senders import Senders

Place = tuple[Network, Lease, Uplink, tuple[IPv4Network, ...], int]
"""Network, own lease, uplink, its networks and ifindex of the tunnel device: what a plan is made for."""


@dataclass(frozen=True, slots=True)
class Shortcut:
    """The eBPF side, as far as the peers concern it."""

    maps: Maps
    """The open maps."""
    bypassing: bool
    """Whether programs are loaded that go by them."""
    announce: Callable[[], None]
    """Writes the node's own entry, which says whether the maps hold all peers (Peering.fits)."""


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
        """The plan; None: there has been none yet."""
        self._hops: dict[IPv4Address, Hop | None] = {}
        """How the FIB reaches each peer's host; None: not by eBPF."""
        self._policy = Policy()
        """How the FIB is asked."""
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

    def has_filled(self, maps: Maps) -> bool:
        """Whether what these maps hold is of this plan, and not of an earlier process."""
        return maps is self._filled

    def marks(self) -> int:
        """Bits of marks with which packets may be led elsewhere than the maps say."""
        return self._policy.marks

    def senders(self) -> Collection[IPv4Address] | None:
        """Hosts that may send us VXLAN; None as long as nobody knows who they are."""
        return None if self._tables is None else self._tables.senders.desired.keys()

    def own_address(self) -> IPv4Address | None:
        """The address at which this node answers the others on the overlay; None: it has none yet."""
        return self._place[1].vtep_ip if self._place else None

    def peer_address(self, host: IPv4Address) -> IPv4Address | None:
        """The one at which the peer at that host does; None: there is no such peer."""
        leases = self._roster.at(host) if self._tables else ()
        return leases[0].vtep_ip if leases else None

    def hop_interfaces(self) -> frozenset[int]:
        """Ifindexes of the underlay through which peers are reached now."""
        return frozenset(hop.ifindex for hop in self._hops.values() if hop is not None)

    def planned(self, site: Site, device: int, leases: Sequence[Lease]) -> PeerTables:
        """What these leases ask for, with the FIB as it is; nothing is changed. KernelError."""
        self._plan(site, device, leases, EVERYTHING)
        assert self._tables is not None
        return self._tables

    def reconcile(
        self,
        site: Site,
        device: int,
        leases: Sequence[Lease],
        changes: frozenset[Change],
        shortcut: Shortcut | None,
    ) -> None:
        """Bring everything in line with these leases; each part has its turn. KernelError.

        `device`: ifindex of the vxlan device; 0: there is none yet. `changes`: see ctl.backend.protocol.
        `shortcut`: None where there are no maps.
        """
        failures = Failures()
        failures.take(self._plan, site, device, leases, changes)
        left = failures.take(self._fill, shortcut) if shortcut is not None else None
        failures.take(self._route)
        self._count(left if shortcut is not None and shortcut.bypassing else None)
        failures.raise_any()

    def _plan(self, site: Site, device: int, leases: Sequence[Lease], changes: frozenset[Change]) -> None:
        place = site.network, replace(site.lease, expires_at=None), site.uplink, site.underlay, device
        anew, self._place = place != self._place, None
        if anew:
            self._roster = Roster(site.lease, site.network, site.underlay)
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
        self._findings.problems[Concern.LEASES] = self._roster.problems

    def _follow_hops(self, moves: Moves, site: Site, *, everyone: bool) -> list[IPv4Address]:
        """Look up how to reach new hosts, or all; returns those known before whose way has changed.

        None by eBPF where IPsec has a say, or rules tell more packets apart than can be asked for.
        """
        ipsec = self._policies.any()
        text = "IPsec policies are set: all peers by the kernel path, which meets them"
        self._findings.problems[Concern.IPSEC] = (text,) if ipsec else ()
        if everyone:
            self._policy = self._read_policy(site)
        new = {lease.host for lease in moves.new if lease.host not in self._hops}
        hosts = set(self._roster.hosts()) if everyone else new
        found = dict.fromkeys(hosts) if ipsec else self._hops_to(hosts, site)
        changed = [host for host, hop in found.items() if self._hops.get(host, hop) != hop]
        if everyone:
            self._hops = found
        self._hops.update(found)
        for lease in moves.gone:
            if not self._roster.at(lease.host):
                self._hops.pop(lease.host, None)
        return changed

    def _hops_to(self, hosts: set[IPv4Address], site: Site) -> dict[IPv4Address, Hop | None]:
        """As the policy has it; by none where packets of one peer may take several ways."""
        ports = [(port, site.network.port) for port in self._policy.sports]
        if not ports:
            return dict.fromkeys(hosts)
        underlay, ttl = site.mtu + VXLAN_OVERHEAD, sysctl.default_ttl()
        return fib.hops(self._rtnl, hosts, site.uplink, underlay, ports, ttl=ttl)

    def _read_policy(self, site: Site) -> Policy:
        """How the FIB has to be asked, by the rules of the moment. KernelError."""
        try:
            found = rules.listing(self._rtnl)
        except Refused as error:
            raise KernelError(f"list ip rules: {error}") from error
        policy = plan_policy(found, Outer(site.uplink.address, site.network.port, sysctl.source_ports()))
        text = describe(policy)
        self._findings.problems[Concern.POLICY] = (text,) if text else ()
        return policy

    def _fill(self, shortcut: Shortcut) -> int:
        """The maps; returns how many entries of `peers` there is no room for: the kernel path's."""
        tables, maps = self._tables, shortcut.maps
        if tables is None:
            return 0
        if maps is not self._filled:
            self._filled = maps
            tables.vteps.doubt()
            tables.peers.doubt()
        left = self._fill_all(shortcut, tables) if self.fits() else self._fill_up(shortcut, tables)
        text = f"map peers is full: {left} subnets by the kernel path only, raise --peers-max"
        self._findings.problems[Concern.PEERS] = (text,) if left else ()
        return left

    def _fill_all(self, shortcut: Shortcut, tables: PeerTables) -> int:
        maps, failures = shortcut.maps, Failures()
        vteps = Tracked("vteps", maps.vtep_table, tables.vteps)
        peers = Tracked("peers", maps.peer_table, tables.peers)
        failures.take(settle, [vteps, peers], self._findings, stale_first=True)
        shortcut.announce()  # not before: whoever is not in is refused from now on
        failures.raise_any()
        return 0

    def _fill_up(self, shortcut: Shortcut, tables: PeerTables) -> int:
        maps = shortcut.maps
        shortcut.announce()  # first of all: who does not fit must not be refused
        tables.vteps.doubt()
        tables.peers.doubt()
        apply_fitting("vteps", maps.vtep_table, tables.vteps.desired, self._room, self._findings)
        return apply_fitting("peers", maps.peer_table, tables.peers.desired, self._room, self._findings)

    def _route(self) -> None:
        """The kernel path, if there is a plan and a device for it."""
        if self._tables is None or self._place is None:
            return
        *_, device = self._place
        if device:
            settle(
                [
                    Tracked("senders", Senders(), self._tables.senders),
                    Tracked("fdb", Fdb(self._rtnl, device), self._tables.fdb),
                    Tracked("neighbours", VtepNeighbours(self._rtnl, device), self._tables.neighbours),
                    Tracked("routes", Routes(self._rtnl), self._tables.routes),
                ],
                self._findings,
            )

    def _count(self, left: int | None) -> None:
        """For the report: which way how many subnets are reached; None: eBPF reaches none."""
        tables = self._tables
        subnets = len(tables.routes.desired) if tables else 0
        by_ebpf = 0 if tables is None or left is None else max(subnets - left - tables.slow(), 0)
        self._findings.peers_ebpf, self._findings.peers_kernel_path = by_ebpf, subnets - by_ebpf
