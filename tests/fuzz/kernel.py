"""What the kernel's IP stack, UDP and vxlan device let in, told again in Python.

The sources are ip_rcv(), ip_options_compile(), ipv6_rcv(), ip6_protocol_deliver_rcu(), udp_rcv(),
udp6_csum_init() and vxlan_rcv(). Where it cannot be told from the frame alone, the answer is the one
that asks more of the programs.
"""

from __future__ import annotations

import struct
from typing import Final

from tests import packets
from tests.datapath import INET6, UPLINK_MAC, Cast
from tests.packets import ETH_LEN

UDP_LEN, VXLAN_LEN = 8, 8
VLANS = (b"\x81\0", b"\x88\xa8")
TAGS = 4
"""Tags that from_wire looks behind: it refuses what has more."""
EXTENSIONS: Final = (
    packets.HOP_BY_HOP, packets.ROUTING, packets.FRAGMENT, packets.AH, packets.DESTINATION,
)  # fmt: skip
FOLLOWED: Final = 8
"""Extension headers that from_wire looks behind: it refuses what has more."""


def untagged(frame: bytes) -> bytes:
    """Without the priority tags in the data, which the kernel takes off if another stands beside them."""
    for _ in range(TAGS):
        if frame[12:14] in VLANS and not int.from_bytes(frame[14:16], "big") & 0xFFF:
            frame = frame[:12] + frame[16:]
    return frame


def is_tagged(frame: bytes) -> bool:
    return frame[12:14] in VLANS


def is_of(cast: Cast, frame: bytes) -> bool:
    """Whether Ethernet says that the family's IP follows."""
    return frame[12:14] == cast.kind.to_bytes(2, "big")


def chain(ip: bytes) -> tuple[int, int, int]:
    """Behind options or extension headers: the protocol there, where it begins (which may be behind the
    end), and how many extension headers there are. Of a later fragment, that header: no more is known.
    """
    if ip[0] >> 4 == 4:
        later = int.from_bytes(ip[6:8], "big") & 0x1FFF
        return packets.FRAGMENT if later else ip[9], (ip[0] & 15) * 4, 0
    proto, at, count = ip[6], packets.IPV6_LEN, 0
    while proto in EXTENSIONS and len(ip) >= at + 4:
        following, units = ip[at], ip[at + 1]
        if proto == packets.FRAGMENT:
            if int.from_bytes(ip[at + 2 : at + 4], "big") & 0xFFF8:
                break
            at += 8
        else:
            at += (units + 2) * 4 if proto == packets.AH else (units + 1) * 8
        proto, count = following, count + 1
    return proto, at, count


def ours(cast: Cast, frame: bytes) -> bool:
    """Whether it says that it is UDP for our VTEP, or hides too well whether it is: nothing else may be
    refused.
    """
    ip = frame[ETH_LEN:]
    if (
        len(ip) < cast.ip_len
        or frame[:6] != UPLINK_MAC.packed
        or not is_of(cast, frame)
        or ip[0] >> 4 != cast.version
        or ip[cast.addresses[1]] != cast.node.host.packed
    ):
        return False
    proto, at, _ = chain(ip)
    to_us = proto == packets.UDP and ip[at + 2 : at + 4] == struct.pack("!H", cast.node.port)
    return to_us or is_hidden(frame)


def is_hidden(frame: bytes) -> bool:
    """Whether there are more extension headers than the programs look behind."""
    return frame[12:14] == b"\x86\xdd" and chain(frame[ETH_LEN:])[2] >= FOLLOWED


def let_in(cast: Cast, frame: bytes) -> bool:
    """Whether the vxlan device would take a packet of the family or tagged out of it, or of its
    fragments.
    """
    if not ours(cast, frame):
        return False
    ip = frame[ETH_LEN:]
    proto, head, _ = chain(ip)
    total = taken(ip) if is_packet(cast, frame) else 0
    if proto != packets.UDP or total - head < UDP_LEN + VXLAN_LEN + ETH_LEN:
        return False
    datagram = ip[head:total]
    length, check = struct.unpack_from("!HH", datagram, 4)
    if length and not UDP_LEN + VXLAN_LEN + ETH_LEN <= length <= len(datagram):
        return False
    datagram = datagram[: length or None]
    if cast.version == 6 and not check:
        return False
    if check and packets.checksum(pseudo_header(cast, ip, len(datagram), packets.UDP) + datagram):
        return False
    flags, vni = struct.unpack_from("!II", datagram, UDP_LEN)
    inner = datagram[UDP_LEN + VXLAN_LEN :]
    return (flags, vni) == (packets.VXLAN_I, cast.node.vni << 8) and (
        inner[12:14] in VLANS or is_packet(cast, inner)
    )


