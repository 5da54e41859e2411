"""What the kernel path does to a flow's packets happens to all of them, or eBPF leaves the flow alone."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

import pytest

from tests.host import Container, Host
from tests.lab import Lab, wait_until
from tests.netns.conftest import APPROVAL_TTL, Pair, build
from tests.netns.test_netfilter import forward, rules
from tests.stream import TcpSink, UdpStream, tcp_send

PORT = 9300
EF = 46 << 2
"""TOS byte of expedited forwarding (RFC 3246)."""
UDP_SEGMENT = 103
"""linux/udp.h"""
SO_RCVBUFFORCE = 33
"""asm-generic/socket.h"""
ENOUGH = 2 * APPROVAL_TTL + 0.5
"""Seconds in which every approval of a flow ends at least twice."""


KERNEL_PATH = "kernel-path"


@pytest.fixture(autouse=True)
def bypassing(nodes: Pair) -> None:
    """Containers are known to the agents a moment after their first packet."""

    def bypassed() -> bool:
        before = [(encapsulated(host), decapsulated(host)) for host in (nodes.a, nodes.b)]
        nodes.on_a.run("ping", "-c3", "-i0.05", "-W2", nodes.on_b.address)
        after = [(encapsulated(host), decapsulated(host)) for host in (nodes.a, nodes.b)]
        return all(now[0] > then[0] and now[1] > then[1] for now, then in zip(after, before, strict=True))

    wait_until(bypassed, 10, "eBPF carries a ping and its answer")


@dataclass
class Line:
    """Two UDP sockets and one datagram at a time between them."""

    sender: socket.socket
    receiver: socket.socket
    to: tuple[str, int]

    def tos(self) -> int:
        """Send a datagram; the TOS with which it arrives."""
        self.sender.sendto(b"x" * 100, self.to)
        _, ancillary, _, _ = self.receiver.recvmsg(2000, 100)
        return next(data[0] for level, kind, data in ancillary if kind == socket.IP_TOS)

    def tos_for(self, seconds: float) -> list[int]:
        """Every TOS in that time, of a datagram each 5 ms."""
        found, end = [], time.monotonic() + seconds
        while time.monotonic() < end:
            found.append(self.tos())
            time.sleep(0.005)  # a pace, not a wait
        return found


@contextmanager
def line(source: Container, sink: Container, port: int = PORT) -> Iterator[Line]:
    """A flow of its own; `port` is the receiver's."""
    with source.call(sender) as sending, sink.call(partial(receiver, port)) as receiving:
        yield Line(sending, receiving, (sink.address, port))


def sender() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind(("", 0))
    return made


