"""Which interface is the uplink, and which of its addresses is ours: in flannel's ways to say so."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address

from ctl.core.errors import AgentError, KernelError
from ctl.core.host import OWNER, Link, Uplink
from ctl.kernel.netlink.fib import route_to
from ctl.kernel.netlink.session import Netlink, by_name
from ctl.kernel.netlink.tables import main_routes, parse_route, prefix_length


@dataclass(frozen=True, slots=True)
class UplinkChoice:
    """How the uplink is chosen: by the first of these that is given, else it is the default route's."""

    iface: str = ""
    """Its name, or an IPv4 address of it."""
    pattern: str = ""
    """A regular expression that an address of it contains, else its name."""
    can_reach: IPv4Address | None = None
    """A host that the kernel sends to through it."""
    public_ip: IPv4Address | None = None
    """The address to publish; None: the one that named it, else the first."""


Named = tuple[Link, list[IPv4Address]]
"""An interface, and its addresses that may be ours, the best first."""


def find_uplink(netlink: Netlink, choice: UplinkChoice, before: IPv4Address | None = None) -> Uplink:
    """The underlay interface and our address on it.

    The address that we had `before` stays ours while it is there: a second one must not
    take over. AgentError if there is none.
    """
    links = netlink.links()
    link, candidates = _named(netlink, choice, links)
    if not candidates:
        raise AgentError(f"uplink {link.name} has no IPv4 address: give it one, or choose another --iface")
    if choice.public_ip:
        if choice.public_ip not in _addresses(netlink, link):
            raise AgentError(
                f"uplink {link.name} does not have {choice.public_ip}: see --public-ip and --iface"
            )
        return Uplink(link, choice.public_ip)
    return Uplink(link, before if before in candidates else candidates[0])


def follow_uplink(netlink: Netlink, choice: UplinkChoice, before: Uplink) -> tuple[Uplink, str]:
    """The uplink as it is now, and what is wrong with it or "".

    An interface that was given another name is the same one, with the same peers behind it: that
    `--iface` names it no more is to be said, but no reason to lose packets. AgentError as `find_uplink`.
    """
    try:
        return find_uplink(netlink, choice, before.address), ""
    except AgentError as error:
        link = netlink.links().get(before.link.ifindex)
        if not choice.iface or link is None or link.name == choice.iface:
            raise
        if before.address not in _addresses(netlink, link):
            raise
        return Uplink(
            link, before.address
        ), f"{error}; it is called {link.name} now, and used until a restart"


def _named(netlink: Netlink, choice: UplinkChoice, links: Mapping[int, Link]) -> Named:
    if choice.iface:
        return _by_name(netlink, choice.iface, links)
    if choice.pattern:
        return _by_pattern(netlink, choice.pattern, links.values())
    if choice.can_reach:
        return _by_route(netlink, choice.can_reach, links)
    link = _default(netlink, links)
    return link, _addresses(netlink, link)


def _addresses(netlink: Netlink, link: Link) -> list[IPv4Address]:
    """Those that other hosts can send to."""
    return [each.ip for each in netlink.addresses(link.ifindex) if not each.is_loopback]


def _by_name(netlink: Netlink, name: str, links: Mapping[int, Link]) -> Named:
    if named := by_name(links, name):
        return named, _addresses(netlink, named)
    try:
        address = IPv4Address(name)
    except ValueError:
        raise AgentError(f"uplink {name} does not exist: see --iface") from None
    for link in links.values():
        if address in _addresses(netlink, link):
            return link, [address]
    raise AgentError(f"no interface has address {address}: see --iface")


def _by_pattern(netlink: Netlink, pattern: str, links: Iterable[Link]) -> Named:
    """Addresses first, as flannel looks. Loopback and our own devices are no uplinks."""
    found = [(link, _addresses(netlink, link)) for link in links if link.alias != OWNER and link.name != "lo"]
    for link, addresses in found:
        if matching := [each for each in addresses if re.search(pattern, str(each))]:
            return link, matching
    for link, addresses in found:
        if re.search(pattern, link.name):
            return link, addresses
    seen = ", ".join(f"{link.name} {' '.join(map(str, addresses))}".strip() for link, addresses in found)
    raise AgentError(f"no interface matches {pattern!r}: there are {seen or 'none'}; see --iface-regex")


def _by_route(netlink: Netlink, host: IPv4Address, links: Mapping[int, Link]) -> Named:
    try:
        with netlink.doing(f"route to {host}"):
            ifindex, source = route_to(netlink.rtnl, host)
    except KernelError as error:
        raise AgentError(f"{error}: see --iface-can-reach") from error
    link = links.get(ifindex)
    if link is None or source is None:
        raise AgentError(f"no interface leads to {host}: see --iface-can-reach")
    return link, [source]


def _default(netlink: Netlink, links: Mapping[int, Link]) -> Link:
    with netlink.doing("list routes"):
        # Their prefix lengths first: there may be a route for each of thousands of peers.
        found = [parse_route(body) for body in main_routes(netlink.rtnl) if not prefix_length(body)]
    routes = [(key.metric, route.ifindex) for key, route in found if route.ifindex]
    if not routes:
        raise AgentError("no default route to find the uplink by: name it with --iface")
    _, ifindex = min(routes, key=lambda route: route[0])
    if ifindex not in links:  # the links were listed before the routes
        raise KernelError("find the default route's interface: it vanished meanwhile")
    return links[ifindex]
