"""rtnetlink: a socket, and messages as bytes.

What there are thousands of (routes, neighbours, FDB entries, look-ups) is sent many
messages at a time; the rest one by one, with the kernel's words for what it refuses.
Formats: linux/netlink.h, linux/rtnetlink.h, linux/neighbour.h.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from ctl.core.errors import KernelError

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWQDISC, RTM_DELQDISC = 36, 37
RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER = 44, 45, 46
RTA_DST, RTA_OIF, RTA_PREFSRC = 1, 4, 7
RTN_UNICAST: Final = 1
RT_TABLE_MAIN: Final = 254
NDA_DST, NDA_LLADDR, NDA_IFINDEX, NDA_MASTER = 1, 2, 8, 9
NLM_F_REPLACE: Final = 0x100
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400

_NLM_F_REQUEST: Final = 0x1
_NLM_F_ACK: Final = 0x4
_NLM_F_DUMP_INTR: Final = 0x10
_NLM_F_DUMP: Final = 0x300
_NLM_F_ACK_TLVS: Final = 0x200
_NLMSG_ERROR, _NLMSG_DONE = 2, 3

_HEADER: Final = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence number, port."""
_ERROR: Final = struct.Struct("=i")
_ATTRIBUTE: Final = struct.Struct("=HH")
RTMSG: Final = struct.Struct("=BBBBBBBBI")
"""struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags."""
NDMSG: Final = struct.Struct("=BxxxiHBB")
"""struct ndmsg: family, ifindex, state, flags, type."""

_SOL_NETLINK: Final = 270
_NETLINK_CAP_ACK: Final = 10
_NETLINK_EXT_ACK: Final = 11
_NLMSGERR_ATTR_MSG: Final = 1
_NETLINK_GET_STRICT_CHK: Final = 12
_SO_RCVBUFFORCE: Final = 33

_BATCH: Final = 128
"""Messages a call: their answers, should all of them fail, fit the receive buffer."""
_RECEIVE_BUFFER: Final = 1 << 21
_RECEIVE: Final = 1 << 18
_DUMP_ATTEMPTS: Final = 10
"""Links that come and go ten a second interrupt every third dump of a thousand."""


class Refused(KernelError):
    """The kernel's answer to a request that it did not fulfil: its errno, and its words."""

    def __init__(self, code: int, words: str = "") -> None:
        super().__init__(words or os.strerror(code))
        self.code = code


@dataclass(frozen=True, slots=True)
class Message:
    """A request: type, flags beside NLM_F_REQUEST, and the packed rest."""

    kind: int
    flags: int
    body: bytes


def number(value: int, size: int = 4) -> bytes:
    """As the kernel takes one: in the host's byte order."""
    return value.to_bytes(size, sys.byteorder)


def to_number(value: bytes) -> int:
    """The inverse; 0 for an attribute that is not there."""
    return int.from_bytes(value, sys.byteorder)


def text(value: bytes) -> str:
    """A string of the kernel's, which ends with a zero byte."""
    return value.rstrip(b"\0").decode(errors="replace")


def attribute(kind: int, value: bytes) -> bytes:
    """Struct rtattr with its value, padded."""
    size = _ATTRIBUTE.size + len(value)
    return (_ATTRIBUTE.pack(size, kind) + value).ljust((size + 3) & ~3, b"\0")


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """The attributes of a message from `offset` on, by type (without NLA_F_NESTED)."""
    found = {}
    end = len(data)
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


