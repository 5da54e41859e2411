"""What else of the overlay's families a host uses: addresses and routes that are none of the overlay's."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ctl.core.family import Family
from ctl.core.host import Ground, Link, Surroundings
from ctl.kernel.netlink import addressing
from ctl.kernel.netlink.session import Netlink
from ctl.kernel.netlink.tables import ROUTE_PROTOCOL, RTMSG, main_routes, parse_route, prefix_length

Families = Sequence[Family[Any, Any]]
Found = tuple[int, Ground, bool]
"""ifindex (0: none, or several), the ground, and whether it is on that interface's own link."""


def look_around(
    netlink: Netlink, families: Families, uplink: int, ours: Collection[int], links: Mapping[int, Link]
) -> Surroundings:
    """Addresses and routes of all interfaces but `ours` (ifindexes), and but for loopback's. KernelError.

    `uplink`: ifindex; `links`: all of this host.
    """
    found = [each for each in _found(netlink, families, links) if each[0] not in ours]
    # What is behind a gateway is no network of the uplink's own.
    near = [ground for ifindex, ground, direct in found if direct and ifindex == uplink]
    rest = [ground for ifindex, ground, direct in found if not (direct and ifindex == uplink)]
    return Surroundings(_once(near), _once(rest))


def look_at_underlay(netlink: Netlink, families: Families, uplink: Link) -> tuple[Ground, ...]:
    """The uplink's own networks, and nothing else: cheap, also beside ten thousand peers. KernelError."""
    found = _found(netlink, families, {uplink.ifindex: uplink}, uplink.ifindex)
    return _once(ground for _, ground, direct in found if direct)


def _found(netlink: Netlink, families: Families, links: Mapping[int, Link], of: int = 0) -> Iterator[Found]:
    """Of one interface, or (0) of all. What is of this host, or of each link, alone is no network."""
    for family in families:
        for each in (*_addresses(netlink, family, links, of), *_routes(netlink, family, links, of)):
            network = each[1].network
            if not network.is_loopback and not (family.version == 6 and network.is_link_local):
                yield each


def _once(grounds: Iterable[Ground]) -> tuple[Ground, ...]:
    """Sorted, and of each network on an interface one: an address before the route that comes with it."""
    found: dict[tuple[object, str], Ground] = {}
    for ground in grounds:
        found.setdefault((ground.network, ground.device), ground)
    return tuple(sorted(found.values(), key=_order))


def _order(ground: Ground) -> tuple[int, int, int, str]:
    network = ground.network
    return network.version, int(network.network_address), network.prefixlen, ground.device


def _addresses(
    netlink: Netlink, family: Family[Any, Any], links: Mapping[int, Link], of: int
) -> Iterator[Found]:
    with netlink.doing("list addresses"):
        found = addressing.with_interfaces(netlink.rtnl, of, family.version)
    for ifindex, has in found:
        yield ifindex, Ground(has.network, _name(links, ifindex), has.ip), True


def _routes(
    netlink: Netlink, family: Family[Any, Any], links: Mapping[int, Link], by: int
) -> Iterator[Found]:
    """Those of the main table, but for default routes and our own."""
    with netlink.doing("list routes"):
        found = [
            content
            for content in main_routes(netlink.rtnl, family, by=by)
            if prefix_length(content) and RTMSG.unpack_from(content)[5] != ROUTE_PROTOCOL
        ]
    for key, route in (parse_route(content, family) for content in found):
        yield route.ifindex, Ground(key.subnet, _name(links, route.ifindex)), not int(route.via)


def _name(links: Mapping[int, Link], ifindex: int) -> str:
    return links[ifindex].name if ifindex in links else ""
