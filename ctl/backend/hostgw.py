"""The host-gw backend: plain routes to hosts on the same link. No tunnel, no eBPF."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from ctl.backend.programless import ProgramlessBackend, remove_tunnels
from ctl.backend.settle import Tracked, settle
from ctl.backend.site import Site
from ctl.core.findings import Concern, Findings
from ctl.core.host import EVERYTHING, Change, Devices, Hop, Link, Removed, Route, RouteKey, Uplink
from ctl.core.model import Lease, Network
from ctl.core.peers import on_link
from ctl.core.roster import Roster
from ctl.core.tracker import Tracker
from ctl.kernel.netlink import fib
from ctl.kernel.netlink.session import Netlink
from ctl.kernel.netlink.tables import Routes
from ctl.settings.config import Settings


class HostGwBackend(ProgramlessBackend):
    """Routes through the uplink. One thread's, like its Netlink."""

    overhead: Final = 0

    def __init__(self, settings: Settings, netlink: Netlink, findings: Findings) -> None:
        super().__init__(settings, netlink, findings)
        self._place: tuple[Network, Lease, Uplink, tuple[IPv4Network, ...]] | None = None
        """What the roster was made for; None: there is none to go on from."""
        self._roster: Roster
        self._hops: dict[IPv4Address, Hop | None] = {}
        self._routes = Tracker[RouteKey, Route]()

    def ensure_device(self, _site: Site, links: dict[int, Link]) -> None:
        """Remove the tunnel of an earlier life with another backend."""
        remove_tunnels(self._netlink, links.values(), self._settings.state_dir)

    def reconcile_peers(self, site: Site, leases: Sequence[Lease], changes: frozenset[Change]) -> None:
        """A route to each host on our link; the others are named as problems.

        A host behind a router cannot be one: the router does not know the subnets.
        """
        self._plan(site, leases, changes)
        # An interface that goes down, or loses its address, takes routes along without a word.
        if changes & {Change.PEERS, Change.HOPS}:
            self._routes.doubt()
        self._findings.peers_kernel_path = len(self._routes.desired)
        settle([Tracked("routes", Routes(self._netlink.rtnl), self._routes)], self._findings)

    def planned(self, site: Site, leases: Sequence[Lease]) -> Mapping[RouteKey, Route]:
        """The routes that these leases ask for, with the FIB as it is; nothing is changed. KernelError."""
        self._plan(site, leases, EVERYTHING)
        return self._routes.desired

    def _plan(self, site: Site, leases: Sequence[Lease], changes: frozenset[Change]) -> None:
        place = site.network, replace(site.lease, expires_at=None), site.uplink, site.underlay
        anew, self._place = place != self._place, None
        if anew:
            self._roster, self._hops = Roster(site.lease, site.network, site.underlay), {}
        moves = self._roster.update(leases)
        usable = self._roster.usable.values()
        everyone = anew or Change.HOPS in changes
        asked = self._roster.hosts() if everyone else {lease.host for lease in moves.new}
        found = fib.hops(self._netlink.rtnl, asked, site.uplink, site.mtu)
        known = found if everyone else self._hops | found
        self._hops = {lease.host: known[lease.host] for lease in usable}
        self._place = place
        hops = {lease: on_link(lease, self._hops[lease.host]) for lease in usable}
        near = ((lease, hop) for lease, hop in hops.items() if hop)
        self._routes.want(
            {RouteKey.of(each.subnet): Route(each.host, hop.ifindex, mtu=hop.mtu) for each, hop in near}
        )
        far = tuple(_not_routed(lease) for lease, hop in hops.items() if not hop)
        self._findings.problems[Concern.LEASES] = (*self._roster.problems, *far)

    def devices(self) -> Devices:
        """The links that peers are on."""
        return Devices(hops=frozenset(hop.ifindex for hop in self._hops.values() if hop is not None))

    def wants(self, entry: Removed) -> bool:
        """Whether a route that is no more should be there."""
        return entry in self._routes.desired


def _not_routed(lease: Lease) -> str:
    return f"lease {lease.subnet} of {lease.node or lease.host} not routed: {lease.host} is not on our link"
