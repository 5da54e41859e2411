"""The leases that packets can be sent to, judged change by change. Pure.

    moves = roster.update(snapshot.leases)     whose peers went, and who came
    roster.usable, roster.problems             as they are now

A roster is about one family: what it has of the leases is their part in that (ctl.core.family).
What is in doubt is never spread over two hosts: of two leases that claim one address space
or one VTEP MAC, one of the network's own length is used, then the first by subnet, and ours
before all: a key put by hand around many leases takes nothing from them. A change costs what
it touches: ten thousand other leases are not looked at for it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from operator import is_
from typing import Any, Final, Generic, TypeVar

from ctl.core.family import Family, Member, Space
from ctl.core.lease import Conflict, Span, inside, meet, rank, span
from ctl.core.model import A, Lease, MacAddress, N, Network

Touched = dict[IPv4Network, Member[A, N] | None]
"""Leases that have to be judged, by their keys; None: one that is gone."""
M = TypeVar("M", bound=Member[Any, Any])

Claim = int | MacAddress
"""What only one lease can have: a block of the network, by its base address, or a VTEP MAC."""

MOST_BLOCKS: Final = 256
"""A lease of more blocks than that is not believed: somebody's mistake must not cost each node as much
as 65,536 peers do."""


@dataclass(frozen=True, slots=True)
class Moves(Generic[M]):
    """Leases that went and that came, in order; a lease that changed is in both."""

    gone: tuple[M, ...] = ()
    new: tuple[M, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.gone or self.new)


def moves(before: Sequence[Lease], after: Sequence[Lease]) -> Moves[Lease]:
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


class Roster(Generic[A, N]):
    """The peers of the node that holds `own`, in `network`: both have the family.

    `underlay`: the networks of its uplink, which a route to a peer's containers must not take over.
    """

    def __init__(
        self,
        family: Family[A, N],
        own: Lease,
        network: Network,
        underlay: Sequence[IPv4Network | IPv6Network] = (),
    ) -> None:
        self.usable: dict[IPv4Network, Member[A, N]] = {}
        """The leases that packets can be sent to, by their keys."""
        member, space = family.member(own), family.space(network)
        assert member is not None and space is not None, f"node or network without {family}"
        self._own: Final[Member[A, N]] = member
        self._space: Final[Space[N]] = space
        self._underlay = [(span(each), each) for each in underlay if each.version == family.version]
        self._family, self._network = family, network
        self._space_span, self._own_span = span(space.network), span(member.subnet)
        self._own_host = int(member.host)
        self._leases: Sequence[Lease] = ()
        self._claims: dict[Claim, tuple[Member[A, N], ...]] = {}
        """The leases that claim a block or a MAC, the one that gets it first. Leases with which anything else
        is wrong are not among them."""
        self._ignored: dict[IPv4Network, str] = {}
        """Why each lease that is not used is not, one line, by its key."""
        self._hosts: dict[A, tuple[Member[A, N], ...]] = {}
        """The usable leases of each host, the first by subnet first."""
        self._shared: set[A] = set()
        """Hosts that have more than one usable lease."""

    @property
    def problems(self) -> tuple[str, ...]:
        """A line for each lease that is not used, and for each two that share a host."""
        shared = (Conflict(*self._hosts[host][:2]) for host in sorted(self._shared, key=int))
        return (*(self._ignored[subnet] for subnet in sorted(self._ignored)), *map(str, shared))

    def at(self, host: A) -> tuple[Member[A, N], ...]:
        """The usable leases of a host."""
        return self._hosts.get(host, ())

    def hosts(self) -> Collection[A]:
        """Hosts that have a usable lease."""
        return self._hosts.keys()

    def update(self, leases: Sequence[Lease]) -> Moves[Member[A, N]]:
        """Take the store's leases as they are now; returns what that did to the usable ones."""
        changes = moves(self._leases, leases)
        self._leases = leases
        touched: Touched[A, N] = {}
        wrong: dict[IPv4Network, str] = {}
        for gone in filter(None, map(self._family.member, changes.gone)):
            self._leave(gone, touched)
        for new in filter(None, map(self._family.member, changes.new)):
            if new.key != self._own.key:
                touched[new.key] = new
                if why := self._wrong(new):
                    wrong[new.key] = why
                else:
                    self._enter(new, touched)
        return self._judge(touched, wrong)

    def _leave(self, lease: Member[A, N], touched: Touched[A, N]) -> None:
        touched[lease.key] = None
        self._ignored.pop(lease.key, None)
        if self._wrong(lease):
            return
        for claim in self._claimed(lease):
            others = tuple(each for each in self._claims[claim] if each.key != lease.key)
            touched.update((each.key, each) for each in others)
            if others:
                self._claims[claim] = others
            else:
                del self._claims[claim]

    def _enter(self, lease: Member[A, N], touched: Touched[A, N]) -> None:
        """One with which nothing is wrong in itself."""
        alone = (lease,)  # for each claim the same one: mostly nobody else has any
        for claim in self._claimed(lease):
            others = self._claims.get(claim, ())
            touched.update((each.key, each) for each in others)
            self._claims[claim] = tuple(sorted((*others, lease), key=self._precedence)) if others else alone

    def _precedence(self, lease: Member[A, N]) -> tuple[bool, tuple[int, int], IPv4Network]:
        return lease.subnet.prefixlen != self._space.subnet_len, rank(lease), lease.key

    def _judge(self, touched: Touched[A, N], wrong: Mapping[IPv4Network, str]) -> Moves[Member[A, N]]:
        """`wrong`: what is wrong with some of them in themselves."""
        gone, new = [], []
        for key, lease in touched.items():
            why = ((wrong and wrong.get(key)) or self._rivalled(lease)) if lease else ""
            if lease and why:
                self._ignored[key] = f"lease {lease.subnet} of {lease.node or lease.host} ignored: {why}"
            elif self._ignored:
                self._ignored.pop(key, None)
            before, after = self.usable.get(key), None if why else lease
            if before == after:
                continue
            if before is not None:
                del self.usable[key]
                self._unseat(before)
                gone.append(before)
            if after is not None:
                self.usable[key] = after
                self._seat(after)
                new.append(after)
        return Moves(tuple(sorted(gone, key=rank)), tuple(sorted(new, key=rank)))

    def _seat(self, lease: Member[A, N]) -> None:
        others = self.at(lease.host)
        self._hosts[lease.host] = tuple(sorted((*others, lease), key=rank)) if others else (lease,)
        if others:
            self._shared.add(lease.host)

    def _unseat(self, lease: Member[A, N]) -> None:
        others = tuple(each for each in self.at(lease.host) if each is not lease)
        if others:
            self._hosts[lease.host] = others
        else:
            del self._hosts[lease.host]
        if len(others) < 2:
            self._shared.discard(lease.host)

    def _claimed(self, lease: Member[A, N]) -> Iterator[Claim]:
        """What `lease`, with which nothing else is wrong, would have to itself."""
        if lease.vtep_mac is not None:
            yield lease.vtep_mac
        yield from blocks(lease.subnet, self._space)

    def _rivalled(self, lease: Member[A, N]) -> str:
        """Why an earlier lease has what this one claims; "" if none has."""
        for claim in self._claimed(lease):
            for other in self._claims[claim]:
                if other is lease:
                    break
                if isinstance(claim, MacAddress):
                    return f"its VTEP MAC {claim} is that of {other.subnet}"
                if meet(span(other.subnet), span(lease.subnet)):
                    return f"it overlaps {other.subnet} of {other.node or other.host}"
        return ""

    def _wrong(self, lease: Member[A, N]) -> str:
        """What is wrong with the lease itself, whoever else there is."""
        network, space = self._network, self._space
        here, host = span(lease.subnet), int(lease.host)
        if lease.backend != network.backend:
            return f"its backend is {lease.backend}, not {network.backend}"
        if not inside(here, self._space_span):
            return f"it is not in {space.network}"
        if lease.subnet.prefixlen < space.subnet_len and count_blocks(lease.subnet, space) > MOST_BLOCKS:
            return f"it is larger than {MOST_BLOCKS} subnets of /{space.subnet_len}"
        if not host or host == self._own_host:
            ours = f"carries our own host address {lease.host}"
            return f"it {ours if host else f'does not say the {self._family} address of its host'}"
        if why := self._wrong_place(here, host) or (
            self._wrong_vtep(lease) if network.backend == "vxlan" else ""
        ):
            return why
        return "it overlaps our own" if meet(here, self._own_span) else ""

    def _wrong_place(self, here: Span, host: int) -> str:
        """Whether packets to what is there would have to take a route that they are the outside of."""
        for there, link in self._underlay:
            if meet(here, there):
                return f"it covers {link}, the network of our uplink"
        if inside((host, host), here):
            return f"its host {self._family.address(host)} is in it"
        if inside((host, host), self._own_span):
            return f"its host {self._family.address(host)} is in {self._own.subnet}, ours"
        return ""

    def _wrong_vtep(self, lease: Member[A, N]) -> str:
        mac, vni = lease.vtep_mac, self._network.vni
        if not (mac and mac.is_unicast):
            return f"it has no usable VTEP MAC ({mac})"
        if lease.vni not in (None, vni):
            return f"its VNI is {lease.vni}, not {vni}"
        return f"its VTEP MAC {mac} is that of {self._own.subnet}, ours" if mac == self._own.vtep_mac else ""


def blocks(subnet: IPv4Network | IPv6Network, space: Space[Any]) -> Iterable[int]:
    """Base addresses of the space's blocks that `subnet` has a part in: mostly its own one."""
    if subnet.prefixlen == space.subnet_len:
        return (int(subnet.network_address),)
    size = 1 << (subnet.max_prefixlen - space.subnet_len)
    first, last = span(subnet)
    return range(first & -size, last + 1, size)


def count_blocks(subnet: IPv4Network | IPv6Network, space: Space[Any]) -> int:
    """How many blocks `subnet` has a part in."""
    return 1 << max(space.subnet_len - subnet.prefixlen, 0)
