"""Frames as an interface shows them, with their offloads, and as a wire would carry them.

A packet socket with PACKET_VNET_HDR tells (and takes) what the frame itself does not
show: that its checksum is still to be finished, and that it is several segments in one.
`finished` does in Python what a NIC would have done, so that a path that offloads and one
that does not can be compared byte for byte.
"""

from __future__ import annotations

import mmap
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any, Final

from tests import packets
from tests.namespace import Netns
from tests.packets import ETH_LEN, IP_LEN, IPV6_LEN, checksum

SOL_PACKET, PACKET_RX_RING, PACKET_AUXDATA, PACKET_VERSION, PACKET_VNET_HDR = 263, 5, 8, 10, 15
TPACKET_V3, TP_STATUS_USER = 2, 1
"""linux/if_packet.h"""
_SOCKADDR: Final = 48
"""Where struct sockaddr_ll stands behind a struct tpacket3_hdr."""
SO_RCVBUFFORCE: Final = 33
"""asm-generic/socket.h"""
VLAN_VALID: Final = 1 << 4
"""TP_STATUS_VLAN_VALID: the tag stands beside the frame."""
_VNET = struct.Struct("=BBHHHH")
_AUX = struct.Struct("=IIIHHHH")
NEEDS_CSUM: Final = 1
GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, GSO_ECN = 0, 1, 4, 5, 0x80
"""linux/virtio_net.h"""
CWR: Final = 0x80


@dataclass(frozen=True, slots=True)
class Vnet:
    """struct virtio_net_hdr: the offloads of a frame."""

    flags: int = 0
    gso_type: int = GSO_NONE
    header_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0

    def pack(self) -> bytes:
        return _VNET.pack(
            self.flags, self.gso_type, self.header_len, self.gso_size, self.csum_start, self.csum_offset
        )


PLAIN: Final = Vnet()


@dataclass(frozen=True, slots=True)
class Shot:
    """A frame to send."""

    frame: bytes
    vnet: Vnet = PLAIN


class Tap:
    """A packet socket on one interface: sees what comes in and goes out, and may send."""

    def __init__(self, place: Netns, device: str = "eth0") -> None:
        self._socket = place.call(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        self._socket.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        self._socket.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        self._socket.bind((device, 3))
        self._socket.setblocking(False)

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, shot: Shot) -> None:
        self._socket.send(shot.vnet.pack() + shot.frame)

    def frames(self) -> list[tuple[bool, bytes]]:
        """What has passed since the last call: (went out here, frame as on a wire)."""
        found = []
        with suppress(BlockingIOError):
            while True:
                data, ancillary, _, address = self._socket.recvmsg(1 << 17, 64)
                vnet, frame = Vnet(*_VNET.unpack_from(data)), _with_tag(data[_VNET.size :], ancillary)
                outgoing = address[2] == socket.PACKET_OUTGOING
                found += [(outgoing, each) for each in finished(frame, vnet)]
        return found


class Ring:
    """A packet socket that only looks, and copies each frame at once into a ring (TPACKET_V3).

    A plain one shares the frame with the stack until it is read, and shows what receivers
    behind it have made of it meanwhile.
    """

    BLOCKS, BLOCK_SIZE, FRAME_SIZE, RETIRE_MS = 512, 1 << 17, 1 << 16, 5
    """A block is handed over when it is full or RETIRE_MS old, and an exchange is read when it is over:
    so the blocks are small and many, for one that takes seconds on a busy machine."""

    def __init__(self, place: Netns, device: str) -> None:
        self._socket = place.call(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        self._socket.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        self._socket.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V3)
        frames = self.BLOCKS * self.BLOCK_SIZE // self.FRAME_SIZE
        wanted = (self.BLOCK_SIZE, self.BLOCKS, self.FRAME_SIZE, frames, self.RETIRE_MS, 0, 0)
        self._socket.setsockopt(SOL_PACKET, PACKET_RX_RING, struct.pack("=7I", *wanted))
        self._ring = mmap.mmap(self._socket.fileno(), self.BLOCK_SIZE * self.BLOCKS)
        self._block = 0
        self._socket.bind((device, 3))

    def close(self) -> None:
        self._ring.close()
        self._socket.close()

    def frames(self) -> list[tuple[bool, bytes]]:
        """What is in the blocks that the kernel has handed over: (went out here, frame as on a wire)."""
        found: list[tuple[bool, bytes]] = []
        while struct.unpack_from("=I", self._ring, self._block * self.BLOCK_SIZE + 8)[0] & TP_STATUS_USER:
            found += self._packets(self._block * self.BLOCK_SIZE)
            struct.pack_into("=I", self._ring, self._block * self.BLOCK_SIZE + 8, 0)
            self._block = (self._block + 1) % self.BLOCKS
        return found

    def _packets(self, block: int) -> Iterator[tuple[bool, bytes]]:
        count, at = struct.unpack_from("=II", self._ring, block + 12)
        at += block
        for _ in range(count):
            following, captured, length, _, mac = struct.unpack_from("=I8xIIIH", self._ring, at)
            assert captured == length, f"a frame of {length} bytes does not fit the ring"
            vnet = Vnet(*_VNET.unpack_from(self._ring, at + mac - _VNET.size))
            outgoing = self._ring[at + _SOCKADDR + 10] == socket.PACKET_OUTGOING
            for each in finished(self._ring[at + mac : at + mac + captured], vnet):
                yield outgoing, each
            at += following


