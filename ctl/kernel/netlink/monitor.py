"""Hears of changes in the kernel: links, addresses, neighbours, routes, filters.

Events only make reconciling sooner, so they are not decoded further than to tell which
part of the state to look at, and losing some (ENOBUFS) means to look at all that they can
have been about.
A plain socket of its own: it may be read from any thread.
"""

from __future__ import annotations

import ctypes
import errno
import select
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from typing import Final, Protocol

from ctl.core.host import EVERYTHING, OWNER, Change, Devices, Removed
from ctl.core.model import MacAddress
from ctl.kernel.firewall import CHAIN, TABLE
from ctl.kernel.netlink.session import NUD_USABLE
from ctl.kernel.netlink.socket import NDA_DST, NDA_LLADDR, NDA_MASTER, NDMSG, RTA_OIF, RTMSG, attributes
from ctl.kernel.netlink.tables import ROUTE_PROTOCOL, route_key

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

_SO_ATTACH_FILTER: Final = 26
_RECEIVE_BUFFER: Final = 1 << 22
_SO_RCVBUFFORCE: Final = 33

_PARTS: Final = {
    _NEW_LINK: frozenset({Change.DEVICES, Change.PORTS}),
    _DEL_LINK: frozenset({Change.DEVICES, Change.PORTS}),
    _SET_LINK: frozenset({Change.DEVICES, Change.PORTS}),
    _NEW_ADDR: frozenset({Change.DEVICES, Change.HOPS}),
    _DEL_ADDR: frozenset({Change.DEVICES, Change.HOPS}),
    _NEW_ROUTE: frozenset({Change.HOPS}),
    _DEL_ROUTE: frozenset({Change.HOPS}),
    _DEL_QDISC: frozenset({Change.FILTERS}),
    _NEW_FILTER: frozenset({Change.FILTERS}),
    _DEL_FILTER: frozenset({Change.FILTERS}),
}


Wanted = Callable[[Removed], bool]


class Classifier:
    """What rtnetlink's messages may have changed. One thread's.

    Our own additions (routes, filters) are told apart and change nothing; our own removals
    are those of what is not `wanted`. The kernel reports every step of its reachability
    checks, several a minute for each container: only another MAC, or another port for one,
    is of interest.
    """

    def __init__(self, wanted: Wanted) -> None:
        self.devices = Devices()
        self._wanted = wanted
        self._known: dict[bytes, bytes] = {}
        """MAC by address, of the bridge's neighbours."""
        self._known_on = 0
        """Ifindex of that bridge."""

    def forget(self) -> None:
        """Messages were lost, or are of no use any more: the next ones are all new."""
        self._known.clear()

    def classify(self, kind: int, body: bytes) -> frozenset[Change]:
        """By a message's type and what follows its header."""
        if kind in (_NEW_NEIGH, _DEL_NEIGH):
            return self._neighbour(kind, body)
        if kind in (_NEW_ROUTE, _DEL_ROUTE) and body[5] == ROUTE_PROTOCOL:  # rtm_protocol
            return self._own_route(kind, body)
        if kind == _NEW_FILTER and OWNER.encode() + b":" in body:  # TCA_BPF_NAME
            return frozenset()
        if kind == _DEL_LINK and _ifindex(body) == self._known_on:
            self.forget()  # its neighbours may go without a word
        found = _PARTS.get(kind, frozenset())
        if kind in (_NEW_LINK, _DEL_LINK) and self._carries_routes(body):
            # An interface that goes down takes its routes along without a word.
            found |= {Change.HOPS, Change.PEERS}
        if kind == _DEL_ROUTE and self._leads_to_bridge(body):
            found |= {Change.DEVICES}
        return found

    def _leads_to_bridge(self, body: bytes) -> bool:
        oif = attributes(body, RTMSG.size).get(RTA_OIF, b"")
        return int.from_bytes(oif, sys.byteorder) == self.devices.bridge != 0

    def _carries_routes(self, body: bytes) -> bool:
        ifindex = _ifindex(body)
        return ifindex in (self.devices.tunnel, self.devices.uplink) or ifindex in self.devices.hops

    def _own_route(self, kind: int, body: bytes) -> frozenset[Change]:
        if kind == _NEW_ROUTE:
            return frozenset()
        return self._peers_if_wanted(route_key(body))

    def _peers_if_wanted(self, entry: Removed) -> frozenset[Change]:
        return frozenset({Change.PEERS}) if self._wanted(entry) else frozenset()

    def _own_neighbour(self, kind: int, family: int, found: Mapping[int, bytes]) -> frozenset[Change]:
        if kind == _NEW_NEIGH or family not in (socket.AF_INET, socket.AF_BRIDGE):
            return frozenset()  # IPv6, say: the device has it by default, and entries without a MAC
        if family == socket.AF_INET:
            return self._peers_if_wanted(IPv4Address(found[NDA_DST]))
        return self._peers_if_wanted(MacAddress(found[NDA_LLADDR]))

    def _neighbour(self, kind: int, body: bytes) -> frozenset[Change]:
        family, ifindex, state, _, _ = NDMSG.unpack_from(body)
        found = attributes(body, NDMSG.size)
        if ifindex == self.devices.tunnel:
            return self._own_neighbour(kind, family, found)
        if family == socket.AF_BRIDGE:
            master = int.from_bytes(found.get(NDA_MASTER, b""), sys.byteorder)
            return frozenset({Change.PORTS}) if master == self.devices.bridge != 0 else frozenset()
        if family != socket.AF_INET or ifindex != self.devices.bridge:
            return frozenset()
        if ifindex != self._known_on:
            self._known_on = ifindex
            self.forget()  # what another bridge had, which is gone
        key = found.get(NDA_DST, b"")
        mac = found.get(NDA_LLADDR, b"") if kind == _NEW_NEIGH and state & NUD_USABLE else b""
        if self._known.get(key, b"") == mac:
            return frozenset()
        if mac:
            self._known[key] = mac
        else:
            self._known.pop(key, None)
        return frozenset({Change.PORTS})


