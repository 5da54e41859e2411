"""Echoes to other nodes, as ping(8) sends them: who answers, how soon, how large a packet passes."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Generic, Self

from ctl.core.errors import AgentError, KernelError
from ctl.core.model import A

SMALL: Final = 84
"""Bytes of the packet that ping(8) sends."""
_HEADER: Final = struct.Struct("!BBHHH")
"""Type, code, checksum, identifier, sequence number (RFC 792, RFC 4443)."""
_PMTUDISC_PROBE: Final = 3
"""linux/in.h and in6.h: nothing is fragmented, and what is known of the path's MTU is not asked."""


@dataclass(frozen=True, slots=True)
class _Icmp:
    """How echoes go in a family."""

    family: socket.AddressFamily
    protocol: int
    level: int
    mtu_discover: int
    """The socket option for _PMTUDISC_PROBE."""
    request: int
    reply: int
    overhead: int
    """Bytes of IP and ICMP header."""


_ICMP: Final = {
    4: _Icmp(socket.AF_INET, socket.IPPROTO_ICMP, socket.IPPROTO_IP, 10, 8, 0, 28),
    6: _Icmp(socket.AF_INET6, socket.IPPROTO_ICMPV6, socket.IPPROTO_IPV6, 23, 128, 129, 48),
}
"""By IP version."""
_AT_ONCE: Final = 40
"""How many sizes are asked for at once: two rounds find one of 1500."""
_BURST: Final = 5
_BURST_S: Final = 0.001
"""After so many requests comes a pause, the shortest that poll(2) knows: a thousand peers are no flood."""
_ROUND_S: Final = 0.01
"""From one request to the next one of the same peer, at the least."""
_NUMBERS: Final = 1 << 16
"""So many requests can be told apart: sequence numbers have 16 bits."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What came back from one address."""

    sent: int
    round_trips: tuple[float, ...]
    """Seconds, in the order of the requests that were answered."""


