"""Datagrams to ports that nobody listens on: whose host says so, by ICMP (RFC 792, RFC 4443).

A host says so of a datagram (UDP) whose checksum is right; one with a wrong checksum it drops. That tells
apart who gets nothing, and who gets what a device on the way has spoilt.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Final, Generic

from ctl.core.model import A
from ctl.kernel.echo import checksum

UNHEARD: Final = 33434
"""The UDP port at which traceroute(8) begins, for nobody listens there."""
_ROUNDS: Final = 2
"""How often a datagram that a device has finished is missing while another one of the same host is not."""
_SOCKETS: Final = 512
"""So many are opened at once: a process may usually have 1024 descriptors."""
_UDP: Final = struct.Struct("!HHHH")
"""Ports, length, checksum (RFC 768)."""
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}


@dataclass(frozen=True, slots=True)
class Datagram(Generic[A]):
    """An empty one, to a host."""

    host: A
    whole: bool = False
    """Whether its checksum is finished here. The kernel leaves that to the device, if the device can."""


def closed(hosts: Sequence[A], port: int, patience: float) -> set[A]:
    """Those that say that nothing listens on a UDP port of theirs, within `patience` seconds."""
    return {each.host for each in _refused([Datagram(host) for host in hosts], port, patience)}


def spoilt(source: A, hosts: Iterable[A], patience: float) -> set[A]:
    """Hosts that get datagrams from `source` with whole checksums, and none that a device has to finish.

    Both are sent together, the latter first: a host that limits how much ICMP it sends (icmp_ratelimit: one
    a second, after a few) answers that one if it answers one. Who answers neither says nothing.
    """
    suspects = set(hosts)
    for _ in range(_ROUNDS):
        both = [Datagram(host, whole) for host in sorted(suspects) for whole in (False, True)]
        answered = _refused(both, UNHEARD, patience, source)
        suspects = {host for host in suspects if only_whole(host, answered)}
    return suspects


def only_whole(host: A, answered: set[Datagram[A]]) -> bool:
    """Whether of both kinds of datagrams to a host only the one with a whole checksum was answered."""
    return Datagram(host, whole=True) in answered and Datagram(host) not in answered


def _refused(
    datagrams: Sequence[Datagram[A]], port: int, patience: float, source: A | None = None
) -> set[Datagram[A]]:
    """Those to which their host says that nothing listens there.

    So many are sent at once as there may be sockets; these are given `patience` seconds. `source`: the
    address to send from, which whole ones need.
    """
    groups = (datagrams[start : start + _SOCKETS] for start in range(0, len(datagrams), _SOCKETS))
    return {each for group in groups for each in _refusing(group, port, patience, source)}


def _refusing(
    datagrams: Sequence[Datagram[A]], port: int, patience: float, source: A | None
) -> Iterator[Datagram[A]]:
    with ExitStack() as opened:
        waiting, asked = select.poll(), dict[int, tuple[socket.socket, Datagram[A]]]()
        for each in datagrams:
            asking = opened.enter_context(socket.socket(_FAMILIES[each.host.version], socket.SOCK_DGRAM))
            with suppress(OSError):
                if source is not None:
                    asking.bind((str(source), 0))
                asking.connect((str(each.host), port))
                _send_whole(asking, source, each.host) if each.whole and source else asking.send(b"")
                waiting.register(asking, select.POLLIN)
                asked[asking.fileno()] = asking, each
        end = time.monotonic() + patience
        while asked and (left := end - time.monotonic()) > 0:
            for fd, _ in waiting.poll(left * 1000):
                waiting.unregister(fd)
                asking, each = asked.pop(fd)
                if asking.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED:
                    yield each


def _send_whole(asking: socket.socket, source: A, host: A) -> None:
    """What `asking` would send, by a raw socket: the kernel takes its bytes as they are. OSError.

    The answer is `asking`'s, whose ports it has.
    """
    ports = asking.getsockname()[1], asking.getpeername()[1]
    with socket.socket(asking.family, socket.SOCK_RAW, socket.IPPROTO_UDP) as raw:
        raw.bind((str(source), 0))
        raw.sendto(empty_datagram(source, host, *ports), (str(host), 0))


def empty_datagram(source: A, host: A, source_port: int, port: int) -> bytes:
    """A UDP header alone, with its checksum (RFC 768, RFC 8200 8.1)."""
    header = _UDP.pack(source_port, port, _UDP.size, 0)
    pseudo = source.packed + host.packed + struct.pack("!II", _UDP.size, socket.IPPROTO_UDP)
    return _UDP.pack(source_port, port, _UDP.size, checksum(pseudo + header) or 0xFFFF)
