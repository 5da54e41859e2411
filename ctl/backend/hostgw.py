"""The host-gw backend: plain routes to hosts on the same link. No tunnel, no eBPF."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network
from typing import Any, Final, Generic

from ctl.backend.programless import ProgramlessBackend, remove_tunnels
from ctl.backend.settle import Tracked, settle
from ctl.backend.site import Site
from ctl.backend.told import told_of_ipv6
from ctl.core.errors import Failures
from ctl.core.family import IPV4, IPV6, Family, Member
from ctl.core.findings import Concern, Findings
from ctl.core.host import EVERYTHING, Change, Devices, Hop, Link, Removed, Route, RouteKey, Uplink
from ctl.core.model import A, Lease, N, Network
from ctl.core.peers import on_link
from ctl.core.roster import Roster
from ctl.core.tracker import Tracker
from ctl.kernel.netlink import fib
from ctl.kernel.netlink.session import Netlink
from ctl.kernel.netlink.socket import Rtnl
from ctl.kernel.netlink.tables import Routes
from ctl.settings.config import Settings

Rows = Mapping[RouteKey[Any], Route[Any]]


class PlainRoutes(Generic[A, N]):
    """The peers of one family, and the routes to those on our link. One thread's."""

    def __init__(self, rtnl: Rtnl, family: Family[A, N]) -> None:
        self.table: Final = Routes(rtnl, family)
        self.wanted: Final = Tracker[RouteKey[N], Route[A]]()
        self.problems: tuple[str, ...] = ()
        """A line for each lease that is not used, or not routed."""
        self._rtnl, self._family = rtnl, family
        self._place: tuple[Network, Lease, Uplink, tuple[IPv4Network | IPv6Network, ...]] | None = None
        """What the roster was made for; None: there is none to go on from."""
        self._roster: Roster[A, N]
        self._hops: dict[A, Hop[A] | None] = {}

    def reconcile(
        self, site: Site, leases: Sequence[Lease], changes: frozenset[Change], findings: Findings
    ) -> None:
        """A route to each host on our link; the others are named as problems. KernelError.

        A host behind a router cannot be one: the router does not know the subnets.
        """
        self.plan(site, leases, changes)
        # An interface that goes down, or loses its address, takes routes along without a word.
        if changes & {Change.PEERS, Change.HOPS}:
            self.wanted.doubt()
        settle([Tracked("routes", self.table, self.wanted)], findings)

    def plan(self, site: Site, leases: Sequence[Lease], changes: frozenset[Change]) -> None:
        """What these leases ask for, with the FIB as it is; nothing is changed. KernelError."""
        source = self._family.source(site.uplink, site.lease)
        place = site.network, replace(site.lease, expires_at=None), site.uplink, site.underlay
        anew, self._place = place != self._place, None
        if anew:
            self._roster = Roster(self._family, site.lease, site.network, site.underlay)
            self._hops = {}
        moves = self._roster.update(leases)
        usable = self._roster.usable.values()
        everyone = anew or Change.HOPS in changes
        asked = self._roster.hosts() if everyone else {lease.host for lease in moves.new}
        found = fib.hops(self._rtnl, asked, source, site.mtu)
        known = found if everyone else self._hops | found
        self._hops = {lease.host: known[lease.host] for lease in usable}
        self._place = place
        hops = [(lease, on_link(lease, self._hops[lease.host])) for lease in usable]
        near = ((lease, hop) for lease, hop in hops if hop)
        self.wanted.want(
            {RouteKey.of(each.subnet): Route(each.host, hop.ifindex, mtu=hop.mtu) for each, hop in near}
        )
        far = tuple(_not_routed(lease) for lease, hop in hops if not hop)
        self.problems = (*self._roster.problems, *far)

    def interfaces(self) -> frozenset[int]:
        """Ifindexes of those through which peers are reached now."""
        return frozenset(hop.ifindex for hop in self._hops.values() if hop is not None)


class HostGwBackend(ProgramlessBackend):
    """Routes through the uplink. One thread's, like its Netlink."""

    def __init__(self, settings: Settings, netlink: Netlink, findings: Findings) -> None:
        super().__init__(settings, netlink, findings)
        self._ipv4 = PlainRoutes(netlink.rtnl, IPV4)
        self._ipv6 = PlainRoutes(netlink.rtnl, IPV6)

    @staticmethod
    def overhead(_network: Network) -> int:
        """Packets go as they are."""
        return 0

    def ensure_device(self, _site: Site, links: dict[int, Link]) -> None:
        """Remove the tunnel of an earlier life with another backend."""
        remove_tunnels(self._netlink, links.values(), self._settings.state_dir)

    def reconcile_peers(self, site: Site, leases: Sequence[Lease], changes: frozenset[Change]) -> None:
        """Routes to the hosts on our link, of either family that we have."""
        failures, findings = Failures(), self._findings
        failures.take(self._ipv4.reconcile, site, leases, changes, findings)
        if site.has_ipv6:
            failures.take(self._ipv6.reconcile, site, leases, changes, findings)
        else:
            self._ipv6.wanted.want({})
        findings.peers_kernel_path = len(self._ipv4.wanted.desired)
        findings.peers_ipv6 = len(self._ipv6.wanted.desired) if site.has_ipv6 else None
        findings.problems[Concern.LEASES] = self._ipv4.problems
        told_of_ipv6(findings, site, leases, self._ipv6.problems)
        failures.raise_any()

    def planned(self, site: Site, leases: Sequence[Lease]) -> list[tuple[Rows, Rows]]:
        """The routes of each family that these leases ask for, and those that there are. KernelError.

        Nothing is changed.
        """
        self._ipv4.plan(site, leases, EVERYTHING)
        found: list[tuple[Rows, Rows]] = [(self._ipv4.wanted.desired, self._ipv4.table.read())]
        if site.has_ipv6:
            self._ipv6.plan(site, leases, EVERYTHING)
            found.append((self._ipv6.wanted.desired, self._ipv6.table.read()))
        self._findings.problems[Concern.LEASES] = (*self._ipv4.problems, *self._ipv6.problems)
        return found

    def devices(self) -> Devices:
        """The links that peers are on."""
        return Devices(hops=self._ipv4.interfaces() | self._ipv6.interfaces())

    def wants(self, entry: Removed) -> bool:
        """Whether a route that is no more should be there."""
        return entry in self._ipv4.wanted.desired or entry in self._ipv6.wanted.desired


def _not_routed(lease: Member[Any, Any]) -> str:
    return f"lease {lease.subnet} of {lease.node or lease.host} not routed: {lease.host} is not on our link"
