"""from_container on packets that it carries, and where exactly it stops."""

from __future__ import annotations

import random
import time
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctl.core.abi import FlowKey, PeerStats
from ctl.core.model import Bypass
from tests import packets
from tests.datapath import (
    ENDPOINT,
    LOCAL,
    MONOTONIC_COARSE,
    NODE,
    PEER,
    PEER_MAC,
    PEER_SUBNET,
    REMOTE,
    THIRD,
    Action,
    Datapath,
    flow_hash,
    flow_in,
    flow_out,
    received,
    sent,
    source_port,
    wire,
)
from tests.packets import ACK, FIN, ICMP, PSH, RST, SYN, TCP, UDP, forwarded

ANY_PACKET = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)


def carried(datapath: Datapath, frame: bytes, key: FlowKey) -> packets.Tunnel:
    datapath.approve(key)
    result = datapath.run("from_container", frame)
    assert (result.action, result.reason) == (Action.REDIRECT, "encap")
    return result.tunnel


@pytest.mark.parametrize(
    ("l4", "key"),
    [
        (packets.udp(b"", 1000, 2000), flow_out()),
        (packets.udp(b"question", 0xFFFF, 1), flow_out(sport=0xFFFF, dport=1)),
        (packets.tcp(b"data", 1000, 2000, flags=ACK | PSH), flow_out(TCP)),
        (packets.tcp(b"", 1000, 2000, options=bytes(40)), flow_out(TCP)),
        (packets.icmp(b"ping", 8, 0xBEEF), flow_out(ICMP, 0xBEEF, 8 << 8)),
        (packets.icmp(b"pong", 0, 0xBEEF), flow_out(ICMP, 0xBEEF, 0)),
    ],
    ids=["udp", "udp high port", "tcp", "tcp options", "echo", "echo reply"],
)
def test_the_packet_travels_whole_in_a_right_header(datapath: Datapath, l4: bytes, key: FlowKey) -> None:
    frame = sent(l4, key.proto)
    tunnel = carried(datapath, frame, key)
    assert tunnel.frame == PEER_MAC.packed + NODE.vtep_mac.packed + b"\x08\0" + forwarded(frame[14:])
    assert (tunnel.ip.src, tunnel.ip.dst, tunnel.ip.proto) == (NODE.host, PEER.host, UDP)
    assert (tunnel.ip.ttl, tunnel.ip.fragment, tunnel.ip.valid) == (64, 0, True)
    assert tunnel.ip.total == len(frame) + 36
    assert tunnel.udp_len == len(frame) + 16
    assert (tunnel.dport, tunnel.udp_check) == (NODE.port, 0)
    assert (tunnel.flags, tunnel.vni) == (packets.VXLAN_I, NODE.vni)


def test_the_peers_own_vni_and_port_are_used(datapath: Datapath) -> None:
    datapath.peer(PEER_SUBNET, replace(PEER, vni=0xABCDEF, port=4789))
    tunnel = carried(datapath, sent(), flow_out())
    assert (tunnel.vni, tunnel.dport) == (0xABCDEF, 4789)


def test_a_lease_that_moved_is_followed_at_once(datapath: Datapath) -> None:
    assert carried(datapath, sent(), flow_out()).ip.dst == PEER.host
    datapath.peer(PEER_SUBNET, THIRD)
    assert datapath.run("from_container", sent()).tunnel.ip.dst == THIRD.host


def test_the_ip_id_varies(datapath: Datapath) -> None:
    assert len({carried(datapath, sent(), flow_out()).ip.ident for _ in range(20)}) > 10


@pytest.mark.parametrize("dscp", [0, 46, 63])
@pytest.mark.parametrize(("inner", "outer"), [(0, 0), (1, 1), (2, 2), (3, 2)])
def test_ecn_is_copied_and_dscp_is_not(datapath: Datapath, dscp: int, inner: int, outer: int) -> None:
    tunnel = carried(datapath, sent(tos=dscp << 2 | inner), flow_out(dscp=dscp))
    assert tunnel.ip.tos == outer
    assert packets.Ip.parse(tunnel.frame[14:]).tos == dscp << 2 | inner


@pytest.mark.parametrize(("ttl", "reason"), [(0, "ttl"), (1, "ttl"), (2, "encap"), (255, "encap")])
def test_what_has_no_hop_left_is_not_encapsulated(datapath: Datapath, ttl: int, reason: str) -> None:
    datapath.approve(flow_out())
    assert datapath.run("from_container", sent(ttl=ttl)).reason == reason


