"""Where the underlay is smaller somewhere, containers are told so, or not, as by the kernel path."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from tests.host import Host
from tests.netns.parity.site import Site
from tests.netns.parity.talk import PORT, Told, probe, servers, talk
from tests.process import wait_until

SOON = 20.0
INNER = {1500: 1450, 1400: 1350}
"""What is left inside of an uplink's MTU."""
Fate = tuple[Told, dict[int, str], Told]


def fates(site: Site, *sizes: int) -> Fate:
    """A conversation, what becomes of packets of these sizes with DF, a conversation afterwards."""
    with servers({"two": site.two}) as answering:
        to = (site.two.address, PORT)
        before = talk(site.one, to, answering)
        probed = {size: probe(site.one, to, size, answering) for size in sizes}
        after = talk(site.one, to, answering)
    for container in (site.one, site.two):
        container.ip("route", "flush", "cache")
    return before, probed, after


def routed_mtu(host: Host, subnet: str) -> int:
    """MTU of the route to a peer's containers; 0: the device's."""
    (route,) = json.loads(host.ip("-j", "route", "show", subnet))
    for metric in route.get("metrics", []):
        return int(metric.get("mtu", 0))
    return 0


@contextmanager
def route_mtu(site: Site, mtu: int) -> Iterator[None]:
    """Node a's route to node b knows a smaller MTU, and the agent has heard of it."""
    subnet = str(site.b.gateway.network)
    site.a.ip("route", "add", f"{site.b.address}/32", "dev", "eth0", "mtu", str(mtu))
    try:
        wait_until(lambda: routed_mtu(site.a, subnet) == mtu - 50, SOON, "the overlay's route has it")
        yield
    finally:
        site.a.ip("route", "del", f"{site.b.address}/32", "dev", "eth0")
        wait_until(lambda: not routed_mtu(site.a, subnet), SOON, "the overlay's route is as it was")


@contextmanager
def uplink_mtu(site: Site, mtu: int, names: str) -> Iterator[None]:
    """Uplinks of these nodes with another MTU, and the agents have followed."""
    hosts = [host for host in (site.a, site.b) if host.name in names]
    for size in (mtu, 1500):
        for host in hosts:
            host.ip("link", "set", "eth0", "mtu", str(size))
            wait_until(partial(follows, host, INNER[size]), SOON, f"{host.name} follows to {size}")
        if size == mtu:
            yield


def follows(host: Host, inner: int) -> bool:
    """Whether bridge and vxlan device have this MTU, and containers would be told it."""
    devices = {link["ifname"]: link["mtu"] for link in json.loads(host.ip("-j", "link"))}
    told = int(host.subnet_env()["FLANNEL_MTU"])
    return {devices[host.bridge], devices["ovnet.1"], told} == {inner}


@contextmanager
def as_it_is(site: Site) -> Iterator[None]:
    yield


@contextmanager
def container_too(site: Site) -> Iterator[None]:
    """Node b's uplink is smaller, and its container knows."""
    with uplink_mtu(site, 1400, "b"):
        site.two.ip("link", "set", "eth0", "mtu", "1350")
        try:
            yield
        finally:
            site.two.ip("link", "set", "eth0", "mtu", "1450")


@contextmanager
def careless_container(site: Site) -> Iterator[None]:
    with site.container_mtu(1500):
        yield


PLACES: dict[str, tuple[Callable[[Site], object], tuple[int, ...], dict[int, str]]] = {
    "the same everywhere": (as_it_is, (1450,), {1450: "two got 1450"}),
    "the container's MTU is too large": (
        careless_container,
        (1451, 1500),
        {1451: "ICMP 3.4 of 172.17.20.1, MTU 1450", 1500: "ICMP 3.4 of 172.17.20.1, MTU 1450"},
    ),
    "the route to the peer has a smaller MTU": (
        partial(route_mtu, mtu=1300),
        (1250, 1251, 1450),
        {
            1250: "two got 1250",
            1251: "ICMP 3.4 of 172.17.20.1, MTU 1250",
            1450: "ICMP 3.4 of 172.17.20.1, MTU 1250",
        },
    ),
    "the uplinks of both nodes shrink at run time": (
        partial(uplink_mtu, mtu=1400, names="ab"),
        (1350, 1351, 1450),
        {
            1350: "two got 1350",
            1351: "ICMP 3.4 of 172.17.20.1, MTU 1350",
            1450: "ICMP 3.4 of 172.17.20.1, MTU 1350",
        },
    ),
    "the receiver's uplink is smaller": (
        container_too,
        # A veth lets 4 bytes more in, for a tag: so there is something to be told about.
        (1350, 1354, 1450),
        {1350: "two got 1350", 1354: "ICMP 3.4 of 172.17.30.0, MTU 1350", 1450: "lost"},
    ),
}
"""Where something is smaller, sizes to send, and what becomes of them on the kernel path."""


@pytest.mark.parametrize("place", PLACES)
def test_what_is_too_large_meets_the_same_fate_on_both_paths(kernel: Site, learned: Site, place: str) -> None:
    enter, sizes, expected = PLACES[place]
    seen: list[Fate] = []
    for site in (kernel, learned):
        with enter(site):  # type: ignore[attr-defined]
            seen.append(fates(site, *sizes))
    assert seen[0][1] == expected
    assert seen[1] == seen[0]
    assert "closed" in seen[0][0].tcp
    assert "closed" in seen[0][2].tcp


def test_nothing_leaves_in_outer_fragments(kernel: Site, learned: Site) -> None:
    """They are refused by from_wire: behind a smaller route the inner packet has to be smaller."""
    for site in (kernel, learned):
        with route_mtu(site, 1300):
            seen = site.exchange(partial(fates, site, 1250, 1450))
        assert [frame for frame in seen.wire if frame[20] & 0x3F or frame[21]] == []
        assert any(len(frame) > 1250 for frame in seen.wire)
