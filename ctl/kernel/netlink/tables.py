"""The kernel path's state as tables for reconciling (ctl.core.ports.Table).

Each is about one family, and reads only what is ours: routes by their protocol number,
neighbours and FDB entries on our own vxlan device.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from ipaddress import ip_address
from socket import AF_BRIDGE, AF_INET, AF_INET6
from typing import Any, Final, Generic, TypeVar

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
from ctl.core.family import Family
from ctl.core.host import Route, RouteKey
from ctl.core.model import A, MacAddress, N
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
RTPROT_RA: Final = 9
"""rtm_protocol of what the kernel has by router advertisements (linux/rtnetlink.h)."""
MAIN_TABLE: Final = 254
"""RT_TABLE_MAIN of linux/rtnetlink.h."""
UNICAST, BLACKHOLE = rt_type["unicast"], rt_type["blackhole"]

AF: Final = {4: AF_INET, 6: AF_INET6}
"""Address family by IP version."""
_SIZE: Final = {4: 4, 6: 16}
"""Bytes of an address by IP version."""


def marked(byte: int, version: int) -> tuple[bytes, str]:
    """The address of such bytes only, as a mark of a Shape, and as pyroute2 takes it."""
    packed = bytes([byte]) * _SIZE[version]
    return packed, str(ip_address(packed))


_PUT: Final = NLM_F_CREATE | NLM_F_REPLACE
RTMSG, NDMSG = layout(rtmsg), layout(ndmsg)
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_METRICS = (
    number_of(rtmsg, f"RTA_{name}") for name in ("DST", "OIF", "GATEWAY", "PRIORITY", "METRICS")
)
RTAX_MTU: Final = number_of(rtmsg.metrics, "RTAX_MTU")
NDA_DST, NDA_LLADDR, NDA_MASTER = (number_of(ndmsg, f"NDA_{name}") for name in ("DST", "LLADDR", "MASTER"))


class Routes(Generic[A, N]):
    """Subnet of a peer -> where it is routed to, in the main table."""

    def __init__(self, rtnl: Rtnl, family: Family[A, N]) -> None:
        self._rtnl, self._family = rtnl, family
        self._several: Final = Route(family.address(0), 0)
        """What is read where a key has more than one entry: no value that is ever wanted."""
        self._doubles: dict[RouteKey[N], list[bytes]] = {}
        """What the key alone does not name: a route behind another one, or with a TOS of its own."""

    def read(self) -> Mapping[RouteKey[N], Route[A]]:
        found: dict[RouteKey[N], Route[A]] = {}
        self._doubles = {}
        for content in main_routes(self._rtnl, self._family, ROUTE_PROTOCOL):
            key, route = parse_route(content, self._family)
            if RTMSG.unpack_from(content)[3] or key in found:
                self._doubles.setdefault(key, []).append(content)
            else:
                found[key] = route
        return found | dict.fromkeys(self._doubles, self._several)

    def apply(self, delta: Delta[RouteKey[N], Route[A]]) -> None:
        keys = [*delta.removals, *(key for key, _ in delta.puts)]
        doubles = [Message(RTM_DELROUTE, 0, double) for key in keys for double in self._doubles.pop(key, ())]
        if kept := [code for code in self._rtnl.bulk.change(doubles) if code and code not in GONE]:
            raise KernelError(f"routes to peers: {len(kept)} entries not applied: {os.strerror(kept[-1])}")
        removals = (Message(RTM_DELROUTE, 0, _removal(key)) for key in delta.removals)
        puts = (Message(RTM_NEWROUTE, _PUT, _put(key, route)) for key, route in delta.puts)
        # A subnet's route may get another metric, by a new version: it has one at any time.
        _change(self._rtnl, "routes to peers", delta, removals, puts, puts_first=True)


def main_routes(rtnl: Rtnl, family: Family[Any, Any], protocol: int = 0, *, by: int = 0) -> Iterator[bytes]:
    """The messages of the main table's routes, of one protocol, by one interface; 0: of any. Refused."""
    interface = [("RTA_OIF", by)] if by else []
    request = body(message(rtmsg, interface, family=AF[family.version], proto=protocol))
    for content in rtnl.bulk.dump(RTM_GETROUTE, request):
        listed, _, _, _, table, made_by, *_ = RTMSG.unpack_from(content)
        # A kernel without IPv6 lists what it has of other families.
        if listed == AF[family.version] and table == MAIN_TABLE and protocol in (0, made_by):
            yield content


def prefix_length(content: bytes) -> int:
    """Of the subnet that a route's message is about."""
    return content[1]


def route_type(content: bytes) -> int:
    """RTN_* of a route's message."""
    return int(RTMSG.unpack_from(content)[7])


