"""Desired state of a node, and what to change to get there. Pure.

    desired = plan_*(...)           what this node's kernel and maps should hold
    delta = diff(desired, actual)   per table; printable, ordered, applied in one place

Reconciling: read a table whole, diff it, apply the delta; if that fails, do the same
again from a fresh read. Whole values are compared, not keys, so an entry whose value
changed behind our back is mended like one that is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from typing import Generic, TypeVar

from ctl.abi import PEER_F_KERNEL_PATH, EndpointEntry, PeerEntry
from ctl.host import Filter, FilterKey, Hop, Link, Neighbours, Route
from ctl.model import HookMode, Lease, MacAddress, Network

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Delta(Generic[K, V]):
    """Changes to one table: puts (create or replace) and removals."""

    puts: tuple[tuple[K, V], ...] = ()
    removals: tuple[K, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.puts or self.removals)

    def __len__(self) -> int:
        return len(self.puts) + len(self.removals)


def diff(desired: Mapping[K, V], actual: Mapping[K, V]) -> Delta[K, V]:
    """What turns `actual` into `desired`, in the order of each mapping."""
    return Delta(
        puts=tuple((key, value) for key, value in desired.items() if actual.get(key) != value),
        removals=tuple(key for key in actual if key not in desired),
    )


@dataclass(frozen=True, slots=True)
class PeerPlan:
    """Everything that a set of leases asks of this node, by table."""

    neighbours: dict[IPv4Address, MacAddress]
    """VTEP address -> MAC, on the vxlan device."""
    fdb: dict[MacAddress, IPv4Address]
    """VTEP MAC -> host, on the vxlan device."""
    routes: dict[IPv4Network, Route]
    """Subnet -> VTEP address through the vxlan device, or host through the uplink."""
    vteps: dict[IPv4Address, bool]
    """Hosts that may send to us."""
    peers: dict[IPv4Address, PeerEntry]
    problems: tuple[str, ...] = ()


def remote_leases(
    leases: Iterable[Lease], own: Lease, network: Network
) -> tuple[tuple[Lease, ...], tuple[str, ...]]:
    """(leases that we can send to, a line for each that we cannot).

    Of two leases that claim one address space or one host, the first by subnet wins and
    ours always does: what is in doubt is never spread over two hosts.
    """
    usable: list[Lease] = []
    problems: list[str] = []
    last = -1
    macs = {own.vtep_mac: own.subnet}
    for lease in sorted(leases, key=lambda each: (int(each.subnet.network_address), each.subnet.prefixlen)):
        if lease.subnet == own.subnet:
            continue
        first = int(lease.subnet.network_address)
        why = _unusable(lease, own, network)
        if not why and (first <= last or lease.subnet.overlaps(own.subnet)):
            why = "it overlaps another lease"
        if not why and lease.vtep_mac and lease.vtep_mac in macs:
            why = f"its VTEP MAC {lease.vtep_mac} is that of {macs[lease.vtep_mac]}"
        if why:
            problems.append(f"lease {lease.subnet} of {lease.node or lease.host} ignored: {why}")
            continue
        last = int(lease.subnet.broadcast_address)
        macs[lease.vtep_mac] = lease.subnet
        usable.append(lease)
    return tuple(usable), tuple(problems)


def _unusable(lease: Lease, own: Lease, network: Network) -> str:
    vxlan = network.backend == "vxlan"
    checks = (
        (lease.backend != network.backend, f"its backend is {lease.backend}, not {network.backend}"),
        (not lease.subnet.subnet_of(network.network), f"it is not in {network.network}"),
        (lease.host == own.host, f"it carries our own host address {own.host}"),
        (
            vxlan and not (lease.vtep_mac and lease.vtep_mac.is_unicast),
            f"it has no usable VTEP MAC ({lease.vtep_mac})",
        ),
        (vxlan and lease.vni not in (None, network.vni), f"its VNI is {lease.vni}, not {network.vni}"),
    )
    return next((why for wrong, why in checks if wrong), "")


Hops = Mapping[IPv4Address, Hop | None]
"""How the FIB reaches each host; None for one that it does not."""


def plan_routes(leases: Iterable[Lease], hops: Hops) -> PeerPlan:
    """Tables of the host-gw backend: plain routes, to hosts on our own link.

    A host behind a router cannot be one: the router does not know the subnets.
    """
    plan = PeerPlan({}, {}, {}, {}, {})
    problems = []
    for lease in leases:
        hop = hops.get(lease.host)
        if hop is not None and hop.next_hop == lease.host:
            plan.routes[lease.subnet] = Route(lease.host, hop.ifindex)
        else:
            name = lease.node or lease.host
            problems.append(f"lease {lease.subnet} of {name} not routed: {lease.host} is not on our link")
    return replace(plan, problems=tuple(problems))


def plan_peers(leases: Iterable[Lease], network: Network, hops: Hops, vxlan: int) -> PeerPlan:
    """Tables of the vxlan backend for these leases (as `remote_leases` lets through).

    `vxlan`: ifindex of our device. With DirectRouting, peers on our own link are routed
    to plainly; they may still send us VXLAN.
    """
    plan = PeerPlan({}, {}, {}, {}, {})
    for lease in leases:
        assert lease.vtep_mac is not None, "remote_leases() lets no other through"
        plan.neighbours[lease.vtep_ip] = lease.vtep_mac
        plan.fdb[lease.vtep_mac] = lease.host
        hop = hops.get(lease.host)
        direct = network.direct_routing and hop is not None and hop.next_hop == lease.host
        if hop is not None and direct:
            plan.routes[lease.subnet] = Route(lease.host, hop.ifindex)
        else:
            plan.routes[lease.subnet] = Route(lease.vtep_ip, vxlan, onlink=True)
        plan.vteps[lease.host] = True
        for block, entry in _blocks(lease, network, None if direct else hop):
            plan.peers[block] = _merge(plan.peers.get(block), entry)
    return plan


def _blocks(lease: Lease, network: Network, hop: Hop | None) -> Iterator[tuple[IPv4Address, PeerEntry]]:
    """The map's entries for a lease: one, where its length is the network's.

    A longer subnet shares its block with others: only the kernel can tell them apart.
    """
    assert lease.vtep_mac is not None
    shared = lease.subnet.prefixlen > network.subnet_len
    entry = PeerEntry(
        host=lease.host,
        vtep_mac=lease.vtep_mac,
        port=network.port,
        vni=network.vni,
        ifindex=hop.ifindex if hop else 0,
        next_hop=hop.next_hop if hop else None,
        flags=PEER_F_KERNEL_PATH if shared or hop is None else 0,
    )
    if shared:
        yield lease.subnet.supernet(new_prefix=network.subnet_len).network_address, entry
        return
    for block in lease.subnet.subnets(new_prefix=network.subnet_len):
        yield block.network_address, entry


def _merge(first: PeerEntry | None, second: PeerEntry) -> PeerEntry:
    """Two hosts in one block: host 0 tells the source check to let both through."""
    if first is None or first.host == second.host:
        return second
    return replace(second, host=IPv4Address(0), flags=PEER_F_KERNEL_PATH)


def plan_endpoints(
    seen: Neighbours, ports: Mapping[int, Link], bridge: Link, subnet: IPv4Network
) -> dict[IPv4Address, EndpointEntry]:
    """Containers of ours whose address, MAC and port the kernel knows.

    `ports`: by ifindex, those that carry our programs.
    """
    assert bridge.mac is not None
    found = {}
    for address, mac in seen.macs.items():
        port = seen.ports.get(mac)
        if port is not None and port in ports and address in subnet:
            found[address] = EndpointEntry(port, mac, bridge.mac)
    return found


def plan_filters(
    programs: Mapping[str, int], uplink: int, vxlan: int, ports: Iterable[int]
) -> dict[FilterKey, Filter]:
    """Which program (by name -> id) hangs where. No programs: nothing hangs anywhere."""
    if not programs:
        return {}
    places = {FilterKey(vxlan, False): "to_overlay"}
    for port in ports:
        places[FilterKey(port, True)] = "from_container"
        places[FilterKey(port, False)] = "to_container"
    # Last: until everything else is in place, what arrives takes the kernel path.
    places[FilterKey(uplink, True)] = "from_wire"
    return {key: Filter(name, programs[name]) for key, name in places.items()}


def wants_xdp(mode: HookMode, uplink: Link) -> bool:
    """Whether to try XDP on this uplink.

    On a veth it costs more than it saves: the peer loses its segmentation offload, and
    packets are copied. So `auto` leaves those to tc.
    """
    return mode is HookMode.XDP or (mode is HookMode.AUTO and uplink.kind != "veth")
