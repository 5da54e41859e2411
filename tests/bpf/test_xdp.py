"""from_wire_xdp: for the same reasons as from_wire, and in the end the same packets."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctl.core.abi import Event, Hook, PeerStats
from ctl.core.model import Bypass, MacAddress
from ctl.kernel.bpf.maps import RING_BYTES
from ctl.kernel.bpf.ring import Ring
from ctl.kernel.bpf.source import XDP, XDP_FRAGS
from tests import packets
from tests.bpf.conftest import PORT
from tests.bpf.test_golden import DELIVERED, FLOWS, FRAMES, ON_B, ON_WIRE, TWO, A, B, Flow, frame, key, peer
from tests.bpf.test_reasons import IN, Case, approved
from tests.datapath import (
    BRIDGE_MAC,
    ENDPOINT,
    FOREIGN,
    LO,
    LOCAL,
    MAC,
    NODE,
    PEER,
    THIRD,
    UPLINK_MAC,
    Action,
    Datapath,
    Result,
    XdpAction,
    flow_in,
    flow_out,
    received,
    wire,
)
from tests.fuzz.check import VERDICTS, XDP_ACTIONS, check_xdp
from tests.fuzz.mutator import draw_wire, furnish
from tests.namespace import Namespace
from tests.packets import ACK, FIN, RST, SYN, TCP, VLAN

ETHERNET = MAC.packed + BRIDGE_MAC.packed + b"\x08\0"
ONLY_OF_AN_SKB = {"vlan", "gso_size", "encapsulated"}
UNTOUCHED = (Action.UNSPEC, "not_overlay")

SAME = [case for case in IN if case.hook == "from_wire" and not case.run.keys() & ONLY_OF_AN_SKB]
TAGGED_FRAME = wire(received())[:12] + struct.pack("!HH", VLAN, 7) + wire(received())[12:]


@pytest.mark.parametrize("program", [XDP, XDP_FRAGS])
@pytest.mark.parametrize("case", SAME, ids=lambda case: f"{case.reason}-{case.name}")
def test_a_packet_leaves_for_the_same_reason_as_at_tc(case: Case, program: str, datapath: Datapath) -> None:
    case.setup(datapath)
    packet = case.packet[: case.run.get("cut")]
    result = datapath.xdp(packet, program=program)
    assert (result.reason, result.action) == (case.reason, XDP_ACTIONS[VERDICTS[case.reason]])
    if result.reason != "decap":
        assert (result.packet, result.note) == (packet, b""), "left to from_wire, but not as it came"


def test_no_reason_is_left_out() -> None:
    told_by_an_skb = {"udp_gso", "no_room", "vlan", "unreadable", "aborted"}
    assert {case.reason for case in IN} - {case.reason for case in SAME} == told_by_an_skb


def test_a_tag_in_the_data_is_left_to_tc_which_sees_it_beside(datapath: Datapath) -> None:
    approved()(datapath)
    result = datapath.xdp(TAGGED_FRAME)
    assert (result.action, result.reason, result.packet) == (XdpAction.PASS, "vlan", TAGGED_FRAME)


def test_without_room_for_the_note_tc_does_it_all(datapath: Datapath) -> None:
    approved()(datapath)
    try:
        result = datapath.xdp(wire(received()), meta=bytes(212))
    except OSError:  # older kernels allow 32 bytes in all
        result = datapath.xdp(wire(received()), meta=bytes(32))
    assert (result.action, result.reason) == (XdpAction.PASS, "no_room")
    assert result.packet == wire(received())
    assert datapath.run("from_wire", result.packet).reason == "decap"
    assert datapath.maps.flows()[flow_in()].packets == 1, "counted at tc alone"


def carried(datapath: Datapath, packet: bytes) -> Result:
    """Through both halves."""
    first = datapath.xdp(packet)
    assert (first.action, first.reason, len(first.note)) == (XdpAction.PASS, "decap", 20)
    # As long as it is on its way it is the host's own: the stack must not refuse it.
    assert first.packet[:14] == packet[:14]
    return datapath.deliver(first.packet, first.note)


def test_the_note_says_where_to(datapath: Datapath, ports: Namespace) -> None:
    approved()(datapath)
    note = datapath.xdp(wire(received())).note
    assert note[4:] == struct.pack("=I", LO) + MAC.packed + BRIDGE_MAC.packed
    datapath.endpoint(LOCAL, replace(ENDPOINT, ifindex=PORT))
    datapath.approve(flow_in(ifindex=PORT))
    other = ports.call(lambda: datapath.xdp(wire(received()))).note
    assert other[4:8] == struct.pack("=I", PORT)
    assert other[:4] != note[:4], "one key would be good for every port"


def test_packets_of_one_flow_have_equal_notes(datapath: Datapath) -> None:
    """Else the stack would not merge them."""
    datapath.approve(flow_in(TCP))
    notes = {
        datapath.xdp(wire(received(packets.tcp(bytes(size), 2000, 1000), TCP, ident=size))).note
        for size in range(3)
    }
    assert len(notes) == 1


def test_what_was_there_before_the_note_stays(datapath: Datapath) -> None:
    approved()(datapath)
    result = datapath.xdp(wire(received()), meta=b"8 bytes.")
    assert result.reason == "decap"
    assert result.note[20:] == b"8 bytes."
    assert datapath.deliver(result.packet, result.note[:20]).reason == "delivered"


@FLOWS
def test_the_container_gets_what_the_kernel_delivered(flow: Flow) -> None:
    with Datapath() as bare:
        bare.maps.write_node(B)
        bare.peer(A.subnet, peer(A))
        bare.endpoint(TWO, ON_B)
        bare.approve(key(flow, flow_in().direction))
        result = carried(bare, UPLINK_MAC.packed + frame(flow, ON_WIRE)[6:])
        assert (result.action, result.reason) == (Action.REDIRECT, "delivered")
        assert result.packet == bytes.fromhex(FRAMES[flow][DELIVERED])


@pytest.mark.parametrize("inner", range(4))
@pytest.mark.parametrize("outer", range(4))
def test_ecn_is_as_at_tc(datapath: Datapath, inner: int, outer: int) -> None:
    datapath.approve(flow_in(dscp=46))
    packet = wire(received(tos=46 << 2 | inner), tos=outer)
    at_tc = datapath.run("from_wire", packet)
    if at_tc.reason == "decap":
        assert carried(datapath, packet).packet == at_tc.packet
    else:
        assert datapath.xdp(packet).reason == at_tc.reason == "ecn"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(seed=st.integers(0, 1 << 32))
def test_any_packet_ends_as_at_tc(datapath: Datapath, seed: int) -> None:
    furnish(datapath)
    packet = draw_wire(random.Random(seed))
    check_xdp(datapath, packet, datapath.xdp(packet))


def test_cut_at_every_byte_it_is_never_decapsulated(datapath: Datapath) -> None:
    packet = wire(received(packets.tcp(b"some data", 2000, 1000, flags=ACK), TCP))
    datapath.approve(flow_in(TCP))
    for length in range(14, len(packet)):
        result = datapath.xdp(packet[:length])
        assert (result.action, result.reason) == (XdpAction.PASS, "truncated")
        assert result.packet == packet[:length]
    assert datapath.xdp(packet).reason == "decap"


def test_any_lying_length_is_left_to_the_kernel(datapath: Datapath) -> None:
    datapath.approve(flow_in())
    right = len(wire(received())) - 14
    for length in random.Random(1).sample(range(0x10000), 200) + list(range(right - 60, right + 60)):
        for packet, true in (
            (wire(received(), total=length), right),
            (wire(received(), udp_len=length), right - 20),
        ):
            assert datapath.xdp(packet).reason == ("decap" if length == true else "truncated")


@pytest.mark.parametrize("flags", [SYN, SYN | ACK, FIN | ACK, RST])
def test_control_packets_are_from_wires_business(datapath: Datapath, flags: int) -> None:
    """Only there can they be signed; it takes the approvals back, so XDP must not have to."""
    datapath.approve(flow_out(TCP))
    datapath.approve(flow_in(TCP))
    packet = wire(received(packets.tcp(b"", 2000, 1000, flags=flags), TCP))
    result = datapath.xdp(packet)
    assert (result.action, result.reason, result.packet) == (XdpAction.PASS, "tcp_control", packet)
    assert datapath.run("from_wire", result.packet).reason == "tcp_control"
    assert datapath.maps.flows() == {}


def test_the_peer_is_credited_once(datapath: Datapath) -> None:
    datapath.approve(flow_in())
    for _ in range(3):
        carried(datapath, wire(received()))
    assert datapath.stats(PEER.host) == PeerStats(rx_packets=3, rx_bytes=3 * len(received()))
    assert datapath.stats(THIRD.host) == PeerStats()
    (flow,) = datapath.maps.flows().values()
    assert flow.packets == 3


def test_the_peer_is_credited_for_what_is_delivered_only(datapath: Datapath) -> None:
    packet, raw = note(datapath)
    assert datapath.deliver(packet, raw, vlan=7).reason == "tagged"
    assert datapath.stats(PEER.host) == PeerStats()


def test_what_the_stack_has_merged_is_credited_as_its_packets(datapath: Datapath) -> None:
    datapath.approve(flow_in(TCP))
    first = datapath.xdp(wire(received(packets.tcp(bytes(100), 2000, 1000), TCP)))
    datapath.deliver(first.packet, first.note, gso_size=50, gso_segs=2)
    stats = datapath.stats(PEER.host)
    assert stats == PeerStats(rx_packets=2, rx_bytes=len(first.packet))


def note(datapath: Datapath) -> tuple[bytes, bytes]:
    """(packet, note) of an approved one."""
    datapath.approve(flow_in())
    result = datapath.xdp(wire(received()))
    return result.packet, result.note


@pytest.mark.parametrize("bit", [*range(0, 32, 5), *range(32, 64, 5)])
def test_a_note_of_someone_else_is_no_note(datapath: Datapath, bit: int) -> None:
    packet, raw = note(datapath)
    forged = bytearray(raw)
    forged[bit // 8] ^= 1 << bit % 8
    result = datapath.deliver(packet, bytes(forged))
    assert (result.action, result.reason) == UNTOUCHED
    assert result.packet == packet


def test_a_note_of_another_node_is_no_note(datapath: Datapath) -> None:
    packet, raw = note(datapath)
    datapath.node(flow_seed=NODE.flow_seed + (1 << 40))
    assert datapath.deliver(packet, raw).reason == "not_overlay"
    assert datapath.deliver(packet, bytes(20)).reason == "not_overlay"


def test_a_tag_that_the_nic_hid_from_xdp_is_found_at_tc(datapath: Datapath) -> None:
    packet, raw = note(datapath)
    assert datapath.deliver(packet, raw, vlan=7).reason == "tagged"
    # Tag 0 is only a priority.
    assert datapath.deliver(packet, raw, vlan=0x2000).reason == "delivered"


def test_what_the_stack_merged_counts_as_its_packets(datapath: Datapath) -> None:
    datapath.approve(flow_in(TCP))
    first = datapath.xdp(wire(received(packets.tcp(bytes(100), 2000, 1000), TCP)))
    result = datapath.deliver(first.packet, first.note, gso_size=50, gso_segs=2)
    assert (result.reason, result.counted) == ("delivered", (2, len(first.packet)))


def test_frames_for_another_mac_are_left_alone_whoever_sends_them(datapath: Datapath) -> None:
    datapath.node(uplink_mac=MacAddress.parse("02:05:00:00:00:01"))
    for packet in (wire(received()), wire(received(), host=FOREIGN)):
        result = datapath.xdp(packet)
        assert (result.action, result.reason, result.packet) == (XdpAction.PASS, "not_overlay", packet)


@pytest.mark.parametrize("bypass", list(Bypass))
def test_strangers_are_dropped_in_every_mode(datapath: Datapath, bypass: Bypass) -> None:
    datapath.node(bypass=bypass)
    assert datapath.xdp(wire(received(), host=FOREIGN)).action == XdpAction.DROP
    assert datapath.xdp(wire(received(), host=THIRD.host)).action == XdpAction.DROP


@pytest.fixture
def ring(datapath: Datapath) -> Iterator[Ring[Event]]:
    opened = Ring(datapath.maps.fd("events"), RING_BYTES, Event.unpack)
    yield opened
    opened.close()


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 1000])
def test_a_drop_is_reported_with_its_first_bytes(datapath: Datapath, ring: Ring[Event], size: int) -> None:
    packet = wire(bytes(size), host=FOREIGN)
    datapath.xdp(packet)
    (event,) = ring.drain()
    assert (event.hook, event.reason, event.ifindex) == (Hook.FROM_WIRE_XDP, 40, LO)
    assert (event.data, event.packet_len) == (packet[:96], len(packet))
    datapath.xdp(packet)
    assert list(ring.drain()) == [], "a flood is one event"


JUMBO = received(packets.udp(random.Random(1).randbytes(8900), 2000, 1000))
"""More than a page: in a test run as in a driver, all but its first piece lies elsewhere."""


def test_a_jumbo_frame_is_decapsulated_in_pieces(datapath: Datapath) -> None:
    datapath.node(mtu=8950)
    datapath.approve(flow_in())
    first = datapath.xdp(wire(JUMBO), program=XDP_FRAGS)
    assert (first.action, first.reason) == (XdpAction.PASS, "decap")
    assert first.counted == (1, len(wire(JUMBO)))
    packet, inner = first.packet, JUMBO[14:]
    assert packet[:14] == wire(JUMBO)[:14], "until it is delivered"
    assert (packet[22], packets.checksum(packet[14:34])) == (inner[8] - 1, 0), (
        "the TTL, and the checksum with it"
    )
    assert packet[14:22] + packet[23:24] + packet[26:] == inner[:8] + inner[9:10] + inner[12:]


@pytest.mark.parametrize("lie", [-1, 1])
def test_of_a_jumbo_frame_all_pieces_count(datapath: Datapath, lie: int) -> None:
    datapath.node(mtu=8950)
    datapath.approve(flow_in())
    packet = wire(JUMBO, total=len(wire(JUMBO)) - 14 + lie)
    result = datapath.xdp(packet, program=XDP_FRAGS)
    assert (result.action, result.reason, result.packet) == (XdpAction.PASS, "truncated", packet)


def test_a_jumbo_frame_that_is_refused_is_reported(datapath: Datapath, ring: Ring[Event]) -> None:
    packet = wire(JUMBO, host=FOREIGN)
    assert datapath.xdp(packet, program=XDP_FRAGS).action == XdpAction.DROP
    (event,) = ring.drain()
    assert (event.data, event.packet_len) == (packet[:96], len(packet))


def test_one_above_the_mtu_is_the_kernels(datapath: Datapath) -> None:
    datapath.approve(flow_in())
    assert datapath.xdp(wire(JUMBO), program=XDP_FRAGS).reason == "oversize"
