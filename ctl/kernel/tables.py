"""The kernel path's state as tables for reconciling (ctl.ports.Table).

Each reads only what is ours: routes by their protocol number, neighbours and FDB
entries on our own vxlan device, filters by their place and name.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from socket import AF_BRIDGE, AF_INET
from typing import Any, Final, TypeVar

from pyroute2 import NetlinkError

from ctl.errors import ForeignProgram, KernelError
from ctl.host import OWNER, Filter, FilterKey, Route
from ctl.kernel.netlink import Netlink, suppress_missing, words
from ctl.model import MacAddress
from ctl.plan import Delta

K = TypeVar("K")
V = TypeVar("V")

ROUTE_PROTOCOL: Final = 147
"""rtm_protocol of our routes: in no registry (iproute2's rt_protos), so ours to remove."""

_RTNH_F_ONLINK: Final = 4
_RT_SCOPE_LINK: Final = 253
_NTF_SELF: Final = 2
_NUD_PERMANENT: Final = 0x80

FILTER_PRIORITY: Final = 49000
"""Behind filters with hand-made priorities: they see every packet before we do."""
FILTER_HANDLE: Final = 1
_INGRESS: Final = 0xFFFFFFF2
_EGRESS: Final = 0xFFFFFFF3
_ETH_P_ALL: Final = 0x0003


def _apply(delta: Delta[K, V], put: Callable[[K, V], None], remove: Callable[[K], None], what: str) -> None:
    """Try every operation, removals first; one line at the end for those that failed."""
    operations: list[Callable[[], None]] = [partial(remove, key) for key in delta.removals]
    operations += [partial(put, key, value) for key, value in delta.puts]
    failed, reason = 0, ""
    for number, operation in enumerate(operations):
        try:
            with suppress_missing() if number < len(delta.removals) else nullcontext():
                operation()
        except NetlinkError as error:
            failed, reason = failed + 1, words(error)
        except KernelError as error:
            failed, reason = failed + 1, str(error)
    if failed:
        raise KernelError(f"{what}: {failed} entries not applied: {reason}")


class Routes:
    """Subnet of a peer -> where it is routed to."""

    def __init__(self, netlink: Netlink) -> None:
        self._netlink = netlink

    def read(self) -> Mapping[IPv4Network, Route]:
        with self._netlink.doing("list routes"):
            found = self._netlink.ipr.get_routes(family=AF_INET, proto=ROUTE_PROTOCOL)
            return {
                IPv4Network((m.get("RTA_DST"), m["dst_len"])): Route(
                    IPv4Address(m.get("RTA_GATEWAY") or 0),
                    m.get("RTA_OIF") or 0,
                    bool(m["flags"] & _RTNH_F_ONLINK),
                    m.get(("metrics", "mtu")) or 0,
                )
                for m in found
                if m.get("RTA_DST")
            }

    def apply(self, delta: Delta[IPv4Network, Route]) -> None:
        _apply(delta, self._put, self._remove, "routes to peers")

    def _put(self, subnet: IPv4Network, route: Route) -> None:
        self._netlink.ipr.route(
            "replace",
            dst=str(subnet),
            **({"gateway": str(route.via)} if int(route.via) else {"scope": _RT_SCOPE_LINK}),
            oif=route.ifindex,
            flags=_RTNH_F_ONLINK if route.onlink else 0,
            **({"metrics": {"mtu": route.mtu}} if route.mtu else {}),
            proto=ROUTE_PROTOCOL,
        )

    def _remove(self, subnet: IPv4Network) -> None:
        self._netlink.ipr.route("del", dst=str(subnet), proto=ROUTE_PROTOCOL)


class VtepNeighbours:
    """VTEP address -> MAC, permanent, on the vxlan device."""

    def __init__(self, netlink: Netlink, vxlan: int) -> None:
        self._netlink, self._vxlan = netlink, vxlan

    def read(self) -> Mapping[IPv4Address, MacAddress]:
        with self._netlink.doing("list VTEP neighbours"):
            found = self._netlink.ipr.get_neighbours(family=AF_INET, ifindex=self._vxlan)
            return {
                IPv4Address(m.get("NDA_DST")): MacAddress.parse(m.get("NDA_LLADDR"))
                for m in found
                if m["state"] & _NUD_PERMANENT and m.get("NDA_LLADDR")
            }

    def apply(self, delta: Delta[IPv4Address, MacAddress]) -> None:
        _apply(delta, self._put, self._remove, "VTEP neighbours")

    def _put(self, address: IPv4Address, mac: MacAddress) -> None:
        self._netlink.ipr.neigh(
            "replace", dst=str(address), lladdr=str(mac), ifindex=self._vxlan, state="permanent"
        )

    def _remove(self, address: IPv4Address) -> None:
        self._netlink.ipr.neigh("del", dst=str(address), ifindex=self._vxlan)


class Fdb:
    """VTEP MAC -> host, permanent, on the vxlan device."""

    def __init__(self, netlink: Netlink, vxlan: int) -> None:
        self._netlink, self._vxlan = netlink, vxlan

    def read(self) -> Mapping[MacAddress, IPv4Address]:
        with self._netlink.doing("list FDB entries"):
            found = self._netlink.ipr.get_neighbours(family=AF_BRIDGE, ifindex=self._vxlan)
            return {
                MacAddress.parse(m.get("NDA_LLADDR")): IPv4Address(m.get("NDA_DST"))
                for m in found
                if m["ifindex"] == self._vxlan and m.get("NDA_DST")
            }

    def apply(self, delta: Delta[MacAddress, IPv4Address]) -> None:
        _apply(delta, self._put, self._remove, "FDB of the vxlan device")

    def _put(self, mac: MacAddress, host: IPv4Address) -> None:
        self._netlink.ipr.fdb(
            "replace",
            lladdr=str(mac),
            dst=str(host),
            ifindex=self._vxlan,
            flags=_NTF_SELF,
            state=_NUD_PERMANENT,
        )

    def _remove(self, mac: MacAddress) -> None:
        self._netlink.ipr.fdb("del", lladdr=str(mac), ifindex=self._vxlan, flags=_NTF_SELF)


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
        for message in self._dump(ifindex, ingress):
            options = message.get("TCA_OPTIONS")
            kind = message.get("TCA_KIND")
            priority = message["info"] >> 16
            if not message["handle"] or options is None:
                continue  # the head of a chain, no filter
            name = options.get("TCA_BPF_NAME") if kind == "bpf" else None
            if _ours(name):
                continue
            what = f"{kind} filter {name or ''}".strip()
            if priority == FILTER_PRIORITY:
                return f"{what} of someone else has our priority {priority}"
            if priority > FILTER_PRIORITY:
                return f"{what} at priority {priority} would not see what our program redirects"
        return ""

    def apply(self, delta: Delta[FilterKey, Filter]) -> None:
        _apply(delta, self._attach, self._detach, "tc filters")

    def _attach(self, key: FilterKey, new: Filter) -> None:
        try:
            self._put(key, new)
        except NetlinkError as error:
            if error.code != errno.ENODEV:  # a container that has just ended
                raise

    def _put(self, key: FilterKey, new: Filter) -> None:
        ipr = self._netlink.ipr
        try:
            ipr.tc("add", "clsact", key.ifindex)
        except NetlinkError as error:
            if error.code != errno.EEXIST:  # someone's, or ours
                raise
        if why := self.foreign(key.ifindex, key.ingress):
            raise ForeignProgram(f"interface {key.ifindex}: {why}")
        ipr.tc(
            "replace-filter", "bpf", key.ifindex, handle=FILTER_HANDLE, parent=_parent(key.ingress),
            prio=FILTER_PRIORITY, protocol=_ETH_P_ALL, fd=self.fds[new.program],
            name=f"{OWNER}:{new.program}:{new.program_id}", direct_action=True,
        )  # fmt: skip
        self._known.setdefault(key.ifindex, {})[key] = new

    def _detach(self, key: FilterKey) -> None:
        self._known.get(key.ifindex, {}).pop(key, None)
        ipr = self._netlink.ipr
        with suppress_missing():
            ipr.tc("del-filter", "bpf", key.ifindex, handle=FILTER_HANDLE, parent=_parent(key.ingress),
                   prio=FILTER_PRIORITY, protocol=_ETH_P_ALL)  # fmt: skip

    def remove_clsact(self, interfaces: Iterable[int]) -> None:
        """Take the qdisc that our programs hung on away where nothing hangs on it any more.

        For teardown only: deactivating an interface's qdiscs drops packets under load.
        """
        for ifindex in interfaces:
            with suppress_missing():
                if not any(self._dump(ifindex, ingress) for ingress in (True, False)):
                    self._netlink.ipr.tc("del", "clsact", ifindex)

    def _scan(self, ifindex: int) -> dict[FilterKey, Filter]:
        found = {}
        for ingress in (True, False):
            for message in self._dump(ifindex, ingress):
                options = message.get("TCA_OPTIONS")
                if message.get("TCA_KIND") != "bpf" or not message["handle"] or options is None:
                    continue
                name = options.get("TCA_BPF_NAME")
                if _ours(name):
                    # pyroute2 does not decode TCA_BPF_ID, so the name carries the id.
                    _, program, ident = (*name.split(":"), "", "")[:3]
                    found[FilterKey(ifindex, ingress)] = Filter(program, int(ident) if ident.isdigit() else 0)
        return found

    def _dump(self, ifindex: int, ingress: bool) -> list[Any]:
        found: list[Any] = []
        with suppress_missing():
            found.extend(self._netlink.ipr.get_filters(index=ifindex, parent=_parent(ingress)))
        return found


def _parent(ingress: bool) -> int:
    return _INGRESS if ingress else _EGRESS


def _ours(name: str | None) -> bool:
    return bool(name) and str(name).startswith(f"{OWNER}:")
