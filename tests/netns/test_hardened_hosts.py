"""Hosts whose new interfaces do not forward (CIS), and whose bridge gets another MAC (NetworkManager)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ctl.kernel.netlink.headroom import DEVICE as ROOM
from tests.host import Container, Host, started
from tests.lab import Lab, wait_until
from tests.netns.conftest import Pair
from tests.netns.test_resilience import SOON, complaints_or_nothing, healthy

OTHER_MAC = "02:11:22:33:44:66"


def forwards(host: Host, device: str, value: str | None = None) -> str:
    """conf/<device>/forwarding, of whatever name; read, or set."""
    file = Path(f"/proc/sys/net/ipv4/conf/{device}/forwarding")
    if value is not None:
        host.call(lambda: file.write_text(value))
    return host.call(file.read_text).strip()


def harden(host: Host) -> None:
    host.sysctl("net.ipv4.ip_forward", "1")
    host.sysctl("net.ipv4.conf.default.forwarding", "0")


def answers(source: Container, address: str) -> bool:
    return source.run("ping", "-c1", "-W1", address, check=False).returncode == 0


@pytest.mark.parametrize("backend", ["vxlan", "host-gw", "udp"])
def test_our_devices_forward_where_new_ones_do_not(lab: Lab, backend: str) -> None:
    a, b = lab.host("a"), lab.host("b")
    lab.init_network("172.17.0.0/16", 24, "--backend", backend)
    for host in (a, b):
        harden(host)
        host.agent("--bypass", "off")
    one, two = a.container("one"), b.container("two")
    wait_until(lambda: answers(one, two.address), SOON, lambda: complaints_or_nothing(a))
    names = {link["ifname"] for link in json.loads(a.ip("-j", "link"))} - {ROOM}
    ours = {name for name in names if name.startswith("ovnet")}
    assert len(ours) == (1 if backend == "host-gw" else 2)
    assert {name: forwards(a, name) for name in ours} == dict.fromkeys(ours, "1")


def test_forwarding_that_is_taken_away_comes_back_and_the_uplinks_is_named(pair: Pair) -> None:
    """At once: the kernel tells. The uplink is not ours to set."""
    a = pair.a
    for device in ("ovnet0", "ovnet.1"):
        forwards(a, device, "0")
        wait_until(lambda device=device: forwards(a, device) == "1", SOON, f"{device} forwards")  # type: ignore[misc]
    a.sysctl("net.ipv4.ip_forward", "0")
    wait_until(lambda: a.sysctl("net.ipv4.ip_forward") == "1", SOON, "the host forwards")
    assert not a.status()["problems"]
    forwards(a, "eth0", "0")
    wait_until(lambda: a.status()["problems"], SOON, "it is named")
    (line,) = a.status()["problems"]
    assert line.startswith("eth0 does not forward") and "sysctl -w net.ipv4.conf.eth0.forwarding=1" in line
    assert forwards(a, "eth0") == "0"
    a.sysctl("net.ipv4.ip_forward", "0")  # which turns all on again
    wait_until(lambda: forwards(a, "eth0") == "1", SOON, "the host forwards")


def mac(host: Host) -> str:
    return str(json.loads(host.ip("-j", "link", "show", host.bridge))[0]["address"])


def gateway_of(container: Container) -> str:
    """The MAC to which a container sends what is for others."""
    address = str(container.host.gateway.ip)
    found = json.loads(container.ip("-j", "neigh", "show", address))
    return str(found[0].get("lladdr", "")) if found else ""


def test_our_bridges_mac_is_put_back_and_containers_know_it(pair: Pair) -> None:
    a, one = pair.a, pair.on_a
    wait_until(lambda: answers(one, pair.on_b.address), SOON, "the other container is reached")
    before = mac(a)
    assert gateway_of(one) == before
    a.ip("link", "set", a.bridge, "address", OTHER_MAC)
    wait_until(lambda: mac(a) == before, SOON, "the MAC is put back")
    wait_until(lambda: gateway_of(one) == before, SOON, "the container has been told")
    assert answers(one, pair.on_b.address)
    assert healthy(a), complaints_or_nothing(a)
    assert a.sysctl(f"net.ipv4.conf.{a.bridge}.arp_notify") == "0"


def test_containers_that_have_learnt_another_mac_meanwhile_are_told_of_ours(lab: Lab) -> None:
    """It was changed while no agent ran. Without a word they would keep it for half a minute."""
    a = lab.host("a")
    lab.init_network()
    agent = a.agent()
    one = a.container("one")
    before = mac(a)
    agent.stop()
    a.ip("link", "set", a.bridge, "address", OTHER_MAC)
    assert answers(one, str(a.gateway.ip))
    assert gateway_of(one) == OTHER_MAC
    a.agent()
    wait_until(lambda: gateway_of(one) == before, SOON, "the container has been told")
    assert mac(a) == before


def a_port_joins(host: Host) -> None:
    """A bridge that nobody gave a MAC has the least of its ports'."""
    host.ip("link", "add", "low0", "address", "00:00:00:00:00:01", "type", "veth", "peer", "name", "low1")
    host.ip("link", "set", "low0", "master", host.bridge, "up")


def its_owner_sets_it(host: Host) -> None:
    host.ip("link", "set", host.bridge, "address", OTHER_MAC)


def test_an_adopted_bridge_keeps_its_new_mac_and_containers_are_told(lab: Lab) -> None:
    a, b = lab.host("a"), lab.host("b")
    a.ip("link", "add", a.bridge, "type", "bridge")
    lab.init_network()
    agents = started((a, b))
    one, two = a.container("one"), b.container("two")
    for change in (a_port_joins, its_owner_sets_it):
        wait_until(lambda: answers(one, two.address), SOON, "the other container is reached")
        before = mac(a)
        change(a)
        after = mac(a)
        assert after != before
        wait_until(lambda after=after: gateway_of(one) == after, SOON, "the container has been told")  # type: ignore[misc]
        assert answers(one, two.address)
        wait_until(lambda after=after: endpoint_macs(a) == {after}, SOON, "and so has eBPF")  # type: ignore[misc]
        assert mac(a) == after
    forwards(a, a.bridge, "0")
    wait_until(lambda: not a.status()["ready"], SOON, "the node is not ready: its owner has to say so")
    assert "ovnet0 does not forward" in complaints_or_nothing(a)
    agents["a"].stop()
    a.teardown()
    assert a.sysctl(f"net.ipv4.conf.{a.bridge}.arp_notify") == "0", "a setting of somebody's bridge"


def endpoint_macs(host: Host) -> set[str]:
    return {row["bridge_mac"] for row in host.json("map", "dump", "endpoints")}
