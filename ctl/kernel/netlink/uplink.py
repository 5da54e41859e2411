"""What the decision about the uplink (ctl.core.uplink) is made of: asked of the kernel."""

from __future__ import annotations

from collections.abc import Iterator

from ctl.core.candidates import Host, UplinkChoice
from ctl.core.errors import KernelError
from ctl.core.family import IPV4
from ctl.core.model import A
from ctl.kernel.netlink import address
from ctl.kernel.netlink.fib import interfaces, route_to
from ctl.kernel.netlink.session import Netlink
from ctl.kernel.netlink.tables import main_routes, parse_route, prefix_length


def survey(netlink: Netlink, asked: UplinkChoice) -> Host:
    """Interfaces and addresses, and what else the request goes by. KernelError."""
    links = netlink.links()
    with netlink.doing("list addresses"):
        addresses = address.listing(netlink.rtnl)
    if asked.ipv6:
        return Host(links, addresses, holder=netlink.interface_with(asked.ipv6))
    if asked.iface or asked.pattern:
        return Host(links, addresses)
    if asked.can_reach:
        reached, why = _reached(netlink, asked.can_reach)
        return Host(links, addresses, reached=reached, unreached=why)
    return Host(links, addresses, defaults=tuple(_defaults(netlink)))


def _reached(netlink: Netlink, target: A) -> tuple[tuple[int, A] | None, str]:
    """(interface and source of the way to a host, "") or (None, why there is none, if the kernel says)."""
    try:
        with netlink.doing(f"route to {target}"):
            ifindex, source = route_to(netlink.rtnl, target)
    except KernelError as error:
        return None, str(error)
    return (None if source is None else (ifindex, source)), ""


def _defaults(netlink: Netlink) -> Iterator[int]:
    """The interfaces of the default routes, the least metric first; of one over several paths, each."""
    with netlink.doing("list routes"):
        # Their prefix lengths first: there may be a route for each of thousands of peers.
        found = [body for body in main_routes(netlink.rtnl, IPV4) if not prefix_length(body)]
    for body in sorted(found, key=lambda body: parse_route(body, IPV4)[0].metric):
        yield from interfaces(body)
