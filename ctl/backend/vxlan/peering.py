"""The vxlan backend's way to each peer in one family: tables of the kernel path, maps of the shortcut.

Follows the leases change by change, in this order:

    plan     who the peers are, and how each is reached
    maps     who may send to us. A route brings answers, so a peer is known before it is routed to
    routes   the kernel path: whom its rules let in, FDB, neighbours, routes

At start there is no map yet: then the kernel path is whole before there is one. Until there is a plan
again after one that failed, the maps stay as they are, for without their entries the programs would
refuse all peers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Network
from typing import Generic

from ctl.backend.settle import Tracked, apply_fitting, settle
from ctl.backend.site import Site
from ctl.backend.vxlan.kernel_path import KernelPath
from ctl.core.errors import Failures, KernelError
from ctl.core.family import Family, Member
from ctl.core.findings import IPSEC_LINE, Concern, Findings
from ctl.core.host import EVERYTHING, Change, Hop, Removed
from ctl.core.model import A, Lease, N
from ctl.core.peers import KernelTables, PeerMaps
from ctl.core.policy import Outer, Policy, describe, plan_policy
from ctl.kernel import sysctl
from ctl.kernel.bpf.maps import Maps
from ctl.kernel.netlink import fib, rules, xfrm
from ctl.kernel.netlink.socket import Refused, Rtnl


@dataclass(frozen=True, slots=True)
class Shortcut(Generic[A]):
    """The eBPF side, as far as the peers concern it."""

    maps: Maps[A]
    """The open maps."""
    bypassing: bool
    """Whether programs are loaded that go by them."""
    announce: Callable[[], None]
    """Writes the node's own entry, which says whether the maps hold all peers (Peering.fits)."""


class Peering(Generic[A, N]):
    """Plan and tables of the peers. One thread's, but for `wants`.

    `room`: how many entries the maps have for peers.
    """

    def __init__(self, rtnl: Rtnl, family: Family[A, N], findings: Findings, room: int) -> None:
        self._rtnl, self._family, self._findings, self._room = rtnl, family, findings, room
        self._policies = xfrm.Policies()
        self._path = KernelPath(rtnl, family)
        self._tables: PeerMaps[A, N] | None = None
        """The maps' part of the plan; None: there has been none yet."""
        self._policy = Policy()
        """How the FIB is asked."""
        self._filled: Maps[A] | None = None
        """The maps that the plan's trackers are about."""
        self.reached = 0, 0
        """How many subnets eBPF carries packets to, and how many only the kernel path."""

    @property
    def problems(self) -> tuple[str, ...]:
        """A line for each lease that is not used, by the last plan."""
        return self._path.problems

    def close(self) -> None:
        """Nothing is asked any more."""
        self._policies.close()

    def wants(self, entry: Removed) -> bool:
        """Whether an entry that is no more should be there. Any thread may ask."""
        return self._path.wants(entry)

    def fits(self) -> bool:
        """Whether the maps have room for all peers; False as long as nobody knows who they are."""
        tables = self._tables
        return tables is not None and max(len(tables.peers.desired), len(tables.vteps.desired)) <= self._room

    def has_filled(self, maps: Maps[A]) -> bool:
        """Whether what these maps hold is of this plan, and not of an earlier process."""
        return maps is self._filled

    def marks(self) -> int:
        """Bits of marks with which packets may be led elsewhere than the maps say."""
        return self._policy.marks

    def senders(self) -> Collection[A] | None:
        """Hosts that may send us VXLAN; None as long as nobody knows who they are."""
        return self._path.senders()

    def own_address(self) -> A | None:
        """The address at which this node answers the others on the overlay; None: it has none yet."""
        place = self._path.place
        own = self._family.member(place[1]) if place else None
        return own.vtep_ip if own else None

    def peer_address(self, host: A) -> A | None:
        """The one at which the peer at that host does; None: there is no such peer."""
        peer = self._peer_at(host)
        return peer.vtep_ip if peer else None

    def key_at(self, host: A) -> IPv4Network | None:
        """The key of that peer's lease; None: there is no such peer."""
        peer = self._peer_at(host)
        return peer.key if peer else None

    def _peer_at(self, host: A) -> Member[A, N] | None:
        found = self._path.roster.at(host) if self._tables else ()
        return found[0] if found else None

    def count_peers(self) -> int:
        """How many peers' subnets packets are routed to."""
        return len(self._path.roster.usable) if self._path.tables else 0

    def hop_interfaces(self) -> frozenset[int]:
        """Ifindexes of the underlay through which peers are reached now."""
        return self._path.hop_interfaces()

    def planned(
        self, site: Site, device: int, leases: Sequence[Lease]
    ) -> tuple[KernelTables[A, N], PeerMaps[A, N]]:
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
        shortcut: Shortcut[A] | None,
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
            self._tables = PeerMaps(self._family, path.roster, site.network)
        self._tables.move(step.moves, step.rehopped, path.hops)
        if Change.PEERS in changes:
            self._tables.doubt()

    def _ways(self, site: Site, hosts: set[A], everyone: bool) -> Mapping[A, Hop[A] | None]:
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
        family, source = self._family, self._family.source(site.uplink, site.lease)
        ttl = sysctl.default_ttl(family.version, site.uplink.link.name)
        return fib.hops(self._rtnl, hosts, source, site.mtu + family.vxlan_overhead, ports, ttl=ttl)

    def _read_policy(self, site: Site) -> Policy:
        """How the FIB has to be asked, by the rules of the moment. KernelError."""
        family = self._family
        try:
            found = rules.listing(self._rtnl, family)
        except Refused as error:
            raise KernelError(f"list ip rules of {family}: {error}") from error
        source = family.source(site.uplink, site.lease)
        policy = plan_policy(found, Outer(source, site.network.port, sysctl.source_ports()))
        self._findings.say(Concern.POLICY, family.version, describe(policy))
        return policy

    def _fill(self, shortcut: Shortcut[A]) -> int:
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
        self._findings.say(Concern.PEERS, self._family.version, text if left else "")
        return left

    def _fill_all(self, shortcut: Shortcut[A], tables: PeerMaps[A, N]) -> int:
        maps, failures = shortcut.maps, Failures()
        vteps = Tracked("vteps", maps.vtep_table, tables.vteps)
        peers = Tracked("peers", maps.peer_table, tables.peers)
        failures.take(settle, [vteps, peers], self._findings, stale_first=True)
        shortcut.announce()  # not before: whoever is not in is refused from now on
        failures.raise_any()
        return 0

    def _fill_up(self, shortcut: Shortcut[A], tables: PeerMaps[A, N]) -> int:
        maps = shortcut.maps
        shortcut.announce()  # first of all: who does not fit must not be refused
        tables.vteps.doubt()
        tables.peers.doubt()
        apply_fitting("vteps", maps.vtep_table, tables.vteps.desired, self._room, self._findings)
        return apply_fitting("peers", maps.peer_table, tables.peers.desired, self._room, self._findings)

    def _count(self, left: int | None) -> None:
        """Which way how many subnets are reached; None: eBPF reaches none."""
        tables, path = self._tables, self._path.tables
        subnets = len(path.routes.desired) if path else 0
        by_ebpf = 0 if tables is None or left is None else max(subnets - left - tables.slow(), 0)
        self.reached = by_ebpf, subnets - by_ebpf
