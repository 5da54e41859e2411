"""from_wire on packets that it delivers, and whom it believes."""

from __future__ import annotations

import random
from ipaddress import IPv4Address

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctl.core.abi import FlowKey, PeerStats
from ctl.core.model import Bypass
from tests import packets
from tests.datapath import (
    BRIDGE_MAC,
    ENDPOINT,
    FOREIGN,
    LOCAL,
    MAC,
    NODE,
    OTHER,
    PEER,
    REMOTE,
    THIRD,
    Action,
    Datapath,
    flow_hash,
    flow_in,
    flow_out,
    received,
    wire,
)
from tests.packets import ACK, FIN, ICMP, RST, SYN, TCP, Ip, forwarded

ANY_PACKET = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
ETHERNET = MAC.packed + BRIDGE_MAC.packed + b"\x08\0"


def delivered(datapath: Datapath, packet: bytes, key: FlowKey) -> bytes:
    datapath.approve(key)
    result = datapath.run("from_wire", packet)
    assert (result.action, result.reason) == (Action.REDIRECT, "decap")
    return result.packet


@pytest.mark.parametrize(
    ("l4", "key"),
    [
        (packets.udp(b"", 2000, 1000), flow_in()),
        (packets.tcp(b"data", 2000, 1000, options=bytes(12)), flow_in(TCP)),
        (packets.icmp(b"pong", 0, 7), flow_in(ICMP, 7, 0)),
        (packets.icmp(b"ping", 8, 7), flow_in(ICMP, 7, 8 << 8)),
    ],
    ids=["udp", "tcp", "echo reply", "echo"],
)
def test_the_container_gets_the_packet_as_routed(datapath: Datapath, l4: bytes, key: FlowKey) -> None:
    frame = received(l4, key.proto)
    assert delivered(datapath, wire(frame), key) == ETHERNET + forwarded(frame[14:])


ECN = {
    # inner: what it is for outer Not-ECT, ECT(1), ECT(0), CE (RFC 6040, figure 4, but for
    # ECT(1) on ECT(0): ECT(1) as the kernel does it); None: not delivered by us.
    0: (0, 0, 0, None),
    1: (1, 1, 1, 3),
    2: (2, 1, 2, 3),
    3: (3, 3, 3, 3),
}


@pytest.mark.parametrize("dscp", [0, 46, 63])
@pytest.mark.parametrize("outer", range(4))
@pytest.mark.parametrize("inner", range(4))
def test_ecn_and_dscp(datapath: Datapath, inner: int, outer: int, dscp: int) -> None:
    datapath.approve(flow_in(dscp=dscp))
    frame = received(tos=dscp << 2 | inner)
    result = datapath.run("from_wire", wire(frame, tos=21 << 2 | outer))
    ecn = ECN[inner][outer]
    if ecn is None:
        assert (result.action, result.reason) == (Action.UNSPEC, "ecn")
    else:
        assert result.packet == ETHERNET + forwarded(frame[14:], tos=dscp << 2 | ecn)


@pytest.mark.parametrize(("ttl", "reason"), [(0, "ttl"), (1, "ttl"), (2, "decap"), (255, "decap")])
def test_what_has_no_hop_left_is_not_decapsulated(datapath: Datapath, ttl: int, reason: str) -> None:
    datapath.approve(flow_in())
    assert datapath.run("from_wire", wire(received(ttl=ttl), ttl=1)).reason == reason


@ANY_PACKET
@given(
    tos=st.integers(0, 255),
    outer_tos=st.integers(0, 255),
    ttl=st.integers(2, 255),
    ident=st.integers(0, 0xFFFF),
    src=st.integers(0, 255),
    dst=st.integers(1, 254),
    size=st.integers(0, 1422),
)
def test_any_header_is_right_afterwards(
    datapath: Datapath, tos: int, outer_tos: int, ttl: int, ident: int, src: int, dst: int, size: int
) -> None:
    ecn = ECN[tos & 3][outer_tos & 3]
    if ecn is None:
        return
    local, remote = LOCAL - 5 + dst, REMOTE - 9 + src
    datapath.endpoint(local, ENDPOINT)
    frame = received(
        packets.udp(bytes(size), 2000, 1000), src=remote, dst=local, tos=tos, ttl=ttl, ident=ident
    )
    out = delivered(datapath, wire(frame, tos=outer_tos), flow_in(saddr=remote, daddr=local, dscp=tos >> 2))
    assert out == ETHERNET + forwarded(frame[14:], tos=tos & ~3 | ecn)
    assert Ip.parse(out[14:]).valid


