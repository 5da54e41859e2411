"""What breaks around a node: the rest goes on, someone is told, and what was taken away comes back."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests import packets
from tests.hooks import programs, put_foreign_filter
from tests.host import METRICS_PORT, Agent, Host, ovctl_argv
from tests.lab import Container, Lab, wait_until
from tests.namespace import REPOSITORY
from tests.netns.conftest import APPROVAL_TTL, Pair, build
from tests.stream import TcpSink, UdpStream, tcp_send

BCC = Path("/usr/lib/python3/dist-packages/bcc")
SOON = 10.0
"""Seconds within which an agent notices and mends what it hears of."""
FAST = ("--approval-ttl", str(APPROVAL_TTL))


def reaches(source: Container, sink: Container, port: int = 9100) -> None:
    """Ping, TCP and its answers pass; more than once, so that either path is taken."""
    source.run("ping", "-c5", "-i0.05", "-W2", sink.address)
    server = TcpSink(sink, port)
    assert tcp_send(source, sink.address, 1_000_000, port=port)["seen_as"] == source.address
    server.stop()


def dropped(host: Host) -> list[dict[str, object]]:
    return [row for row in host.json("map", "dump", "counters") if row["verdict"] in ("drop", "abort")]


def complaints(host: Host) -> str:
    """What `ovctl status` says; it must say that something is wrong."""
    done = host.ovctl("status", check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout + done.stderr


def healthy(host: Host) -> bool:
    return host.ovctl("status", check=False).returncode == 0


def endpoint_of(host: Host, container: Container) -> str | None:
    """The port by which a container is known."""
    rows = host.json("map", "dump", "endpoints")
    return next((row["dev"] for row in rows if row["ip"] == container.address), None)


def carries(host: Host, source: Container, sink: Container) -> bool:
    """Whether eBPF on `host` takes part in a ping from one container to the other."""
    before = host.bypassed()[0]
    source.run("ping", "-c4", "-i0.05", "-W1", sink.address, check=False)
    return host.bypassed()[0] > before


def wait_carries(host: Host, source: Container, sink: Container) -> None:
    wait_until(partial(carries, host, source, sink), SOON, f"eBPF of {host.name} carries the ping")


def agent_without_bcc(host: Host) -> Agent:
    """An agent that sees an empty bcc package, in a mount namespace of its own."""
    script = f'mount -t tmpfs none {BCC} && exec "$@"'
    agent = Agent(
        host.argv("unshare", "--mount", "sh", "-c", script, "sh", *ovctl_argv(), "agent", *FAST),
        host.lab.dir / f"agent-{host.name}-without-bcc",
        env=host.environment(),
        cwd=REPOSITORY,
    )
    agent.host = host
    host.lab.at_close(partial(agent.kill, signal.SIGKILL))
    return agent


def test_without_a_compiler_the_kernel_path_carries(lab: Lab) -> None:
    a, b = lab.host("a"), lab.host("b")
    lab.init_network()
    b.agent(*FAST)
    agent = agent_without_bcc(a)
    wait_until(lambda: "compil" in a.status().get("reconcile", {}).get("error", ""), 30, agent.log)
    one, two = a.container("one"), b.container("two")
    wait_until(b.knows_a_peer, 10, "b knows a, whose first pass has failed within milliseconds")
    reaches(one, two)
    reaches(two, one)
    status, body = a.http(f"http://127.0.0.1:{METRICS_PORT}/readyz")
    assert status == 503
    assert "compiling the datapath failed" in body
    assert "compiling the datapath failed" in complaints(a)
    # Everything but the programs is there, and looked after.
    assert "masquerade" in a.run("nft", "list", "table", "ip", "ovnet").stdout
    a.ip("route", "del", str(b.gateway.network), "proto", "147")
    wait_until(lambda: str(b.gateway.network) in a.ip("route"), SOON, "the route is back")
    reaches(one, two)
    assert agent.poll() is None
    assert agent.log().count("ERROR compiling") == 1, "said once, not on each try"
    agent.stop()
    a.agent(*FAST)  # with a compiler again
    wait_carries(a, one, two)
    assert healthy(a)


@pytest.mark.parametrize("last", ["172.17.10.0/24", "172.17.30.0/24"], ids=["sorts first", "sorts last"])
@pytest.mark.parametrize("when", ["at the start", "while running"])
def test_peers_beyond_the_map_are_reached_by_the_kernel_path(lab: Lab, when: str, last: str) -> None:
    a, b, c = lab.host("a"), lab.host("b"), lab.host("c")
    lab.init_network()
    b.ovctl("lease", "reserve", "172.17.20.0/24", "--host", b.address)
    c.ovctl("lease", "reserve", last, "--host", c.address)
    b.agent(*FAST)
    if when == "while running":
        a.agent("--peers-max", "1", *FAST)
    c.agent(*FAST)
    if when == "at the start":
        a.agent("--peers-max", "1", *FAST)
    on_a, others = a.container("one"), [host.container("two") for host in (b, c)]
    for other in others:
        reaches(on_a, other)
        reaches(other, on_a)
    full = "map peers is full: 1 subnets by the kernel path only, raise --peers-max"
    wait_until(lambda: full in a.status()["problems"], SOON, lambda: str(a.status()))
    assert "map peers is full" in complaints(a)
    assert a.status()["reconcile"]["error"] == ""
    assert (a.status()["peers_ebpf"], a.status()["peers_kernel_path"]) == (1, 1)
    assert [dropped(host) for host in (a, b, c)] == [[], [], []]
    # What comes after still gets its programs.
    late = a.container("late")
    reaches(late, others[0])
    wait_until(lambda: programs(a, late.port), SOON, "a later container has its programs")


def test_strangers_are_refused_again_when_all_peers_fit(lab: Lab) -> None:
    a, b, c = lab.host("a"), lab.host("b"), lab.host("c")
    lab.init_network()
    agent = a.agent("--peers-max", "1", *FAST)
    for host in (b, c):
        host.agent(*FAST)
    on_a, on_c = a.container("one"), c.container("two")
    reaches(on_c, on_a)
    agent.stop()
    a.agent(*FAST)
    reaches(on_c, on_a)
    wait_until(partial(healthy, a), SOON, "the node is healthy")
    assert a.status()["peers_ebpf"] == 2
    assert [dropped(host) for host in (a, b, c)] == [[], [], []]
    outside = lab.outside()
    forged = packets.udp(packets.vxlan(bytes(60), 1), 40000, 8472)[8:]

    def refused() -> bool:
        outside.call(partial(send_udp, forged, a.address, 8472))
        return bool(dropped(a))

    wait_until(refused, SOON, "a stranger's VXLAN is dropped and counted")
    assert {row["reason"] for row in dropped(a)} == {"unknown_vtep"}


def send_udp(data: bytes, to: str, port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(data, (to, port))


def test_containers_beyond_the_map_are_reached_by_the_kernel_path(lab: Lab) -> None:
    pair = build(lab, "--endpoints-max", "1")
    second = pair.a.container("second")
    full = "map endpoints is full"
    second.run("ping", "-c1", "-W2", pair.on_b.address)
    pair.on_a.run("ping", "-c1", "-W2", pair.on_b.address)
    wait_until(lambda: full in complaints_or_nothing(pair.a), SOON, "status names the full map")
    for container in (pair.on_a, second):
        reaches(container, pair.on_b)
        reaches(pair.on_b, container)
    assert full in complaints(pair.a)
    assert dropped(pair.a) == dropped(pair.b) == []
    assert programs(pair.a, second.port)
    # When the first one goes, there is room for the second.
    pair.on_a.remove()
    wait_carries(pair.a, second, pair.on_b)


def complaints_or_nothing(host: Host) -> str:
    return host.ovctl("status", check=False).stderr


@pytest.mark.parametrize("burst", ["at once", "one by one"])
def test_ports_that_leave_the_bridge_in_one_burst_keep_none_of_our_programs(lab: Lab, burst: str) -> None:
    """One by one, the agent's own removals are events between those of the ports."""
    a = lab.host("a")
    lab.init_network()
    agent = a.agent()
    far = lab.namespace("far")
    ports = [f"v{number}" for number in range(12)]
    for port in ports:
        a.ip("link", "add", port, "type", "veth", "peer", "name", port, "netns", far.netns)
        a.ip("link", "set", port, "master", a.bridge, "up")
    wait_until(lambda: all(programs(a, port) for port in ports), SOON, "all ports have programs")
    for _ in range(3):
        set_all(a, ports, burst, "nomaster")
        wait_until(
            lambda: not any(programs(a, port) for port in ports),
            SOON,
            lambda: f"programs go: {[port for port in ports if programs(a, port)]}\n{agent.log()}",
        )
        set_all(a, ports, burst, "master", a.bridge)
        wait_until(lambda: all(programs(a, port) for port in ports), SOON, "and come back")


