"""From what the kernel knows to endpoints and filters."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from ctl.core.host import ETHERNET, LOOPBACK, NONE, PPP, RAW_IP, FilterKey, Link, Neighbours
from ctl.core.model import HookMode, MacAddress
from ctl.core.plan import (
    plan_bridge_mtu,
    plan_endpoints,
    plan_filters,
    plan_questions,
    unreadable,
    wants_xdp,
)

OWN_SUBNET = IPv4Network("172.17.1.0/24")


def link(ifindex: int, name: str = "veth0", kind: str = "veth", master: int = 9) -> Link:
    mac = MacAddress.parse(f"02:42:00:00:00:{ifindex:02x}")
    return Link(ifindex, name, kind, mac, 1450, True, master, True, "", 0)


CONTAINER = IPv4Address("172.17.1.2")
CONTAINER_MAC = MacAddress.parse("02:42:ac:11:01:02")
BRIDGE = link(9, "ovnet0", "bridge", 0)


def test_a_container_is_where_bridge_and_neighbour_table_say() -> None:
    seen = Neighbours({CONTAINER: CONTAINER_MAC}, {CONTAINER_MAC: 5})
    found = plan_endpoints(seen, {5: link(5)}, BRIDGE, OWN_SUBNET)
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
def test_a_container_half_known_is_not_bypassed(seen: Neighbours[IPv4Address]) -> None:
    assert plan_endpoints(seen, {5: link(5)}, BRIDGE, OWN_SUBNET) == {}


def test_a_container_on_no_port_is_asked_for_once() -> None:
    macs = {CONTAINER: CONTAINER_MAC}
    lost = Neighbours(macs, {}, frozenset(macs))
    assert plan_questions(lost, OWN_SUBNET) == [CONTAINER]
    assert plan_questions(replace(lost, unasked=frozenset()), OWN_SUBNET) == [], "it is being asked"
    assert plan_questions(replace(lost, ports={CONTAINER_MAC: 5}), OWN_SUBNET) == []
    stranger = IPv4Address("192.168.0.2")
    assert plan_questions(Neighbours({stranger: CONTAINER_MAC}, {}, frozenset({stranger})), OWN_SUBNET) == []


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
    assert not wants_xdp(mode, replace(link(2, "wg0", kind), type=NONE)), "there are no frames"


@pytest.mark.parametrize("type", [ETHERNET, LOOPBACK, NONE, PPP, RAW_IP])
def test_an_uplink_whose_packets_ebpf_can_read_is_taken(type: int) -> None:
    assert unreadable(replace(link(2, "up0"), type=type)) == ""


@pytest.mark.parametrize("type", [32, 513, 768, 776, 778, 801], ids=hex)
def test_an_uplink_whose_headers_nobody_knows_is_named_with_the_remedy(type: int) -> None:
    """InfiniBand, HDLC, tunnels that may leave their outer header there, raw 802.11."""
    said = unreadable(replace(link(2, "up0"), type=type))
    assert all(word in said for word in ("up0", str(type), "--iface", "--bypass=off"))


def test_programs_hang_on_uplink_vxlan_device_and_ports() -> None:
    ids = {"from_container": 1, "to_overlay": 2, "from_wire": 3, "to_container": 4}
    placed = plan_filters(ids, uplink=2, devices=[3], ports=[5])
    assert {(key.ifindex, key.ingress): value.program for key, value in placed.items()} == {
        (2, True): "from_wire",
        (3, False): "to_overlay",
        (5, True): "from_container",
        (5, False): "to_container",
    }
    assert list(placed)[-1] == FilterKey(2, True), "what arrives is bypassed only when all else is in place"
    first = plan_filters(ids, uplink=2, devices=[3], ports=[5], first=True)
    assert [key for key, value in first.items() if value.first] == [FilterKey(2, True)]


def test_without_programs_nothing_hangs_anywhere() -> None:
    assert plan_filters({}, 2, [3], [5]) == {}


@pytest.mark.parametrize(
    ("ports", "wanted", "has"),
    [
        ((), 1500, 1500),
        ((1450,), 1500, 1450),
        ((1500, 1450), 1500, 1450),
        ((1500, 1400), 1500, 1500),  # of their own choice, not the overlay's
        ((1450,), 1400, 1400),
        ((1450,), 1450, 1450),
    ],
)
def test_a_larger_mtu_waits_for_containers_of_the_smaller_one(
    ports: tuple[int, ...], wanted: int, has: int
) -> None:
    links = [replace(link(number), mtu=mtu) for number, mtu in enumerate(ports, 10)]
    others = [link(8, "elsewhere", master=3), link(7, "ovnet-room", "vxlan")]
    assert plan_bridge_mtu(BRIDGE, wanted, [*links, *others]) == has
