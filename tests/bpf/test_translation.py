"""What netfilter translates, as the programs learn it and do it themselves."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import Any

import pytest

from ctl.core.abi import PEER_F_KERNEL_PATH, FlowKey, Translation
from tests import packets
from tests.datapath import (
    FOREIGN,
    LO,
    LOCAL,
    NOBODY,
    NODE,
    PEER,
    PEER_SUBNET,
    REMOTE,
    THIRD_SUBNET,
    Action,
    Datapath,
    Result,
    flow_in,
    flow_out,
    place_of,
    received,
    sent,
    wire,
)
from tests.packets import ACK, FIN, SYN, TCP, UDP, checksum

VIP = FOREIGN
"""A service's address, and PORT its port: REMOTE's 2000 is behind it."""
PORT = 80
PROTOCOLS = pytest.mark.parametrize("proto", [TCP, UDP], ids=["tcp", "udp"])


@dataclass(frozen=True)
class L4:
    """A segment or datagram from LOCAL to REMOTE or back, before and after what netfilter does."""

    proto: int = TCP
    flags: int = ACK
    seq: int = 7
    ack: int = 9
    data: bytes = b"payload!"
    sums: bool = True

    def between(self, src: IPv4Address, dst: IPv4Address, sport: int, dport: int) -> bytes:
        if self.proto == TCP:
            head = struct.pack("!HHIIBBHHH", sport, dport, self.seq, self.ack, 5 << 4, self.flags, 512, 0, 0)
            at = 16
        else:
            head, at = struct.pack("!HHHH", sport, dport, 8 + len(self.data), 0), 6
        pseudo = src.packed + dst.packed + struct.pack("!BBH", 0, self.proto, len(head + self.data))
        value = checksum(pseudo + head + self.data) if self.sums else 0
        return head[:at] + struct.pack("!H", value) + head[at + 2 :] + self.data

    def call(self, to: IPv4Address = VIP, port: int = PORT, src_port: int = 1000, **ip: Any) -> bytes:
        """The container's frame to the service."""
        return sent(self.between(LOCAL, to, src_port, port), self.proto, dst=to, **ip)

    def left(self, **ip: Any) -> bytes:
        """The same as it leaves netfilter, for the vxlan device."""
        return sent(self.between(LOCAL, REMOTE, 1000, 2000), self.proto, dst=REMOTE, ttl=63, **ip)

    def answer(self, **ip: Any) -> bytes:
        """REMOTE's, as the peer sends it."""
        return received(self.between(REMOTE, LOCAL, 2000, 1000), self.proto, **ip)

    def arrived(self, src: IPv4Address = VIP, dst_port: int = 1000, **ip: Any) -> bytes:
        """It as it leaves netfilter, for the container."""
        return received(self.between(src, LOCAL, PORT, dst_port), self.proto, src=src, ttl=63, **ip)


ACCEPTS = L4(flags=SYN | ACK, data=b"")


def call_key(proto: int) -> FlowKey:
    return flow_out(proto, 1000, PORT, daddr=VIP)


def to_remote() -> Translation:
    return Translation(REMOTE, 1000, 2000)


def arrive(datapath: Datapath, l4: L4, now: L4 | None = None, **changes: Any) -> str:
    """An answer comes in, and leaves netfilter as one of the service; the reason at to_container."""
    signature = datapath.run("probe_from_wire", wire(l4.answer())).hash
    after = (now or l4).arrived()
    run: dict[str, Any] = {"hash": signature, "ingress": NODE.overlay_ifindex} | changes
    return datapath.run("to_container", after, **run).reason


def depart(datapath: Datapath, l4: L4) -> str:
    """A call goes in, and leaves netfilter translated; the reason at to_overlay."""
    result = datapath.run("probe_from_container", l4.call())
    return datapath.run("to_overlay", l4.left(), hash=result.hash).reason


def learned(datapath: Datapath, proto: int) -> None:
    """Both directions, as the first packets of a connection have it."""
    if proto == TCP:
        assert arrive(datapath, ACCEPTS) == "tcp_control"
    assert arrive(datapath, L4(proto, data=b"another!")) == "learned_translated"
    assert depart(datapath, L4(proto)) == "learned_translated"


@PROTOCOLS
def test_a_call_bypasses_as_netfilter_has_translated_it(datapath: Datapath, proto: int) -> None:
    learned(datapath, proto)
    result = datapath.run("from_container", L4(proto).call())
    assert (result.action, result.reason) == (Action.REDIRECT, "encap")
    assert result.tunnel.frame[14:] == L4(proto).left()[14:]
    assert result.tunnel.ip.dst == PEER.host


@PROTOCOLS
def test_an_answer_bypasses_as_netfilter_has_translated_it(datapath: Datapath, proto: int) -> None:
    learned(datapath, proto)
    result = datapath.run("from_wire", wire(L4(proto).answer()))
    assert (result.action, result.reason) == (Action.REDIRECT, "decap")
    assert result.packet[14:] == L4(proto).arrived()[14:]