def set_all(host: Host, ports: list[str], burst: str, *what: str) -> None:
    """`ip link set` on many devices, in one process or in one each."""
    if burst == "at once":
        host.run(
            "ip", "-batch", "-", stdin="".join(f"link set dev {port} {' '.join(what)}\n" for port in ports)
        )
    else:
        host.run(
            "sh", "-c", f"for port in {' '.join(ports)}; do ip link set dev $port {' '.join(what)}; done"
        )


@contextmanager
def stopped(agent: Agent) -> Iterator[None]:
    """The agent sees what the block does all at once, afterwards."""
    agent.kill(signal.SIGSTOP)
    try:
        yield
    finally:
        agent.kill(signal.SIGCONT)


@pytest.mark.parametrize("priority", ["49000", "60000"])
def test_foreign_filter_on_the_vxlan_device_is_named_and_stops_nothing_else(lab: Lab, priority: str) -> None:
    pair = build(lab)
    a = pair.a
    tc = partial(a.run, "tc", "filter")
    with stopped(pair.agents["a"]):
        a.run("tc", "qdisc", "add", "dev", "ovnet.1", "clsact")
        put_foreign_filter(a, "ovnet.1", "egress", priority, ends=True)
    wait_until(lambda: priority in complaints_or_nothing(a), SOON, "status names the filter")
    late = a.container("late")
    wait_until(lambda: programs(a, late.port), SOON, "a new container has its programs")
    reaches(late, pair.on_b)
    reaches(pair.on_b, late)
    # What fails is tried less often, so the agent may look a moment after its programs are there.
    wait_until(lambda: endpoint_of(a, late) == late.port, SOON, "the new container is known")
    assert "u32" in tc("show", "dev", "ovnet.1", "egress").stdout, "it is not ours to remove"
    assert f"priority {priority}" in complaints(a)
    tc("del", "dev", "ovnet.1", "egress", "prio", priority)
    wait_until(partial(healthy, a), SOON, lambda: complaints_or_nothing(a))
    wait_carries(a, late, pair.on_b)


