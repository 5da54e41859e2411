"""What the kernel's IP stack, UDP and vxlan device let in, told again in Python.

The sources are ip_rcv(), ip_options_compile(), udp_rcv() and vxlan_rcv(). Where it cannot
be told from the frame alone, the answer is the one that asks more of the programs.
"""

from __future__ import annotations

import struct

from tests import packets
from tests.datapath import NODE, UPLINK_MAC
from tests.packets import ETH_LEN, IP_LEN

UDP_LEN, VXLAN_LEN = 8, 8
VLANS = (b"\x81\0", b"\x88\xa8")
TAGS = 4
"""Tags that from_wire looks behind: it refuses what has more."""


def untagged(frame: bytes) -> bytes:
    """Without the priority tags in the data, which the kernel takes off if another stands beside them."""
    for _ in range(TAGS):
        if frame[12:14] in VLANS and not int.from_bytes(frame[14:16], "big") & 0xFFF:
            frame = frame[:12] + frame[16:]
    return frame


def is_tagged(frame: bytes) -> bool:
    return frame[12:14] in VLANS


def ours(frame: bytes) -> bool:
    """Whether it says that it is UDP for our VTEP: nothing else may be refused."""
    if len(frame) < ETH_LEN + IP_LEN:
        return False
    ip = frame[ETH_LEN:]
    port = ip[(ip[0] & 15) * 4 + 2 :][:2]
    return (
        frame[:6] == UPLINK_MAC.packed
        and frame[12:14] == b"\x08\0"
        and ip[0] >> 4 == 4
        and ip[9] == packets.UDP
        and ip[16:20] == NODE.host.packed
        and port == struct.pack("!H", NODE.port)
    )


def let_in(frame: bytes) -> bool:
    """Whether the vxlan device would take an IPv4 or tagged packet out of it, or of its fragments."""
    if not ours(frame):
        return False
    ip, head = frame[ETH_LEN:], (frame[ETH_LEN] & 15) * 4
    total, fragment = struct.unpack_from("!H2xH", ip, 2)
    if head < IP_LEN or not head <= total <= len(ip) or packets.checksum(ip[:head]) or fragment & 0x1FFF:
        return False
    datagram = ip[head:total]
    if len(datagram) < UDP_LEN + VXLAN_LEN + ETH_LEN:
        return False
    length, check = struct.unpack_from("!HH", datagram, 4)
    if length and not UDP_LEN + VXLAN_LEN + ETH_LEN <= length <= len(datagram):
        return False
    datagram = datagram[: length or None]
    if check and packets.checksum(ip[12:20] + struct.pack("!BBH", 0, packets.UDP, len(datagram)) + datagram):
        return False
    flags, vni = struct.unpack_from("!II", datagram, UDP_LEN)
    return flags == packets.VXLAN_I and vni == NODE.vni << 8 and is_packet(datagram[UDP_LEN + VXLAN_LEN :])


def comes_in(frame: bytes) -> bool:
    """Whether the device hands the inner frame to the IP stack: what is in it is that one's to judge."""
    if not ours(frame) or frame[ETH_LEN] != 0x45:
        return False
    ip = frame[ETH_LEN:]
    total, fragment = struct.unpack_from("!H2xH", ip, 2)
    length, check = struct.unpack_from("!HH", ip, IP_LEN + 4)
    flags, vni = struct.unpack_from("!II", ip, IP_LEN + UDP_LEN)
    inner = ip[IP_LEN + UDP_LEN + VXLAN_LEN :]
    return (
        not packets.checksum(ip[:IP_LEN])
        and total == len(ip) == length + IP_LEN
        and not fragment & 0x3FFF
        and not check
        and (flags, vni) == (packets.VXLAN_I, NODE.vni << 8)
        and len(inner) >= ETH_LEN + IP_LEN
        and inner[:6] == NODE.vtep_mac.packed != inner[6:12]
        and inner[12:14] == b"\x08\0"
    )


def is_packet(frame: bytes) -> bool:
    """Whether an inner frame is IPv4 as ip_rcv() takes it, or tagged."""
    if frame[12:14] != b"\x08\0":
        return frame[12:14] in VLANS
    ip = frame[ETH_LEN:]
    if len(ip) < IP_LEN or ip[0] >> 4 != 4:
        return False
    head, (total,) = (ip[0] & 15) * 4, struct.unpack_from("!H", ip, 2)
    return IP_LEN <= head <= total <= len(ip) and not packets.checksum(ip[:head])


def without_options(frame: bytes) -> bytes:
    """The frame with an outer IPv4 header of five words."""
    head = (frame[ETH_LEN] & 15) * 4
    first = bytes([0x45]) + frame[ETH_LEN + 1 : ETH_LEN + IP_LEN]
    return frame[:ETH_LEN] + first + frame[ETH_LEN + head :]
