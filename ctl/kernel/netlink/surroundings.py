"""What else of the IPv4 space a host uses: addresses and routes that are none of the overlay's."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from ipaddress import IPv4Interface, IPv6Network
from socket import AF_INET

from pyroute2.netlink.rtnl import RTM_GETADDR
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg

from ctl.core.family import IPV4, IPV6
from ctl.core.host import Ground, Link, Surroundings
from ctl.kernel.netlink.message import body, message, unpack
from ctl.kernel.netlink.session import Netlink
from ctl.kernel.netlink.tables import ROUTE_PROTOCOL, RTMSG, main_routes, parse_route, prefix_length

Found = tuple[int, Ground, bool]
"""ifindex (0: none, or several), the ground, and whether it is on that interface's own link."""


def look_around(
    netlink: Netlink, uplink: int, ours: Collection[int], links: Mapping[int, Link]
) -> Surroundings:
    """Addresses and routes of all interfaces but `ours` (ifindexes), and but for loopback's. KernelError.

    `uplink`: ifindex; `links`: all of this host.
    """
    found = [
        each
        for each in (*_addresses(netlink, links), *_routes(netlink, links))
        if each[0] not in ours and not each[1].network.is_loopback
    ]
    # What is behind a gateway is no network of the uplink's own.
    near = [ground for ifindex, ground, direct in found if direct and ifindex == uplink]
    rest = [ground for ifindex, ground, direct in found if not (direct and ifindex == uplink)]
    return Surroundings(_once(near), _once(rest))


def look_at_underlay(netlink: Netlink, uplink: Link) -> tuple[Ground, ...]:
    """The uplink's own networks, and nothing else: cheap, also beside ten thousand peers. KernelError."""
    links = {uplink.ifindex: uplink}
    found = (*_addresses(netlink, links, uplink.ifindex), *_routes(netlink, links, uplink.ifindex))
    return _once(ground for _, ground, direct in found if direct and not ground.network.is_loopback)


def look_at_ipv6_underlay(netlink: Netlink, uplink: Link) -> tuple[IPv6Network, ...]:
    """The same of IPv6, networks only. What is of each link alone is none. KernelError."""
    found = {address.network for address in netlink.ipv6_addresses(uplink.ifindex)}
    with netlink.doing("list IPv6 routes"):
        routes = list(main_routes(netlink.rtnl, IPV6, by=uplink.ifindex))
    for key, route in (parse_route(content, IPV6) for content in routes if prefix_length(content)):
        if not int(route.via) and not key.subnet.is_link_local:
            found.add(key.subnet)
    return tuple(sorted(found))


def _once(grounds: Iterable[Ground]) -> tuple[Ground, ...]:
    """Sorted, and of each network on an interface one: an address before the route that comes with it."""
    found: dict[tuple[object, str], Ground] = {}
    for ground in grounds:
        found.setdefault((ground.network, ground.device), ground)
    return tuple(sorted(found.values(), key=lambda ground: (ground.network, ground.device)))


def _addresses(netlink: Netlink, links: Mapping[int, Link], of: int = 0) -> Iterator[Found]:
    """Those of one interface, or (0) of all."""
    with netlink.doing("list addresses"):
        found = netlink.rtnl.bulk.dump(RTM_GETADDR, body(message(ifaddrmsg, family=AF_INET, index=of)))
    for content in found:
        each = unpack(ifaddrmsg, content)
        ifindex, has = each["index"], IPv4Interface((each.get("local"), each["prefixlen"]))
        yield ifindex, Ground(has.network, _name(links, ifindex), has.ip), True


def _routes(netlink: Netlink, links: Mapping[int, Link], by: int = 0) -> Iterator[Found]:
    """Those of the main table, but for default routes and our own; by one interface, or (0) by any."""
    with netlink.doing("list routes"):
        found = [
            content
            for content in main_routes(netlink.rtnl, IPV4, by=by)
            if prefix_length(content) and RTMSG.unpack_from(content)[5] != ROUTE_PROTOCOL
        ]
    for key, route in (parse_route(content, IPV4) for content in found):
        yield route.ifindex, Ground(key.subnet, _name(links, route.ifindex)), not int(route.via)


def _name(links: Mapping[int, Link], ifindex: int) -> str:
    return links[ifindex].name if ifindex in links else ""
