"""The kernel path's state as tables for reconciling (ctl.ports.Table).

Each reads only what is ours: routes by their protocol number, neighbours and FDB
entries on our own vxlan device, filters by their place and name.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from socket import AF_BRIDGE, AF_INET
from typing import Final, TypeVar

from ctl.errors import ForeignProgram, KernelError
from ctl.host import OWNER, Filter, FilterKey, Route, RouteKey
from ctl.kernel import tc
from ctl.kernel.netlink import GONE, Netlink, suppress_missing
from ctl.kernel.rtnl import (
    NDA_DST,
    NDA_IFINDEX,
    NDA_LLADDR,
    NDMSG,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    RT_TABLE_MAIN,
    RTA_DST,
    RTA_OIF,
    RTM_DELNEIGH,
    RTM_DELQDISC,
    RTM_DELROUTE,
    RTM_DELTFILTER,
    RTM_GETNEIGH,
    RTM_GETROUTE,
    RTM_GETTFILTER,
    RTM_NEWNEIGH,
    RTM_NEWQDISC,
    RTM_NEWROUTE,
    RTM_NEWTFILTER,
    RTMSG,
    RTN_UNICAST,
    Message,
    Refused,
    Rtnl,
    attribute,
    attributes,
    number,
    to_number,
)
from ctl.model import MacAddress
from ctl.plan import Delta

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

FILTER_PRIORITY: Final = 49000
"""Behind filters with hand-made priorities: they see every packet before we do."""
FILTER_HANDLE: Final = 1


def _apply(delta: Delta[K, V], put: Callable[[K, V], None], remove: Callable[[K], None], what: str) -> None:
    """Try every operation, removals first; one line at the end for those that failed."""
    operations: list[Callable[[], None]] = [partial(remove, key) for key in delta.removals]
    operations += [partial(put, key, value) for key, value in delta.puts]
    failed, reason = 0, ""
    for turn, operation in enumerate(operations):
        try:
            with suppress_missing() if turn < len(delta.removals) else nullcontext():
                operation()
        except KernelError as error:
            failed, reason = failed + 1, str(error)
    if failed:
        raise KernelError(f"{what}: {failed} entries not applied: {reason}")


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
    gone = [code for code in rtnl.change(removals) if code not in GONE]
    failed = gone + [code for code in rtnl.change(puts) if code]
    if failed:
        raise KernelError(f"{what}: {len(failed)} entries not applied: {os.strerror(failed[-1])}")


class Filters:
    """Our tc programs, by place. What is attached is remembered; `forget` reads anew."""

    def __init__(self, netlink: Netlink) -> None:
        self._netlink = netlink
        self._known: dict[int, dict[FilterKey, Filter]] = {}
        self._stale: set[int] = set()
        self._taken: dict[int, str] = {}
        self.fds: Mapping[str, int] = {}
        """File descriptor of each program, for attaching."""

    def forget(self, ifindex: int | None = None) -> None:
        """Someone changed the filters of an interface (None: of any)."""
        # The interface stays known: a program on it that is not wanted has to go.
        touched = {*self._known, *self._taken} if ifindex is None else {ifindex}
        self._stale |= touched & self._known.keys()
        for each in touched:
            self._taken.pop(each, None)

    def read(self) -> Mapping[FilterKey, Filter]:
        """What we remember to be attached."""
        return {key: value for found in self._known.values() for key, value in found.items()}

    def read_on(self, interfaces: Iterable[int]) -> Mapping[FilterKey, Filter]:
        """Filters of ours on these interfaces, and on others that we remember."""
        for ifindex in (set(interfaces) - self._known.keys()) | self._stale:
            self._known[ifindex] = self._scan(ifindex)
        self._stale.clear()
        return self.read()

    def gone(self, present: Iterable[int]) -> None:
        """Interfaces that no longer exist took their filters with them."""
        for ifindex in (self._known.keys() | self._taken.keys()) - set(present):
            self._known.pop(ifindex, None)
            self._taken.pop(ifindex, None)
            self._stale.discard(ifindex)

    def taken(self, ifindex: int) -> str:
        """`foreign` for both directions of an interface, remembered until `forget`."""
        if ifindex not in self._taken:
            self._taken[ifindex] = self.foreign(ifindex, True) or self.foreign(ifindex, False)
        return self._taken[ifindex]

    def foreign(self, ifindex: int, ingress: bool) -> str:
        """Why our program must not go there: one of someone else's, in words; or ""."""
        for each in self._attached(ifindex, ingress):
            if _ours(each.name):
                continue
            what = f"{each.kind} filter {each.name}".strip()
            if each.priority == FILTER_PRIORITY:
                return f"{what} of someone else has our priority {each.priority}"
            if each.priority > FILTER_PRIORITY:
                return f"{what} at priority {each.priority} would not see what our program redirects"
        return ""

    def apply(self, delta: Delta[FilterKey, Filter]) -> None:
        _apply(delta, self._attach, self._detach, "tc filters")

    def _attach(self, key: FilterKey, new: Filter) -> None:
        try:
            self._put(key, new)
        except Refused as error:
            if error.code != errno.ENODEV:  # a container that has just ended
                raise

    def _put(self, key: FilterKey, new: Filter) -> None:
        rtnl = self._netlink.rtnl
        try:
            rtnl.do(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, tc.clsact(key.ifindex))
        except Refused as error:
            if error.code != errno.EEXIST:  # someone's, or ours
                raise
        if why := self.foreign(key.ifindex, key.ingress):
            raise ForeignProgram(f"interface {key.ifindex}: {why}")
        name = f"{OWNER}:{new.program}:{new.program_id}"
        rtnl.do(RTM_NEWTFILTER, _PUT, _place(key) + tc.program(self.fds[new.program], name))
        self._known.setdefault(key.ifindex, {})[key] = new

    def _detach(self, key: FilterKey) -> None:
        self._known.get(key.ifindex, {}).pop(key, None)
        with suppress_missing():
            self._netlink.rtnl.do(RTM_DELTFILTER, 0, _place(key))

    def remove_clsact(self, interfaces: Iterable[int]) -> None:
        """Take the qdisc that our programs hung on away where nothing hangs on it any more.

        For teardown only: deactivating an interface's qdiscs drops packets under load.
        """
        for ifindex in interfaces:
            with suppress_missing():
                if not any(self._dump(ifindex, ingress) for ingress in (True, False)):
                    self._netlink.rtnl.do(RTM_DELQDISC, 0, tc.clsact(ifindex))

    def _scan(self, ifindex: int) -> dict[FilterKey, Filter]:
        found = {}
        for ingress in (True, False):
            for each in self._attached(ifindex, ingress):
                if _ours(each.name):
                    # TCA_BPF_ID has it as well, but the name is what older versions go by.
                    _, program, ident = (*each.name.split(":"), "", "")[:3]
                    found[FilterKey(ifindex, ingress)] = Filter(program, int(ident) if ident.isdigit() else 0)
        return found

    def _attached(self, ifindex: int, ingress: bool) -> list[tc.Attached]:
        return [found for found in map(tc.parse, self._dump(ifindex, ingress)) if found]

    def _dump(self, ifindex: int, ingress: bool) -> list[bytes]:
        found: list[bytes] = []
        with suppress_missing():
            found.extend(self._netlink.rtnl.dump(RTM_GETTFILTER, tc.place(ifindex, _parent(ingress))))
        return found


def _parent(ingress: bool) -> int:
    return tc.INGRESS if ingress else tc.EGRESS


def _place(key: FilterKey) -> bytes:
    return tc.place(key.ifindex, _parent(key.ingress), FILTER_PRIORITY, FILTER_HANDLE)


def _ours(name: str) -> bool:
    return name.startswith(f"{OWNER}:")
