"""Every exit of every program, provoked.

`aborted` is the one exit that no packet takes: it needs bpf_skb_store_bytes() to fail on
a packet that adjust_room has just made long enough, which is the kernel out of memory.
What `finish` does with it is shown by a probe.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from ctl.core import abi
from ctl.core.abi import (
    NODE_F_NO_ETHERNET,
    NODE_F_OTHERS_BEHIND,
    NODE_F_PEERS_INCOMPLETE,
    PEER_F_KERNEL_PATH,
    Direction,
)
from ctl.core.model import Bypass, MacAddress
from ctl.core.reasons import REASONS, Verdict
from ctl.kernel.bpf.maps import Spec
from tests import packets
from tests.datapath import (
    FOREIGN,
    LOCAL,
    MAC,
    NOBODY,
    NODE,
    OTHER,
    PEER,
    PEER_MAC,
    PEER_SUBNET,
    REMOTE,
    SERVICE,
    THIRD,
    THIRD_SUBNET,
    Action,
    Datapath,
    flow_hash,
    flow_in,
    flow_out,
    received,
    sent,
    wire,
)
from tests.packets import ACK, FIN, IPV6, RST, SCTP, SYN, TCP, VLAN

Setup = Callable[[Datapath], object]
ELSEWHERE_MAC = MacAddress.parse("02:09:09:09:09:09")
FRAME = sent()
IP_AT = 14

ACTIONS = {
    Verdict.BYPASS: Action.REDIRECT,
    Verdict.TUNNEL: Action.REDIRECT,
    Verdict.PASS: Action.UNSPEC,
    Verdict.DROP: Action.SHOT,
    Verdict.ABORT: Action.SHOT,
}


def nothing(_: Datapath) -> None: ...


def approved(age_s: float = 0) -> Setup:
    def setup(datapath: Datapath) -> None:
        datapath.approve(flow_out(), age_s=age_s, mark=7, priority=3)
        datapath.approve(flow_in(), age_s=age_s, mark=7, priority=3)

    return setup


def slow_peer(datapath: Datapath) -> None:
    approved()(datapath)
    datapath.peer(PEER_SUBNET, replace(PEER, flags=PEER_F_KERNEL_PATH))


def node(**changes: Any) -> Setup:
    return lambda datapath: datapath.node(**changes)


def others_behind(datapath: Datapath) -> None:
    approved()(datapath)
    datapath.node(flags=NODE_F_OTHERS_BEHIND)


def peer(**changes: Any) -> Setup:
    return lambda datapath: datapath.peer(PEER_SUBNET, replace(PEER, **changes))


def unconfigured(datapath: Datapath) -> None:
    datapath.fill("node", struct.pack("=I", 0), bytes(abi.STRUCTS[4].node.size))


def patched(frame: bytes, offset: int, value: bytes) -> bytes:
    """A lie, and no checksum mended: the kernel path is to judge it."""
    return frame[:offset] + value + frame[offset + len(value) :]


def framed(proto: int) -> bytes:
    return patched(FRAME, 12, struct.pack("!H", proto))


def segment(flags: int, sport: int = 1000, dport: int = 2000) -> bytes:
    return packets.tcp(b"", sport, dport, flags=flags)


def in_wire(**ip: Any) -> bytes:
    return wire(received(**ip))


NO_ETHERNET = node(flags=NODE_F_NO_ETHERNET)
"""Of a test run's packets the Ethernet header is there all the same, as of xfrm's over Ethernet. Those
without one are in tests/netns/test_link_types.py."""
SEGMENTS: dict[str, Any] = {"gso_size": 9, "gso_segs": 2}
PRIORITY: dict[str, Any] = {"vlan": 3 << 13}
"""A tag of no VLAN beside the data."""


def tags(*tcis: int, **outer: Any) -> bytes:
    """VXLAN from the peer, with tags in the data."""
    frame = wire(received(), **outer)
    return frame[:12] + b"".join(struct.pack("!HH", VLAN, tci) for tci in tcis) + frame[12:]


@dataclass(frozen=True)
class Case:
    """One packet at one hook leaves for one reason."""

    name: str
    hook: str
    reason: str
    packet: bytes
    setup: Setup = nothing
    run: dict[str, Any] = field(default_factory=dict)


OUT = [
    Case("approved", "from_container", "encap", FRAME, approved()),
    Case("bypass always", "from_container", "encap", FRAME, node(bypass=Bypass.ALWAYS)),
    Case("no next hop", "from_container", "encap", FRAME, lambda d: (approved()(d), peer(next_hop=None)(d))),
    Case("IPv6", "from_container", "not_ipv4", framed(IPV6) + bytes(20)),
    Case("version 6 in an IPv4 frame", "from_container", "not_ipv4", patched(FRAME, IP_AT, b"\x65")),
    Case("tag in the data", "from_container", "not_ipv4", framed(VLAN)),
    Case("to the outside", "from_container", "not_overlay", sent(dst=FOREIGN)),
    Case("to a neighbour on the bridge", "from_container", "not_overlay", sent(dst=OTHER)),
    Case("to a subnet of nobody", "from_container", "not_overlay", sent(dst=NOBODY)),
    Case("router alert", "from_container", "ip_options", sent(options=b"\x94\x04\0\0"), approved()),
    Case("header of 4 words", "from_container", "ip_options", sent(ihl=4), approved()),
    Case("first fragment", "from_container", "fragment", sent(fragment=packets.MF), approved()),
    Case("last fragment", "from_container", "fragment", sent(fragment=185), approved()),
    Case("TTL 1", "from_container", "ttl", sent(ttl=1), approved()),
    Case("TTL 0", "from_container", "ttl", sent(ttl=0), approved()),
    Case("1 byte over", "from_container", "oversize", sent(packets.udp(bytes(1423), 1000, 2000)), approved()),
    Case("SYN", "from_container", "tcp_control", sent(segment(SYN), TCP)),
    Case("FIN", "from_container", "tcp_control", sent(segment(FIN | ACK), TCP)),
    Case("RST", "from_container", "tcp_control", sent(segment(RST), TCP)),
    Case("TCP without flags", "from_container", "tcp_control", sent(segment(0), TCP)),
    Case("SYN, bypass always", "from_container", "tcp_control", sent(segment(SYN), TCP),
         node(bypass=Bypass.ALWAYS)),
    Case("first packet", "from_container", "flow_unknown", FRAME),
    Case("other port", "from_container", "flow_unknown", sent(packets.udp(b"", 1000, 2001)), approved()),
    Case("other protocol", "from_container", "flow_unknown", sent(segment(ACK), TCP), approved()),
    Case("approval old", "from_container", "flow_expired", FRAME, approved(age_s=5.1)),
    Case("approval short", "from_container", "flow_expired", FRAME,
         lambda d: (node(approval_ttl_ns=10**9)(d), approved(age_s=1.1)(d))),
    Case("source of nobody", "from_container", "no_endpoint", sent(src=IPv4Address("10.1.1.99")), approved()),
    Case("source of a container on another port", "from_container", "no_endpoint", sent(src=OTHER)),
    Case("from another MAC", "from_container", "no_endpoint",
         FRAME[:6] + b"\2\x99\0\0\0\1" + FRAME[12:], approved()),
    Case("source of the peer", "from_container", "no_endpoint", sent(src=REMOTE)),
    Case("kernel path only", "from_container", "peer_kernel_path", FRAME,
         lambda d: (approved()(d), peer(flags=PEER_F_KERNEL_PATH)(d))),
    Case("host 0, as the agent writes it", "from_container", "peer_kernel_path", FRAME,
         lambda d: (approved()(d), peer(host=IPv4Address(0), flags=PEER_F_KERNEL_PATH)(d))),
    Case("a mark that rules look at", "from_container", "policy_routed", FRAME,
         lambda d: (approved()(d), node(routing_marks=0x4)(d))),
    Case("marks, none of which rules look at", "from_container", "encap", FRAME,
         lambda d: (approved()(d), node(routing_marks=0x8)(d))),
    Case("a mark that rules look at, bypass always", "from_container", "policy_routed", FRAME,
         node(bypass=Bypass.ALWAYS, routing_marks=0x4), {"mark": 0x6}),
    Case("no mark, bypass always", "from_container", "encap", FRAME,
         node(bypass=Bypass.ALWAYS, routing_marks=0x4)),
    Case("bypass off", "from_container", "bypass_off", FRAME,
         lambda d: (approved()(d), node(bypass=Bypass.OFF)(d))),
    Case("frame to another than the gateway", "from_container", "not_routed",
         packets.ether(FRAME[14:], MAC, ELSEWHERE_MAC), approved()),
    Case("broadcast frame", "from_container", "not_routed", b"\xff" * 6 + FRAME[6:], approved()),
    Case("total beyond the packet", "from_container", "truncated", sent(total=37), approved()),
    Case("total below the header", "from_container", "truncated", sent(total=19), approved()),
    Case("Ethernet alone", "from_container", "truncated", FRAME, run={"cut": 14}),
    Case("TCP header cut", "from_container", "truncated", sent(segment(ACK)[:19], TCP)),
    Case("UDP header cut", "from_container", "truncated", sent(bytes(7)), approved()),
    Case("ICMP header cut", "from_container", "truncated", sent(bytes(7), packets.ICMP)),
    Case("ports in the padding", "from_container", "truncated", sent(total=27), approved()),
    Case("damaged header", "from_container", "inner_checksum", FRAME[:24] + b"\x12\x34" + FRAME[26:],
         approved()),
    Case("UDP length beyond the packet", "from_container", "truncated",
         sent(packets.udp(b"payload!", 1000, 2000, length=17)), approved()),
    Case("UDP length below its header", "from_container", "truncated",
         sent(packets.udp(b"payload!", 1000, 2000, length=7)), approved()),
    Case("padding", "from_container", "truncated", FRAME + bytes(6), approved()),
    Case("TCP header of 4 words", "from_container", "truncated",
         patched(sent(segment(ACK), TCP), 46, b"\x40")),
    Case("TCP options beyond the packet", "from_container", "truncated",
         patched(sent(segment(ACK), TCP), 46, b"\x60")),
    Case("ICMP error", "from_container", "protocol", sent(packets.icmp(FRAME[14:42], 3, 0), packets.ICMP)),
    Case("SCTP", "from_container", "protocol", sent(bytes(12), SCTP)),
    Case("encapsulated inside the container", "from_container", "no_room", FRAME, approved(),
         {"encapsulated": True}),
    Case("offload of no known type", "from_container", "no_room", FRAME, approved(),
         {"gso_size": 100, "gso_segs": 3}),
    # As far as that offload, which a test run cannot have: a length of 0 was understood.
    Case("segments that say 0", "from_container", "no_room", sent(segment(ACK), TCP, total=0),
         node(bypass=Bypass.ALWAYS), {"gso_size": 100, "gso_segs": 3}),
    Case("UDP segments that say 0", "from_container", "truncated", sent(total=0),
         node(bypass=Bypass.ALWAYS), {"gso_size": 100, "gso_segs": 3}),
    Case("one packet that says 0", "from_container", "truncated", sent(segment(ACK), TCP, total=0),
         node(bypass=Bypass.ALWAYS)),
    Case("tag beside the data", "from_container", "vlan", FRAME, approved(), {"vlan": 7}),
    Case("no agent yet", "from_container", "not_configured", FRAME, unconfigured),
]  # fmt: skip

IN = [
    Case("approved", "from_wire", "decap", in_wire(), approved()),
    Case("bypass always", "from_wire", "decap", in_wire(), node(bypass=Bypass.ALWAYS)),
    Case("ARP", "from_wire", "not_ipv4", patched(in_wire(), 12, b"\x08\x06")),
    Case("IPv6 inside", "from_wire", "not_ipv4", wire(framed(IPV6))),
    Case("version 6 inside", "from_wire", "not_ipv4", wire(patched(received(), IP_AT, b"\x65")), approved()),
    Case("IPv4 of version 6", "from_wire", "not_overlay", patched(in_wire(), IP_AT, b"\x65")),
    Case("to another MAC address", "from_wire", "not_overlay", wire(received(), dst_mac=ELSEWHERE_MAC),
         approved()),
    Case("outer header damaged", "from_wire", "outer_checksum", patched(in_wire(), 24, b"\xff\xff"),
         approved()),
    Case("outer UDP checksum", "from_wire", "outer_checksum", patched(in_wire(), 40, b"\x12\x34"),
         approved()),
    Case("outer UDP checksum, merged by GRO", "from_wire", "udp_gso", patched(in_wire(), 40, b"\x12\x34"),
         approved(), {"gso_size": 9, "gso_segs": 2}),
    Case("outer header damaged, merged", "from_wire", "outer_checksum", patched(in_wire(), 24, b"\xff\xff"),
         approved(), {"gso_size": 9, "gso_segs": 2}),
    Case("UDP segments", "from_wire", "udp_gso", in_wire(), approved(), {"gso_size": 9, "gso_segs": 2}),
    Case("tag inside the tunnel", "from_wire", "tagged",
         wire(packets.ether(b"\0\0" + received()[12:], PEER_MAC, NODE.vtep_mac, 0x8100)), approved()),
    Case("two tags, both of no VLAN", "from_wire", "tagged", tags(0), approved(), PRIORITY),
    Case("a tag and more than we look behind", "from_wire", "tagged", tags(*[0] * 5), approved(), PRIORITY),
    Case("two tags, options", "from_wire", "tagged", tags(0, options=bytes(40)), approved(), PRIORITY),
    Case("two tags, the inner one of a VLAN", "from_wire", "vlan", tags(7), approved(), PRIORITY),
    Case("two tags, ARP", "from_wire", "not_ipv4", patched(tags(0), 16, b"\x08\x06"), run=PRIORITY),
    Case("two tags, to another host", "from_wire", "not_overlay", tags(0, to=IPv4Address("192.168.50.9")),
         run=PRIORITY),
    Case("two tags, another UDP port", "from_wire", "not_overlay", tags(0, port=4789), run=PRIORITY),
    Case("two tags, cut in the second", "from_wire", "truncated", tags(0), run={**PRIORITY, "cut": 17}),
    Case("stranger, more peers than fit", "from_wire", "peers_incomplete", wire(received(), host=FOREIGN),
         node(flags=NODE_F_PEERS_INCOMPLETE)),
    Case("nobody's subnet, more peers than fit", "from_wire", "peers_incomplete", in_wire(src=NOBODY),
         node(flags=NODE_F_PEERS_INCOMPLETE)),
    Case("our own, more peers than fit", "from_wire", "spoofed_source", in_wire(src=OTHER),
         node(flags=NODE_F_PEERS_INCOMPLETE)),
    Case("peer by the kernel path only", "from_wire", "peer_kernel_path", in_wire(), slow_peer),
    Case("to another host", "from_wire", "not_overlay", wire(received(), to=IPv4Address("192.168.50.9"))),
    Case("another UDP port", "from_wire", "not_overlay", wire(received(), port=4789)),
    Case("TCP to us", "from_wire", "not_overlay", patched(in_wire(), 23, b"\x06")),
    Case("a later fragment", "from_wire", "not_overlay", wire(received(), fragment=185)),
    Case("options inside", "from_wire", "ip_options", in_wire(options=b"\x94\x04\0\0"), approved()),
    Case("fragment inside", "from_wire", "fragment", in_wire(fragment=packets.MF), approved()),
    Case("TTL 1 inside", "from_wire", "ttl", in_wire(ttl=1), approved()),
    Case("SYN", "from_wire", "tcp_control", in_wire(l4=segment(SYN), proto=TCP)),
    Case("FIN", "from_wire", "tcp_control", in_wire(l4=segment(FIN), proto=TCP)),
    Case("RST", "from_wire", "tcp_control", in_wire(l4=segment(RST), proto=TCP)),
    Case("first packet", "from_wire", "flow_unknown", in_wire()),
    Case("approval old", "from_wire", "flow_expired", in_wire(), approved(age_s=5.1)),
    Case("to nobody here", "from_wire", "no_endpoint", in_wire(dst=IPv4Address("10.1.1.99"))),
    Case("through us to the third", "from_wire", "no_endpoint", in_wire(dst=IPv4Address("10.1.3.1"))),
    Case("bypass off", "from_wire", "bypass_off", in_wire(), node(bypass=Bypass.OFF)),
    Case("others behind", "from_wire", "bypass_off", in_wire(), others_behind),
    Case("stranger, others behind", "from_wire", "unknown_vtep", wire(received(), host=FOREIGN),
         others_behind),
    Case("nobody's subnet, others behind", "from_wire", "spoofed_source", in_wire(src=NOBODY), others_behind),
    Case("padding outside", "from_wire", "truncated", in_wire() + bytes(6), approved()),
    Case("UDP length lies", "from_wire", "truncated", wire(received(), udp_len=60), approved()),
    Case("total lies", "from_wire", "truncated", wire(received(), total=60), approved()),
    Case("ports in the padding", "from_wire", "truncated", in_wire(total=27), approved()),
    Case("inner total lies", "from_wire", "truncated", in_wire(total=37), approved()),
    Case("inside, one byte above the MTU", "from_wire", "oversize",
         wire(received(packets.udp(bytes(1423), 2000, 1000))), approved()),
    Case("segments one byte above the MTU", "from_wire", "oversize",
         wire(received(packets.tcp(bytes(2000), 2000, 1000), TCP)), approved(), run={"gso_size": 1411}),
    Case("damaged inner header", "from_wire", "inner_checksum",
         wire(received()[:24] + b"\x12\x34" + received()[26:]), approved()),
    Case("padding inside", "from_wire", "truncated", wire(received() + bytes(6)), approved()),
    Case("outer header cut", "from_wire", "truncated", in_wire(), run={"cut": 33}),
    Case("outer header of 4 words", "from_wire", "truncated", wire(received(), ihl=4)),
    Case("UDP header cut", "from_wire", "truncated", in_wire(), run={"cut": 41}),
    Case("VXLAN header cut", "from_wire", "truncated", in_wire(), run={"cut": 49}),
    Case("inner frame cut", "from_wire", "truncated", in_wire(), run={"cut": 63}),
    Case("inner IP header cut", "from_wire", "truncated", in_wire(), run={"cut": 83}),
    Case("ICMP error", "from_wire", "protocol", in_wire(l4=packets.icmp(b"", 11, 0), proto=packets.ICMP)),
    Case("SCTP", "from_wire", "protocol", in_wire(l4=bytes(12), proto=SCTP)),
    Case("another VNI", "from_wire", "vxlan_header", wire(received(), vni=NODE.vni + 1), approved()),
    Case("no VNI", "from_wire", "vxlan_header", wire(received(), flags=0), approved()),
    Case("VXLAN-GPE", "from_wire", "vxlan_header", wire(received(), flags=0x0C000001), approved()),
    Case("byte behind the VNI", "from_wire", "vxlan_header", patched(in_wire(), 49, b"\1"), approved()),
    Case("inner MAC of another", "from_wire", "inner_mac",
         wire(packets.ether(received()[14:], PEER_MAC, ELSEWHERE_MAC)), approved()),
    Case("inner source MAC is ours", "from_wire", "inner_mac",
         wire(packets.ether(received()[14:], NODE.vtep_mac, NODE.vtep_mac)), approved()),
    Case("CE on Not-ECT", "from_wire", "ecn", wire(received(), tos=3), approved()),
    Case("offload of no known type", "from_wire", "no_room",
         in_wire(l4=packets.tcp(bytes(20), 2000, 1000, flags=packets.ACK), proto=TCP),
         lambda datapath: datapath.approve(flow_in(TCP)), {"gso_size": 9, "gso_segs": 2}),
    Case("segments that say 0 inside", "from_wire", "no_room", in_wire(l4=segment(ACK), proto=TCP, total=0),
         node(bypass=Bypass.ALWAYS), SEGMENTS),
    Case("segments that say 0 outside", "from_wire", "no_room",
         wire(received(l4=segment(ACK), proto=TCP), total=0), node(bypass=Bypass.ALWAYS), SEGMENTS),
    Case("segments that say 0 twice", "from_wire", "no_room",
         wire(received(l4=segment(ACK), proto=TCP, total=0), total=0), node(bypass=Bypass.ALWAYS), SEGMENTS),
    Case("segments with an outer UDP length of 0", "from_wire", "truncated",
         wire(received(l4=segment(ACK), proto=TCP), total=0, udp_len=0), node(bypass=Bypass.ALWAYS),
         SEGMENTS),
    Case("UDP segments that say 0 outside", "from_wire", "udp_gso", wire(received(), total=0),
         node(bypass=Bypass.ALWAYS), SEGMENTS),
    Case("UDP segments that say 0 inside", "from_wire", "truncated", in_wire(total=0),
         node(bypass=Bypass.ALWAYS), SEGMENTS),
    Case("one packet that says 0 inside", "from_wire", "truncated",
         in_wire(l4=segment(ACK), proto=TCP, total=0), node(bypass=Bypass.ALWAYS)),
    Case("one packet that says 0 outside", "from_wire", "truncated",
         wire(received(l4=segment(ACK), proto=TCP), total=0), node(bypass=Bypass.ALWAYS)),
    Case("a stranger's segments that say 0", "from_wire", "unknown_vtep",
         wire(received(l4=segment(ACK), proto=TCP), host=FOREIGN, total=0), run=SEGMENTS),
    Case("tag beside the data", "from_wire", "vlan", in_wire(), approved(), {"vlan": 7}),
    Case("no agent yet", "from_wire", "not_configured", in_wire(), unconfigured),
    Case("source outside the network", "from_wire", "foreign_source", in_wire(src=FOREIGN), approved()),
    Case("source in the network, but not of the pool", "from_wire", "foreign_source", in_wire(src=SERVICE),
         approved()),
    Case("source one behind the pool", "from_wire", "foreign_source", in_wire(src=NODE.pool[1] + 1)),
    Case("source the last of the pool", "from_wire", "spoofed_source", in_wire(src=NODE.pool[1])),
    Case("source one before the pool", "from_wire", "foreign_source", in_wire(src=NOBODY - 1),
         node(pool=(NOBODY, NODE.pool[1]))),
    Case("source the first of the pool", "from_wire", "spoofed_source", in_wire(src=NOBODY),
         node(pool=(NOBODY, NODE.pool[1]))),
    Case("our own subnet, outside of the pool", "from_wire", "spoofed_source", in_wire(src=OTHER),
         node(pool=(NOBODY, NODE.pool[1]))),
    Case("a peer's host in the pool, as itself", "from_wire", "foreign_source",
         wire(received(src=NOBODY), host=NOBODY), peer(host=NOBODY)),
    Case("a peer's host in the pool, as another's", "from_wire", "spoofed_source",
         wire(received(src=NOBODY), host=THIRD.host), peer(host=NOBODY)),
    Case("a peer's host in our subnet, as itself", "from_wire", "spoofed_source",
         wire(received(src=OTHER), host=OTHER), peer(host=OTHER)),
    Case("a peer's host in another's subnet, as itself", "from_wire", "spoofed_source",
         wire(received(src=THIRD_SUBNET[9]), host=THIRD_SUBNET[9]), peer(host=THIRD_SUBNET[9])),
    Case("a host that is no peer", "from_wire", "unknown_vtep", wire(received(), host=FOREIGN), approved()),
    Case("our own address outside", "from_wire", "unknown_vtep", wire(received(), host=NODE.host)),
    Case("subnet of another peer", "from_wire", "spoofed_source", wire(received(), host=THIRD.host),
         approved()),
    Case("our own subnet", "from_wire", "spoofed_source", in_wire(src=OTHER), approved()),
    Case("our own container's address", "from_wire", "spoofed_source", in_wire(src=LOCAL), approved()),
    Case("subnet of nobody", "from_wire", "spoofed_source", in_wire(src=NOBODY), approved()),
    Case("spoofed, bypass off", "from_wire", "spoofed_source", in_wire(src=NOBODY), node(bypass=Bypass.OFF)),
    Case("spoofed, to nobody here", "from_wire", "spoofed_source",
         in_wire(src=NOBODY, dst=IPv4Address("10.1.1.99"))),
    Case("spoofed behind padding", "from_wire", "spoofed_source", in_wire(src=NOBODY) + bytes(6)),
    Case("spoofed fragment", "from_wire", "spoofed_source", in_wire(src=NOBODY, fragment=185)),
    Case("first outer fragment", "from_wire", "outer_fragment", wire(received(), fragment=packets.MF)),
    Case("outer options", "from_wire", "outer_options", wire(received(), options=bytes(4)), approved()),
    Case("all outer options", "from_wire", "outer_options", wire(received(), options=bytes(40)), approved()),
    Case("stranger, not to be pulled", "probe_unpulled", "unreadable", wire(received(), host=FOREIGN)),
    Case("peer, not to be pulled", "probe_unpulled", "unreadable", in_wire(), approved()),
    Case("options, not to be pulled", "probe_unpulled", "unreadable", wire(received(), options=bytes(40))),
    Case("first fragment, not to be pulled", "probe_unpulled", "unreadable",
         wire(received(), fragment=packets.MF)),
    Case("two tags, not to be pulled", "probe_unpulled", "unreadable", tags(0), run=PRIORITY),
    Case("later fragment, not to be pulled", "probe_unpulled", "truncated", wire(received(), fragment=185)),
    Case("ARP, not to be pulled", "probe_unpulled", "truncated", patched(in_wire(), 12, b"\x08\x06")),
    Case("TCP, not to be pulled", "probe_unpulled", "truncated", patched(in_wire(), 23, b"\x06")),
    Case("another UDP port, not to be pulled", "probe_unpulled", "truncated", wire(received(), port=4789)),
    Case("another host's, not to be pulled", "probe_unpulled", "truncated",
         wire(received(), to=IPv4Address("192.168.50.9"))),
    Case("too short for IPv4", "probe_unpulled", "truncated", in_wire(), run={"cut": 33}),
    Case("too short for UDP", "probe_unpulled", "truncated", in_wire(), run={"cut": 37}),
    Case("header of the link below, approved", "from_wire", "decap", in_wire(),
         lambda d: (approved()(d), NO_ETHERNET(d))),
    Case("header of the link below, stranger", "from_wire", "unknown_vtep", wire(received(), host=FOREIGN),
         NO_ETHERNET),
    Case("header of the link below, tags", "from_wire", "tagged", tags(0), NO_ETHERNET, PRIORITY),
    Case("header of the link below, cut", "from_wire", "truncated", in_wire(), NO_ETHERNET, {"cut": 33}),
    Case("header of the link below, not to be pulled", "probe_unpulled", "unreadable", in_wire(),
         NO_ETHERNET),
    Case("no header, not to be pulled", "probe_unpulled", "unreadable", in_wire()[IP_AT:] + bytes(IP_AT),
         NO_ETHERNET),
    Case("no Ethernet, ARP, not to be pulled", "probe_unpulled", "truncated",
         patched(in_wire(), 12, b"\x08\x06"), NO_ETHERNET),
    Case("store_bytes fails", "probe_aborted", "aborted", in_wire()),
]  # fmt: skip


def signed(direction: Direction) -> dict[str, Any]:
    return {"hash": flow_hash(flow_out() if direction == Direction.OUT else flow_in())}


def learning(hook: str, direction: Direction) -> list[Case]:
    """Both learning hooks are one program: the same packet in each direction."""

    def packet(l4: bytes = b"", proto: int = packets.UDP, **ip: Any) -> bytes:
        if direction == Direction.OUT:
            return sent(l4, proto, **{"ttl": 63, **ip})
        return received(l4, proto, **{"ttl": 62, **ip})

    def of(container: IPv4Address) -> bytes:
        return packet(src=container) if direction == Direction.OUT else packet(dst=container)

    run = signed(direction)
    return [
        Case("unchanged", hook, "learned", packet(), run=run),
        Case("unchanged, TTL 1 left", hook, "learned", packet(ttl=1), run=run),
        Case("again", hook, "learned", packet(), approved(age_s=9), run),
        Case("ARP", hook, "not_ipv4", patched(packet(), 12, b"\x08\x06"), run=run),
        Case("options", hook, "ip_options", packet(options=bytes(4)), run=run),
        Case("fragment", hook, "fragment", packet(fragment=packets.MF), run=run),
        Case("SYN", hook, "tcp_control", packet(segment(SYN), TCP), run=run),
        Case("not of a container", hook, "no_endpoint", of(IPv4Address("10.1.1.99")), run=run),
        Case("translated", hook, "changed", packet(packets.udp(b"", 1000, 2002)), run=run),
        Case("never signed", hook, "changed", packet()),
        Case("signed for another port", hook, "changed", of(OTHER), run=run),
        Case("signed with another secret", hook, "changed", packet(), node(flow_seed=1), run),
        Case("bypass off", hook, "bypass_off", packet(), node(bypass=Bypass.OFF), run),
        Case("bypass always", hook, "bypass_off", packet(), node(bypass=Bypass.ALWAYS), run),
        Case("cut", hook, "truncated", packet(), run={"cut": 33}),
        Case("total lies", hook, "truncated", packet(total=37), run=run),
        Case("SCTP", hook, "protocol", packet(bytes(12), SCTP), run=run),
        Case("segments that say 0", hook, "changed", packet(segment(ACK), TCP, total=0), run=SEGMENTS),
        Case("one packet that says 0", hook, "truncated", packet(segment(ACK), TCP, total=0)),
        Case("no agent yet", hook, "not_configured", packet(), unconfigured, run),
    ]


LEARN = [
    *learning("to_overlay", Direction.OUT),
    *learning("to_container", Direction.IN),
    Case("from the outside", "to_container", "not_overlay", received(src=FOREIGN)),
    Case("from the bridge", "to_container", "not_overlay", received(src=OTHER)),
]
CASES = [*OUT, *IN, *LEARN]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.hook}-{case.reason}-{case.name}")
def test_a_packet_leaves_for_its_reason(case: Case, datapath: Datapath) -> None:
    case.setup(datapath)
    result = datapath.run(case.hook, case.packet, **case.run)
    row = next(row for row in REASONS.values() if row.label == case.reason)
    assert (result.reason, result.action) == (case.reason, ACTIONS[row.verdict])
    if result.action != Action.REDIRECT:
        assert result.packet == case.packet[: case.run.get("cut") or None], "passed on, but not as it came"
        marked = case.run.get("mark", 0)
        assert (result.mark, result.priority) == (marked, 0), "marked before netfilter has seen it"


def test_a_flow_that_cannot_be_stored_is_counted() -> None:
    # An LRU makes room by itself, save when every entry of the CPU is in use at that
    # moment. A hash of one entry, and that taken, fails as the LRU then does.
    full = Spec("hash", abi.STRUCTS[4].flow_key.size, abi.STRUCTS[4].flow.size, 1)
    with Datapath(other={"flows": full}) as datapath:
        datapath.furnish().approve(flow_out(sport=1))
        result = datapath.run("to_overlay", FRAME, **signed(Direction.OUT))
        assert (result.reason, result.action) == ("flows_full", Action.UNSPEC)
        assert list(datapath.maps.flows()) == [flow_out(sport=1)]


def test_an_lru_makes_room_by_itself() -> None:
    with Datapath(flows=1) as datapath:
        datapath.furnish()
        for sport in range(64):
            frame = sent(packets.udp(b"", sport, 2000))
            result = datapath.run("to_overlay", frame, hash=flow_hash(flow_out(sport=sport)))
            assert result.reason == "learned"


def test_every_reason_is_provoked() -> None:
    tested = {case.reason for case in CASES} | {"flows_full"}
    tested |= {"outer_length"}  # takes 64 KB, of which a test run allows 16: tests/netns/test_same_way.py
    tested |= {"delivered"}  # takes two programs: test_xdp.py
    tested |= {"learned_translated", "translated"}  # test_translation.py
    tested |= {"not_ipv6"}  # test_families.py
    # Of the tunnel gear: test_tunnel.py.
    tested |= {"tunnel_encap", "tunnel_decap", "not_local", "no_device", "no_neighbour", "super_packet"}
    assert {row.label for row in REASONS.values()} - tested == set()


def test_a_subnet_of_several_hosts_lets_any_peer_through_but_no_stranger(datapath: Datapath) -> None:
    shared = replace(PEER, host=IPv4Address(0), flags=PEER_F_KERNEL_PATH)
    datapath.peer(IPv4Network("10.1.9.0/24"), shared, vtep=False)
    frame = received(src=IPv4Address("10.1.9.7"))
    for host in (PEER.host, THIRD.host):
        assert datapath.run("from_wire", wire(frame, host=host)).reason == "peer_kernel_path"
    assert datapath.run("from_wire", wire(frame, host=FOREIGN)).reason == "unknown_vtep"


def test_a_gso_packet_counts_as_its_segments(datapath: Datapath) -> None:
    result = datapath.run("from_container", FRAME, gso_size=100, gso_segs=7)
    assert result.counted == (7, len(FRAME))
