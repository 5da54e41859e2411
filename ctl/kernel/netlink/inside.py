"""Looking into containers' network namespaces, where this process may. Nothing is changed."""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import closing, suppress
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final, TypeVar

from pyroute2.netlink import NLM_F_REQUEST
from pyroute2.netlink.rtnl import RTM_GETNSID

from ctl.core.diagnosis.inside import Inside
from ctl.core.errors import KernelError
from ctl.core.host import Link
from ctl.kernel.netlink import addressing
from ctl.kernel.netlink.fib import next_hop
from ctl.kernel.netlink.message import attributes
from ctl.kernel.netlink.session import Netlink
from ctl.kernel.netlink.socket import Message, Refused

T = TypeVar("T")
_CLONE_NEWNET: Final = 0x40000000
_NETNSA_NSID, _NETNSA_FD = 1, 3
"""linux/net_namespace.h."""
_PLACES: Final = ("/proc/[0-9]*/ns/net", "/run/netns/*", "/run/docker/netns/*")
"""Where network namespaces have files: of processes, and those that are kept by a name."""


def look_inside(netlink: Netlink, ports: Collection[Link], target: IPv4Address) -> list[Inside]:
    """Each container at one of these ports that can be looked into, by port.

    `target`: an address on another node. What goes away meanwhile is left out. No namespace is opened
    once all ports are found. KernelError.
    """
    wanted = {link.peer: link for link in ports if link.peer is not None}
    found: list[Inside] = []
    with closing(_namespaces()) as namespaces:
        while wanted and (fd := next(namespaces, None)) is not None:
            try:
                number = _number(netlink, fd)
                here = {peer: link for peer, link in wanted.items() if peer.netns == number}
                if here:
                    behind = {peer.ifindex: link for peer, link in here.items()}
                    found += _entered(fd, partial(_inside, ports=behind, target=target))
                    wanted = {peer: link for peer, link in wanted.items() if peer not in here}
            finally:
                os.close(fd)
    return sorted(found, key=lambda each: each.port)


def addresses_inside() -> frozenset[IPv4Address | IPv6Address]:
    """All that any network namespace has, this one too, of those that can be looked into.

    But for IPv6's of links. KernelError.
    """
    found: set[IPv4Address | IPv6Address] = set()
    with Netlink() as netlink:
        found.update(_addresses(netlink))
    with closing(_namespaces()) as namespaces:
        for fd in namespaces:
            try:
                with suppress(KernelError):
                    found.update(_entered(fd, _addresses))
            finally:
                os.close(fd)
    return frozenset(found)


def _addresses(netlink: Netlink) -> Iterator[IPv4Address | IPv6Address]:
    for version in (4, 6):
        with suppress(Refused):
            yield from (each.ip for each in addressing.of(netlink.rtnl, 0, version))


def _namespaces() -> Generator[int]:
    """A descriptor of each network namespace that has a file. Who takes one closes it."""
    seen = {os.stat("/proc/self/ns/net").st_ino}
    for place in _PLACES:
        for path in Path("/").glob(place[1:]):
            with suppress(OSError):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                inode = os.fstat(fd).st_ino
                if inode in seen:
                    os.close(fd)
                else:
                    seen.add(inode)
                    yield fd


def _number(netlink: Netlink, fd: int) -> int:
    """By which this namespace knows another one; -1: it does not."""
    request = struct.pack("=B3xHHi", 0, 8, _NETNSA_FD, fd)  # struct rtgenmsg, and an attribute
    ((code, answer),) = netlink.rtnl.bulk.ask([Message(RTM_GETNSID, NLM_F_REQUEST, request)])
    if code:
        return -1
    return int.from_bytes(attributes(answer, 4).get(_NETNSA_NSID, b"\xff" * 4), "little", signed=True)


def _entered(fd: int, seen: Callable[[Netlink], Iterator[T]]) -> list[T]:
    """What is seen there, from a thread of its own: a network namespace is a thread's. KernelError."""
    found: list[T] = []
    failed: list[str] = []

    def look() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(fd, _CLONE_NEWNET):
            failed.append(f"setns: {os.strerror(ctypes.get_errno())}")
            return
        with suppress(KernelError), Netlink() as netlink:
            found.extend(seen(netlink))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    if failed:
        raise KernelError(f"cannot look into a container: {failed[0]}")
    return found


def _inside(netlink: Netlink, ports: dict[int, Link], target: IPv4Address) -> Iterator[Inside]:
    links = netlink.links()
    out, hop = "", None
    with suppress(Refused):  # no route
        ifindex, hop = next_hop(netlink.rtnl, target)
        out = links[ifindex].name if ifindex in links else ""
    for ifindex, port in ports.items():
        if ifindex in links:
            link, addresses = links[ifindex], tuple(netlink.addresses(ifindex))
            yield Inside(port.name, link.name, link.mtu, addresses, out, hop)
