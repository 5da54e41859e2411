"""The loop: packets from the TUN device to the peers' hosts, and the other way.

Both sides are read as long as there is something, a batch in turn. A batch is up to 64
packets: what goes to one host in packets of one size leaves by a single call, and what
comes in so is handed to the kernel as one large segment where it is one flow.
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
from ctl.backend.udp.merge import PLAIN, mergeable, merged
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
from ctl.backend.udp.underlay import MAX_BATCH, MAX_SEGMENTS, TooBig, Underlay
from ctl.core.errors import KernelError

_PACKET: Final = 65536
"""Room for the largest packet that a device may give, whatever its MTU."""
_ROUNDS: Final = 32
"""Batches of each side between two looks at the control descriptor."""
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
        self._out = bytearray(MAX_BATCH + _PACKET)
        self._in = bytearray(_PACKET)
        self._out_view, self._in_view = memoryview(self._out), memoryview(self._in)
        self._vnet = bytearray(len(PLAIN))
        self._icmp = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self._icmp.setblocking(False)
        self._allowance = Allowance(_ICMP_PER_SECOND, _ICMP_BURST)

    def use(self, table: Table) -> None:
        """Forward by this table from the next batch on."""
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
        """Read a batch and send it; False if there was nothing."""
        at = first = size = count = 0
        host = ""
        while at < MAX_BATCH and count < MAX_SEGMENTS:
            length = self._read(at)
            if not length:
                break
            count += 1
            header = parse(self._out, at, length)
            target = self._admit(at, length, header)
            if target is None:
                # What is refused is overwritten by the next packet.
                continue
            if target != host or length > size or (at - first) % size or at + length - first > MAX_BATCH:
                self._flush(first, at, size, host)
                first, size, host = at, length, target
            at += length
        self._flush(first, at, size, host)
        return count > 0

    def _read(self, at: int) -> int:
        """A packet from the device to `at` in the buffer; its length, 0 if there is none."""
        try:
            return os.readv(self._tun, (self._vnet, self._out_view[at : at + _PACKET])) - len(PLAIN)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise KernelError(f"the TUN device is gone: {error.strerror}") from error

    def _admit(self, at: int, length: int, header: Header | None) -> str | None:
        """The host to send to, the TTL counted down; None for what was refused and answered."""
        if header is None:
            self._count[stats.DROP_NOT_IPV4] += 1
            return None
        host = self._table.host(header[9])
        if host is None:
            self._refuse(self._out_view[at : at + length], stats.DROP_NO_ROUTE, NET_UNREACHABLE)
            return None
        if header[5] <= 1:
            self._refuse(self._out_view[at : at + length], stats.DROP_TTL, TIME_EXCEEDED)
            return None
        decrement_ttl(self._out, at, header)
        return host

    def _flush(self, first: int, end: int, size: int, host: str) -> None:
        """Send what lies from `first` to `end`: packets of `size` bytes, the last maybe shorter."""
        if first == end:
            return
        packets, length = self._out_view[first:end], end - first
        count = -(-length // size)
        sent = self._underlay.send_batch(packets, size, host) if count > 1 else None
        if sent is None:
            sent = sum(self._send(packets[at : at + size], host) for at in range(0, length, size))
        else:
            self._count[stats.DROP_SEND] += count - sent
        self._count[stats.TX_PACKETS] += sent
        self._count[stats.TX_BYTES] += min(length, sent * size)

    def _send(self, packet: memoryview, host: str) -> int:
        """One packet by itself; 1 if it was sent, 0 if it was counted as lost."""
        try:
            sent = self._underlay.send(packet, host)
        except TooBig as error:
            header = parse(packet, 0, len(packet))
            if header and header[4] & DONT_FRAGMENT:
                self._refuse(packet, stats.DROP_TOO_BIG, FRAGMENTATION_NEEDED, error.args[0])
                return 0
            sent = self._underlay.send_fragmented(packet, host)
        self._count[stats.DROP_SEND] += 1 - sent
        return sent

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
        """Receive a batch and hand it to the kernel; False if there was nothing."""
        try:
            end, size, host = self._underlay.receive(self._in_view)
        except BlockingIOError:
            return False
        if host not in self._table.hosts:
            self._count[stats.DROP_UNKNOWN_HOST] += -(-end // size) if size else 1
            return True
        at = 0
        while at < end:
            at += self._deliver(at, min(size, end - at), end, host)
        return True

    def _deliver(self, at: int, length: int, end: int, host: str) -> int:
        """Hand over the packet at `at`, with those after it that continue it; bytes that were used."""
        header = parse(self._in, at, length)
        if header is None:
            self._count[stats.DROP_NOT_IPV4] += 1
            return length
        used = mergeable(self._in, at, length, end, header) if at + length < end else 0
        packets = -(-used // length) if used else 1
        if not self._welcome(at, header, packets, host):
            return used or length
        decrement_ttl(self._in, at, header)
        if used:
            self._write(merged(self._in, at, length, at + used), packets, used)
            return used
        self._write([PLAIN, self._in_view[at : at + header[2]]], 1, header[2])
        return length

    def _welcome(self, at: int, header: Header, packets: int, host: str) -> bool:
        """Whether a peer may send these packets here; counted if not."""
        if self._table.host(header[8]) != host:
            self._count[stats.DROP_SPOOFED] += packets
        elif not self._table.is_ours(header[9]):
            self._count[stats.DROP_NOT_OURS] += packets
        elif header[5] <= 1:
            self._count[stats.DROP_TTL] += packets - 1
            self._refuse(self._in_view[at : at + header[2]], stats.DROP_TTL, TIME_EXCEEDED)
        else:
            return True
        return False

    def _write(self, parts: list[bytes | memoryview], packets: int, length: int) -> None:
        try:
            os.writev(self._tun, parts)
        except OSError as error:
            if error.errno == errno.EBADFD:
                raise KernelError("the TUN device is gone") from error
            self._count[stats.DROP_TUN] += packets
            return
        self._count[stats.RX_PACKETS] += packets
        self._count[stats.RX_BYTES] += length