@ANY_PACKET
@given(
    tos=st.integers(0, 255),
    ttl=st.integers(2, 255),
    ident=st.integers(0, 0xFFFF),
    fragment=st.sampled_from([0, packets.DF, 0x8000]),
    src=st.integers(1, 254),
    dst=st.integers(0, 255),
    sport=st.integers(0, 0xFFFF),
    dport=st.integers(0, 0xFFFF),
    size=st.integers(0, 1422),
)
def test_any_header_is_right_afterwards(
    datapath: Datapath,
    tos: int,
    ttl: int,
    ident: int,
    fragment: int,
    src: int,
    dst: int,
    sport: int,
    dport: int,
    size: int,
) -> None:
    local, remote = LOCAL - 5 + src, REMOTE - 9 + dst
    datapath.endpoint(local, ENDPOINT)
    body = packets.udp(bytes(size), sport, dport)
    frame = sent(body, src=local, dst=remote, tos=tos, ttl=ttl, ident=ident, fragment=fragment)
    key = flow_out(saddr=local, daddr=remote, sport=sport, dport=dport, dscp=tos >> 2)
    tunnel = carried(datapath, frame, key)
    assert tunnel.ip.valid
    assert tunnel.frame[14:] == forwarded(frame[14:])
    assert tunnel.sport == source_port(flow_hash(key))


@pytest.mark.parametrize("mtu", [576, 1450, 1500])
def test_the_mtu_is_a_limit_to_the_byte(datapath: Datapath, mtu: int) -> None:
    datapath.node(mtu=mtu)
    datapath.approve(flow_out())
    for size, reason in ((mtu - 1, "encap"), (mtu, "encap"), (mtu + 1, "oversize")):
        frame = sent(packets.udp(bytes(size - 28), 1000, 2000))
        assert datapath.run("from_container", frame).reason == reason


@pytest.mark.parametrize(
    ("l4", "proto", "headers"),
    [
        (packets.tcp(bytes(3000), 1000, 2000), TCP, 40),
        (packets.tcp(bytes(3000), 1000, 2000, options=bytes(12)), TCP, 52),
        (packets.udp(bytes(3000), 1000, 2000), UDP, 28),
    ],
    ids=["tcp", "tcp options", "udp"],
)
def test_of_an_offloaded_packet_the_segments_count(
    datapath: Datapath, l4: bytes, proto: int, headers: int
) -> None:
    # A test run cannot say which offload it is, so the kernel refuses room for what fits.
    datapath.approve(flow_out(proto))
    for gso_size, reason in ((NODE.mtu - headers, "no_room"), (NODE.mtu - headers + 1, "oversize")):
        result = datapath.run("from_container", sent(l4, proto), gso_size=gso_size, gso_segs=3)
        assert result.reason == reason


