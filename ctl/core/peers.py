"""What the peers ask of this node's kernel and maps, change by change. Pure.

tables.move(roster.update(leases), changed, hops)    who went and came, and how to reach them
tables.routes.delta(), ...                           what is to be done (see ctl.core.tracker)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from ctl.core.abi import PEER_F_KERNEL_PATH, PeerEntry
from ctl.core.host import Hop, Removed, Route, RouteKey, Sender
from ctl.core.model import DEFAULT_TTL, VXLAN_OVERHEAD, Lease, MacAddress, Network
from ctl.core.roster import Moves, Roster, blocks
from ctl.core.tracker import Tracker

Hops = Mapping[IPv4Address, Hop | None]
"""How the FIB reaches each host; None, or no entry, for one that eBPF cannot send to."""


def on_link(lease: Lease, hop: Hop | None) -> Hop | None:
    """`hop` if the lease's host is on a link of ours, so that plain routes reach it."""
    return hop if hop is not None and hop.next_hop == lease.host else None


class PeerTables:
    """The tables of the vxlan backend, for the usable leases of `roster`.

    `vxlan`: ifindex of our device. With DirectRouting, peers on our own link are routed to
    plainly; they may still send us VXLAN.
    """

    def __init__(self, roster: Roster, network: Network, vxlan: int) -> None:
        self.neighbours: Final = Tracker[IPv4Address, MacAddress]()
        """VTEP address -> MAC, on the vxlan device."""
        self.fdb: Final = Tracker[MacAddress, IPv4Address]()
        """VTEP MAC -> host, on the vxlan device."""
        self.routes: Final = Tracker[RouteKey, Route]()
        """Subnet -> VTEP address through the vxlan device, or host through the uplink."""
        self.vteps: Final = Tracker[IPv4Address, bool]()
        """Hosts that may send to us: for the programs."""
        self.senders: Final = Tracker[IPv4Address, bool]()
        """The same, for the rules of the kernel path."""
        self.peers: Final = Tracker[IPv4Address, PeerEntry]()
        """Block -> where eBPF sends packets for it."""
        self._roster, self._network, self._vxlan = roster, network, vxlan
        self._parts: dict[IPv4Address, dict[IPv4Network, PeerEntry]] = {}
        """The entries of the subnets that share a block, by subnet, where they are longer than a block."""
        self._slow: set[IPv4Address] = set()
        """Blocks that only the kernel path reaches."""

    def move(self, moves: Moves, rehopped: Iterable[IPv4Address], hops: Hops) -> None:
        """Leases of the roster went and came; `rehopped` hosts are reached in another way than before."""
        for lease in moves.gone:
            self._remove(lease)
        for host in rehopped:
            for lease in self._roster.at(host):
                self._put(lease, hops.get(host))
        for lease in moves.new:
            self._put(lease, hops.get(lease.host))

    def doubt(self) -> None:
        """What is there may be anything."""
        for tracker in (self.neighbours, self.fdb, self.routes, self.vteps, self.senders, self.peers):
            tracker.doubt()

    def wants(self, entry: Removed) -> bool:
        """Whether an entry that is no more should be there. Any thread may ask."""
        if isinstance(entry, RouteKey):
            return entry in self.routes.desired
        if isinstance(entry, Sender):
            return entry.host in self.senders.desired
        return entry in (self.fdb if isinstance(entry, MacAddress) else self.neighbours).desired

    def _put(self, lease: Lease, hop: Hop | None) -> None:
        mac = lease.vtep_mac
        assert mac is not None, "a Roster lets no other through"
        self.neighbours.put(lease.vtep_ip, mac)
        self.fdb.put(mac, lease.host)
        direct = on_link(lease, hop) if self._network.direct_routing else None
        if direct:
            route = Route(lease.host, direct.ifindex, mtu=direct.mtu)
        else:
            # Without it the device would fragment outside, where VTEPs must not (RFC 7348, 4.3).
            inner = hop.mtu - VXLAN_OVERHEAD if hop is not None and hop.mtu else 0
            route = Route(lease.vtep_ip, self._vxlan, onlink=True, mtu=inner)
        self.routes.put(RouteKey.of(lease.subnet), route)
        self.vteps.put(lease.host, True)
        self.senders.put(lease.host, True)
        # The programs know one MTU for all peers: who has a smaller one is the kernel path's.
        usable = hop if hop is not None and not direct and not hop.mtu else None
        self._put_blocks(lease, self._entry(lease, mac, usable))

    def _remove(self, lease: Lease) -> None:
        assert lease.vtep_mac is not None
        self.neighbours.drop(lease.vtep_ip)
        self.fdb.drop(lease.vtep_mac)
        self.routes.drop(RouteKey.of(lease.subnet))
        if not self._roster.at(lease.host):
            self.vteps.drop(lease.host)
            self.senders.drop(lease.host)
        self._drop_blocks(lease)

    def slow(self) -> int:
        """How many blocks only the kernel path reaches."""
        return len(self._slow)

    def _shared(self, lease: Lease) -> bool:
        """A subnet longer than the network's shares its block: only the kernel can tell them apart."""
        return lease.subnet.prefixlen > self._network.subnet_len

    def _entry(self, lease: Lease, mac: MacAddress, hop: Hop | None) -> PeerEntry:
        return PeerEntry(
            host=lease.host,
            vtep_mac=mac,
            port=self._network.port,
            vni=self._network.vni,
            ifindex=hop.ifindex if hop else 0,
            next_hop=hop.next_hop if hop else None,
            flags=PEER_F_KERNEL_PATH if hop is None or self._shared(lease) else 0,
            ttl=hop.ttl if hop else DEFAULT_TTL,
        )

    def _put_blocks(self, lease: Lease, entry: PeerEntry) -> None:
        for block in blocks(lease.subnet, self._network):
            if self._shared(lease):
                self._parts.setdefault(block, {})[lease.subnet] = entry
                self._put_block(block, _merged(self._parts[block]))
            else:
                self._put_block(block, entry)

    def _put_block(self, block: IPv4Address, entry: PeerEntry) -> None:
        self.peers.put(block, entry)
        (self._slow.add if entry.flags & PEER_F_KERNEL_PATH else self._slow.discard)(block)

    def _drop_blocks(self, lease: Lease) -> None:
        for block in blocks(lease.subnet, self._network):
            parts = self._parts.get(block, {})
            parts.pop(lease.subnet, None)
            if parts:
                self._put_block(block, _merged(parts))
            else:
                self._parts.pop(block, None)
                self.peers.drop(block)
                self._slow.discard(block)


def _merged(parts: Mapping[IPv4Network, PeerEntry]) -> PeerEntry:
    """Several hosts in one block: host 0 tells the source check to let all of them through.

    The rest is the first subnet's, in whatever order they came.
    """
    first = parts[min(parts)]
    if all(entry.host == first.host for entry in parts.values()):
        return first
    return replace(first, host=IPv4Address(0), flags=PEER_F_KERNEL_PATH)
