"""`ovctl doctor` on two nodes, with one fault at a time: it names this one and no other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.host import Container, Host, meet
from tests.lab import Lab, wait_until


@dataclass
class Ward:
    """Two nodes whose agents run; `a` is examined."""

    a: Host
    b: Host
    on_a: Container

    def failures(self, *flags: str) -> list[str]:
        """What it sees that fails, with the remedies; the exit code agrees."""
        done = self.a.ovctl("doctor", "-o", "json", *flags, check=False)
        findings: list[dict[str, Any]] = json.loads(done.stdout)
        failing = [each for each in findings if each["level"] == "failure"]
        assert done.returncode == bool(failing), done.stderr
        assert all(each["means"] and each["remedy"] for each in failing)
        return [f"{each['seen']}: {each['remedy']}" for each in failing]


@pytest.fixture(scope="module")
def ward() -> Iterator[Ward]:
    with Lab() as lab:
        a, b = lab.host("a"), lab.host("b")  # on a switch, which can lose packets
        lab.init_network()
        for host in (a, b):
            host.agent("--resync-interval", "3600")
        meet(a, b)
        yield Ward(a, b, a.container("one"))


Fault = Callable[[Ward], AbstractContextManager[None]]


@contextmanager
def lost_on_the_way(host: Host, rule: str) -> Iterator[None]:
    """What is sent to a host and a rule fits does not arrive: the switch drops it.

    Not a rule of the host's: eBPF takes VXLAN off the uplink before any, and hands it over behind any.
    """
    wire = host.lab.wire
    wire.nft(
        "table bridge somebody { chain between { type filter hook forward priority 0; "
        f"ip daddr {host.address} {rule}; }}; }}"
    )
    try:
        yield
    finally:
        wire.run("nft", "delete", "table", "bridge", "somebody")


def no_way_in(ward: Ward) -> AbstractContextManager[None]:
    return lost_on_the_way(ward.a, "udp dport 8472 drop")


def no_way_out(ward: Ward) -> AbstractContextManager[None]:
    return lost_on_the_way(ward.b, "udp dport 8472 drop")


def a_smaller_path(ward: Ward) -> AbstractContextManager[None]:
    return lost_on_the_way(ward.b, "ip length > 1400 drop")


@contextmanager
def peer_down(ward: Ward) -> Iterator[None]:
    ward.b.ip("link", "set", "eth0", "down")
    ward.a.ip("neigh", "flush", "dev", "eth0")
    try:
        yield
    finally:
        ward.b.ip("link", "set", "eth0", "up")
        meet(ward.a, ward.b)


@contextmanager
def stolen(ward: Ward) -> Iterator[None]:
    thief = (f"{ward.b.gateway.network.network_address}/25", "via", ward.b.address, "dev", "eth0")
    ward.a.ip("route", "add", *thief)
    try:
        yield
    finally:
        ward.a.ip("route", "del", *thief)


@contextmanager
def a_large_port(ward: Ward) -> Iterator[None]:
    ward.a.ip("link", "set", ward.on_a.port, "mtu", "1500")
    try:
        yield
    finally:
        ward.a.ip("link", "set", ward.on_a.port, "mtu", "1450")


FAULTS: dict[Fault, tuple[str, str]] = {
    no_way_in: ("answers nothing, its host", "open UDP 8472"),
    no_way_out: ("answers nothing, its host", "open UDP 8472"),
    a_smaller_path: ("answers packets up to 1350 bytes, not 1450", "--mtu 1400"),
    peer_down: ("no ARP", "ping 192.168.77.12"),
    stolen: ("is routed to eth0, not to ovnet.1", "ip route get"),
    a_large_port: ("MTU 1500, the overlay carries 1450", "with MTU 1450"),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_named_with_its_remedy_and_no_other_is(ward: Ward, fault: Fault) -> None:
    seen, remedy = FAULTS[fault]
    with fault(ward):
        (line,) = ward.failures()
    assert seen in line and remedy in line
    assert ward.failures() == []


def test_a_well_node_shows_what_was_looked_at(ward: Ward) -> None:
    text = ward.a.ovctl("doctor").stdout
    assert all(line.split()[0] in ("LEVEL", "ok") for line in text.splitlines())
    for check in ("agent", "store", "lease", "entries", "forwarding", "mtu", "programs", "peers"):
        assert f" {check} " in text


def test_one_peer_is_asked_by_host_node_or_subnet(ward: Ward) -> None:
    for name in (ward.b.address, "b", str(ward.b.gateway.network)):
        assert ward.failures("--peer", name) == []
    with no_way_in(ward):
        assert ward.failures("--no-probe") == []
    done = ward.a.ovctl("doctor", "--peer", "nobody", check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (3, 1)


def test_a_store_that_is_away_is_named(ward: Ward) -> None:
    (line,) = ward.failures("--store", "sqlite:////nonexistent/store.db")
    assert "/nonexistent/store.db" in line


def test_a_dead_agent_and_what_went_wrong_since_are_named(ward: Ward) -> None:
    a = ward.a
    a.stop_processes()
    (dead,) = ward.failures()
    assert "no agent runs here" in dead and "systemctl start ovnet" in dead
    a.sysctl("net.ipv4.ip_forward", "0")  # an agent would mend it at any event
    assert any("sysctl -w net.ipv4.ip_forward=1" in line for line in ward.failures())
    a.sysctl("net.ipv4.ip_forward", "1")
    (route,) = a.ip("route", "show", "proto", "147").splitlines()
    a.ip("route", "del", *route.split(), "proto", "147")
    lines = ward.failures()
    assert any("routes: " in line and "missing" in line for line in lines)
    assert any("routed to " in line for line in lines)
    a.agent()
    wait_until(lambda: not ward.failures(), 20, "all is well")
    a.stop_processes()
    a.ovctl("lease", "release", str(a.gateway.network))
    assert any("the store has no lease of" in line for line in ward.failures())
