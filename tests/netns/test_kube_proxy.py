"""Beside kube-proxy, in each of its modes: who is reached, and as whom he sees who calls, as without eBPF.

The table is what real kube-proxy and flanneld gave on two nodes. Each line is said twice, over UDP and TCP:
the second time its packets may bypass, as netfilter leaves or translates them.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import pytest

from tests.host import Host
from tests.kube.cluster import HOST_PORT, MODES, PORT, Cluster, cluster
from tests.lab import wait_until
from tests.namespace import Netns
from tests.netns.parity.talk import LOST, servers, talk
from tests.stream import TcpSink

SOON = 30
REFUSED = ("Connection refused",)
DROPPED = ("lost",)
ALL, LOCAL, NOBODY, DNS, STICKY = 10, 11, 12, 13, 14
"""Of services: behind it the pod web; the same for node ports with policy Local; none."""


@dataclass(frozen=True, slots=True)
class Line:
    """Who calls whom, and as whom he is seen: what answers, by what name."""

    client: str
    to: str
    seen_as: str
    carried: str = ""
    """The nodes on which eBPF carries at least some of it."""
    server: str = "web"


LINES = (
    Line("client", "web", "client", "n1 n2"),
    Line("client", "cluster address", "client", "n1 n2"),
    Line("client", "n1: node port", "n1's tunnel", "n2"),
    Line("client", "n2: node port", "n2's bridge"),
    Line("client", "n2: local node port", "n1"),
    Line("client", "n1: local node port", "client", "n1 n2"),
    Line("client", "cluster address of nobody", "refused"),
    Line("client", "n2: host port", "n1"),
    Line("n1", "web", "n1's tunnel", "n2"),
    Line("n1", "cluster address", "n1's tunnel", "n2"),
    Line("n1", "n1: node port", "n1's tunnel", "n2"),
    Line("web", "cluster address", "n2's bridge"),
    Line("web", "n2: local node port", "n2's bridge"),
    Line("outside", "n1: node port", "n1's tunnel", "n2"),
    Line("outside", "n2: node port", "n2's bridge"),
    Line("outside", "n2: local node port", "outside"),
    Line("outside", "n2: host port", "outside"),
    Line("outside", "n1: local node port", "dropped"),
    # Besides, on one node: kubelet's probes, and a service whose pod is here too.
    Line("n1", "near", "n1's bridge", server="near"),
    Line("client", "near", "client", server="near"),
)


@pytest.fixture(scope="module", params=MODES)
def nodes(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with cluster(request.param) as made:
        made.serve("all", ALL, "web")
        made.serve("local", LOCAL, "web", local=True)
        made.serve("nobody", NOBODY)
        yield made


def target(nodes: Cluster, words: str) -> tuple[str, int]:
    """Address and port of what a line names."""
    at, _, port = words.rpartition(": ")
    if at:
        ports = {"node port": 30000 + ALL, "local node port": 30000 + LOCAL, "host port": HOST_PORT}
        return {"n1": nodes.n1, "n2": nodes.n2}[at].address, ports[port]
    numbers = {"cluster address": ALL, "cluster address of nobody": NOBODY}
    return (f"10.96.0.{numbers[words]}", 80) if words in numbers else (nodes.pods[words].address, PORT)


def address(nodes: Cluster, words: str) -> str:
    """Of whom a line names."""
    name, _, device = words.partition("'s ")
    if device:
        gateway = {"n1": nodes.n1, "n2": nodes.n2}[name].gateway
        return str(gateway.ip if device == "bridge" else gateway.network.network_address)
    hosts = {each.name: each.address for each in nodes.lab.hosts}
    return nodes.pods[name].address if name in nodes.pods else hosts[name]


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line.client} to {line.to}")
def test_who_is_called_sees_the_caller_as_he_does_without_ebpf(nodes: Cluster, line: Line) -> None:
    before = nodes.carried()
    to = target(nodes, line.to)
    with servers(nodes.pods) as answering:
        told = [talk(nodes.place(line.client), to, answering) for _ in range(2)]
    for each in told:
        if line.seen_as in ("refused", "dropped"):
            assert each.udp == each.tcp == (REFUSED if line.seen_as == "refused" else DROPPED)
        else:
            seen = f"{line.server} saw {address(nodes, line.seen_as)}"
            assert set(each.udp) == {f"{seen}, {to[0]}:{to[1]} answered"}
            assert (each.tcp[0], each.tcp[-1]) == (seen, "closed")
    after = nodes.carried()
    assert set(line.carried.split()) <= {name for name in after if after[name] > before[name]}
    for host in (nodes.n1, nodes.n2):
        assert not [found for found in nodes.counted(host) if found[1] == "spoofed_source"]
        assert invalid(host) == (0 if nodes.mode == "iptables" else None)


def invalid(host: Host) -> int | None:
    """Packets that kube-proxy's rule has dropped because conntrack found them invalid; None: no such rule."""
    lines = host.run("iptables-save", "--counters", "--table", "filter").stdout.splitlines()
    found = [line for line in lines if "KUBE-FORWARD" in line and "INVALID" in line]
    return int(found[0][1:].split(":")[0]) if found else None


