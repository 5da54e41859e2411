"""`ovctl probe` among three dual-stack nodes, by eBPF and by the kernel, on a wire that can lose packets."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from ctl.core.model import Lease
from ctl.store import open_store
from tests.dual import give, init_network, lease, underlay, with_ipv6
from tests.host import METRICS_PORT, Host, meet, ovctl_argv, started
from tests.lab import Lab, wait_until
from tests.netns.faults import DROPPED, lost_on_the_way

MTU = 1430
"""The uplink's 1500, less VXLAN's overhead of IPv6."""
SMALL = ("ip length > 1400 drop", 1350)
"""A rule of the wire, and the largest inner packet that it leaves."""
Row = dict[str, Any]


@dataclass
class Nodes:
    """`a` asks."""

    a: Host
    b: Host
    c: Host


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with Lab() as lab:
        a, b, c = (with_ipv6(lab.host(name)) for name in "abc")
        init_network(a)
        started((a, b, c))
        for other in (b, c):
            meet(a, other)
            settled(a, other)
        yield Nodes(a, b, c)


def probe(host: Host, *flags: str, code: int = 0) -> dict[tuple[str, str, int], Row]:
    """What is found, by (node, carrier, IP version)."""
    done = host.ovctl("probe", "-o", "json", *flags, check=False)
    assert done.returncode == code, done.stderr
    rows: list[Row] = json.loads(done.stdout)
    return {(row["node"], row["carrier"], 6 if ":" in row["host"] else 4): row for row in rows}


def states(found: dict[tuple[str, str, int], Row]) -> dict[tuple[str, str, int], str]:
    return {which: row["state"] for which, row in found.items()}


def settled(host: Host, peer: Host) -> None:
    """Wait until the peer answers by each of its ways, so that what follows is the wire's doing."""
    wanted = {(peer.name, "ebpf", 4): "ok", (peer.name, "kernel", 4): "ok", (peer.name, "kernel", 6): "ok"}

    def all_well() -> bool:
        done = host.ovctl("probe", peer.name, "--count", "1", "-o", "json", check=False)
        rows: list[Row] = json.loads(done.stdout or "[]")
        return {(r["node"], r["carrier"], 6 if ":" in r["host"] else 4): r["state"] for r in rows} == wanted

    wait_until(all_well, 30, f"{peer.name} answers {host.name} by each of its ways")


def test_each_node_answers_by_ebpf_and_by_the_kernel_whose_packets_ebpf_does_not_count(nodes: Nodes) -> None:
    found = probe(nodes.a, "--count", "7")
    assert set(states(found).values()) == {"ok"}
    assert set(found) == {
        (name, *way) for name in "bc" for way in (("ebpf", 4), ("kernel", 4), ("kernel", 6))
    }
    for (_, carrier, version), row in found.items():
        assert (row["sent"], row["received"], row["loss"], row["mtu"]) == (7, 7, 0, MTU)
        assert 0 < row["min"] <= row["median"] <= row["max"]
        if version == 4:
            assert row["ebpf_out"] == (7 if carrier == "ebpf" else 0)
            assert row["ebpf_back"] == 7, "by eBPF, which takes the tunnel off, whoever has put it on"


def test_one_node_is_asked_by_host_node_or_subnet_and_with_the_size_that_is_wanted(nodes: Nodes) -> None:
    for name in (nodes.b.address, "b", str(nodes.b.gateway.network)):
        assert {node for node, _, _ in probe(nodes.a, name, "--size", str(MTU), "--count", "1")} == {"b"}


def test_a_node_whose_port_is_blocked_is_unreachable_and_the_other_is_not(nodes: Nodes) -> None:
    with lost_on_the_way((nodes.c, DROPPED)):
        found = states(probe(nodes.a, "--count", "2", code=1))
        assert {which: state for which, state in found.items() if state != "ok"} == {
            ("c", "ebpf", 4): "unreachable",
            ("c", "kernel", 4): "unreachable",
        }
        text = nodes.a.ovctl("probe", "--all", "--count", "2", check=False)
    assert text.returncode == 1
    heading, *lines = sorted(text.stdout.splitlines())
    assert heading.split("  ")[0] == "NODE" and heading.endswith("KERNEL IPV6")
    assert [line.split()[0] for line in lines] == ["b", "c"]
    assert lines[0].count(f"{MTU} bytes") == 3
    assert lines[1].count("unreachable") == 2 and lines[1].count(f"{MTU} bytes") == 1
    assert "[" not in text.stderr, "a bar is for terminals"


def test_a_path_that_is_smaller_than_the_uplink_and_says_nothing_shows_its_size(nodes: Nodes) -> None:
    """Also where the echoes that were asked for are larger, so that none is answered."""
    rule, largest = SMALL
    with lost_on_the_way((nodes.b, rule)):
        found = probe(nodes.a, "b", "--size", str(MTU), "--count", "2")
    for carrier in ("ebpf", "kernel"):
        row = found["b", carrier, 4]
        assert (row["state"], row["mtu"], row["received"]) == ("small", largest, 0)


