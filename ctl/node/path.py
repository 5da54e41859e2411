"""What this node has that a packet would meet, for `ovctl trace`. Nothing is changed, and no agent asked."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

from ctl.core.abi import Direction, Ip, NodeEntry, PeerEntry
from ctl.core.base_chains import base_chains
from ctl.core.decision import Probe, View
from ctl.core.errors import OvnetError
from ctl.core.family import IPV4
from ctl.core.model import Lease
from ctl.core.report import AgentReport
from ctl.kernel.bpf.maps import Maps
from ctl.kernel.command import run
from ctl.kernel.forward import refusing
from ctl.kernel.hooks.listing import listing
from ctl.kernel.netlink.fib import next_hop
from ctl.kernel.netlink.session import Netlink
from ctl.settings.config import Settings


def look(
    settings: Settings,
    maps: Maps[Any],
    netlink: Netlink,
    probe: Probe,
    report: AgentReport | None,
    leases: Sequence[Lease],
    store_error: str,
) -> View:
    """Read it. `store_error`: why there are no `leases`.

    AgentUnreachable before an agent has run here, KernelError.
    """
    node = maps.configured()
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
        programs=frozenset((each.dev, each.hook) for each in hooked if each.ours),
        route=_route(netlink, names, probe.dst),
        refusals=_refusals(node, report),
        unresolved=netlink.unresolved(IPV4),
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


def _lease(leases: Sequence[Lease], address: Ip) -> Lease | None:
    """The one whose containers have the address."""
    return next((lease for lease in leases if address in lease.subnet), None)


def _peer(maps: Maps[Any], node: NodeEntry, address: Ip) -> PeerEntry | None:
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
