"""Services: what netfilter translates bypasses as it translates it, at both ends of the client's node."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.host import served
from tests.lab import Lab, wait_until
from tests.namespace import Netns
from tests.netns.conftest import Pair, build
from tests.netns.parity.rules import PORT
from tests.netns.parity.talk import servers, talk
from tests.stream import TRAFFIC, TcpSink

SERVICE = "10.96.0.1"


def translate(place: Netns, to: str) -> None:
    """As kube-proxy has it, with its rule for what conntrack finds invalid."""
    place.nft(
        "table ip theirs {\n"
        "chain translate { type nat hook prerouting priority dstnat;\n"
        f"ip daddr {SERVICE} dnat to {to}\n}}\n"
        "chain refuse { type filter hook forward priority 0;\nct state invalid counter drop\n}\n}"
    )


@pytest.fixture(scope="module")
def nodes() -> Iterator[Pair]:
    with Lab() as made:
        pair = build(made)
        served(pair.on_a, pair.on_b)
        translate(pair.a, pair.on_b.address)
        yield pair


def carried(pair: Pair) -> tuple[int, int]:
    """Packets that bypassed on the client's node, out and in."""
    counters = pair.a.counters()
    return counters.get(("from_container", "encap"), 0), counters.get(("from_wire", "decap"), 0)


def invalid(pair: Pair) -> bool:
    return (
        "ct state invalid counter packets 0 " not in pair.a.run("nft", "list", "table", "ip", "theirs").stdout
    )


def test_a_connection_to_a_service_bypasses_both_ways(pair: Pair) -> None:
    sink = TcpSink(pair.on_b)
    before = carried(pair)
    pair.on_a.run(*TRAFFIC, "tcp-send", SERVICE, str(sink.port), str(20_000_000))
    out, into = (now - was for now, was in zip(carried(pair), before, strict=True))
    assert out > 20_000_000 // 65536 and into > 0
    assert not invalid(pair)
    flow = next(row for row in pair.a.json("map", "dump", "flows") if row["dst"] == SERVICE)
    assert flow["to"] == {"address": pair.on_b.address, "sport": flow["sport"], "dport": sink.port}
    hops = pair.a.json("trace", pair.on_a.address, SERVICE, "--dport", str(sink.port))
    assert pair.b.address in [hop["at"] for hop in hops if hop["hop"] == "peer"]


def test_questions_and_answers_in_datagrams_bypass_both_ways(pair: Pair) -> None:
    with servers({"two": pair.on_b}) as answering:
        before = carried(pair)
        told = talk(pair.on_a, (SERVICE, PORT), answering, rounds=20)
    assert set(told.udp) == {f"two saw {pair.on_a.address}, {SERVICE}:{PORT} answered"}
    assert all(now > was for now, was in zip(carried(pair), before, strict=True))
    assert not invalid(pair)


def test_what_was_learned_is_nobodys_any_more_when_it_is_flushed(pair: Pair) -> None:
    """And learned again, by the flow that goes on."""
    sink = TcpSink(pair.on_b, 9101)
    running = pair.on_a.popen(*TRAFFIC, "tcp-send", SERVICE, str(sink.port), str(2_000_000_000))
    wait_until(lambda: to_service(pair), 10, "the connection is learned")
    pair.a.ovctl("flow", "flush")
    before = carried(pair)
    wait_until(lambda: to_service(pair), 10, "and again")
    wait_until(lambda: carried(pair)[0] > before[0], 10, "it bypasses")
    running.stop()
    assert not invalid(pair)


def to_service(pair: Pair) -> bool:
    return any(row["dst"] == SERVICE for row in pair.a.json("map", "dump", "flows"))
