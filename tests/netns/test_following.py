"""`ovctl trace`, `monitor` and `capture` beside tcpdump: node a has an agent, that of b is dead."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
import scapy.utils

from ctl.core.tracer import TRACE, TRACE_SHORT
from ctl.kernel.bpf.maps import TRACE_RING_BYTES
from tests.capture import Capture
from tests.host import Host, meet, ovctl_argv, started
from tests.lab import Lab, wait_until
from tests.netns.conftest import Pair
from tests.packets import ETH_LEN, ICMP
from tests.process import Process

ECHO = "4711"
"""Identifier of the echoes: it makes them one flow."""
COUNT = 20
SIZE = "700"
RING_HOLDS = TRACE_RING_BYTES // (8 + TRACE.size + TRACE_SHORT)
"""Packets of up to TRACE_SHORT bytes; the kernel puts 8 in front of each record."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Pair]:
    """With an approved flow of echoes between the containers."""
    with Lab() as lab:
        a, b = lab.host("a"), lab.host("b")
        lab.init_network()
        agents = started((a, b), "--approval-ttl", "300")
        meet(a, b)
        pair = Pair(lab, a, b, lab.outside(), a.container("one"), b.container("one"), agents)
        wait_until(partial(is_bypassed, pair), 20, "echoes bypass the kernel both ways")
        agents["b"].stop()
        yield pair


def is_bypassed(pair: Pair) -> bool:
    ping(pair, "1")
    ways = {("from_container", "encap"), ("from_wire", "decap")}
    return all(ways <= host.counters().keys() for host in (pair.a, pair.b))


def ping(pair: Pair, count: str, *flags: str) -> None:
    pair.on_a.run("ping", "-q", "-e", ECHO, "-c", count, "-i", "0.01", "-W", "9", *flags, pair.on_b.address)


@contextmanager
def listening(host: Host, *command: str) -> Iterator[Process]:
    """`ovctl ...` until the block ends, or its --count does."""
    process = host.popen(*ovctl_argv(), *command, env=host.environment())
    wait_until(lambda: "listening" in process.log() or process.poll() is not None, 20, f"{command} listens")
    try:
        yield process
        process.wait()
    finally:
        process.kill()
    assert process.poll() == 0, process.log()


def ends(pair: Pair) -> tuple[str, str]:
    return pair.on_a.address, pair.on_b.address


def hops(host: Host, *packet: str, code: int) -> list[dict[str, Any]]:
    done = host.ovctl("trace", *packet, "-o", "json", check=False)
    assert done.returncode == code, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("node", ["a", "b"])
def test_an_approved_flow_is_told_to_bypass_also_where_the_agent_is_dead(nodes: Pair, node: str) -> None:
    host = nodes.a if node == "a" else nodes.b
    src, dst = ends(nodes) if node == "a" else reversed(ends(nodes))
    told = hops(host, src, dst, "--proto", "icmp", code=0)
    assert [(hop["hop"], hop["by"], hop["reason"]) for hop in told] == [
        ("container", "", ""), ("program", "ebpf", "encap"), ("wire", "", ""), ("peer", "", ""),
    ]  # fmt: skip
    assert f"echo {ECHO}" in told[1]["seen"]
    (last,) = hops(host, dst, src, "--proto", "icmp", code=0)[-1:]
    assert (last["hop"], last["at"], last["fate"]) == ("container", container_of(nodes, node).port, "on")


def container_of(nodes: Pair, node: str) -> Any:
    return nodes.on_a if node == "a" else nodes.on_b


def test_a_packet_that_nobody_would_get_is_lost_and_the_last_hop_says_where(nodes: Pair) -> None:
    told = hops(nodes.b, nodes.on_b.address, "172.17.255.7", code=1)
    assert [hop["fate"] for hop in told] == ["on", "lost"]
    assert told[-1]["seen"] == "no peer has leased the subnet of 172.17.255.7"


def test_a_capture_and_a_live_trace_have_what_tcpdump_has(nodes: Pair, tmp_path: Path) -> None:
    """Of a bypassed flow: the same packets in the same order, of the capture all bytes."""
    on_wire = Capture(nodes.lab.wire, "b", tmp_path / "wire.pcap")
    in_container = Capture(nodes.on_b, "eth0", tmp_path / "container.pcap")
    file, most = tmp_path / "b.pcapng", str(2 * COUNT)
    flow = f"{nodes.on_a.address},{nodes.on_b.address},icmp"
    with (
        listening(nodes.a, "trace", *ends(nodes), "--proto", "icmp", "--live", "--count", most, "-o", "json")
        as live,
        listening(nodes.b, "capture", "--flow", flow, "--count", most, "--snaplen", "2016", "-w", str(file)),
    ):  # fmt: skip
        ping(nodes, str(COUNT), "-s", SIZE)
    for tcpdump in (on_wire, in_container):
        tcpdump.stop()

    wire, container = (of_flow(nodes, each.frames()) for each in (on_wire, in_container))
    seen = of_flow(nodes, pcapng(file))
    assert len(wire) == len(container) == len(seen) == 2 * COUNT
    order = [echo(nodes, frame) for frame in wire]
    assert [echo(nodes, frame) for frame in seen] == order
    # What leaves: before its MACs are known. What has come: as the container gets it.
    assert [frame[ETH_LEN:] for frame in seen[1::2]] == [frame[ETH_LEN:] for frame in wire[1::2]]
    assert seen[::2] == container[::2]

    lines = list(map(json.loads, live.out().splitlines()))
    assert {(line["hook"], line["reason"]) for line in lines} == {
        ("from_container", "encap"), ("from_wire", "decap"),
    }  # fmt: skip
    inner = [line["inner"] for line in lines]
    assert [(each["src"], each["dst"], int(each["info"].split()[-1])) for each in inner] == order