def test_source_ports_spread_over_their_range_and_stay_with_the_flow(datapath: Datapath) -> None:
    low, high = NODE.source_ports
    seen = set()
    for sport in range(1, 500):
        key = flow_out(sport=sport)
        frame = sent(packets.udp(b"", sport, 2000))
        port = carried(datapath, frame, key).sport
        assert port == datapath.run("from_container", frame).tunnel.sport == source_port(flow_hash(key))
        assert low <= port < high
        seen.add((port - low) * 16 // (high - low))
    assert len(seen) == 16


@pytest.mark.parametrize("ports", [(1, 65535), (50000, 50001), (40000, 40000)])
def test_a_narrow_range_of_source_ports_holds(datapath: Datapath, ports: tuple[int, int]) -> None:
    datapath.node(source_ports=ports)
    assert carried(datapath, sent(), flow_out()).sport == source_port(flow_hash(flow_out()), ports)


def test_what_is_left_to_the_kernel_is_signed(datapath: Datapath) -> None:
    for sport in range(100):
        result = datapath.run("probe_from_container", sent(packets.udp(b"", sport, 2000)))
        assert (result.reason, result.hash) == ("flow_unknown", flow_hash(flow_out(sport=sport)))


def test_what_finds_no_room_is_signed_and_has_not_bypassed(datapath: Datapath) -> None:
    datapath.approve(flow_out())
    result = datapath.run("from_container", sent(), encapsulated=True)
    assert (result.reason, result.hash) == ("no_room", flow_hash(flow_out()))
    flow = datapath.maps.flows()[flow_out()]
    assert (flow.packets, flow.last_seen_ns) == (0, 0)
    assert datapath.stats(PEER.host) == PeerStats()


def test_what_bypasses_has_the_mark_and_priority_of_what_was_approved(datapath: Datapath) -> None:
    datapath.approve(flow_out(), mark=7, priority=3)
    result = datapath.run("from_container", sent())
    assert (result.reason, result.mark, result.priority) == ("encap", 7, 3)


def test_signatures_depend_on_every_part_of_the_flow() -> None:
    flows = [flow_out(), flow_in(), flow_out(TCP), flow_out(sport=1), flow_out(dport=1), flow_out(ifindex=2)]
    flows += [flow_out(saddr=LOCAL + 1), flow_out(daddr=REMOTE + 1)]
    hashes = {flow_hash(key, seed) for key in flows for seed in (1, 2)}
    assert len(hashes) == 2 * len(flows)


def test_what_is_none_of_ours_is_not_signed(datapath: Datapath) -> None:
    assert datapath.run("probe_from_container", sent(dst=NODE.host)).hash == 0


@pytest.mark.parametrize("flags", [SYN, SYN | ACK, FIN | ACK, RST, RST | ACK, FIN | SYN | RST])
def test_a_connection_that_opens_or_closes_forgets_both_directions(datapath: Datapath, flags: int) -> None:
    datapath.approve(flow_out(TCP))
    datapath.approve(flow_in(TCP))
    datapath.approve(flow_out(TCP, sport=1001))
    frame = sent(packets.tcp(b"", 1000, 2000, flags=flags), TCP)
    assert datapath.run("from_container", frame).reason == "tcp_control"
    assert list(datapath.maps.flows()) == [flow_out(TCP, sport=1001)]


@pytest.mark.parametrize(("here", "there", "last"), [(0, 46, 0), (46, 0, 46), (46, 8, 0)])
def test_ends_with_dscps_of_their_own_forget_each_other(
    datapath: Datapath, here: int, there: int, last: int
) -> None:
    """`last`: the DSCP of the packet that closes the connection."""
    out, back = flow_out(TCP, dscp=here), flow_in(TCP, dscp=there)
    segment = sent(packets.tcp(b"", 1000, 2000), TCP, tos=here << 2)
    answer = received(packets.tcp(b"", 2000, 1000), TCP, tos=there << 2)
    assert datapath.run("to_overlay", segment, hash=flow_hash(out)).reason == "learned"
    assert datapath.run("to_container", answer, hash=flow_hash(back)).reason == "learned"
    assert datapath.run("from_container", segment).reason == "encap"
    assert datapath.run("from_wire", wire(answer)).reason == "decap"
    fin = sent(packets.tcp(b"", 1000, 2000, flags=FIN | ACK), TCP, tos=last << 2)
    assert datapath.run("from_container", fin).reason == "tcp_control"
    assert datapath.run("from_container", segment).reason == "flow_unknown"
    assert datapath.run("from_wire", wire(answer)).reason == "flow_unknown"
    assert datapath.maps.flows() == {}


def test_a_connection_that_changes_its_dscp_is_approved_anew(datapath: Datapath) -> None:
    before, after = (sent(packets.tcp(b"", 1000, 2000), TCP, tos=dscp << 2) for dscp in (0, 46))
    datapath.approve(flow_out(TCP))
    assert datapath.run("from_container", before).reason == "encap"
    assert datapath.run("from_container", after).reason == "flow_unknown"
    learned = datapath.run("to_overlay", after, hash=flow_hash(flow_out(TCP, dscp=46)))
    assert learned.reason == "learned"
    assert datapath.run("from_container", after).reason == "encap"
    assert datapath.run("from_container", before).reason == "flow_unknown"


def test_datagrams_of_several_dscps_bypass_side_by_side(datapath: Datapath) -> None:
    for dscp in (0, 46):
        datapath.approve(flow_out(dscp=dscp))
    for dscp, reason in ((0, "encap"), (46, "encap"), (8, "flow_unknown")):
        assert datapath.run("from_container", sent(tos=dscp << 2)).reason == reason


def test_a_fin_that_is_too_large_to_bypass_forgets_both_directions(datapath: Datapath) -> None:
    datapath.approve(flow_out(TCP))
    datapath.approve(flow_in(TCP))
    fin = sent(packets.tcp(bytes(NODE.mtu), 1000, 2000, flags=FIN | ACK), TCP)
    assert datapath.run("from_container", fin).reason == "oversize"
    assert datapath.maps.flows() == {}


def test_an_approval_lasts_as_long_as_it_says(datapath: Datapath) -> None:
    for age, reason in ((4.5, "encap"), (5.1, "flow_expired"), (3600, "flow_expired")):
        datapath.approve(flow_out(), age_s=age)
        assert datapath.run("from_container", sent()).reason == reason


def test_a_packet_on_the_kernel_path_renews_the_approval(datapath: Datapath) -> None:
    datapath.approve(flow_out(), age_s=60)
    assert datapath.run("from_container", sent()).reason == "flow_expired"
    assert datapath.run("to_overlay", sent(ttl=63), hash=flow_hash(flow_out())).reason == "learned"
    assert datapath.run("from_container", sent()).reason == "encap"


@pytest.mark.parametrize(
    ("proto", "age_s", "left_s"),
    [
        (UDP, None, 2.1),  # by then conntrack has to see whether it goes on
        (UDP, 1.0, 4.0),  # several on the kernel path at once: as it was
        (UDP, 6.0, 5.0),
        (UDP, 34.0, 5.0),
        (UDP, 36.0, 2.1),  # conntrack has forgotten it, and begins anew
        (TCP, None, 5.0),
        (TCP, 1.0, 5.0),
        (ICMP, None, 5.0),
    ],
)
def test_how_long_an_approval_lasts(
    datapath: Datapath, proto: int, age_s: float | None, left_s: float
) -> None:
    l4 = {UDP: packets.udp(b"", 1000, 2000), TCP: packets.tcp(b"", 1000, 2000), ICMP: packets.icmp(b"", 8, 7)}
    key = flow_out(ICMP, 7, 8 << 8) if proto == ICMP else flow_out(proto)
    if age_s is not None:
        datapath.approve(key, age_s=age_s)
    frame = sent(l4[proto], proto, ttl=63)
    assert datapath.run("to_overlay", frame, hash=flow_hash(key)).reason == "learned"
    age = time.clock_gettime_ns(MONOTONIC_COARSE) - datapath.maps.flows()[key].approved_ns
    assert NODE.approval_ttl_ns - age == pytest.approx(left_s * 1e9, abs=0.5e9)


def test_a_short_approval_is_the_same_for_all(datapath: Datapath) -> None:
    datapath.node(approval_ttl_ns=10**9)
    datapath.run("to_overlay", sent(ttl=63), hash=flow_hash(flow_out()))
    age = time.clock_gettime_ns(MONOTONIC_COARSE) - datapath.maps.flows()[flow_out()].approved_ns
    assert age < 0.5e9


def test_a_flow_counts_what_bypassed(datapath: Datapath) -> None:
    datapath.approve(flow_out())
    for _ in range(3):
        datapath.run("from_container", sent())
    flow = datapath.maps.flows()[flow_out()]
    assert flow.packets == 3
    assert flow.last_seen_ns >= flow.approved_ns


def test_bypass_always_learns_nothing_and_needs_nothing_learned(datapath: Datapath) -> None:
    datapath.node(bypass=Bypass.ALWAYS)
    assert datapath.run("from_container", sent()).reason == "encap"
    assert datapath.maps.flows() == {}


def test_the_peer_is_credited(datapath: Datapath) -> None:
    frame = sent()
    for _ in range(3):
        carried(datapath, frame, flow_out())
    assert datapath.stats(PEER.host) == PeerStats(tx_packets=3, tx_bytes=3 * len(frame))
    assert datapath.stats(THIRD.host) == PeerStats()


def test_cut_at_every_byte_it_never_leaves(datapath: Datapath) -> None:
    frame = sent(packets.tcp(b"some data", 1000, 2000), TCP)
    datapath.approve(flow_out(TCP))
    for length in range(14, len(frame)):
        result = datapath.run("from_container", frame, cut=length)
        assert (result.action, result.reason) == (Action.UNSPEC, "truncated")


def test_any_total_length_is_either_right_or_refused(datapath: Datapath) -> None:
    datapath.approve(flow_out())
    lengths = random.Random(1).sample(range(0x10000), 200) + list(range(60))
    for total in lengths:
        result = datapath.run("from_container", sent(total=total))
        assert result.reason == ("encap" if total == len(sent()) - 14 else "truncated")
