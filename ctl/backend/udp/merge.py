"""TCP segments of one flow into one large packet for the TUN device. Pure.

The kernel takes a segment of 64 KB through its stack for the price of a small one
(virtio_net_hdr with gso_size), and a batch of received datagrams is most often just that:
one flow, sizes equal. So what the kernel's GRO would do behind a network card, is done
here, with its rules: the same headers, sequence numbers without a gap, plain ACKs only,
DF set, all checksums right.
"""

from __future__ import annotations

import struct
from typing import Final

from ctl.backend.udp.packet import DONT_FRAGMENT, HEADER_LEN, TCP, Header

PLAIN: Final = bytes(10)
"""The virtio_net_hdr of a packet that is just a packet."""

_VNET: Final = struct.Struct("=BBHHHH")  # in the machine's byte order, as TUN has it
_NEEDS_CSUM: Final = 1
_GSO_TCPV4: Final = 1
_TCP_CHECK: Final = 16  # offset of the checksum in the TCP header
_ACK: Final = 0x10
_PSH: Final = 0x08
_MAX: Final = 65535
_PIECE: Final = 2048

_WORD: Final = struct.Struct("!H")
_SEQ: Final = struct.Struct("!I")


def mergeable(buffer: bytearray, offset: int, size: int, end: int, header: Header) -> int:
    """How many bytes from `offset` on can be handed over as one packet; 0 if none.

    The packet there is of `size` bytes with this header, and others of that size follow
    up to `end`, the last maybe shorter. At least two are merged, or none.
    """
    if header[0] != 0x45 or header[4] != DONT_FRAGMENT or header[6] != TCP or header[2] != size or size % 2:
        return 0
    if size < HEADER_LEN + 20 or buffer[offset + 33] != _ACK:
        return 0
    start = HEADER_LEN + (buffer[offset + 32] >> 4) * 4
    step = size - start
    if start < HEADER_LEN + 20 or step <= 0:
        return 0
    stop = _same_flow(buffer, offset, size, min(end, offset + _MAX), start)
    if stop - offset <= size or not _sums_right(buffer, offset, size, stop, header):
        return 0
    return stop - offset


def _same_flow(buffer: bytearray, offset: int, size: int, end: int, start: int) -> int:
    """Where the run of segments that continue the one at `offset` ends."""
    fixed = buffer[offset : offset + 2], buffer[offset + 6 : offset + 10], buffer[offset + 12 : offset + 24]
    ack, rest = buffer[offset + 28 : offset + 33], buffer[offset + 34 : offset + 36]
    options = buffer[offset + 40 : offset + start]
    step = size - start
    expected = _SEQ.unpack_from(buffer, offset + 24)[0]
    at = offset + size
    while at + start < end:
        length = min(size, end - at)
        expected = (expected + step) & 0xFFFFFFFF
        flags = buffer[at + 33]
        if (
            _SEQ.unpack_from(buffer, at + 24)[0] != expected
            or (flags | _PSH) != _ACK | _PSH
            or buffer[at + 12 : at + 24] != fixed[2]
            or buffer[at + 28 : at + 33] != ack
            or buffer[at + 40 : at + start] != options
            or buffer[at + 34 : at + 36] != rest
            or buffer[at : at + 2] != fixed[0]
            or buffer[at + 6 : at + 10] != fixed[1]
            or _WORD.unpack_from(buffer, at + 2)[0] != length
        ):
            break
        at += length
        # A push, or a short segment, ends the run.
        if flags != _ACK or length != size:
            break
    return at


def _sums_right(buffer: bytearray, offset: int, size: int, stop: int, header: Header) -> bool:
    """Whether all IP and TCP checksums from `offset` to `stop` are right, in one sum.

    A right header adds nothing modulo 2^16 - 1, a right segment nothing but what its
    pseudo header lacks. As strong as each checksum: one wrong bit shows.
    """
    number = 0
    # Adding up pieces first is several times quicker than dividing 64 KB.
    for at in range(offset, stop, _PIECE):
        piece = buffer[at : min(at + _PIECE, stop)]
        number += int.from_bytes(piece, "big") << (8 * (len(piece) % 2))
    full, last = divmod(stop - offset, size)
    packets = full + (last > 0)
    lengths = stop - offset - packets * HEADER_LEN
    pseudo = packets * (header[8] + header[9] + TCP) + lengths
    return (number + pseudo) % 0xFFFF == 0


def merged(buffer: bytearray, offset: int, size: int, stop: int) -> list[bytes | memoryview]:
    """virtio_net_hdr, headers and payloads of the packet made of what `mergeable` found."""
    start = HEADER_LEN + (buffer[offset + 32] >> 4) * 4
    view = memoryview(buffer)
    payloads = [view[at + start : min(at + size, stop)] for at in range(offset, stop, size)]
    total = start + sum(map(len, payloads))
    head = bytearray(buffer[offset : offset + start])
    last = stop - ((stop - offset - 1) % size + 1)
    head[33] = buffer[last + 33]
    _WORD.pack_into(head, 2, total)
    _WORD.pack_into(head, 10, 0)
    _WORD.pack_into(head, 10, _sum(head[:HEADER_LEN]) ^ 0xFFFF)
    # The kernel finishes the checksum wherever it is needed: it wants the pseudo header's sum.
    pseudo = head[12:20] + bytes((0, TCP)) + _WORD.pack(total - HEADER_LEN)
    _WORD.pack_into(head, HEADER_LEN + _TCP_CHECK, _sum(pseudo))
    vnet = _VNET.pack(_NEEDS_CSUM, _GSO_TCPV4, start, size - start, HEADER_LEN, _TCP_CHECK)
    return [vnet, bytes(head), *payloads]


def _sum(data: bytearray) -> int:
    return int.from_bytes(data, "big") % 0xFFFF or 0xFFFF