def _with_tag(frame: bytes, ancillary: list[tuple[int, int, bytes]]) -> bytes:
    """The frame with the VLAN tag that the kernel has put beside it."""
    for _, _, data in ancillary:
        status, _, _, _, _, tci, tpid = _AUX.unpack_from(data)
        if status & VLAN_VALID:
            return frame[:12] + struct.pack("!HH", tpid, tci) + frame[12:]
    return frame


def finished(frame: bytes, vnet: Vnet) -> list[bytes]:
    """What a NIC puts on the wire for this frame: segments with whole checksums."""
    kind = vnet.gso_type & ~GSO_ECN
    if kind in (GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4):
        return _segments(frame, vnet.csum_start, vnet.gso_size, tcp=kind != GSO_UDP_L4)
    if not vnet.flags & NEEDS_CSUM:
        return [frame]
    # The field holds the sum of the pseudo-header already.
    place = vnet.csum_start + vnet.csum_offset
    sum_ = checksum(frame[vnet.csum_start :]) or 0xFFFF
    return [frame[:place] + struct.pack("!H", sum_) + frame[place + 2 :]]


def _segments(frame: bytes, l4: int, size: int, *, tcp: bool) -> list[bytes]:
    head_len = l4 + ((frame[l4 + 12] >> 4) * 4 if tcp else 8)
    data = frame[head_len:]
    offsets = range(0, len(data), size)
    return [
        _segment(frame[:head_len], data[offset : offset + size], l4, number, offset, tcp, len(offsets) - 1)
        for number, offset in enumerate(offsets)
    ]


def _segment(
    head: bytes, data: bytes, l4: int, number: int, offset: int, tcp: bool, last: int
) -> bytes:  # fmt: skip
    out = bytearray(head + data)
    if tcp:
        sequence = struct.unpack_from("!I", head, l4 + 4)[0]
        struct.pack_into("!I", out, l4 + 4, (sequence + offset) & 0xFFFFFFFF)
        if number != last:
            out[l4 + 13] &= ~(packets.FIN | packets.PSH)
        if number:
            out[l4 + 13] &= ~CWR
    else:
        struct.pack_into("!H", out, l4 + 4, 8 + len(data))
    length = _ip_len(out)
    inner = l4 - length
    if inner > ETH_LEN:  # a tunnel around it
        outer = inner - ETH_LEN - 16 - length
        _fit_ip(out, outer, number)
        struct.pack_into("!H", out, outer + length + 4, len(out) - outer - length)
    _fit_ip(out, inner, number)
    _fill_l4_checksum(out, inner, l4, 16 if tcp else 6)
    if inner > ETH_LEN and length == IPV6_LEN:
        _fill_l4_checksum(out, outer, outer + length, 6)
    return bytes(out)


def _ip_len(frame: bytes | bytearray) -> int:
    """Bytes of an IP header without options, of the family that the frame is of."""
    return IPV6_LEN if frame[12:14] == b"\x86\xdd" else IP_LEN


def _fit_ip(out: bytearray, at: int, number: int) -> None:
    if _ip_len(out) == IPV6_LEN:
        struct.pack_into("!H", out, at + 4, len(out) - at - IPV6_LEN)
        return
    ident = struct.unpack_from("!H", out, at + 4)[0]
    struct.pack_into("!HH", out, at + 2, len(out) - at, (ident + number) & 0xFFFF)
    struct.pack_into("!H", out, at + 10, 0)
    struct.pack_into("!H", out, at + 10, checksum(bytes(out[at : at + IP_LEN])))


def _addresses(frame: bytes | bytearray, ip: int) -> bytes:
    """Both, of the IP header there."""
    size = 32 if _ip_len(frame) == IPV6_LEN else 8
    return bytes(frame[ip + _ip_len(frame) - size : ip + _ip_len(frame)])


