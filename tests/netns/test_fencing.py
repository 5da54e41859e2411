"""Another host holds a node's subnet: the node takes no new containers, until the subnet is its own again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address

import pytest

from ctl.core.model import Lease, MacAddress
from ctl.core.ports import LeaseStore
from ctl.store import open_store
from tests.host import METRICS_PORT, Host
from tests.lab import Lab, wait_until
from tests.namespace import Namespace
from tests.netns.conftest import APPROVAL_TTL, Pair, build
from tests.stream import TcpSink, UdpStream, tcp_send

SOON = 10.0
"""Seconds within which an agent hears of the store."""


def lease_of(store: LeaseStore, host: Host) -> Lease:
    """What the store has on the subnet of a host."""
    return next(lease for lease in store.snapshot().leases if lease.subnet == host.gateway.network)


def metric(host: Host, name: str) -> float:
    text = host.http(f"http://127.0.0.1:{METRICS_PORT}/metrics")[1]
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name} "))


def passes(source: Namespace, to: str, port: int, server: Namespace) -> str:
    """Who the server sees."""
    sink = TcpSink(server, port)
    try:
        return str(tcp_send(source, to, 10_000, port=port)["seen_as"])
    finally:
        sink.stop()


@pytest.fixture
def stolen(lab: Lab) -> Iterator[tuple[Pair, LeaseStore, Lease, str]]:
    """Two nodes; the subnet of the first is now held by host `c`. And its subnet.env as it was."""
    pair = build(lab)
    env = (pair.a.state_dir / "subnet.env").read_text()
    stream = UdpStream(pair.on_a, pair.on_b, pair.on_b.address)
    stream.advance(2 * APPROVAL_TTL)
    stream.finish()
    assert pair.a.bypassed()[0] > 0
    mac = MacAddress.parse("02:00:00:00:00:99")
    with closing(open_store(lab.store_url)) as store:
        held = lease_of(store, pair.a)
        thief = store.put(replace(held, host=IPv4Address("192.168.77.99"), node="c", vtep_mac=mac), held)
        wait_until(lambda: pair.a.status()["lease"]["conflict"], SOON, "the agent has seen it")
        yield pair, store, thief, env


def test_a_fenced_node_takes_no_new_containers_until_its_subnet_is_free(
    stolen: tuple[Pair, LeaseStore, Lease, str],
) -> None:
    pair, store, thief, env = stolen
    a, agent = pair.a, pair.agents["a"]
    assert not (a.state_dir / "subnet.env").exists()
    assert (a.state_dir / "fenced.env").read_text() == env
    code, body = a.http(f"http://127.0.0.1:{METRICS_PORT}/readyz")
    assert code == 503
    assert "the store now has 172.17." in body and "of c at 192.168.77.99" in body
    done = a.ovctl("status", check=False)
    assert done.returncode == 1
    assert "lost: fenced" in done.stdout
    assert done.stderr.count("192.168.77.99") == 1
    assert (metric(a, "ovnet_lease_conflict"), metric(a, "ovnet_ready")) == (1, 0)
    assert agent.log().count("CRITICAL") == 1
    assert a.json("map", "dump", "endpoints") == []
    # Those that run: to each other and outside as before, by the kernel path.
    before = a.bypassed()[0]
    assert passes(pair.on_a, pair.outside.address, 9300, pair.outside) == a.address
    pair.on_a.run("ping", "-c2", "-i0.05", "-W2", a.address)
    # To peers: they know that the subnet is another host's, and drop it.
    assert pair.on_a.run("ping", "-c2", "-i0.05", "-W1", pair.on_b.address, check=False).returncode == 1
    assert a.bypassed()[0] == before
    assert pair.b.counters()["from_wire", "unknown_vtep"] >= 2
    assert thief in store.snapshot().leases, "nothing was written"
    # And back.
    a.ovctl("lease", "release", str(thief.subnet))
    wait_until((a.state_dir / "subnet.env").exists, SOON, "subnet.env is back")
    assert (a.state_dir / "subnet.env").read_text() == env
    wait_until(pair.agents["a"].ready, SOON, "ready again")
    assert not (a.state_dir / "fenced.env").exists()
    assert str(lease_of(store, a).host) == a.address
    assert metric(a, "ovnet_lease_conflict") == 0
    wait_until(partial(_healthy, a), SOON, "healthy")
    carried = a.bypassed()[0]

    def carries() -> bool:
        pair.on_a.run("ping", "-c4", "-i0.05", "-W1", pair.on_b.address, check=False)
        return a.bypassed()[0] > carried

    wait_until(carries, SOON, "eBPF carries again")
    assert passes(pair.on_a, pair.on_b.address, 9301, pair.on_b) == pair.on_a.address


def _healthy(host: Host) -> bool:
    return host.ovctl("status", check=False).returncode == 0


def test_a_fenced_node_that_starts_again(stolen: tuple[Pair, LeaseStore, Lease, str]) -> None:
    """It asks for its subnet; while that is taken, it gets another one, which ends the conflict."""
    pair, store, thief, env = stolen
    a = pair.a
    pair.agents["a"].stop()
    assert not (a.state_dir / "subnet.env").exists(), "a stopped agent fences too"
    store.delete(thief)
    pair.agents["a"] = a.agent()
    assert (a.state_dir / "subnet.env").read_text() == env, "the same subnet again"
    held = lease_of(store, a)
    stolen_again = store.put(replace(held, host=IPv4Address("192.168.77.99"), node="c"), held)
    wait_until((a.state_dir / "fenced.env").exists, SOON, "fenced again")
    pair.agents["a"].stop()
    pair.agents["a"] = a.agent()
    assert a.gateway.network != stolen_again.subnet
    assert stolen_again in store.snapshot().leases
    held = lease_of(store, a)
    assert str(held.host) == a.address
    store.put(replace(held, host=IPv4Address("192.168.77.99"), node="c"), held)
    wait_until((a.state_dir / "fenced.env").exists, SOON, "fenced once more")
    pair.agents["a"].stop()
    a.teardown()
    assert list(a.state_dir.glob("*.env")) == []
