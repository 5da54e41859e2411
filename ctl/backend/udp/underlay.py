"""The UDP socket: each packet is a datagram of its own."""

from __future__ import annotations

import errno
import socket
from typing import Final

from ctl.core.errors import KernelError
from ctl.process import holder

OVERHEAD: Final = 28
"""How many bytes the underlay adds to a packet: 20 of IPv4, 8 of UDP."""

_MIN_PATH_MTU: Final = 576
_BUFFER: Final = 4 << 20
_IP_MTU_DISCOVER, _IP_MTU = 10, 14
_PMTUDISC_DONT, _PMTUDISC_DO = 0, 2
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33


class TooBig(Exception):
    """A datagram does not fit the path to its host; the argument is the largest packet, in bytes."""


class Underlay:
    """Datagrams to and from hosts; what is in them is the caller's business."""

    __slots__ = ("_port", "socket")

    def __init__(self, local: str, port: int) -> None:
        """Bound to an address of this host. KernelError if it cannot be."""
        self._port = port
        self.socket = sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            sock.bind((local, port))
            sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER)
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
            # DF: a packet too large for the path is answered, not cut up in secret.
            sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DO)
        except OSError as error:
            sock.close()
            raise KernelError(f"UDP {local}:{port}: {_why(error, port)}") from error

    def receive(self, buffer: memoryview) -> tuple[int, str]:
        """One datagram into `buffer`: (bytes, host). BlockingIOError when there is none."""
        length, (host, _) = self.socket.recvfrom_into(buffer)
        return length, host

    def send(self, packet: memoryview, host: str) -> int:
        """One packet; returns 1 if the kernel took it, else 0. TooBig if the path is too narrow."""
        try:
            self.socket.sendto(packet, (host, self._port))
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                raise TooBig(self._path_mtu(host) - OVERHEAD) from None
            return 0
        return 1

    def _path_mtu(self, host: str) -> int:
        """What the kernel knows of the path, bytes; only a connected socket is told."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((host, self._port))
                return probe.getsockopt(socket.IPPROTO_IP, _IP_MTU)
            except OSError:
                return _MIN_PATH_MTU

    def send_fragmented(self, packet: memoryview, host: str) -> int:
        """One packet as a datagram that routers may cut up; returns 1 if the kernel took it."""
        self.socket.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DONT)
        try:
            return self.send(packet, host)
        finally:
            self.socket.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DO)


def _why(error: OSError, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        other = holder.of_port("udp", port)
        return f"{error.strerror} by {other}: end that, or choose another port (ovctl network init --port)"
    return error.strerror or str(error)
