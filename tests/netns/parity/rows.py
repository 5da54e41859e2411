"""The table of packets: what container one sends (or what comes over the wire), and who carries it.

A row is one line. Its frames are sent twice through a node without eBPF and twice through one
with it (the first time their flows are not approved yet), and each time the same has to
show on the wire and in both containers. `out` and `into` are the reasons that
from_container and from_wire count the second time: they say which path the row has tested.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from itertools import permutations, product
from typing import Any, Final

from ctl.core.abi import Ip
from ctl.core.model import MacAddress
from tests import packets
from tests.netns.parity.capture import Shot, finished, partial
from tests.packets import ACK, DF, FIN, ICMP, IP_LEN, MF, PSH, RST, SYN, TCP, UDP, checksum

MTU: Final = 1450
UDP_MAX: Final = MTU - IP_LEN - 8
TCP_MAX: Final = MTU - IP_LEN - 20
URG, ECE, CWR = 0x20, 0x40, 0x80


@dataclass(frozen=True, slots=True)
class Ends:
    """Who sends to whom, by which gateway, and a source port that no other row has."""

    src: Ip
    dst: Ip
    mac: MacAddress
    gateway: MacAddress
    port: int

    def frame(self, l4: bytes, proto: int, *, to: MacAddress | None = None, by: MacAddress | None = None,
              **ip: Any) -> bytes:  # fmt: skip
        """Ethernet and IP around it, of the family that the addresses are of; `to` and `by`: other MACs."""
        fields = {"src": self.src, "dst": self.dst, **ip}
        packet = packets.ip(l4, proto=proto, **fields)
        kind = packets.IPV4 if self.src.version == 4 else packets.IPV6
        return packets.ether(packet, by or self.mac, to or self.gateway, kind)


Send = Callable[[Ends], list[Shot]]


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its name, what is sent, and the reasons that have to be counted."""

    name: str
    send: Send
    out: str = "encap"
    """At from_container of the sender's node: words that all have to be counted, and nothing
    else; `x|y`: one of the two."""
    into: str = "decap"
    """At from_wire of the receiver's node; empty: nothing arrives there."""
    offloads: bool = False
    """Worth sending with each setting of the underlay's offloads."""
    mtu: int = MTU
    """The container's."""
    mixed: bool = False
    """Some packets by eBPF, some by the kernel path, which may then arrive in another order."""


def together(*sends: Send) -> Send:
    """One after the other."""
    return lambda ends: [shot for send in sends for shot in send(ends)]


def after_good(*sends: Send, good: Send | None = None) -> Send:
    """The same on a flow that has just been approved: what the kernel refuses approves none."""
    return together(good or udp(64), *sends)


def udp(size: int = 32, *, dport: int = 20000, summed: bool = True, **ip: Any) -> Send:
    def send(ends: Ends) -> list[Shot]:
        frame = ends.frame(packets.udp(pattern(size), ends.port, dport), UDP, **ip)
        return [Shot(with_checksum(frame) if summed else frame)]

    return send


def tcp(size: int = 32, *, flags: int = ACK, options: bytes = b"", **ip: Any) -> Send:
    def send(ends: Ends) -> list[Shot]:
        segment = packets.tcp(pattern(size), ends.port, 20000, flags=flags, options=options)
        return [Shot(with_checksum(ends.frame(segment, TCP, **ip)))]

    return send


def echo(size: int = 32, *, kind: int = 0, code: int = 0, **ip: Any) -> Send:
    """Unasked-for replies: nobody answers them."""
    return lambda ends: [
        Shot(ends.frame(packets.icmp(pattern(size), kind, ends.port, code=code), ICMP, **ip))
    ]


def of_protocol(proto: int, body: bytes = bytes(32), **ip: Any) -> Send:
    return lambda ends: [Shot(ends.frame(body, proto, **ip))]


def left_to_nic(send: Send, gso: int = 0) -> Send:
    """The same frames with unfinished checksums; with `gso`, as segments of that size in one."""
    return lambda ends: [partial(shot.frame, gso=gso) for shot in send(ends)]


