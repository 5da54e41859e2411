"""The ways to name the uplink, on a host with two interfaces and a bridge of our own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address

import pytest

from ctl.core.candidates import UplinkChoice
from ctl.core.errors import AgentError
from ctl.core.host import Uplink
from ctl.core.uplink import Decision, Memory, decide, decide_first
from ctl.kernel.netlink.session import Netlink
from ctl.kernel.netlink.uplink import survey
from tests.host import METRICS_PORT, Host
from tests.lab import Lab, wait_until

MGMT, WAN, SECOND = "192.168.77.11", "10.1.2.3", "10.1.2.4"


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Lab() as lab:
        made = lab.host("a")
        far = lab.namespace("far")
        made.ip("link", "add", "wan0", "type", "veth", "peer", "name", "wan0", "netns", far.netns)
        far.ip("link", "set", "wan0", "up")
        made.ip("link", "set", "lo", "up")
        for address in (WAN, SECOND):
            made.ip("addr", "add", f"{address}/24", "dev", "wan0")
        made.ip("link", "set", "wan0", "up")
        made.ip("route", "add", "default", "via", "10.1.2.1")
        made.ip("link", "add", "ovnet0", "type", "bridge")
        made.ip("link", "set", "dev", "ovnet0", "alias", "ovnet")
        made.ip("addr", "add", "172.17.1.1/24", "dev", "ovnet0")
        made.ip("link", "set", "ovnet0", "up")
        yield made


def find_uplink(netlink: Netlink, choice: UplinkChoice, kept: IPv4Address | None = None) -> Uplink:
    return settled(decide_first(choice, survey(netlink, choice), kept))


def follow_uplink(netlink: Netlink, choice: UplinkChoice, before: Uplink) -> tuple[Uplink, str]:
    memory = Memory(before, before.address)
    decision = decide(choice, survey(netlink, choice), memory, 0.0)
    return settled(decision), decision.wrong


def settled(decision: Decision) -> Uplink:
    if decision.error:
        raise AgentError(decision.error)
    assert decision.memory is not None
    return decision.memory.uplink


def found(host: Host, choice: UplinkChoice, before: str = "") -> tuple[str, str]:
    """Interface and address, as asked on the host."""

    def ask() -> Uplink:
        with Netlink() as netlink:
            return find_uplink(netlink, choice, IPv4Address(before) if before else None)

    uplink = host.call(ask)
    return uplink.link.name, str(uplink.address)


@pytest.mark.parametrize(
    ("choice", "uplink"),
    [
        (UplinkChoice(), ("wan0", WAN)),
        (UplinkChoice("eth0"), ("eth0", MGMT)),
        (UplinkChoice(MGMT), ("eth0", MGMT)),
        (UplinkChoice(SECOND), ("wan0", SECOND)),
        (UplinkChoice("wan0", public_ip=IPv4Address(SECOND)), ("wan0", SECOND)),
        (UplinkChoice("eth0", pattern="wan", can_reach=IPv4Address("10.1.2.9")), ("eth0", MGMT)),
        (UplinkChoice(pattern=r"^192\.168\."), ("eth0", MGMT)),
        (UplinkChoice(pattern=r"\.4$"), ("wan0", SECOND)),
        (UplinkChoice(pattern="^wan"), ("wan0", WAN)),
        (UplinkChoice(pattern="0", can_reach=IPv4Address(MGMT)), ("wan0", WAN)),  # an address before any name
        (UplinkChoice(pattern=r"^(lo|ovnet0|eth0)$"), ("eth0", MGMT)),
        (UplinkChoice(can_reach=IPv4Address("192.168.77.99")), ("eth0", MGMT)),
        (UplinkChoice(can_reach=IPv4Address("10.1.2.9")), ("wan0", WAN)),
        (UplinkChoice(can_reach=IPv4Address("8.8.8.8")), ("wan0", WAN)),
    ],
    ids=str,
)
def test_the_uplink_is_found(host: Host, choice: UplinkChoice, uplink: tuple[str, str]) -> None:
    assert found(host, choice) == uplink


@pytest.mark.parametrize(
    ("choice", "complaint"),
    [
        (UplinkChoice("eth9"), "uplink eth9 does not exist: see --iface"),
        (UplinkChoice("lo"), "uplink lo has no IPv4 address"),
        (UplinkChoice("127.0.0.1"), "no interface has address 127.0.0.1"),
        (UplinkChoice("10.1.2.9"), "no interface has address 10.1.2.9: see --iface"),
        (
            UplinkChoice("eth0", public_ip=IPv4Address(WAN)),
            "uplink eth0 does not have 10.1.2.3: see --public-ip",
        ),
        (
            UplinkChoice(pattern=r"^(172|127)\."),
            "eth0 192.168.77.11, wan0 10.1.2.3 10.1.2.4; see --iface-regex",
        ),
        (UplinkChoice(can_reach=IPv4Address(MGMT)), f"no interface leads to {MGMT}: see --iface-can-reach"),
        (
            UplinkChoice(can_reach=IPv4Address("203.0.113.1")),
            "route to 203.0.113.1: .*: see --iface-can-reach",
        ),
    ],
    ids=str,
)
def test_an_uplink_that_cannot_be_is_named(host: Host, choice: UplinkChoice, complaint: str) -> None:
    host.ip("route", "replace", "unreachable", "203.0.113.0/24")
    with pytest.raises(AgentError, match=complaint):
        found(host, choice)


def test_a_host_without_any_route_has_no_default_route(host: Host) -> None:
    """Nor a main table, in which the kernel would refuse to look for one."""
    empty = host.lab.namespace("empty")
    with empty.entered(), Netlink() as netlink, pytest.raises(AgentError, match="no default route"):
        find_uplink(netlink, UplinkChoice())


def test_the_address_that_we_had_stays_ours_while_it_fits(host: Host) -> None:
    assert found(host, UplinkChoice("wan0"), SECOND) == ("wan0", SECOND)
    assert found(host, UplinkChoice(), SECOND) == ("wan0", SECOND)
    assert found(host, UplinkChoice(pattern=r"^10\."), SECOND) == ("wan0", SECOND)
    assert found(host, UplinkChoice(WAN), SECOND) == ("wan0", WAN)
    assert found(host, UplinkChoice("wan0"), "10.9.9.9") == ("wan0", WAN)


def test_an_interface_that_was_renamed_is_the_same_one(host: Host) -> None:
    choice = UplinkChoice("wan0")

    def follow(before: Uplink) -> tuple[Uplink, str]:
        with Netlink() as netlink:
            return follow_uplink(netlink, choice, before)

    def first() -> Uplink:
        with Netlink() as netlink:
            return find_uplink(netlink, choice)

    before = host.call(first)
    assert host.call(partial(follow, before)) == (before, "")
    host.ip("link", "set", "dev", "wan0", "name", "wan9")
    try:
        now, wrong = host.call(partial(follow, before))
        assert (now.link.name, now.link.ifindex, now.address) == ("wan9", before.link.ifindex, before.address)
        assert "uplink wan0 does not exist" in wrong
        assert host.call(partial(follow, now)) == (now, wrong), "also the next time"
        gone = replace(before, address=IPv4Address("10.9.9.9"))
        with pytest.raises(AgentError, match="uplink wan0 does not exist"):
            host.call(partial(follow, gone))
    finally:
        host.ip("link", "set", "dev", "wan9", "name", "wan0")


def test_a_node_as_flannels_variables_describe_it(lab: Lab) -> None:
    """Address instead of name, and probes that were written for flanneld."""
    a = lab.host("a")
    lab.init_network()
    port = METRICS_PORT + 1
    flannel = {"OVNET_IFACE": a.address, "FLANNELD_HEALTHZ_PORT": str(port)}
    agent = a.agent("--bypass", "off", env=flannel | {"OVNET_METRICS_PORT": "0"}, wait=False)
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert agent.poll() is None, agent.log()
        try:
            return a.http(f"{url}/readyz") == (200, "flanneld is ready")
        except OSError:
            return False

    wait_until(ready, 30, agent.log)
    assert a.http(f"{url}/healthz") == (200, "flanneld is running")
    wait_until(lambda: a.status().get("uplink") == "eth0", 10, "the report is written")
    assert "LISTEN" not in a.run("ss", "-Hltn", "src", a.address).stdout, "loopback unless told otherwise"


def test_a_second_interface_that_goes_down_is_met_at_once(lab: Lab) -> None:
    """It takes the route to a peer along without a word."""
    a, b = lab.host("a"), lab.host("b")
    lab.init_network()
    for host in (a, b):
        host.agent("--resync-interval", "3600", "--iface", "eth0")
    lab.wire.ip("link", "add", "name", "a2", "type", "veth", "peer", "name", "nic1", "netns", a.netns)
    lab.wire.ip("link", "set", "dev", "a2", "master", "lab0", "up")
    a.ip("link", "set", "nic1", "up")

    def way() -> set[str]:
        return {row["dev"] for row in a.json("map", "dump", "peers")}

    wait_until(lambda: way() == {"eth0"}, 20, lambda: f"the peer is known: {way()}")
    a.ip("route", "add", f"{b.address}/32", "dev", "nic1", "src", a.address)
    wait_until(lambda: way() == {"nic1"}, 20, lambda: f"eBPF follows the route: {way()}")
    a.ip("link", "set", "nic1", "down")
    assert "nic1" not in a.ip("route")
    wait_until(lambda: way() == {"eth0"}, 20, lambda: f"eBPF follows the interface: {way()}")
