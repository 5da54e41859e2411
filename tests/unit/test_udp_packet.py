"""The udp backend's packets: TTL and ICMP errors. scapy is the independent judge."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers import inet
from scapy.packet import raw

from ctl.backend.udp.packet import (
    FRAGMENTATION_NEEDED,
    NET_UNREACHABLE,
    TIME_EXCEEDED,
    Allowance,
    checksum,
    decrement_ttl,
    icmp_error,
    parse,
)
from tests import packets

A, B = IPv4Address("10.99.1.2"), IPv4Address("10.99.2.2")
TUNNEL = int(IPv4Address("10.99.1.0"))
ADDRESSES = (
    st.integers(1 << 24, (224 << 24) - 1).map(IPv4Address).filter(lambda address: not address.is_loopback)
)
IPV4 = st.builds(
    packets.ipv4,
    st.binary(max_size=80),
    ADDRESSES,
    ADDRESSES,
    st.sampled_from((packets.TCP, packets.UDP, packets.SCTP)),
    tos=st.integers(0, 255),
    ttl=st.integers(1, 255),
    ident=st.integers(0, 65535),
    options=st.sampled_from((b"", b"\1" * 4, b"\1" * 40)),
)


@given(st.binary(max_size=100))
def test_checksum_is_that_of_rfc_1071(data: bytes) -> None:
    assert checksum(data) == packets.checksum(data)


@given(IPV4, st.binary(max_size=5))
def test_ttl_goes_down_by_one_and_the_checksum_stays_right(packet: bytes, before: bytes) -> None:
    buffer = bytearray(before + packet)
    header = parse(buffer, len(before), len(packet))
    assert header is not None
    decrement_ttl(buffer, len(before), header)
    changed = bytes(buffer[len(before) :])
    head = packets.Ip.parse(changed)
    assert head.valid
    assert head.ttl == header[5] - 1
    assert changed[:8] + packet[8:9] + changed[9:10] + packet[10:12] + changed[12:] == packet


@given(IPV4, st.integers(1, 65535))
def test_a_wrong_checksum_stays_wrong(packet: bytes, error: int) -> None:
    wrong = (struct.unpack_from("!H", packet, 10)[0] + error) & 0xFFFF
    buffer = bytearray(packet[:10] + struct.pack("!H", wrong) + packet[12:])
    was_valid = packets.Ip.parse(bytes(buffer)).valid
    header = parse(buffer, 0, len(buffer))
    assert header is not None
    decrement_ttl(buffer, 0, header)
    assert packets.Ip.parse(bytes(buffer)).valid == was_valid


@given(st.binary(max_size=70))
def test_parse_takes_any_bytes(data: bytes) -> None:
    header = parse(data, 0, len(data))
    if header is not None:
        assert data[0] >> 4 == 4
        assert 20 <= (data[0] & 15) * 4 <= header[2] <= len(data)


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        packets.ipv4(b"", A, B, 6)[:19],
        packets.ipv4(b"", A, B, 6, version=6),
        packets.ipv4(b"", A, B, 6, ihl=4),
        packets.ipv4(b"", A, B, 6, ihl=6),
        packets.ipv4(b"abc", A, B, 6, total=24),
        packets.ipv4(b"abc", A, B, 6, total=19),
    ],
)
def test_what_is_no_whole_packet_is_refused(packet: bytes) -> None:
    assert parse(packet, 0, len(packet)) is None


@pytest.mark.parametrize(
    ("kind", "mtu"), [(NET_UNREACHABLE, 0), (TIME_EXCEEDED, 0), (FRAGMENTATION_NEEDED, 1372)]
)
@given(IPV4)
def test_icmp_error_is_what_scapy_builds(kind: tuple[int, int], mtu: int, packet: bytes) -> None:
    answer = icmp_error(packet, kind, TUNNEL, mtu)
    assert answer is not None
    source = packets.Ip.parse(packet).src
    head = inet.IP(src="10.99.1.0", dst=str(source), tos=0xC0, id=0, ttl=64)
    icmp = inet.ICMP(type=kind[0], code=kind[1], unused=0, **({"nexthopmtu": mtu} if mtu else {}))
    assert answer == raw(head / icmp / packet)


def test_icmp_error_quotes_at_most_576_bytes_in_all() -> None:
    answer = icmp_error(packets.ipv4(bytes(1400), A, B, packets.UDP), TIME_EXCEEDED, TUNNEL)
    assert answer is not None
    assert len(answer) == 576


@pytest.mark.parametrize(
    ("packet", "answered"),
    [
        (packets.ipv4(packets.icmp(b"x", 8, 1), A, B, packets.ICMP), True),
        (packets.ipv4(packets.icmp(b"x", 3, 1), A, B, packets.ICMP), False),
        (packets.ipv4(packets.icmp(b"x", 11, 1), A, B, packets.ICMP), False),
        (packets.ipv4(packets.icmp(b"x", 5, 1), A, B, packets.ICMP), False),
        (packets.ipv4(b"", A, B, packets.ICMP), False),
        (packets.ipv4(b"x" * 8, A, B, packets.UDP, fragment=packets.MF), True),
        (packets.ipv4(b"x" * 8, A, B, packets.UDP, fragment=1), False),
        (packets.ipv4(b"x", A, IPv4Address("255.255.255.255"), packets.UDP), False),
        (packets.ipv4(b"x", A, IPv4Address("224.0.0.1"), packets.UDP), False),
        (packets.ipv4(b"x", IPv4Address("0.0.0.0"), B, packets.UDP), False),
        (packets.ipv4(b"x", IPv4Address("127.0.0.1"), B, packets.UDP), False),
        (packets.ipv4(b"x", IPv4Address("239.1.1.1"), B, packets.UDP), False),
    ],
)
def test_no_error_about_errors_later_fragments_or_crowds(packet: bytes, answered: bool) -> None:
    assert (icmp_error(packet, NET_UNREACHABLE, TUNNEL) is not None) == answered


def test_allowance_refills_with_time() -> None:
    allowance = Allowance(rate=8, burst=2)
    assert [allowance.take(100.0) for _ in range(3)] == [True, True, False]
    assert [allowance.take(100.125), allowance.take(100.125)] == [True, False]
    assert [allowance.take(200.0) for _ in range(3)] == [True, True, False]