def edited(send: Send, at: int, new: bytes) -> Send:
    """The same frames, some bytes of each overwritten; checksums stay as they were."""
    return lambda ends: [
        replace(shot, frame=shot.frame[:at] + new + shot.frame[at + len(new) :]) for shot in send(ends)
    ]


def padded(send: Send, size: int) -> Send:
    return lambda ends: [replace(shot, frame=shot.frame + bytes(size)) for shot in send(ends)]


def cut(send: Send, size: int) -> Send:
    """The same frames, only their first bytes."""
    return lambda ends: [replace(shot, frame=shot.frame[:size]) for shot in send(ends)]


def tagged(send: Send, *tcis: int, proto: int = packets.VLAN) -> Send:
    tags = b"".join(struct.pack("!HH", proto, tci) for tci in tcis)
    return lambda ends: [replace(shot, frame=shot.frame[:12] + tags + shot.frame[12:]) for shot in send(ends)]


def fragments(size: int, order: Sequence[int], *, at: Sequence[int] = (0, 512, 1024), extra: int = 0) -> Send:
    """A datagram in fragments that begin at these bytes and overlap by `extra`; `order`: which, and when."""

    def send(ends: Ends) -> list[Shot]:
        whole = with_checksum(ends.frame(packets.udp(pattern(size), ends.port, 20000), UDP, fragment=0))
        body, ends_ = whole[34:], [*at[1:], len(whole) - 34]
        pieces = [
            ends.frame(
                body[start : end + (extra if end != len(body) else 0)],
                UDP,
                fragment=start // 8 | (MF if end != len(body) else 0),
                ident=ends.port,
            )
            for start, end in zip(at, ends_, strict=True)
        ]
        return [Shot(pieces[number]) for number in order]

    return send


def ipv6(next_header: int, body: bytes, to: MacAddress | None = None) -> Send:
    def send(ends: Ends) -> list[Shot]:
        addresses = bytes.fromhex("fd00" + "00" * 13 + "01" + "fd00" + "00" * 13 + "02")
        packet = struct.pack("!IHBB", 6 << 28, len(body), next_header, 64) + addresses + body
        return [Shot(packets.ether(packet, ends.mac, to or ends.gateway, packets.IPV6))]

    return send


def ethernet(proto: int, body: bytes = bytes(46)) -> Send:
    return lambda ends: [Shot(packets.ether(body, ends.mac, ends.gateway, proto))]


def pattern(size: int) -> bytes:
    """Payload in which a byte at the wrong place is seen."""
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def with_checksum(frame: bytes) -> bytes:
    """TCP or UDP with its checksum."""
    shot = partial(frame)
    (whole,) = finished(shot.frame, shot.vnet)
    return whole


IPV4 = IPv4Address
MULTICAST = MacAddress.parse("01:00:5e:00:00:01")
BROADCAST = MacAddress(b"\xff" * 6)
STRANGE = MacAddress.parse("02:99:99:99:99:99")
ALL_FLAGS = [sum(bits) for bits in product((0, FIN), (0, SYN), (0, RST), (0, PSH), (0, ACK), (0, URG))]
UNTRACKABLE = [flags for flags in ALL_FLAGS if not flags & (FIN | SYN | RST | ACK)]
PLAIN_FLAGS = [flags for flags in ALL_FLAGS if flags & ACK and not flags & (FIN | SYN | RST)]
CONTROL_FLAGS = [flags for flags in ALL_FLAGS if flags & (FIN | SYN | RST)]
IP_CHECK, IP_TOTAL = 24, 16
UDP_LENGTH, UDP_CHECK, TCP_OFFSET, TCP_CHECK = 38, 40, 46, 50
"""Where these stand in a frame."""

