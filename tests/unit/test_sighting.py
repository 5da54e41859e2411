from __future__ import annotations

import io
from dataclasses import replace
from ipaddress import IPv4Network, ip_network
from pathlib import Path

import pytest
import scapy.utils

from ctl.cli.capture import write
from ctl.core.abi import Hook
from ctl.core.dissect import dissect
from ctl.core.reasons import labelled
from ctl.core.sighting import Flow, Sighting, parse_flow, sighting
from ctl.core.tracer import Selection, Trace
from tests import packets
from tests.datapath import INET, INET6, Cast, received, sent, wire

PORT = 8472


def seen(hook: Hook, label: str, data: bytes) -> Sighting:
    trace = Trace(5, 7, len(data), len(data), labelled(label).number, 0, hook, data)
    return sighting(trace, 10**18, lambda _: "eth0", PORT)


def test_a_packet_is_one_line() -> None:
    assert str(dissect(sent(), PORT)) == "10.1.1.5.1000 > 10.1.2.9.2000: UDP length 36"
    assert str(dissect(wire(received()), PORT)).startswith(
        "192.168.50.2.40000 > 192.168.50.1.8472: UDP length 86: VXLAN vni 1193046: "
        "10.1.2.9.2000 > 10.1.1.5.1000"
    )


@pytest.mark.parametrize("size", range(0, 100, 3))
@pytest.mark.parametrize("cast", [INET, INET6], ids=str)
def test_a_packet_cut_anywhere_is_told_as_far_as_it_goes(cast: Cast, size: int) -> None:
    assert str(dissect(cast.wire(cast.received())[:size], PORT))


def test_a_packet_of_ipv6_is_one_line_too() -> None:
    assert str(dissect(INET6.sent(), PORT)) == "fd10:0:0:1::5.1000 > fd10:0:0:2::9.2000: UDP length 56"
    seen = dissect(INET6.wire(INET6.received()), PORT)
    assert str(seen).startswith(
        "fd50::2.40000 > fd50::1.8472: UDP length 126: VXLAN vni 1193046: "
        "fd10:0:0:2::9.2000 > fd10:0:0:1::5.1000"
    )
    ping = INET6.sent(packets.icmp(b"ping", 128, 7), packets.ICMPV6)
    assert "ICMPV6 echo request id 7 seq" in str(dissect(ping, PORT))


def test_a_packet_of_ipv6_without_an_ethernet_header_is_known_by_its_length() -> None:
    bare = INET6.wire(INET6.received())[packets.ETH_LEN :]
    assert dissect(bare, PORT).bare and dissect(bare, PORT).vni == INET6.node.vni
    strange = bytes.fromhex("620000000001") + bytes(6) + b"\x88\xcc" + bytes(40)
    assert dissect(strange, PORT).other == "ethertype 0x88cc", "a MAC may begin with a 6"


UDP_HEADER = packets.udp(b"", 1000, 2000)
EXTENSIONS = {
    "options": (0, bytes([packets.UDP, 0]) + bytes(6) + UDP_HEADER, (1000, 2000)),
    "two of them": (
        60, bytes([0, 1]) + bytes(14) + bytes([packets.UDP, 0]) + bytes(6) + UDP_HEADER, (1000, 2000),
    ),
    "the first fragment": (44, bytes([packets.UDP, 0, 0, 1]) + bytes(4) + UDP_HEADER, (1000, 2000)),
    "a later fragment": (44, bytes([packets.UDP, 0, 5, 1]) + bytes(4) + UDP_HEADER, (None, None)),
}  # fmt: skip


@pytest.mark.parametrize("name", EXTENSIONS)
def test_of_ipv6_what_is_behind_extension_headers_is_told(name: str) -> None:
    proto, body, ports = EXTENSIONS[name]
    inner = dissect(INET6.sent(body, proto), PORT).inner
    assert inner and (inner.proto, (inner.sport, inner.dport)) == (packets.UDP, ports)
    assert (inner.words == "fragment") is (ports == (None, None))


def test_a_flow_is_read() -> None:
    expected = Flow((IPv4Network("10.77.1.2/32"), IPv4Network("10.77.2.0/24")), (0, 80), 6)
    assert parse_flow("10.77.1.2,10.77.2.0/24:80,tcp") == expected


@pytest.mark.parametrize(
    ("text", "ends", "ports"),
    [
        ("fd00:77:1::2", ("fd00:77:1::2/128", None), (0, 0)),
        ("[fd00:77:1::2]:1000,[fd00:77:2::/64]:80", ("fd00:77:1::2/128", "fd00:77:2::/64"), (1000, 80)),
        ("any:53,[fd00:77:1::2]", (None, "fd00:77:1::2/128"), (53, 0)),
    ],
)
def test_a_flow_of_ipv6_is_read_with_its_ports_behind_brackets(
    text: str, ends: tuple[str | None, str | None], ports: tuple[int, int]
) -> None:
    one, other = (ip_network(end) if end else None for end in ends)
    assert parse_flow(text) == Flow((one, other), ports, 0)


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "10.77.1.2:99999", "10.77.1.2,any,quic", "any,any,tcp,more", "[fd00::1", "[fd00::1]80",
        "[fd00::1]:x", "10.77.1.2,fd00::1",
    ],
)  # fmt: skip
def test_a_flow_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_flow(text)


def test_a_capture_is_read_by_another_program(tmp_path: Path) -> None:
    file = io.BytesIO()
    packets = [
        seen(Hook.FROM_CONTAINER, "encap", sent()),
        seen(Hook.FROM_WIRE, "unknown_vtep", wire(received())),
    ]
    write(file, packets, 256)
    (tmp_path / "it.pcapng").write_bytes(file.getvalue())
    with scapy.utils.RawPcapNgReader(str(tmp_path / "it.pcapng")) as reader:
        read = [next(reader) for _ in packets]
    assert [data for data, _ in read] == [each.trace.data for each in packets]
    assert b"from_wire: drop: unknown_vtep" in file.getvalue()


def test_what_no_address_is_named_of_is_asked_for_in_both_families() -> None:
    asked = Selection(proto=packets.ICMP)
    assert asked.versions == {4, 6}
    assert [asked.entry(version).proto for version in (4, 6)] == [packets.ICMP, packets.ICMPV6]
    assert not any(Selection().entry(version).narrow for version in (4, 6))


@pytest.mark.parametrize("asked", [Selection((None, INET6.peer_subnet)), Selection(host=INET6.peer.host)])
def test_an_address_says_of_which_family_packets_are(asked: Selection) -> None:
    assert asked.versions == {6} and asked.entry(6).narrow
    with pytest.raises(ValueError, match="no packet has addresses of IPv4 and of IPv6"):
        replace(asked, ends=(INET.peer_subnet, asked.ends[1]))