def with_checksum(wanted: int, tos: int) -> bytes:
    """A frame from the peer with an id that gives its header this checksum."""
    others = ~int.from_bytes(received(tos=tos, ident=0)[24:26], "big") & 0xFFFF
    return received(tos=tos, ident=((~wanted & 0xFFFF) - others) % 0xFFFF)


@pytest.mark.parametrize(("inner", "outer"), [(2, 1), (2, 3), (1, 3)])
def test_checksums_with_all_carries_are_right(datapath: Datapath, inner: int, outer: int) -> None:
    lows = {*range(0, 256, 5), 1, 2, 3, 0xFD, 0xFE}
    for wanted in (high << 8 | low for high in (0, 1, 2, 3, 0xFC, 0xFD, 0xFE, 0xFF) for low in lows):
        frame = with_checksum(wanted, inner)
        datapath.approve(flow_in())  # each time: a slow machine needs longer than one lasts
        result = datapath.run("from_wire", wire(frame, tos=outer))
        ecn = ECN[inner][outer]
        assert result.packet[14:] == forwarded(frame[14:], tos=ecn), f"{wanted:04x}"


def test_endpoint_says_where_to(datapath: Datapath) -> None:
    # Another port: another flow, so the approval of the first is not good for it.
    datapath.approve(flow_in(ifindex=77))
    assert datapath.run("from_wire", wire(received())).reason == "flow_unknown"
    datapath.approve(flow_in())
    assert datapath.run("from_wire", wire(received())).reason == "decap"


def test_a_peer_whose_lease_is_gone_is_a_stranger(datapath: Datapath) -> None:
    with Datapath() as empty:
        empty.node()
        empty.endpoint(LOCAL, ENDPOINT)
        empty.approve(flow_in())
        assert empty.run("from_wire", wire(received())).reason == "unknown_vtep"
        empty.vtep(PEER.host)
        assert empty.run("from_wire", wire(received())).reason == "spoofed_source"


@pytest.mark.parametrize("bypass", list(Bypass))
@pytest.mark.parametrize(
    ("src", "host", "reason"),
    [
        (REMOTE, THIRD.host, "spoofed_source"),
        (OTHER, PEER.host, "spoofed_source"),
        (LOCAL, PEER.host, "spoofed_source"),
        (IPv4Address("10.1.200.1"), PEER.host, "spoofed_source"),
        (IPv4Address("10.1.255.255"), PEER.host, "spoofed_source"),
        (IPv4Address("10.0.255.255"), PEER.host, "foreign_source"),
        (IPv4Address("10.2.0.0"), PEER.host, "foreign_source"),
        (REMOTE, FOREIGN, "unknown_vtep"),
    ],
)
def test_the_trust_boundary_holds_in_every_mode(
    datapath: Datapath, bypass: Bypass, src: IPv4Address, host: IPv4Address, reason: str
) -> None:
    datapath.node(bypass=bypass)
    datapath.approve(flow_in(saddr=src))
    result = datapath.run("from_wire", wire(received(src=src), host=host))
    assert result.reason == reason
    assert result.action == (Action.UNSPEC if reason == "foreign_source" else Action.SHOT)


@pytest.mark.parametrize("flags", [SYN, SYN | ACK, FIN | ACK, RST])
def test_a_connection_that_opens_or_closes_forgets_both_directions(datapath: Datapath, flags: int) -> None:
    datapath.approve(flow_out(TCP))
    datapath.approve(flow_in(TCP))
    frame = received(packets.tcp(b"", 2000, 1000, flags=flags), TCP)
    assert datapath.run("from_wire", wire(frame)).reason == "tcp_control"
    assert datapath.maps.flows() == {}


FIN_FRAME = received(packets.tcp(b"", 2000, 1000, flags=FIN | ACK), TCP)


@pytest.mark.parametrize(
    ("packet", "tag", "reason"),
    [
        (wire(FIN_FRAME)[:40] + b"\x12\x34" + wire(FIN_FRAME)[42:], 0, "outer_checksum"),
        (wire(FIN_FRAME), 3 << 13, "vlan"),
        (wire(received(packets.tcp(bytes(NODE.mtu), 2000, 1000, flags=FIN), TCP)), 0, "oversize"),
    ],
    ids=["unverified checksum", "priority tag", "too large"],
)
def test_a_fin_that_only_the_kernel_may_carry_forgets_both_directions(
    datapath: Datapath, packet: bytes, tag: int, reason: str
) -> None:
    datapath.approve(flow_out(TCP))
    datapath.approve(flow_in(TCP, dscp=46))
    assert datapath.run("from_wire", packet, vlan=tag).reason == reason
    assert datapath.maps.flows() == {}


