"""Asking the kernel's FIB how it reaches other hosts."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from socket import IPPROTO_UDP
from typing import Final

from pyroute2.netlink import NLM_F_REQUEST
from pyroute2.netlink.rtnl import RTM_GETROUTE
from pyroute2.netlink.rtnl.rtmsg import nh, rtmsg

from ctl.core.errors import KernelError
from ctl.core.host import Hop
from ctl.core.model import DEFAULT_TTL, A
from ctl.kernel.netlink.message import Shape, attributes, layout, message, number_of, to_number
from ctl.kernel.netlink.socket import Message, Rtnl
from ctl.kernel.netlink.tables import AF, RTA_GATEWAY, RTA_METRICS, RTA_OIF, RTAX_MTU, RTMSG, UNICAST, marked

_RTM_F_FIB_MATCH: Final = 0x2000
"""linux/rtnetlink.h."""
_RTA_MULTIPATH, _RTA_VIA, _RTA_ENCAP = (
    number_of(rtmsg, f"RTA_{name}") for name in ("MULTIPATH", "VIA", "ENCAP")
)
_RTA_IP_PROTO, _RTA_SPORT, _RTA_DPORT = 27, 28, 29
"""linux/rtnetlink.h; pyroute2 does not have them."""
_RTAX_HOPLIMIT: Final = number_of(rtmsg.metrics, "RTAX_HOPLIMIT")
_NEXT_HOP: Final = layout(nh)
"""struct rtnexthop: length, flags, hops, ifindex."""
Ports = tuple[int, int]
"""Source and destination port."""
_NO_ROUTE: Final = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL)


def route_to(rtnl: Rtnl, host: A) -> tuple[int, A | None]:
    """(ifindex, source address) of the route that a packet of ours to `host` takes. Refused if there is none.

    (0, None): it leads to no interface, or to ourselves.
    """
    (route,) = rtnl.route((RTM_GETROUTE, NLM_F_REQUEST), family=AF[host.version], dst=str(host))
    if route["type"] != UNICAST:
        return 0, None
    source = route.get("prefsrc")
    return route.get("oif") or 0, type(host)(source) if source else None


def next_hop(rtnl: Rtnl, host: A) -> tuple[int, A]:
    """(ifindex, neighbour) that a packet of ours to `host` is sent to. Refused if there is no route."""
    (route,) = rtnl.route((RTM_GETROUTE, NLM_F_REQUEST), family=AF[host.version], dst=str(host))
    gateway = route.get("gateway")
    return route.get("oif") or 0, type(host)(gateway) if gateway else host


def hops(
    rtnl: Rtnl,
    hosts: Iterable[A],
    source: A,
    mtu: int,
    ports: Sequence[Ports] = (),
    *,
    ttl: int = DEFAULT_TTL,
) -> dict[A, Hop[A] | None]:
    """How the FIB takes packets from the address `source` to each host; None if we cannot say.

    That is: no route, a local or unreachable one, one over several interfaces, over a neighbour
    of the other family or another tunnel. `mtu`: of the largest packets that we send; `ttl`: of
    those whose route says none. `ports`: of those that are UDP, a pair of each class that rules
    tell apart: None where they take several ways; no pair: packets of no protocol. KernelError.
    """
    asked = list(hosts)
    first, *others = [_ways(rtnl, asked, source, mtu, ttl, _of_udp(*pair)) for pair in ports] or [
        _ways(rtnl, asked, source, mtu, ttl, b"")
    ]
    return {host: hop if all(each[host] == hop for each in others) else None for host, hop in first.items()}


def _of_udp(source: int, target: int) -> bytes:
    """What makes a look-up that of a UDP packet with these ports."""
    protocol = struct.pack("=HHB3x", 5, _RTA_IP_PROTO, IPPROTO_UDP)
    ports = ((_RTA_SPORT, source), (_RTA_DPORT, target))
    return protocol + b"".join(
        struct.pack("=HH", 6, kind) + struct.pack("!H2x", port) for kind, port in ports
    )


def _ways(
    rtnl: Rtnl, hosts: Sequence[A], source: A, mtu: int, ttl: int, more: bytes
) -> dict[A, Hop[A] | None]:
    """As `hops`, for one kind of packet; `more`: the attributes that say which."""
    # The route itself, not one path that was picked of it.
    routes = _routes(rtnl, hosts, source, _RTM_F_FIB_MATCH, more)
    found = dict(_read(routes, mtu, ttl))
    # Of several paths over one interface, the one that the kernel picks by the addresses. Left to
    # the programs it would be the first one, for all peers: they have to say the interface.
    several = {host: hop for host, hop in found.items() if hop and hop.next_hop is None}
    for host, body in _routes(rtnl, list(several), source, 0, more).items():
        found[host] = _picked(several[host], body, host)
    return found


def _routes(rtnl: Rtnl, hosts: Sequence[A], source: A, flags: int, more: bytes) -> dict[A, bytes | None]:
    """The kernel's answer for each host; None: it has no route."""
    question = _question(source.version, flags)
    requests = (Message(RTM_GETROUTE, 0, question(host.packed, source.packed) + more) for host in hosts)
    found: dict[A, bytes | None] = {}
    for host, (code, body) in zip(hosts, rtnl.bulk.ask(requests), strict=True):
        if code and code not in _NO_ROUTE:
            raise KernelError(f"route to {host}: {os.strerror(code)}")
        found[host] = None if code else body
    return found


