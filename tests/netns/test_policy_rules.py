"""Rules of policy routing and addresses, as the kernel lists them; and that they are heard of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from queue import SimpleQueue

import pytest

from ctl.core.candidates import UplinkChoice
from ctl.core.family import IPV4
from ctl.core.host import Change, Hop, Link, Uplink
from ctl.core.policy import Rule
from ctl.core.uplink import decide_first
from ctl.kernel.netlink import address, fib, rules
from ctl.kernel.netlink.monitor import Monitor
from ctl.kernel.netlink.session import Netlink
from ctl.kernel.netlink.socket import Rtnl
from ctl.kernel.netlink.uplink import survey
from tests.lab import Host, Lab

PEER = IPv4Address("192.168.77.99")
PORTS = ((40000, 8472),)


@dataclass
class Place:
    """A host with a second interface, by which table 100 leads to a peer, and a session in it."""

    host: Host
    rtnl: Rtnl
    uplink: Uplink
    nic1: int


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with Lab() as lab:
        host, far = lab.host("a"), lab.namespace("far")
        host.ip("link", "add", "nic1", "type", "veth", "peer", "name", "nic1", "netns", far.netns)
        far.ip("link", "set", "nic1", "up")
        host.ip("addr", "add", "10.7.7.1/24", "dev", "nic1")
        host.ip("link", "set", "nic1", "up")
        host.ip("route", "add", f"{PEER}/32", "via", "10.7.7.2", "dev", "nic1", "table", "100")
        ifindex = {each["ifname"]: each["ifindex"] for each in json.loads(host.ip("-j", "link"))}
        eth0 = Link(ifindex["eth0"], "eth0", "veth", None, 1500, True, 0, True, "", 0)
        with host.entered(), closing(Rtnl()) as rtnl:
            yield Place(host, rtnl, Uplink(eth0, IPv4Address(host.address)), ifindex["nic1"])


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        ("to 192.168.77.99", Rule()),
        ("from 192.168.77.0/24", Rule(source=IPv4Network("192.168.77.0/24"))),
        ("fwmark 0x80/0x80", Rule(mask=0x80)),
        ("fwmark 0x80", Rule(mask=0xFFFFFFFF)),
        ("fwmark 0/0xff", Rule(mask=0xFF)),
        ("not fwmark 0xca6c", Rule(mask=0xFFFFFFFF, inverted=True)),
        ("tos 0x10", Rule(tos=0x10)),
        ("iif nic1", Rule(iif="nic1")),
        ("oif nic1", Rule(bound=True)),
        ("uidrange 0-10", Rule(users=(0, 10))),
        ("ipproto udp", Rule(protocol=17)),
        ("ipproto tcp dport 22", Rule(protocol=6, dports=(22, 22))),
        (
            "ipproto udp sport 4000-5000 dport 8472",
            Rule(protocol=17, sports=(4000, 5000), dports=(8472, 8472)),
        ),
    ],
)
def test_a_rule_is_read_as_it_was_set(place: Place, words: str, rule: Rule) -> None:
    place.host.ip("rule", "add", *words.split(), "lookup", "100", "pref", "1000")
    try:
        assert rules.listing(place.rtnl, IPV4) == [Rule(), rule, Rule(), Rule()]
    finally:
        place.host.ip("rule", "del", "pref", "1000")


@pytest.mark.parametrize(
    ("words", "by_nic1"),
    [
        (f"to {PEER}", True),
        ("from 192.168.77.11", True),
        ("ipproto udp dport 8472", True),
        ("ipproto udp sport 32768-60999", True),
        ("uidrange 0-0", True),
        ("iif lo", True),
        ("not fwmark 0xca6c", True),
        ("ipproto tcp dport 8472", False),
        ("ipproto udp dport 4789", False),
        ("tos 0x10", False),
        ("iif nic1", False),
        ("oif nic1", False),
        ("fwmark 0x80/0x80", False),
    ],
)
def test_the_fib_is_asked_for_the_very_packets_that_we_send(place: Place, words: str, by_nic1: bool) -> None:
    place.host.ip("rule", "add", *words.split(), "lookup", "100", "pref", "1000")
    try:
        found = fib.hops(place.rtnl, [PEER], place.uplink.address, 1500, PORTS)
        eth0 = Hop(place.uplink.link.ifindex, PEER)
        assert found == {PEER: Hop(place.nic1, IPv4Address("10.7.7.2")) if by_nic1 else eth0}
    finally:
        place.host.ip("rule", "del", "pref", "1000")


def test_a_peer_that_source_ports_lead_to_on_two_ways_is_the_kernel_paths(place: Place) -> None:
    other = IPv4Address("192.168.77.98")
    place.host.ip("rule", "add", "ipproto", "udp", "sport", "40000-50000", "lookup", "100", "pref", "1000")
    try:
        ports = ((32768, 8472), (40000, 8472), (50001, 8472))
        assert fib.hops(place.rtnl, [PEER, other], place.uplink.address, 1500, ports) == {
            PEER: None,
            other: Hop(place.uplink.link.ifindex, other),
        }
    finally:
        place.host.ip("rule", "del", "pref", "1000")


def test_rules_and_nexthop_objects_are_heard_of(place: Place) -> None:
    heard: SimpleQueue[frozenset[Change]] = SimpleQueue()
    monitor = Monitor(heard.put, lambda _: False)
    try:
        for thing in (
            ("rule", "add", "to", str(PEER), "lookup", "100", "pref", "1000"),
            ("rule", "del", "pref", "1000"),
            ("nexthop", "add", "id", "7", "via", "10.7.7.2", "dev", "nic1"),
            ("nexthop", "replace", "id", "7", "via", "10.7.7.3", "dev", "nic1"),
            ("nexthop", "del", "id", "7"),
        ):
            place.host.ip(*thing)
            assert heard.get(timeout=10) == {Change.HOPS}, thing
    finally:
        monitor.close()


def test_a_route_that_hides_its_nexthop_object_is_the_kernel_paths(place: Place) -> None:
    place.host.sysctl("net.ipv4.nexthop_compat_mode", "0")
    place.host.ip("nexthop", "add", "id", "7", "via", "10.7.7.2", "dev", "nic1")
    try:
        place.host.ip("route", "add", "10.88.0.0/16", "nhid", "7")
        there = IPv4Address("10.88.0.1")
        assert fib.hops(place.rtnl, [there], place.uplink.address, 1500, PORTS) == {there: None}
    finally:
        place.host.ip("nexthop", "del", "id", "7")
        place.host.sysctl("net.ipv4.nexthop_compat_mode", "1")


def test_addresses_are_told_apart_and_the_best_one_is_published(place: Place) -> None:
    """Each in front of ours in the kernel's order, where the kernel lets it be."""
    host = place.host
    host.ip("link", "add", "nic2", "type", "veth", "peer", "name", "nic3")
    try:
        add = ("addr", "add", "dev", "nic2")
        host.ip(*add, "169.254.7.7/16")
        host.ip(*add, "10.8.0.1/24", "scope", "link")
        host.ip(*add, "10.9.0.1/24", "preferred_lft", "0", "valid_lft", "1000")
        host.ip(*add, "10.9.1.100/32")
        host.ip(*add, "10.9.1.11/24")
        host.ip(*add, "10.9.1.12/24")
        host.ip(*add, "10.9.2.1", "peer", "10.9.2.2/32")
        index = host.ifindex("nic2")
        found = {str(each.ip): each for each in address.listing(place.rtnl)[index]}
        assert {ip for ip, each in found.items() if each.narrow} == {"10.8.0.1"}
        assert {ip for ip, each in found.items() if each.fading} == {"10.9.0.1"}
        assert {ip for ip, each in found.items() if each.secondary} == {"10.9.1.12"}
        assert {ip for ip, each in found.items() if each.length == 32} == {"10.9.1.100", "10.9.2.1"}
        assert {ip for ip, each in found.items() if each.plain} == {"10.9.1.11"}
        with Netlink() as netlink:
            chosen = decide_first(UplinkChoice("nic2"), survey(netlink, UplinkChoice("nic2")))
        assert chosen.memory
        assert str(chosen.memory.uplink.address) == "10.9.1.11"
    finally:
        host.ip("link", "del", "nic2")


def test_each_interface_of_a_default_route_over_several_paths_is_found(place: Place) -> None:
    host = place.host
    paths = ("nexthop", "via", "10.7.7.2", "dev", "nic1", "nexthop", "via", "192.168.77.1", "dev", "eth0")
    host.ip("route", "add", "default", "metric", "100", *paths)
    host.ip("route", "add", "unreachable", "default", "metric", "50")
    try:
        with Netlink() as netlink:
            found = survey(netlink, UplinkChoice())
        assert found.defaults == (place.nic1, place.uplink.link.ifindex)
    finally:
        host.ip("route", "del", "unreachable", "default", "metric", "50")
        host.ip("route", "del", "default", "metric", "100")
