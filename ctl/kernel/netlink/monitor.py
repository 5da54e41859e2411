"""Hears of changes in the kernel: links, addresses, neighbours, routes, filters, rules, IPsec policies.

Qdiscs are heard of with filters, and whether devices forward.

pyroute2 opens the sockets and joins the groups, a thread reads what they bring. Not by pyroute2:
an IPRoute that is bound takes every message by itself, has no bound for what nobody reads, and
fails in every call after the kernel had no room for one (ENOBUFS); which here says no more than
what to look at.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Final, Protocol

from pyroute2.netlink import (
    NETLINK_ADD_MEMBERSHIP,
    NETLINK_NETFILTER,
    NETLINK_ROUTE,
    NETLINK_XFRM,
    SOL_NETLINK,
)
from pyroute2.netlink.nlsocket import NetlinkSocket
from pyroute2.netlink.rtnl import (
    RTNLGRP_IPV4_IFADDR,
    RTNLGRP_IPV4_NETCONF,
    RTNLGRP_IPV4_ROUTE,
    RTNLGRP_IPV4_RULE,
    RTNLGRP_IPV6_IFADDR,
    RTNLGRP_IPV6_ROUTE,
    RTNLGRP_IPV6_RULE,
    RTNLGRP_LINK,
    RTNLGRP_NEIGH,
    RTNLGRP_TC,
)

from ctl.core.errors import KernelError
from ctl.core.host import Change, Devices
from ctl.kernel.netlink.classify import (
    POLICIES,
    Classifier,
    Source,
    Wanted,
    few_elements,
    quiet_filter,
    routes,
    rules,
)
from ctl.kernel.netlink.socket import SO_RCVBUFFORCE

_RTNLGRP_NEXTHOP: Final = 32
"""linux/rtnetlink.h; pyroute2 does not have it."""
_GROUPS: Final = (
    RTNLGRP_LINK,
    RTNLGRP_NEIGH,
    RTNLGRP_TC,
    RTNLGRP_IPV4_IFADDR,
    RTNLGRP_IPV4_NETCONF,
    RTNLGRP_IPV4_ROUTE,
    RTNLGRP_IPV4_RULE,
    _RTNLGRP_NEXTHOP,
)
_IPV6_GROUPS: Final = (RTNLGRP_IPV6_IFADDR, RTNLGRP_IPV6_ROUTE, RTNLGRP_IPV6_RULE)
_NFNLGRP_NFTABLES: Final = 7
"""linux/netfilter/nfnetlink.h."""
_XFRMNLGRP_POLICY: Final = 4
"""linux/xfrm.h."""

_SO_ATTACH_FILTER: Final = 26
_RECEIVE_BUFFER: Final = 1 << 22


class Monitor:
    """A thread that calls `changed` with what has changed. `close` ends it. KernelError if it cannot begin.

    `wanted`: whether something that was removed should be there; called in the thread. `ipv6`: whether
    addresses, routes and rules of IPv6 are of interest too.
    """

    def __init__(
        self, changed: Callable[[frozenset[Change]], None], wanted: Wanted, *, ipv6: bool = False
    ) -> None:
        self._classifier = Classifier(wanted)
        self._changed = changed
        self._sources: dict[socket.socket, Source] = {}
        with _hearing(), ExitStack() as failing:
            failing.callback(self._close_sources)
            groups = (*_GROUPS, *_IPV6_GROUPS) if ipv6 else _GROUPS
            self._routes = self._hear(NETLINK_ROUTE, groups, routes(self._classifier))
            _attach(self._hear(NETLINK_NETFILTER, [_NFNLGRP_NFTABLES], rules(wanted)), few_elements())
            with suppress(OSError):  # a kernel without IPsec
                self._hear(NETLINK_XFRM, [_XFRMNLGRP_POLICY], POLICIES)
            self._wake, self._woken = socket.socketpair()
            failing.pop_all()
        self._thread = threading.Thread(target=self._run, name="netlink-monitor", daemon=True)
        self._thread.start()

    def watch(self, devices: Devices) -> None:
        """Our devices, once there are any: their neighbours and routes are of interest. KernelError."""
        if devices.tunnels != self._classifier.devices.tunnels:
            with _hearing():
                _attach(self._routes, quiet_filter(devices.tunnels))
        self._classifier.devices = devices

    def close(self) -> None:
        self._wake.close()
        self._thread.join()
        self._woken.close()
        self._close_sources()

    def _hear(self, protocol: int, groups: Iterable[int], source: Source) -> socket.socket:
        listener = _listen(protocol, groups)
        self._sources[listener] = source
        return listener

    def _close_sources(self) -> None:
        for each in self._sources:
            each.close()

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select([*self._sources, self._woken], [], [])
            if self._woken in ready:
                return
            found = frozenset().union(*(hear(each, self._sources[each]) for each in ready))
            if found:
                self._changed(found)


@contextmanager
def _hearing() -> Iterator[None]:
    """An OSError of the block as KernelError."""
    try:
        yield
    except OSError as error:
        raise KernelError(f"cannot hear of changes in the kernel: {error.strerror}") from error


class Receiver(Protocol):
    """A socket, as far as one hears by it."""

    def recv(self, size: int, /) -> bytes: ...


def hear(listener: Receiver, source: Source) -> frozenset[Change]:
    """What the next messages may have changed; those that the kernel had no room for (ENOBUFS) too."""
    try:
        data = listener.recv(1 << 17)
    except OSError as error:
        if error.errno != errno.ENOBUFS:
            raise
        return source.lost()
    return source.heard(data)


def _listen(family: int, groups: Iterable[int]) -> socket.socket:
    """A socket of these groups: pyroute2's, but for its event loop, which stays closed."""
    with NetlinkSocket(family=family) as opened, ExitStack() as failing:
        opened.bind()
        listener = socket.socket(fileno=os.dup(opened.fileno()))
        failing.callback(listener.close)
        listener.setblocking(True)
        listener.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        for group in groups:
            listener.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        failing.pop_all()
    return listener


def _attach(listener: socket.socket, program: bytes) -> None:
    """Have the kernel ask `program` (struct sock_fprog) which messages the socket is to get."""
    code = ctypes.create_string_buffer(program, len(program))
    listener.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(program) // 8, ctypes.addressof(code))
    )
