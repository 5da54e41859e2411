"""Choosing, judging and renewing leases. Pure.

The order in which a node finds its subnet: a lease that already carries its host
address, then the subnet that it had before, then one of the first free ones. Nothing
here ever takes a subnet from a live lease of another host.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import chain, islice
from typing import Any, Final, TypeVar

from ctl.core.errors import ConfigError, LeaseConflict, NetworkExhausted
from ctl.core.family import Member, Space
from ctl.core.host import Surroundings
from ctl.core.model import END_UNKNOWN, IPv6Lease, IPv6Range, Lease, N, Network, Subnets

CANDIDATES: Final = 100
"""Free subnets to pick from: more than one, so that nodes starting together seldom race."""

Pick = Callable[[Sequence[IPv4Network]], IPv4Network]
"""Takes one of the candidates, which are never empty; `random.choice` outside tests."""
PickIPv6 = Callable[[Sequence[IPv6Network]], IPv6Network]
"""The same of IPv6."""
M = TypeVar("M", bound=Member[Any, Any])
Span = tuple[int, int]
"""First and last address, as numbers."""
Cut = Network | IPv6Range
"""What a network has of one family, and how it is cut."""


NOTHING_AROUND: Final = Surroundings()


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


def fits(network: Cut, subnet: IPv4Network | IPv6Network) -> bool:
    """Whether `subnet` is one that `network` hands out, of the same family."""
    return subnet.prefixlen == network.subnet_len and (
        int(network.subnet_min.network_address)
        <= int(subnet.network_address)
        <= int(network.subnet_max.network_address)
    )


def span(subnet: IPv4Network | IPv6Network) -> Span:
    """First and last address, as numbers: comparing these is what keeps 10,000 leases quick."""
    first = int(subnet.network_address)
    return first, first + (1 << (subnet.max_prefixlen - subnet.prefixlen)) - 1


def meet(one: Span, other: Span) -> bool:
    """Whether they have an address in common."""
    return other[0] <= one[1] and one[0] <= other[1]


def inside(part: Span, whole: Span) -> bool:
    """Whether the one is a part of the other."""
    return whole[0] <= part[0] and part[1] <= whole[1]


def rank(lease: Member[Any, Any]) -> tuple[int, int]:
    """The order of leases: by first address, then from the largest subnet down."""
    return int(lease.subnet.network_address), lease.subnet.prefixlen


def holder(leases: Sequence[M], subnet: IPv4Network | IPv6Network) -> M | None:
    """The first lease that overlaps `subnet`; None if it is free.

    `leases` of the same family, in the order of `rank`.
    """
    first, last = span(subnet)
    # Prefixes overlap only by nesting: one around `subnet` begins where it would at that length.
    for length in range(subnet.prefixlen + 1):
        begin = first & -1 << (subnet.max_prefixlen - length)
        place = bisect_left(leases, (begin, length), key=rank)
        if place < len(leases) and rank(leases[place]) == (begin, length):
            return leases[place]
    place = bisect_left(leases, (first, subnet.prefixlen), key=rank)
    within = place < len(leases) and span(leases[place].subnet)[0] <= last
    return leases[place] if within else None


def free_subnets(
    network: Network, leases: Iterable[Lease], avoid: Iterable[Span] = ()
) -> Iterator[IPv4Network]:
    """Subnets that overlap no lease and nothing of `avoid`, from the lowest up."""
    taken = chain((span(lease.subnet) for lease in leases), avoid)
    return (IPv4Network((start, network.subnet_len)) for start in _free(network, taken))


def _free(cut: Cut, taken: Iterable[Span]) -> Iterator[int]:
    """First addresses of what overlaps none of these, from the lowest up."""
    taken = sorted(taken)
    size = 1 << (cut.network.max_prefixlen - cut.subnet_len)
    start, (stop, _) = int(cut.subnet_min.network_address), span(cut.subnet_max)
    index = 0
    while start <= stop:
        while index < len(taken) and taken[index][1] < start:
            index += 1
        if index < len(taken) and taken[index][0] < start + size:
            # Leap over the lease: the next boundary behind its last address.
            start = max(start + size, (taken[index][1] // size + 1) * size)
        else:
            yield start
            start += size


def with_ipv6(
    lease: Lease,
    network: Network,
    leases: Iterable[Lease],
    pick: PickIPv6,
    previous: IPv6Network | None = None,
    around: Surroundings = NOTHING_AROUND,
) -> Lease:
    """`lease` with an IPv6 subnet if the network has IPv6, and without one if it has not.

    The one that it has stays if it fits and is clear of the underlay (`around`); else it gets `previous`, if
    that does and is. NetworkExhausted if none is free among `leases`. ConfigError if each that is covers what
    this host needs to reach others.
    """
    cut = network.ipv6
    if cut is None:
        return replace(lease, ipv6=None)
    parts = [each.ipv6 for each in leases if each.ipv6 and each.subnet != lease.subnet]
    others, near = [part.subnet for part in parts], around.of(6)
    for subnet in filter(None, (_ipv6_subnet(lease), previous)):
        if fits(cut, subnet) and not any(map(subnet.overlaps, (*others, *near.links))):
            return with_assigned_ipv6(lease, network, subnet)
    hosts = [part.host for part in parts if part.host]
    candidates = _candidates(cut, partial(_free_ipv6, cut, others), hosts, near, MAKE_ROOM)
    return replace(lease, ipv6=IPv6Lease(pick(candidates)))


def _free_ipv6(cut: IPv6Range, taken: Iterable[IPv6Network], avoid: Iterable[Span]) -> Iterator[IPv6Network]:
    return (IPv6Network((start, cut.subnet_len)) for start in _free(cut, chain(map(span, taken), avoid)))


def with_assigned_ipv6(lease: Lease, network: Network, assigned: IPv6Network | None) -> Lease:
    """`lease` with the IPv6 subnet that it is given, if the network has IPv6.

    None: it is given none, and has IPv4 only.
    """
    if network.ipv6 is None or assigned is None:
        return replace(lease, ipv6=None)
    return lease if _ipv6_subnet(lease) == assigned else replace(lease, ipv6=IPv6Lease(assigned))


def moves(lease: Lease, before: Lease) -> bool:
    """Whether a lease is to have other subnets than before, and so where it is stored, another place."""
    return (lease.subnet, _ipv6_subnet(lease)) != (before.subnet, _ipv6_subnet(before))


def _ipv6_subnet(lease: Lease) -> IPv6Network | None:
    return lease.ipv6.subnet if lease.ipv6 else None


def clash(lease: Lease, leases: Iterable[Lease]) -> Lease | None:
    """The first of these that overlaps `lease` in one family or the other; None: it is free."""
    others = sorted(leases, key=rank)
    if (other := holder(others, lease.subnet)) or lease.ipv6 is None:
        return other
    own = lease.ipv6.subnet
    return next((each for each in others if each.ipv6 and each.ipv6.subnet.overlaps(own)), None)


def require_free(lease: Lease, leases: Iterable[Lease]) -> None:
    """LeaseConflict, with the subnet and its holder, if one of these overlaps `lease`."""
    if other := clash(lease, leases):
        own = _ipv6_subnet(lease)
        subnet = lease.subnet if own is None or lease.subnet.overlaps(other.subnet) else own
        raise LeaseConflict(f"{subnet} is taken: {in_words(other)}")


def choose(
    network: Network,
    leases: Iterable[Lease],
    host: IPv4Address,
    previous: IPv4Network | None,
    pick: Pick,
    around: Surroundings = NOTHING_AROUND,
) -> Choice:
    """What the node at `host` should do to hold a subnet.

    `leases` are the live ones. Of several leases of ours, a reservation goes first, then
    `previous`, then the lowest. NetworkExhausted if no subnet is free. ConfigError if the one that is
    ours, or each that is free, covers what this host needs to reach others (`around`).
    """
    leases, around = sorted(leases, key=rank), around.of(4)
    ours = [lease for lease in leases if lease.host == host]
    ours.sort(key=lambda lease: (lease.expires_at is not None, lease.subnet != previous, lease.subnet))
    for lease in ours:
        if fits(network, lease.subnet):
            return Keep(_off_the_underlay(lease, around))
    if ours:
        return Replace(ours[0])
    if previous is not None and _can_have_again(previous, network, leases, around):
        return Create(previous)
    return Create(_pick_free(network, leases, pick, around))


def named(leases: Iterable[Lease], subnet: IPv4Network, node: str) -> Lease | None:
    """The lease on `subnet` with the name of `node`, whatever address is in it; None: there is none."""
    return next((lease for lease in leases if lease.subnet == subnet and lease.node == node), None)


def take(assigned: Subnets, leases: Iterable[Lease], node: str, around: Surroundings) -> Keep | Create:
    """What the node of that name should do where the store gives out the subnets, and has given it these.

    Names are sure there, so nothing else makes a lease ours. ConfigError if it covers what this host needs.
    """
    for ground in around.underlay:
        subnet = assigned.ipv4 if ground.network.version == 4 else assigned.ipv6
        if subnet is not None and ground.network.overlaps(subnet):
            raise ConfigError(
                f"the subnet of this node, {subnet}, covers the underlay ({ground}), and the other hosts"
                " would be lost: give the cluster a range without them"
            )
    ours = named(leases, assigned.ipv4, node)
    return Create(assigned.ipv4) if ours is None else Keep(ours)


def _off_the_underlay(lease: Lease, around: Surroundings) -> Lease:
    """`lease`; ConfigError if its bridge would take the place of the link to the other hosts."""
    for ground in around.underlay:
        if ground.network.overlaps(lease.subnet):
            raise ConfigError(
                f"our lease {lease.subnet} covers the underlay ({ground}), and the other hosts would be lost:"
                f" release it (ovctl lease release {lease.subnet}), and {KEEP_CLEAR}"
            )
    return lease


KEEP_CLEAR: Final = "keep the hosts' own link out of what the network hands out (SubnetMin, SubnetMax)"
"""The remedy where a network of containers and one of hosts overlap."""


def _can_have_again(
    subnet: IPv4Network, network: Network, leases: Sequence[Lease], around: Surroundings
) -> bool:
    clear = not any(link.overlaps(subnet) for link in around.links)
    return clear and fits(network, subnet) and holder(leases, subnet) is None


def _pick_free(network: Network, leases: Sequence[Lease], pick: Pick, around: Surroundings) -> IPv4Network:
    """A subnet of IPv4 that this node can have. Raises as `choose`."""
    free, hosts = partial(free_subnets, network, leases), [each.host for each in leases]
    return pick(_candidates(network, free, hosts, around, _remedy(network, leases)))


def _candidates(
    cut: Space[N],
    free: Callable[[Iterable[Span]], Iterator[N]],
    hosts: Iterable[IPv4Address | IPv6Address],
    around: Surroundings,
    remedy: str,
) -> list[N]:
    """The first that are free, and as clear of what else is around as there are. All of one family.

    What lies in a subnet would be lost to this host; so would a peer. What lies around one goes on
    but for its addresses in there: those are taken where there are no others. `free`: subnets that are,
    without those that overlap what it is given; `remedy`: for a network that is full.
    """
    grounds = [ground.network for ground in around.others]
    small = [each for each in grounds if each.prefixlen >= cut.subnet_len]
    alone = [*(ground.address for ground in around.others if ground.address), *hosts]
    lost = [*map(span, (*around.links, *small)), *((host, host) for host in map(int, alone))]
    for avoid in ([*lost, *map(span, grounds)], lost):
        if found := list(islice(free(avoid), CANDIDATES)):
            return found
    where = f"between {cut.subnet_min} and {cut.subnet_max}"
    if any(free(())):
        what = "; ".join(map(str, (*around.underlay, *around.others)))
        raise ConfigError(
            f"each free /{cut.subnet_len} of {cut.network} {where} covers what this host or another"
            f" needs ({what}): {KEEP_CLEAR}"
        )
    raise NetworkExhausted(f"no /{cut.subnet_len} of {cut.network} is free {where}: {remedy}")


MAKE_ROOM: Final = "release a lease or make the network larger"


def _remedy(network: Network, leases: Iterable[Lease]) -> str:
    """What makes room; the largest lease by name, if it holds more than one of the subnets."""
    largest = min(leases, key=lambda lease: (lease.subnet.prefixlen, rank(lease)), default=None)
    if largest is None or largest.subnet.prefixlen >= network.subnet_len:
        return MAKE_ROOM
    return f"release {in_words(largest)}, which holds more than one of them, or make the network larger"


def in_words(lease: Member[Any, Any]) -> str:
    """Which subnet it is of, and whose it is, for people: "172.17.1.0/24 of a at 10.0.0.1"."""
    return (
        f"{lease.subnet} of {lease.node} at {lease.host}" if lease.node else f"{lease.subnet} of {lease.host}"
    )


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two leases that cannot both be right; `str` is a line for the log."""

    first: Member[Any, Any]
    second: Member[Any, Any]

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