def test_a_udp_checksum_that_is_not_there_stays_so(datapath: Datapath) -> None:
    learned(datapath, UDP)
    plain = L4(UDP, sums=False)
    assert datapath.run("from_container", plain.call()).tunnel.frame[14:] == plain.left()[14:]
    assert datapath.run("from_wire", wire(plain.answer())).packet[14:] == plain.arrived()[14:]


def test_an_udp_checksum_that_comes_out_as_0_is_written_as_all_ones(datapath: Datapath) -> None:
    """0 says that there is none (RFC 768)."""
    learned(datapath, UDP)
    for filler in range(1 << 16):
        l4 = L4(UDP, data=struct.pack("!H", filler))
        if l4.left()[40:42] == bytes(2):
            break
    out = datapath.run("from_container", l4.call()).tunnel.frame
    assert out[40:42] == b"\xff\xff"


def test_the_way_of_a_call_is_known_before_its_second_packet(datapath: Datapath) -> None:
    """Who accepts a connection tells what the call was translated to."""
    assert datapath.maps.services() == {}
    assert arrive(datapath, ACCEPTS) == "tcp_control"
    assert set(datapath.maps.services()) == {VIP}
    back = FlowKey(REMOTE, LOCAL, 2000, 1000, LO, TCP, flow_in().direction)
    assert datapath.maps.translations() == {
        call_key(TCP): to_remote(),
        back: Translation(VIP, PORT, 1000),
    }
    assert datapath.maps.flows() == {}, "nothing is approved by it"


def test_nothing_is_looked_for_of_an_address_that_is_no_service(datapath: Datapath) -> None:
    assert datapath.run("from_container", L4().call()).reason == "not_overlay"


FORGED = {
    "another number": L4(seq=77),
    "another answer": L4(ack=77),
}


@pytest.mark.parametrize("now", FORGED.values(), ids=FORGED)
def test_a_foreign_packet_with_a_notes_hash_is_not_taken_for_it(datapath: Datapath, now: L4) -> None:
    """A signature has 31 bits, and a packet of this host any hash: by construction it has this one here."""
    assert arrive(datapath, L4(), now) == "changed"
    assert datapath.maps.flows() == {}
    assert datapath.maps.translations() == {}


def test_nor_is_one_for_another_port_or_with_another_dscp(datapath: Datapath) -> None:
    signature = datapath.run("probe_from_wire", wire(L4().answer())).hash
    from_overlay: dict[str, Any] = {"hash": signature, "ingress": NODE.overlay_ifindex}
    assert datapath.run("to_container", L4().arrived(tos=0x20), **from_overlay).reason == "changed"
    assert datapath.run("to_container", L4().arrived(), hash=signature).reason == "not_overlay"
    assert datapath.maps.flows() == {}


def test_a_note_is_good_for_one_packet(datapath: Datapath) -> None:
    signature = datapath.run("probe_from_wire", wire(L4().answer())).hash
    run: dict[str, Any] = {"hash": signature, "ingress": NODE.overlay_ifindex}
    assert datapath.run("to_container", L4().arrived(), **run).reason == "learned_translated"
    assert datapath.run("to_container", L4().arrived(), **run).reason == "changed"


def test_what_left_unchanged_is_learned_as_such(datapath: Datapath) -> None:
    """A translation that was and is no more: the rule is gone, the backend is called by its own address."""
    learned(datapath, TCP)
    plain = L4().between(REMOTE, LOCAL, 2000, 1000)
    signature = datapath.run("probe_from_wire", wire(received(plain, TCP, tos=4))).hash
    frame = received(plain, TCP, tos=4, ttl=63)
    assert datapath.run("to_container", frame, hash=signature).reason == "learned"
    result = datapath.run("from_wire", wire(received(plain, TCP, tos=4)))
    assert result.packet[14:] == frame[14:]


def test_another_backend_takes_the_place_of_the_one_before(datapath: Datapath) -> None:
    learned(datapath, UDP)
    other = IPv4Address(int(THIRD_SUBNET.network_address) + 9)
    l4 = L4(UDP)
    answer = received(l4.between(other, LOCAL, 2000, 1000), UDP, src=other)
    signature = datapath.run("probe_from_wire", wire(answer, host=IPv4Address("192.168.50.3"))).hash
    run: dict[str, Any] = {"hash": signature, "ingress": NODE.overlay_ifindex}
    assert datapath.run("to_container", l4.arrived(), **run).reason == "learned_translated"
    assert datapath.maps.translations()[call_key(UDP)] == Translation(other, 1000, 2000)
    assert datapath.maps.flows()[call_key(UDP)].to == to_remote(), "until the kernel path carries a call"
    datapath.approve(call_key(UDP), age_s=5.1, to=to_remote())
    call = datapath.run("probe_from_container", l4.call()).hash
    left = sent(l4.between(LOCAL, other, 1000, 2000), UDP, dst=other, ttl=63)
    assert datapath.run("to_overlay", left, hash=call).reason == "learned_translated"
    assert datapath.maps.flows()[call_key(UDP)].to == Translation(other, 1000, 2000)


