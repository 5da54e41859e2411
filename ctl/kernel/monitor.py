"""Hears of changes in the kernel: links, addresses, neighbours, routes, filters.

Events only make reconciling sooner, so they are not decoded further than to tell which
part of the state to look at, and losing some (ENOBUFS) means to look at everything.
A plain socket rather than pyroute2: it may be read from any thread, and costs nothing.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from enum import StrEnum
from typing import Final

from ctl.host import OWNER
from ctl.kernel.firewall import CHAIN, TABLE
from ctl.kernel.netlink import NUD_USABLE
from ctl.kernel.tables import ROUTE_PROTOCOL


class Change(StrEnum):
    """A part of the node's state that may differ from the plan now."""

    DEVICES = "devices"
    """Links and addresses."""
    PEERS = "peers"
    """Routes, VTEP neighbours, FDB."""
    PORTS = "ports"
    """Containers on the bridge."""
    FILTERS = "filters"
    """Programs on interfaces."""
    FIREWALL = "firewall"
    """Our rules."""


EVERYTHING: Final = frozenset(Change)

_SOL_NETLINK: Final = 270
_ADD_MEMBERSHIP: Final = 1
_GROUPS: Final = {"link": 1, "neigh": 3, "tc": 4, "ipv4-addr": 5, "ipv4-route": 7}
"""RTNLGRP_* of linux/rtnetlink.h."""

_NETLINK_NETFILTER: Final = 12
_NFNLGRP_NFTABLES: Final = 7
_XFRMNLGRP_POLICY: Final = 4

_HEADER: Final = struct.Struct("=IHHII")
_NEW_LINK, _DEL_LINK, _SET_LINK = 16, 17, 19
_NEW_ADDR, _DEL_ADDR = 20, 21
_NEW_ROUTE, _DEL_ROUTE = 24, 25
_NEW_NEIGH, _DEL_NEIGH = 28, 29
_DEL_QDISC = 37
_NEW_FILTER, _DEL_FILTER = 44, 45

_AF_BRIDGE: Final = 7
_NDMSG: Final = 12
_NDA_DST: Final = 1
_NDA_LLADDR: Final = 2

_PARTS: Final = {
    _NEW_LINK: frozenset({Change.DEVICES, Change.PORTS}),
    _DEL_LINK: frozenset({Change.DEVICES, Change.PORTS}),
    _SET_LINK: frozenset({Change.DEVICES, Change.PORTS}),
    _NEW_ADDR: frozenset({Change.DEVICES, Change.PEERS}),
    _DEL_ADDR: frozenset({Change.DEVICES, Change.PEERS}),
    _NEW_ROUTE: frozenset({Change.PEERS}),
    _DEL_ROUTE: frozenset({Change.PEERS}),
    _DEL_QDISC: frozenset({Change.FILTERS}),
    _NEW_FILTER: frozenset({Change.FILTERS}),
    _DEL_FILTER: frozenset({Change.FILTERS}),
}


def classify(kind: int, body: bytes) -> frozenset[Change]:
    """What a message of type `kind` may have changed; neighbours are `NeighbourMemory`'s.

    Our own additions (routes, filters) are told apart and change nothing.
    """
    if kind == _NEW_ROUTE and body[5] == ROUTE_PROTOCOL:  # rtm_protocol
        return frozenset()
    if kind == _NEW_FILTER and OWNER.encode() + b":" in body:  # TCA_BPF_NAME
        return frozenset()
    return _PARTS.get(kind, frozenset())


