"""The backends beside the default one, proven by what is on the wire."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from tests.host import METRICS_PORT, Container, Host, meet
from tests.lab import Lab
from tests.process import wait_until
from tests.stream import TcpSink, tcp_send


@contextmanager
def capture(lab: Lab, host: Host, expression: str) -> Iterator[list[str]]:
    """Lines of tcpdump on the host's cable; the list is filled when the block ends."""
    lines: list[str] = []
    sniffer = lab.wire.popen("tcpdump", "-i", host.name, "-nn", "-l", "--immediate-mode", expression)
    wait_until(lambda: "listening on" in sniffer.log(), 10, "tcpdump listens")
    yield lines
    sniffer.stop()
    lines += [line for line in sniffer.out().splitlines() if line]


def two_nodes(lab: Lab, *network: str) -> tuple[Host, Host, Container, Container]:
    a, b = lab.host("a"), lab.host("b")
    lab.init_network("172.17.0.0/16", 24, *network)
    for host in (a, b):
        host.agent()
    meet(a, b)
    return a, b, a.container("one"), b.container("two")


def restart_with(lab: Lab, hosts: tuple[Host, Host], *network: str) -> None:
    """Stop the agents, change the network, start them again."""
    for host in hosts:
        host.stop_processes()
    lab.init_network("172.17.0.0/16", 24, *network, "--force")
    for host in hosts:
        host.agent()
    meet(*hosts)


def ping(source: Container, target: Container) -> None:
    source.run("ping", "-c5", "-i0.05", target.address)


@pytest.mark.parametrize(
    "network", [("--backend", "host-gw"), ("--direct-routing",)], ids=["host-gw", "direct routing"]
)
def test_plain_routes_carry_plain_packets(lab: Lab, network: tuple[str, ...]) -> None:
    a, b, one, two = two_nodes(lab, *network)
    ping(one, two)
    with capture(lab, a, f"icmp and host {two.address}") as plain, capture(lab, a, "udp port 8472") as tunnel:
        ping(one, two)
    assert any(re.search(rf"{one.address} > {two.address}: ICMP echo request", line) for line in plain)
    assert tunnel == []
    assert f"{b.gateway.network} via {b.address}" in a.ip("route", "show", "proto", "147")
    a.ovctl("status")
    expected = "1500" if "host-gw" in network else "1450"
    assert a.subnet_env()["FLANNEL_MTU"] == expected


@pytest.mark.parametrize(
    "network", [("--backend", "host-gw"), ("--direct-routing",)], ids=["host-gw", "direct routing"]
)
def test_plain_routes_come_back_that_went_with_an_address(lab: Lab, network: tuple[str, ...]) -> None:
    """As when a DHCP client sets it anew: the kernel says nothing of the routes it takes along."""
    a, b, one, two = two_nodes(lab, *network)
    ping(one, two)

    def routes() -> str:
        return a.ip("route", "show", "proto", "147")

    before = routes()
    assert f"via {b.address}" in before
    address = f"{a.address}/24 dev eth0"
    a.run("ip", "-batch", "-", stdin=f"addr del {address}\naddr add {address}\n")
    wait_until(lambda: routes() == before, 10, lambda: f"the routes are back: {routes()}")
    ping(one, two)


def test_host_gw_publishes_what_flannel_does_and_has_no_tunnel(lab: Lab) -> None:
    a, _, _, _ = two_nodes(lab, "--backend", "host-gw")
    assert "vxlan" not in a.ip("-d", "link")
    assert {row["backend"] for row in a.json("lease", "list")} == {"host-gw"}
    a.stop_processes()
    a.teardown()
    assert a.ip("route", "show", "proto", "147") == ""


def test_host_gw_names_a_host_that_is_not_on_the_link(lab: Lab) -> None:
    a, _, one, two = two_nodes(lab, "--backend", "host-gw")
    ping(one, two)
    a.ovctl("lease", "reserve", "172.17.99.0/24", "--host", "10.9.9.9")
    wait_until(lambda: any("10.9.9.9" in line for line in a.status()["problems"]), 30, "the problem is shown")
    ping(one, two)


