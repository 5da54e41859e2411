"""Sockets with a time limit for all that is done with them, not for each call.

A socket's own limit begins anew with every byte that comes: an end that sends one now
and then is never late.
"""

from __future__ import annotations

import io
import socket
import time
from typing import Protocol


class _Buffer(Protocol):
    """What bytes can be received into."""

    def __buffer__(self, flags: int, /) -> memoryview: ...


class TimedSocket:
    """A connected stream socket, as http.client and http.server use one.

    Sending and reading raise TimeoutError when the time that was allowed is over.
    """

    def __init__(self, sock: socket.socket, seconds: float) -> None:
        self.socket = sock
        self._until: float | None = None
        self.allow(seconds)

    def allow(self, seconds: float | None) -> None:
        """From now on so much time, in all; None: any."""
        self._until = None if seconds is None else time.monotonic() + seconds

    def wait(self) -> None:
        """The next call of the socket's may take what is left. TimeoutError if nothing is."""
        left = None if self._until is None else self._until - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError("timed out")
        self.socket.settimeout(left)

    def sendall(self, data: bytes) -> None:
        """Send all of it."""
        rest = memoryview(data)
        while rest:
            self.wait()
            rest = rest[self.socket.send(rest) :]

    def makefile(self, _mode: str = "rb", _buffering: int = -1) -> io.BufferedReader:
        """What comes, to be read. The socket is open until this is closed as well."""
        return io.BufferedReader(_Reader(self))

    def close(self) -> None:
        self.socket.close()


class _Reader(io.RawIOBase):
    def __init__(self, timed: TimedSocket) -> None:
        self._timed = timed
        self._raw = timed.socket.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: _Buffer, /) -> int | None:
        self._timed.wait()
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()
