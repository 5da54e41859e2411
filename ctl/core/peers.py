"""What the peers ask of this node's kernel and maps, change by change. Pure.

    moves = roster.update(leases)
    tables.move(moves, changed, hops)       who went and came, and how to reach them
    tables.routes.delta(), ...              what is to be done (see ctl.core.tracker)

All are those of one family, whichever it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final, Generic

from ctl.core.abi import PEER_F_KERNEL_PATH, PeerEntry
from ctl.core.family import Family, Member, Space
from ctl.core.host import Hop, Removed, Route, RouteKey, Sender
from ctl.core.lease import span
from ctl.core.model import DEFAULT_TTL, A, MacAddress, N, Network
from ctl.core.roster import Moves, Roster, blocks
from ctl.core.tracker import Tracker

Hops = Mapping[A, Hop[A] | None]
"""How the FIB reaches each host; None, or no entry, for one that eBPF cannot send to."""


def on_link(lease: Member[A, N], hop: Hop[A] | None) -> Hop[A] | None:
    """`hop` if the lease's host is on a link of ours, so that plain routes reach it."""
    return hop if hop is not None and hop.next_hop == lease.host else None


def _due(
    roster: Roster[A, N], moves: Moves[Member[A, N]], rehopped: Iterable[A], hops: Hops[A]
) -> Iterator[tuple[Member[A, N], Hop[A] | None]]:
    """What has to be put: leases of hosts that are reached in another way, and those that came."""
    for host in rehopped:
        for lease in roster.at(host):
            yield lease, hops.get(host)
    for lease in moves.new:
        yield lease, hops.get(lease.host)


class KernelTables(Generic[A, N]):
    """The tables of the kernel path of VXLAN in one family, for the usable leases of `roster`.

    `vxlan`: ifindex of our device. With DirectRouting, peers on our own link are routed to
    plainly; they may still send us VXLAN.
    """

    def __init__(self, family: Family[A, N], roster: Roster[A, N], network: Network, vxlan: int) -> None:
        self.neighbours: Final = Tracker[A, MacAddress]()
        """What subnets are routed to -> MAC, on the vxlan device."""
        self.fdb: Final = Tracker[MacAddress, A]()
        """VTEP MAC -> host, on the vxlan device."""
        self.routes: Final = Tracker[RouteKey[N], Route[A]]()
        """Subnet -> the peer's address on the vxlan device, or host through the uplink."""
        self.senders: Final = Tracker[A, bool]()
        """Hosts that may send to us, for the rules."""
        self._family, self._roster, self._network, self._vxlan = family, roster, network, vxlan

    def move(self, moves: Moves[Member[A, N]], rehopped: Iterable[A], hops: Hops[A]) -> None:
        """Leases of the roster went and came; `rehopped` hosts are reached in another way than before."""
        for lease in moves.gone:
            self._remove(lease)
        for lease, hop in _due(self._roster, moves, rehopped, hops):
            self._put(lease, hop)

    def doubt(self) -> None:
        """What is there may be anything."""
        for tracker in (self.neighbours, self.fdb, self.routes, self.senders):
            tracker.doubt()

    def wants(self, entry: Removed) -> bool:
        """Whether an entry that is no more should be there. Any thread may ask."""
        if isinstance(entry, RouteKey):
            return entry in self.routes.desired
        if isinstance(entry, Sender):
            return entry.host in self.senders.desired
        return entry in (self.fdb if isinstance(entry, MacAddress) else self.neighbours).desired

    def _put(self, lease: Member[A, N], hop: Hop[A] | None) -> None:
        mac = lease.vtep_mac
        assert mac is not None, "a Roster lets no other through"
        self.neighbours.put(lease.overlay_hop, mac)
        self.fdb.put(mac, lease.host)
        self.routes.put(RouteKey.of(lease.subnet), self._route(lease, hop))
        self.senders.put(lease.host, True)

    def _route(self, lease: Member[A, N], hop: Hop[A] | None) -> Route[A]:
        if self._network.direct_routing and (direct := on_link(lease, hop)):
            return Route(lease.host, direct.ifindex, mtu=direct.mtu)
        # Without it the device would fragment outside, where VTEPs must not (RFC 7348, 4.3).
        inner = hop.mtu - self._family.vxlan_overhead if hop is not None and hop.mtu else 0
        via = lease.overlay_hop
        return Route(via, self._vxlan, onlink=not via.is_link_local, mtu=inner)

    def _remove(self, lease: Member[A, N]) -> None:
        assert lease.vtep_mac is not None
        self.neighbours.drop(lease.overlay_hop)
        self.fdb.drop(lease.vtep_mac)
        self.routes.drop(RouteKey.of(lease.subnet))
        if not self._roster.at(lease.host):
            self.senders.drop(lease.host)


