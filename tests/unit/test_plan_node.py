"""From leases and what the kernel knows to the tables of a node."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctl.abi import PEER_F_KERNEL_PATH
from ctl.host import FilterKey, Hop, Link, Neighbours, Route
from ctl.model import HookMode, Lease, MacAddress
from ctl.plan import plan_endpoints, plan_filters, plan_peers, plan_routes, remote_leases, wants_xdp
from tests.unit.strategies import NETWORK, leases

OWN = Lease(IPv4Network("172.17.1.0/24"), IPv4Address("10.0.0.1"), MacAddress.local(bytes(6)), 1)
PEER = Lease(IPv4Network("172.17.2.0/24"), IPv4Address("10.0.0.2"), MacAddress.parse("02:00:00:00:00:02"), 1)
OTHER = Lease(IPv4Network("172.17.3.0/24"), IPv4Address("10.0.0.3"), MacAddress.parse("02:00:00:00:00:03"), 1)
VXLAN = 7
HOP = Hop(2, IPv4Address("10.0.0.254"))


def link(ifindex: int, name: str = "veth0", kind: str = "veth", master: int = 9) -> Link:
    mac = MacAddress.parse(f"02:42:00:00:00:{ifindex:02x}")
    return Link(ifindex, name, kind, mac, 1450, True, master, True, "", 0)


def test_a_peer_is_in_every_table() -> None:
    plan = plan_peers([PEER], NETWORK, {PEER.host: HOP}, VXLAN)
    assert plan.neighbours == {PEER.vtep_ip: PEER.vtep_mac}
    assert plan.fdb == {PEER.vtep_mac: PEER.host}
    assert plan.routes == {PEER.subnet: Route(PEER.vtep_ip, VXLAN, onlink=True)}
    assert plan.vteps == {PEER.host: True}
    entry = plan.peers[PEER.vtep_ip]
    assert (entry.host, entry.ifindex, entry.next_hop, entry.flags) == (PEER.host, 2, HOP.next_hop, 0)
    assert (entry.vtep_mac, entry.port, entry.vni) == (PEER.vtep_mac, NETWORK.port, NETWORK.vni)


def test_a_host_without_a_route_is_left_to_the_kernel_path() -> None:
    plan = plan_peers([PEER], NETWORK, {PEER.host: None}, VXLAN)
    assert plan.peers[PEER.vtep_ip].flags == PEER_F_KERNEL_PATH
    assert PEER.subnet in plan.routes


def test_a_multipath_route_leaves_the_choice_to_the_fib() -> None:
    plan = plan_peers([PEER], NETWORK, {PEER.host: Hop(2, None)}, VXLAN)
    assert plan.peers[PEER.vtep_ip].next_hop is None
    assert plan.peers[PEER.vtep_ip].flags == 0


def test_a_shorter_subnet_fills_all_its_blocks() -> None:
    wide = replace(PEER, subnet=IPv4Network("172.17.4.0/22"))
    plan = plan_peers([wide], NETWORK, {PEER.host: HOP}, VXLAN)
    assert [str(block) for block in plan.peers] == ["172.17.4.0", "172.17.5.0", "172.17.6.0", "172.17.7.0"]
    assert list(plan.routes) == [wide.subnet]


def test_longer_subnets_share_a_block_that_only_the_kernel_can_split() -> None:
    low = replace(PEER, subnet=IPv4Network("172.17.4.0/25"))
    high = replace(OTHER, subnet=IPv4Network("172.17.4.128/25"))
    alone = plan_peers([low], NETWORK, {low.host: HOP}, VXLAN).peers[IPv4Address("172.17.4.0")]
    assert (alone.host, alone.flags) == (low.host, PEER_F_KERNEL_PATH)
    both = plan_peers([low, high], NETWORK, {low.host: HOP, high.host: HOP}, VXLAN)
    entry = both.peers[IPv4Address("172.17.4.0")]
    assert (entry.host, entry.flags) == (IPv4Address(0), PEER_F_KERNEL_PATH)
    assert set(both.vteps) == {low.host, high.host}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"backend": "host-gw"}, "backend is host-gw"),
        ({"host": OWN.host}, "own host address"),
        ({"vtep_mac": None}, "no usable VTEP MAC"),
        ({"vtep_mac": MacAddress(b"\x01" + bytes(5))}, "no usable VTEP MAC"),
        ({"vtep_mac": OWN.vtep_mac}, "VTEP MAC"),
        ({"vni": 7}, "VNI is 7"),
        ({"subnet": IPv4Network("10.0.0.0/8")}, "not in 172.17.0.0/16"),
        ({"subnet": IPv4Network("0.0.0.0/0")}, "not in 172.17.0.0/16"),
        ({"subnet": IPv4Network("172.17.1.128/25")}, "overlaps"),
        ({"subnet": IPv4Network("172.17.0.0/22")}, "overlaps"),
    ],
)
def test_a_lease_that_cannot_be_used_is_named_and_harms_no_other(
    change: dict[str, object], words: str
) -> None:
    bad = replace(PEER, node="bad", **change)  # type: ignore[arg-type]
    usable, problems = remote_leases([OWN, bad, OTHER], OWN, NETWORK)
    assert usable == (OTHER,)
    assert len(problems) == 1
    assert words in problems[0]
    assert "bad" in problems[0]


def test_our_own_lease_is_no_peer() -> None:
    assert remote_leases([OWN], OWN, NETWORK) == ((), ())


def test_of_two_leases_on_one_space_the_first_is_used() -> None:
    second = replace(OTHER, subnet=IPv4Network("172.17.2.128/25"))
    usable, problems = remote_leases([second, PEER], OWN, NETWORK)
    assert usable == (PEER,)
    assert "172.17.2.128/25" in problems[0]


def test_with_direct_routing_only_hosts_behind_routers_need_the_tunnel() -> None:
    network = replace(NETWORK, direct_routing=True)
    hops = {PEER.host: Hop(2, PEER.host), OTHER.host: HOP}
    plan = plan_peers([PEER, OTHER], network, hops, VXLAN)
    assert plan.routes == {
        PEER.subnet: Route(PEER.host, 2),
        OTHER.subnet: Route(OTHER.vtep_ip, VXLAN, onlink=True),
    }
    assert plan.peers[PEER.vtep_ip].flags == PEER_F_KERNEL_PATH
    assert plan.peers[OTHER.vtep_ip].flags == 0
    assert set(plan.vteps) == {PEER.host, OTHER.host}, "either may still send VXLAN"


HOST_GW = replace(NETWORK, backend="host-gw")


def test_host_gw_routes_to_hosts_on_the_link_and_names_the_others() -> None:
    found = [replace(lease, backend="host-gw", vtep_mac=None, vni=None) for lease in (PEER, OTHER)]
    usable, problems = remote_leases(found, OWN, HOST_GW)
    assert (len(usable), problems) == (2, ())
    plan = plan_routes(usable, {PEER.host: Hop(2, PEER.host), OTHER.host: HOP})
    assert plan.routes == {PEER.subnet: Route(PEER.host, 2)}
    (problem,) = plan.problems
    assert str(OTHER.host) in problem
    assert not (plan.peers or plan.vteps or plan.fdb or plan.neighbours)


@given(st.lists(leases(), max_size=12))
def test_no_address_ever_leads_to_two_hosts(found: list[Lease]) -> None:
    usable, _ = remote_leases(found, OWN, NETWORK)
    plan = plan_peers(usable, NETWORK, {}, VXLAN)
    for lease in usable:
        assert not lease.subnet.overlaps(OWN.subnet)
        assert plan.neighbours[lease.vtep_ip] == lease.vtep_mac
        assert lease.vtep_mac is not None
        assert plan.fdb[lease.vtep_mac] == lease.host
    assert len(plan.routes) == len(usable)


CONTAINER = IPv4Address("172.17.1.2")
CONTAINER_MAC = MacAddress.parse("02:42:ac:11:01:02")
BRIDGE = link(9, "ovnet0", "bridge", 0)


def test_a_container_is_where_bridge_and_neighbour_table_say() -> None:
    seen = Neighbours({CONTAINER: CONTAINER_MAC}, {CONTAINER_MAC: 5})
    found = plan_endpoints(seen, {5: link(5)}, BRIDGE, OWN.subnet)
    assert found[CONTAINER].ifindex == 5
    assert (found[CONTAINER].mac, found[CONTAINER].bridge_mac) == (CONTAINER_MAC, BRIDGE.mac)


@pytest.mark.parametrize(
    "seen",
    [
        Neighbours({CONTAINER: CONTAINER_MAC}, {}),
        Neighbours({CONTAINER: CONTAINER_MAC}, {CONTAINER_MAC: 6}),
        Neighbours({IPv4Address("192.168.0.2"): CONTAINER_MAC}, {CONTAINER_MAC: 5}),
        Neighbours({}, {CONTAINER_MAC: 5}),
    ],
    ids=["mac on no port", "port without programs", "address outside the lease", "no address"],
)
def test_a_container_half_known_is_not_bypassed(seen: Neighbours) -> None:
    assert plan_endpoints(seen, {5: link(5)}, BRIDGE, OWN.subnet) == {}


@pytest.mark.parametrize(
    ("mode", "kind", "wanted"),
    [
        (HookMode.TC, "", False),
        (HookMode.TC, "veth", False),
        (HookMode.XDP, "", True),
        (HookMode.XDP, "veth", True),
        (HookMode.AUTO, "", True),
        (HookMode.AUTO, "bond", True),
        (HookMode.AUTO, "veth", False),
    ],
)
def test_xdp_is_tried_where_it_is_asked_for(mode: HookMode, kind: str, wanted: bool) -> None:
    assert wants_xdp(mode, link(2, "eth0", kind)) is wanted


def test_programs_hang_on_uplink_vxlan_device_and_ports() -> None:
    ids = {"from_container": 1, "to_overlay": 2, "from_wire": 3, "to_container": 4}
    placed = plan_filters(ids, uplink=2, vxlan=3, ports=[5])
    assert {(key.ifindex, key.ingress): value.program for key, value in placed.items()} == {
        (2, True): "from_wire",
        (3, False): "to_overlay",
        (5, True): "from_container",
        (5, False): "to_container",
    }
    assert list(placed)[-1] == FilterKey(2, True), "what arrives is bypassed only when all else is in place"


def test_without_programs_nothing_hangs_anywhere() -> None:
    assert plan_filters({}, 2, 3, [5]) == {}
