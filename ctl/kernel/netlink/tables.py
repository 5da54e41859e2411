"""The kernel path's state as tables for reconciling (ctl.core.ports.Table).

Each reads only what is ours: routes by their protocol number, neighbours and FDB
entries on our own vxlan device.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from ipaddress import IPv4Address, IPv4Network
from socket import AF_BRIDGE, AF_INET
from typing import Final, TypeVar

from pyroute2.netlink import NLM_F_CREATE, NLM_F_REPLACE
from pyroute2.netlink.rtnl import (
    RTM_DELNEIGH,
    RTM_DELROUTE,
    RTM_GETNEIGH,
    RTM_GETROUTE,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
    rt_type,
)
from pyroute2.netlink.rtnl.ndmsg import NTF_SELF, NUD_PERMANENT, ndmsg
from pyroute2.netlink.rtnl.rtmsg import (
    RT_SCOPE_LINK,
    RT_SCOPE_NOWHERE,
    RT_SCOPE_UNIVERSE,
    RTNH_F_ONLINK,
    rtmsg,
)

from ctl.core.errors import KernelError, Unapplied
from ctl.core.host import Route, RouteKey
from ctl.core.model import MacAddress
from ctl.core.plan import Delta
from ctl.kernel.netlink.message import (
    Attribute,
    Shape,
    attributes,
    body,
    layout,
    message,
    nested,
    number,
    number_of,
    to_number,
)
from ctl.kernel.netlink.socket import GONE, Message, Rtnl

K = TypeVar("K")
V = TypeVar("V")

ROUTE_PROTOCOL: Final = 147
"""rtm_protocol of our routes: in no registry (iproute2's rt_protos), so ours to remove."""
MAIN_TABLE: Final = 254
"""RT_TABLE_MAIN of linux/rtnetlink.h."""
UNICAST, BLACKHOLE = rt_type["unicast"], rt_type["blackhole"]

_PUT: Final = NLM_F_CREATE | NLM_F_REPLACE
RTMSG, NDMSG = layout(rtmsg), layout(ndmsg)
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_METRICS = (
    number_of(rtmsg, f"RTA_{name}") for name in ("DST", "OIF", "GATEWAY", "PRIORITY", "METRICS")
)
RTAX_MTU: Final = number_of(rtmsg.metrics, "RTAX_MTU")
NDA_DST, NDA_LLADDR, NDA_MASTER = (number_of(ndmsg, f"NDA_{name}") for name in ("DST", "LLADDR", "MASTER"))

_SEVERAL: Final = Route(IPv4Address(0), 0)
"""What is read where a key has more than one entry: no value that is ever wanted."""


class Routes:
    """Subnet of a peer -> where it is routed to, in the main table."""

    def __init__(self, rtnl: Rtnl) -> None:
        self._rtnl = rtnl
        self._doubles: dict[RouteKey, list[bytes]] = {}
        """What the key alone does not name: a route behind another one, or with a TOS of its own."""

    def read(self) -> Mapping[RouteKey, Route]:
        found: dict[RouteKey, Route] = {}
        self._doubles = {}
        for content in main_routes(self._rtnl, ROUTE_PROTOCOL):
            key, route = parse_route(content)
            if RTMSG.unpack_from(content)[3] or key in found:
                self._doubles.setdefault(key, []).append(content)
            else:
                found[key] = route
        return found | dict.fromkeys(self._doubles, _SEVERAL)

    def apply(self, delta: Delta[RouteKey, Route]) -> None:
        keys = [*delta.removals, *(key for key, _ in delta.puts)]
        doubles = [Message(RTM_DELROUTE, 0, double) for key in keys for double in self._doubles.pop(key, ())]
        if kept := [code for code in self._rtnl.bulk.change(doubles) if code and code not in GONE]:
            raise KernelError(f"routes to peers: {len(kept)} entries not applied: {os.strerror(kept[-1])}")
        removals = (Message(RTM_DELROUTE, 0, _removal(key)) for key in delta.removals)
        puts = (Message(RTM_NEWROUTE, _PUT, _put(key, route)) for key, route in delta.puts)
        _change(self._rtnl, "routes to peers", delta, removals, puts)


def main_routes(rtnl: Rtnl, protocol: int = 0, *, by: int = 0) -> Iterator[bytes]:
    """The messages of the main table's IPv4 routes, of one protocol, by one interface; 0: of any. Refused."""
    interface = [("RTA_OIF", by)] if by else []
    for content in rtnl.bulk.dump(
        RTM_GETROUTE, body(message(rtmsg, interface, family=AF_INET, proto=protocol))
    ):
        _, _, _, _, table, made_by, *_ = RTMSG.unpack_from(content)
        if table == MAIN_TABLE and protocol in (0, made_by):
            yield content


def prefix_length(content: bytes) -> int:
    """Of the subnet that a route's message is about."""
    return content[1]


def route_type(content: bytes) -> int:
    """RTN_* of a route's message."""
    return int(RTMSG.unpack_from(content)[7])


def parse_route(content: bytes) -> tuple[RouteKey, Route]:
    """A route by its message; one over several paths has no interface here."""
    found = attributes(content, RTMSG.size)
    subnet = IPv4Network((found.get(RTA_DST, bytes(4)), prefix_length(content)))
    key = RouteKey(subnet, to_number(found.get(RTA_PRIORITY, b"")))
    via = IPv4Address(found.get(RTA_GATEWAY, bytes(4)))
    ifindex = to_number(found.get(RTA_OIF, b""))
    mtu = attributes(found.get(RTA_METRICS, b"")).get(RTAX_MTU, b"")
    onlink = bool(RTMSG.unpack_from(content)[-1] & RTNH_F_ONLINK)
    return key, Route(via, ifindex, onlink, to_number(mtu))


@cache
def _shape(length: int, metric: bool, leads: bool, mtu: bool, via: bool, onlink: bool) -> Shape:
    """Of a route of ours with these attributes; one that leads nowhere names the one to remove.

    A removal goes by RT_SCOPE_NOWHERE, or it finds no route whose scope is another than its own.
    """
    marked: list[tuple[bool, bytes, Attribute]] = [
        (True, b"\1" * 4, ("RTA_DST", "1.1.1.1")),
        (metric, b"\2" * 4, ("RTA_PRIORITY", 0x02020202)),
        (leads, b"\3" * 4, ("RTA_OIF", 0x03030303)),
        (mtu, b"\4" * 4, ("RTA_METRICS", nested(rtmsg.metrics, [("RTAX_MTU", 0x04040404)]))),
        (via, b"\5" * 4, ("RTA_GATEWAY", "5.5.5.5")),
    ]
    there = [(mark, attribute) for has, mark, attribute in marked if has]
    scope = RT_SCOPE_UNIVERSE if via else RT_SCOPE_LINK if leads else RT_SCOPE_NOWHERE
    packed = message(
        rtmsg,
        [attribute for _, attribute in there],
        family=AF_INET,
        dst_len=length,
        table=MAIN_TABLE,
        proto=ROUTE_PROTOCOL,
        scope=scope,
        type=UNICAST if leads else 0,
        flags=RTNH_F_ONLINK if onlink else 0,
    )
    return Shape(packed, *(mark for mark, _ in there))


def _put(key: RouteKey, route: Route) -> bytes:
    via, mtu = bool(int(route.via)), bool(route.mtu)
    shape = _shape(key.subnet.prefixlen, bool(key.metric), True, mtu, via, via and route.onlink)
    values = [key.subnet.network_address.packed]
    if key.metric:
        values.append(number(key.metric))
    values.append(number(route.ifindex))
    if mtu:
        values.append(number(route.mtu))
    if via:
        values.append(route.via.packed)
    return shape(*values)


def _removal(key: RouteKey) -> bytes:
    shape = _shape(key.subnet.prefixlen, bool(key.metric), False, False, False, False)
    metric = (number(key.metric),) if key.metric else ()
    return shape(key.subnet.network_address.packed, *metric)


def put_route(rtnl: Rtnl, subnet: IPv4Network, route: Route, protocol: int) -> None:
    """A route without a metric, in place of the one that is there; MTU as the interface's. Refused."""
    via = {"gateway": str(route.via)} if int(route.via) else {}
    rtnl.route(
        "replace",
        family=AF_INET,
        table=MAIN_TABLE,
        dst=str(subnet),
        oif=route.ifindex,
        proto=protocol,
        scope=RT_SCOPE_UNIVERSE if via else RT_SCOPE_LINK,
        flags=RTNH_F_ONLINK if via and route.onlink else 0,
        **via,
    )


def remove_route(rtnl: Rtnl, subnet: IPv4Network, protocol: int, kind: int = 0) -> None:
    """Remove a route without a metric (`kind`: RTN_*; 0: of any). Refused."""
    rtnl.route(
        "del",
        family=AF_INET,
        dst=str(subnet),
        table=MAIN_TABLE,
        proto=protocol,
        scope=RT_SCOPE_NOWHERE,
        type=kind,
    )


class VtepNeighbours:
    """VTEP address -> MAC, permanent, on the vxlan device."""

    def __init__(self, rtnl: Rtnl, vxlan: int) -> None:
        self._rtnl, self._vxlan = rtnl, vxlan

    def read(self) -> Mapping[IPv4Address, MacAddress]:
        request = body(message(ndmsg, [("NDA_IFINDEX", self._vxlan)], family=AF_INET))
        found = {}
        for content in self._rtnl.bulk.dump(RTM_GETNEIGH, request):
            _, ifindex, state, _, _ = NDMSG.unpack_from(content)
            if ifindex == self._vxlan and state & NUD_PERMANENT:
                entry = attributes(content, NDMSG.size)
                if len(entry.get(NDA_LLADDR, b"")) == 6:
                    found[IPv4Address(entry[NDA_DST])] = MacAddress(entry[NDA_LLADDR])
        return found

    def apply(self, delta: Delta[IPv4Address, MacAddress]) -> None:
        gone, there = _neighbour_shapes(self._vxlan)
        removals = (Message(RTM_DELNEIGH, 0, gone(address.packed)) for address in delta.removals)
        puts = (Message(RTM_NEWNEIGH, _PUT, there(address.packed, mac.packed)) for address, mac in delta.puts)
        _change(self._rtnl, "VTEP neighbours", delta, removals, puts)


_DST_MARK, _DST = b"\1" * 4, ("NDA_DST", "1.1.1.1")
_LLADDR_MARK, _LLADDR = b"\2" * 6, ("NDA_LLADDR", "02:02:02:02:02:02")


@cache
def _neighbour_shapes(vxlan: int) -> tuple[Shape, Shape]:
    """A VTEP's neighbour to remove (by its address), and one to put (address and MAC)."""
    fields = {"family": AF_INET, "ifindex": vxlan, "state": NUD_PERMANENT}
    gone = Shape(message(ndmsg, [_DST], **fields), _DST_MARK)
    return gone, Shape(message(ndmsg, [_DST, _LLADDR], **fields), _DST_MARK, _LLADDR_MARK)


@cache
def _fdb_shapes(vxlan: int) -> tuple[Shape, Shape]:
    """An FDB entry to remove (by its MAC), and one to put (MAC and host)."""
    fields = {"family": AF_BRIDGE, "ifindex": vxlan, "state": NUD_PERMANENT, "flags": NTF_SELF}
    gone = Shape(message(ndmsg, [_LLADDR], **fields), _LLADDR_MARK)
    return gone, Shape(message(ndmsg, [_LLADDR, _DST], **fields), _LLADDR_MARK, _DST_MARK)


_NOWHERE: Final = IPv4Address(0)
"""What is read for an entry with several remotes, or one that differs in more than its host: no value that
is ever wanted."""

_ELSEWHERE: Final = frozenset(number_of(ndmsg, f"NDA_{name}") for name in ("PORT", "VNI", "IFINDEX"))
"""Attributes that an entry has only where they differ from the device's own."""


class Fdb:
    """VTEP MAC -> host, permanent, on the vxlan device."""

    def __init__(self, rtnl: Rtnl, vxlan: int) -> None:
        self._rtnl, self._vxlan = rtnl, vxlan

    def read(self) -> Mapping[MacAddress, IPv4Address]:
        request = body(message(ndmsg, family=AF_BRIDGE, ifindex=self._vxlan))
        found = {}
        for content in self._rtnl.bulk.dump(RTM_GETNEIGH, request):
            _, ifindex, _, _, _ = NDMSG.unpack_from(content)
            entry = attributes(content, NDMSG.size)
            if ifindex == self._vxlan and len(entry.get(NDA_DST, b"")) == 4:
                mac = MacAddress(entry[NDA_LLADDR])
                odd = mac in found or not _ELSEWHERE.isdisjoint(entry)
                found[mac] = _NOWHERE if odd else IPv4Address(entry[NDA_DST])
        return found

    def apply(self, delta: Delta[MacAddress, IPv4Address]) -> None:
        gone, there = _fdb_shapes(self._vxlan)
        removals = (Message(RTM_DELNEIGH, 0, gone(mac.packed)) for mac in delta.removals)
        puts = (Message(RTM_NEWNEIGH, _PUT, there(mac.packed, host.packed)) for mac, host in delta.puts)
        _change(self._rtnl, "FDB of the vxlan device", delta, removals, puts)


def _change(
    rtnl: Rtnl, what: str, delta: Delta[K, V], removals: Iterable[Message], puts: Iterable[Message]
) -> None:
    """Removals, then puts, a message for each entry. What is missing is removed already. Unapplied."""
    gone = zip(delta.removals, rtnl.bulk.change(removals), strict=True)
    failed: dict[K, int] = {key: code for key, code in gone if code and code not in GONE}
    there = zip(delta.puts, rtnl.bulk.change(puts), strict=True)
    failed |= {key: code for (key, _), code in there if code}
    if failed:
        last = [*failed.values()][-1]
        raise Unapplied(f"{what}: {len(failed)} entries not applied: {os.strerror(last)}", failed)
