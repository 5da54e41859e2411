"""Hears of changes in the kernel: links, addresses, neighbours, routes, filters.

Events only make reconciling sooner, so they are not decoded further than to tell which
part of the state to look at, and losing some (ENOBUFS) means to look at everything.
A plain socket rather than pyroute2: it may be read from any thread, and costs nothing.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from enum import StrEnum
from typing import Final

from ctl.host import OWNER
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


EVERYTHING: Final = frozenset(Change)

_SOL_NETLINK: Final = 270
_ADD_MEMBERSHIP: Final = 1
_GROUPS: Final = {"link": 1, "neigh": 3, "tc": 4, "ipv4-addr": 5, "ipv4-route": 7}
"""RTNLGRP_* of linux/rtnetlink.h."""

_HEADER: Final = struct.Struct("=IHHII")
_NEW_LINK, _DEL_LINK, _SET_LINK = 16, 17, 19
_NEW_ADDR, _DEL_ADDR = 20, 21
_NEW_ROUTE, _DEL_ROUTE = 24, 25
_NEW_NEIGH, _DEL_NEIGH = 28, 29
_NEW_FILTER, _DEL_FILTER = 44, 45

_PARTS: Final = {
    _NEW_LINK: frozenset({Change.DEVICES, Change.PORTS}),
    _DEL_LINK: frozenset({Change.DEVICES, Change.PORTS}),
    _SET_LINK: frozenset({Change.DEVICES, Change.PORTS}),
    _NEW_ADDR: frozenset({Change.DEVICES, Change.PEERS}),
    _DEL_ADDR: frozenset({Change.DEVICES, Change.PEERS}),
    _NEW_ROUTE: frozenset({Change.PEERS}),
    _DEL_ROUTE: frozenset({Change.PEERS}),
    _NEW_NEIGH: frozenset({Change.PORTS}),
    _DEL_NEIGH: frozenset({Change.PORTS}),
    _NEW_FILTER: frozenset({Change.FILTERS}),
    _DEL_FILTER: frozenset({Change.FILTERS}),
}


def classify(kind: int, body: bytes, vxlan: int) -> frozenset[Change]:
    """What a message of type `kind` may have changed; `vxlan`: ifindex of our device.

    Our own additions (routes, neighbours, filters) are told apart and change nothing.
    """
    found = _PARTS.get(kind, frozenset())
    if kind == _NEW_ROUTE and body[5] == ROUTE_PROTOCOL:  # rtm_protocol
        return frozenset()
    if kind == _NEW_FILTER and OWNER.encode() + b":" in body:  # TCA_BPF_NAME
        return frozenset()
    if kind in (_NEW_NEIGH, _DEL_NEIGH):
        (ifindex,) = struct.unpack_from("=i", body, 4)  # ndm_ifindex
        if ifindex == vxlan:
            return frozenset({Change.PEERS}) if kind == _DEL_NEIGH else frozenset()
    return found


class Monitor:
    """A thread that calls `changed` with what has changed. `close` ends it."""

    def __init__(self, changed: Callable[[frozenset[Change]], None]) -> None:
        self.vxlan = 0
        """ifindex of our vxlan device, once there is one."""
        self._changed = changed
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._socket.bind((0, 0))
        for group in _GROUPS.values():
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="netlink-monitor", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        self._wake.close()
        self._thread.join()
        self._socket.close()
        self._woken.close()

    def _run(self) -> None:
        import select

        while True:
            ready, _, _ = select.select([self._socket, self._woken], [], [])
            if self._woken in ready:
                return
            try:
                data = self._socket.recv(1 << 17)
            except OSError as error:
                if error.errno != 105:  # ENOBUFS: events were lost
                    raise
                self._changed(EVERYTHING)
                continue
            found = self._decode(data)
            if found:
                self._changed(found)

    def _decode(self, data: bytes) -> frozenset[Change]:
        found: frozenset[Change] = frozenset()
        offset = 0
        while offset + _HEADER.size <= len(data):
            length, kind, _, _, _ = _HEADER.unpack_from(data, offset)
            if length < _HEADER.size:
                break
            found |= classify(kind, data[offset + _HEADER.size : offset + length], self.vxlan)
            offset += (length + 3) & ~3
        return found
