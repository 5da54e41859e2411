"""The udp backend as a part of a node: the forwarder process, its device and its route.

The slow baseline, wire-compatible with flannel's. What it does is in `ctl.backend.udp`.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from ctl.backend.programless import ProgramlessBackend, remove_tunnels
from ctl.backend.settle import apply_counted
from ctl.backend.site import Site
from ctl.backend.udp.client import ForwarderProcess, TunnelRoutes
from ctl.backend.udp.underlay import OVERHEAD
from ctl.core.family import IPV4
from ctl.core.findings import Concern
from ctl.core.host import Change, Link, Removed, Route, RouteKey
from ctl.core.model import Lease, Network
from ctl.core.plan import diff
from ctl.core.roster import Roster
from ctl.kernel.netlink.tables import Routes


class UdpBackend(ProgramlessBackend):
    """Packets through user space. One thread's, like its Netlink."""

    _forwarder: ForwarderProcess | None = None
    """The process that carries the packets; None: `ensure_device` has not been called yet."""
    _key: tuple[IPv4Address, int] | None = None
    """The host's address and the port that the forwarder is for."""
    _route: RouteKey[IPv4Network] | None = None
    """The route for the whole network; None: it has not been set yet."""

    @staticmethod
    def overhead(_network: Network) -> int:
        """IP and UDP."""
        return OVERHEAD

    def lost(self) -> frozenset[Change]:
        """The way to the peers, if the forwarder has ended."""
        gone = self._forwarder is not None and not self._forwarder.runs()
        return frozenset({Change.PEERS} if gone else ())

    def ensure_device(self, site: Site, links: dict[int, Link]) -> None:
        """Remove the tunnel of an earlier life with another backend or port.

        Our own device comes with the forwarder, which needs to know all peers when it
        starts: one that runs already must not lose them for a moment.
        """
        key = site.uplink.address, site.network.port
        if self._forwarder is None or self._key != key:
            self._forwarder, self._key = ForwarderProcess(self._settings.state_dir, *key), key
        remove_tunnels(self._netlink, links.values(), self._settings.state_dir, {self._forwarder.device})

    def reconcile_peers(self, site: Site, leases: Sequence[Lease], _changes: frozenset[Change]) -> None:
        """The forwarder, by these leases, its device, and one route for the whole network."""
        if self._forwarder is None:
            return
        roster = Roster(IPV4, site.lease, site.network, site.underlay)
        roster.update(leases)
        self._findings.problems[Concern.LEASES] = roster.problems
        peers = {subnet: lease.host for subnet, lease in roster.usable.items()}
        if self._forwarder.start(TunnelRoutes(site.lease.subnet, peers)):
            self._findings.count("forwarder", 1)
        address = IPv4Interface((site.lease.vtep_ip, 32))
        self.device = self._netlink.ensure_tun(self._forwarder.device, address, site.mtu)
        table = Routes(self._netlink.rtnl, IPV4)
        self._route = RouteKey.of(site.network.network)
        desired = {self._route: Route(IPv4Address(0), self.device)}
        apply_counted("routes", table, diff(desired, table.read()), self._findings)
        self._findings.peers_kernel_path = len(peers)

    def wants(self, entry: Removed) -> bool:
        """Whether a route that is no more should be there: the one for the whole network."""
        return entry == self._route