def test_a_path_whose_size_icmp_has_told_is_the_kernels_and_shows_it(nodes: Nodes) -> None:
    """As "fragmentation needed" leaves it in the kernel; the agent leaves such a peer to the kernel path."""
    a, route = nodes.a, (nodes.b.address, "dev", "eth0", "mtu", str(SMALL[1] + 50))
    a.ip("route", "add", *route)
    try:
        wait_until(lambda: left_to_the_kernel(a, nodes.b), 30, "the agent has heard of it")
        found = probe(a, "b", "--count", "1")
        assert ("b", "ebpf", 4) not in found
        row = found["b", "kernel", 4]
        assert (row["state"], row["mtu"]) == ("small", SMALL[1])
    finally:
        a.ip("route", "del", *route)
        settled(a, nodes.b)


def test_loss_on_one_way_is_shown_as_loss_by_each_carrier(nodes: Nodes) -> None:
    with lost_on_the_way((nodes.b, "udp dport 8472 numgen inc mod 2 0 drop")):
        found = probe(nodes.a, "b", "--count", "40")
    for carrier in ("ebpf", "kernel"):
        row = found["b", carrier, 4]
        assert (row["state"] in ("lossy", "small"), row["sent"]) == (True, 40)
        assert 0.25 < row["loss"] < 0.75


def test_an_interrupt_shows_what_was_found_so_far(nodes: Nodes) -> None:
    a = nodes.a
    sent = partial(transmitted, a)
    before = sent()
    command = a.argv(*ovctl_argv(), "probe", "b", "--count", "100000", "-o", "json")
    process = a.spawn(command, env=a.environment())
    wait_until(lambda: sent() > before + 3, 30, "it is at work")
    process.kill(signal.SIGINT)
    assert process.wait() == 130
    (row,) = json.loads(process.out())
    assert (row["node"], row["carrier"]) == ("b", "ebpf")
    assert 3 < row["received"] <= row["sent"] < 100000


def test_what_cannot_be_asked_is_one_line_and_a_code_of_its_own(nodes: Nodes, tmp_path: Path) -> None:
    for code, flags in (
        (2, ["--size", str(MTU + 1)]),
        (2, ["--count", "0"]),
        (2, ["b", "--all"]),
        (3, ["nobody"]),
        (4, ["--state-dir", str(tmp_path)]),
        (4, ["--store", "sqlite:////nonexistent/store.db"]),
    ):
        done = nodes.a.ovctl("probe", *flags, check=False)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (code, "", 1), done.stderr


def test_no_agent_is_needed_and_programs_that_are_gone_are_seen(nodes: Nodes) -> None:
    a = nodes.a
    with restarted(a):
        assert set(states(probe(a, "--count", "2")).values()) == {"ok"}
        for link in sorted((a.bpffs / "links").iterdir()):
            a.run("bpftool", "link", "detach", "pinned", str(link))
        found = states(probe(a, "--count", "2"))
        assert found == {which: "elsewhere" if which[1] == "ebpf" else "ok" for which in found}


def test_the_agent_asks_in_the_background_and_tells_of_those_that_there_are(nodes: Nodes) -> None:
    """One of them is a lease that somebody has put into the store, of a host that is not there."""
    a, nobody = nodes.a, IPv4Address("192.168.77.99")
    ghost = replace(lease(nodes.b, 250, ipv6=False), host=nobody, node="ghost")
    reached = {nodes.b.address, nodes.c.address, underlay(nodes.b), underlay(nodes.c)}
    give(a, ghost)
    with restarted(a):
        a.agent("--probe-interval", "1")
        answering = {**dict.fromkeys(reached, 1), str(nobody): 0}
        wait_until(lambda: gauges(a, "peer_reachable") == answering, 60, "who answers is told")
        sizes = dict.fromkeys(reached, MTU)
        wait_until(lambda: gauges(a, "peer_path_mtu_bytes") == sizes, 60, "and how large a packet")
        trips = gauges(a, "peer_round_trip_seconds")
        assert set(trips) == reached and all(0 < each < 1 for each in trips.values())
        take(a, ghost)
        wait_until(lambda: set(gauges(a, "peer_reachable")) == reached, 60, "nobody tells of the ghost")
        a.stop_processes()


@contextmanager
def restarted(host: Host) -> Iterator[None]:
    """Without its agent meanwhile, which runs as before afterwards."""
    host.stop_processes()
    try:
        yield
    finally:
        host.stop_processes()
        host.agent()


def gauges(host: Host, name: str) -> dict[str, float]:
    """The values of a metric by its one label."""
    _, text = host.http(f"http://127.0.0.1:{METRICS_PORT}/metrics", seconds=10)
    found = re.findall(rf'^ovnet_{name}{{peer="(.*)"}} (.*)$', text, re.MULTILINE)
    return {peer: float(value) for peer, value in found}


def take(host: Host, gone: Lease) -> None:
    """Take a lease out of the lab's store."""

    def delete() -> None:
        with closing(open_store(host.lab.store_url)) as store:
            for each in store.snapshot(fresh=True).leases:
                if each.subnet == gone.subnet:
                    store.delete(each)

    host.call(delete)


def left_to_the_kernel(host: Host, peer: Host) -> bool:
    """Whether the maps say so of a peer."""
    (entry,) = host.json("map", "dump", "peers", "--where", f"host={peer.address}")
    return bool(entry["flags"])


def transmitted(host: Host) -> int:
    """Packets that eBPF has sent to peers."""
    return sum(row["tx_packets"] for row in host.json("map", "dump", "peer_stats"))