@cache
def _question(version: int, flags: int) -> Shape:
    """A look-up by target and source address."""
    (target, dst), (source, src) = marked(1, version), marked(2, version)
    length = len(target) * 8
    named = [("RTA_DST", dst), ("RTA_SRC", src)]
    packed = message(rtmsg, named, family=AF[version], dst_len=length, src_len=length, flags=flags)
    return Shape(packed, target, source)


def _picked(hop: Hop[A], body: bytes | None, host: A) -> Hop[A]:
    """With the next hop of the answer, if it is about the same interface: the route may have changed."""
    route = attributes(body, RTMSG.size) if body else {}
    if to_number(route.get(RTA_OIF, b"")) != hop.ifindex:
        return hop
    gateway = route.get(RTA_GATEWAY)
    return replace(hop, next_hop=type(host)(gateway) if gateway else host)


def _read(routes: Mapping[A, bytes | None], mtu: int, ttl: int) -> Iterator[tuple[A, Hop[A] | None]]:
    """Each host with what its route says. Most are behind a few gateways: one object for all of a route."""
    known: dict[bytes, Hop[A] | None] = {}
    for host, body in routes.items():
        if body is None:
            yield host, None
        elif body in known:
            yield host, known[body]
        else:
            hop = _hop(body, host, mtu, ttl)
            if hop is None or hop.next_hop != host:
                known[body] = hop
            yield host, hop


def _hop(body: bytes, host: A, mtu: int, ttl: int) -> Hop[A] | None:
    route = attributes(body, RTMSG.size)
    if RTMSG.unpack_from(body)[7] != UNICAST or _RTA_VIA in route or _RTA_ENCAP in route:
        return None
    metrics = attributes(route.get(RTA_METRICS, b""))
    own = to_number(metrics.get(RTAX_MTU, b""))
    smaller = own if own < mtu else 0
    ttl = to_number(metrics.get(_RTAX_HOPLIMIT, b"")) or ttl
    if paths := route.get(_RTA_MULTIPATH):
        interfaces = set(_path_interfaces(paths))
        return Hop(interfaces.pop(), None, smaller, ttl) if len(interfaces) == 1 else None
    gateway = route.get(RTA_GATEWAY)
    ifindex = to_number(route.get(RTA_OIF, b""))
    if not ifindex:  # a nexthop object of its own, with net.ipv4.nexthop_compat_mode=0
        return None
    return Hop(ifindex, type(host)(gateway) if gateway else host, smaller, ttl)


def interfaces(body: bytes) -> list[int]:
    """Ifindexes of the interfaces that a route by its message leads to."""
    route = attributes(body, RTMSG.size)
    if paths := route.get(_RTA_MULTIPATH):
        return list(_path_interfaces(paths))
    ifindex = to_number(route.get(RTA_OIF, b""))
    return [ifindex] if ifindex else []


def _path_interfaces(paths: bytes) -> Iterator[int]:
    """The ifindex of each struct rtnexthop, which its attributes follow."""
    offset = 0
    while offset + _NEXT_HOP.size <= len(paths):
        length, _, _, ifindex = _NEXT_HOP.unpack_from(paths, offset)
        if length < _NEXT_HOP.size:
            return
        yield ifindex
        offset += (length + 3) & ~3