def receiver(port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
    made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
    made.bind(("", port))
    made.settimeout(20)
    return made


def encapsulated(host: Host) -> int:
    return host.counters().get(("from_container", "encap"), 0)


def decapsulated(host: Host) -> int:
    return host.counters().get(("from_wire", "decap"), 0)


@pytest.mark.parametrize("which", ["sender", "receiver"])
def test_a_rewritten_dscp_is_rewritten_on_every_packet(pair: Pair, which: str) -> None:
    host = pair.a if which == "sender" else pair.b
    with (
        rules(host, "test_dscp", forward("ip protocol udp ip dscp set ef")),
        line(pair.on_a, pair.on_b) as flow,
    ):
        seen = flow.tos_for(ENOUGH)
    assert set(seen) == {EF}
    assert len(seen) > 20


@pytest.mark.parametrize("which", ["sender", "receiver"])
def test_a_dscp_rule_reaches_a_running_flow_when_its_approval_ends_and_stays(pair: Pair, which: str) -> None:
    host = pair.a if which == "sender" else pair.b
    with line(pair.on_a, pair.on_b) as flow:
        before = encapsulated(pair.a)
        assert set(flow.tos_for(ENOUGH)) == {0}
        assert encapsulated(pair.a) > before + 20, "it was bypassed, else this shows nothing"
        with rules(host, "test_dscp", forward("ip protocol udp ip dscp set ef")):
            wait_until(lambda: flow.tos() == EF, APPROVAL_TTL + 10, "the rule reaches the flow", every=0.01)
            assert set(flow.tos_for(ENOUGH)) == {EF}
        wait_until(lambda: flow.tos() == 0, APPROVAL_TTL + 10, "the rule is gone", every=0.01)


@contextmanager
def classes(host: Host) -> Iterator[None]:
    """An htb on the uplink: class 1:20 for all but what has a priority or mark of KEPT."""
    tc = partial(host.run, "tc")
    tc("qdisc", "add", "dev", "eth0", "root", "handle", "1:", "htb", "default", "20")
    for minor in ("10", "11", "20"):
        tc("class", "add", "dev", "eth0", "parent", "1:", "classid", f"1:{minor}", "htb", "rate", "10gbit",
           "quantum", "60000")  # fmt: skip
    for minor, mark in (("10", 0x77), ("11", 0x78)):
        # Classic BPF: load skb->mark (SKF_AD_OFF + SKF_AD_MARK); all ones if it is the one, else 0.
        code = f"4,32 0 0 4294963220,21 0 1 {mark},6 0 0 4294967295,6 0 0 0"
        tc("filter", "add", "dev", "eth0", "parent", "1:", "protocol", "all", "prio", minor,
           "bpf", "bytecode", code, "flowid", f"1:{minor}")  # fmt: skip
    try:
        yield
    finally:
        tc("qdisc", "del", "dev", "eth0", "root")


KEPT = {
    "priority": ('priority set "1:10"', 'priority set "1:11"'),
    "mark": ("mark set 0x77", "mark set 0x78"),
}
"""Statements of nftables, for classes 1:10 and 1:11."""


def sent_in_class(host: Host, minor: str) -> int:
    """Packets that left through a class of the uplink's htb."""
    shown = host.run("tc", "-s", "class", "show", "dev", "eth0").stdout
    found = re.search(rf"class htb 1:{minor} .*?Sent \d+ bytes (\d+) pkt", shown, re.DOTALL)
    assert found, shown
    return int(found[1])


def postrouting(rule: str) -> str:
    return f"chain post {{ type filter hook postrouting priority mangle; policy accept; {rule}\n}}"


@pytest.mark.parametrize("kept", KEPT)
def test_what_netfilter_sets_for_the_uplinks_qdisc_holds_for_bypassed_packets(pair: Pair, kept: str) -> None:
    count = 300
    rule = postrouting(f"udp dport {PORT} meta {KEPT[kept][0]}")
    with classes(pair.a), rules(pair.a, "test_class", rule), line(pair.on_a, pair.on_b) as flow:
        bypassed = encapsulated(pair.a)
        for _ in range(count):
            flow.tos()
        assert sent_in_class(pair.a, "10") == count
        assert encapsulated(pair.a) - bypassed > count * 0.8, "most of it was bypassed"


@pytest.mark.parametrize("kept", KEPT)
def test_what_netfilter_sets_anew_reaches_a_running_flow(pair: Pair, kept: str) -> None:
    with classes(pair.a), line(pair.on_a, pair.on_b) as flow:
        for statement, minor in zip(KEPT[kept], ("10", "11"), strict=True):
            with rules(pair.a, "test_class", postrouting(f"udp dport {PORT} meta {statement}")):
                # Its first packets may still go by the approval of an earlier rule.
                wait_until(partial(moves, pair.a, flow, minor), APPROVAL_TTL + 10, f"class 1:{minor} is used")
                before, bypassed = sent_in_class(pair.a, minor), encapsulated(pair.a)
                for _ in range(200):
                    flow.tos()
                assert sent_in_class(pair.a, minor) - before == 200
                assert encapsulated(pair.a) - bypassed > 100, "most of it was bypassed"


def moves(host: Host, flow: Line, minor: str) -> bool:
    """Whether a datagram leaves through a class."""
    before = sent_in_class(host, minor)
    flow.tos()
    return sent_in_class(host, minor) > before


@pytest.mark.parametrize("way", ["a to b", "b to a"])
def test_udp_segments_sent_as_one_packet_arrive_whole_every_time(pair: Pair, way: str) -> None:
    source, sink = (pair.on_a, pair.on_b) if way == "a to b" else (pair.on_b, pair.on_a)
    size, segment = 60_000, 1400
    with line(source, sink, PORT + 1) as flow:
        flow.sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, segment)
        for turn in range(6):
            data = bytes([turn]) * size
            assert flow.sender.sendto(data, flow.to) == size
            got = b"".join(received(flow.receiver, size))
            assert got == data, f"turn {turn}: {len(got)} of {size} bytes"


def received(sink: socket.socket, size: int) -> Iterator[bytes]:
    """Datagrams until that many bytes are there, or none comes any more."""
    with suppress(TimeoutError):
        while size > 0:
            datagram = sink.recv(1 << 16)
            size -= len(datagram)
            yield datagram


def test_tcp_is_counted_by_its_segments(pair: Pair) -> None:
    size = 50_000_000
    least = size // 1500
    before = pair.a.counters(), pair.b.counters()
    stats = [peer_packets(pair.a, "tx_packets"), peer_packets(pair.b, "rx_packets")]
    server = TcpSink(pair.on_b, PORT + 2)
    tcp_send(pair.on_a, pair.on_b.address, size, port=PORT + 2)
    server.stop()
    sent = since(pair.a, "from_container", before[0])
    came = since(pair.b, "from_wire", before[1])
    assert sent["encap"] >= least * 0.9
    assert came["decap"] >= least * 0.9
    assert sum(sent.values()) >= least
    assert sum(came.values()) >= least
    tunnelled = since(pair.a, "tunnel_out", before[0])["tunnel_encap"]
    assert peer_packets(pair.a, "tx_packets") - stats[0] == sent["encap"] + tunnelled
    let_in = since(pair.b, "tunnel_in", before[1])["tunnel_decap"]
    assert peer_packets(pair.b, "rx_packets") - stats[1] == came["decap"] + let_in


