"""A second interface to the underlay: packets leave by the one that the kernel path takes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Final

import pytest

from ctl.core.model import MacAddress
from tests.netns.parity.capture import Shot, Tap, fields
from tests.netns.parity.rows import Ends, udp
from tests.netns.parity.site import UPLINK_MACS, Site, not_ours, one_cpu
from tests.netns.parity.test_underlay import SECOND_MAC
from tests.process import wait_until

FLOWS: Final = 100
FIRST: Final = 26000
SOON: Final = 20
Hops = tuple[tuple[str, str], ...]
"""Next hops, each with its interface."""
NIC: Final = "nic1"
"""Node a's second interface, on cable `a2` of the switch."""
VIA_NIC: Final = ("10.7.7.2", NIC)
ALSO_VIA_NIC: Final = ("10.7.7.3", NIC)
VIA_ETH: Final = ("192.168.77.12", "eth0")
ALSO_VIA_ETH: Final = ("192.168.77.102", "eth0")
MACS: Final = {VIA_NIC: UPLINK_MACS["b"], ALSO_VIA_NIC: SECOND_MAC, ALSO_VIA_ETH: SECOND_MAC}
WAYS: Final = {
    "the second one": ((VIA_NIC,), True),
    "both": ((VIA_ETH, VIA_NIC), False),
    "both, the second one first": ((VIA_NIC, VIA_ETH), False),
    "two paths over the first": ((VIA_ETH, ALSO_VIA_ETH), True),
    "two paths over the second": ((VIA_NIC, ALSO_VIA_NIC), True),
}
"""By which next hops node b is reached, and whether eBPF takes part."""


@contextmanager
def second_uplink(site: Site) -> Iterator[Tap]:
    """A cable more to the same switch, which sends all that comes there on to node b; what is on it."""
    a, wire = site.a, site.lab.wire
    wire.ip("link", "add", "name", "a2", "type", "veth", "peer", "name", NIC, "netns", a.netns)
    try:
        wire.ip("link", "set", "dev", "a2", "master", "lab0", "up")
        wire.nft(
            "table bridge routers { chain pre { type filter hook prerouting priority 0; "
            f"ether daddr {SECOND_MAC} ether daddr set {UPLINK_MACS['b']}; }}; }}"
        )
        # It must not answer for eth0's address.
        a.ip("link", "set", "dev", NIC, "arp", "off", "up")
        a.ip("addr", "add", "10.7.7.1/24", "dev", NIC)
        for (address, device), mac in MACS.items():
            a.ip("neigh", "replace", address, "lladdr", mac, "dev", device, "nud", "permanent")
        with closing(Tap(wire, "a2")) as tap:
            yield tap
    finally:
        wire.ip("link", "del", "a2")
        a.ip("neigh", "del", ALSO_VIA_ETH[0], "dev", "eth0")
        wire.nft("delete table bridge routers")


@contextmanager
def reached(site: Site, hops: Hops) -> Iterator[None]:
    """Node a has such a route to node b, and its agent has followed."""
    words = [word for hop, device in hops for word in ("nexthop", "via", hop, "dev", device)]
    site.a.ip("route", "add", f"{site.b.address}/32", "src", site.a.address, *words)
    try:
        wait_until(lambda: follows(site, hops), SOON, "the agent follows")
        yield
    finally:
        site.a.ip("route", "del", f"{site.b.address}/32")
        wait_until(lambda: follows(site, (VIA_ETH,)), SOON, "the agent follows")


def follows(site: Site, hops: Hops) -> bool:
    """Whether node a's programs know how node b is reached; where there are none, nobody needs to."""
    if "off" in site.flags:
        return True
    (row,) = site.a.json("map", "dump", "peers")
    if len({device for _, device in hops}) > 1:
        return bool(row["flags"] == ["kernel-path"])
    (route,) = json.loads(site.a.ip("-j", "route", "get", site.b.address, "from", site.a.address))
    hop = (route.get("gateway", site.b.address), route["dev"])
    return hop in hops and (row["next_hop"], row["dev"], row["flags"]) == (*hop, [])


def tunnels(tap: Tap) -> Iterator[str]:
    """Outer MACs of the VXLAN that has been on a cable."""
    for _, frame in tap.frames():
        found = fields(frame)
        if "outer.to" in found:
            yield found["outer.to"]


def shoot(site: Site, first: int) -> None:
    """A datagram of each of many flows, with source ports from `first` on."""
    src, dst = site.addresses()
    for port in range(first, first + FLOWS):
        for shot in udp()(Ends(src, dst, MacAddress.parse(site.one.mac), site.gateway, port)):
            site.at_one.send(Shot(shot.frame))


def shoot_all(site: Site, first: int) -> None:
    """Send them, and wait until all have come into container two."""
    came: list[bytes] = []

    def all_there() -> bool:
        came.extend(frame for out, frame in site.at_two.frames() if not out and not_ours(frame))
        return len(came) >= FLOWS

    site.at_two.frames()
    with one_cpu():
        shoot(site, first)
    wait_until(all_there, SOON, lambda: f"{FLOWS} arrive, not {len(came)}")


def where(site: Site, hops: Hops, first: int) -> tuple[Counter[tuple[str, str]], int]:
    """On which cable, to which MAC, and how many of them by eBPF, when the flows are approved."""
    with second_uplink(site) as at_nic, closing(Tap(site.lab.wire, "a")) as at_eth, reached(site, hops):
        taps = {"eth0": at_eth, NIC: at_nic}
        for turn in range(3):
            before = site.counters()["a", "from_container"]
            shoot_all(site, first)
            counted = site.counters()["a", "from_container"] - before
            on = Counter((name, mac) for name, tap in taps.items() for mac in tunnels(tap))
            if turn and not counted["flow_expired"]:  # else so late that the first approvals were over
                break
        return on, counted["encap"]


@pytest.mark.parametrize("way", WAYS)
def test_a_second_uplink(kernel: Site, learned: Site, way: str) -> None:
    hops, carried = WAYS[way]
    first = FIRST + FLOWS * list(WAYS).index(way)
    by_kernel, none = where(kernel, hops, first)
    assert (by_kernel.total(), none) == (FLOWS, 0)
    assert len(by_kernel) == 1, "all flows take one way"
    assert where(learned, hops, first) == (by_kernel, FLOWS if carried else 0)
