"""IPv4 packets in a buffer: look, count down, answer. Pure.

Numbers are in host order; buffers hold packets as they are on the wire.
"""

from __future__ import annotations

import struct
from typing import Final, TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview

Header: TypeAlias = tuple[int, int, int, int, int, int, int, int, int, int]
"""The fields of an IPv4 header in their order: version and header length, TOS, total length, id,
fragment, TTL, protocol, checksum, source, destination."""

HEADER: Final = struct.Struct("!BBHHHBBHII")
HEADER_LEN: Final = 20
DONT_FRAGMENT: Final = 0x4000
FRAGMENT_OFFSET: Final = 0x1FFF
ICMP: Final = 1

UNREACHABLE: Final = 3
NET_UNREACHABLE: Final = (UNREACHABLE, 0)
FRAGMENTATION_NEEDED: Final = (UNREACHABLE, 4)
TIME_EXCEEDED: Final = (11, 0)
_QUERIES: Final = frozenset((0, 8, 13, 14))
"""The ICMP types that may be answered by an error, echo and timestamp: all others are
errors or unknown (RFC 1122 3.2.2)."""

_ICMP_MAX: Final = 576
"""The largest ICMP error in bytes (RFC 1812 4.3.2.3)."""

_TTL: Final = struct.Struct("!BBH")


def checksum(data: Buffer) -> int:
    """The Internet checksum (RFC 1071); 0 over data that contains a right one."""
    # A number modulo 2^16 - 1 is the ones' complement sum of its 16-bit digits.
    total = int.from_bytes(data, "big") << (8 * (len(data) % 2))
    folded = total % 0xFFFF or (0xFFFF if total else 0)
    return folded ^ 0xFFFF


def parse(buffer: Buffer, offset: int, length: int) -> Header | None:
    """The header of the packet at `offset`, of which there are `length` bytes.

    None if it is no IPv4 packet or not a whole one. The checksum is left to the kernel,
    into or out of which every packet goes: counting down the TTL keeps a wrong one wrong.
    """
    if length < HEADER_LEN:
        return None
    header = HEADER.unpack_from(buffer, offset)
    words = header[0] ^ 0x40
    if words == 5:
        return header if HEADER_LEN <= header[2] <= length else None
    return header if 5 < words < 16 and words * 4 <= header[2] <= length else None


def decrement_ttl(buffer: bytearray, offset: int, header: Header) -> None:
    """One off the TTL, which must be above 0, and the checksum kept right (RFC 1624)."""
    check = header[7] + 0x0100
    _TTL.pack_into(buffer, offset + 8, header[5] - 1, header[6], (check + (check >= 0xFFFF)) & 0xFFFF)


def _answerable(packet: Buffer, header: Header) -> bool:
    """RFC 1122 3.2.2: no error about an error, a later fragment, or a crowd."""
    words, _, _, _, fragment, _, protocol, _, source, destination = header
    if fragment & FRAGMENT_OFFSET:
        return False
    if source >> 28 >= 0xE or source >> 24 in (0, 127) or destination >> 28 >= 0xE:
        return False
    start = (words & 15) * 4
    return protocol != ICMP or (len(packet) > start and packet[start] in _QUERIES)


def icmp_error(packet: Buffer, kind: tuple[int, int], source: int, mtu: int = 0) -> bytes | None:
    """An ICMP error from `source` about a packet, as a whole IPv4 packet.

    `kind`: type and code; `mtu`: bytes, for FRAGMENTATION_NEEDED (RFC 1191).
    None if there must be none.
    """
    header = parse(packet, 0, len(packet))
    if header is None or not _answerable(packet, header):
        return None
    quote = bytes(packet[: min(header[2], _ICMP_MAX - HEADER_LEN - 8)])
    body = struct.pack("!BBHHH", *kind, 0, 0, mtu) + quote
    body = body[:2] + struct.pack("!H", checksum(body)) + body[4:]
    # TOS 0xc0, internetwork control, as the kernel's own (RFC 1812 4.3.2.5).
    head = bytearray(HEADER.pack(0x45, 0xC0, HEADER_LEN + len(body), 0, 0, 64, ICMP, 0, source, header[8]))
    head[10:12] = struct.pack("!H", checksum(head))
    return bytes(head) + body


class Allowance:
    """How many ICMP errors may be sent: a token bucket; RFC 1812 4.3.2.8 asks for a limit."""

    __slots__ = ("_burst", "_level", "_rate", "_then")

    def __init__(self, rate: float, burst: float) -> None:
        """`rate` per second, `burst` at once."""
        self._rate, self._burst, self._level, self._then = rate, burst, burst, 0.0

    def take(self, now: float) -> bool:
        """Whether one more may go; `now` in seconds of a monotonic clock."""
        level = min(self._burst, self._level + (now - self._then) * self._rate)
        self._then = now
        allowed = level >= 1
        self._level = level - 1 if allowed else level
        return allowed
