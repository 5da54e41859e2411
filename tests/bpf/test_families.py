"""What both families of addresses have alike: the same programs, compiled for each.

Each test is one of IPv4 and one of IPv6, so that what differs stands in the table of who is who
(tests.datapath.Cast), and nowhere else. What IPv6 has alone is in test_ipv6.py.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import ip_address

import pytest

from ctl.core.abi import NODE_F_PEERS_INCOMPLETE, PEER_F_KERNEL_PATH, Direction, FlowKey, Translation
from tests import packets
from tests.datapath import (
    BRIDGE_MAC,
    INET,
    INET6,
    MAC,
    PEER_MAC,
    Action,
    Cast,
    Datapath,
    flow_hash,
    source_port,
)
from tests.packets import ACK, FIN, PSH, SYN, TCP, UDP, forwarded

QUESTION, ANSWER = packets.udp(b"question", 1000, 2000), packets.udp(b"payload!", 2000, 1000)


@pytest.fixture
def datapath(of_each_family: Datapath) -> Datapath:
    return of_each_family


@pytest.fixture
def cast(datapath: Datapath) -> Cast:
    return datapath.cast


def l4s(cast: Cast) -> list[tuple[bytes, FlowKey]]:
    """Packets that bypass, and their flows out of a container."""
    proto, question, answer = cast.ping
    return [
        (packets.udp(b"", 1000, 2000), cast.flow_out()),
        (packets.udp(b"odd", 0xFFFF, 1), cast.flow_out(sport=0xFFFF, dport=1)),
        (packets.tcp(b"data", 1000, 2000, flags=ACK | PSH), cast.flow_out(TCP)),
        (packets.tcp(b"", 1000, 2000, options=bytes(40)), cast.flow_out(TCP)),
        (packets.icmp(b"ping", question, 0xBEEF), cast.flow_out(proto, 0xBEEF, question << 8)),
        (packets.icmp(b"pong", answer, 0xBEEF), cast.flow_out(proto, 0xBEEF, answer << 8)),
    ]


def test_the_packet_travels_whole_in_a_right_header(datapath: Datapath, cast: Cast) -> None:
    for l4, key in l4s(cast):
        frame = cast.sent(l4, key.proto)
        datapath.approve(key)
        result = datapath.run("from_container", frame)
        assert (result.action, result.reason) == (Action.REDIRECT, "encap")
        tunnel = result.tunnel
        kind = struct.pack("!H", cast.kind)
        assert tunnel.frame == PEER_MAC.packed + cast.node.vtep_mac.packed + kind + forwarded(frame[14:])
        assert (tunnel.ip.src, tunnel.ip.dst, tunnel.ip.proto) == (cast.node.host, cast.peer.host, UDP)
        assert (tunnel.ip.ttl, tunnel.ip.fragment, tunnel.ip.valid) == (64, 0, True)
        assert tunnel.ip.total == len(frame) + 16 + cast.ip_len
        assert (tunnel.udp_len, tunnel.dport) == (len(frame) + 16, cast.node.port)
        assert (tunnel.flags, tunnel.vni) == (packets.VXLAN_I, cast.node.vni)
        assert tunnel.sport == source_port(flow_hash(key))
        assert datapath.stats(cast.peer.host).tx_packets > 0


def test_what_comes_is_delivered_whole(datapath: Datapath, cast: Cast) -> None:
    for l4, key in l4s(cast):
        frame = cast.received(l4, key.proto)
        back = replace(key, saddr=key.daddr, daddr=key.saddr, direction=Direction.IN)
        datapath.approve(back)
        result = datapath.run("from_wire", cast.wire(frame))
        assert (result.action, result.reason) == (Action.REDIRECT, "decap")
        kind = struct.pack("!H", cast.kind)
        assert result.packet == MAC.packed + BRIDGE_MAC.packed + kind + forwarded(frame[14:])


@pytest.mark.parametrize("dscp", [0, 46, 63])
@pytest.mark.parametrize(("inner", "outer"), [(0, 0), (1, 1), (2, 2), (3, 2)])
def test_ecn_is_copied_out_and_dscp_is_not(
    datapath: Datapath, cast: Cast, dscp: int, inner: int, outer: int
) -> None:
    datapath.approve(cast.flow_out(dscp=dscp))
    tunnel = datapath.run("from_container", cast.sent(tos=dscp << 2 | inner)).tunnel
    assert tunnel.ip.tos == outer
    assert packets.Ip.parse(tunnel.frame[14:]).tos == dscp << 2 | inner


@pytest.mark.parametrize(
    ("outer", "inner", "seen"), [(0, 2, 2), (3, 2, 3), (1, 2, 1), (3, 0, None), (0, 0, 0)]
)
def test_ecn_is_combined_on_the_way_in(
    datapath: Datapath, cast: Cast, outer: int, inner: int, seen: int | None
) -> None:
    datapath.approve(cast.flow_in(dscp=46))
    result = datapath.run("from_wire", cast.wire(cast.received(tos=46 << 2 | inner), tos=outer))
    if seen is None:
        assert result.reason == "ecn"
    else:
        assert packets.Ip.parse(result.packet[14:]).tos == 46 << 2 | seen


@pytest.mark.parametrize(("ttl", "reason"), [(0, "ttl"), (1, "ttl"), (2, "encap"), (255, "encap")])
def test_what_has_no_hop_left_is_not_encapsulated(
    datapath: Datapath, cast: Cast, ttl: int, reason: str
) -> None:
    datapath.approve(cast.flow_out())
    assert datapath.run("from_container", cast.sent(ttl=ttl)).reason == reason


def test_the_mtu_is_a_limit_to_the_byte(datapath: Datapath, cast: Cast) -> None:
    datapath.approve(cast.flow_out())
    mtu = cast.node.mtu
    for size, reason in ((mtu, "encap"), (mtu + 1, "oversize")):
        frame = cast.sent(packets.udp(bytes(size - cast.ip_len - 8), 1000, 2000))
        assert datapath.run("from_container", frame).reason == reason


def test_padding_behind_a_packet_is_for_the_kernel(datapath: Datapath, cast: Cast) -> None:
    datapath.approve(cast.flow_out())
    datapath.approve(cast.flow_in())
    assert datapath.run("from_container", cast.sent() + b"\0").reason == "truncated"
    # Of IPv6 the outer checksum counts it, and no inner one.
    why = "truncated" if cast.version == 4 else "outer_checksum"
    assert datapath.run("from_wire", cast.wire(cast.received() + b"\0")).reason == why
    assert datapath.run("from_wire", cast.wire(cast.received()) + b"\0").reason == "truncated"


def test_a_flow_is_learned_where_it_leaves_netfilter(datapath: Datapath, cast: Cast) -> None:
    out, back = cast.flow_out(), cast.flow_in()
    first = datapath.run("probe_from_container", cast.sent())
    assert (first.reason, first.hash) == ("flow_unknown", flow_hash(out))
    left = cast.sent(ttl=63)
    assert datapath.run("to_overlay", left, hash=flow_hash(out)).reason == "learned"
    assert datapath.run("from_container", cast.sent()).reason == "encap"
    assert datapath.run("to_container", cast.received(ttl=63), hash=flow_hash(back)).reason == "learned"
    assert datapath.run("from_wire", cast.wire(cast.received())).reason == "decap"


def test_another_hash_approves_nothing(datapath: Datapath, cast: Cast) -> None:
    result = datapath.run("to_overlay", cast.sent(ttl=63), hash=flow_hash(cast.flow_out(sport=1)))
    assert (result.reason, datapath.maps.flows()) == ("changed", {})


def test_signatures_depend_on_every_bit_of_both_addresses(cast: Cast) -> None:
    key, bits = cast.flow_out(), 8 * len(cast.local.packed)
    changed = [replace(key, saddr=ip_address(int(key.saddr) ^ 1 << bit)) for bit in range(bits - 1)]
    changed += [replace(key, daddr=ip_address(int(key.daddr) ^ 1 << bit)) for bit in range(bits - 1)]
    assert len({flow_hash(each) for each in [key, *changed]}) == len(changed) + 1


@pytest.mark.parametrize("flags", [SYN, FIN | ACK], ids=["SYN", "FIN"])
def test_tcp_control_takes_the_approvals_of_both_directions_back(
    datapath: Datapath, cast: Cast, flags: int
) -> None:
    for key in (cast.flow_out(TCP), cast.flow_in(TCP)):
        datapath.approve(key)
    frame = cast.sent(packets.tcp(b"", 1000, 2000, flags=flags), TCP)
    assert datapath.run("from_container", frame).reason == "tcp_control"
    assert datapath.maps.flows() == {}


def test_strangers_are_refused(datapath: Datapath, cast: Cast) -> None:
    for host, src, reason in (
        (cast.foreign, cast.remote, "unknown_vtep"),
        (cast.third.host, cast.remote, "spoofed_source"),
        (cast.peer.host, cast.local, "spoofed_source"),
        (cast.peer.host, cast.nobody, "spoofed_source"),
        (cast.peer.host, cast.foreign, "foreign_source"),
        (cast.peer.host, cast.service, "foreign_source"),
        (cast.peer.host, cast.peer.host, "foreign_source"),
    ):
        frame = cast.received(src=src)
        assert datapath.run("from_wire", cast.wire(frame, host=host)).reason == reason, (host, src)


def test_nobody_is_refused_while_not_all_peers_are_known(datapath: Datapath, cast: Cast) -> None:
    datapath.node(flags=NODE_F_PEERS_INCOMPLETE)
    for frame in (cast.wire(cast.received(), host=cast.foreign), cast.wire(cast.received(src=cast.nobody))):
        assert datapath.run("from_wire", frame).reason == "peers_incomplete"


def test_the_pool_ends_where_it_says(datapath: Datapath, cast: Cast) -> None:
    first, last = cast.node.pool
    for address, reason in (
        (last, "spoofed_source"),
        (last + 1, "foreign_source"),
        (first - 1, "foreign_source"),
    ):
        assert datapath.run("from_wire", cast.wire(cast.received(src=address))).reason == reason


def test_vxlan_of_others_is_not_touched(datapath: Datapath, cast: Cast) -> None:
    for packet in (
        cast.wire(cast.received(), vni=1),
        cast.wire(cast.received(), port=53),
        cast.wire(cast.received(), to=cast.third.host),
        packets.ether(packets.ip(bytes(40), cast.foreign, cast.node.host, TCP), MAC, BRIDGE_MAC, cast.kind),
    ):
        result = datapath.run("from_wire", packet)
        assert (result.action, result.packet) == (Action.UNSPEC, packet)


def test_a_packet_cut_anywhere_is_not_carried(datapath: Datapath, cast: Cast) -> None:
    datapath.approve(cast.flow_in())
    datapath.approve(cast.flow_out())
    for frame, program in ((cast.sent(), "from_container"), (cast.wire(cast.received()), "from_wire")):
        for length in range(14 + cast.ip_len, len(frame)):
            assert datapath.run(program, frame[:length]).action in (Action.UNSPEC, Action.SHOT), length


def test_the_other_family_is_left_alone(datapath: Datapath, cast: Cast) -> None:
    other = INET6 if cast.version == 4 else INET
    label = f"not_ipv{cast.version}"
    assert datapath.run("from_container", other.sent()).reason == label
    assert datapath.run("to_overlay", other.sent()).reason == label
    assert datapath.run("from_wire", other.wire(other.received())).reason == label
    assert datapath.run("to_container", other.received()).reason == label
    assert datapath.run("from_wire", cast.wire(other.received())).reason == label
    assert datapath.xdp(other.wire(other.received())).reason == label


def test_a_peer_left_to_the_kernel_is_not_bypassed(datapath: Datapath, cast: Cast) -> None:
    datapath.peer(cast.peer_subnet, replace(cast.peer, flags=PEER_F_KERNEL_PATH))
    datapath.approve(cast.flow_out())
    assert datapath.run("from_container", cast.sent()).reason == "peer_kernel_path"


@pytest.mark.parametrize("proto", [TCP, UDP])
def test_an_approved_translation_is_done_to_addresses_ports_and_checksums(
    datapath: Datapath, cast: Cast, proto: int
) -> None:
    body = packets.tcp(b"data", 1000, 80) if proto == TCP else packets.udp(b"data", 1000, 80)
    made = packets.tcp(b"data", 1000, 8080) if proto == TCP else packets.udp(b"data", 1000, 8080)
    key = cast.flow_out(proto, dport=80, daddr=cast.service)
    datapath.approve(key, to=Translation(cast.remote, 1000, 8080))
    datapath.fill("services", cast.service.packed, bytes(8))
    with_sum = packets.with_checksum(body, cast.local, cast.service, proto)
    result = datapath.run("from_container", cast.sent(with_sum, proto, dst=cast.service))
    assert result.reason == "encap"
    wanted = packets.with_checksum(made, cast.local, cast.remote, proto)
    assert result.tunnel.frame[14 + cast.ip_len :] == wanted
    assert packets.Ip.parse(result.tunnel.frame[14:]).dst == cast.remote


def test_a_translation_is_learned_from_the_answer(datapath: Datapath, cast: Cast) -> None:
    answer = cast.received(packets.udp(b"answer", 8080, 1000))
    noted = datapath.run("probe_from_wire", cast.wire(answer), mark=1)
    assert noted.reason == "flow_unknown"
    signature = flow_hash(cast.flow_in(sport=8080))
    now = cast.received(packets.udp(b"answer", 80, 1000), src=cast.service, ttl=63)
    datapath.node()
    result = datapath.run("to_container", now, hash=signature, ingress=cast.node.overlay_ifindex)
    assert result.reason == "learned_translated"
    asked = cast.sent(packets.udp(b"question", 1000, 80), dst=cast.service)
    signed = datapath.run("probe_from_container", asked)
    assert signed.reason == "flow_unknown"
    left = cast.sent(packets.udp(b"question", 1000, 8080), ttl=63)
    assert datapath.run("to_overlay", left, hash=signed.hash).reason == "learned_translated"
    assert datapath.run("from_container", asked).reason == "encap"


def test_xdp_decapsulates_and_tc_delivers(datapath: Datapath, cast: Cast) -> None:
    frame = cast.received()
    datapath.approve(cast.flow_in())
    result = datapath.xdp(cast.wire(frame))
    assert result.reason == "decap"
    assert result.packet[14:] == forwarded(frame[14:])
    assert datapath.deliver(result.packet, result.note).reason == "delivered"
    assert datapath.stats(cast.peer.host).rx_packets == 1
