"""The vxlan backend's way to each peer: tables of the kernel path, maps of the shortcut.

Follows the leases change by change, in this order:

    plan     who the peers are, and how each is reached
    maps     who may send to us. A route brings answers, so a peer is known before it is routed to
    routes   the kernel path: whom its rules let in, FDB, neighbours, routes

At start there is no map yet: then the kernel path is whole before there is one. Until there is a plan
again after one that failed, the maps stay as they are, for without their entries the programs would
refuse all peers. Both are about IPv4: what IPv6 has is a KernelPath, and no maps.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address

from ctl.backend.settle import Tracked, apply_fitting, settle
from ctl.backend.site import Site
from ctl.backend.vxlan.kernel_path import KernelPath
from ctl.core.errors import Failures, KernelError
from ctl.core.family import IPV4
from ctl.core.findings import IPSEC_LINE, Concern, Findings
from ctl.core.host import EVERYTHING, Change, Hop, Removed
from ctl.core.model import VXLAN_OVERHEAD, IPv4Network, Lease
from ctl.core.peers import KernelTables, PeerMaps
from ctl.core.policy import Outer, Policy, describe, plan_policy
from ctl.kernel import sysctl
from ctl.kernel.bpf.maps import Maps
from ctl.kernel.netlink import fib, rules, xfrm
from ctl.kernel.netlink.socket import Refused, Rtnl


@dataclass(frozen=True, slots=True)
class Shortcut:
    """The eBPF side, as far as the peers concern it."""

    maps: Maps[IPv4Address]
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
        self._path = KernelPath(rtnl, IPV4)
        self._tables: PeerMaps | None = None
        """The maps' part of the plan; None: there has been none yet."""
        self._policy = Policy()
        """How the FIB is asked."""
        self._filled: Maps[IPv4Address] | None = None
        """The maps that the plan's trackers are about."""

    def wants(self, entry: Removed) -> bool:
        """Whether an entry that is no more should be there. Any thread may ask."""
        return self._path.wants(entry)

    def fits(self) -> bool:
        """Whether the maps have room for all peers; False as long as nobody knows who they are."""
        tables = self._tables
        return tables is not None and max(len(tables.peers.desired), len(tables.vteps.desired)) <= self._room

    def has_filled(self, maps: Maps[IPv4Address]) -> bool:
        """Whether what these maps hold is of this plan, and not of an earlier process."""
        return maps is self._filled

    def marks(self) -> int:
        """Bits of marks with which packets may be led elsewhere than the maps say."""
        return self._policy.marks

    def senders(self) -> Collection[IPv4Address] | None:
        """Hosts that may send us VXLAN; None as long as nobody knows who they are."""
        return self._path.senders()

    def own_address(self) -> IPv4Address | None:
        """The address at which this node answers the others on the overlay; None: it has none yet."""
        place = self._path.place
        return place[1].vtep_ip if place else None

    def peer_address(self, host: IPv4Address) -> IPv4Address | None:
        """The one at which the peer at that host does; None: there is no such peer."""
        leases = self._path.roster.at(host) if self._tables else ()
        return leases[0].vtep_ip if leases else None

    def hop_interfaces(self) -> frozenset[int]:
        """Ifindexes of the underlay through which peers are reached now."""
        return self._path.hop_interfaces()

    def planned(
        self, site: Site, device: int, leases: Sequence[Lease]
    ) -> tuple[KernelTables[IPv4Address, IPv4Network], PeerMaps]:
        """What these leases ask for, with the FIB as it is; nothing is changed. KernelError."""
        self._plan(site, device, leases, EVERYTHING)
        assert self._path.tables is not None and self._tables is not None
        return self._path.tables, self._tables

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
        failures.take(self._path.route, self._findings)
        self._count(left if shortcut is not None and shortcut.bypassing else None)
        failures.raise_any()

    def _plan(self, site: Site, device: int, leases: Sequence[Lease], changes: frozenset[Change]) -> None:
        path = self._path
        step = path.plan(site, device, leases, changes, partial(self._ways, site))
        if step.anew or self._tables is None:
            self._tables = PeerMaps(path.roster, site.network)
        self._tables.move(step.moves, step.rehopped, path.hops)
        if Change.PEERS in changes:
            self._tables.doubt()
        self._findings.problems[Concern.LEASES] = path.problems

    def _ways(
        self, site: Site, hosts: set[IPv4Address], everyone: bool
    ) -> Mapping[IPv4Address, Hop[IPv4Address] | None]:
        """How these hosts are reached. KernelError.

        None by eBPF where IPsec has a say, or rules tell more packets apart than can be asked for.
        """
        ipsec = self._policies.any()
        self._findings.problems[Concern.IPSEC] = (IPSEC_LINE,) if ipsec else ()
        if everyone:
            self._policy = self._read_policy(site)
        ports = [(port, site.network.port) for port in self._policy.sports]
        if ipsec or not ports:
            return dict.fromkeys(hosts)
        underlay, ttl = site.mtu + VXLAN_OVERHEAD, sysctl.default_ttl()
        return fib.hops(self._rtnl, hosts, site.uplink.address, underlay, ports, ttl=ttl)

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

    def _fill_all(self, shortcut: Shortcut, tables: PeerMaps) -> int:
        maps, failures = shortcut.maps, Failures()
        vteps = Tracked("vteps", maps.vtep_table, tables.vteps)
        peers = Tracked("peers", maps.peer_table, tables.peers)
        failures.take(settle, [vteps, peers], self._findings, stale_first=True)
        shortcut.announce()  # not before: whoever is not in is refused from now on
        failures.raise_any()
        return 0

    def _fill_up(self, shortcut: Shortcut, tables: PeerMaps) -> int:
        maps = shortcut.maps
        shortcut.announce()  # first of all: who does not fit must not be refused
        tables.vteps.doubt()
        tables.peers.doubt()
        apply_fitting("vteps", maps.vtep_table, tables.vteps.desired, self._room, self._findings)
        return apply_fitting("peers", maps.peer_table, tables.peers.desired, self._room, self._findings)

    def _count(self, left: int | None) -> None:
        """For the report: which way how many subnets are reached; None: eBPF reaches none."""
        tables, path = self._tables, self._path.tables
        subnets = len(path.routes.desired) if path else 0
        by_ebpf = 0 if tables is None or left is None else max(subnets - left - tables.slow(), 0)
        self._findings.peers_ebpf, self._findings.peers_kernel_path = by_ebpf, subnets - by_ebpf