def of_flow(pair: Pair, frames: list[bytes]) -> list[bytes]:
    """Those with an echo between the containers, in whatever they travel."""
    return [frame for frame in frames if echo(pair, frame)]


def echo(pair: Pair, frame: bytes) -> tuple[str, str, int] | None:
    """(source, destination, sequence number), wherever in the frame the inner packet begins."""
    one, other = (IPv4Address(each) for each in ends(pair))
    for src, dst in ((one, other), (other, one)):
        start = frame.find(src.packed + dst.packed) - 12
        if start >= 0 and frame[start + 9] == ICMP:
            return str(src), str(dst), int.from_bytes(frame[start + 26 : start + 28], "big")
    return None


def pcapng(file: Path) -> list[bytes]:
    with scapy.utils.RawPcapNgReader(str(file)) as reader:
        return [data for data, _ in reader]


def test_a_flood_that_a_monitor_cannot_follow_is_counted(nodes: Pair) -> None:
    sent = 2 * RING_HOLDS
    flow = f"{nodes.on_a.address},{nodes.on_b.address}:9,udp"
    with listening(nodes.b, "monitor", "--flow", flow) as monitor:
        monitor.kill(signal.SIGSTOP)
        nodes.on_a.run("python3", "-c", FLOOD, nodes.on_b.address, str(sent))
        monitor.kill(signal.SIGCONT)
        wait_until(lambda: monitor.out().count("\n") >= RING_HOLDS, 30, "it shows what it has")
        monitor.kill(signal.SIGINT)
    found = re.search(r"(\d+) packets, (\d+) more skipped", monitor.log())
    assert found, monitor.log()
    shown, skipped = map(int, found.groups())
    assert monitor.out().count("\n") == shown
    assert skipped > 0 and shown + skipped >= sent


FLOOD = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(int(sys.argv[2])):
    sock.sendto(b"x", (sys.argv[1], 9))
"""


def test_a_second_tracer_is_one_line(nodes: Pair) -> None:
    with listening(nodes.a, "monitor", "--drops") as first:
        done = nodes.a.ovctl("monitor", check=False)
        first.kill(signal.SIGINT)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"ovctl: error: another tracer is at work \(pid \d+\): one at a time\n", done.stderr)


@pytest.mark.parametrize("command", ["trace 172.17.1.2 172.17.2.2", "monitor", "capture -w -"])
def test_where_no_agent_has_ever_run_it_is_one_line(nodes: Pair, command: str) -> None:
    done = nodes.outside.ovctl(*command.split(), check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (4, "", 1)


def test_a_file_that_cannot_be_made_is_one_line(nodes: Pair, tmp_path: Path) -> None:
    done = nodes.a.ovctl("capture", "-w", str(tmp_path / "no" / "file"), check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("/no/file: No such file or directory\n")


# --- At both nodes ---------------------------------------------------------------


def to(node: Host, first: str = "") -> tuple[str, str]:
    """As an operator's ssh would lead to a node: the flag and its command, with `first` before ovctl."""
    settings = [f"{key}={value}" for key, value in node.env.items()]
    path = f"PATH={Path(ovctl_argv()[0]).parent}:{os.environ['PATH']}"
    words = ["nsenter", f"--net={node.path}", "env", path, *settings, "WANTED={host}", *first.split()]
    return "--peer-command", shlex.join(words)


@pytest.mark.parametrize("out", [True, False], ids=["a asks", "b asks"])
def test_the_other_node_goes_on_where_this_one_ends(nodes: Pair, out: bool) -> None:
    asking, other = (nodes.a, nodes.b) if out else (nodes.b, nodes.a)
    found = asking.json("trace", *ends(nodes), "--proto", "icmp", *to(other))
    assert [hop["node"] for hop in found] == sorted(hop["node"] for hop in found), "a's hops, then b's"
    assert {hop["node"] for hop in found} == {nodes.a.address, nodes.b.address}
    assert {hop["reason"] for hop in found} >= {"encap", "decap"}
    assert "lost" not in {hop["fate"] for hop in found}


def test_packets_of_both_nodes_are_told_in_the_order_of_their_times(nodes: Pair) -> None:
    flags = ("--proto", "icmp", "--live", "--count", "12", "-o", "json", *to(nodes.b))
    with listening(nodes.a, "trace", *ends(nodes), *flags) as live:
        wait_until(lambda: live.log().count("listening") == 2, 20, live.log)
        ping(nodes, "3")
    seen = list(map(json.loads, live.out().splitlines()))
    assert [each["time_ns"] for each in seen] == sorted(each["time_ns"] for each in seen)
    assert [(each["node"], each["reason"]) for each in seen] == 3 * [
        (nodes.a.address, "encap"), (nodes.b.address, "decap"),
        (nodes.b.address, "encap"), (nodes.a.address, "decap"),
    ]  # fmt: skip


def test_a_node_that_does_not_tell_is_named_after_what_is_known_here(nodes: Pair) -> None:
    done = nodes.a.ovctl("trace", *ends(nodes), "--proto", "icmp", *to(nodes.b, "false"), check=False)
    assert (done.returncode, done.stderr.count("\n")) == (4, 1)
    assert f"{nodes.b.address} does not tell its hops (nsenter, exit code 1)" in done.stderr
    assert "encap" in done.stdout