class PeerMaps(Generic[A, N]):
    """The maps of the shortcut in one family, for the usable leases of `roster`."""

    def __init__(self, family: Family[A, N], roster: Roster[A, N], network: Network) -> None:
        self.vteps: Final = Tracker[A, bool]()
        """Hosts that may send to us."""
        self.peers: Final = Tracker[A, PeerEntry]()
        """Block -> where eBPF sends packets for it."""
        space = family.space(network)
        assert space is not None, f"a network without {family}"
        self._space: Final[Space[N]] = space
        self._family, self._roster, self._network = family, roster, network
        self._parts: dict[A, dict[N, PeerEntry]] = {}
        """The entries of the subnets that share a block, by subnet, where they are longer than a block."""
        self._slow: set[A] = set()
        """Blocks that only the kernel path reaches."""

    def move(self, moves: Moves[Member[A, N]], rehopped: Iterable[A], hops: Hops[A]) -> None:
        """As KernelTables.move."""
        for lease in moves.gone:
            if not self._roster.at(lease.host):
                self.vteps.drop(lease.host)
            self._drop_blocks(lease)
        for lease, hop in _due(self._roster, moves, rehopped, hops):
            self._put(lease, hop)

    def doubt(self) -> None:
        """What is there may be anything."""
        self.vteps.doubt()
        self.peers.doubt()

    def slow(self) -> int:
        """How many blocks only the kernel path reaches."""
        return len(self._slow)

    def _put(self, lease: Member[A, N], hop: Hop[A] | None) -> None:
        self.vteps.put(lease.host, True)
        direct = self._network.direct_routing and on_link(lease, hop)
        # The programs know one MTU for all peers: who has a smaller one is the kernel path's.
        usable = hop if hop is not None and not direct and not hop.mtu else None
        self._put_blocks(lease, self._entry(lease, usable))

    def _shared(self, lease: Member[A, N]) -> bool:
        """A subnet longer than the network's shares its block: only the kernel can tell them apart."""
        return lease.subnet.prefixlen > self._space.subnet_len

    def _entry(self, lease: Member[A, N], hop: Hop[A] | None) -> PeerEntry:
        assert lease.vtep_mac is not None, "a Roster lets no other through"
        return PeerEntry(
            host=lease.host,
            vtep_mac=lease.vtep_mac,
            port=self._network.port,
            vni=self._network.vni,
            ifindex=hop.ifindex if hop else 0,
            next_hop=hop.next_hop if hop else None,
            flags=PEER_F_KERNEL_PATH if hop is None or self._shared(lease) else 0,
            ttl=hop.ttl if hop else DEFAULT_TTL,
        )

    def _blocks(self, lease: Member[A, N]) -> Iterable[A]:
        if lease.subnet.prefixlen == self._space.subnet_len:
            return (lease.vtep_ip,)  # mostly: an address that is there already
        return map(self._family.address, blocks(lease.subnet, self._space))

    def _put_blocks(self, lease: Member[A, N], entry: PeerEntry) -> None:
        for block in self._blocks(lease):
            if self._shared(lease):
                self._parts.setdefault(block, {})[lease.subnet] = entry
                self._put_block(block, _merged(self._parts[block]))
            else:
                self._put_block(block, entry)

    def _put_block(self, block: A, entry: PeerEntry) -> None:
        self.peers.put(block, entry)
        (self._slow.add if entry.flags & PEER_F_KERNEL_PATH else self._slow.discard)(block)

    def _drop_blocks(self, lease: Member[A, N]) -> None:
        for block in self._blocks(lease):
            parts = self._parts.get(block, {})
            parts.pop(lease.subnet, None)
            if parts:
                self._put_block(block, _merged(parts))
            else:
                self._parts.pop(block, None)
                self.peers.drop(block)
                self._slow.discard(block)


def _merged(parts: Mapping[N, PeerEntry]) -> PeerEntry:
    """Several hosts in one block: host 0 tells the source check to let all of them through.

    The rest is the first subnet's, in whatever order they came.
    """
    first = parts[min(parts, key=span)]
    if all(entry.host == first.host for entry in parts.values()):
        return first
    return replace(first, host=type(first.host)(0), flags=PEER_F_KERNEL_PATH)
