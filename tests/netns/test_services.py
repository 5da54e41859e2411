"""Services: what netfilter translates bypasses as it translates it, at both ends of the client's node."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from tests.host import Container, served
from tests.lab import Lab, wait_until
from tests.namespace import Netns
from tests.netns.conftest import Pair, build
from tests.netns.parity.rules import PORT
from tests.netns.parity.talk import LOST, Server, servers, talk
from tests.stream import TRAFFIC, TcpSink

SERVICE, TURNS = "10.96.0.1", "10.96.0.2"
"""Of one endpoint; of two, by turns."""
PATIENCE = 25 * LOST
"""Seconds; what TCP has under way may be sent again."""
ENDS_AT_ONCE = struct.pack("ii", 1, 0)
"""SO_LINGER by which close() sends RST."""


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


def opened(client: Netns, to: str, port: int, kind: socket.SocketKind) -> socket.socket:
    """A socket of the client's at this port, connected to the service."""
    made = client.call(partial(socket.socket, socket.AF_INET, kind))
    made.settimeout(PATIENCE)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("", port))
    made.connect((to, PORT))
    return made


def converse(sock: socket.socket, conn: socket.socket, name: str, turns: int = 8) -> None:
    """Both ends of a connection, by turns."""
    for turn in range(turns):
        words = f"{name} {turn}".encode()
        for sender, receiver in ((sock, conn), (conn, sock)):
            sender.sendall(words)
            assert receiver.recv(100) == words


def accepted(answering: dict[str, Server]) -> tuple[str, socket.socket]:
    """By whom the connection is that has just been opened, and its end there."""
    ready, _, _ = select.select([each.tcp for each in answering.values()], [], [], PATIENCE)
    name = next(name for name, each in answering.items() if each.tcp in ready)
    conn, _ = answering[name].tcp.accept()
    conn.settimeout(PATIENCE)
    return name, conn


@pytest.fixture
def others(pair: Pair) -> Iterator[tuple[Container, Container]]:
    """A second container of each node, as long as a test."""
    made = pair.a.container("two"), pair.b.container("two")
    try:
        served(*made)
        yield made
    finally:
        for each in made:
            each.remove()


def test_two_clients_with_one_source_port_are_told_apart(
    pair: Pair, others: tuple[Container, Container]
) -> None:
    clients = (pair.on_a, others[0])
    before = carried(pair)
    with servers({"one": pair.on_b}) as answering, ExitStack() as stack:
        ends, asking = [], []
        for client in clients:
            sock = stack.enter_context(opened(client, SERVICE, 4000, socket.SOCK_STREAM))
            conn = stack.enter_context(accepted(answering)[1])
            assert conn.getpeername() == (client.address, 4000)
            ends.append((sock, conn))
            asking.append(stack.enter_context(opened(client, SERVICE, 4000, socket.SOCK_DGRAM)))
        for turn in range(8):
            for client, (sock, conn), udp in zip(clients, ends, asking, strict=True):
                converse(sock, conn, client.name, turns=1)
                udp.send(b"%d" % turn)
                data, seen = answering["one"].udp.recvfrom(100)
                assert seen == (client.address, 4000)
                answering["one"].udp.sendto(data, seen)
                assert udp.recv(100) == b"%d" % turn
        approved = {
            (row["src"], row["proto"])
            for row in pair.a.json("map", "dump", "flows")
            if (row["dst"], row["sport"]) == (SERVICE, 4000)
        }
    assert approved == {(client.address, proto) for client in clients for proto in ("tcp", "udp")}
    # Of 16 turns each way the first of each conversation go by the kernel path.
    assert all(now - was > 16 for now, was in zip(carried(pair), before, strict=True))


@pytest.mark.parametrize("ending", ["FIN", "RST"])
def test_a_port_that_is_used_again_at_once_leads_where_netfilter_says_now(
    pair: Pair, others: tuple[Container, Container], ending: str
) -> None:
    """One connection after the other, for each of which netfilter would have another endpoint.

    Of one that has bypassed conntrack takes FIN for its end, but no RST whose number it has not seen
    acknowledged: for ten seconds more the port is the old connection's, and leads where that led.
    """
    turns = f"numgen inc mod 2 map {{ 0 : {pair.on_b.address}, 1 : {others[1].address} }}"
    pair.a.nft(
        "table ip turns {\nchain translate { type nat hook prerouting priority dstnat;\n"
        f"ip daddr {TURNS} dnat to {turns}\n}}\n}}"
    )
    try:
        with servers({"one": pair.on_b, "two": others[1]}) as answering:
            names = [called_and_ended(pair, answering, ending) for _ in range(4)]
    finally:
        pair.a.nft("delete table ip turns\n")
    if ending == "FIN":
        assert all(one != other for one, other in pairwise(names)), names
    assert not invalid(pair)


def called_and_ended(pair: Pair, answering: dict[str, Server], ending: str) -> str:
    """Who has answered in a connection from the one port; all of it bypasses but its ends."""
    before = carried(pair)
    with opened(pair.on_a, TURNS, 4001, socket.SOCK_STREAM) as sock:
        name, conn = accepted(answering)
        with conn:
            converse(sock, conn, name)
            if ending == "RST":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ENDS_AT_ONCE)
                sock.close()
                with pytest.raises(ConnectionResetError):
                    conn.recv(1)
        if ending == "FIN":
            assert sock.recv(1) == b""
    assert all(now > was for now, was in zip(carried(pair), before, strict=True))
    return name


def fast_opened(server: Netns) -> int:
    """Connections whose first data came with the SYN."""
    text = server.call(lambda: Path("/proc/thread-self/net/netstat").read_text())
    names, values = (line.split() for line in text.splitlines() if line.startswith("TcpExt:"))
    return int(dict(zip(names, values, strict=True))["TCPFastOpenPassive"])


@pytest.mark.parametrize("service", [True, False], ids=["to a service", "to a container"])
def test_data_that_come_with_the_syn_arrive_and_what_follows_bypasses(pair: Pair, service: bool) -> None:
    """TCP Fast Open: the first connection asks for a cookie, the second has it."""
    for end in (pair.on_a, pair.on_b):
        end.sysctl("net.ipv4.tcp_fastopen", "3")
    to = SERVICE if service else pair.on_b.address
    with servers({"one": pair.on_b}) as answering:
        answering["one"].tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 16)
        seen, before = fast_opened(pair.on_b), carried(pair)
        for _ in range(2):
            with pair.on_a.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as sock:
                sock.sendto(b"first", socket.MSG_FASTOPEN, (to, PORT))
                sock.settimeout(PATIENCE)
                with accepted(answering)[1] as conn:
                    assert conn.recv(100) == b"first"
                    converse(sock, conn, "then")
        assert fast_opened(pair.on_b) == seen + 1
    assert all(now - was > 8 for now, was in zip(carried(pair), before, strict=True))
    assert not invalid(pair)
