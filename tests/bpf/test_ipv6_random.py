"""Damaged packets through the programs for IPv6: whatever they are, nothing wrong comes out."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

from tests import packets
from tests.datapath import INET6, Action, Datapath
from tests.packets import DESTINATION, FRAGMENT, ICMPV6, TCP, UDP, extension, forwarded, fragment

CAST = INET6
PACKETS = 4000
HEAD = packets.ETH_LEN + packets.IPV6_LEN
INNER_AT = HEAD + 8 + 8
"""Where the inner frame begins on the wire."""
BODIES = [
    (UDP, packets.udp(b"payload!", 1000, 2000)),
    (UDP, packets.udp(b"odd", 1000, 2000)),
    (TCP, packets.tcp(b"data", 1000, 2000)),
    (ICMPV6, packets.icmp(b"ping", 128, 1000)),
    (DESTINATION, extension(UDP) + packets.udp(b"", 1000, 2000)),
    (FRAGMENT, fragment(UDP) + packets.udp(b"", 1000, 2000)),
]


@pytest.fixture(scope="module")
def datapath() -> Iterator[Datapath]:
    with Datapath(cast=CAST) as opened:
        yield opened.furnish()


def damaged(rng: Random, frame: bytes, most: int) -> bytes:
    """With up to three bytes of the first `most` changed, and perhaps cut off or longer."""
    raw = bytearray(frame)
    for _ in range(rng.randrange(4)):
        raw[rng.randrange(12, min(most, len(raw)))] = rng.choice((0, 1, 0xFF, rng.randrange(256)))
    if rng.random() < 0.1:
        return bytes(raw[: rng.randrange(HEAD, len(raw) + 1)])
    return bytes(raw) + bytes(rng.randrange(3) if rng.random() < 0.1 else 0)


def is_right(packet: bytes) -> bool:
    """Whether what is behind an IPv6 header has the checksum that it has to have, of exactly these bytes."""
    ip, l4 = packets.Ip.parse(packet), packet[packets.IPV6_LEN :]
    return ip.total == len(packet) and packets.with_checksum(l4, ip.src, ip.dst, ip.proto) == l4


def approve_all(datapath: Datapath) -> None:
    proto, question, _ = CAST.ping
    for kind in (UDP, TCP):
        datapath.approve(CAST.flow_out(kind))
        datapath.approve(CAST.flow_in(kind, sport=1000, dport=2000))
    datapath.approve(CAST.flow_out(proto, 1000, question << 8))
    datapath.approve(CAST.flow_in(proto, sport=1000, dport=question << 8))


def test_what_is_sent_has_two_right_checksums_or_two_wrong_ones(datapath: Datapath) -> None:
    rng, carried = Random(1), 0
    for number in range(PACKETS):
        if number % 100 == 0:
            approve_all(datapath)  # a damaged flag may have been a SYN
        proto, body = rng.choice(BODIES)
        frame = damaged(rng, CAST.sent(body, proto), 90)
        result = datapath.run("from_container", frame)
        if result.reason != "encap":
            assert (result.action, result.packet) == (Action.UNSPEC, frame), result.reason
            continue
        carried += 1
        tunnel = result.tunnel
        assert tunnel.frame[packets.ETH_LEN :] == forwarded(frame[packets.ETH_LEN :])
        assert is_right(result.packet[packets.ETH_LEN :]) == is_right(tunnel.frame[packets.ETH_LEN :])
    assert carried > PACKETS / 10


@pytest.mark.parametrize("program", ["from_wire", "from_wire_xdp"])
def test_what_is_let_in_is_the_peers_and_whole(datapath: Datapath, program: str) -> None:
    rng, carried = Random(2), 0
    for number in range(PACKETS):
        if number % 100 == 0:
            approve_all(datapath)
        proto, body = rng.choice(BODIES)
        frame = damaged(rng, CAST.wire(CAST.received(body, proto)), INNER_AT + 90)
        result = datapath.run(program, frame) if program == "from_wire" else datapath.xdp(frame)
        if result.reason != "decap":
            assert result.packet == frame, result.reason
            continue
        carried += 1
        outer, inner = (packets.Ip.parse(frame[at + packets.ETH_LEN :]) for at in (0, INNER_AT))
        assert (outer.src, outer.dst, inner.dst) == (CAST.peer.host, CAST.node.host, CAST.local)
        assert inner.src in CAST.peer_subnet
        assert packets.Tunnel.parse(frame).vni == CAST.node.vni
        sent = frame[INNER_AT + packets.ETH_LEN :]
        assert is_right(frame[packets.ETH_LEN :]) == is_right(sent), (
            "who verifies the one has verified the other"
        )
        assert packets.Ip.parse(result.packet[packets.ETH_LEN :]).ttl == inner.ttl - 1
        assert result.packet[HEAD:] == sent[packets.IPV6_LEN :]
    assert carried > PACKETS / 10
