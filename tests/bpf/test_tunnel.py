"""The tunnel gear: what is left to the kernel path, but for its tunnel header."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest

from ctl.core.abi import NODE_F_OTHERS_BEHIND, NODE_F_PEERS_INCOMPLETE, PEER_F_KERNEL_PATH, Ip, PeerStats
from ctl.core.model import Bypass, MacAddress
from tests import packets
from tests.datapath import (
    FOREIGN,
    LO,
    LOCAL,
    NOBODY,
    NODE,
    PEER,
    PEER_MAC,
    PEER_SUBNET,
    REMOTE,
    THIRD,
    UPLINK,
    Action,
    Datapath,
    Result,
    flow_hash,
    flow_in,
    flow_out,
    received,
    source_port,
    underlay,
    wire,
)
from tests.lab import Lab
from tests.namespace import Namespace
from tests.packets import ACK, FIN, ICMP, IPV6, MF, RST, SCTP, SYN, TCP, UDP

GRE, ESP = 47, 50
THIRD_ADDRESS = IPv4Address("10.1.3.9")
GATEWAY, NEWCOMER = IPv4Address("10.1.1.1"), IPv4Address("10.1.1.99")
STRANGE = MacAddress.parse("02:99:99:99:99:99")
GEAR = {"tunnel_ifindex": LO}
MODES = [Bypass.TUNNEL, Bypass.LEARNED, Bypass.ALWAYS]
SEGMENTS: dict[str, Any] = {"gso_size": 100, "gso_segs": 3}
DATA = packets.tcp(bytes(300), 1000, 2000)

KINDS: dict[str, tuple[bytes, int, dict[str, Any]]] = {
    "UDP": (packets.udp(b"question", 1000, 2000), UDP, {}),
    "SYN": (packets.tcp(b"", 1000, 2000, flags=SYN), TCP, {}),
    "FIN": (packets.tcp(b"", 1000, 2000, flags=FIN | ACK), TCP, {}),
    "RST": (packets.tcp(b"", 1000, 2000, flags=RST), TCP, {}),
    "ICMP error": (packets.icmp(bytes(28), 3, 0), ICMP, {}),
    "SCTP": (bytes(12), SCTP, {}),
    "GRE": (bytes(24), GRE, {}),
    "ESP": (bytes(40), ESP, {}),
    "no L4 header at all": (b"", 253, {}),
    "a first fragment": (packets.udp(bytes(64), 1000, 2000), UDP, {"fragment": MF}),
    "a later fragment": (bytes(64), UDP, {"fragment": 185}),
    "IP options": (packets.udp(b"", 1000, 2000), UDP, {"options": b"\x94\x04\0\0"}),
    "the last hop": (packets.udp(b"", 1000, 2000), UDP, {"ttl": 1}),
    "DSCP and ECN": (packets.udp(b"", 1000, 2000), UDP, {"tos": 46 << 2 | 2}),
    "a header that lies about its length": (packets.udp(b"", 1000, 2000), UDP, {"total": 400}),
}  # fmt: skip
"""L4, protocol, IP fields: what never bypasses as well as what has not been approved."""


class Node:
    """A node with its tunnel gear on, and with a route and a neighbour to its peer."""

    def __init__(self, datapath: Datapath, place: Namespace) -> None:
        self.datapath, self._place, self.maps = datapath, place, datapath.maps
        self.approve, self.approved, self.stats = datapath.approve, datapath.approved, datapath.stats
        self.node()
        self.peer()

    def node(self, **changes: Any) -> None:
        self.datapath.node(**{**GEAR, **changes})

    def peer(self, **changes: Any) -> None:
        self.datapath.peer(PEER_SUBNET, replace(PEER, **{"ifindex": UPLINK, **changes}))

    def run(self, program: str, packet: bytes, **beside: Any) -> Result:
        return self._place.call(lambda: self.datapath.run(program, packet, **beside))


@pytest.fixture(scope="module")
def house() -> Iterator[Namespace]:
    """The namespace of nodes."""
    with Lab() as lab:
        yield underlay(lab)


@pytest.fixture
def geared(datapath: Datapath, house: Namespace) -> Node:
    """The usual node, its tunnel gear on."""
    return Node(datapath, house)


def leaving(
    l4: bytes = b"",
    proto: int = UDP,
    *,
    src: Ip = LOCAL,
    dst: Ip = REMOTE,
    by: MacAddress = NODE.vtep_mac,
    to: MacAddress = PEER_MAC,
    **ip: Any,
) -> bytes:
    """A frame as it comes to the vxlan device, routed and through netfilter."""
    body = l4 or packets.udp(b"payload!", 1000, 2000)
    return packets.ether(packets.ip(body, src, dst, proto, **{"ttl": 63, **ip}), by, to)


def sent_on(result: Result, frame: bytes, *, host: Ip = PEER.host) -> packets.Tunnel:
    """It went to the uplink in its tunnel header, else as it came."""
    assert (result.action, result.gear) == (Action.REDIRECT, "tunnel_encap")
    tunnel = result.tunnel
    assert tunnel.frame == frame
    assert (tunnel.ip.src, tunnel.ip.dst, tunnel.ip.proto) == (NODE.host, host, UDP)
    assert (tunnel.ip.ttl, tunnel.ip.fragment, tunnel.ip.valid) == (64, 0, True)
    assert (tunnel.ip.total, tunnel.udp_len) == (len(frame) + 36, len(frame) + 16)
    assert (tunnel.dport, tunnel.udp_check, tunnel.flags, tunnel.vni) == (
        NODE.port, 0, packets.VXLAN_I, NODE.vni,
    )  # fmt: skip
    return tunnel


@pytest.mark.parametrize("bypass", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_leaves_netfilter_gets_its_tunnel_header(geared: Node, kind: str, bypass: Bypass) -> None:
    geared.node(bypass=bypass)
    l4, proto, ip = KINDS[kind]
    frame = packets.ether(
        packets.ipv4(l4, LOCAL, REMOTE, proto, **{"ttl": 63, **ip}), NODE.vtep_mac, PEER_MAC
    )
    result = geared.run("to_overlay", frame)
    tunnel = sent_on(result, frame)
    assert tunnel.ip.tos == ip.get("tos", 0) & 3


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (leaving(packets.udp(b"", 1000, 2002)), "changed"),
        (leaving(src=NODE.host), "no_endpoint"),
        (leaving(src=GATEWAY), "no_endpoint"),
        (leaving(src=FOREIGN), "no_endpoint"),
    ],
    ids=["translated", "the host's own", "masqueraded", "routed through"],
)
def test_whatever_netfilter_has_let_pass_is_sent_so(geared: Node, frame: bytes, reason: str) -> None:
    result = geared.run("to_overlay", frame, hash=flow_hash(flow_out()))
    assert result.reason == reason
    sent_on(result, frame)


def test_a_flow_is_approved_all_the_same_and_keeps_its_source_port(geared: Node) -> None:
    result = geared.run("to_overlay", leaving(), hash=flow_hash(flow_out()))
    assert result.reason == "learned"
    assert geared.approved(flow_out())
    assert sent_on(result, leaving()).sport == source_port(flow_hash(flow_out()))


def test_without_a_signature_the_kernels_hash_says_the_source_port(geared: Node) -> None:
    ports = set()
    for sport in range(100):
        frame = leaving(packets.udp(b"", sport, 2000), src=NODE.host)
        first, second = (geared.run("probe_to_overlay", frame) for _ in range(2))
        port = sent_on(first, frame).sport
        assert first.hash
        assert port == source_port(first.hash) == sent_on(second, frame).sport
        ports.add(port)
    assert len(ports) > 80


def test_fragments_of_a_datagram_have_one_source_port(geared: Node) -> None:
    pieces = [leaving(packets.udp(bytes(64), 1000, 2000), fragment=MF), leaving(bytes(64), fragment=185)]
    assert len({sent_on(geared.run("to_overlay", piece), piece).sport for piece in pieces}) == 1


@pytest.mark.parametrize(("inner", "outer"), [(0, 0), (1, 1), (2, 2), (3, 2)])
def test_ecn_is_copied_as_the_device_copies_it(geared: Node, inner: int, outer: int) -> None:
    frame = leaving(tos=46 << 2 | inner)
    assert sent_on(geared.run("to_overlay", frame), frame).ip.tos == outer


def test_the_peers_own_vni_and_port_are_used(geared: Node) -> None:
    geared.peer(vni=0xABCDEF, port=4789)
    tunnel = geared.run("to_overlay", leaving()).tunnel
    assert (tunnel.vni, tunnel.dport) == (0xABCDEF, 4789)


def test_what_is_sent_is_the_peers(geared: Node) -> None:
    for _ in range(3):
        geared.run("to_overlay", leaving())
    assert geared.stats(PEER.host) == PeerStats(tx_packets=3, tx_bytes=3 * len(leaving()))
    assert geared.stats(THIRD.host) == PeerStats()


def peer(**changes: Any) -> Callable[[Node], None]:
    return lambda node: node.peer(**changes)


slow_peer = peer(flags=PEER_F_KERNEL_PATH)


def nothing(_: Node) -> None: ...


LEFT_TO_THE_DEVICE: dict[str, tuple[str, bytes, dict[str, Any], Callable[[Node], None]]] = {
    "IPv6": ("not_ipv4", leaving()[:12] + b"\x86\xdd" + bytes(40), {}, nothing),
    "ARP": ("not_ipv4", leaving()[:12] + b"\x08\x06" + bytes(28), {}, nothing),
    "a VLAN tag": ("vlan", leaving(), {"vlan": 7}, nothing),
    "for nobody's subnet": ("not_overlay", leaving(dst=NOBODY), {}, nothing),
    "by a route of someone's through the peer": ("not_overlay", leaving(dst=FOREIGN), {}, nothing),
    "to another MAC than the peer's": ("inner_mac", leaving(to=STRANGE), {}, nothing),
    "to the broadcast MAC": ("inner_mac", leaving(to=MacAddress(b"\xff" * 6)), {}, nothing),
    "from another MAC than the device's": ("inner_mac", leaving(by=STRANGE), {}, nothing),
    "to a peer that only the kernel reaches": ("peer_kernel_path", leaving(), {}, slow_peer),
    "to a peer without a next hop": ("peer_kernel_path", leaving(), {}, peer(next_hop=None)),
    "by another interface than the FIB's": ("peer_kernel_path", leaving(), {}, peer(ifindex=LO)),
    "by another next hop than the FIB's": (
        "peer_kernel_path", leaving(), {}, peer(next_hop=IPv4Address("192.168.50.254"))),
    "to a host without a route": (
        "peer_kernel_path", leaving(), {}, peer(host=FOREIGN, next_hop=FOREIGN)),
    "to a next hop whose MAC is not known": (
        "no_neighbour", leaving(), {}, peer(host=THIRD.host, next_hop=THIRD.host)),
    "one byte above the MTU": ("oversize", leaving(bytes(1431)), {}, nothing),
    "segments one byte above the MTU": (
        "oversize", leaving(DATA, TCP), {"gso_size": 1411, "gso_segs": 2}, nothing),
    "segments with TCP options above the MTU": (
        "oversize", leaving(packets.tcp(bytes(300), 1, 2, options=bytes(40)), TCP),
        {"gso_size": 1371, "gso_segs": 2}, nothing),
    "UDP segments one byte above the MTU": (
        "oversize", leaving(), {"gso_size": 1423, "gso_segs": 2}, nothing),
    "segments of another protocol": ("protocol", leaving(bytes(300), SCTP), SEGMENTS, nothing),
    "segments with IP options": (
        "protocol", leaving(DATA, TCP, options=b"\x94\x04\0\0"), SEGMENTS, nothing),
    "what is in a tunnel already": ("no_room", leaving(), {"encapsulated": True}, nothing),
    "cut in the IP header": ("truncated", leaving(), {"cut": 33}, nothing),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT_TO_THE_DEVICE)
def test_the_device_sends(geared: Node, name: str) -> None:
    gear, frame, run, setup = LEFT_TO_THE_DEVICE[name]
    setup(geared)
    result = geared.run("to_overlay", frame, **run)
    assert (result.action, result.gear) == (Action.UNSPEC, gear)
    assert result.packet == frame[: run.get("cut") or None]
    assert geared.stats(PEER.host) == PeerStats()


@pytest.mark.parametrize(
    ("l4", "proto", "size"),
    [
        (DATA, TCP, 1410),
        (packets.tcp(bytes(300), 1, 2, options=bytes(40)), TCP, 1370),
        (packets.udp(bytes(300), 1, 2), UDP, 1422),
    ],
    ids=["TCP", "TCP options", "UDP"],
)
def test_segments_of_mtu_size_fit(geared: Node, l4: bytes, proto: int, size: int) -> None:
    # A test run cannot say which offload it is, so the kernel refuses room for what fits.
    result = geared.run("to_overlay", leaving(l4, proto), gso_size=size, gso_segs=2)
    assert (result.action, result.gear) == (Action.UNSPEC, "no_room")


def test_a_packet_of_mtu_size_fits(geared: Node) -> None:
    frame = leaving(bytes(1430), 253)
    sent_on(geared.run("to_overlay", frame), frame)


@pytest.mark.parametrize(
    "packet", [leaving(), leaving(packets.tcp(b"", 1, 2, flags=SYN), TCP)], ids=["UDP", "SYN"]
)
def test_without_a_device_the_gear_is_off(datapath: Datapath, packet: bytes) -> None:
    for hook, frame in (("to_overlay", packet), ("from_wire", wire(received()))):
        result = datapath.run(hook, frame)
        assert (result.action, result.gear, result.packet) == (Action.UNSPEC, "", frame)


def let_in(result: Result, frame: bytes, tos: int | None = None) -> None:
    """Its tunnel is off, and netfilter gets it as the device would have given it."""
    assert (result.action, result.gear) == (Action.REDIRECT, "tunnel_decap")
    if tos is not None:
        ip = bytearray(frame[14:34])
        ip[1], ip[10:12] = tos, b"\0\0"
        ip[10:12] = packets.checksum(bytes(ip)).to_bytes(2, "big")
        frame = frame[:14] + bytes(ip) + frame[34:]
    assert result.packet == frame


@pytest.mark.parametrize("bypass", MODES)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "RST"])
def test_what_a_peer_sends_gets_into_netfilter(datapath: Datapath, kind: str, bypass: Bypass) -> None:
    datapath.node(**GEAR, bypass=bypass)
    l4, proto, ip = KINDS[kind]
    frame = packets.ether(packets.ipv4(l4, REMOTE, LOCAL, proto, **ip), PEER_MAC, NODE.vtep_mac)
    result = datapath.run("from_wire", wire(frame))
    if result.reason == "decap":
        assert bypass is Bypass.ALWAYS
    else:
        let_in(result, frame)


@pytest.mark.parametrize("flags", [SYN, SYN | ACK, ACK, FIN | ACK, FIN])
@pytest.mark.parametrize("options", [b"", bytes(12), bytes(40)])
def test_tcp_without_data_gets_into_netfilter(geared: Node, flags: int, options: bytes) -> None:
    frame = received(packets.tcp(b"", 2000, 1000, flags=flags, options=options), TCP)
    let_in(geared.run("from_wire", wire(frame)), frame)


@pytest.mark.parametrize("target", [LOCAL, GATEWAY, NEWCOMER, NODE.subnet[0], NODE.subnet[255]])
def test_all_of_the_nodes_subnet_is_local(geared: Node, target: IPv4Address) -> None:
    frame = received(dst=target)
    let_in(geared.run("from_wire", wire(frame)), frame)


@pytest.mark.parametrize("outer", range(4))
@pytest.mark.parametrize("inner", range(4))
def test_ecn_is_combined_as_the_device_combines_it(geared: Node, inner: int, outer: int) -> None:
    frame = received(tos=46 << 2 | inner)
    result = geared.run("from_wire", wire(frame, tos=outer))
    if (inner, outer) == (0, 3):
        assert (result.action, result.gear, result.packet) == (Action.UNSPEC, "ecn", wire(frame, tos=outer))
        return
    combined = 3 if outer == 3 else 1 if (inner, outer) == (2, 1) else inner
    let_in(result, frame, 46 << 2 | combined)


def test_a_damaged_header_stays_damaged(geared: Node) -> None:
    frame = received(tos=2)[:24] + b"\x12\x34" + received(tos=2)[26:]
    result = geared.run("from_wire", wire(frame, tos=3))
    assert (result.reason, result.gear) == ("inner_checksum", "tunnel_decap")
    assert not packets.Ip.parse(result.packet[14:]).valid


def test_the_signature_goes_along_and_approves_the_flow(geared: Node) -> None:
    result = geared.run("probe_from_wire", wire(received()))
    assert (result.reason, result.gear, result.hash) == ("flow_unknown", "tunnel_decap", flow_hash(flow_in()))
    assert geared.run("to_container", received(ttl=63), hash=result.hash).reason == "learned"
    assert geared.run("from_wire", wire(received())).reason == "decap"


def test_what_is_received_is_the_peers(geared: Node) -> None:
    for _ in range(3):
        geared.run("from_wire", wire(received()))
    assert geared.stats(PEER.host) == PeerStats(rx_packets=3, rx_bytes=3 * len(received()))


def segment(flags: int = ACK, data: bytes = b"data", **ip: Any) -> bytes:
    """TCP from the peer."""
    return wire(received(packets.tcp(data, 2000, 1000, flags=flags), TCP, **ip))


TAKEN_BY_THE_DEVICE: dict[str, tuple[str, bytes, dict[str, Any]]] = {
    "to the world": ("not_local", wire(received(dst=FOREIGN)), {}),
    "to the host's address": ("not_local", wire(received(dst=NODE.host)), {}),
    "to another peer": ("not_local", wire(received(dst=THIRD_ADDRESS)), {}),
    "to nobody's subnet": ("not_local", wire(received(dst=NOBODY)), {}),
    "to all": ("not_local", wire(received(dst=IPv4Address("255.255.255.255"))), {}),
    "UDP segments": ("udp_gso", wire(received()), SEGMENTS),
    "segments of another protocol": ("udp_gso", wire(received(bytes(300), SCTP)), SEGMENTS),
    "segments to a container": ("super_packet", segment(data=bytes(300)), SEGMENTS),
    "segments to an unknown container": ("super_packet", segment(data=bytes(300), dst=NEWCOMER), SEGMENTS),
    "segments to the gateway": ("super_packet", segment(data=bytes(300), dst=GATEWAY), SEGMENTS),
    "data to a container": ("super_packet", segment(), {}),
    "data to an unknown container": ("super_packet", segment(dst=NEWCOMER), {}),
    "data to the gateway": ("super_packet", segment(dst=GATEWAY), {}),
    "SYN with data": ("super_packet", segment(SYN), {}),
    "FIN with data": ("super_packet", segment(FIN | ACK), {}),
    "RST, which takes what has come before away": ("super_packet", segment(RST, b""), {}),
    "RST with ACK": ("super_packet", segment(RST | ACK, b""), {}),
    "TCP with IP options": ("super_packet", segment(SYN, b"", options=bytes(4)), {}),
    "a first fragment of TCP": ("super_packet", segment(SYN, b"", fragment=MF), {}),
    "a later fragment of TCP": ("super_packet", segment(SYN, b"", fragment=185), {}),
    "a TCP header cut": ("super_packet", wire(received(bytes(19), TCP)), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN_BY_THE_DEVICE)
def test_the_device_takes_the_tunnel_off(geared: Node, name: str) -> None:
    gear, packet, run = TAKEN_BY_THE_DEVICE[name]
    result = geared.run("from_wire", packet, **run)
    assert (result.action, result.gear, result.packet) == (Action.UNSPEC, gear, packet)
    assert geared.stats(PEER.host) == PeerStats()


def test_a_device_that_is_gone_gets_nothing(datapath: Datapath) -> None:
    datapath.node(tunnel_ifindex=9999)
    result = datapath.run("from_wire", wire(received()))
    assert (result.action, result.gear, result.packet) == (Action.UNSPEC, "no_device", wire(received()))


def patched(packet: bytes, at: int, value: bytes) -> bytes:
    return packet[:at] + value + packet[at + len(value) :]


NOT_FOR_THE_GEAR: dict[str, tuple[str, bytes, dict[str, Any]]] = {
    "a stranger": ("unknown_vtep", wire(received(), host=FOREIGN), {}),
    "our own address outside": ("unknown_vtep", wire(received(), host=NODE.host), {}),
    "a source of another peer": ("spoofed_source", wire(received(), host=THIRD.host), {}),
    "a source of ours": ("spoofed_source", wire(received(src=LOCAL)), {}),
    "a source of nobody": ("spoofed_source", wire(received(src=NOBODY)), {}),
    "a source outside of the network": ("foreign_source", wire(received(src=FOREIGN)), {}),
    "a first outer fragment": ("outer_fragment", wire(received(), fragment=MF), {}),
    "outer options": ("outer_options", wire(received(), options=bytes(4)), {}),
    "an outer UDP checksum": ("outer_checksum", patched(wire(received()), 40, b"\x12\x34"), {}),
    "a damaged outer header": ("outer_checksum", patched(wire(received()), 24, b"\xff\xff"), {}),
    "padding": ("truncated", wire(received()) + bytes(6), {}),
    "cut in the inner header": ("truncated", wire(received()), {"cut": 83}),
    "a priority tag": ("vlan", wire(received()), {"vlan": 3 << 13}),
    "another VNI": ("vxlan_header", wire(received(), vni=NODE.vni + 1), {}),
    "an inner MAC of nobody": ("inner_mac", wire(packets.ether(received()[14:], PEER_MAC, STRANGE)), {}),
    "an inner MAC of ours": (
        "inner_mac", wire(packets.ether(received()[14:], NODE.vtep_mac, NODE.vtep_mac)), {}),
    "IPv6": ("not_ipv4", wire(patched(received(), 12, IPV6.to_bytes(2, "big"))), {}),
    "a tag inside": (
        "tagged", wire(packets.ether(b"\0\0" + received()[12:], PEER_MAC, NODE.vtep_mac, 0x8100)), {}),
}  # fmt: skip


@pytest.mark.parametrize("bypass", MODES)
@pytest.mark.parametrize("name", NOT_FOR_THE_GEAR)
def test_who_is_refused_or_left_to_the_device_stays_so(datapath: Datapath, bypass: Bypass, name: str) -> None:
    datapath.node(**GEAR, bypass=bypass)
    reason, packet, run = NOT_FOR_THE_GEAR[name]
    result = datapath.run("from_wire", packet, **run)
    assert (result.reason, result.gear) == (reason, "")
    assert result.packet == packet[: run.get("cut") or None]
    assert datapath.stats(PEER.host) == PeerStats()


def test_a_peer_that_only_the_kernel_reaches_is_left_to_it(geared: Node) -> None:
    slow_peer(geared)
    result = geared.run("from_wire", wire(received()))
    assert (result.reason, result.gear) == ("peer_kernel_path", "")


def test_nobody_is_let_in_by_the_gear_while_not_all_peers_fit(datapath: Datapath) -> None:
    datapath.node(**GEAR, flags=NODE_F_PEERS_INCOMPLETE)
    for packet in (wire(received(), host=FOREIGN), wire(received(src=NOBODY))):
        result = datapath.run("from_wire", packet)
        assert (result.reason, result.gear) == ("peers_incomplete", "")


def test_in_the_tunnel_mode_nothing_bypasses_and_nothing_is_learned(datapath: Datapath) -> None:
    datapath.node(**GEAR, bypass=Bypass.TUNNEL)
    datapath.approve(flow_out())
    datapath.approve(flow_in())
    frame = packets.ether(leaving()[14:], NODE.vtep_mac, PEER_MAC)
    for hook, packet in (("from_container", frame), ("to_container", received())):
        result = datapath.run(hook, packet)
        assert (result.action, result.reason, result.gear) == (Action.UNSPEC, "bypass_off", "")
    assert datapath.run("to_overlay", frame, hash=flow_hash(flow_out(dport=9))).reason == "bypass_off"
    result = datapath.run("probe_from_wire", wire(received()))
    assert (result.reason, result.gear, result.hash) == ("bypass_off", "tunnel_decap", 0)
    assert datapath.xdp(wire(received())).reason == "bypass_off"
    assert set(datapath.maps.flows()) == {flow_out(), flow_in()}


def test_what_a_connection_of_the_host_takes_ends_here(geared: Node, house: Namespace) -> None:
    """Another one to the same address may be for whom the host masquerades, and leave again."""
    for address in (GATEWAY, REMOTE):
        house.ip("address", "replace", f"{address}/32", "dev", "lo")

    def listen() -> socket.socket:
        return socket.create_server((str(GATEWAY), 2000))

    def gears(sport: int, dport: int) -> list[str]:
        """Of segments in one packet, of data and of RST."""
        none: dict[str, Any] = {}
        kinds = ((ACK, bytes(300), SEGMENTS), (ACK, b"data", none), (RST, b"", none))
        return [
            geared.run(
                "from_wire",
                wire(received(packets.tcp(data, sport, dport, flags=flags), TCP, dst=GATEWAY)),
                **beside,
            ).gear
            for flags, data, beside in kinds
        ]

    left, taken = ["super_packet"] * 3, ["no_room", "tunnel_decap", "tunnel_decap"]
    with ExitStack() as stack:
        door = stack.enter_context(closing(house.call(listen)))
        assert gears(1000, 2000) == left, "a listener has no connection with it"
        caller = stack.enter_context(closing(house.call(socket.socket)))
        caller.bind((str(REMOTE), 1000))
        caller.connect((str(GATEWAY), 2000))
        stack.enter_context(closing(door.accept()[0]))
        # Only that a test run cannot say which offload it is.
        assert gears(1000, 2000) == taken
        assert gears(1001, 2000) == left
        assert gears(1000, 2001) == left


def test_a_neighbour_that_has_gone_is_left_to_the_kernel_to_ask_for(geared: Node, house: Namespace) -> None:
    """Waiting for ARP the packet would go on by the route it has, which is about its inner addresses."""
    change = ("dev", "uplink", "lladdr", "02:03:00:00:00:02")
    assert geared.run("to_overlay", leaving()).gear == "tunnel_encap"
    for state, gear in (("stale", "tunnel_encap"), ("failed", "no_neighbour"), ("permanent", "tunnel_encap")):
        house.ip("neigh", "replace", str(PEER.next_hop), *change, "nud", state)
        assert geared.run("to_overlay", leaving()).gear == gear


def test_a_mark_that_rules_look_at_is_for_the_kernel_to_route(geared: Node) -> None:
    geared.node(routing_marks=0x30)
    for mark, gear in ((0, "tunnel_encap"), (0x40, "tunnel_encap"), (0x10, "policy_routed")):
        result = geared.run("to_overlay", leaving(), mark=mark)
        assert (result.gear, result.mark) == (gear, mark)


def test_programs_of_others_behind_ours_on_the_uplink_see_what_comes_in(geared: Node) -> None:
    geared.node(flags=NODE_F_OTHERS_BEHIND)
    result = geared.run("from_wire", wire(received()))
    assert (result.action, result.reason, result.gear) == (Action.UNSPEC, "bypass_off", "")
    sent_on(geared.run("to_overlay", leaving()), leaving())
