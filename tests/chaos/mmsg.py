"""Many datagrams in one system call: sendmmsg(2) and recvmmsg(2) by ctypes.

Twenty thousand datagrams a second, each a call of its own, would take a core. Here they lie
in slots of one buffer, and their numbers and times are read and written as arrays.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from array import array
from collections.abc import Sequence
from typing import Final

SIZE: Final = 64
"""Payload bytes: number, time of sending (ns of the wall clock), the rest nothing."""
SLOTS: Final = 256

_WORDS: Final = SIZE // 8
_CONTROL: Final = 64
_HEADER: Final = struct.Struct("=QI4xQQQQi4xI4x")
"""struct mmsghdr: name and its length, iovec and how many, control and its length, flags, bytes."""
_IOVEC: Final = struct.Struct("=QQ")
_NAME: Final = struct.Struct("=H2s4s8x")
"""struct sockaddr_in."""
_NAME_IPV6: Final = struct.Struct("=H2s4x16s4x")
"""struct sockaddr_in6."""
_SO_TIMESTAMPNS: Final = 35
_SO_RCVBUFFORCE: Final = 33
_BUFFER: Final = 64 << 20

_libc = ctypes.CDLL(None, use_errno=True)


def udp_socket(port: int, family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
    """One with a port, room for seconds without a reader, and the kernel's time on what arrives."""
    made = socket.socket(family, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    made.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    made.bind(("", port))
    return made


def _packed(family: int, address: str, port: int) -> bytes:
    """Where to send, as the kernel reads it."""
    layout = _NAME if family == socket.AF_INET else _NAME_IPV6
    return layout.pack(family, port.to_bytes(2, "big"), socket.inet_pton(family, address))


class Slots:
    """Room for SLOTS datagrams of one socket, in one direction."""

    def __init__(self, sock: socket.socket, to: tuple[str, int] | None = None) -> None:
        """`to`: where they are sent; None to receive."""
        self._fd = sock.fileno()
        self._data = ctypes.create_string_buffer(SLOTS * SIZE)
        self._control = ctypes.create_string_buffer(SLOTS * _CONTROL)
        self._iovecs = ctypes.create_string_buffer(SLOTS * _IOVEC.size)
        self._name = ctypes.create_string_buffer(_packed(sock.family, *to) if to else b"")
        self._template = self._headers(sending=to is not None)
        self._messages = ctypes.create_string_buffer(self._template, len(self._template))
        self._words = memoryview(self._data).cast("B").cast("Q")
        self._stamps = memoryview(self._control).cast("B").cast("q")

    def _headers(self, *, sending: bool) -> bytes:
        """All mmsghdr, each with an iovec of its own."""
        # Without the zero that ends a string.
        name = (ctypes.addressof(self._name), len(self._name) - 1) if sending else (0, 0)
        parts = []
        for slot in range(SLOTS):
            place = ctypes.addressof(self._data) + slot * SIZE
            _IOVEC.pack_into(self._iovecs, slot * _IOVEC.size, place, SIZE)
            vector = ctypes.addressof(self._iovecs) + slot * _IOVEC.size
            control = (0, 0) if sending else (ctypes.addressof(self._control) + slot * _CONTROL, _CONTROL)
            parts.append(_HEADER.pack(*name, vector, 1, *control, 0, 0))
        return b"".join(parts)

    def send(self, first: int, count: int, now: int) -> int:
        """Send `count` (SLOTS at most) datagrams numbered from `first`; how many the kernel took."""
        end = count * _WORDS
        self._words[0:end:_WORDS] = memoryview(array("Q", range(first, first + count)))
        self._words[1:end:_WORDS] = memoryview(array("Q", [now]) * count)
        sent: int = _libc.sendmmsg(self._fd, self._messages, count, 0)
        if sent < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return sent

    def receive(self) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
        """Numbers, times of sending and of arrival (ns) of what is there; empty if nothing is."""
        ctypes.memmove(self._messages, self._template, len(self._template))
        count: int = _libc.recvmmsg(self._fd, self._messages, SLOTS, socket.MSG_DONTWAIT, None)
        if count < 0:
            code = ctypes.get_errno()
            if code not in (errno.EAGAIN, errno.EINTR):
                raise OSError(code, os.strerror(code))
            count = 0
        end, step = count * _WORDS, _CONTROL // 8
        seconds = self._stamps[2 : count * step : step].tolist()
        rest = self._stamps[3 : count * step : step].tolist()
        arrived = [whole * 10**9 + part for whole, part in zip(seconds, rest, strict=True)]
        return self._words[0:end:_WORDS].tolist(), self._words[1:end:_WORDS].tolist(), arrived
