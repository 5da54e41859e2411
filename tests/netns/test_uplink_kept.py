"""An uplink that works is kept, whatever else comes to the host; a lease follows our own address."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.host import Agent, Host
from tests.lab import Container, Lab, wait_until

SOON = 30


def published(asked: Host, node: Host) -> str:
    """The address that a node's lease carries."""
    return {row["node"]: str(row["host"]) for row in asked.json("lease", "list")}[node.name]


def reaches(source: Container, sink: Container) -> bool:
    return source.run("ping", "-c1", "-W1", sink.address, check=False).returncode == 0


def looks(host: Host) -> None:
    """Returns when the agent has looked at interfaces and addresses once more."""
    before = host.status()["reconcile"]["ok"]
    host.ip("addr", "add", "10.200.0.1/32", "dev", "lo")
    wait_until(lambda: host.status()["reconcile"]["ok"] > before, SOON, "the agent looks")
    before = host.status()["reconcile"]["ok"]
    host.ip("addr", "del", "10.200.0.1/32", "dev", "lo")
    wait_until(lambda: host.status()["reconcile"]["ok"] > before, SOON, "the agent looks")


@contextmanager
def second_default_route(host: Host) -> Iterator[None]:
    """As of a VPN client, an LTE stick or a management port: better than the one that is there."""
    host.ip("link", "add", "vpn0", "type", "veth", "peer", "name", "vpn1")
    host.ip("addr", "add", "10.99.0.2/24", "dev", "vpn0")
    for device in ("vpn1", "vpn0"):
        host.ip("link", "set", device, "up")
    host.ip("route", "add", "default", "via", "10.99.0.1", "dev", "vpn0", "metric", "50")
    yield
    host.ip("link", "del", "vpn0")


def started(lab: Lab, **env: str) -> tuple[Host, Host, Agent]:
    """Nodes a, with these settings, and b."""
    a, b = lab.host("a"), lab.host("b")
    a.ip("route", "add", "default", "via", "192.168.77.254", "dev", "eth0", "metric", "100")
    agent = a.agent(env=env, wait=False)
    b.agent()
    agent.wait_ready()
    return a, b, agent


def test_other_default_routes_come_and_go_and_the_uplink_stays(lab: Lab) -> None:
    lab.init_network()
    a, b, agent = started(lab, OVNET_IFACE="")
    one, two = a.container("one"), b.container("two")
    wait_until(lambda: reaches(one, two), SOON, "containers reach each other")
    with second_default_route(a):
        looks(a)
        assert published(b, a) == a.address
        assert reaches(one, two)
        (line,) = (line for line in a.status()["warnings"] if "uplink stays" in line)
        assert line == f"uplink stays eth0 with {a.address}: vpn0 with 10.99.0.2 would be found now"
        assert line in agent.log()
        agent.stop()
        agent = a.agent(env={"OVNET_IFACE": ""})
        assert published(b, a) == a.address, "also after a restart"
        assert reaches(one, two)
    looks(a)
    assert not [line for line in a.status()["warnings"] if "uplink stays" in line]
    a.ip("route", "del", "default")
    looks(a)
    assert reaches(one, two)
    assert a.status()["reconcile"]["error"] == ""
    assert "no default route" in str(a.status()["warnings"])
    assert agent.poll() is None


def test_a_bridge_that_takes_the_uplink_in_is_followed_with_its_address(lab: Lab) -> None:
    lab.init_network()
    a, b, agent = started(lab)
    one, two = a.container("one"), b.container("two")
    wait_until(lambda: reaches(one, two), SOON, "containers reach each other")
    a.ip("link", "add", "br0", "type", "bridge")
    a.ip("link", "set", "br0", "up")
    a.ip("link", "set", "eth0", "master", "br0")
    a.ip("addr", "del", f"{a.address}/24", "dev", "eth0")
    a.ip("addr", "add", f"{a.address}/24", "dev", "br0")
    wait_until(lambda: a.status()["uplink"] == "br0", SOON, agent.log)
    wait_until(lambda: reaches(one, two), SOON, "containers reach each other")
    assert published(b, a) == a.address
    assert "br0 has" in str(a.status()["problems"])


def test_an_address_that_comes_back_is_ours_again(lab: Lab) -> None:
    """Beside it stands one of keepalived's or kube-vip's, which serves while ours is gone."""
    lab.init_network()
    a, vip = lab.host("a"), "192.168.77.200"
    a.ip("addr", "add", f"{vip}/32", "dev", "eth0")
    agent = a.agent("--bypass", "off")
    a.ip("addr", "del", f"{a.address}/24", "dev", "eth0")
    wait_until(lambda: "is gone, or its interface is down: waited for" in agent.log(), SOON, agent.log)
    a.ip("addr", "add", f"{a.address}/24", "dev", "eth0")
    wait_until(lambda: a.status()["reconcile"]["error"] == "", SOON, agent.log)
    assert published(a, a) == a.address
    assert vip not in agent.log(), "nothing moved for a moment's sake"
    a.ip("addr", "del", f"{a.address}/24", "dev", "eth0")
    wait_until(lambda: published(a, a) == vip, SOON, agent.log)
    wait_until(lambda: f"uplink is eth0 with {vip} for now" in str(a.status()["problems"]), SOON, agent.log)
    a.ip("addr", "add", f"{a.address}/24", "dev", "eth0")
    wait_until(lambda: published(a, a) == a.address, SOON, agent.log)
    wait_until(lambda: "uplink is eth0" not in str(a.status()["problems"]), SOON, agent.log)


def test_an_interface_that_may_answer_arp_for_our_address_is_named(lab: Lab) -> None:
    lab.init_network()
    a = lab.host("a")
    a.ip("link", "add", "nic1", "type", "veth", "peer", "name", "nic2")
    a.ip("addr", "add", "192.168.77.77/24", "dev", "nic1")
    a.ip("link", "set", "nic1", "up")
    agent = a.agent("--bypass", "off")
    wait_until(lambda: bool(a.status().get("warnings")), SOON, agent.log)
    (line,) = a.status()["warnings"]
    assert line.startswith("nic1: in one network with uplink eth0, and may answer ARP for 192.168.77.11")
    assert line in agent.log()
    a.sysctl("net.ipv4.conf.nic1.arp_ignore", "1")
    looks(a)
    assert a.status()["warnings"] == []