def since(host: Host, hook: str, before: dict[tuple[str, str], int]) -> dict[str, int]:
    """Packets at a hook by reason, beyond those of `before`."""
    now = host.counters()
    return {key[1]: count - before.get(key, 0) for key, count in now.items() if key[0] == hook}


def peer_packets(host: Host, name: str) -> int:
    return sum(row[name] for row in host.json("map", "dump", "peer_stats"))


@contextmanager
def wiretap(lab: Lab, host: Host) -> Iterator[socket.socket]:
    """Every frame on the host's cable, both ways."""

    def tap() -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
        made.bind((host.name, 3))
        made.setblocking(False)
        return made

    with lab.wire.call(tap) as sock:
        yield sock


def frames(tap: socket.socket) -> list[bytes]:
    """What the tap has seen until now."""
    found = []
    with suppress(BlockingIOError):
        while True:
            found.append(tap.recv(1 << 16))
    return found


def peer_flags(host: Host) -> set[str]:
    return {flag for row in host.json("map", "dump", "peers") for flag in row["flags"]}


def route_event(host: Host) -> None:
    """Something that has nothing to do with us, but makes the agent look at the routes again."""
    host.ip("route", "add", "10.99.0.0/24", "dev", "eth0")
    host.ip("route", "del", "10.99.0.0/24", "dev", "eth0")


def test_what_an_ipsec_policy_protects_never_leaves_in_clear(lab: Lab) -> None:
    """There is a policy but no key, so whatever shows on the wire has gone past the policy."""
    pair = build(lab)
    stream = UdpStream(pair.on_a, pair.on_b, pair.on_b.address)
    stream.advance(2)
    assert encapsulated(pair.a) > stream.rate, "it was bypassed"
    policy = ("src", pair.a.address, "dst", pair.b.address, "dir", "out")
    pair.a.ip("xfrm", "policy", "add", *policy, "tmpl", "proto", "esp", "mode", "transport",
              "level", "required")  # fmt: skip
    wait_until(lambda: KERNEL_PATH in peer_flags(pair.a), 10, "the peer is left to the kernel path")
    with wiretap(lab, pair.a) as tap:
        before = pair.a.counters()

        def sent_since() -> int:
            return since(pair.a, "from_container", before).get("peer_kernel_path", 0)

        wait_until(lambda: sent_since() > 300, 10, "the container goes on sending")
        clear = [frame for frame in frames(tap) if b"\x21\x18" in frame[36:38]]  # UDP to port 8472
        assert clear == []
    assert any("IPsec" in line for line in pair.a.status()["problems"])
    pair.a.ip("xfrm", "policy", "delete", *policy)
    wait_until(lambda: KERNEL_PATH not in peer_flags(pair.a), 10, "the peer is eBPF's again")
    before_bypass = encapsulated(pair.a)
    stream.advance(1)
    assert encapsulated(pair.a) > before_bypass
    stream.source.stop()
    stream.sink.stop()
    assert not any("IPsec" in line for line in pair.a.status()["problems"])


def test_a_peer_behind_a_smaller_route_mtu_is_the_kernels(pair: Pair) -> None:
    stream = UdpStream(pair.on_a, pair.on_b, pair.on_b.address)
    stream.advance(1)
    pair.a.ip("route", "add", f"{pair.b.address}/32", "dev", "eth0", "mtu", "1300")
    try:
        wait_until(lambda: KERNEL_PATH in peer_flags(pair.a), 10, "the peer is left to the kernel path")
        bypassed = encapsulated(pair.a)
        stream.advance(1)
        assert encapsulated(pair.a) == bypassed
        assert pair.a.status()["peers_kernel_path"] == 1
    finally:
        pair.a.ip("route", "del", f"{pair.b.address}/32", "dev", "eth0")
    wait_until(lambda: KERNEL_PATH not in peer_flags(pair.a), 10, "the peer is eBPF's again")
    stream.advance(1)
    assert encapsulated(pair.a) > bypassed
    sent, tally = stream.finish()
    assert (tally.received, tally.duplicates) == (sent, 0)


def test_a_route_mtu_that_is_no_smaller_changes_nothing(pair: Pair) -> None:
    pair.a.ip("route", "add", f"{pair.b.address}/32", "dev", "eth0", "mtu", "1500")
    try:
        route_event(pair.a)
        before = pair.a.status()["reconcile"]["ok"]
        route_event(pair.a)
        wait_until(lambda: pair.a.status()["reconcile"]["ok"] > before, 10, "the agent has looked")
        assert KERNEL_PATH not in peer_flags(pair.a)
    finally:
        pair.a.ip("route", "del", f"{pair.b.address}/32", "dev", "eth0")
