"""The tunnel gear carries as the vxlan device does: alone, with --bypass=tunnel, and what hosts send."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from typing import Final

import pytest

from tests.namespace import Netns
from tests.netns.parity.rows import ARRIVING, SENT, Row
from tests.netns.parity.rules import FIREWALLS, Rules
from tests.netns.parity.site import Seen, Site
from tests.netns.parity.talk import PORT, Told, servers, talk
from tests.netns.parity.test_packets import arrive, ends, shoot
from tests.netns.parity.test_rules import conversations

FIRST_PORT: Final = 32000
WIRE: Final[dict[str, bool | None]] = {"tx": False, "gro": True}
"""As a NIC has it: checksums are complete, and super-packets are made by the receiver."""
LEFT: Final = {"udp_gso", "ecn", "super_packet"}
"""Reasons for which the device has to take a row's packets out of their tunnel."""
CHOSEN: Final = (
    "ct state invalid drop, on both nodes",
    "marks on packets and connections",
    "smaller MSS",
    "rp_filter strict",
    "node port that leads back over the overlay (hairpin)",
)
KEPT: Final = [
    row
    for row in FIREWALLS
    if row.name in CHOSEN or any(word in row.name for word in ("service", "kube-proxy", "zones", "NAT"))
]
"""Those that translate, track or mark: what bypasses in the default mode, and what never does."""


@pytest.fixture(scope="module")
def tunnel(sites: Callable[[tuple[str, ...]], Site]) -> Site:
    """Nodes on which nothing bypasses netfilter."""
    return sites(("--bypass", "tunnel"))


def grouped() -> list[tuple[int, list[Row]]]:
    """Rows by the MTU of the container that sends them."""
    rows = sorted(SENT, key=lambda row: row.mtu)
    return [(mtu, list(found)) for mtu, found in groupby(rows, key=lambda row: row.mtu)]


def check_gear(seen: Seen) -> None:
    """Nothing bypassed, and the device sent nothing and received only what it has to."""
    assert seen.counted["a", "from_container"]["encap"] == seen.counted["b", "from_wire"]["decap"] == 0
    out, into = seen.counted["a", "tunnel_out"], seen.counted["b", "tunnel_in"]
    # The first ones may find nobody's MAC address yet: they are the device's, which waits for it.
    assert set(+out) - {"not_ipv4", "no_neighbour"} == {"tunnel_encap"}, (dict(+out), seen.reasons())
    assert out["no_neighbour"] < 10, seen.reasons()
    assert set(+into) - LEFT == {"tunnel_decap"}, seen.reasons()


def compared(kernel: Site, tunnel: Site, act: Callable[[Site], Callable[[], None]], *, from_a: bool) -> Seen:
    """What the tunnel gear's nodes showed, which has to be what the kernel path's did.

    Of packets that come at once and open a flow conntrack keeps the first only, if another CPU was quicker
    with the entry (insert_failed). That is no path's doing: then all are sent once more.
    """
    for _ in range(3):
        by_kernel, ours = (site.exchange(act(site), from_a=from_a) for site in (kernel, tunnel))
        found = ours.differences(by_kernel, ordered=False)
        if not found:
            break
    assert found == [], ours.reasons()
    return ours


@pytest.mark.parametrize(
    ("mtu", "rows"), grouped(), ids=lambda value: str(value) if type(value) is int else ""
)
def test_all_that_a_container_sends_goes_as_by_the_device(
    kernel: Site, tunnel: Site, mtu: int, rows: list[Row]
) -> None:
    def act(site: Site) -> Callable[[], None]:
        shots = [shot for at, row in enumerate(rows) for shot in row.send(ends(site, FIRST_PORT + at))]
        return partial(shoot, site.at_one, shots)

    with kernel.container_mtu(mtu), tunnel.container_mtu(mtu):
        check_gear(compared(kernel, tunnel, act, from_a=True))


def test_all_that_comes_off_the_wire_goes_as_by_the_device(kernel: Site, tunnel: Site) -> None:
    def act(site: Site) -> Callable[[], None]:
        sends = [arrive(site, row, FIRST_PORT + at) for at, row in enumerate(ARRIVING)]

        def all_of_them() -> None:
            for send in sends:
                send()

        return all_of_them

    check_gear(compared(kernel, tunnel, act, from_a=False))


