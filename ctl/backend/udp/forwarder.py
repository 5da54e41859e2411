"""The loop: packets from the TUN device to the peers' hosts, and the other way.

Both sides are read as long as there is something, a burst of packets in turn. Each packet
costs two system calls and the Python between them.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Callable
from typing import Final

from ctl.backend.udp import stats
from ctl.backend.udp.packet import (
    DONT_FRAGMENT,
    FRAGMENTATION_NEEDED,
    NET_UNREACHABLE,
    TIME_EXCEEDED,
    Allowance,
    Header,
    decrement_ttl,
    icmp_error,
    parse,
)
from ctl.backend.udp.table import Table
from ctl.backend.udp.underlay import TooBig, Underlay
from ctl.core.errors import KernelError

_PACKET: Final = 65536
"""The largest packet in bytes that a device may give, whatever its MTU."""
_BURST: Final = 64
"""How many packets of one side are carried before it is the other's turn."""
_ROUNDS: Final = 32
"""How many bursts of each side are carried between two looks at the control descriptor."""
_ICMP_PER_SECOND: Final = 1000
_ICMP_BURST: Final = 50
_POLL_ERROR: Final = select.POLLERR | select.POLLHUP | select.POLLNVAL


class Forwarder:
    """Between one TUN device and one UDP socket."""

    def __init__(self, tun: int, underlay: Underlay, counters: memoryview, table: Table) -> None:
        """`tun`: descriptor of `tun.open_device`; `counters`: of `stats.create`."""
        self._tun = tun
        self._underlay = underlay
        self._count = counters
        self._table = table
        self._packet = bytearray(_PACKET)
        self._view = memoryview(self._packet)
        self._icmp = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self._icmp.setblocking(False)
        self._allowance = Allowance(_ICMP_PER_SECOND, _ICMP_BURST)

    def use(self, table: Table) -> None:
        """Forward by this table from the next packet on."""
        self._table = table
        self._count[stats.GENERATION] = table.generation

    def run(self, control: int, handle: Callable[[], bool]) -> None:
        """Until `handle`, called when descriptor `control` can be read, returns False.

        KernelError if the device is gone.
        """
        poll = select.poll()
        for fd in (self._tun, self._underlay.socket.fileno(), control):
            poll.register(fd, select.POLLIN)
        going = True
        while going:
            ready = dict(poll.poll())
            if ready.get(self._tun, 0) & _POLL_ERROR:
                raise KernelError("the TUN device is gone")
            if control in ready:
                going = handle()
            for _ in range(_ROUNDS):
                if not self.from_tun() | self.from_underlay():
                    break

    # --- Container to peer -----------------------------------------------------

    def from_tun(self) -> bool:
        """Read a burst and send it; False if there was nothing."""
        for count in range(_BURST):
            length = self._read()
            if not length:
                return count > 0
            self._send(self._view[:length], parse(self._packet, 0, length))
        return True

    def _read(self) -> int:
        """A packet from the device into the buffer; its length, 0 if there is none."""
        try:
            return os.readv(self._tun, (self._view,))
        except BlockingIOError:
            return 0
        except OSError as error:
            raise KernelError(f"the TUN device is gone: {error.strerror}") from error

    def _send(self, packet: memoryview, header: Header | None) -> None:
        """Send a packet to its peer's host, the TTL counted down, or refuse it."""
        if header is None:
            self._count[stats.DROP_NOT_IPV4] += 1
            return
        host = self._table.host(header[9])
        if host is None:
            self._refuse(packet, stats.DROP_NO_ROUTE, NET_UNREACHABLE)
        elif header[5] <= 1:
            self._refuse(packet, stats.DROP_TTL, TIME_EXCEEDED)
        else:
            decrement_ttl(self._packet, 0, header)
            self._transmit(packet, header, host)

    def _transmit(self, packet: memoryview, header: Header, host: str) -> None:
        try:
            sent = self._underlay.send(packet, host)
        except TooBig as error:
            if header[4] & DONT_FRAGMENT:
                self._refuse(packet, stats.DROP_TOO_BIG, FRAGMENTATION_NEEDED, error.args[0])
                return
            sent = self._underlay.send_fragmented(packet, host)
        if sent:
            self._count[stats.TX_PACKETS] += 1
            self._count[stats.TX_BYTES] += len(packet)
        else:
            self._count[stats.DROP_SEND] += 1

    def _refuse(self, packet: memoryview, counter: int, kind: tuple[int, int], mtu: int = 0) -> None:
        """Count a packet and tell its sender, in the name of our end of the tunnel.

        By a raw socket, not through the device: the kernel takes no packet with an address
        of its own as the source from outside (martian source).
        """
        self._count[counter] += 1
        answer = icmp_error(packet, kind, self._table.base, mtu)
        if answer is None:
            return
        if not self._allowance.take(time.monotonic()):
            self._count[stats.ICMP_LIMITED] += 1
            return
        try:
            self._icmp.sendto(answer, (socket.inet_ntoa(answer[16:20]), 0))
        except OSError:
            return  # an answer is a courtesy
        self._count[stats.ICMP_SENT] += 1

    # --- Peer to container -----------------------------------------------------

    def from_underlay(self) -> bool:
        """Receive a burst and hand it to the kernel; False if there was nothing."""
        for count in range(_BURST):
            try:
                length, host = self._underlay.receive(self._view)
            except BlockingIOError:
                return count > 0
            self._deliver(length, host)
        return True

    def _deliver(self, length: int, host: str) -> None:
        """Hand the packet in the buffer to the kernel, if this host may send it here."""
        if host not in self._table.hosts:
            self._count[stats.DROP_UNKNOWN_HOST] += 1
            return
        header = parse(self._packet, 0, length)
        if header is None:
            self._count[stats.DROP_NOT_IPV4] += 1
        elif self._table.host(header[8]) != host:
            self._count[stats.DROP_SPOOFED] += 1
        elif not self._table.is_ours(header[9]):
            self._count[stats.DROP_NOT_OURS] += 1
        elif header[5] <= 1:
            self._refuse(self._view[: header[2]], stats.DROP_TTL, TIME_EXCEEDED)
        else:
            decrement_ttl(self._packet, 0, header)
            self._write(self._view[: header[2]])

    def _write(self, packet: memoryview) -> None:
        try:
            os.write(self._tun, packet)
        except OSError as error:
            if error.errno == errno.EBADFD:
                raise KernelError("the TUN device is gone") from error
            self._count[stats.DROP_TUN] += 1
            return
        self._count[stats.RX_PACKETS] += 1
        self._count[stats.RX_BYTES] += len(packet)
