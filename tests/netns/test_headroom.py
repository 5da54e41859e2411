"""Containers leave room for VXLAN headers, so that no packet is copied for them."""

from __future__ import annotations

import json

from pyroute2.netlink.rtnl import RTM_GETLINK
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from ctl.kernel.netlink.message import attributes, body, message, to_number
from ctl.kernel.netlink.socket import Rtnl
from tests.dual import init_network, with_ipv6
from tests.lab import Container, Lab
from tests.namespace import Namespace
from tests.process import wait_until

IFLA_IFNAME, IFLA_HEADROOM = 3, 68
"""linux/if_link.h; the second since Linux 6.16 or so."""
ROOM = 64
"""Of 50 bytes and an Ethernet header, as vxlan_config_apply() has it."""


def headroom(place: Namespace, device: str) -> int:
    """net_device.needed_headroom, bytes."""

    def look() -> int:
        rtnl = Rtnl()
        found = (attributes(body, 16) for body in rtnl.bulk.dump(RTM_GETLINK, body(message(ifinfmsg))))
        (each,) = (link for link in found if link[IFLA_IFNAME].rstrip(b"\0").decode() == device)
        rtnl.close()
        return to_number(each[IFLA_HEADROOM])

    return place.call(look)


IPV6_ROOM = 84
"""Of 70 bytes."""


def leaves_room(container: Container, room: int = ROOM) -> None:
    wait_until(lambda: headroom(container, "eth0") == room, 10, f"{container.name} leaves room")


def test_containers_leave_room_whatever_happens_to_the_bridge(lab: Lab) -> None:
    a = lab.host("a")
    lab.init_network()
    agent = a.agent()
    first = a.container("one")
    leaves_room(first)
    agent.stop()
    leaves_room(a.container("two"))  # without an agent
    a.agent()
    a.ip("link", "del", "ovnet-room")
    leaves_room(first)
    a.ip("link", "del", "ovnet0")
    wait_until(
        lambda: "master ovnet0" in a.ip("link", "show", "ovnet-room"), 10, "it is a port of the new one"
    )
    leaves_room(a.container("three"))
    assert all(port["name"] != "ovnet-room" for port in a.status()["kernel_ports"])


def test_containers_leave_room_for_the_headers_of_the_families_that_the_node_has(lab: Lab) -> None:
    a = with_ipv6(lab.host("a"))
    for ipv6, room in ((True, IPV6_ROOM), (False, ROOM)):
        init_network(a, ipv6=ipv6)
        agent = a.agent()
        leaves_room(a.containers[0] if a.containers else a.container("one"), room)
        agent.stop()


def test_a_device_of_that_name_that_is_not_ours_is_named_and_kept(lab: Lab) -> None:
    a = lab.host("a")
    lab.init_network()
    a.ip("link", "add", "ovnet-room", "type", "bridge")
    a.agent(wait=False)
    line = "ovnet-room exists and is not ours: remove it"
    wait_until(lambda: a.state_dir.joinpath("status.json").exists() and line in str(a.status()), 20, line)
    assert "bridge" in a.ip("-d", "link", "show", "ovnet-room")
    a.ip("link", "del", "ovnet-room")
    leaves_room(a.container("one"))


def test_a_bridge_that_was_given_no_address_keeps_the_one_of_its_ports(lab: Lab) -> None:
    """So is CNI's; and if it changed, containers would send to nobody until they ask again."""
    a = lab.host("a")
    lab.init_network()
    a.ip("link", "add", "cni0", "type", "bridge")
    a.ip("link", "add", "port", "address", "fe:ff:ff:00:00:01", "type", "veth", "peer", "name", "end")
    a.ip("link", "set", "port", "master", "cni0", "up")
    a.ip("link", "set", "cni0", "up")

    def address() -> str:
        (found,) = json.loads(a.ip("-j", "link", "show", "cni0"))
        return str(found["address"])

    assert address() == "fe:ff:ff:00:00:01"
    agent = a.agent("--bridge", "cni0")
    wait_until(lambda: "master cni0" in a.ip("link", "show", "ovnet-room"), 10, "it is a port")
    assert address() == "fe:ff:ff:00:00:01"
    agent.stop()
    a.teardown()
    assert "ovnet-room" not in a.ip("link")
    assert address() == "fe:ff:ff:00:00:01"