def _ifindex(body: bytes) -> int:
    """Of a link's message (struct ifinfomsg)."""
    found: int = struct.unpack_from("=i", body, 4)[0]
    return found


def quiet_filter(tunnel: int) -> bytes:
    """A classic BPF program (struct sock_filter) that keeps our own additions for peers out.

    Thousands of them would wake us to say what we know, or overflow the socket. What is
    compared is in the host's byte order, and loaded as if it were the network's.
    """

    def jump_equal(value: int, then: int, otherwise: int) -> bytes:
        return struct.pack("=HBBI", 0x15, then, otherwise, value)

    def load(size: int, offset: int) -> bytes:
        return struct.pack("=HBBI", size, 0, 0, offset)

    half, word, byte = 0x28, 0x20, 0x30
    accept, drop = struct.pack("=HBBI", 0x06, 0, 0, 0xFFFFFFFF), struct.pack("=HBBI", 0x06, 0, 0, 0)
    return b"".join(
        (
            load(half, 4),  # nlmsg_type
            jump_equal(socket.htons(_NEW_NEIGH), 0, 2),
            load(word, 20),  # ndm_ifindex
            jump_equal(socket.htonl(tunnel), 4, 3),
            jump_equal(socket.htons(_NEW_ROUTE), 0, 2),
            load(byte, 21),  # rtm_protocol
            jump_equal(ROUTE_PROTOCOL, 1, 0),
            accept,
            drop,
        )
    )


@dataclass(frozen=True, slots=True)
class Source:
    """What the messages of one kind of socket mean, and what it means that some were lost.

    nftables tells all hosts' programs of all rules, so others' work can overflow its socket: what
    was lost there can have been about our rules, and about nothing else.
    """

    heard: Callable[[bytes], frozenset[Change]]
    lost: Callable[[], frozenset[Change]]


class Monitor:
    """A thread that calls `changed` with what has changed. `close` ends it.

    `wanted`: whether something that was removed should be there; called in the thread.
    """

    def __init__(self, changed: Callable[[frozenset[Change]], None], wanted: Wanted) -> None:
        self._classifier = Classifier(wanted)
        self._changed = changed
        self._sources: dict[socket.socket, Source] = {}
        with ExitStack() as failing:
            failing.callback(self._close_sources)
            self._routes = self._hear(socket.NETLINK_ROUTE, _GROUPS.values(), routes(self._classifier))
            self._hear(_NETLINK_NETFILTER, [_NFNLGRP_NFTABLES], RULES)
            with suppress(OSError):  # a kernel without IPsec
                self._hear(socket.NETLINK_XFRM, [_XFRMNLGRP_POLICY], POLICIES)
            self._wake, self._woken = socket.socketpair()
            failing.pop_all()
        self._thread = threading.Thread(target=self._run, name="netlink-monitor", daemon=True)
        self._thread.start()

    def watch(self, devices: Devices) -> None:
        """Our devices, once there are any: their neighbours and routes are of interest."""
        if devices.tunnel != self._classifier.devices.tunnel:
            _attach(self._routes, quiet_filter(devices.tunnel))
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


def routes(classifier: Classifier) -> Source:
    """rtnetlink: of all parts but the rules."""

    def lost() -> frozenset[Change]:
        classifier.forget()
        return EVERYTHING

    return Source(partial(_decode, classifier), lost)


def _decode(classifier: Classifier, data: bytes) -> frozenset[Change]:
    found: frozenset[Change] = frozenset()
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            break
        body = data[offset + _HEADER.size : offset + length]
        found |= classifier.classify(kind, body)
        offset += (length + 3) & ~3
    return found


def classify_rules(data: bytes) -> frozenset[Change]:
    """What nftables' messages (nfnetlink) may have changed.

    Only those count that name us, or iptables' chain in which we stand with others.
    """
    ours = any(name.encode() + b"\0" in data for name in (TABLE, CHAIN, "FORWARD"))
    return frozenset({Change.FIREWALL}) if ours else frozenset()


RULES: Final = Source(classify_rules, lambda: frozenset({Change.FIREWALL}))

POLICIES: Final = Source(lambda _: frozenset({Change.HOPS}), lambda: frozenset({Change.HOPS}))
"""Of IPsec: which path the peers may take has to be decided anew."""


def _listen(protocol: int, groups: Iterable[int]) -> socket.socket:
    listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    with ExitStack() as failing:
        failing.callback(listener.close)
        listener.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        listener.bind((0, 0))
        for group in groups:
            listener.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        failing.pop_all()
    return listener


def _attach(listener: socket.socket, program: bytes) -> None:
    """Have the kernel ask `program` (struct sock_fprog) which messages the socket is to get."""
    code = ctypes.create_string_buffer(program, len(program))
    listener.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(program) // 8, ctypes.addressof(code))
    )
