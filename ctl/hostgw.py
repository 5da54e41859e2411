"""The host-gw backend: plain routes to hosts on the same link. No tunnel, no eBPF."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ctl.config import Settings
from ctl.host import OWNER, Link, Uplink
from ctl.kernel import maps
from ctl.kernel.loader import Programs
from ctl.kernel.netlink import Netlink
from ctl.kernel.tables import Filters, Routes
from ctl.model import IPv4Address, Lease, MacAddress, Network
from ctl.plan import diff, plan_routes, remote_leases
from ctl.report import KernelPort
from ctl.site import Seen, Site, apply


class HostGwBackend:
    """Routes through the uplink. One thread's, like its Netlink."""

    overhead: Final = 0
    device: Final = 0
    maps: maps.Maps | None = None
    programs: Programs | None = None

    def __init__(self, settings: Settings, netlink: Netlink, seen: Seen) -> None:
        self._settings, self._netlink, self._seen = settings, netlink, seen
        self._clean = False

    @staticmethod
    def identity(_host: IPv4Address, _network: Network) -> tuple[MacAddress | None, int | None]:
        """Nothing to publish but the host's address."""
        return None, None

    def preflight(self, uplink: Uplink) -> None:
        """Nothing can be in the way of a route."""

    @staticmethod
    def tunnel(_site: Site) -> None:
        """There is none."""

    def ensure_device(self, _site: Site, links: dict[int, Link]) -> None:
        """Remove the tunnel of an earlier life as a vxlan node."""
        for link in links.values():
            if link.alias == OWNER and link.kind == "vxlan":
                self._netlink.remove(link)

    def load(self, _site: Site) -> None:
        """Take the programs and pins of an earlier life away."""
        if not self._clean:
            filters = Filters(self._netlink)
            filters.apply(diff({}, filters.read_on(self._netlink.links())))
            maps.unpin_all(self._settings.bpffs)
            self._clean = True

    def reconcile_routes(self, site: Site, leases: Sequence[Lease]) -> None:
        """A route to each host on our link; the others are named as problems."""
        remote, problems = remote_leases(leases, site.lease, site.network)
        plan = plan_routes(remote, {each.host: self._netlink.hop(each.host, site.uplink) for each in remote})
        table = Routes(self._netlink)
        apply("routes", table, diff(plan.routes, table.read()), self._seen)
        self._seen.peers_kernel_path = len(plan.routes)
        self._seen.problems["leases"] = (*problems, *plan.problems)

    def reconcile_maps(self, _site: Site) -> None:
        """There are none."""

    def reconcile_ports(self, site: Site) -> None:
        """Ports need nothing; they are noted for the report."""
        found = (
            link for link in self._netlink.links().values() if site.bridge and link.master == site.bridge
        )
        self._seen.kernel_ports = tuple(KernelPort(link.name, "backend host-gw") for link in found)

    def forget_filters(self) -> None:
        """There are none."""