SIZES = (
    Row("UDP, every size from 0 to the MTU", together(*(udp(size) for size in range(UDP_MAX + 1)))),
    Row("TCP, sizes from 0 to the MTU", together(*(tcp(size) for size in (*range(0, TCP_MAX, 47), TCP_MAX)))),
    Row(
        "ICMP echo, sizes from 0 to the MTU", together(*(echo(size) for size in (0, 1, 55, 56, 57, UDP_MAX)))
    ),
    Row("UDP, one byte above the MTU, DF", udp(UDP_MAX + 1), "oversize", "", mtu=1500),
    Row("UDP, one byte above the MTU, no DF", udp(UDP_MAX + 1, fragment=0), "oversize", "fragment", mtu=1500),
    Row("TCP, one byte above the MTU, DF", tcp(TCP_MAX + 1), "oversize", "", mtu=1500),
    Row("UDP of 9000 bytes, DF", udp(8972), "oversize", "", mtu=9000),
    Row("UDP of 9000 bytes, no DF", udp(8972, fragment=0), "oversize", "fragment", mtu=9000),
    Row("TCP options", tcp(100, options=bytes([1, 1, 8, 10]) + bytes(8))),
    Row("TCP with 40 bytes of options", tcp(100, options=bytes([1] * 40))),
)

OFFLOADS = (
    Row("UDP with an unfinished checksum", left_to_nic(udp(900)), offloads=True),
    Row("TCP with an unfinished checksum", left_to_nic(tcp(900)), offloads=True),
    Row("UDP with no payload and an unfinished checksum", left_to_nic(udp(0)), offloads=True),
    Row("TCP, 40 segments in one packet", left_to_nic(tcp(40 * TCP_MAX), TCP_MAX), offloads=True),
    Row("TCP segments, the last one short", left_to_nic(tcp(3 * TCP_MAX + 1), TCP_MAX), offloads=True),
    Row("TCP segments of 100 bytes", left_to_nic(tcp(2000), 100), offloads=True),
    Row("TCP segments, PSH", left_to_nic(tcp(9000, flags=ACK | PSH), TCP_MAX), offloads=True),
    # A connection that conntrack knows: of a new one that comes in several packets at a time, the kernel
    # path drops all but the first, for each makes an entry of its own (ip_list_rcv, nf_conntrack_confirm).
    Row("TCP segments, CWR",
        after_good(left_to_nic(tcp(9000, flags=ACK | CWR, tos=2), TCP_MAX), good=tcp(tos=2)), offloads=True),
    Row("TCP segments, FIN", left_to_nic(tcp(9000, flags=ACK | FIN), TCP_MAX), "tcp_control",
        "tcp_control|decap", offloads=True, mixed=True),
    Row("TCP segments with options",
        left_to_nic(tcp(9000, options=bytes([1, 1, 8, 10]) + bytes(8)), TCP_MAX - 12), offloads=True),
    Row("TCP segments, one byte too large for the MTU", left_to_nic(tcp(9000), TCP_MAX + 1), "oversize", ""),
    Row("TCP segments, too large, no DF", left_to_nic(tcp(9000, fragment=0), TCP_MAX + 1), "oversize",
        "fragment|decap", mixed=True),
    Row("UDP, 40 segments in one packet", left_to_nic(udp(40 * UDP_MAX), UDP_MAX), into="udp_gso|decap",
        offloads=True),
    Row("UDP segments, the last one short", left_to_nic(udp(2 * 500 + 1), 500), into="udp_gso|decap",
        offloads=True),
    Row("UDP segments, one byte too large for the MTU", left_to_nic(udp(9000), UDP_MAX + 1), "oversize", ""),
)  # fmt: skip

CHECKSUMS = (
    Row("UDP without a checksum", udp(100, summed=False)),
    Row("UDP with a wrong checksum", edited(udp(100), UDP_CHECK, b"\x12\x34")),
    Row("TCP with a wrong checksum", edited(tcp(100), TCP_CHECK, b"\x12\x34")),
    Row(
        "IPv4 with a wrong header checksum",
        after_good(edited(udp(100), IP_CHECK, b"\x12\x34")),
        "encap inner_checksum",
    ),
)