class NeighbourMemory:
    """Tells neighbour messages that say something new from those that do not.

    The kernel reports every step of its reachability checks, several a minute for each
    container; only another MAC, or another port for one, is of interest.
    """

    def __init__(self) -> None:
        self.vxlan = 0
        self.bridge = 0
        self._known: dict[tuple[int, bytes], bytes] = {}

    def forget(self) -> None:
        """Messages were lost: the next ones are all new."""
        self._known.clear()

    def classify(self, kind: int, body: bytes) -> frozenset[Change]:
        """As the function `classify`, for RTM_NEWNEIGH and RTM_DELNEIGH (struct ndmsg, attributes)."""
        family, ifindex, state = struct.unpack_from("=BxxxiH", body)
        if ifindex == self.vxlan:
            return frozenset({Change.PEERS}) if kind == _DEL_NEIGH else frozenset()
        if family != socket.AF_INET or ifindex != self.bridge:
            return frozenset({Change.PORTS}) if family == _AF_BRIDGE else frozenset()
        attributes = dict(_attributes(body[_NDMSG:]))
        key = (ifindex, attributes.get(_NDA_DST, b""))
        mac = attributes.get(_NDA_LLADDR, b"") if kind == _NEW_NEIGH and state & NUD_USABLE else b""
        if self._known.get(key, b"") == mac:
            return frozenset()
        if mac:
            self._known[key] = mac
        else:
            self._known.pop(key, None)
        return frozenset({Change.PORTS})


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and value of each struct rtattr."""
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            return
        yield kind, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


class Monitor:
    """A thread that calls `changed` with what has changed. `close` ends it."""

    def __init__(self, changed: Callable[[frozenset[Change]], None]) -> None:
        self._neighbours = NeighbourMemory()
        self._changed = changed
        self._routes = _listen(socket.NETLINK_ROUTE, _GROUPS.values())
        self._rules = _listen(_NETLINK_NETFILTER, [_NFNLGRP_NFTABLES])
        self._others = [self._rules]
        with suppress(OSError):  # a kernel without IPsec
            self._others.append(_listen(socket.NETLINK_XFRM, [_XFRMNLGRP_POLICY]))
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="netlink-monitor", daemon=True)
        self._thread.start()

    def watch(self, tunnel: int, bridge: int) -> None:
        """Our devices' ifindexes, once there are any: their neighbours are of interest."""
        self._neighbours.vxlan, self._neighbours.bridge = tunnel, bridge

    def close(self) -> None:
        self._wake.close()
        self._thread.join()
        for each in (self._routes, *self._others, self._woken):
            each.close()

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select([self._routes, *self._others, self._woken], [], [])
            if self._woken in ready:
                return
            found: frozenset[Change] = frozenset()
            for each in ready:
                found |= self._read(each)
            if found:
                self._changed(found)

    def _read(self, source: socket.socket) -> frozenset[Change]:
        try:
            data = source.recv(1 << 17)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            self._neighbours.forget()
            return EVERYTHING
        if source is self._routes:
            return self._decode(data)
        # A policy of IPsec: which path the peers may take has to be decided anew.
        return classify_rules(data) if source is self._rules else frozenset({Change.PEERS})

    def _decode(self, data: bytes) -> frozenset[Change]:
        found: frozenset[Change] = frozenset()
        offset = 0
        while offset + _HEADER.size <= len(data):
            length, kind, _, _, _ = _HEADER.unpack_from(data, offset)
            if length < _HEADER.size:
                break
            body = data[offset + _HEADER.size : offset + length]
            neighbour = kind in (_NEW_NEIGH, _DEL_NEIGH)
            found |= self._neighbours.classify(kind, body) if neighbour else classify(kind, body)
            offset += (length + 3) & ~3
        return found


def classify_rules(data: bytes) -> frozenset[Change]:
    """What nftables' messages (nfnetlink) may have changed.

    Only those count that name us, or iptables' chain in which we stand with others.
    """
    ours = any(name.encode() + b"\0" in data for name in (TABLE, CHAIN, "FORWARD"))
    return frozenset({Change.FIREWALL}) if ours else frozenset()


def _listen(protocol: int, groups: Iterable[int]) -> socket.socket:
    listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    listener.bind((0, 0))
    for group in groups:
        listener.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
    return listener
