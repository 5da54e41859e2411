"""Peers that say nothing: who is suspected, who is asked, and of whom it is said."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from ipaddress import IPv4Address
from typing import Any

import pytest

from ctl.backend.vxlan.silent import TOLD, SilentPeers, lines
from ctl.core.abi import PeerStats
from ctl.core.losing import LOOK_S
from ctl.core.silence import LOOKS, PACKETS, Silence

ONE, TWO = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")
OWN = IPv4Address("10.77.9.0")


def stats(sent: int, came: int = 0) -> PeerStats:
    return PeerStats(came, 0, sent, 0)


def suspected(*looks: PeerStats | None) -> dict[IPv4Address, int]:
    """Who is, after these looks at ONE; None: it is no peer then."""
    silence = Silence[IPv4Address]()
    found: dict[IPv4Address, int] = {}
    for each in looks:
        found = dict(silence.looked({} if each is None else {ONE: each}))
    return found


def test_who_is_sent_packets_look_after_look_and_says_nothing_is_suspected() -> None:
    assert suspected(*(stats(PACKETS * turn) for turn in range(LOOKS))) == {}
    assert suspected(*(stats(PACKETS * turn) for turn in range(LOOKS + 1))) == {ONE: PACKETS * LOOKS}


@pytest.mark.parametrize(
    "looks",
    [
        [stats(5)] * 9,
        [stats((PACKETS - 1) * turn) for turn in range(9)],
        [stats(100 * turn, turn) for turn in range(9)],
        [stats(0), stats(100), stats(200), stats(300, 1)],
        [stats(0), stats(100), stats(200), None],
        [stats(0), stats(100), None, stats(200), stats(300)],
    ],
    ids=["idle", "hardly anything sent", "it answers", "it is back", "it is gone", "it came anew"],
)
def test_nobody_is_suspected(looks: list[PeerStats | None]) -> None:
    assert suspected(*looks) == {}


def test_who_is_first_sent_packets_between_two_looks_has_counted_nothing_before() -> None:
    assert suspected(None, stats(100), stats(200)) == {ONE: 200}
    assert suspected(stats(100), stats(200)) == {}, "when these went there nobody knows"


def test_a_suspect_that_is_sent_nothing_more_stays_one() -> None:
    assert suspected(stats(0), stats(10), stats(20), *[stats(21)] * 9) == {ONE: 20}


def test_who_has_answered_is_judged_from_there_on() -> None:
    silence = Silence[IPv4Address]()
    counts = iter(range(0, 1000, 10))
    for _ in range(LOOKS + 1):
        found = silence.looked({ONE: stats(next(counts))})
    assert found
    silence.heard([ONE])
    for _ in range(LOOKS - 1):
        assert not silence.looked({ONE: stats(next(counts))})
    assert silence.looked({ONE: stats(next(counts))})


class Net:
    """Peers that answer echoes or not, what was carried to them, and the time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sent: dict[IPv4Address, int] = {}
        self.alive: set[IPv4Address] = set()
        self.asked: list[IPv4Address] = []
        self.open = 0
        opened: Any = self.echo
        self.peers = SilentPeers(self, 60, echo=opened, steady=lambda: self.now)

    def own_address(self) -> IPv4Address:
        return OWN

    def peer_address(self, host: IPv4Address) -> IPv4Address | None:
        return IPv4Address(f"10.77.{host.packed[3]}.0") if host in self.sent else None

    def echo(self, source: IPv4Address) -> Net:
        assert source == OWN
        self.open += 1
        self.asked = []
        return self

    def send(self, targets: Iterable[IPv4Address], size: int, count: int) -> None:
        self.asked = list(targets)

    def answered(self) -> set[IPv4Address]:
        return {each for each in self.asked if IPv4Address(f"192.0.2.{each.packed[2]}") in self.alive}

    def close(self) -> None:
        self.open -= 1

    def look(self, times: int, sending: int = 10) -> set[IPv4Address]:
        """Looks; between two of them so much goes to each."""
        maps: Any = self
        for _ in range(times):
            self.peers.look(maps)
            self.now += LOOK_S
            self.sent = {host: sent + sending for host, sent in self.sent.items()}
        return set(self.peers.silent)

    def busy_peers(self) -> dict[IPv4Address, PeerStats]:
        return {host: stats(sent) for host, sent in self.sent.items() if sent}


def test_a_suspect_that_answers_no_echo_is_said_until_it_does(caplog: pytest.LogCaptureFixture) -> None:
    net = Net()
    net.sent, net.alive = {ONE: 0, TWO: 0}, {TWO}
    with caplog.at_level(logging.INFO):
        assert net.look(LOOKS + 1) == set()
        assert len(net.asked) == 2
        assert net.look(1) == {ONE}, "one-way traffic to a peer that answers echoes is nobody's fault"
        assert net.look(5, sending=0) == {ONE}
        net.alive = {ONE, TWO}
        assert net.look(1) == set()
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        f"nothing comes back from {ONE}, which 30 packets went to",
        f"{ONE} is not silent any more",
    ]
    net.look(3, sending=0)
    assert net.open == 0, "nobody is asked any more"


def test_it_is_not_looked_more_often_than_agreed() -> None:
    net = Net()
    net.sent = {ONE: 0}
    maps: Any = net
    for turn in range(20):
        net.sent = {ONE: 10 * turn}
        net.peers.look(maps)
    assert net.open == 0


def test_each_of_a_few_is_named_and_the_others_are_counted() -> None:
    many = {IPv4Address("192.0.2.1") + number: 7 for number in range(TOLD + 3)}
    told = lines(many, 8472)
    assert len(told) == TOLD + 1
    assert told[0].startswith("nothing comes back from 192.0.2.1, which 7 packets went to")
    assert "UDP port 8472" in told[0] and told[0].endswith("ovctl doctor --peer 192.0.2.1")
    assert told[-1] == "nor from 3 peers more"
    assert lines({}, 8472) == ()
