"""What peers ask of this node's tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctl.core.abi import PEER_F_KERNEL_PATH
from ctl.core.family import IPV4
from ctl.core.host import METRICS, Hop, Removed, Route, RouteKey
from ctl.core.model import Lease, MacAddress, Network
from ctl.core.peers import KernelTables, PeerMaps
from ctl.core.roster import Roster
from tests.unit.strategies import NETWORK
from tests.unit.test_roster import OTHER, OWN, PEER, crowded

VXLAN = 7
HOP = Hop(2, IPv4Address("10.0.0.254"))

Hops = Mapping[IPv4Address, Hop[IPv4Address] | None]


class Followed:
    """Roster, kernel's tables and maps of one node, which follow the leases together."""

    def __init__(self, network: Network = NETWORK) -> None:
        self.roster = Roster(IPV4, OWN, network)
        self.kernel = KernelTables(IPV4, self.roster, network, VXLAN)
        self.maps = PeerMaps(IPV4, self.roster, network)
        self.neighbours, self.fdb, self.routes = self.kernel.neighbours, self.kernel.fdb, self.kernel.routes
        self.vteps, self.peers, self.slow = self.maps.vteps, self.maps.peers, self.maps.slow

    def move(self, found: list[Lease], rehopped: list[IPv4Address], hops: Hops) -> None:
        moves = self.roster.update(found)
        self.kernel.move(moves, rehopped, hops)
        self.maps.move(moves, rehopped, hops)

    def wants(self, entry: Removed) -> bool:
        return self.kernel.wants(entry)


def tables(found: list[Lease], hops: Hops, network: Network = NETWORK) -> Followed:
    made = Followed(network)
    made.move(found, [], hops)
    return made


def test_a_peer_is_in_every_table() -> None:
    made = tables([PEER], {PEER.host: HOP})
    assert made.neighbours.desired == {PEER.vtep_ip: PEER.vtep_mac}
    assert made.fdb.desired == {PEER.vtep_mac: PEER.host}
    assert made.routes.desired == {RouteKey.of(PEER.subnet): Route(PEER.vtep_ip, VXLAN, onlink=True)}
    assert made.vteps.desired == {PEER.host: True}
    entry = made.peers.desired[PEER.vtep_ip]
    assert (entry.host, entry.ifindex, entry.next_hop, entry.flags) == (PEER.host, 2, HOP.next_hop, 0)
    assert (entry.vtep_mac, entry.port, entry.vni) == (PEER.vtep_mac, NETWORK.port, NETWORK.vni)
    assert made.slow() == 0


def test_a_host_without_a_route_is_left_to_the_kernel_path() -> None:
    made = tables([PEER], {PEER.host: None})
    assert made.peers.desired[PEER.vtep_ip].flags == PEER_F_KERNEL_PATH
    assert RouteKey.of(PEER.subnet) in made.routes.desired
    assert made.slow() == 1


def test_a_host_that_is_reached_in_another_way_is_planned_anew() -> None:
    made = Followed()
    made.move([PEER], [], {PEER.host: None})
    made.move([PEER], [PEER.host], {PEER.host: HOP})
    assert made.peers.desired[PEER.vtep_ip].next_hop == HOP.next_hop
    assert made.slow() == 0


def test_a_multipath_route_leaves_the_choice_to_the_fib() -> None:
    entry = tables([PEER], {PEER.host: Hop(2, None)}).peers.desired[PEER.vtep_ip]
    assert entry.next_hop is None
    assert entry.flags == 0


def test_a_shorter_subnet_fills_all_its_blocks() -> None:
    wide = replace(PEER, subnet=IPv4Network("172.17.4.0/22"))
    made = tables([wide], {PEER.host: HOP})
    assert [str(block) for block in made.peers.desired] == [f"172.17.{each}.0" for each in (4, 5, 6, 7)]
    assert list(made.routes.desired) == [RouteKey.of(wide.subnet)]


def test_longer_subnets_share_a_block_that_only_the_kernel_can_split() -> None:
    low = replace(PEER, subnet=IPv4Network("172.17.4.0/25"))
    high = replace(OTHER, subnet=IPv4Network("172.17.4.128/25"))
    alone = tables([low], {low.host: HOP}).peers.desired[IPv4Address("172.17.4.0")]
    assert (alone.host, alone.flags) == (low.host, PEER_F_KERNEL_PATH)
    both = tables([low, high], {low.host: HOP, high.host: HOP})
    entry = both.peers.desired[IPv4Address("172.17.4.0")]
    assert (entry.host, entry.flags) == (IPv4Address(0), PEER_F_KERNEL_PATH)
    assert set(both.vteps.desired) == {low.host, high.host}