HEADERS = (
    *(Row(f"TTL {ttl}", udp(ttl=ttl)) for ttl in (3, 64, 255)),
    Row("TTL 2: it ends at the second node", udp(ttl=2), into="ttl"),
    Row("TTL 1: it ends at the first node", udp(ttl=1), "ttl", ""),
    Row("TTL 0", udp(ttl=0), "ttl", ""),
    Row("ECN and DSCP, all 256 values of TOS", together(*(udp(tos=tos) for tos in range(256)))),
    Row("DF clear", udp(fragment=0)),
    Row("the reserved bit set", udp(fragment=0x8000 | DF)),
    Row("IP id 0, 1 and the largest", together(*(udp(ident=ident, fragment=0) for ident in (0, 1, 0xFFFF)))),
    Row("options: no operation", udp(options=bytes([1, 1, 1, 0]), summed=False), "ip_options", "ip_options"),
    Row(
        "options: router alert", udp(options=bytes([148, 4, 0, 0]), summed=False), "ip_options", "ip_options"
    ),
    Row(
        "options: record route",
        udp(options=bytes([7, 7, 4, *[0] * 4, 0]), summed=False),
        "ip_options",
        "ip_options",
    ),
    Row(
        "options: loose source route",
        udp(options=bytes([131, 7, 4, 172, 17, 20, 1, 0]), summed=False),
        "ip_options",
        "",
    ),
    Row("options that are nonsense", udp(options=bytes([7, 2, 0, 0]), summed=False), "ip_options", ""),
    Row("IP version 5", udp(version=5), "not_ipv4", ""),
    Row("a header of 4 words", udp(ihl=4), "ip_options", ""),
    Row(
        "total length beyond the frame",
        after_good(edited(udp(100), IP_TOTAL, b"\x05\x00")),
        "encap truncated",
    ),
    Row("total length shorter than a header", after_good(udp(100, total=19)), "encap truncated"),
    Row("padding behind the packet", after_good(padded(udp(10), 8)), "encap truncated"),
    Row("a frame cut in the IPv4 header", cut(udp(), 33), "truncated", ""),
    Row("a frame cut in the UDP header", cut(udp(total=24), 38), "truncated", "truncated"),
)

FRAGMENTS = (
    *(Row(f"fragments in order {order}", fragments(1400, order), "fragment")
      for order in permutations(range(3))),
    Row("a first fragment alone", fragments(1400, [0]), "fragment", ""),
    Row("a last fragment alone", fragments(1400, [2]), "fragment", ""),
    Row("fragments that overlap", fragments(1400, [0, 1, 2], extra=8), "fragment", ""),
    Row("a fragment twice", fragments(1400, [0, 1, 1, 2]), "fragment"),
    Row("8 bytes and the rest", fragments(1400, [0, 1], at=(0, 8)), "fragment"),
    Row("64 KB in fragments",
        fragments(60000, range(43), at=range(0, 60008, 1424)), "fragment", "fragment"),
)  # fmt: skip

FRAMES = (
    Row("a VLAN tag", tagged(udp(), 5), "vlan", ""),
    Row("a priority tag", tagged(udp(), 0), "vlan"),
    Row("two tags", tagged(udp(), 5, 6), "vlan", ""),
    Row("an 802.1ad tag", tagged(udp(), 5, proto=0x88A8), "vlan", ""),
    Row("IPv6, UDP", ipv6(17, packets.udp(bytes(32), 20000, 20000)), "not_ipv4", ""),
    Row("IPv6, multicast", ipv6(58, bytes(24), MacAddress.parse("33:33:00:00:00:01")), "not_ipv4", ""),
    Row("another EtherType", ethernet(0x88B5), "not_ipv4", ""),
    Row("an LLC frame", ethernet(46), "not_ipv4", ""),
    Row("limited broadcast", udp(dst=IPV4("255.255.255.255"), to=BROADCAST), "not_overlay", ""),
    Row("broadcast of the remote subnet", udp(dst=IPV4("172.17.30.255")), into="no_endpoint"),
    Row("broadcast of the whole network", udp(dst=IPV4("172.17.255.255")), "not_overlay", ""),
    Row("multicast", udp(dst=IPV4("224.0.0.1"), to=MULTICAST), "not_overlay", ""),
    Row("multicast to the gateway's MAC", udp(dst=IPV4("239.1.2.3")), "not_overlay", ""),
    Row("unicast to the broadcast MAC", udp(to=BROADCAST), "not_routed", ""),
    Row("unicast to a MAC that nobody has", udp(to=STRANGE), "not_routed", ""),
    Row("from a MAC that is not the container's", after_good(udp(by=STRANGE)), "encap no_endpoint"),
)

