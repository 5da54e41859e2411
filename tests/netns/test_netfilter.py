"""Netfilter keeps its say: what it drops or translates is never bypassed, what it tracks stays tracked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.host import Host
from tests.lab import CommandFailed, Lab
from tests.netns.conftest import APPROVAL_TTL, Pair, build
from tests.stream import TcpSink, UdpStream, tcp_send

SERVICE = "10.96.0.1"
PORT = 9100
GRACE = 10
"""Seconds after an approval's end in which a slow machine has to notice it."""


@contextmanager
def rules(host: Host, name: str, text: str) -> Iterator[None]:
    """A table of that name with one chain, for the length of the block."""
    host.nft(f"table ip {name} {{\n{text}\n}}\n")
    try:
        yield
    finally:
        host.nft(f"delete table ip {name}\n")


def forward(rule: str) -> str:
    return f"chain forward {{ type filter hook forward priority filter; policy accept; {rule}\n}}"


def service(target: str) -> str:
    """kube-proxy's rule for a service, as far as it matters here."""
    rule = f"ip daddr {SERVICE} meta l4proto {{ tcp, udp }} th dport 80 dnat to {target}:{PORT}"
    return f"chain pre {{ type nat hook prerouting priority dstnat; {rule}\n}}"


def test_service_on_the_clients_host_reaches_a_remote_container(pair: Pair) -> None:
    server = TcpSink(pair.on_b, PORT)
    with rules(pair.a, "test_service", service(pair.on_b.address)):
        told = tcp_send(pair.on_a, SERVICE, 50_000_000, port=80)
        assert told["seen_as"] == pair.on_a.address
        (end,) = server.wait_for(1)
        assert (end["bytes"], end["end"]) == (50_000_000, "fin")
        tcp_send(pair.on_a, pair.on_b.address, 50_000_000, port=PORT)  # the same server without the service
    server.stop()


def test_datagrams_that_nobody_answers_are_not_learned_where_they_are_translated(pair: Pair) -> None:
    with rules(pair.a, "test_service", service(pair.on_b.address)):
        stream = UdpStream(pair.on_a, pair.on_b, pair.on_b.address, port=PORT)
        stream.source.stop()
        again = pair.on_a.popen("python3", "tests/traffic.py", "udp-send", SERVICE, "80", "1000")
        stream.source = again
        stream.advance(2)
        flows = pair.a.json("map", "dump", "flows")
        assert [row for row in flows if (row["dst"], row["proto"]) == (SERVICE, "udp")] == []
        assert pair.a.counters()[("to_overlay", "changed")] > 1000
        stream.source.stop()
        stream.sink.stop()


@pytest.mark.parametrize("which", ["sender", "receiver"])
def test_drop_rule_holds_at_once_for_new_flows(pair: Pair, which: str) -> None:
    host = pair.a if which == "sender" else pair.b
    server = TcpSink(pair.on_b, PORT)
    with rules(host, "test_policy", forward(f"ip daddr {pair.on_b.address} drop")):
        for _ in range(3):
            with pytest.raises(CommandFailed):
                tcp_send(pair.on_a, pair.on_b.address, port=PORT, timeout=0.5)
        assert pair.on_a.run("ping", "-c3", "-i0.1", "-W1", pair.on_b.address, check=False).returncode == 1
    tcp_send(pair.on_a, pair.on_b.address, port=PORT)
    server.stop()


@pytest.mark.parametrize("which", ["sender", "receiver"])
def test_drop_rule_holds_for_running_flows_when_their_approval_ends(pair: Pair, which: str) -> None:
    host = pair.a if which == "sender" else pair.b
    stream = UdpStream(pair.on_a, pair.on_b, pair.on_b.address, rate=2000)
    stream.advance(1)
    with rules(host, "test_policy", forward(f"ip daddr {pair.on_b.address} drop")):
        stream.stall(APPROVAL_TTL + GRACE)
    stream.advance(1)  # and it flows again when the rule is gone
    stream.finish()


def test_flow_flush_makes_a_drop_rule_hold_now(lab: Lab) -> None:
    pair = build(lab, "--approval-ttl", "3600")
    stream = UdpStream(pair.on_a, pair.on_b, pair.on_b.address, rate=2000)
    stream.advance(3)  # the first approval of UDP lasts two seconds
    with rules(pair.a, "test_policy", forward(f"ip daddr {pair.on_b.address} drop")):
        stream.advance(2)  # the next one an hour
        pair.a.ovctl("flow", "flush")
        stream.stall(GRACE)
    stream.finish()


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
def test_long_flow_closes_under_a_rule_that_drops_invalid(pair: Pair, reset: bool) -> None:
    """Conntrack has seen a hundredth of this connection when its end comes."""
    drop = forward("ct state invalid counter drop")
    before = pair.a.bypassed(), pair.b.bypassed()
    with rules(pair.a, "test_strict", drop), rules(pair.b, "test_strict", drop):
        for source, sink in ((pair.on_a, pair.on_b), (pair.on_b, pair.on_a)):
            server = TcpSink(sink, PORT)
            tcp_send(source, sink.address, 400_000_000, port=PORT, reset=reset, timeout=10)
            (end,) = server.wait_for(1)
            assert end["end"] == ("rst" if reset else "fin")
            server.stop()
    for host, then in zip((pair.a, pair.b), before, strict=True):
        assert host.bypassed()[0] - then[0] > 1000, "most of it was bypassed, else this shows nothing"


def test_conntrack_keeps_a_bypassed_connection(pair: Pair) -> None:
    """Packets that renew the approval refresh the entry, which a firewall counts on."""
    port = PORT + 1
    server = TcpSink(pair.on_b, port)
    with rules(pair.a, "test_track", forward("ct state established accept; ct state new accept; drop")):
        tcp_send(pair.on_a, pair.on_b.address, 50_000_000, port=port)
        entry = pair.a.run("conntrack", "-L", "-p", "tcp", "--dport", str(port)).stdout
    server.stop()
    assert pair.on_b.address in entry
    assert "[ASSURED]" in entry


def test_forwarding_survives_a_drop_policy(pair: Pair) -> None:
    """What Docker does to the FORWARD chain of iptables, here without Docker."""
    for host in (pair.a, pair.b):
        host.run("iptables", "-P", "FORWARD", "DROP")
    try:
        server = TcpSink(pair.on_b, PORT)
        tcp_send(pair.on_a, pair.on_b.address, 1_000_000, port=PORT)
        server.stop()
    finally:
        for host in (pair.a, pair.b):
            host.run("iptables", "-P", "FORWARD", "ACCEPT")