def test_second_agent_in_the_same_namespace_is_refused(lab: Lab) -> None:
    pair = build(lab)
    a = pair.a
    wait_until(
        lambda: pair.on_a.port in a.status()["ports"], SOON, "its own agent is done with the container"
    )
    before = a.footprint()
    other = {
        "OVNET_STATE_DIR": str(lab.dir / "second"),
        "OVNET_BPFFS": f"{a.bpffs}-second",
        "OVNET_METRICS_PORT": "0",
        "OVNET_NODE_NAME": "second",
    }
    done = a.ovctl("agent", check=False, env=other)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = [line for line in done.stderr.splitlines() if "error" in line]
    assert "another agent" in line
    assert a.footprint() == before
    assert not (lab.dir / "second").exists()
    assert not Path(f"{a.bpffs}-second").exists()
    assert healthy(a)
    reaches(pair.on_a, pair.on_b)
    assert len(a.json("lease", "list")) == 2
    # It is a matter of the namespace, not of the machine: b's agent is one, too.
    pair.agents["a"].stop()
    pair.agents["a"] = a.agent(*FAST)  # and the name is free when its holder has ended
    pair.agents["a"].kill(signal.SIGKILL)
    pair.agents["a"] = a.agent(*FAST)


def test_a_silent_container_that_took_anothers_address_is_bypassed_soon(pair: Pair) -> None:
    """The host need not ask for its MAC, the bridge knows no port of it and floods."""
    address = str(pair.b.gateway.ip + 99)
    first = pair.b.container("first", address)
    pair.on_a.run("ping", "-c3", "-i0.05", "-W2", address)
    first.remove()
    second = pair.b.container("second", address)
    stream = UdpStream(pair.on_a, second, address)
    before = pair.b.bypassed()[0]
    wait_until(lambda: pair.b.bypassed()[0] - before > 500, SOON, "eBPF carries it")
    sent, tally = stream.finish()
    assert tally.received > 0 and tally.duplicates == 0
    second.remove()


