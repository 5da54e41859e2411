"""The leases that packets can be sent to, judged change by change. Pure.

    moves = roster.update(snapshot.leases)     whose peers went, and who came
    roster.usable, roster.problems             as they are now

What is in doubt is never spread over two hosts: of two leases that claim one address space
or one VTEP MAC, one of the network's own length is used, then the first by subnet, and ours
before all: a key put by hand around many leases takes nothing from them. A change costs what
it touches: ten thousand other leases are not looked at for it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from operator import is_
from typing import Final

from ctl.core.lease import Conflict, rank, span
from ctl.core.model import Lease, MacAddress, Network

Claim = IPv4Address | MacAddress
"""What only one lease can have: a block of the network, by its base address, or a VTEP MAC."""

MOST_BLOCKS: Final = 256
"""A lease of more blocks than that is not believed: somebody's mistake must not cost each node as much
as 65,536 peers do."""


@dataclass(frozen=True, slots=True)
class Moves:
    """Usable leases that went and that came, in order; a lease that changed is in both."""

    gone: tuple[Lease, ...] = ()
    new: tuple[Lease, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.gone or self.new)


def moves(before: Sequence[Lease], after: Sequence[Lease]) -> Moves:
    """What differs between two lists of leases.

    A store gives the same object for what has not changed, so that looking for those is
    quick; another object of the same value is no change either.
    """
    head = _same(before, after)
    tail = _same(before[:head:-1], after[:head:-1])
    before, after = before[head : len(before) - tail], after[head : len(after) - tail]
    known, kept = set(map(id, before)), set(map(id, after))
    gone = {lease.subnet: lease for lease in before if id(lease) not in kept}
    new = [lease for lease in after if id(lease) not in known]
    if gone:
        same = {lease.subnet for lease in new if gone.get(lease.subnet) == lease}
        gone = {subnet: lease for subnet, lease in gone.items() if subnet not in same}
        new = [lease for lease in new if lease.subnet not in same]
    return Moves(tuple(gone.values()), tuple(new))


def _same(one: Sequence[Lease], other: Sequence[Lease]) -> int:
    """How many of the first leases are the same objects."""
    same = list(map(is_, one, other))
    return same.index(False) if False in same else len(same)


class Roster:
    """The peers of the node that holds `own`, in `network`.

    `underlay`: the networks of its uplink, which a route to a peer's containers must not take over.
    """

    def __init__(self, own: Lease, network: Network, underlay: Sequence[IPv4Network] = ()) -> None:
        self.usable: dict[IPv4Network, Lease] = {}
        """The leases that packets can be sent to, by subnet."""
        self._own, self._network, self._underlay = own, network, underlay
        self._leases: Sequence[Lease] = ()
        self._claims: dict[Claim, tuple[Lease, ...]] = {}
        """The leases that claim a block or a MAC, the one that gets it first. Leases with which anything else
        is wrong are not among them."""
        self._ignored: dict[IPv4Network, str] = {}
        """Why each lease that is not used is not, one line, by its subnet."""
        self._hosts: dict[IPv4Address, tuple[Lease, ...]] = {}
        """The usable leases of each host, the first by subnet first."""
        self._shared: set[IPv4Address] = set()
        """Hosts that have more than one usable lease."""

    @property
    def problems(self) -> tuple[str, ...]:
        """A line for each lease that is not used, and for each two that share a host."""
        shared = (Conflict(*self._hosts[host][:2]) for host in sorted(self._shared))
        return (*(self._ignored[subnet] for subnet in sorted(self._ignored)), *map(str, shared))

    def at(self, host: IPv4Address) -> tuple[Lease, ...]:
        """The usable leases of a host."""
        return self._hosts.get(host, ())

    def hosts(self) -> Collection[IPv4Address]:
        """Hosts that have a usable lease."""
        return self._hosts.keys()

    def update(self, leases: Sequence[Lease]) -> Moves:
        """Take the store's leases as they are now; returns what that did to the usable ones."""
        changes = moves(self._leases, leases)
        self._leases = leases
        touched: dict[IPv4Network, Lease | None] = {}
        for lease in changes.gone:
            self._leave(lease, touched)
        for lease in changes.new:
            self._enter(lease, touched)
        return self._judge(touched)

    def _leave(self, lease: Lease, touched: dict[IPv4Network, Lease | None]) -> None:
        touched[lease.subnet] = None
        self._ignored.pop(lease.subnet, None)
        if self._wrong(lease):
            return
        for claim in self._claimed(lease):
            others = tuple(each for each in self._claims[claim] if each.subnet != lease.subnet)
            touched.update((each.subnet, each) for each in others)
            if others:
                self._claims[claim] = others
            else:
                del self._claims[claim]

    def _enter(self, lease: Lease, touched: dict[IPv4Network, Lease | None]) -> None:
        if lease.subnet == self._own.subnet:
            return
        touched[lease.subnet] = lease
        if self._wrong(lease):
            return
        for claim in self._claimed(lease):
            others = self._claims.get(claim, ())
            touched.update((each.subnet, each) for each in others)
            self._claims[claim] = (
                tuple(sorted((*others, lease), key=self._precedence)) if others else (lease,)
            )

    def _precedence(self, lease: Lease) -> tuple[bool, tuple[int, int]]:
        return lease.subnet.prefixlen != self._network.subnet_len, rank(lease)

    def _judge(self, touched: dict[IPv4Network, Lease | None]) -> Moves:
        gone, new = [], []
        for subnet, lease in touched.items():
            why = (self._wrong(lease) or self._rivalled(lease)) if lease else ""
            if lease and why:
                self._ignored[subnet] = f"lease {subnet} of {lease.node or lease.host} ignored: {why}"
            else:
                self._ignored.pop(subnet, None)
            before, after = self.usable.get(subnet), None if why else lease
            if before == after:
                continue
            if before is not None:
                del self.usable[subnet]
                self._seat(before.host, [each for each in self.at(before.host) if each.subnet != subnet])
                gone.append(before)
            if after is not None:
                self.usable[subnet] = after
                self._seat(after.host, [*self.at(after.host), after])
                new.append(after)
        return Moves(tuple(sorted(gone, key=rank)), tuple(sorted(new, key=rank)))

    def _seat(self, host: IPv4Address, leases: list[Lease]) -> None:
        self._hosts[host] = tuple(sorted(leases, key=rank)) if len(leases) > 1 else tuple(leases)
        (self._shared.add if len(leases) > 1 else self._shared.discard)(host)
        if not leases:
            del self._hosts[host]

    def _claimed(self, lease: Lease) -> Iterator[Claim]:
        """What `lease`, with which nothing else is wrong, would have to itself."""
        if lease.vtep_mac is not None:
            yield lease.vtep_mac
        yield from blocks(lease.subnet, self._network)

    def _rivalled(self, lease: Lease) -> str:
        """Why an earlier lease has what this one claims; "" if none has."""
        for claim in self._claimed(lease):
            for other in self._claims[claim]:
                if other.subnet == lease.subnet:
                    break
                if isinstance(claim, MacAddress):
                    return f"its VTEP MAC {claim} is that of {other.subnet}"
                if _overlap(other.subnet, lease.subnet):
                    return f"it overlaps {other.subnet} of {other.node or other.host}"
        return ""

    def _wrong(self, lease: Lease) -> str:
        """What is wrong with the lease itself, whoever else there is."""
        own, network = self._own, self._network
        if lease.backend != network.backend:
            return f"its backend is {lease.backend}, not {network.backend}"
        if not _within(lease.subnet, network.network):
            return f"it is not in {network.network}"
        if lease.subnet.prefixlen < network.subnet_len and count_blocks(lease.subnet, network) > MOST_BLOCKS:
            return f"it is larger than {MOST_BLOCKS} subnets of /{network.subnet_len}"
        if lease.host == own.host:
            return f"it carries our own host address {own.host}"
        if why := self._wrong_place(lease) or (self._wrong_vtep(lease) if network.backend == "vxlan" else ""):
            return why
        return "it overlaps our own" if _overlap(lease.subnet, own.subnet) else ""

    def _wrong_place(self, lease: Lease) -> str:
        """Whether its packets would have to take a route that they are the outside of."""
        for link in self._underlay:
            if _overlap(lease.subnet, link):
                return f"it covers {link}, the network of our uplink"
        host = int(lease.host)
        for subnet, whose in ((lease.subnet, "it"), (self._own.subnet, f"{self._own.subnet}, ours")):
            first, last = span(subnet)
            if first <= host <= last:
                return f"its host {lease.host} is in {whose}"
        return ""

    def _wrong_vtep(self, lease: Lease) -> str:
        mac, vni = lease.vtep_mac, self._network.vni
        if not (mac and mac.is_unicast):
            return f"it has no usable VTEP MAC ({mac})"
        if lease.vni not in (None, vni):
            return f"its VNI is {lease.vni}, not {vni}"
        return f"its VTEP MAC {mac} is that of {self._own.subnet}, ours" if mac == self._own.vtep_mac else ""


def blocks(subnet: IPv4Network, network: Network) -> Iterable[IPv4Address]:
    """Base addresses of the network's blocks that `subnet` has a part in: mostly its own one."""
    if subnet.prefixlen == network.subnet_len:
        return (subnet.network_address,)
    size = 1 << (32 - network.subnet_len)
    first, last = span(subnet)
    return map(IPv4Address, range(first & -size, last + 1, size))


def count_blocks(subnet: IPv4Network, network: Network) -> int:
    """How many blocks `subnet` has a part in."""
    return 1 << max(network.subnet_len - subnet.prefixlen, 0)


def _overlap(one: IPv4Network, other: IPv4Network) -> bool:
    (first, last), (start, end) = span(one), span(other)
    return start <= last and first <= end


def _within(subnet: IPv4Network, network: IPv4Network) -> bool:
    (first, last), (start, end) = span(subnet), span(network)
    return start <= first and last <= end
