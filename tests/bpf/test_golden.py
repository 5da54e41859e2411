"""Frames that a kernel wrote, and the programs must write again.

Captured on Linux 6.18 by the set-up of tests/conformance/test_golden.py (which compares
with the running kernel): what container 172.17.86.2 sent, what the kernel's vxlan device
made of it, and what container 172.17.5.2 on the other node was given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from ctl.core.abi import Direction, EndpointEntry, FlowKey, NodeEntry, PeerEntry
from ctl.core.model import Bypass, MacAddress
from tests.datapath import LO, UPLINK_MAC, Datapath
from tests.packets import ICMP, TCP, UDP, Tunnel

A = NodeEntry(
    host=IPv4Address("192.168.77.11"),
    network=IPv4Network("172.17.0.0/16"),
    subnet=IPv4Network("172.17.86.0/24"),
    pool=(IPv4Address("172.17.1.0"), IPv4Address("172.17.255.255")),
    vni=1,
    uplink_ifindex=2,
    mtu=1450,
    vtep_mac=MacAddress.parse("a6:db:94:4f:a0:cd"),
    port=8472,
    source_ports=(32768, 60999),
    bypass=Bypass.LEARNED,
    approval_ttl_ns=60 * 10**9,
    flow_seed=789567595,
)
B = replace(
    A,
    host=IPv4Address("192.168.77.12"),
    subnet=IPv4Network("172.17.5.0/24"),
    vtep_mac=MacAddress.parse("ea:a8:13:a5:bd:7b"),
)
ONE, TWO = IPv4Address("172.17.86.2"), IPv4Address("172.17.5.2")
ON_A = EndpointEntry(LO, MacAddress.parse("02:42:ac:11:56:02"), MacAddress.parse("02:42:ac:11:56:01"))
ON_B = EndpointEntry(LO, MacAddress.parse("02:42:ac:11:05:02"), MacAddress.parse("02:42:ac:11:05:01"))

SENT, ON_WIRE, DELIVERED = 0, 1, 2
FRAMES = {
    # protocol, source and destination port of the flow (echo: identifier; type and code)
    (UDP, 40000, 53): (
        "0242ac1156010242ac115602080045b9002412344000401174b5ac115602ac1105029c40003500100000"
        "7175657374696f6e",
        "a63e091d6a686268aa0abd47080045010056d72000004011880dc0a84d0bc0a84d0ce574211800420000"
        "0800000000000100eaa813a5bd7ba6db944fa0cd080045b90024123440003f1175b5ac115602ac110502"
        "9c400035001000007175657374696f6e",
        "0242ac1105020242ac110501080045b90024123440003e1176b5ac115602ac1105029c40003500100000"
        "7175657374696f6e",
    ),
    (TCP, 40001, 80): (
        "0242ac1156010242ac1156020800450200381234400040067563ac115602ac1105029c41005000000001"
        "0000000180180200000000000101080a000000010000000264617461",
        "a63e091d6a686268aa0abd4708004502006ad7210000401187f7c0a84d0bc0a84d0c8ffb211800560000"
        "0800000000000100eaa813a5bd7ba6db944fa0cd080045020038123440003f067663ac115602ac110502"
        "9c410050000000010000000180180200000000000101080a000000010000000264617461",
        "0242ac1105020242ac110501080045020038123440003e067763ac115602ac1105029c41005000000001"
        "0000000180180200000000000101080a000000010000000264617461",
    ),
    (ICMP, 77, 8 << 8): (
        "0242ac1156010242ac115602080045000024123440004001757eac115602ac1105020800661c004d0001"
        "6162636465666768",
        "a63e091d6a686268aa0abd47080045000056d72200004011880cc0a84d0bc0a84d0c9411211800420000"
        "0800000000000100eaa813a5bd7ba6db944fa0cd080045000024123440003f01767eac115602ac110502"
        "0800661c004d00016162636465666768",
        "0242ac1105020242ac110501080045000024123440003e01777eac115602ac1105020800661c004d0001"
        "6162636465666768",
    ),
}
Flow = tuple[int, int, int]
FLOWS = pytest.mark.parametrize("flow", FRAMES, ids=["udp", "tcp", "echo"])


def frame(flow: Flow, stage: int) -> bytes:
    return bytes.fromhex(FRAMES[flow][stage])


def key(flow: Flow, direction: Direction) -> FlowKey:
    proto, sport, dport = flow
    return FlowKey(ONE, TWO, sport, dport, LO, proto, direction, dscp=frame(flow, SENT)[15] >> 2)


def peer(of: NodeEntry) -> PeerEntry:
    return PeerEntry(of.host, of.vtep_mac, of.port, of.vni, LO, of.host)


@pytest.fixture
def bare() -> Iterator[Datapath]:
    with Datapath() as opened:
        yield opened


@FLOWS
def test_encap_writes_what_the_kernel_wrote(bare: Datapath, flow: Flow) -> None:
    bare.maps.write_node(A)
    bare.peer(B.subnet, peer(B))
    bare.endpoint(ONE, ON_A)
    bare.approve(key(flow, Direction.OUT))
    kernel, ours = frame(flow, ON_WIRE), bare.run("from_container", frame(flow, SENT)).packet
    # Outer MACs are the neighbour code's to write; id, its checksum and the source port vary.
    assert ours[12:18] == kernel[12:18]
    assert ours[20:24] == kernel[20:24]
    assert ours[26:34] == kernel[26:34]
    assert ours[36:] == kernel[36:]
    assert Tunnel.parse(ours).ip.valid


@FLOWS
def test_decap_delivers_what_the_kernel_delivered(bare: Datapath, flow: Flow) -> None:
    bare.maps.write_node(B)
    bare.peer(A.subnet, peer(A))
    bare.endpoint(TWO, ON_B)
    bare.approve(key(flow, Direction.IN))
    result = bare.run("from_wire", UPLINK_MAC.packed + frame(flow, ON_WIRE)[6:])
    assert (result.reason, result.packet) == ("decap", frame(flow, DELIVERED))