def test_deleted_bridge_is_made_again(pair: Pair) -> None:
    a = pair.a
    address = str(a.gateway)
    a.ip("link", "del", a.bridge)
    wait_until(lambda: address in a.run("ip", "addr", "show", a.bridge, check=False).stdout, SOON, "bridge")
    a.ip("link", "set", pair.on_a.port, "master", a.bridge)  # a container runtime's business
    wait_carries(a, pair.on_a, pair.on_b)
    wait_carries(a, pair.on_b, pair.on_a)
    reaches(pair.on_a, pair.on_b)
    reaches(pair.on_b, pair.on_a)
    wait_until(partial(healthy, a), SOON, lambda: complaints_or_nothing(a))


def test_deleted_vxlan_device_is_made_again_and_a_stream_goes_on(pair: Pair) -> None:
    a = pair.a
    streams = [
        UdpStream(pair.on_a, pair.on_b, pair.on_b.address, port=9001),
        UdpStream(pair.on_b, pair.on_a, pair.on_a.address, port=9002),
    ]
    for stream in streams:
        stream.advance(1)
    a.ip("link", "del", "ovnet.1")
    wait_until(lambda: programs(a, "ovnet.1"), SOON, "the device and its program are there")
    for stream in streams:
        stream.advance(2 * APPROVAL_TTL)
        stream.finish()
    wait_carries(a, pair.on_a, pair.on_b)
    reaches(pair.on_a, pair.on_b, 9103)  # a new flow
    wait_until(partial(healthy, a), SOON, lambda: complaints_or_nothing(a))


@pytest.mark.parametrize(
    "command", ["flush table ip ovnet", "delete table ip ovnet", "flush chain ip ovnet postrouting",
                "flush ruleset"]
)  # fmt: skip
def test_our_rules_come_back_when_they_are_flushed(pair: Pair, command: str) -> None:
    a = pair.a

    def rules() -> str:
        return a.run("nft", "-s", "list", "table", "ip", "ovnet", check=False).stdout

    before = rules()
    assert "masquerade" in before
    a.nft(command + "\n")
    wait_until(lambda: rules() == before, SOON, lambda: f"our table is whole again: {rules()}")
    assert tcp_through_masquerade(pair) == a.address


def tcp_through_masquerade(pair: Pair) -> object:
    """Who the outside host takes a container of a for."""
    server = TcpSink(pair.outside, 9200)
    try:
        return tcp_send(pair.on_a, pair.outside.address, port=9200)["seen_as"]
    finally:
        server.stop()


def test_mending_does_not_end_in_a_loop(pair: Pair) -> None:
    """After all of the above: an agent whose own changes woke it would never be quiet."""

    def passes() -> int:
        report = pair.a.status()["reconcile"]
        return int(report["ok"]) + int(report["failed"])

    last = [passes()]

    def quiet() -> bool:
        before, last[0] = last[0], passes()
        return before == last[0]

    # Twice: one look could fall between two passes of a loop that is slow.
    for _ in range(2):
        wait_until(quiet, SOON, "the agent has nothing to do", every=1)