def _fill_l4_checksum(out: bytearray, ip: int, l4: int, offset: int) -> None:
    proto = packets.UDP if offset == 6 else packets.TCP
    struct.pack_into("!H", out, l4 + offset, 0)
    pseudo = _addresses(out, ip) + struct.pack("!BBI", 0, proto, len(out) - l4)
    struct.pack_into("!H", out, l4 + offset, checksum(pseudo + bytes(out[l4:])) or 0xFFFF)


def partial(frame: bytes, *, gso: int = 0) -> Shot:
    """A frame (Ethernet, IP without options, TCP or UDP) whose checksum is left to the NIC.

    `gso`: bytes of payload per segment, 0: it is one packet.
    """
    length = _ip_len(frame)
    l4, proto = ETH_LEN + length, frame[ETH_LEN + (9 if length == IP_LEN else 6)]
    offset = 16 if proto == packets.TCP else 6
    pseudo = _addresses(frame, ETH_LEN) + struct.pack("!BBI", 0, proto, len(frame) - l4)
    half = ~checksum(pseudo) & 0xFFFF
    out = frame[: l4 + offset] + struct.pack("!H", half) + frame[l4 + offset + 2 :]
    tcp = GSO_TCPV4 if length == IP_LEN else GSO_TCPV6
    kind = {packets.TCP: tcp, packets.UDP: GSO_UDP_L4}[proto] if gso else GSO_NONE
    head_len = l4 + ((frame[l4 + 12] >> 4) * 4 if proto == packets.TCP else 8)
    return Shot(out, Vnet(NEEDS_CSUM, kind, head_len if gso else 0, gso, l4, offset))


def fields(frame: bytes, prefix: str = "") -> dict[str, Any]:
    """A frame field by field; inside a tunnel the names begin with `inner.`, around it with `outer.`."""
    tags, at = [], 12
    while frame[at : at + 2] in (b"\x81\x00", b"\x88\xa8"):
        tags.append(frame[at : at + 4].hex())
        at += 4
    found: dict[str, Any] = {
        "to": frame[:6].hex(":"),
        "from": frame[6:12].hex(":"),
        "tags": tuple(tags),
        "type": frame[at : at + 2].hex(),
    }
    body = frame[at + 2 :]
    if found["type"] == "86dd" and len(body) >= IPV6_LEN:
        found |= _ipv6_fields(body)
        l4 = body[IPV6_LEN:]
        if found["proto"] == packets.FRAGMENT and len(l4) >= 8:
            found |= {"fragment": l4[:4].hex(), "id": l4[4:8].hex()}
            l4 = l4[8:]
    elif found["type"] == "0800" and len(body) >= IP_LEN:
        found |= _ip_fields(body)
        l4 = body[(body[0] & 15) * 4 :]
    else:
        found["body"] = body.hex()
        return {prefix + name: value for name, value in found.items()}
    if found["proto"] == packets.UDP and l4[2:4] == b"\x21\x18" and len(l4) > 16 + ETH_LEN and not prefix:
        outer = {f"outer.{name}": value for name, value in (found | _tunnel_fields(l4)).items()}
        return outer | fields(l4[16:], "inner.")
    found["body"] = l4.hex()
    return {prefix + name: value for name, value in found.items()}


def _ip_fields(body: bytes) -> dict[str, Any]:
    head = body[: (body[0] & 15) * 4]
    total, ident, fragment = struct.unpack_from("!HHH", body, 2)
    return {
        "version": body[0],
        "tos": body[1],
        "length": total,
        "id": ident,
        "fragment": f"{fragment:04x}",
        "ttl": body[8],
        "proto": body[9],
        "checksum_right": checksum(head) == 0,
        "source": IPv4Address(body[12:16]),
        "target": IPv4Address(body[16:20]),
        "options": head[IP_LEN:].hex(),
    }


def _ipv6_fields(body: bytes) -> dict[str, Any]:
    ip = packets.Ip.parse(bytes([0x60 | body[0] & 15]) + body[1:])
    right = packets.with_checksum(body[IPV6_LEN:], ip.src, ip.dst, ip.proto) == body[IPV6_LEN:]
    return {
        "version": body[0] >> 4,
        "tos": ip.tos,
        "label": ip.ident,
        "length": ip.total,
        "ttl": ip.ttl,
        "proto": ip.proto,
        "checksum_right": right,
        "source": ip.src,
        "target": ip.dst,
    }


def _tunnel_fields(l4: bytes) -> dict[str, Any]:
    sport, dport, length, check, flags, vni = struct.unpack_from("!HHHHII", l4)
    return {"sport": sport, "dport": dport, "udp_length": length, "udp_checksum": bool(check),
            "vxlan_flags": flags, "vni": vni}  # fmt: skip