def test_a_shared_block_is_the_same_in_whatever_order_its_leases_came() -> None:
    low = replace(PEER, subnet=IPv4Network("172.17.4.0/25"))
    high = replace(OTHER, subnet=IPv4Network("172.17.4.128/25"))
    made = Followed()
    for found in ([high], [low, high]):
        made.move(found, [], {})
    assert made.peers.desired == tables([low, high], {}).peers.desired


def test_with_direct_routing_only_hosts_behind_routers_need_the_tunnel() -> None:
    hops = {PEER.host: Hop(2, PEER.host), OTHER.host: HOP}
    made = tables([PEER, OTHER], hops, replace(NETWORK, direct_routing=True))
    assert made.routes.desired == {
        RouteKey.of(PEER.subnet): Route(PEER.host, 2),
        RouteKey.of(OTHER.subnet): Route(OTHER.vtep_ip, VXLAN, onlink=True),
    }
    assert made.peers.desired[PEER.vtep_ip].flags == PEER_F_KERNEL_PATH
    assert made.peers.desired[OTHER.vtep_ip].flags == 0
    assert set(made.vteps.desired) == {PEER.host, OTHER.host}, "either may still send VXLAN"


def test_a_smaller_mtu_on_the_way_is_the_overlays_routes_too() -> None:
    made = tables([PEER], {PEER.host: replace(HOP, mtu=1300)})
    assert made.routes.desired == {
        RouteKey.of(PEER.subnet): Route(PEER.vtep_ip, VXLAN, onlink=True, mtu=1250)
    }
    assert made.slow() == 1, "the programs know one MTU for all"


def test_a_plain_route_has_the_mtu_of_the_way() -> None:
    made = tables([PEER], {PEER.host: Hop(2, PEER.host, mtu=1300)}, replace(NETWORK, direct_routing=True))
    assert made.routes.desired == {RouteKey.of(PEER.subnet): Route(PEER.host, 2, mtu=1300)}


def test_a_removal_is_missed_only_where_the_entry_is_wanted() -> None:
    made = tables([PEER], {PEER.host: HOP})
    assert PEER.vtep_mac is not None
    for entry in (RouteKey.of(PEER.subnet), PEER.vtep_ip, PEER.vtep_mac):
        assert made.wants(entry)
    for other in (RouteKey.of(OTHER.subnet), RouteKey(PEER.subnet, 0), OTHER.vtep_ip, MacAddress(bytes(6))):
        assert not made.wants(other)


@given(st.lists(crowded, max_size=6), st.booleans())
def test_change_by_change_is_as_from_the_start(story: list[list[Lease]], direct: bool) -> None:
    network = replace(NETWORK, direct_routing=direct)
    hops: Hops = {IPv4Address("10.0.0.2"): Hop(2, IPv4Address("10.0.0.2")), IPv4Address("10.0.0.3"): HOP}
    followed = Followed(network)
    for found in story:
        followed.move(found, [], hops)
        fresh = tables(found, hops, network)
        for name in ("neighbours", "fdb", "routes", "vteps", "peers"):
            assert getattr(followed, name).desired == getattr(fresh, name).desired, name
        assert followed.kernel.senders.desired == fresh.kernel.senders.desired
        assert followed.slow() == fresh.slow()


def test_metrics_of_routes_are_spread_and_never_those_of_others() -> None:
    keys = [RouteKey.of(each) for each in IPv4Network("10.0.0.0/14").subnets(new_prefix=24)]
    assert {key.metric for key in keys} == set(METRICS[4])


@pytest.mark.parametrize(
    ("subnets", "most", "others"),
    [
        ([IPv4Network((0x0A000000 + (each << 8), 24)) for each in range(100_000)], 200, 600),
        ([IPv6Network((0xFD << 120 | each << 64, 64)) for each in range(100_000)], 650, 256),
    ],
    ids=("IPv4", "IPv6"),
)
def test_few_of_a_hundred_thousand_routes_share_a_metric(
    subnets: list[IPv4Network | IPv6Network], most: int, others: int
) -> None:
    metrics = Counter(RouteKey.of(subnet).metric for subnet in subnets)
    assert max(metrics.values()) <= most, "the kernel looks through all of one metric for each IPv4 route"
    assert all(0 < metric < others for metric in metrics)
