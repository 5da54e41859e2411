"""The UDP socket: many packets by one call, each of them a datagram of its own."""

from __future__ import annotations

import errno
import socket
import struct
from typing import Final

from ctl.core.errors import KernelError

OVERHEAD: Final = 28
"""Bytes that the underlay adds to a packet: IPv4 20, UDP 8."""

MAX_BATCH: Final = 65535 - OVERHEAD
"""Bytes of packets that one call may send, or receive."""
MAX_SEGMENTS: Final = 64
"""Packets that one call may send (the kernel's UDP_MAX_SEGMENTS was 64 before 6.10)."""

_MIN_PATH_MTU: Final = 576
_BUFFER: Final = 4 << 20
_SOL_UDP, _UDP_SEGMENT, _UDP_GRO = 17, 103, 104
_IP_MTU_DISCOVER, _IP_MTU = 10, 14
_PMTUDISC_DONT, _PMTUDISC_DO = 0, 2
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_U16: Final = struct.Struct("=H")
_INT: Final = struct.Struct("=i")


class TooBig(Exception):
    """A datagram does not fit the path to its host; the argument is the largest packet, in bytes."""


class Underlay:
    """Datagrams to and from hosts; what is in them is the caller's business."""

    __slots__ = ("_ancillary", "_port", "_segmentation", "socket")

    def __init__(self, local: str, port: int) -> None:
        """Bound to an address of this host. KernelError if it cannot be."""
        self._port = port
        self._segmentation = True
        self._ancillary: dict[int, list[tuple[int, int, bytes]]] = {}
        self.socket = sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            sock.bind((local, port))
            sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER)
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
            sock.setsockopt(_SOL_UDP, _UDP_GRO, 1)
            # DF: a packet too large for the path is answered, not cut up in secret.
            sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DO)
        except OSError as error:
            sock.close()
            raise KernelError(f"UDP {local}:{port}: {error.strerror}") from error

    def receive(self, buffer: memoryview) -> tuple[int, int, str]:
        """Datagrams of one host, one behind the other: (bytes in all, bytes of each, host).

        The last may be shorter. BlockingIOError when there are no more.
        """
        length, ancillary, _, (host, _) = self.socket.recvmsg_into((buffer,), 64)
        return length, _INT.unpack(ancillary[0][2])[0] if ancillary else length, host

    def send_batch(self, packets: memoryview, size: int, host: str) -> int | None:
        """Packets of `size` bytes, the last maybe shorter; returns how many the kernel took.

        None: it takes none together, send them one by one.
        """
        if not self._segmentation:
            return None
        try:
            self.socket.sendmsg((packets,), self._segment(size), 0, (host, self._port))
        except BlockingIOError:
            return 0
        except OSError as error:
            # A device without checksum offload cannot (kernels before 6.11).
            self._segmentation = error.errno not in {errno.EIO, errno.EOPNOTSUPP}
            return None
        return -(-len(packets) // size)

    def _segment(self, size: int) -> list[tuple[int, int, bytes]]:
        made = self._ancillary.get(size)
        if made is None:
            made = self._ancillary[size] = [(_SOL_UDP, _UDP_SEGMENT, _U16.pack(size))]
        return made

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