def test_a_fin_in_the_padding_is_none(datapath: Datapath) -> None:
    datapath.approve(flow_in(TCP))
    short = received(packets.tcp(b"", 2000, 1000, flags=FIN | ACK), TCP, total=39)
    assert datapath.run("from_wire", wire(short)).reason == "truncated"
    assert datapath.approved(flow_in(TCP))


def test_a_reset_from_a_stranger_forgets_nothing(datapath: Datapath) -> None:
    datapath.approve(flow_in(TCP))
    frame = received(packets.tcp(b"", 2000, 1000, flags=RST), TCP)
    datapath.run("from_wire", wire(frame, host=THIRD.host))
    datapath.run("from_wire", wire(frame, host=FOREIGN))
    assert list(datapath.maps.flows()) == [flow_in(TCP)]


def test_what_is_left_to_the_kernel_is_signed_for_its_port(datapath: Datapath) -> None:
    for result in (
        datapath.run("probe_from_wire", wire(received())),
        datapath.run("probe_from_wire", wire(received(tos=0), tos=3)),
    ):
        assert result.hash == flow_hash(flow_in())
    assert datapath.run("to_container", received(ttl=63), hash=result.hash).reason == "learned"
    assert datapath.run("from_wire", wire(received())).reason == "decap"


def test_what_finds_no_room_is_signed_and_has_not_bypassed(datapath: Datapath) -> None:
    datapath.approve(flow_in(TCP))
    segments = wire(received(packets.tcp(bytes(20), 2000, 1000, flags=ACK), TCP))
    result = datapath.run("probe_from_wire", segments, gso_size=9, gso_segs=2)
    assert (result.reason, result.hash) == ("no_room", flow_hash(flow_in(TCP)))
    flow = datapath.maps.flows()[flow_in(TCP)]
    assert (flow.packets, flow.last_seen_ns) == (0, 0)
    assert datapath.stats(PEER.host) == PeerStats()


def test_what_netfilter_translated_is_not_learned_as_it_came(datapath: Datapath) -> None:
    signature = datapath.run("probe_from_wire", wire(received())).hash
    translated = received(packets.udp(b"another!", 2000, 8080))
    assert datapath.run("to_container", translated, hash=signature).reason == "changed", "another packet"
    translated = received(packets.udp(b"payload!", 2000, 8080))
    assert datapath.run("to_container", translated, hash=signature).reason == "learned_translated"
    assert list(datapath.maps.flows()) == [flow_in()]


def test_the_peer_is_credited_with_the_inner_bytes(datapath: Datapath) -> None:
    frame = received()
    for _ in range(3):
        delivered(datapath, wire(frame), flow_in())
    assert datapath.stats(PEER.host) == PeerStats(rx_packets=3, rx_bytes=3 * len(frame))
    assert datapath.stats(THIRD.host) == PeerStats()


def test_cut_at_every_byte_it_is_never_delivered(datapath: Datapath) -> None:
    packet = wire(received(packets.tcp(b"some data", 2000, 1000, flags=ACK), TCP))
    datapath.approve(flow_in(TCP))
    for length in range(14, len(packet)):
        result = datapath.run("from_wire", packet, cut=length)
        assert (result.action, result.reason) == (Action.UNSPEC, "truncated")


def test_any_lying_length_is_left_to_the_kernel(datapath: Datapath) -> None:
    datapath.approve(flow_in())
    right = len(wire(received())) - 14
    for length in random.Random(1).sample(range(0x10000), 200) + list(range(right - 60, right + 60)):
        for packet, true in (
            (wire(received(), total=length), right),
            (wire(received(), udp_len=length), right - 20),
        ):
            result = datapath.run("from_wire", packet)
            assert result.reason == ("decap" if length == true else "truncated")


def test_a_fin_seen_only_by_the_other_direction_is_enough(datapath: Datapath) -> None:
    datapath.approve(flow_out(TCP))
    frame = received(packets.tcp(b"", 2000, 1000, flags=FIN | ACK), TCP)
    datapath.run("from_wire", wire(frame))
    assert flow_out(TCP) not in datapath.maps.flows()


def test_nothing_but_the_tunnel_is_touched(datapath: Datapath) -> None:
    """The host's other traffic, VXLAN of others with the same port included."""
    others = [
        wire(received(), vni=1),
        wire(received(), port=53),
        wire(received(), to=IPv4Address("192.168.50.255")),
        wire(b"", flags=0),
        packets.ether(packets.ip(b"\0" * 20, FOREIGN, NODE.host, TCP), MAC, BRIDGE_MAC),
    ]
    for packet in others:
        result = datapath.run("from_wire", packet)
        assert (result.action, result.packet) == (Action.UNSPEC, packet)