@pytest.mark.parametrize("row", KEPT, ids=lambda row: row.name)
def test_conversations(kernel: Site, tunnel: Site, row: Rules) -> None:
    before = {name: tunnel.carried(name) for name in "ab"}
    assert conversations(tunnel, row) == conversations(kernel, row)
    assert {name: tunnel.carried(name) for name in "ab"} == before


@pytest.fixture(scope="module", params=["veth", "wire"])
def underlay(request: pytest.FixtureRequest, kernel: Site, learned: Site, tunnel: Site) -> Iterator[None]:
    """Super-packets that come whole from their sender, and those that the receiver makes."""
    features = WIRE if request.param == "wire" else {}
    for site in (kernel, learned, tunnel):
        site.underlay(features)
    yield
    for site in (kernel, learned, tunnel):
        site.underlay(dict.fromkeys(features))


def between(client: Netns, server: Netns, address: str) -> list[Told]:
    with servers({"there": server}) as answering:
        return [talk(client, (address, PORT), answering) for _ in range(2)]


def by_gear(site: Site, before: dict[tuple[str, str], Counter[str]], name: str, stage: str) -> set[str]:
    """Reasons that the tunnel gear of a node has counted since."""
    return set(site.counters()[name, stage] - before[name, stage]) - {"not_ipv4"}


def gateways(site: Site) -> dict[str, str]:
    return {"a": str(site.a.gateway.ip), "b": str(site.b.gateway.ip)}


@pytest.mark.parametrize("mode", ["learned", "tunnel"])
def test_hosts_talk_with_containers(
    kernel: Site, learned: Site, tunnel: Site, underlay: None, mode: str
) -> None:
    site = {"learned": learned, "tunnel": tunnel}[mode]
    by_kernel, ours = (
        [between(each.a, each.two, each.two.address), between(each.one, each.b, gateways(each)["b"])]
        for each in (kernel, site)
    )
    assert ours == by_kernel


@pytest.mark.parametrize("mode", ["learned", "tunnel"])
def test_hosts_talk_with_each_other_by_the_gear_alone(
    kernel: Site, learned: Site, tunnel: Site, underlay: None, mode: str
) -> None:
    """Super-packets and all: the look-up of a host's connections says that they end there."""
    site = {"learned": learned, "tunnel": tunnel}[mode]
    by_kernel = between(kernel.a, kernel.b, gateways(kernel)["b"])
    before = site.counters()
    assert between(site.a, site.b, gateways(site)["b"]) == by_kernel
    for name in "ab":
        assert by_gear(site, before, name, "tunnel_in") == {"tunnel_decap"}
        assert by_gear(site, before, name, "tunnel_out") == {"tunnel_encap"}


@pytest.mark.parametrize("mode", ["learned", "tunnel"])
def test_super_packets_that_leave_the_node_again_are_the_devices(
    kernel: Site, learned: Site, tunnel: Site, underlay: None, mode: str
) -> None:
    """A client outside, a node port, an endpoint on the other node: answers come to an address of the
    host, and go on by its uplink.
    """
    (row,) = (row for row in FIREWALLS if row.name == "kube-proxy (nftables): node port from outside")
    site = {"learned": learned, "tunnel": tunnel}[mode]
    before = site.counters()
    assert conversations(site, row) == conversations(kernel, row)
    assert by_gear(site, before, "a", "tunnel_in") == {"tunnel_decap", "super_packet"}


@pytest.mark.parametrize("mode", ["learned", "tunnel"])
def test_what_waits_for_arp_is_not_lost(kernel: Site, learned: Site, tunnel: Site, mode: str) -> None:
    """The first packet to a next hop that has been silent: the device's, which knows how to wait."""
    site = {"learned": learned, "tunnel": tunnel}[mode]
    row = next(row for row in SENT if row.name == "TTL 64")

    def act(site: Site) -> Callable[[], None]:
        shots = row.send(ends(site, FIRST_PORT + 900))

        def forgotten() -> None:
            site.a.ip("neigh", "flush", "dev", "eth0")
            shoot(site.at_one, shots)

        return forgotten

    if mode == "learned":
        site.a.ovctl("flow", "flush")
    by_kernel, ours = (each.exchange(act(each)) for each in (kernel, site))
    assert ours.differences(by_kernel, ordered=False) == [], ours.reasons()
    assert ours.counted["a", "tunnel_out"]["no_neighbour"] > 0