class Rtnl:
    """A socket of NETLINK_ROUTE. One thread's. Failures of the socket itself are KernelError."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._sequence = 0
        with ExitStack() as failing:
            failing.callback(self.close)
            self._set_up()
            failing.pop_all()

    def _set_up(self) -> None:
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)  # drivers say why they refuse XDP
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
        self._socket.bind((0, 0))

    def close(self) -> None:
        self._socket.close()

    def change(self, messages: Sequence[Message]) -> list[int]:
        """Have the kernel do these in their order; an errno for each, 0 where it did.

        A failing one does not keep the others from being done.
        """
        results: list[int] = []
        for first in range(0, len(messages), _BATCH):
            batch = messages[first : first + _BATCH]
            base = self._send(batch, ack_last=True)
            last = base + len(batch) - 1
            failed = {seq: -code for seq, _, code, _ in self._replies(last) if code}
            results.extend(failed.get(seq, 0) for seq in range(base, last + 1))
        return results

    def ask(self, messages: Sequence[Message]) -> list[tuple[int, bytes]]:
        """An (errno, answer) for each of these requests, which have one answer each."""
        results: list[tuple[int, bytes]] = []
        for first in range(0, len(messages), _BATCH):
            batch = messages[first : first + _BATCH]
            base = self._send(batch)
            last = base + len(batch) - 1
            answers = {seq: (-code, body) for seq, _, code, body in self._replies(last)}
            results.extend(answers[seq] for seq in range(base, last + 1))
        return results

    def do(self, kind: int, flags: int, body: bytes) -> None:
        """Have the kernel do one thing. Refused with its words if it does not."""
        sequence = self._send([Message(kind, flags, body)], ack_last=True)
        for seq, answered, told, content in self._until(sequence):
            if seq == sequence and answered == _NLMSG_ERROR:
                _raise_refusal(answered, told, content)

    def get(self, kind: int, body: bytes) -> bytes:
        """The answer to a request that has one. Refused if there is none."""
        sequence = self._send([Message(kind, 0, body)])
        found = b""
        for seq, answered, told, content in self._until(sequence):
            if seq == sequence:
                if answered == _NLMSG_ERROR:
                    _raise_refusal(answered, told, content)
                found = content
        return found

    def route_to(self, host: IPv4Address) -> bytes:
        """The route that a packet of ours to `host` takes (RTM_GETROUTE). Refused if there is none."""
        return self.get(
            RTM_GETROUTE,
            RTMSG.pack(socket.AF_INET, 32, 0, 0, 0, 0, 0, 0, 0) + attribute(RTA_DST, host.packed),
        )

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """All that the kernel has, as the bodies of its messages. Refused if it does not tell.

        A dump that a change interrupted is made again. KernelError if each one was: what may be
        a part is no answer, for whatever is missing in it would be taken for gone.
        """
        for _ in range(_DUMP_ATTEMPTS):
            found, interrupted = self._dump(kind, body)
            if not interrupted:
                return found
        raise KernelError(f"rtnetlink: what was to be listed changed {_DUMP_ATTEMPTS} times meanwhile")

    def _dump(self, kind: int, body: bytes) -> tuple[list[bytes], bool]:
        sequence = self._send([Message(kind, _NLM_F_DUMP, body)])
        found: list[bytes] = []
        interrupted = False
        while True:
            for seq, kind_, flags, content in self._receive():
                if seq != sequence:
                    continue
                interrupted |= bool(flags & _NLM_F_DUMP_INTR)
                if kind_ in (_NLMSG_DONE, _NLMSG_ERROR):
                    # Either says how it went: a dump that broke off ends with NLMSG_DONE and an errno.
                    _raise_refusal(kind_, flags, content)
                    return found, interrupted
                found.append(content)

    def _send(self, messages: Sequence[Message], *, ack_last: bool = False) -> int:
        """Send them in one call; returns the first one's sequence number."""
        base = self._sequence + 1
        parts = []
        for seq, each in enumerate(messages, base):
            flags = each.flags | _NLM_F_REQUEST
            if ack_last and seq == base + len(messages) - 1:
                flags |= _NLM_F_ACK
            parts.append(_HEADER.pack(_HEADER.size + len(each.body), each.kind, flags, seq, 0) + each.body)
        self._sequence = base + len(messages) - 1
        try:
            self._socket.send(b"".join(parts))
        except OSError as error:
            raise KernelError(f"rtnetlink: {error.strerror}") from error
        return base

    def _replies(self, last: int) -> Iterator[tuple[int, int, int, bytes]]:
        """(sequence number, type, error code, body) of each reply up to that of `last`."""
        for seq, kind, _, body in self._until(last):
            yield seq, kind, _ERROR.unpack_from(body)[0] if kind == _NLMSG_ERROR else 0, body

    def _until(self, last: int) -> Iterator[tuple[int, int, int, bytes]]:
        """(sequence number, type, flags, body) of each reply up to that of `last`."""
        while True:
            for reply in self._receive():
                yield reply
                if reply[0] == last:
                    return

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        """(sequence number, type, flags, body) of each message that one call brings."""
        try:
            data = self._socket.recv(_RECEIVE)
        except OSError as error:
            raise KernelError(f"rtnetlink: {error.strerror}") from error
        offset, size = 0, _HEADER.size
        while offset + size <= len(data):
            length, kind, flags, seq, _ = _HEADER.unpack_from(data, offset)
            yield seq, kind, flags, data[offset + size : offset + length]
            offset += (length + 3) & ~3


def _raise_refusal(kind: int, flags: int, body: bytes) -> None:
    """Refused, if the message that ends an answer says so; an error of 0 is an acknowledgement.

    NLMSG_ERROR has struct nlmsgerr and attributes, NLMSG_DONE the error number and attributes.
    """
    code = -_ERROR.unpack_from(body)[0]
    if code:
        before = _ERROR.size + (_HEADER.size if kind == _NLMSG_ERROR else 0)
        told = attributes(body, before) if flags & _NLM_F_ACK_TLVS else {}
        raise Refused(code, text(told.get(_NLMSGERR_ATTR_MSG, b"")))