def answered(nodes: Cluster, to: tuple[str, int], calls: int) -> list[str]:
    """Which pods have answered the client, call by call, each from a new socket."""
    with servers(nodes.pods) as answering:
        told = [talk(nodes.pods["client"], to, answering, rounds=1) for _ in range(calls)]
    return [each.tcp[0].split()[0] for each in told]


def test_who_has_been_answered_by_a_pod_is_answered_by_it_again(nodes: Cluster) -> None:
    service = nodes.serve("sticky", STICKY, "web", "near")
    assert set(answered(nodes, (service, 80), 4)) == {"web", "near"}, "else this shows nothing"
    nodes.serve("sticky", STICKY, "web", "near", affinity=60)
    assert len(set(answered(nodes, (service, 80), 6))) == 1


def test_a_running_flow_follows_its_service_and_a_connection_stays(nodes: Cluster) -> None:
    """The pod behind a service is replaced. kube-proxy deletes what conntrack knows of UDP, not of TCP; eBPF
    goes on with what it has learned for as long as an approval lasts.
    """
    service = nodes.serve("dns", DNS, "web")
    client = nodes.pods["client"]
    with servers(nodes.pods) as answering, ExitStack() as stack:
        udp = stack.enter_context(client.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
        udp.settimeout(LOST)
        udp.connect((service, 80))
        tcp = stack.enter_context(client.call(lambda: socket.create_connection((service, 80), timeout=LOST)))
        conn = stack.enter_context(answering["web"].tcp.accept()[0])
        web, near = answering["web"].udp, answering["near"].udp
        for server in (web, near):
            server.settimeout(LOST)
            for turn in range(20):
                udp.send(b"%d" % turn)
                data, seen = server.recvfrom(10)
                assert seen[0] == client.address
                server.sendto(data, seen)
                assert udp.recv(10) == b"%d" % turn
                tcp.sendall(b"still here")
                assert conn.recv(10) == b"still here"
            if server is web:
                nodes.serve("dns", DNS, "near")
                gone = ("-p", "udp", "--orig-dst", service, "--dst-nat", nodes.pods["web"].address)
                nodes.n1.run("conntrack", "-D", *gone)
                wait_until(partial(_comes_to, near, udp), SOON, "the flow has followed")


def _comes_to(server: socket.socket, sock: socket.socket) -> bool:
    """Whether what is sent now comes to the server, which is asked for nothing then."""
    sock.send(b"anybody")
    server.settimeout(0.1)
    try:
        return bool(server.recv(10))
    except TimeoutError:
        return False


def test_two_questions_at_once_are_both_answered(nodes: Cluster) -> None:
    """A resolver's, for A and AAAA: from one socket, before conntrack knows it."""
    service = nodes.serve("dns", DNS, "web")
    client = nodes.pods["client"]
    with servers(nodes.pods) as answering, ExitStack() as stack:
        server = answering["web"].udp
        server.settimeout(LOST)
        for _ in range(20):
            sock = stack.enter_context(client.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
            sock.settimeout(LOST)
            together = threading.Barrier(2)
            asking = [threading.Thread(target=_ask, args=(sock, together, service)) for _ in range(2)]
            for each in asking:
                each.start()
            for _ in asking:
                server.sendto(*server.recvfrom(10))
            for each in asking:
                each.join()
                assert sock.recv(10) == b"name"


def _ask(sock: socket.socket, together: threading.Barrier, service: str) -> None:
    together.wait()
    sock.sendto(b"name", (service, 80))


def test_a_pod_reaches_the_cache_of_its_node_past_conntrack(nodes: Cluster) -> None:
    """An address of no network on an interface of its own, as node-local DNS has it."""
    cache, n1 = "169.254.20.10", nodes.n1
    one_way = f"-d {cache}/32 -p udp --dport {PORT} -j NOTRACK"
    back = f"-s {cache}/32 -p udp --sport {PORT} -j NOTRACK"
    lines = f"-A PREROUTING {one_way}\n-A OUTPUT {one_way}\n-A OUTPUT {back}\n"
    n1.ip("link", "add", "nodelocaldns", "type", "ifb")
    n1.ip("addr", "add", f"{cache}/32", "dev", "nodelocaldns")
    n1.run("iptables-restore", "--noflush", stdin=f"*raw\n{lines}COMMIT\n")
    try:
        with _bound(n1, cache) as server, _bound(nodes.pods["client"], "") as sock:
            for turn in range(10):
                sock.sendto(b"%d" % turn, (cache, PORT))
                data, seen = server.recvfrom(10)
                assert seen[0] == nodes.pods["client"].address
                server.sendto(data, seen)
                assert sock.recvfrom(10) == (b"%d" % turn, (cache, PORT))
        assert cache not in n1.run("conntrack", "-L", "-p", "udp").stdout
    finally:
        n1.run("iptables-restore", "--noflush", stdin=f"*raw\n{lines.replace('-A', '-D')}COMMIT\n")
        n1.ip("link", "del", "nodelocaldns")


def _bound(place: Netns, address: str) -> socket.socket:
    sock = place.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sock.settimeout(LOST)
    sock.bind((address, PORT))
    return sock


class Caller:
    """Calls a service over and over, each time by a new connection."""

    def __init__(self, client: Netns, service: str) -> None:
        self._client, self._service = client, service
        self._over = threading.Event()
        self.calls = 0
        self.failures: list[str] = []
        self._thread = threading.Thread(target=self._call)
        self._thread.start()

    def _call(self) -> None:
        with self._client.entered():
            while not self._over.wait(0.01):
                try:
                    with socket.create_connection((self._service, 80), timeout=1) as sock:
                        assert sock.recv(100)
                except OSError as error:
                    self.failures.append(f"call {self.calls}: {error}")
                self.calls += 1

    def advance(self, calls: int) -> None:
        """Returns when so many more have been answered."""
        wanted = self.calls + calls
        wait_until(lambda: self.calls >= wanted or self.failures, SOON, f"{calls} calls")
        assert self.failures == []

    def end(self) -> None:
        self._over.set()
        self._thread.join()


@contextmanager
def called(client: Netns, service: str) -> Iterator[Caller]:
    caller = Caller(client, service)
    try:
        yield caller
    finally:
        caller.end()
    assert caller.failures == []


@pytest.mark.parametrize("which", ["n1", "n2"], ids=["the client's", "the server's"])
def test_no_call_fails_while_the_agent_ends_and_starts(nodes: Cluster, which: str) -> None:
    host = {"n1": nodes.n1, "n2": nodes.n2}[which]
    sink = TcpSink(nodes.pods["web"], PORT)
    try:
        with called(nodes.pods["client"], f"10.96.0.{ALL}") as caller:
            caller.advance(10)
            nodes.agents[which].stop()
            caller.advance(10)
            nodes.start(host)
            caller.advance(10)
            nodes.agents[which].kill()
            caller.advance(10)
            nodes.start(host, "--hook", "tc", "--approval-ttl", "2")  # other programs: as an upgrade has them
            caller.advance(10)
            nodes.agents[which].stop()
            nodes.start(host)
            caller.advance(10)
    finally:
        sink.stop()
        nodes.revive(host)


def test_no_call_on_the_node_fails_while_the_overlay_is_torn_down_and_set_up_again(nodes: Cluster) -> None:
    service = nodes.serve("dns", DNS, "near")
    sink = TcpSink(nodes.pods["near"], PORT)
    try:
        with called(nodes.pods["client"], service) as caller:
            caller.advance(10)
            nodes.agents["n1"].stop()
            nodes.n1.teardown()
            caller.advance(10)
            nodes.start(nodes.n1)
            caller.advance(10)
    finally:
        sink.stop()
        nodes.revive(nodes.n1)
