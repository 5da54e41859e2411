"""Peers that are asked again and again in the background: whose turn it is, and what is kept of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import pytest

from ctl.agent.probing import BackgroundProbe
from ctl.backend.site import Site
from ctl.cli.agent import require_capabilities
from ctl.core.errors import AgentError
from ctl.core.host import Uplink
from ctl.core.model import IPv6Lease, IPv6Range, Lease
from ctl.core.pace import AT_ONCE, LOOK_S, TICK_S, Address, Pace
from ctl.core.probing import Probed
from ctl.kernel.echo import Echo
from ctl.process import capabilities
from tests.unit.echoes import MTU, OTHER, OWN, PEER, Path1350
from tests.unit.strategies import NETWORK
from tests.unit.world import ETH0


def turns(pace: Pace, peers: Sequence[IPv4Address], seconds: int) -> list[list[Address]]:
    """Who is asked in each second."""
    return [pace.due(peers, float(second)) for second in range(seconds)]


def test_each_peer_is_asked_once_in_an_interval_and_they_are_spread_over_it() -> None:
    peers = [IPv4Address(0x0A000000 + number) for number in range(600)]
    pace = Pace(60.0, OWN.host)
    asked = turns(pace, peers, 121)
    times = Counter(each for turn in asked for each in turn)
    assert set(times) == set(peers)
    assert set(times.values()) <= {2, 3}, "two rounds, and the first of a third"
    assert max(map(len, asked)) < 30, "ten a second if they were even"


def test_no_more_are_asked_at_once_than_may_be_and_nobody_is_forgotten() -> None:
    peers = [IPv4Address(0x0A000000 + number) for number in range(3 * AT_ONCE)]
    pace = Pace(1.0, OWN.host)
    asked = turns(pace, peers, 8)
    assert max(map(len, asked)) == AT_ONCE
    assert {each for turn in asked for each in turn} == set(peers)


def test_who_comes_late_is_asked_within_an_interval_and_who_goes_is_forgotten() -> None:
    pace = Pace(30.0, OWN.host)
    turns(pace, [PEER.host], 30)
    late = [pace.due([OTHER.host], 30.0 + number) for number in range(31)]
    assert [each for asked in late for each in asked] in ([OTHER.host], [OTHER.host] * 2)


def test_nodes_ask_the_same_peer_at_different_times() -> None:
    when = set()
    for number in range(20):
        pace = Pace(60.0, OWN.host + number)
        when.add(next(at for at, asked in enumerate(turns(pace, [PEER.host], 61)) if asked))
    assert len(when) > 10


def test_between_turns_there_is_nothing_to_do_for_a_while_and_not_for_longer() -> None:
    pace = Pace(3600.0, OWN.host)
    assert pace.look_in(0) == LOOK_S
    pace.due([PEER.host], 0)
    assert TICK_S <= pace.look_in(0) <= LOOK_S
    assert pace.look_in(4000) == TICK_S


SITE = Site(NETWORK, OWN, Uplink(ETH0, OWN.host), MTU, 0, Path("/dev/null"))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def background(
    *leases: Lease, echo: Echo[IPv4Address], site: Site = SITE
) -> tuple[BackgroundProbe, Clock, list[Any]]:
    """One that is turned by hand, its clock, and what it is told: to be replaced."""
    clock, told = Clock(), [(site, leases)]
    return BackgroundProbe(60.0, lambda: told[0], echo=lambda _source: echo, steady=clock), clock, told


def round_of(probe: BackgroundProbe, clock: Clock) -> None:
    for _ in range(61):
        clock.now += 1
        probe.turn()


def test_what_each_peer_shows_in_the_background_is_kept_by_its_host() -> None:
    echo = Path1350()
    echo.deaf = {OTHER.vtep_ip}
    probe, clock, _ = background(OWN, PEER, OTHER, echo=echo)
    round_of(probe, clock)
    assert probe.found == {PEER.host: Probed(1, (0.001,), 1350), OTHER.host: Probed(1, ())}
    assert not probe.found[OTHER.host].reachable


def test_a_peer_that_is_gone_is_not_told_of_any_more() -> None:
    probe, clock, told = background(OWN, PEER, OTHER, echo=Path1350())
    round_of(probe, clock)
    told[0] = (SITE, (OWN, OTHER))
    probe.turn()
    assert set(probe.found) == {OTHER.host}
    told[0] = (replace(SITE, fenced=True), (OWN, OTHER))
    probe.turn()
    assert probe.found == {}


def test_by_ipv6_a_peer_is_asked_too_where_both_nodes_have_it() -> None:
    def both(lease: Lease, number: int) -> Lease:
        subnet = IPv6Network(f"fd00:10:0:{number}::/64")
        return replace(lease, ipv6=IPv6Lease(subnet, IPv6Address(f"fd77::{number}"), lease.vtep_mac, 1))

    subnets = IPv6Network("fd00:10::/48")
    first, last = IPv6Network("fd00:10:0:1::/64"), IPv6Network("fd00:10:0:ffff::/64")
    network = replace(NETWORK, ipv6=IPv6Range(subnets, 64, first, last))
    probe, clock, _ = background(
        both(OWN, 1),
        both(PEER, 2),
        OTHER,
        echo=Path1350(),
        site=replace(SITE, network=network, lease=both(OWN, 1)),
    )
    round_of(probe, clock)
    assert set(map(str, probe.found)) == {"10.0.0.2", "fd77::2", "10.0.0.3"}


def test_an_agent_that_may_not_send_echoes_does_not_start_where_it_is_to_send_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    all_but_one = ~(1 << capabilities.NET_RAW)
    monkeypatch.setattr(capabilities, "effective", lambda: all_but_one)
    require_capabilities()
    with pytest.raises(AgentError, match="needs root, or CAP_NET_RAW$"):
        require_capabilities(echoes=True)


def test_that_nobody_can_be_asked_is_logged_once_and_nothing_old_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    echo = Path1350()
    probe, clock, _ = background(OWN, PEER, echo=echo)
    round_of(probe, clock)
    assert probe.found

    def refuse(*_: object, **__: object) -> Any:
        raise AgentError("needs root, or CAP_NET_RAW, to send echoes")

    echo.ask = refuse  # type: ignore[method-assign]
    round_of(probe, clock)
    round_of(probe, clock)
    assert (probe.found, len(caplog.records)) == ({}, 1)