def test_switching_the_backend_leaves_nothing_of_the_old_one(lab: Lab) -> None:
    a, b, one, two = two_nodes(lab)
    ping(one, two)
    restart_with(lab, (a, b), "--backend", "host-gw")
    ping(one, two)
    assert "vxlan" not in a.ip("-d", "link")
    assert a.run("tc", "filter", "show", "dev", "eth0", "ingress").stdout == ""
    restart_with(lab, (a, b), "--backend", "udp")
    ping(one, two)
    restart_with(lab, (a, b))
    assert "ovnetu" not in a.ip("link")
    before = a.bypassed()[0]
    ping(one, two)
    assert a.bypassed()[0] > before


def test_udp_carries_bare_packets_in_datagrams(lab: Lab) -> None:
    a, b, one, two = two_nodes(lab, "--backend", "udp")
    ping(one, two)
    with capture(lab, a, "udp port 8285") as datagrams, capture(lab, a, "icmp or udp port 8472") as others:
        ping(one, two)
    assert len(datagrams) == 10
    assert others == []
    assert a.subnet_env()["FLANNEL_MTU"] == "1472"
    assert {row["backend"] for row in a.json("lease", "list")} == {"udp"}
    text = a.http(f"http://127.0.0.1:{METRICS_PORT}/metrics")[1]
    sent = next(
        line for line in text.splitlines() if line.startswith("ovnet_udp_packets_total{") and "trans" in line
    )
    assert float(sent.split()[-1]) >= len(datagrams) / 2
    assert 'ovnet_udp_drop_packets_total{reason="spoofed"} 0.0' in text
    a.ovctl("status")
    # The forwarder outlives the agent, and a new agent adopts it.
    pid = a.run("cat", str(a.state_dir / "udp" / "lock")).stdout
    a.stop_processes()
    ping(one, two)
    a.agent()
    assert a.run("cat", str(a.state_dir / "udp" / "lock")).stdout == pid
    ping(one, two)
    for host in (a, b):
        host.stop_processes()
        host.teardown()
        assert "ovnetu" not in host.ip("link")


def test_a_udp_forwarder_that_dies_is_replaced(lab: Lab) -> None:
    a, _, one, two = two_nodes(lab, "--backend", "udp")
    ping(one, two)
    (pid,) = (
        int(word) for word in a.run("pgrep", "-f", f"ctl.backend.udp.*{a.state_dir}").stdout.split()[:1]
    )
    os.kill(pid, signal.SIGKILL)
    wait_until(
        lambda: one.run("ping", "-c1", "-W1", two.address, check=False).returncode == 0, 30, "it is replaced"
    )


def test_a_backend_that_we_do_not_run_is_refused(lab: Lab) -> None:
    a = lab.host("a")
    lab.init_network()
    with closing(sqlite3.connect(lab.store)) as db, db:
        db.execute(
            "UPDATE network SET config = ?", ['{"Network":"172.17.0.0/16","Backend":{"Type":"alloc"}}']
        )
    before = a.footprint()
    done = a.ovctl("agent", check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "alloc" in done.stderr
    assert a.footprint() == before


def test_a_larger_mtu_waits_for_the_containers_of_the_smaller_one(lab: Lab) -> None:
    """What does not fit them would be lost at their ports; so who sends it is told."""
    a, b = lab.host("a"), lab.host("b")
    lab.init_network()
    for host in (a, b):
        host.agent("--bypass", "off")
    old = b.container("old")
    restart_with(lab, (a, b), "--backend", "host-gw")
    new = a.container("new")
    full = ("ping", "-c1", "-W5", "-M", "do", "-s", str(1500 - 28))
    refused = new.run(*full, old.address, check=False).stdout
    assert f"From {b.address} icmp_seq=1 Frag needed and DF set (mtu = 1450)" in refused
    assert tcp_send_through(new, old) == 1_000_000
    assert (mtu_of(b), b.subnet_env()["FLANNEL_MTU"]) == (1450, "1500")
    late = b.container("late")
    old.remove()
    wait_until(lambda: mtu_of(b) == 1500, 10, "the bridge follows")
    new.run(*full, late.address)


def mtu_of(host: Host) -> int:
    """The bridge's."""
    (link,) = json.loads(host.ip("-j", "link", "show", host.bridge))
    return int(link["mtu"])


def tcp_send_through(source: Container, target: Container) -> int:
    """Bytes that arrive of a million."""
    server = TcpSink(target)
    tcp_send(source, target.address, 1_000_000)
    (end,) = server.wait_for(1)
    server.stop()
    return int(end["bytes"])
