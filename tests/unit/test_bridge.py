"""Which interfaces can be the containers' bridge, beside which uplinks."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Interface, ip_interface

import pytest

from ctl.core.bridge import Interface, carriers, in_the_way, lowered, misplaced, ports, why_not
from ctl.core.host import OWNER, BridgeDevice, Link
from ctl.core.model import MacAddress


def link(
    ifindex: int, name: str, kind: str = "", *, master: int = 0, lower: int = 0, mtu: int = 1500
) -> Link:
    return Link(ifindex, name, kind, MacAddress(bytes(6)), mtu, True, master, False, "", 0, lower)


NIC = link(2, "eth0")
BRIDGE = link(3, "br0", "bridge")
PORT = replace(NIC, master=3)
CONTAINERS = link(9, "ovnet0", "bridge")
GUEST = link(8, "veth8", "veth", master=3, lower=18)


def judged(name: str, uplink: Link, *others: Link) -> str:
    links = {each.ifindex: each for each in (uplink, *others)}
    return why_not(name, uplink, links)


@pytest.mark.parametrize(
    ("uplink", "others"),
    [
        (BRIDGE, [PORT]),
        (PORT, [BRIDGE]),
        (link(4, "br0.100", "vlan", lower=3), [BRIDGE, PORT]),
        (link(4, "mv0", "macvlan", lower=3), [BRIDGE, PORT]),
        (link(5, "mv0", "macvlan", lower=4), [link(4, "br0.100", "vlan", lower=3), BRIDGE, PORT]),
        (link(4, "veth4", "veth", lower=5), [link(5, "veth5", "veth", lower=4, master=3), BRIDGE, PORT]),
        (link(4, "bond0", "bond"), [link(5, "br0.7", "vlan", lower=3, master=4), BRIDGE]),
        (link(4, "br1", "bridge"), [link(5, "br0.7", "vlan", lower=3, master=4), BRIDGE]),
    ],
    ids=["itself", "its port", "a VLAN on it", "a macvlan on it", "a macvlan on a VLAN on it",
         "a veth into it", "a bond of a VLAN on it", "another bridge with a VLAN on it"],
)  # fmt: skip
def test_a_bridge_that_carries_the_uplink_is_refused(uplink: Link, others: list[Link]) -> None:
    line = judged("br0", uplink, *others)
    assert "--bridge br0" in line
    assert "choose another --bridge" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("uplink", "others"),
    [
        (NIC, []),
        (NIC, [BRIDGE]),
        (NIC, [BRIDGE, GUEST]),
        (NIC, [BRIDGE, link(5, "eth0.7", "vlan", lower=2, master=3)]),  # a LAN's VLAN on the same NIC
        (link(5, "eth0.7", "vlan", lower=2), [PORT, BRIDGE]),  # whose NIC is a port of it
        (link(6, "vmbr0", "bridge"), [replace(NIC, master=6), BRIDGE, GUEST]),
        # Two bridges that a veth joins: its ends have an MTU each.
        (link(6, "vmbr0", "bridge"), [link(7, "j0", "veth", master=6, lower=17),
                                      link(17, "j1", "veth", master=3, lower=7), BRIDGE]),
        (link(4, "wg0", "wireguard"), [BRIDGE, PORT]),
    ],
)  # fmt: skip
def test_a_bridge_beside_the_uplink_is_taken(uplink: Link, others: list[Link]) -> None:
    assert judged("br0", uplink, *others) == ""


def test_what_is_no_bridge_is_named_by_its_kind() -> None:
    assert judged("eth0", NIC) == "eth0 is no bridge but hardware: choose another --bridge"
    veth = link(4, "v0", "veth")
    assert judged("v0", NIC, veth) == "v0 is no bridge but veth: choose another --bridge"


def test_interfaces_that_are_stacked_in_a_circle_end_the_look() -> None:
    """They change while they are listed, so what is listed may be anything."""
    one, two = link(4, "a", "bond", lower=5, master=5), link(5, "b", "bond", lower=4, master=4)
    assert {each.name for each in carriers(one, {4: one, 5: two})} == {"a", "b"}


def test_a_network_beside_the_containers_is_told_of_its_smaller_mtu() -> None:
    links = {each.ifindex: each for each in (BRIDGE, PORT, GUEST)}
    line = lowered(BRIDGE, 1450, links)
    assert "eth0 (MTU 1500)" in line
    assert "1450" in line
    assert "veth8" not in line


@pytest.mark.parametrize(
    ("bridge", "port"),
    [
        (BRIDGE, replace(PORT, mtu=1450)),
        (BRIDGE, replace(PORT, mtu=1400)),
        (BRIDGE, replace(PORT, master=6)),
        (BRIDGE, replace(PORT, kind="veth")),
        (replace(BRIDGE, alias=OWNER), PORT),
    ],
    ids=["as small", "smaller", "of another bridge", "a container", "our own bridge"],
)
def test_no_mtu_is_complained_of_where_none_is_lowered(bridge: Link, port: Link) -> None:
    assert lowered(bridge, 1450, {3: bridge, 2: port}) == ""


def left(present: str, wanted: str, *, ours: bool = False, by_cni: bool = False) -> list[str]:
    """Which of these addresses may not stay beside the wanted one."""
    addresses: list[Interface] = [ip_interface(text) for text in present.split()]
    found = in_the_way(addresses, ip_interface(wanted), ours=ours, by_cni=by_cni)
    return [str(each) for each in found]


def test_the_plugin_bridge_stands_no_other_ipv4_address_before_ours() -> None:
    ours, other = "10.244.1.1/24", "10.244.9.1/24"
    assert left("", ours, by_cni=True) == []
    assert left(ours, ours, by_cni=True) == []
    assert left(other, ours, by_cni=True) == [other]
    assert left(f"{other} {ours}", ours, by_cni=True) == [other]
    assert left(f"{ours} {other}", ours, by_cni=True) == [], "it looks no further than ours"
    assert left("10.244.1.1/16", ours, by_cni=True) == ["10.244.1.1/16"], "another length is another address"


def test_of_ipv6_it_stands_those_that_do_not_overlap() -> None:
    ours = "fd00:1::1/64"
    assert left("fd00:2::1/64", ours, by_cni=True) == []
    assert left("fd00:2::1/64 fd00::1/16", ours, by_cni=True) == ["fd00::1/16"]
    assert left("fd00:1::7/64", ours, by_cni=True) == ["fd00:1::7/64"]


def test_another_owners_bridge_has_our_address_or_is_wrong_and_ours_has_no_other() -> None:
    ours, other = "10.244.1.1/24", "10.244.9.1/24"
    for whose in (True, False):
        assert left(other, ours, ours=whose) == [other]
        assert left(f"{other} {ours}", ours, ours=whose) == []
        assert left("", ours, ours=whose) == []


def test_what_is_plugged_in_counts_but_for_our_own_port() -> None:
    room = replace(link(5, "ovnet-room", "vxlan", master=3), alias=OWNER)
    links = {each.ifindex: each for each in (NIC, BRIDGE, GUEST, room)}
    assert [each.name for each in ports(3, links)] == ["veth8"]


def test_a_bridge_with_another_address_is_one_line_with_the_remedy_of_its_owner() -> None:
    ours, other = IPv4Interface("10.244.1.1/24"), IPv4Interface("10.244.9.1/24")
    want = BridgeDevice("cni0", MacAddress(bytes(6)), 1450, ours)
    assert misplaced(want, ours, other, 2) == (
        "bridge cni0 has 10.244.9.1/24, not 10.244.1.1/24: restart its owner with that address"
        " (dockerd: --bip=10.244.1.1/24 --mtu=1450)"
    )
    assert misplaced(replace(want, by_cni=True), ours, other, 2) == (
        "bridge cni0 has 10.244.9.1/24, not 10.244.1.1/24, and 2 ports: move its containers away"
        " (kubectl drain); once no port is left it gets that address"
    )
