"""The node's own entry: when it says that whoever is in no map is nobody."""

from __future__ import annotations

import argparse
from dataclasses import replace
from ipaddress import IPv4Address
from typing import cast

import pytest

from ctl.backend.vxlan.own_entry import OwnEntry
from ctl.core.abi import NODE_F_PEERS_INCOMPLETE, NodeEntry
from ctl.core.family import IPV4
from ctl.core.host import NONE
from ctl.kernel.bpf.maps import Maps
from ctl.settings.config import resolve
from tests.unit.test_peering import site

DEVICE = 77
"""Ifindex of the vxlan device."""


class OneNode:
    """The map `node` in memory."""

    def __init__(self) -> None:
        self.entry: NodeEntry | None = None

    def node(self) -> NodeEntry | None:
        return self.entry

    def write_node(self, entry: NodeEntry) -> None:
        self.entry = entry


def opened_as(maps: OneNode) -> Maps[IPv4Address]:
    """As the maps of which it is one."""
    return cast(Maps[IPv4Address], maps)


def says_complete(opened: OneNode, *, fits: bool, filled: bool) -> bool:
    """What the entry says after it was written so."""
    own = OwnEntry(resolve(argparse.Namespace(), {}, None), IPV4)
    own.write(
        opened_as(opened),
        site(),
        DEVICE,
        fits=fits,
        filled=filled,
        xdp=False,
        first=False,
        marks=0,
    )
    assert opened.entry is not None
    return not opened.entry.flags & NODE_F_PEERS_INCOMPLETE


@pytest.mark.parametrize(
    ("before", "fits", "filled", "complete"),
    [
        (None, True, False, False),
        (False, True, False, False),  # they lack peers until they are filled
        (True, True, False, True),
        (False, True, True, True),
        (True, False, False, False),
        (True, False, True, False),
    ],
)
def test_maps_are_called_complete_when_they_are_filled_or_were_so(
    before: bool | None, fits: bool, filled: bool, complete: bool
) -> None:
    opened = OneNode()
    if before is not None:
        assert says_complete(opened, fits=True, filled=True)
        assert opened.entry is not None
        flags = 0 if before else NODE_F_PEERS_INCOMPLETE
        opened.entry = replace(opened.entry, flags=flags)
    assert says_complete(opened, fits=fits, filled=filled) is complete


@pytest.mark.parametrize(
    ("mode", "device", "said"),
    [
        ("learned", DEVICE, DEVICE),
        ("tunnel", DEVICE, DEVICE),
        ("always", DEVICE, DEVICE),
        ("off", DEVICE, 0),
        ("learned", 0, 0),
    ],
)
def test_the_tunnel_gear_is_on_where_there_is_a_device_and_programs_are_wanted(
    mode: str, device: int, said: int
) -> None:
    opened = OneNode()
    own = OwnEntry(resolve(argparse.Namespace(bypass=mode), {}, None), IPV4)
    own.write(
        opened_as(opened),
        site(),
        device,
        fits=True,
        filled=True,
        xdp=False,
        first=False,
        marks=0,
    )
    assert opened.entry is not None
    assert opened.entry.tunnel_ifindex == said
    assert opened.entry.overlay_ifindex == device


def test_on_an_uplink_without_ethernet_the_tunnel_gear_is_off() -> None:
    opened, here = OneNode(), site()
    wire = replace(here.uplink.link, type=NONE)
    own = OwnEntry(resolve(argparse.Namespace(), {}, None), IPV4)
    own.write(
        opened_as(opened),
        replace(here, uplink=replace(here.uplink, link=wire)),
        DEVICE,
        fits=True,
        filled=True,
        xdp=False,
        first=False,
        marks=0,
    )
    assert opened.entry is not None
    assert opened.entry.tunnel_ifindex == 0