ADDRESSES = (
    Row("to the VTEP's own address", udp(dst=IPV4("172.17.30.0")), into="no_endpoint"),
    Row("to the remote gateway", echo(kind=0, dst=IPV4("172.17.30.1")), into="no_endpoint"),
    Row("to a subnet that nobody holds", udp(dst=IPV4("172.17.77.7")), "not_overlay", ""),
    Row("to the own gateway", echo(kind=0, dst=IPV4("172.17.20.1")), "not_overlay", ""),
    Row("from an address that no container has", udp(src=IPV4("172.17.20.77")), "no_endpoint",
        "flow_unknown|decap"),
    *(Row(f"from {src}", udp(src=IPV4(src)), "no_endpoint", "")
      for src in ("127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "172.17.20.1")),
)  # fmt: skip

PROTOCOLS = (
    Row("TCP with every combination of flags that has ACK alone of the control bits",
        together(*(tcp(flags=flags) for flags in PLAIN_FLAGS))),
    *(Row(f"TCP flags {flags:#04x}", tcp(flags=flags), "tcp_control", "tcp_control")
      for flags in CONTROL_FLAGS if flags & ~(PSH | URG) == flags),
    Row("TCP with a header longer than the packet", edited(tcp(0), TCP_OFFSET, b"\xf0"), "truncated",
        "truncated"),
    Row("UDP that says it is shorter", edited(udp(), UDP_LENGTH, b"\x00\x0a")),
    Row("UDP to port 0", udp(dport=0)),
    Row("VXLAN inside", udp(100, dport=8472)),
    Row("SCTP", of_protocol(packets.SCTP), "protocol", "protocol"),
    Row("GRE", of_protocol(47), "protocol", "protocol"),
    Row("ESP", of_protocol(50), "protocol", "protocol"),
    Row("IP in IP", of_protocol(4, packets.ipv4(bytes(32), IPV4("172.17.20.2"), IPV4("172.17.30.2"), UDP)),
        "protocol", "protocol"),
    Row("protocol 0", of_protocol(0), "protocol", "protocol"),
    *(Row(f"ICMP type {kind}", echo(kind=kind), "protocol", "protocol") for kind in (9, 10, 14, 18, 40)),
    Row("ICMP echo reply with a code", echo(code=7)),
    Row("ICMP echo reply with a wrong checksum", edited(echo(), 36, b"\x12\x34")),
    Row("ICMP error about a flow that nobody knows",
        echo(kind=3, code=3), "protocol", "protocol"),
)  # fmt: skip

INVALID = (
    Row("TCP without any of SYN, ACK, FIN, RST",
        after_good(*(tcp(flags=flags) for flags in UNTRACKABLE), good=tcp()), "encap tcp_control",
        "decap tcp_control|decap"),
    Row("TCP with a header of 4 words", after_good(edited(tcp(), TCP_OFFSET, b"\x40"), good=tcp()),
        "encap truncated", "decap truncated|decap"),
    Row("UDP that says it is longer", after_good(edited(udp(), UDP_LENGTH, b"\x05\x00")),
        "encap truncated", "decap truncated|decap"),
    Row("UDP that says it has no header", after_good(edited(udp(), UDP_LENGTH, b"\x00\x07")),
        "encap truncated", "decap truncated|decap"),
)  # fmt: skip
"""What conntrack calls invalid: also sent through a firewall that drops that."""

SENT: Final = (*SIZES, *OFFLOADS, *CHECKSUMS, *HEADERS, *FRAGMENTS, *FRAMES, *ADDRESSES, *PROTOCOLS, *INVALID)
"""Everything that container one sends."""


@dataclass(frozen=True, slots=True)
class Outer:
    """What is put on the wire around a row's packets, as if from node a."""

    name: str
    inner: Send
    into: str = "decap"
    tos: int = 0
    ttl: int = 64
    fragment: int = 0
    ident: int = 0x4321
    sport: int = 40000
    checksum: str = "none"
    """`none`, `right` or `wrong`: of UDP outside."""
    padding: int = 0
    """Bytes behind the inner packet."""
    vni: int = 1
    flags: int = packets.VXLAN_I

    def send(self, ends: Ends, macs: tuple[MacAddress, ...], hosts: tuple[Ip, ...]) -> list[Shot]:
        """`macs`: uplinks of a and b, VTEPs of a and b; `hosts`: a and b."""
        return [Shot(self._around(shot.frame, macs, hosts)) for shot in self.inner(ends)]

    def _around(self, sent: bytes, macs: tuple[MacAddress, ...], hosts: tuple[Ip, ...]) -> bytes:
        frame = packets.ether(sent[packets.ETH_LEN :] + bytes(self.padding), macs[2], macs[3])
        tunnel = packets.udp(packets.vxlan(frame, self.vni, flags=self.flags), self.sport, 8472)
        packet = packets.ip(
            tunnel, hosts[0], hosts[1], UDP, tos=self.tos, ttl=self.ttl, fragment=self.fragment,
                              ident=self.ident)  # fmt: skip
        if self.checksum != "none":
            pseudo = packet[12:20] + struct.pack("!BBH", 0, UDP, len(tunnel))
            sum_ = checksum(pseudo + tunnel) ^ (0x5555 if self.checksum == "wrong" else 0)
            packet = packet[:26] + struct.pack("!H", sum_ or 0xFFFF) + packet[28:]
        return packets.ether(packet, macs[0], macs[1])


FOREIGN_SOURCES: Final = {
    "the sending host's": "192.168.77.11",
    "another host's": "192.168.77.13",
    "of nobody, outside of the network": "203.0.113.9",
    "the receiving host's": "192.168.77.12",
    "loopback": "127.0.0.1",
}
"""Outside of the network: the overlay does not know whose they are."""

ARRIVING: Final = (
    *(
        Outer(
            f"ECN {inner} inside, {outer} outside",
            udp(tos=46 << 2 | inner, ttl=63),
            tos=outer,
            into="ecn" if (inner, outer) == (0, 3) else "decap",
        )
        for inner, outer in product(range(4), repeat=2)
    ),
    Outer("no outer checksum", udp()),
    Outer("a right outer checksum", udp(), "outer_checksum", checksum="right"),
    Outer("a wrong outer checksum", udp(), "outer_checksum", checksum="wrong"),
    Outer(
        "a right outer checksum around an unsummed packet",
        udp(summed=False),
        "outer_checksum",
        checksum="right",
    ),
    Outer("outer TTL 1", udp(), ttl=1),
    Outer("outer DF", udp(), fragment=DF),
    Outer("outer DSCP", udp(tos=0), tos=46 << 2),
    Outer("outer id 0", udp(), ident=0),
    Outer("outer source port 1", udp(), sport=1),
    Outer("padding behind the inner packet", udp(4), "truncated", padding=10),
    Outer("inner TTL 1", udp(ttl=1), "ttl"),
    Outer("inner TTL 2", udp(ttl=2)),
    Outer(
        "a wrong inner header checksum",
        after_good(edited(udp(), IP_CHECK, b"\x12\x34")),
        "decap inner_checksum",
    ),
    Outer("a wrong inner UDP checksum", edited(udp(), UDP_CHECK, b"\x12\x34")),
    Outer("no inner UDP checksum", udp(summed=False)),
    Outer(
        "inner UDP that says it is longer",
        after_good(edited(udp(), UDP_LENGTH, b"\x05\x00")),
        "decap truncated",
    ),
    Outer("inner TCP without any flag", after_good(tcp(flags=0), good=tcp()), "decap tcp_control"),
    Outer("inner fragments", fragments(1400, [2, 0, 1]), "fragment"),
    Outer("inner options", udp(options=bytes([148, 4, 0, 0]), summed=False), "ip_options"),
    Outer("inner packet of MTU size", udp(UDP_MAX)),
    *(
        Outer(f"inner source {whose}", udp(src=IPV4(src)), "foreign_source")
        for whose, src in FOREIGN_SOURCES.items()
    ),
    Outer("another VNI", udp(), "vxlan_header", vni=2),
    Outer("no VNI", udp(), "vxlan_header", flags=0),
    Outer("a reserved flag", udp(), "vxlan_header", flags=packets.VXLAN_I | 1),
    Outer("a group policy", udp(), "vxlan_header", flags=packets.VXLAN_I | 0x80000000),
)
"""Everything that comes over the wire, for container two."""
