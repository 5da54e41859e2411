"""The host-gw backend: plain routes to hosts on the same link. No tunnel, no eBPF."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ctl.host import Link
from ctl.kernel.tables import Routes
from ctl.model import Lease
from ctl.plain import PlainBackend, remove_tunnels
from ctl.plan import diff, plan_routes, remote_leases
from ctl.site import Site, apply


class HostGwBackend(PlainBackend):
    """Routes through the uplink. One thread's, like its Netlink."""

    overhead: Final = 0

    def ensure_device(self, _site: Site, links: dict[int, Link]) -> None:
        """Remove the tunnel of an earlier life with another backend."""
        remove_tunnels(self._netlink, links.values(), self._settings.state_dir)

    def reconcile_routes(self, site: Site, leases: Sequence[Lease]) -> None:
        """A route to each host on our link; the others are named as problems."""
        remote, problems = remote_leases(leases, site.lease, site.network)
        hops = {each.host: self._netlink.hop(each.host, site.uplink, site.mtu) for each in remote}
        plan = plan_routes(remote, hops)
        table = Routes(self._netlink)
        apply("routes", table, diff(plan.routes, table.read()), self._seen)
        self._seen.peers_kernel_path = len(plan.routes)
        self._seen.problems["leases"] = (*problems, *plan.problems)
