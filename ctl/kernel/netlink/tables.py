"""The kernel path's state as tables for reconciling (ctl.core.ports.Table).

Each reads only what is ours: routes by their protocol number, neighbours and FDB
entries on our own vxlan device.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from socket import AF_BRIDGE, AF_INET
from typing import Final, TypeVar

from ctl.core.errors import KernelError
from ctl.core.host import Route, RouteKey
from ctl.core.model import MacAddress
from ctl.core.plan import Delta
from ctl.kernel.netlink.session import GONE
from ctl.kernel.netlink.socket import (
    NDA_DST,
    NDA_IFINDEX,
    NDA_LLADDR,
    NDMSG,
    NLM_F_CREATE,
    NLM_F_REPLACE,
    RT_TABLE_MAIN,
    RTA_DST,
    RTA_OIF,
    RTM_DELNEIGH,
    RTM_DELROUTE,
    RTM_GETNEIGH,
    RTM_GETROUTE,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
    RTMSG,
    RTN_UNICAST,
    Message,
    Rtnl,
    attribute,
    attributes,
    number,
    to_number,
)

K = TypeVar("K")
V = TypeVar("V")

ROUTE_PROTOCOL: Final = 147
"""rtm_protocol of our routes: in no registry (iproute2's rt_protos), so ours to remove."""

_RTNH_F_ONLINK: Final = 4
_RT_SCOPE_UNIVERSE, _RT_SCOPE_LINK, _RT_SCOPE_NOWHERE = 0, 253, 255
_RTA_GATEWAY, _RTA_PRIORITY, _RTA_METRICS = 5, 6, 8
_RTAX_MTU: Final = 2
_NTF_SELF: Final = 2
_NUD_PERMANENT: Final = 0x80
_PUT: Final = NLM_F_CREATE | NLM_F_REPLACE

_SEVERAL: Final = Route(IPv4Address(0), 0)
"""Read where there is more than one entry for a key: no value that is ever wanted."""


class Routes:
    """Subnet of a peer -> where it is routed to, in the main table."""

    def __init__(self, rtnl: Rtnl) -> None:
        self._rtnl = rtnl
        self._doubles: dict[RouteKey, list[bytes]] = {}
        """What the key alone does not name: a route behind another one, or with a TOS of its own."""

    def read(self) -> Mapping[RouteKey, Route]:
        request = RTMSG.pack(AF_INET, 0, 0, 0, 0, ROUTE_PROTOCOL, 0, 0, 0)
        found: dict[RouteKey, Route] = {}
        self._doubles = {}
        for body in self._rtnl.dump(RTM_GETROUTE, request):
            _, _, _, tos, table, *_ = RTMSG.unpack_from(body)
            if table != RT_TABLE_MAIN:
                continue
            key, route = parse_route(body)
            if tos or key in found:
                self._doubles.setdefault(key, []).append(body)
            else:
                found[key] = route
        return found | dict.fromkeys(self._doubles, _SEVERAL)

    def apply(self, delta: Delta[RouteKey, Route]) -> None:
        keys = [*delta.removals, *(key for key, _ in delta.puts)]
        doubles = [body for key in keys for body in self._doubles.pop(key, ())]
        removals = [Message(RTM_DELROUTE, 0, body) for body in doubles]
        removals += [Message(RTM_DELROUTE, 0, route_body(key)) for key in delta.removals]
        puts = [Message(RTM_NEWROUTE, _PUT, route_body(key, route)) for key, route in delta.puts]
        _change(self._rtnl, "routes to peers", removals, puts)


def route_key(body: bytes) -> RouteKey:
    """Which route a message is about (struct rtmsg and its attributes)."""
    return parse_route(body)[0]


def parse_route(body: bytes) -> tuple[RouteKey, Route]:
    """A route by its message; one over several paths has no interface here."""
    found = attributes(body, RTMSG.size)
    subnet = IPv4Network((found.get(RTA_DST, bytes(4)), body[1]))
    key = RouteKey(subnet, to_number(found.get(_RTA_PRIORITY, b"")))
    via = IPv4Address(found.get(_RTA_GATEWAY, bytes(4)))
    ifindex = to_number(found.get(RTA_OIF, b""))
    mtu = attributes(found.get(_RTA_METRICS, b"")).get(_RTAX_MTU, b"")
    onlink = bool(RTMSG.unpack_from(body)[-1] & _RTNH_F_ONLINK)
    return key, Route(via, ifindex, onlink, to_number(mtu))


def route_body(
    key: RouteKey, route: Route | None = None, *, protocol: int = ROUTE_PROTOCOL, kind: int = 0
) -> bytes:
    """Struct rtmsg with its attributes; without a route, what names the one to remove (`kind`: RTN_*)."""
    named = attribute(RTA_DST, key.subnet.network_address.packed)
    if key.metric:
        named += attribute(_RTA_PRIORITY, number(key.metric))
    head = AF_INET, key.subnet.prefixlen, 0, 0, RT_TABLE_MAIN, protocol
    if route is None:
        return RTMSG.pack(*head, _RT_SCOPE_NOWHERE, kind, 0) + named
    named += attribute(RTA_OIF, number(route.ifindex))
    if route.mtu:
        named += attribute(_RTA_METRICS, attribute(_RTAX_MTU, number(route.mtu)))
    if not int(route.via):
        return RTMSG.pack(*head, _RT_SCOPE_LINK, RTN_UNICAST, 0) + named
    flags = _RTNH_F_ONLINK if route.onlink else 0
    gateway = attribute(_RTA_GATEWAY, route.via.packed)
    return RTMSG.pack(*head, _RT_SCOPE_UNIVERSE, RTN_UNICAST, flags) + named + gateway


class VtepNeighbours:
    """VTEP address -> MAC, permanent, on the vxlan device."""

    def __init__(self, rtnl: Rtnl, vxlan: int) -> None:
        self._rtnl, self._vxlan = rtnl, vxlan

    def read(self) -> Mapping[IPv4Address, MacAddress]:
        request = NDMSG.pack(AF_INET, 0, 0, 0, 0) + _ifindex_filter(self._vxlan)
        found = {}
        for body in self._rtnl.dump(RTM_GETNEIGH, request):
            _, ifindex, state, _, _ = NDMSG.unpack_from(body)
            if ifindex == self._vxlan and state & _NUD_PERMANENT:
                entry = attributes(body, NDMSG.size)
                if len(entry.get(NDA_LLADDR, b"")) == 6:
                    found[IPv4Address(entry[NDA_DST])] = MacAddress(entry[NDA_LLADDR])
        return found

    def apply(self, delta: Delta[IPv4Address, MacAddress]) -> None:
        removals = [Message(RTM_DELNEIGH, 0, self._body(address)) for address in delta.removals]
        puts = [Message(RTM_NEWNEIGH, _PUT, self._body(address, mac)) for address, mac in delta.puts]
        _change(self._rtnl, "VTEP neighbours", removals, puts)

    def _body(self, address: IPv4Address, mac: MacAddress | None = None) -> bytes:
        head = NDMSG.pack(AF_INET, self._vxlan, _NUD_PERMANENT, 0, 0)
        return head + attribute(NDA_DST, address.packed) + (attribute(NDA_LLADDR, mac.packed) if mac else b"")


_NOWHERE: Final = IPv4Address(0)
"""Read for an entry with several remotes, or one that differs in more than its host: never wanted."""

_ELSEWHERE: Final = frozenset({6, 7, 8})
"""NDA_PORT, NDA_VNI, NDA_IFINDEX: told where they are not the device's own."""


class Fdb:
    """VTEP MAC -> host, permanent, on the vxlan device."""

    def __init__(self, rtnl: Rtnl, vxlan: int) -> None:
        self._rtnl, self._vxlan = rtnl, vxlan

    def read(self) -> Mapping[MacAddress, IPv4Address]:
        request = NDMSG.pack(AF_BRIDGE, self._vxlan, 0, 0, 0)
        found = {}
        for body in self._rtnl.dump(RTM_GETNEIGH, request):
            _, ifindex, _, _, _ = NDMSG.unpack_from(body)
            entry = attributes(body, NDMSG.size)
            if ifindex == self._vxlan and len(entry.get(NDA_DST, b"")) == 4:
                mac = MacAddress(entry[NDA_LLADDR])
                odd = mac in found or not _ELSEWHERE.isdisjoint(entry)
                found[mac] = _NOWHERE if odd else IPv4Address(entry[NDA_DST])
        return found

    def apply(self, delta: Delta[MacAddress, IPv4Address]) -> None:
        removals = [Message(RTM_DELNEIGH, 0, self._body(mac)) for mac in delta.removals]
        puts = [Message(RTM_NEWNEIGH, _PUT, self._body(mac, host)) for mac, host in delta.puts]
        _change(self._rtnl, "FDB of the vxlan device", removals, puts)

    def _body(self, mac: MacAddress, host: IPv4Address | None = None) -> bytes:
        head = NDMSG.pack(AF_BRIDGE, self._vxlan, _NUD_PERMANENT, _NTF_SELF, 0)
        return head + attribute(NDA_LLADDR, mac.packed) + (attribute(NDA_DST, host.packed) if host else b"")


def _ifindex_filter(ifindex: int) -> bytes:
    """For dumps of neighbours; with AF_BRIDGE the head says it."""
    return attribute(NDA_IFINDEX, number(ifindex))


def _change(rtnl: Rtnl, what: str, removals: Sequence[Message], puts: Sequence[Message]) -> None:
    """Removals, then puts. KernelError with a count if some failed; what is missing is removed already."""
    gone = [code for code in rtnl.change(removals) if code and code not in GONE]
    failed = gone + [code for code in rtnl.change(puts) if code]
    if failed:
        raise KernelError(f"{what}: {len(failed)} entries not applied: {os.strerror(failed[-1])}")
