"""What this node's leases ask of its tables, beside what is in them. Nothing is changed.

The plan is made as the agent makes it, from the store and the FIB as they are now; an agent is not
asked, and need not run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ctl.backend.hostgw import HostGwBackend
from ctl.backend.site import Site
from ctl.backend.vxlan.device import device_name
from ctl.backend.vxlan.peering import Peering
from ctl.core.compare import DeviceName, Difference, compare
from ctl.core.errors import AgentUnreachable, ConfigError, NotFound
from ctl.core.family import IPV4, IPV6, Family
from ctl.core.findings import Concern, Findings
from ctl.core.host import Link, Uplink
from ctl.core.model import A, Bypass, Lease, N, Network
from ctl.core.peers import KernelTables
from ctl.core.report import AgentReport
from ctl.kernel.bpf.maps import open_maps
from ctl.kernel.netlink.session import Netlink, by_name
from ctl.kernel.netlink.tables import Fdb, Routes, VtepNeighbours
from ctl.node.around import underlay
from ctl.process import statedir
from ctl.settings.config import Settings

Pairs = Iterator[tuple[str, Mapping[Any, Any], Mapping[Any, Any]]]
"""Tables: name, what is wanted, what is there."""


def own_lease(leases: Sequence[Lease], report: AgentReport) -> Lease | None:
    """The lease of this node's address, as its agent reported that; None if there is none."""
    return next((lease for lease in leases if lease.host == report.host), None)


def stand(
    settings: Settings, netlink: Netlink, report: AgentReport, network: Network, leases: Sequence[Lease]
) -> Site:
    """Where the node stands by its last report. NotFound without a lease or an uplink of that."""
    own = own_lease(leases, report)
    if own is None:
        raise NotFound(f"no lease of {report.host}, which is this node's address, in the store")
    link = by_name(netlink.links(), report.uplink)
    if link is None:
        raise NotFound(f"uplink {report.uplink} is not here any more")
    sysctls = settings.state_dir / statedir.SYSCTLS
    uplink = Uplink(link, report.host)
    near = tuple(ground.network for ground in underlay(netlink, network, uplink))
    return Site(network, own, uplink, report.mtu, 0, sysctls, underlay=near)


def differences(
    settings: Settings, netlink: Netlink, site: Site, leases: Sequence[Lease], name: DeviceName
) -> tuple[list[Difference], tuple[str, ...]]:
    """Every entry that differs, and a line for each lease that is not used.

    ConfigError for a backend without entries for each peer; KernelError; AgentUnreachable without maps.
    """
    findings = Findings()
    match site.network.backend:
        case "vxlan":
            pairs = _vxlan(settings, netlink, site, leases, findings)
        case "host-gw":
            pairs = _hostgw(settings, netlink, site, leases, findings)
        case other:
            raise ConfigError(f"backend {other} keeps no entry for each peer: there is nothing to compare")
    found = [each for table, desired, actual in pairs for each in compare(table, desired, actual, name)]
    return found, findings.problems.get(Concern.LEASES, ())


def _vxlan(
    settings: Settings, netlink: Netlink, site: Site, leases: Sequence[Lease], findings: Findings
) -> Pairs:
    yield from _vxlan_of(settings, netlink, IPV4, site, leases, findings)
    if site.has_ipv6:
        yield from _vxlan_of(settings, netlink, IPV6, site, leases, findings)


def _vxlan_of(
    settings: Settings,
    netlink: Netlink,
    family: Family[A, N],
    site: Site,
    leases: Sequence[Lease],
    findings: Findings,
) -> Pairs:
    device = _device(netlink, site.network, family.version)
    peering = Peering(netlink.rtnl, family, findings, settings.peers_max)
    tables, plan = peering.planned(site, device.ifindex, leases)
    findings.problems[Concern.LEASES] = (*findings.problems.get(Concern.LEASES, ()), *peering.problems)
    yield from _kernel(netlink, family, tables, device.ifindex)
    try:
        opened = open_maps(str(settings.bpffs), family)
    except AgentUnreachable:
        # Without maps IPv6 is the kernel path's, and status says why.
        if settings.bypass is Bypass.OFF or family.version == IPV6.version:
            return
        raise
    with opened as maps:
        yield "peers", plan.peers.desired, maps.peer_table.read()
        yield "peer_stats", plan.vteps.desired, maps.vtep_table.read()


def _kernel(netlink: Netlink, family: Family[A, N], wanted: KernelTables[A, N], device: int) -> Pairs:
    """The kernel's tables of a family."""
    rtnl = netlink.rtnl
    yield "routes", wanted.routes.desired, Routes(rtnl, family).read()
    yield "neighbours", wanted.neighbours.desired, VtepNeighbours(rtnl, family, device).read()
    yield "fdb", wanted.fdb.desired, Fdb(rtnl, family, device).read()


def _device(netlink: Netlink, network: Network, version: int) -> Link:
    """The vxlan device of that IP version. NotFound."""
    name = device_name(network, version)
    found = by_name(netlink.links(), name)
    if found is None:
        raise NotFound(f"{name} is not here: the agent makes it when it starts")
    return found


def _hostgw(
    settings: Settings, netlink: Netlink, site: Site, leases: Sequence[Lease], findings: Findings
) -> Pairs:
    for wanted, found in HostGwBackend(settings, netlink, findings).planned(site, leases):
        yield "routes", wanted, found
