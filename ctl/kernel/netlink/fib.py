"""Asking the kernel's FIB how it reaches other hosts."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from ipaddress import IPv4Address
from socket import AF_INET
from typing import Final

from ctl.core.errors import KernelError
from ctl.core.host import Hop, Uplink
from ctl.kernel.netlink.socket import (
    RTA_DST,
    RTA_OIF,
    RTM_GETROUTE,
    RTMSG,
    RTN_UNICAST,
    Message,
    Rtnl,
    attribute,
    attributes,
    to_number,
)

_RTM_F_FIB_MATCH: Final = 0x2000
_RTA_SRC, _RTA_GATEWAY, _RTA_METRICS, _RTA_MULTIPATH = 2, 5, 8, 9
_RTA_VIA, _RTA_ENCAP = 18, 22
_RTAX_MTU: Final = 2
_NO_ROUTE: Final = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL)


def hops(rtnl: Rtnl, hosts: Iterable[IPv4Address], uplink: Uplink, mtu: int) -> dict[IPv4Address, Hop | None]:
    """How the FIB takes packets from `uplink`'s address to each host; None if we cannot say.

    That is: no route, a local or unreachable one, one over several interfaces, over an IPv6
    neighbour or another tunnel. `mtu`: of the largest packets that we send. KernelError.
    """
    # The route itself, not one path that was picked of it.
    routes = _routes(rtnl, list(hosts), uplink, _RTM_F_FIB_MATCH)
    found = {host: _hop(body, host, mtu) if body else None for host, body in routes.items()}
    # Of several paths over one interface, the one that the kernel picks by the addresses. Left to
    # the programs it would be the first one, for all peers: they have to say the interface.
    several = {host: hop for host, hop in found.items() if hop and hop.next_hop is None}
    for host, body in _routes(rtnl, list(several), uplink, 0).items():
        found[host] = _picked(several[host], body, host)
    return found


def _routes(
    rtnl: Rtnl, hosts: Sequence[IPv4Address], uplink: Uplink, flags: int
) -> dict[IPv4Address, bytes | None]:
    """The kernel's answer for each host; None: it has no route."""
    head = RTMSG.pack(AF_INET, 32, 32, 0, 0, 0, 0, 0, flags)
    source = attribute(_RTA_SRC, uplink.address.packed)
    requests = [Message(RTM_GETROUTE, 0, head + attribute(RTA_DST, host.packed) + source) for host in hosts]
    found: dict[IPv4Address, bytes | None] = {}
    for host, (code, body) in zip(hosts, rtnl.ask(requests), strict=True):
        if code and code not in _NO_ROUTE:
            raise KernelError(f"route to {host}: {os.strerror(code)}")
        found[host] = None if code else body
    return found


def _picked(hop: Hop, body: bytes | None, host: IPv4Address) -> Hop:
    """With the next hop of the answer, if it is about the same interface: the route may have changed."""
    route = attributes(body, RTMSG.size) if body else {}
    if to_number(route.get(RTA_OIF, b"")) != hop.ifindex:
        return hop
    gateway = route.get(_RTA_GATEWAY)
    return replace(hop, next_hop=IPv4Address(gateway) if gateway else host)


def _hop(body: bytes, host: IPv4Address, mtu: int) -> Hop | None:
    route = attributes(body, RTMSG.size)
    if RTMSG.unpack_from(body)[7] != RTN_UNICAST or _RTA_VIA in route or _RTA_ENCAP in route:
        return None
    own = to_number(attributes(route.get(_RTA_METRICS, b"")).get(_RTAX_MTU, b""))
    smaller = own if own < mtu else 0
    if paths := route.get(_RTA_MULTIPATH):
        interfaces = set(_path_interfaces(paths))
        return Hop(interfaces.pop(), None, smaller) if len(interfaces) == 1 else None
    gateway = route.get(_RTA_GATEWAY)
    ifindex = to_number(route.get(RTA_OIF, b""))
    return Hop(ifindex, IPv4Address(gateway) if gateway else host, smaller)


def _path_interfaces(paths: bytes) -> Iterator[int]:
    """The ifindex of each struct rtnexthop: length, flags, hops, ifindex, attributes."""
    offset = 0
    while offset + 8 <= len(paths):
        length = to_number(paths[offset : offset + 2])
        if length < 8:
            return
        yield to_number(paths[offset + 4 : offset + 8])
        offset += (length + 3) & ~3
