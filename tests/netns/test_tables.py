"""The kernel's tables of peers, and what it says of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from queue import Empty, SimpleQueue
from socket import AF_INET

import pytest
from pyroute2.netlink.rtnl import RTM_GETROUTE
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from ctl.backend.settle import Tracked, settle
from ctl.core.errors import KernelError
from ctl.core.family import IPV4
from ctl.core.findings import Findings
from ctl.core.host import Change, Devices, FilterKey, Hop, Link, Route, RouteKey, Uplink
from ctl.core.model import MacAddress
from ctl.core.plan import Delta
from ctl.core.ports import Table
from ctl.core.tracker import Tracker
from ctl.kernel.hooks.filters import attached
from ctl.kernel.netlink import fib
from ctl.kernel.netlink.message import body, message
from ctl.kernel.netlink.monitor import Monitor
from ctl.kernel.netlink.session import Netlink
from ctl.kernel.netlink.socket import Refused, Rtnl
from ctl.kernel.netlink.tables import Fdb, Routes, VtepNeighbours
from tests.lab import Host, Lab

MANY = 300
"""More than go into one call."""

SUBNETS = [IPv4Network((0x0AC80000 + 256 * each, 24)) for each in range(MANY)]


def mac(number: int) -> MacAddress:
    return MacAddress(b"\2\0" + number.to_bytes(4, "big"))


@dataclass
class Place:
    """A host with a vxlan device, and a session in it."""

    host: Host
    rtnl: Rtnl
    vxlan: int
    uplink: Uplink

    def routes(self) -> dict[RouteKey[IPv4Network], Route[IPv4Address]]:
        return {
            RouteKey.of(each): Route(each.network_address, self.vxlan, True, 1300 + number % 2)
            for number, each in enumerate(SUBNETS)
        }


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with Lab() as lab:
        host = lab.host("a")
        host.ip("link", "add", "vx", "type", "vxlan", "id", "1", "dstport", "8472",
                "local", host.address, "dev", "eth0", "nolearning")  # fmt: skip
        host.ip("link", "set", "vx", "up")
        ifindex = {each["ifname"]: each["ifindex"] for each in json.loads(host.ip("-j", "link"))}
        eth0 = Link(ifindex["eth0"], "eth0", "veth", None, 1500, True, 0, True, "", 0)
        with host.entered(), closing(Rtnl()) as rtnl:
            yield Place(host, rtnl, ifindex["vx"], Uplink(eth0, IPv4Address(host.address)))


@pytest.mark.parametrize("name", ["routes", "neighbours", "fdb"])
def test_a_table_holds_what_is_put_and_nothing_that_is_removed(place: Place, name: str) -> None:
    tables: dict[str, tuple[Table[object, object], dict[object, object]]] = {
        "routes": (Routes(place.rtnl, IPV4), {**place.routes()}),  # type: ignore[dict-item]
        "neighbours": (
            VtepNeighbours(place.rtnl, IPV4, place.vxlan),  # type: ignore[dict-item]
            {each.network_address: mac(number) for number, each in enumerate(SUBNETS)},
        ),
        "fdb": (
            Fdb(place.rtnl, IPV4, place.vxlan),  # type: ignore[dict-item]
            {mac(number): IPv4Address(0xC0000201 + number) for number in range(MANY)},
        ),
    }
    table, desired = tables[name]
    table.apply(Delta(puts=tuple(desired.items())))
    assert table.read() == desired
    values = list(desired.values())
    changed = dict(zip(desired, values[1:] + values[:1], strict=True))
    table.apply(Delta(puts=tuple(changed.items())))
    assert table.read() == changed
    table.apply(Delta(removals=tuple(changed)))
    assert table.read() == {}
    table.apply(Delta(removals=tuple(changed)))  # gone already: as it should be


def test_one_bad_entry_is_counted_and_the_others_are_applied(place: Place) -> None:
    table = Routes(place.rtnl, IPV4)
    puts = place.routes()
    bad = RouteKey.of(IPv4Network("10.9.9.0/24"))
    with pytest.raises(KernelError, match="routes to peers: 1 entries not applied"):
        table.apply(Delta(puts=((bad, Route(IPv4Address("10.9.9.0"), 9999, onlink=True)), *puts.items())))
    assert table.read() == puts
    table.apply(Delta(removals=tuple(puts)))


def test_another_route_to_the_same_subnet_stays(place: Place) -> None:
    table = Routes(place.rtnl, IPV4)
    subnet = SUBNETS[0]
    place.host.ip("route", "add", str(subnet), "via", "192.168.77.250")
    ours = {RouteKey.of(subnet): Route(subnet.network_address, place.vxlan, onlink=True)}
    table.apply(Delta(puts=tuple(ours.items())))
    assert "via 192.168.77.250" in place.host.ip("route", "show", str(subnet))
    assert table.read() == ours
    table.apply(Delta(removals=tuple(ours)))
    assert "via 192.168.77.250" in place.host.ip("route", "show", str(subnet))
    place.host.ip("route", "del", str(subnet))


def test_our_route_with_an_older_metric_is_seen_and_removed(place: Place) -> None:
    subnet = SUBNETS[0]
    place.host.ip("route", "add", str(subnet), "dev", "vx", "proto", "147")
    table = Routes(place.rtnl, IPV4)
    assert list(table.read()) == [RouteKey(subnet, 0)]
    table.apply(Delta(removals=(RouteKey(subnet, 0),)))
    assert table.read() == {}


@pytest.mark.parametrize("wanted", [True, False])
def test_a_second_route_with_the_key_of_ours_goes(place: Place, wanted: bool) -> None:
    subnet = SUBNETS[0]
    key, ours = RouteKey.of(subnet), Route(subnet.network_address, place.vxlan, onlink=True)
    named = ("proto", "147", "metric", str(key.metric))
    via = ("via", str(subnet.network_address), "dev", "vx", "onlink")
    # The kernel takes the first: the one that is wanted would never be used.
    place.host.ip("route", "add", str(subnet), "via", "192.168.77.250", *named)
    place.host.ip("route", "append", str(subnet), *via, *named)
    place.host.ip("route", "append", str(subnet), "via", "192.168.77.251", *named)
    place.host.ip("route", "add", str(subnet), "tos", "0x10", "via", "192.168.77.252", *named)
    tracker = Tracker[RouteKey[IPv4Network], Route[IPv4Address]]()
    if wanted:
        tracker.put(key, ours)
    settle([Tracked("routes", Routes(place.rtnl, IPV4), tracker)], Findings())
    assert Routes(place.rtnl, IPV4).read() == ({key: ours} if wanted else {})
    assert len(place.host.ip("route", "show", str(subnet)).splitlines()) == int(wanted)
    place.host.run("ip", "route", "flush", "proto", "147")


def test_an_fdb_entry_with_more_than_a_host_of_its_own_is_put_right(place: Place) -> None:
    one, host = mac(1), IPv4Address("192.0.2.1")
    bridge = partial(place.host.run, "bridge", "fdb")
    bridge("add", str(one), "dev", "vx", "dst", str(host), "port", "4789", "permanent")
    for remote in ("192.0.2.7", "192.0.2.8"):
        bridge("append", "00:00:00:00:00:00", "dev", "vx", "dst", remote, "permanent")
    tracker = Tracker[MacAddress, IPv4Address]()
    tracker.put(one, host)
    settle([Tracked("fdb", Fdb(place.rtnl, IPV4, place.vxlan), tracker)], Findings())
    assert Fdb(place.rtnl, IPV4, place.vxlan).read() == {one: host}
    listed = bridge("show", "dev", "vx").stdout
    assert "4789" not in listed
    assert "192.0.2.7" not in listed
    Fdb(place.rtnl, IPV4, place.vxlan).apply(Delta(removals=(one,)))


def test_a_dump_that_the_kernel_breaks_off_is_not_an_empty_one(place: Place) -> None:
    """It says so in the message that ends it."""
    with pytest.raises(Refused, match="FIB table does not exist"):
        place.rtnl.bulk.dump(RTM_GETROUTE, body(message(rtmsg, family=AF_INET, table=99)))


def test_an_interface_that_is_gone_has_no_addresses_and_no_filters(place: Place) -> None:
    with Netlink() as netlink:
        assert netlink.addresses(9999) == []
    assert attached(place.rtnl, FilterKey(9999, ingress=True)) == []


def picked(host: Host, target: IPv4Address) -> IPv4Address:
    """The next hop that the kernel chooses of several."""
    (route,) = json.loads(host.ip("-j", "route", "get", str(target), "from", host.address))
    return IPv4Address(route["gateway"])


def test_hops_are_as_the_fib_says(place: Place) -> None:
    host, eth0 = place.host, place.uplink.link.ifindex
    near, far, nowhere, spread, two, small, tunnel, limited = (
        IPv4Address(each) for each in ("192.168.77.99", *(f"10.{number}.0.1" for number in range(1, 8)))
    )
    host.ip("route", "add", "10.1.0.0/16", "via", "192.168.77.1")
    host.ip("route", "add", "unreachable", "10.2.0.0/16")
    paths = ("nexthop", "via", "192.168.77.1", "dev", "eth0")
    host.ip("route", "add", "10.3.0.0/16", *paths, "nexthop", "via", "192.168.77.2", "dev", "eth0")
    host.ip("route", "add", "10.4.0.0/16", *paths, "nexthop", "dev", "vx")
    host.ip("route", "add", "10.5.0.0/16", "via", "192.168.77.1", "mtu", "1400")
    host.ip("route", "add", "10.6.0.0/16", "dev", "vx", "scope", "link")
    host.ip("route", "add", "10.7.0.0/16", "via", "192.168.77.1", "hoplimit", "9")
    stranger = IPv4Address("203.0.113.1")
    asked = (near, far, nowhere, spread, two, small, tunnel, limited, place.uplink.address, stranger)
    assert fib.hops(place.rtnl, asked, place.uplink.address, 1500, ttl=64) == {
        near: Hop(eth0, near),
        far: Hop(eth0, IPv4Address("192.168.77.1")),
        nowhere: None,
        spread: Hop(eth0, picked(host, spread)),
        two: None,
        small: Hop(eth0, IPv4Address("192.168.77.1"), 1400),
        tunnel: Hop(place.vxlan, tunnel),
        limited: Hop(eth0, IPv4Address("192.168.77.1"), ttl=9),
        place.uplink.address: None,
        stranger: None,
    }
    assert fib.hops(place.rtnl, [near], place.uplink.address, 1500, ttl=128) == {
        near: Hop(eth0, near, ttl=128)
    }
    several = [spread + number for number in range(32)]
    found = fib.hops(place.rtnl, several, place.uplink.address, 1500, ttl=64)
    assert found == {each: Hop(eth0, picked(host, each)) for each in several}
    assert len(set(found.values())) == 2, "not all peers behind one"
    hosts = [IPv4Address(int(near) - 50 + number % 100) for number in range(1000)]
    assert set(fib.hops(place.rtnl, hosts, place.uplink.address, 1500, ttl=64)) == set(hosts)


def test_the_monitor_hears_of_what_others_remove_and_not_of_our_work(place: Place) -> None:
    heard: SimpleQueue[frozenset[Change]] = SimpleQueue()
    wanted: set[object] = set()
    monitor = Monitor(heard.put, lambda entry: entry in wanted)
    try:
        monitor.watch(Devices(place.vxlan, 0, place.uplink.link.ifindex))
        table, fdb = Routes(place.rtnl, IPV4), Fdb(place.rtnl, IPV4, place.vxlan)
        neighbours = VtepNeighbours(place.rtnl, IPV4, place.vxlan)
        routes, entry = place.routes(), (mac(1), IPv4Address("192.0.2.1"))
        near = (SUBNETS[0].network_address, mac(1))
        table.apply(Delta(puts=tuple(routes.items())))
        fdb.apply(Delta(puts=(entry,)))
        neighbours.apply(Delta(puts=(near,)))
        wanted |= {*routes, entry[0], near[0]}
        place.host.ip("route", "add", "10.77.0.0/16", "via", "192.168.77.1")
        assert heard.get(timeout=10) == {Change.HOPS}, "nothing before: our own work is not news"

        removals = (
            ("ip", "route", "del", str(SUBNETS[0])),
            ("bridge", "fdb", "del", str(mac(1)), "dev", "vx"),
            ("ip", "neigh", "del", str(near[0]), "dev", "vx"),
        )
        for command in removals:
            place.host.run(*command)
            assert heard.get(timeout=10) == {Change.PEERS}, command
            with pytest.raises(Empty):
                heard.get_nowait()

        wanted.clear()
        table.apply(Delta(removals=tuple(routes)))
        place.host.ip("route", "del", "10.77.0.0/16")
        assert heard.get(timeout=10) == {Change.HOPS}, "nor is what we remove"
    finally:
        monitor.close()