def parse_route(content: bytes, family: Family[A, N]) -> tuple[RouteKey[N], Route[A]]:
    """A route by its message, which is of that family; one over several paths has no interface here."""
    found, nothing = attributes(content, RTMSG.size), bytes(_SIZE[family.version])
    _, length, *_, flags = RTMSG.unpack_from(content)
    key = RouteKey(family.network((found.get(RTA_DST, nothing), length)), _number(found, RTA_PRIORITY))
    mtu = _number(attributes(found[RTA_METRICS]), RTAX_MTU) if RTA_METRICS in found else 0
    via = family.address(found.get(RTA_GATEWAY, nothing))
    return key, Route(via, _number(found, RTA_OIF), bool(flags & RTNH_F_ONLINK), mtu)


def _number(found: Mapping[int, bytes], kind: int) -> int:
    """An attribute of 32 bits; 0 if it is not there."""
    return to_number(found.get(kind, b""))


@cache
def _shape(version: int, length: int, metric: bool, leads: bool, mtu: bool, via: bool, onlink: bool) -> Shape:
    """Of a route of ours with these attributes; one that leads nowhere names the one to remove.

    A removal goes by RT_SCOPE_NOWHERE, or it finds no route whose scope is another than its own.
    """
    (to, to_text), (gateway, gateway_text) = marked(1, version), marked(5, version)
    each: list[tuple[bool, bytes, Attribute]] = [
        (True, to, ("RTA_DST", to_text)),
        (metric, b"\2" * 4, ("RTA_PRIORITY", 0x02020202)),
        (leads, b"\3" * 4, ("RTA_OIF", 0x03030303)),
        (mtu, b"\4" * 4, ("RTA_METRICS", nested(rtmsg.metrics, [("RTAX_MTU", 0x04040404)]))),
        (via, gateway, ("RTA_GATEWAY", gateway_text)),
    ]
    there = [(mark, attribute) for has, mark, attribute in each if has]
    scope = RT_SCOPE_UNIVERSE if via else RT_SCOPE_LINK if leads else RT_SCOPE_NOWHERE
    packed = message(
        rtmsg,
        [attribute for _, attribute in there],
        family=AF[version],
        dst_len=length,
        table=MAIN_TABLE,
        proto=ROUTE_PROTOCOL,
        scope=scope,
        type=UNICAST if leads else 0,
        flags=RTNH_F_ONLINK if onlink else 0,
    )
    return Shape(packed, *(mark for mark, _ in there))


def _put(key: RouteKey[N], route: Route[A]) -> bytes:
    via, mtu, to = bool(int(route.via)), bool(route.mtu), key.subnet
    shape = _shape(to.version, to.prefixlen, bool(key.metric), True, mtu, via, via and route.onlink)
    values = [key.subnet.network_address.packed]
    if key.metric:
        values.append(number(key.metric))
    values.append(number(route.ifindex))
    if mtu:
        values.append(number(route.mtu))
    if via:
        values.append(route.via.packed)
    return shape(*values)


def _removal(key: RouteKey[Any]) -> bytes:
    to = key.subnet
    shape = _shape(to.version, to.prefixlen, bool(key.metric), False, False, False, False)
    metric = (number(key.metric),) if key.metric else ()
    return shape(key.subnet.network_address.packed, *metric)


def put_route(rtnl: Rtnl, subnet: N, route: Route[A], protocol: int) -> None:
    """A route without a metric, in place of the one that is there; MTU as the interface's. Refused."""
    via = {"gateway": str(route.via)} if int(route.via) else {}
    rtnl.route(
        "replace",
        family=AF[subnet.version],
        table=MAIN_TABLE,
        dst=str(subnet),
        oif=route.ifindex,
        proto=protocol,
        scope=RT_SCOPE_UNIVERSE if via else RT_SCOPE_LINK,
        flags=RTNH_F_ONLINK if via and route.onlink else 0,
        **via,
    )


def remove_route(rtnl: Rtnl, subnet: N, protocol: int, kind: int = 0) -> None:
    """Remove a route without a metric (`kind`: RTN_*; 0: of any). Refused."""
    rtnl.route(
        "del",
        family=AF[subnet.version],
        dst=str(subnet),
        table=MAIN_TABLE,
        proto=protocol,
        scope=RT_SCOPE_NOWHERE,
        type=kind,
    )