@pytest.mark.parametrize("flags", [FIN | ACK, SYN, packets.RST], ids=["FIN", "SYN", "RST"])
def test_the_end_of_a_connection_withdraws_both_directions(datapath: Datapath, flags: int) -> None:
    learned(datapath, TCP)
    assert len(datapath.maps.flows()) == 2
    assert datapath.run("from_container", L4(flags=flags).call()).reason == "tcp_control"
    assert datapath.maps.flows() == {}


def test_the_other_ends_end_of_it_too(datapath: Datapath) -> None:
    learned(datapath, TCP)
    assert datapath.run("from_wire", wire(L4(flags=FIN | ACK).answer())).reason == "tcp_control"
    assert datapath.maps.flows() == {}


def test_an_approval_that_is_over_is_renewed_by_the_kernel_path_alone(datapath: Datapath) -> None:
    learned(datapath, TCP)
    datapath.approve(call_key(TCP), age_s=5.1, to=to_remote())
    assert datapath.run("from_container", L4().call()).reason == "flow_expired"
    assert depart(datapath, L4(seq=99)) == "learned_translated"
    assert datapath.run("from_container", L4().call()).reason == "encap"


def test_an_entry_whose_seal_is_not_its_own_is_none(datapath: Datapath) -> None:
    """Entries of an LRU map may become another flow's while they are read."""
    learned(datapath, TCP)
    entry = datapath.maps.flows()[call_key(TCP)]
    torn = replace(entry, to=Translation(IPv4Address(int(REMOTE) + 1), 1000, 2000))
    datapath.fill("flows", place_of(call_key(TCP)).pack(), torn.pack())
    assert datapath.run("from_container", L4().call()).reason == "flow_unknown"


def test_who_is_no_peer_any_more_or_not_by_ebpf_is_the_kernel_paths(datapath: Datapath) -> None:
    learned(datapath, TCP)
    datapath.peer(PEER_SUBNET, replace(PEER, flags=PEER_F_KERNEL_PATH))
    assert datapath.run("from_container", L4().call()).reason == "peer_kernel_path"
    datapath.approve(call_key(TCP), to=Translation(NOBODY, 1000, 2000))
    assert datapath.run("from_container", L4().call()).reason == "not_overlay"


def test_xdp_leaves_what_is_translated_to_from_wire(datapath: Datapath) -> None:
    learned(datapath, TCP)
    packet = wire(L4().answer())
    result = datapath.xdp(packet)
    assert (result.reason, result.packet) == ("translated", packet)


def test_calls_of_one_client_to_two_services_with_one_source_port_are_two(datapath: Datapath) -> None:
    """The same container behind both: netfilter gives the second another source port."""
    learned(datapath, TCP)
    second = IPv4Address(int(VIP) + 1)
    l4 = ACCEPTS
    answer = received(l4.between(REMOTE, LOCAL, 2000, 1024), TCP)
    signature = datapath.run("probe_from_wire", wire(answer)).hash
    after = received(l4.between(second, LOCAL, PORT, 1000), TCP, src=second, ttl=63)
    run: dict[str, Any] = {"hash": signature, "ingress": NODE.overlay_ifindex}
    assert datapath.run("to_container", after, **run).reason == "tcp_control"
    data = L4()
    call = datapath.run("probe_from_container", data.call(second)).hash
    left = sent(data.between(LOCAL, REMOTE, 1024, 2000), TCP, ttl=63)
    assert datapath.run("to_overlay", left, hash=call).reason == "learned_translated"
    for to, port in ((VIP, 1000), (second, 1024)):
        inner = datapath.run("from_container", data.call(to)).tunnel.frame
        assert inner[14:] == sent(data.between(LOCAL, REMOTE, port, 2000), TCP, ttl=63)[14:]


def flooded(datapath: Datapath, connections: int) -> Result:
    """As many answers, of each of which a note is left; then a call of a flow that was learned before."""
    for number in range(connections):
        packet = received(L4().between(REMOTE, LOCAL, 2000, 2000 + number), TCP)
        datapath.run("from_wire", wire(packet))
    return datapath.run("from_container", L4().call())


def test_a_flood_of_notes_takes_no_approval_away(datapath: Datapath) -> None:
    learned(datapath, TCP)
    assert flooded(datapath, 5000).reason == "encap"
    assert arrive(datapath, L4(seq=1234)) in ("learned_translated", "changed")
    datapath.maps.flush_flows()
    assert arrive(datapath, L4(seq=4321)) == "learned_translated", "and others are noted all the same"