def taken(ip: bytes) -> int:
    """Bytes of a packet from its IP header on, as it is taken: with a payload length of 0 and hop-by-hop
    options in front, as many as there are.
    """
    jumbo = ip[0] >> 4 == 6 and ip[4:7] == bytes((0, 0, packets.HOP_BY_HOP))
    return len(ip) if jumbo else packets.Ip.parse(ip).total


def pseudo_header(cast: Cast, ip: bytes, length: int, proto: int) -> bytes:
    """In front of what a checksum is of; the same sum for both families."""
    source, target = cast.addresses
    return ip[source] + ip[target] + struct.pack("!II", length, proto)


def comes_in(cast: Cast, frame: bytes) -> bool:
    """Whether the device hands the inner frame to the IP stack: what is in it is that one's to judge. Not
    whether an outer checksum is right that has to be there: see `is_summed`.
    """
    if not ours(cast, frame) or chain(frame[ETH_LEN:])[:2] != (packets.UDP, cast.ip_len):
        return False
    tunnel = packets.Tunnel.parse(frame)
    return (
        tunnel.ip.valid
        and tunnel.ip.total == len(frame) - ETH_LEN == tunnel.udp_len + cast.ip_len
        and not tunnel.ip.fragment & 0x3FFF
        and bool(tunnel.udp_check) == (cast.version == 6)
        and (tunnel.flags, tunnel.vni) == (packets.VXLAN_I, cast.node.vni)
        and len(tunnel.frame) >= ETH_LEN + cast.ip_len
        and tunnel.frame[:6] == cast.node.vtep_mac.packed != tunnel.frame[6:12]
        and is_of(cast, tunnel.frame)
    )


def is_packet(cast: Cast, frame: bytes) -> bool:
    """Whether a frame is of the family as ip_rcv() or ipv6_rcv() take it."""
    ip = frame[ETH_LEN:]
    if not is_of(cast, frame) or len(ip) < cast.ip_len or ip[0] >> 4 != cast.version:
        return False
    if cast.version == 6:
        return packets.Ip.parse(ip).total <= len(ip)
    head, (total,) = (ip[0] & 15) * 4, struct.unpack_from("!H", ip, 2)
    return cast.ip_len <= head <= total <= len(ip) and not packets.checksum(ip[:head])


def without_options(cast: Cast, frame: bytes) -> bytes:
    """The frame with a plain outer header."""
    ip = frame[ETH_LEN:]
    proto, behind, _ = chain(ip)
    plain = bytes([0x45]) + ip[1:20] if cast.version == 4 else ip[:6] + bytes([proto]) + ip[7:40]
    return frame[:ETH_LEN] + plain + ip[behind:]


def is_summed(frame: bytes) -> bool:
    """Whether what is behind a plain IPv6 header has a checksum, and a right one, as its receiver sees it."""
    ip = frame[ETH_LEN:]
    total, proto = int.from_bytes(ip[4:6], "big") + packets.IPV6_LEN, ip[6]
    l4, at = ip[packets.IPV6_LEN : total], packets.CHECK_AT.get(proto)
    if total > len(ip) or at is None or len(l4) < at + 2:
        return False
    l4, _ = packets.summed_part(l4, proto)
    if proto == packets.UDP and l4[at : at + 2] == bytes(2):
        return False
    return not packets.checksum(pseudo_header(INET6, ip, len(l4), proto) + l4)


def resummed(cast: Cast, frame: bytes) -> bytes:
    """The frame with the outer checksum that it has to have, if its family asks for one."""
    ip, at = packets.Ip.parse(frame[ETH_LEN:]), ETH_LEN + cast.ip_len
    if cast.version == 4:
        return frame
    return frame[:at] + packets.with_checksum(frame[at:], ip.src, ip.dst, packets.UDP)
