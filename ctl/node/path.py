"""What this node has that a packet would meet, for `ovctl trace`. Nothing is changed, and no agent asked."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_network

from ctl.core.abi import Direction, Hook, Ip, NodeEntry, PeerEntry
from ctl.core.base_chains import base_chains
from ctl.core.decision import Probe, View
from ctl.core.errors import OvnetError
from ctl.core.family import of_version
from ctl.core.model import A, Lease
from ctl.core.report import AgentReport
from ctl.kernel.bpf.maps import Maps
from ctl.kernel.command import run
from ctl.kernel.forward import refusing
from ctl.kernel.hooks.listing import Hooked, listing
from ctl.kernel.netlink.fib import next_hop
from ctl.kernel.netlink.session import Netlink
from ctl.settings.config import Settings


def look(
    settings: Settings,
    maps: Maps[A],
    netlink: Netlink,
    probe: Probe,
    report: AgentReport | None,
    leases: Sequence[Lease],
    store_error: str,
    running: Collection[Hook] = frozenset(Hook),
) -> View:
    """Read it. AgentUnreachable before an agent has run here, KernelError.

    `maps`: of the packet's family; `running`: where that has programs, if there are any at all;
    `store_error`: why there are no `leases`.
    """
    node = maps.configured()
    if Hook.TO_OVERLAY not in running:
        node = replace(node, tunnel_ifindex=0)
    hooked = listing(netlink, settings.bpffs)
    names = {link.ifindex: link.name for link in netlink.links().values()}
    view = View(
        node,
        source=maps.lookup_endpoint(probe.src),
        target=maps.lookup_endpoint(probe.dst),
        origin=_peer(maps, node, probe.src),
        peer=_peer(maps, node, probe.dst),
        flows={key: flow for key, flow in maps.flows().items() if probe.is_of(key)},
        now_ns=time.clock_gettime_ns(time.CLOCK_MONOTONIC),
        names=names,
        programs=frozenset((each.dev, each.hook) for each in hooked if each.ours and _runs(each, running)),
        route=_route(netlink, names, probe.dst),
        refusals=_refusals(node, report),
        unresolved=netlink.unresolved(of_version(probe.src.version)),
        lease=_lease(leases, probe.dst),
        store=store_error,
        time_s=time.time(),
    )
    to = view.translation(Direction.OUT)
    if to is None:
        return view
    # Netfilter has translated it before it is routed.
    return replace(
        view,
        peer=_peer(maps, node, to.address),
        route=_route(netlink, names, to.address),
        lease=_lease(leases, to.address),
    )


def _runs(hooked: Hooked, running: Collection[Hook]) -> bool:
    """Whether it has the packet seen by a program of its family. tc's are there together, or not at all."""
    return (Hook.FROM_WIRE_XDP if hooked.hook == "xdp" else Hook.FROM_WIRE) in running


def _lease(leases: Sequence[Lease], address: Ip) -> Lease | None:
    """The one whose containers have the address."""
    member = of_version(address.version).member
    return next((each for each in leases if (found := member(each)) and address in found.subnet), None)


def _peer(maps: Maps[A], node: NodeEntry, address: Ip) -> PeerEntry | None:
    return maps.lookup_peer(ip_network((address, node.subnet.prefixlen), strict=False).network_address)


def _route(netlink: Netlink, names: Mapping[int, str], target: Ip) -> str:
    try:
        ifindex, _ = next_hop(netlink.rtnl, target)
    except OvnetError:
        return ""
    return names.get(ifindex, "")


def _refusals(node: NodeEntry, report: AgentReport | None) -> tuple[str, ...]:
    if report is None:
        return ()
    return refusing(base_chains(run("nft", "list", "chains")), node.network, report.bridge)