class Echo(Generic[A]):
    """A raw socket that speaks from `source`, to its family. AgentError without CAP_NET_RAW; KernelError.

    `send`: what requests leave by, with all their checksums, in place of this socket; answers come to it.
    """

    def __init__(self, source: A, send: Callable[[A, bytes], None] | None = None) -> None:
        icmp = self._icmp = _ICMP[source.version]
        self._send = send or self._send_by_route
        try:
            self._socket = socket.socket(icmp.family, socket.SOCK_RAW, icmp.protocol)
            self._socket.setsockopt(icmp.level, icmp.mtu_discover, _PMTUDISC_PROBE)
            self._socket.bind((str(source), 0))
        except PermissionError:
            raise AgentError("needs root, or CAP_NET_RAW, to send echoes") from None
        except OSError as error:
            raise KernelError(f"cannot send echoes from {source}: {error.strerror}") from error
        self._socket.setblocking(False)
        # Not select(2), which knows no descriptors beyond 1023: a node has two for each container.
        self._waiting = select.poll()
        self._waiting.register(self._socket, select.POLLIN)
        self._identifier = int.from_bytes(os.urandom(2), "big")
        self._sequence = 0
        self._out: dict[int, tuple[A, float]] = {}
        """Requests that were not answered yet: to whom and when, by sequence number."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def ask(
        self,
        targets: Collection[A],
        size: int,
        count: int,
        patience: float,
        step: Callable[[], None] = lambda: None,
        enough: Callable[[], bool] = lambda: False,
    ) -> dict[A, Answers]:
        """Ask each `count` times with IP packets of `size` bytes; wait `patience` seconds for the last.

        `step` is called after each request; once `enough` says so there are no more. A packet that this
        host cannot send counts as lost.
        """
        found: dict[A, list[float]] = {target: [] for target in targets}
        sent = dict.fromkeys(found, 0)
        if not found:
            return {}
        for _ in range(count):
            next_round = time.monotonic() + _ROUND_S
            for target in found:
                if enough():
                    break
                self._request(target, size)
                sent[target] += 1
                self._note(found, self._pause())
                step()
            if enough():
                break
            self._note(found, self._heard_until(next_round))
        end = time.monotonic() + patience
        while self._out and time.monotonic() < end:
            self._note(found, self._heard(end - time.monotonic()))
        self._out.clear()
        return {target: Answers(sent[target], tuple(trips)) for target, trips in found.items()}

    def send(self, targets: Iterable[A], size: int, count: int) -> None:
        """Ask as `ask` does, and wait for nothing: `answered` tells."""
        for target in targets:
            for _ in range(count):
                self._request(target, size)

    def answered(self) -> set[A]:
        """Those whose replies are here by now."""
        pairs = [self._out.pop(sequence, None) for sequence in self._replies()]
        return {pair[0] for pair in pairs if pair}

    def largest(self, targets: Iterable[A], low: int, high: int, patience: float) -> dict[A, int]:
        """The largest packet, bytes, that each answers: `low` it does, and `high` not.

        Many sizes are asked for at once, since what gets no answer takes `patience` seconds.
        """
        waiting, most = list(targets), _NUMBERS // _AT_ONCE
        groups = (waiting[start : start + most] for start in range(0, len(waiting), most))
        return {
            target: size for group in groups for target, size in self._largest(group, low, high, patience)
        }

    def _largest(self, targets: Iterable[A], low: int, high: int, patience: float) -> Iterator[tuple[A, int]]:
        limits = dict.fromkeys(targets, (low, high))
        while wide := [target for target, pair in limits.items() if pair[1] - pair[0] > 1]:
            asked = {target: between(*limits[target]) for target in wide}
            passed = self._pass(
                {(target, size) for target, sizes in asked.items() for size in sizes}, patience
            )
            for target, sizes in asked.items():
                limits[target] = narrowed(
                    limits[target], sizes, {size for size in sizes if (target, size) in passed}
                )
        return ((target, pair[0]) for target, pair in limits.items())

    def _pass(self, each: Set[tuple[A, int]], patience: float) -> set[tuple[A, int]]:
        """To whom a packet of which size is answered within `patience` seconds after the last."""
        asked: dict[int, tuple[A, int]] = {}
        passed: set[int] = set()
        for target, size in sorted(each):
            self._request(target, size)
            asked[self._sequence] = target, size
            passed.update(self._pause())
        end = time.monotonic() + patience
        while len(passed) < len(asked) and (left := end - time.monotonic()) > 0:
            passed.update(self._heard(left))
        self._out.clear()
        return {asked[sequence] for sequence in passed if sequence in asked}

    def _request(self, target: A, size: int) -> None:
        self._sequence = (self._sequence + 1) % _NUMBERS
        body, kind = bytes(max(0, size - self._icmp.overhead)), self._icmp.request
        head = _HEADER.pack(kind, 0, 0, self._identifier, self._sequence)
        # That of ICMPv6, in which there are addresses, is the kernel's.
        message = _HEADER.pack(kind, 0, checksum(head + body), self._identifier, self._sequence) + body
        begun = time.monotonic()
        with suppress(OSError):  # too big, no route, refused by a rule: nothing comes back
            self._send(target, message)
            self._out[self._sequence] = target, begun

    def _send_by_route(self, target: A, message: bytes) -> None:
        self._socket.sendto(message, (str(target), 0))

    def _note(self, found: dict[A, list[float]], sequences: Iterable[int]) -> None:
        """How long those have taken that are heard of now."""
        for sequence in sequences:
            target, when = self._out.pop(sequence, (None, 0.0))
            if target is not None and target in found:
                found[target].append(time.monotonic() - when)

    def _pause(self) -> Iterator[int]:
        """Sequence numbers of the replies that come until the next request may be sent."""
        if self._sequence % _BURST:
            return iter(self._heard(0))
        return self._heard_until(time.monotonic() + _BURST_S)

    def _heard_until(self, end: float) -> Iterator[int]:
        """Sequence numbers of the replies that come by then, as they come."""
        while (left := end - time.monotonic()) > 0:
            yield from self._heard(left)

    def _heard(self, patience: float) -> list[int]:
        """Sequence numbers of the replies that are here, once there are any or that time is over."""
        return list(self._replies()) if self._waiting.poll(patience * 1000) else []

    def _replies(self) -> Iterator[int]:
        """Sequence numbers of the replies to our requests that are here."""
        with suppress(BlockingIOError):
            while True:
                packet = self._socket.recv(65536)
                # A raw socket of IPv6 has no IP header in front.
                head = (packet[0] & 15) * 4 if self._icmp.family == socket.AF_INET else 0
                if len(packet) < head + _HEADER.size:
                    continue
                kind, _, _, identifier, sequence = _HEADER.unpack_from(packet, head)
                if (kind, identifier) == (self._icmp.reply, self._identifier):
                    yield sequence


def between(low: int, high: int) -> list[int]:
    """At most _AT_ONCE sizes between these two, evenly spread."""
    step = max(1, -(-(high - low) // (_AT_ONCE + 1)))
    return list(range(low + step, high, step))


def narrowed(limits: tuple[int, int], asked: Sequence[int], passed: Set[int]) -> tuple[int, int]:
    """The largest that passes and the smallest above it that does not, by what was asked for between."""
    low = max(passed, default=limits[0])
    return low, min((size for size in asked if size > low), default=limits[1])


def checksum(data: bytes) -> int:
    """RFC 1071."""
    padded = data + bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    total = (total & 0xFFFF) + (total >> 16)
    return int(~(total + (total >> 16)) & 0xFFFF)
