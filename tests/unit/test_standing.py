"""Where a node stands: what is remembered from look to look, and from life to life."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest

from ctl.core.candidates import Host, UplinkChoice, standing_at
from ctl.core.errors import AgentError
from ctl.core.findings import Concern, Findings
from ctl.core.model import Addresses
from ctl.core.uplink import HOLD_S
from ctl.kernel import sysctl
from ctl.node import standing
from ctl.node.standing import Standing
from ctl.settings.config import Settings, resolve
from tests.unit.test_uplink import BOTH, ETH0, OURS, VIP, VPN0, host

HOST, OTHER, HOST6 = IPv4Address("10.0.0.11"), IPv4Address("10.0.0.100"), IPv6Address("fd77::11")
QUIET = host(BOTH)
VPN_FIRST = host(BOTH, defaults=(VPN0, ETH0))


class World:
    """A host, and a node on it, life after life."""

    def __init__(self, path: Path) -> None:
        self.now, self.host = 0.0, QUIET
        self.settings: Settings = replace(resolve(Namespace(), {}, None), state_dir=path)
        self.findings = Findings()

    def survey(self, *_: object) -> Host:
        return self.host

    def life(self) -> Standing:
        self.findings = Findings()
        netlink: Any = None
        return Standing(self.settings, netlink, self.findings, steady=lambda: self.now)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path)
    monkeypatch.setattr(standing, "survey", made.survey)
    return made


def found(world: World) -> str:
    """The address that a new life of the agent begins with."""
    life = world.life()
    life.find()
    return str(life.uplink.address)


def test_an_address_that_the_store_has_for_us_chooses_the_interface_unless_one_is_asked_for(
    world: World,
) -> None:
    life = world.life()
    life.find()
    before = life.uplink
    places = [place for link in QUIET.links.values() for place in QUIET.usable(link)]
    link, other = next(place for place in places if place[0].name != before.link.name)
    life.find(Addresses(other.ip))
    assert (life.uplink.address, life.uplink.link.name) == (other.ip, link.name)
    life.follow()
    assert life.uplink.address == other.ip
    with pytest.raises(AgentError, match="no interface has address 203.0.113.9"):
        world.life().find(Addresses(IPv4Address("203.0.113.9")))


def test_an_address_that_the_store_has_for_us_needs_no_default_route(world: World) -> None:
    world.host = host(BOTH, defaults=())
    with pytest.raises(AgentError, match="no default route"):
        found(world)
    life = world.life()
    life.find(Addresses(HOST))
    assert life.uplink.address == HOST


@pytest.mark.parametrize(
    ("asked", "addresses", "expected"),
    [
        (UplinkChoice(), Addresses(), UplinkChoice()),
        (UplinkChoice(), Addresses(HOST), UplinkChoice(str(HOST), public_ip=HOST)),
        (UplinkChoice(), Addresses(ipv6=HOST6), UplinkChoice(str(HOST6))),
        (UplinkChoice(), Addresses(HOST, HOST6), UplinkChoice(str(HOST), public_ip=HOST)),
        (UplinkChoice("eth0"), Addresses(HOST, HOST6), UplinkChoice("eth0", public_ip=HOST)),
        (UplinkChoice(pattern="eth"), Addresses(ipv6=HOST6), UplinkChoice(pattern="eth")),
        (UplinkChoice(public_ip=OTHER), Addresses(), UplinkChoice(public_ip=OTHER)),
        (UplinkChoice(public_ip=OTHER), Addresses(HOST), UplinkChoice(str(HOST), public_ip=HOST)),
    ],
)
def test_addresses_name_the_interface_where_nothing_else_does(
    asked: UplinkChoice, addresses: Addresses, expected: UplinkChoice
) -> None:
    assert standing_at(asked, addresses) == expected


def test_the_next_life_begins_with_the_same_address(world: World) -> None:
    life = world.life()
    life.find()
    life.keep()
    world.host = VPN_FIRST
    assert found(world) == "10.0.0.11"


def test_other_settings_begin_anew(world: World) -> None:
    life = world.life()
    life.find()
    life.keep()
    world.settings = replace(world.settings, iface="vpn0")
    assert found(world) == "10.99.0.2"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"asked": []}', '{"asked": ["", "", "", ""], "address": "x"}']
)
def test_a_file_that_is_damaged_tells_nothing(world: World, text: str) -> None:
    life = world.life()
    life.find()
    life.keep()
    (world.settings.state_dir / "uplink.json").write_text(text)
    world.host = VPN_FIRST
    assert found(world) == "10.99.0.2"


def test_nothing_is_written_before_the_node_holds_a_lease(world: World) -> None:
    world.life().find()
    assert list(world.settings.state_dir.iterdir()) == []


def test_a_file_that_cannot_be_written_is_named_once_and_stops_nothing(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.settings = replace(world.settings, state_dir=world.settings.state_dir / "file" / "below")
    (world.settings.state_dir.parent).write_text("")
    life = world.life()
    life.find()
    life.keep()
    life.keep()
    assert caplog.text.count("below/uplink.json: Not a directory") == 1
    (world.settings.state_dir.parent).unlink()
    life.keep()
    assert (world.settings.state_dir / "uplink.json").exists(), "tried again"


def test_an_address_that_is_gone_is_an_error_and_changes_nothing_for_a_while(world: World) -> None:
    life = world.life()
    life.find()
    world.host = host({ETH0: [VIP]})
    for world.now in (0.0, HOLD_S - 1):
        with pytest.raises(AgentError, match="10.0.0.11 is gone"):
            life.follow()
        assert life.uplink == world.findings.uplink
        assert str(life.uplink.address) == "10.0.0.11"
    world.now = HOLD_S
    life.follow()
    assert str(life.uplink.address) == "10.0.0.100"
    assert "own address 10.0.0.11 is gone" in str(world.findings.problems[Concern.UPLINK])
    life.keep()
    world.host = QUIET
    assert found(world) == "10.0.0.11", "what is kept is our own, not its substitute"


def test_what_changes_is_said_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    life = world.life()
    life.find()
    world.host = VPN_FIRST
    life.follow()
    life.follow()
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["uplink stays eth0 with 10.0.0.11: vpn0 with 10.99.0.2 would be found now"]
    assert world.findings.problems[Concern.NEWCOMER] == (lines[0],)
    world.host = host({ETH0: ["10.0.0.12/24"]})
    life.follow()
    assert "uplink is now eth0 with 10.0.0.12" in caplog.records[-1].getMessage()


def test_a_rival_in_arp_is_named_unless_it_keeps_quiet(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.host = host({ETH0: [OURS], VPN0: ["10.0.0.12/24"]})
    settings = {"net/ipv4/conf/all/arp_ignore": "0", "net/ipv4/conf/vpn0/arp_ignore": "0"}
    read: Callable[[str], str | None] = settings.get
    monkeypatch.setattr(sysctl, "read", read)
    life = world.life()
    life.find()
    assert "set net.ipv4.conf.vpn0.arp_ignore=1" in str(world.findings.problems[Concern.ARP])
    for name in settings:
        settings[name] = "1"
        life.follow()
        assert world.findings.problems[Concern.ARP] == ()
        settings[name] = "0"
