"""Addresses that go to another port: what the programs notice before the agent does."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest

from ctl.core.model import Bypass, MacAddress
from tests import packets
from tests.bpf.conftest import PORT
from tests.datapath import (
    BRIDGE_MAC,
    ENDPOINT,
    LOCAL,
    MAC,
    OTHER,
    Action,
    Datapath,
    Result,
    XdpAction,
    flow_in,
    received,
    sent,
    wire,
)
from tests.namespace import Namespace

BROADCAST = MacAddress(b"\xff" * 6)
STRANGE = MacAddress.parse("02:99:99:99:99:99")


def claim(sender: IPv4Address, *, mac: MacAddress = MAC, to: MacAddress = BROADCAST, **arp: Any) -> bytes:
    """ARP that says where `sender` is."""
    return packets.ether(packets.arp(sender, mac, sender, **arp), mac, to, packets.ARP)


def known(datapath: Datapath) -> set[IPv4Address]:
    return {address for address in (LOCAL, OTHER) if datapath.maps.lookup_endpoint(address)}


def to_port(datapath: Datapath) -> None:
    """The container is on PORT, and its flow is approved there."""
    datapath.endpoint(LOCAL, replace(ENDPOINT, ifindex=PORT))
    datapath.approve(flow_in(ifindex=PORT))


def test_a_port_that_is_gone_gets_nothing(datapath: Datapath, ports: Namespace) -> None:
    """What is redirected there would be lost; the kernel path knows who has the address now."""
    to_port(datapath)
    result = datapath.run("from_wire", wire(received()))
    assert (result.action, result.reason) == (Action.UNSPEC, "no_endpoint")
    at_xdp = datapath.xdp(wire(received()))
    assert (at_xdp.action, at_xdp.reason, at_xdp.note) == (XdpAction.PASS, "no_endpoint", b"")
    assert ports.call(lambda: datapath.run("from_wire", wire(received()))).reason == "decap"
    assert ports.call(lambda: datapath.xdp(wire(received()))).reason == "decap"


def test_a_port_that_is_gone_gets_nothing_whatever_the_mode(datapath: Datapath) -> None:
    datapath.node(bypass=Bypass.ALWAYS)
    datapath.endpoint(LOCAL, replace(ENDPOINT, ifindex=PORT))
    assert datapath.run("from_wire", wire(received())).reason == "no_endpoint"


def test_size_does_not_make_a_port_gone(datapath: Datapath, ports: Namespace) -> None:
    """The helper that tells is there to compare MTUs."""
    to_port(datapath)
    ports.ip("link", "set", "dev", "port", "mtu", "576")
    try:
        large = wire(received(packets.udp(bytes(1400), 2000, 1000)))
        assert ports.call(lambda: datapath.run("from_wire", large)).reason == "decap"
    finally:
        ports.ip("link", "set", "dev", "port", "mtu", "1500")


@pytest.mark.parametrize("reply", [False, True])
@pytest.mark.parametrize("bypass", [Bypass.LEARNED, Bypass.ALWAYS])
def test_who_speaks_for_an_address_elsewhere_takes_it_off_its_port(
    datapath: Datapath, reply: bool, bypass: Bypass
) -> None:
    datapath.node(bypass=bypass)
    assert datapath.run("from_container", claim(OTHER, reply=reply, mac=STRANGE)).reason == "not_ipv4"
    assert known(datapath) == {LOCAL}
    heard = datapath.run("to_container", claim(LOCAL, reply=reply, mac=STRANGE))
    assert heard.reason == ("not_ipv4" if bypass is Bypass.LEARNED else "bypass_off")
    assert known(datapath) == set()


def silent(datapath: Datapath, hook: str, frame: bytes) -> Result:
    """A packet that moves nobody."""
    result = datapath.run(hook, frame)
    assert known(datapath) == {LOCAL, OTHER}
    return result


def test_who_speaks_for_its_own_address_stays(datapath: Datapath) -> None:
    assert silent(datapath, "from_container", claim(LOCAL)).reason == "not_ipv4"
    silent(datapath, "from_container", claim(IPv4Address("10.1.1.99")))
    silent(datapath, "from_container", claim(IPv4Address(0)))  # a probe (RFC 5227) claims nothing yet


@pytest.mark.parametrize("head", [(1, 0x86DD, 6, 4), (1, 0x800, 8, 4), (1, 0x800, 6, 16)])
def test_arp_of_other_kinds_moves_nobody(datapath: Datapath, head: tuple[int, int, int, int]) -> None:
    for hook, address in (("from_container", OTHER), ("to_container", LOCAL)):
        silent(datapath, hook, claim(address, head=head))


def test_a_cut_arp_packet_moves_nobody(datapath: Datapath) -> None:
    whole = claim(OTHER)
    for size in range(34, len(whole)):
        silent(datapath, "from_container", whole[:size])


def test_a_mac_that_sends_from_another_port_has_moved(datapath: Datapath) -> None:
    """The bridge has learned it before anyone has told the agent."""
    assert datapath.run("from_container", sent(src=OTHER)).reason == "no_endpoint"
    assert known(datapath) == {LOCAL}


def test_an_address_alone_that_sends_from_another_port_has_not(datapath: Datapath) -> None:
    """A container with its neighbour's source address: neither bridge nor neighbour table heeds that."""
    frame = sent(src=OTHER)
    assert silent(datapath, "from_container", frame[:6] + STRANGE.packed + frame[12:]).reason == "no_endpoint"


def test_arp_of_the_vxlan_device_is_none_of_the_bridges(datapath: Datapath) -> None:
    silent(datapath, "to_overlay", claim(LOCAL))
    silent(datapath, "from_wire", claim(LOCAL, to=MacAddress(bytes(6))))


def test_an_answer_to_the_bridge_counts_too(datapath: Datapath) -> None:
    """Nothing floods it."""
    datapath.run("from_container", claim(OTHER, reply=True, to=BRIDGE_MAC))
    assert known(datapath) == {LOCAL}