class VtepNeighbours(Generic[A, N]):
    """VTEP address -> MAC, permanent, on the vxlan device."""

    def __init__(self, rtnl: Rtnl, family: Family[A, N], vxlan: int) -> None:
        self._rtnl, self._family, self._vxlan = rtnl, family, vxlan

    def read(self) -> Mapping[A, MacAddress]:
        version = self._family.version
        request = body(message(ndmsg, [("NDA_IFINDEX", self._vxlan)], family=AF[version]))
        found = {}
        for content in self._rtnl.bulk.dump(RTM_GETNEIGH, request):
            listed, ifindex, state, _, _ = NDMSG.unpack_from(content)
            if listed == AF[version] and ifindex == self._vxlan and state & NUD_PERMANENT:
                entry = attributes(content, NDMSG.size)
                if len(entry.get(NDA_LLADDR, b"")) == 6:
                    found[self._family.address(entry[NDA_DST])] = MacAddress(entry[NDA_LLADDR])
        return found

    def apply(self, delta: Delta[A, MacAddress]) -> None:
        gone, there = _neighbour_shapes(self._family.version, self._vxlan)
        removals = (Message(RTM_DELNEIGH, 0, gone(address.packed)) for address in delta.removals)
        puts = (Message(RTM_NEWNEIGH, _PUT, there(address.packed, mac.packed)) for address, mac in delta.puts)
        _change(self._rtnl, "VTEP neighbours", delta, removals, puts)


_LLADDR_MARK, _LLADDR = b"\2" * 6, ("NDA_LLADDR", "02:02:02:02:02:02")


@cache
def _neighbour_shapes(version: int, vxlan: int) -> tuple[Shape, Shape]:
    """A VTEP's neighbour to remove (by its address), and one to put (address and MAC)."""
    fields = {"family": AF[version], "ifindex": vxlan, "state": NUD_PERMANENT}
    mark, address = marked(1, version)
    dst = ("NDA_DST", address)
    gone = Shape(message(ndmsg, [dst], **fields), mark)
    return gone, Shape(message(ndmsg, [dst, _LLADDR], **fields), mark, _LLADDR_MARK)


@cache
def _fdb_shapes(version: int, vxlan: int) -> tuple[Shape, Shape]:
    """An FDB entry to remove (by its MAC), and one to put (MAC and host)."""
    fields = {"family": AF_BRIDGE, "ifindex": vxlan, "state": NUD_PERMANENT, "flags": NTF_SELF}
    mark, address = marked(1, version)
    dst = ("NDA_DST", address)
    gone = Shape(message(ndmsg, [_LLADDR], **fields), _LLADDR_MARK)
    return gone, Shape(message(ndmsg, [_LLADDR, dst], **fields), _LLADDR_MARK, mark)


_ELSEWHERE: Final = frozenset(number_of(ndmsg, f"NDA_{name}") for name in ("PORT", "VNI", "IFINDEX"))
"""Attributes that an entry has only where they differ from the device's own."""


class Fdb(Generic[A, N]):
    """VTEP MAC -> host, permanent, on the vxlan device."""

    def __init__(self, rtnl: Rtnl, family: Family[A, N], vxlan: int) -> None:
        self._rtnl, self._family, self._vxlan = rtnl, family, vxlan
        self._nowhere: Final = family.address(0)
        """What is read for an entry with several remotes, or one that differs in more than its host: no
        value that is ever wanted."""

    def read(self) -> Mapping[MacAddress, A]:
        request = body(message(ndmsg, family=AF_BRIDGE, ifindex=self._vxlan))
        found: dict[MacAddress, A] = {}
        size = _SIZE[self._family.version]
        for content in self._rtnl.bulk.dump(RTM_GETNEIGH, request):
            _, ifindex, _, _, _ = NDMSG.unpack_from(content)
            entry = attributes(content, NDMSG.size)
            if ifindex == self._vxlan and len(entry.get(NDA_DST, b"")) == size:
                mac = MacAddress(entry[NDA_LLADDR])
                odd = mac in found or not _ELSEWHERE.isdisjoint(entry)
                found[mac] = self._nowhere if odd else self._family.address(entry[NDA_DST])
        return found

    def apply(self, delta: Delta[MacAddress, A]) -> None:
        gone, there = _fdb_shapes(self._family.version, self._vxlan)
        removals = (Message(RTM_DELNEIGH, 0, gone(mac.packed)) for mac in delta.removals)
        puts = (Message(RTM_NEWNEIGH, _PUT, there(mac.packed, host.packed)) for mac, host in delta.puts)
        _change(self._rtnl, "FDB of the vxlan device", delta, removals, puts)


def _change(
    rtnl: Rtnl,
    what: str,
    delta: Delta[K, V],
    removals: Iterable[Message],
    puts: Iterable[Message],
    *,
    puts_first: bool = False,
) -> None:
    """A message for each entry. What is missing is removed already. Unapplied.

    Removals come first, unless told otherwise: a table may be full.
    """

    def remove() -> dict[K, int]:
        codes = zip(delta.removals, rtnl.bulk.change(removals), strict=True)
        return {key: code for key, code in codes if code and code not in GONE}

    def put() -> dict[K, int]:
        codes = zip(delta.puts, rtnl.bulk.change(puts), strict=True)
        return {key: code for (key, _), code in codes if code}

    failed = {**put(), **remove()} if puts_first else {**remove(), **put()}
    if failed:
        last = [*failed.values()][-1]
        raise Unapplied(f"{what}: {len(failed)} entries not applied: {os.strerror(last)}", failed)
