"""Choosing, judging and renewing leases. Pure.

The order in which a node finds its subnet: a lease that already carries its host
address, then the subnet that it had before, then one of the first free ones. Nothing
here ever takes a subnet from a live lease of another host.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from itertools import islice
from typing import Final

from ctl.core.errors import NetworkExhausted
from ctl.core.model import END_UNKNOWN, Lease, Network

CANDIDATES: Final = 100
"""Free subnets to pick from: more than one, so that nodes starting together seldom race."""

Pick = Callable[[Sequence[IPv4Network]], IPv4Network]
"""Takes one of the candidates, which are never empty; `random.choice` outside tests."""


@dataclass(frozen=True, slots=True)
class Keep:
    """Take over this lease: it carries our host address and fits the network."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Replace:
    """Delete this lease of ours, which fits the network no longer, and choose again."""

    stale: Lease


@dataclass(frozen=True, slots=True)
class Create:
    """Create a lease on this subnet, which was free."""

    subnet: IPv4Network


Choice = Keep | Replace | Create


def fits(network: Network, subnet: IPv4Network) -> bool:
    """Whether `subnet` is one that `network` hands out."""
    return subnet.prefixlen == network.subnet_len and (
        int(network.subnet_min.network_address)
        <= int(subnet.network_address)
        <= int(network.subnet_max.network_address)
    )


def span(subnet: IPv4Network) -> tuple[int, int]:
    """First and last address, as numbers: comparing these is what keeps 10,000 leases quick."""
    first = int(subnet.network_address)
    return first, first + (1 << (32 - subnet.prefixlen)) - 1


def rank(lease: Lease) -> tuple[int, int]:
    """The order of leases: by first address, then from the largest subnet down."""
    return int(lease.subnet.network_address), lease.subnet.prefixlen


def holder(leases: Sequence[Lease], subnet: IPv4Network) -> Lease | None:
    """The first lease that overlaps `subnet`; None if it is free. `leases` in the order of `rank`."""
    first, last = span(subnet)
    # Prefixes overlap only by nesting: one around `subnet` begins where it would at that length.
    for length in range(subnet.prefixlen + 1):
        place = bisect_left(leases, (first & -1 << (32 - length), length), key=rank)
        if place < len(leases) and rank(leases[place]) == (first & -1 << (32 - length), length):
            return leases[place]
    place = bisect_left(leases, (first, subnet.prefixlen), key=rank)
    inside = place < len(leases) and span(leases[place].subnet)[0] <= last
    return leases[place] if inside else None


def free_subnets(network: Network, leases: Iterable[Lease]) -> Iterator[IPv4Network]:
    """Subnets that overlap no lease, from the lowest up."""
    taken = sorted(span(lease.subnet) for lease in leases)
    size = 1 << (32 - network.subnet_len)
    start, (stop, _) = int(network.subnet_min.network_address), span(network.subnet_max)
    index = 0
    while start <= stop:
        while index < len(taken) and taken[index][1] < start:
            index += 1
        if index < len(taken) and taken[index][0] < start + size:
            # Leap over the lease: the next boundary behind its last address.
            start = max(start + size, (taken[index][1] // size + 1) * size)
        else:
            yield IPv4Network((start, network.subnet_len))
            start += size


def choose(
    network: Network,
    leases: Iterable[Lease],
    host: IPv4Address,
    previous: IPv4Network | None,
    pick: Pick,
) -> Choice:
    """What the node at `host` should do to hold a subnet.

    `leases` are the live ones. Of several leases of ours, a reservation goes first, then
    `previous`, then the lowest. NetworkExhausted if no subnet is free.
    """
    leases = sorted(leases, key=rank)
    ours = [lease for lease in leases if lease.host == host]
    ours.sort(key=lambda lease: (lease.expires_at is not None, lease.subnet != previous, lease.subnet))
    for lease in ours:
        if fits(network, lease.subnet):
            return Keep(lease)
    if ours:
        return Replace(ours[0])
    if previous is not None and fits(network, previous) and holder(leases, previous) is None:
        return Create(previous)
    return Create(_pick_free(network, leases, pick))


def _pick_free(network: Network, leases: Iterable[Lease], pick: Pick) -> IPv4Network:
    found = free_subnets(network, leases)
    candidates = list(islice(found, CANDIDATES))
    if not candidates:
        raise NetworkExhausted(
            f"no /{network.subnet_len} of {network.network} is free between {network.subnet_min}"
            f" and {network.subnet_max}: {_remedy(network, leases)}"
        )
    return pick(candidates)


def _remedy(network: Network, leases: Iterable[Lease]) -> str:
    """What makes room; the largest lease by name, if it holds more than one of the subnets."""
    largest = min(leases, key=lambda lease: (lease.subnet.prefixlen, rank(lease)), default=None)
    if largest is None or largest.subnet.prefixlen >= network.subnet_len:
        return "release a lease or make the network larger"
    return f"release {in_words(largest)}, which holds more than one of them, or make the network larger"


def in_words(lease: Lease) -> str:
    """Which subnet it is of, and whose it is, for people: "172.17.1.0/24 of a at 10.0.0.1"."""
    return (
        f"{lease.subnet} of {lease.node} at {lease.host}" if lease.node else f"{lease.subnet} of {lease.host}"
    )


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two leases that cannot both be right; `str` is a line for the log."""

    first: Lease
    second: Lease

    def __str__(self) -> str:
        what = "one host address" if self.first.host == self.second.host else "overlapping subnets"
        return f"two leases with {what}: {in_words(self.first)}, {in_words(self.second)}"


def overlaps(leases: Iterable[Lease]) -> Iterator[Conflict]:
    """Leases whose subnet lies in that of another. Prefixes overlap only by nesting."""
    around: list[tuple[int, Lease]] = []
    for lease in sorted(leases, key=lambda lease: (span(lease.subnet)[0], lease.subnet.prefixlen)):
        first, last = span(lease.subnet)
        while around and around[-1][0] < first:
            around.pop()
        if around:
            yield Conflict(around[-1][1], lease)
        around.append((last, lease))


def shared_hosts(leases: Iterable[Lease]) -> Iterator[Conflict]:
    """Leases that carry the host address of an earlier one."""
    seen: dict[IPv4Address, Lease] = {}
    for lease in leases:
        first = seen.setdefault(lease.host, lease)
        if first is not lease:
            yield Conflict(first, lease)


def conflicts(leases: Sequence[Lease]) -> tuple[Conflict, ...]:
    """All that is wrong among `leases`: overlapping subnets, then shared host addresses."""
    found = dict.fromkeys(overlaps(leases))
    found.update(dict.fromkeys(shared_hosts(leases)))
    return tuple(found)


def renew_at(lease: Lease, ttl: float, margin: float) -> float:
    """When to renew, seconds since the epoch; never (inf) for a reservation.

    `ttl` and `margin` in seconds. A margin of more than half the life means at half of it.
    At once (0) where the end is not known: somebody put our entry on another lease of the store.
    """
    if lease.expires_at is None:
        return math.inf
    if lease.expires_at == END_UNKNOWN:
        return 0.0
    return lease.expires_at - min(margin, ttl / 2)
