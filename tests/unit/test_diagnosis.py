"""What the doctor makes of what was seen."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from ctl.core import diagnosis
from ctl.core.compare import Difference, State
from ctl.core.diagnosis import Finding, Level, Way
from ctl.core.model import Lease

LEASE = Lease(IPv4Network("172.17.9.0/24"), IPv4Address("192.0.2.9"), node="nine", expires_at=1000.0)
WAY = Way(LEASE, "ovnet.1", "", "ovnet.1")


def levels(findings: list[Finding]) -> list[str]:
    return [finding.level.value for finding in findings]


@pytest.mark.parametrize(
    ("way", "words", "remedy"),
    [
        (
            replace(WAY, device="eth1", answered=False),
            "routed to eth1, not to ovnet.1",
            "ip route get 172.17.9.1",
        ),
        (replace(WAY, device="", answered=False), "routed to nothing", "ip rule"),
        (
            replace(WAY, neighbour="192.0.2.1 on eth0", answered=False, underlay=False),
            "192.0.2.1 on eth0",
            "ping 192.0.2.9",
        ),
        (replace(WAY, answered=False), "its host 192.0.2.9 does", "open UDP 8472"),
        (replace(WAY, answered=False, underlay=False), "nor does its host", "ping 192.0.2.9"),
        (replace(WAY, largest=1350), "up to 1350 bytes, not 1450", "--mtu 1400"),
    ],
)
def test_a_peer_is_named_once_with_the_cause_that_comes_first(way: Way, words: str, remedy: str) -> None:
    (found,) = diagnosis.of_way(way, 1450, 8472)
    assert found.level is Level.FAILURE
    assert "nine (172.17.9.0/24)" in found.seen
    assert words in found.seen and remedy in found.remedy


@pytest.mark.parametrize(
    "way", [WAY, replace(WAY, neighbour="192.0.2.9 on eth0"), replace(WAY, largest=1450)]
)
def test_a_peer_that_answers_is_not_named(way: Way) -> None:
    """An ARP entry that is being asked for anew says nothing of who answers."""
    assert list(diagnosis.of_way(way, 1450, 8472)) == []


def test_an_agents_complaints_are_failures_and_its_other_problems_warnings() -> None:
    found = list(diagnosis.of_agent(True, ["a"], ["a", "b"], ["c"]))
    assert [(each.level, each.seen) for each in found] == [
        (Level.FAILURE, "a"),
        (Level.WARNING, "b"),
        (Level.WARNING, "c"),
    ]
    assert levels(list(diagnosis.of_agent(True, [], [], []))) == ["ok"]
    (dead,) = diagnosis.of_agent(False, ["no agent"], ["b"], [])
    assert dead.seen == "no agent runs here"


@pytest.mark.parametrize(
    ("lease", "level"),
    [
        (LEASE, "ok"),
        (replace(LEASE, expires_at=None), "ok"),
        (replace(LEASE, expires_at=899), "failure"),
        (None, "failure"),
    ],
)
def test_a_lease_that_is_gone_or_over_is_a_failure(lease: Lease | None, level: str) -> None:
    assert levels(list(diagnosis.of_lease(lease, LEASE.host, 900.0))) == [level]


def test_entries_that_differ_are_summed_up_by_table() -> None:
    many = [Difference("fdb", f"02:{n}", State.STALE, "", "x") for n in range(3)]
    found = list(diagnosis.of_entries([*many, Difference("routes", "r", State.MISSING, "y")], 60, True))
    assert [each.seen for each in found] == ["fdb: 02:0 and 2 more stale", "routes: r missing"]
    assert "within 60 s" in found[0].remedy
    (dead,) = diagnosis.of_entries(many, 60, False)
    assert "systemctl start" in dead.remedy
    assert levels(list(diagnosis.of_entries([], 60, True))) == ["ok"]


def test_what_does_not_forward_is_named() -> None:
    on = {"net/ipv4/ip_forward": "1", "net/ipv4/conf/ovnet0/forwarding": "1"}
    assert levels(list(diagnosis.of_settings(on, ["ovnet0"]))) == ["ok"]
    off = on | {"net/ipv4/conf/ovnet0/forwarding": "0"}
    (found,) = diagnosis.of_settings(off, ["ovnet0"])
    assert found.remedy == "sysctl -w net.ipv4.conf.ovnet0.forwarding=1"
    (found,) = diagnosis.of_settings(off | {"net/ipv4/ip_forward": "0"}, ["ovnet0"])
    assert "net.ipv4.ip_forward=1" in found.remedy


@pytest.mark.parametrize(
    ("count", "limit", "expected"),
    [(None, None, []), (5, None, []), (5, 100, ["ok"]), (91, 100, ["warning"]), (100, 100, ["failure"])],
)
def test_a_table_of_conntrack_that_fills_up_is_told(
    count: int | None, limit: int | None, expected: list[str]
) -> None:
    assert levels(list(diagnosis.of_conntrack(count, limit))) == expected


def test_programs_that_are_not_where_they_have_to_be_are_named() -> None:
    wanted = [("eth0", "ingress"), ("veth1", "ingress")]
    assert levels(list(diagnosis.of_programs(wanted, wanted))) == ["ok"]
    (found,) = diagnosis.of_programs(wanted, wanted[1:])
    assert found.seen == "none of ours at ingress of eth0"


def test_sizes_that_do_not_fit_are_named() -> None:
    assert levels(list(diagnosis.of_mtu(1450, 1450, {"veth1": 1450, "veth2": 1400}))) == ["ok"]
    (found,) = diagnosis.of_mtu(1450, 1450, {"veth2": 1500, "veth1": 1500})
    assert found.seen == "port veth1 and 1 more: MTU 1500, the overlay carries 1450"
    (found,) = diagnosis.of_mtu(1450, 1300, {})
    assert "takes 1300 bytes" in found.seen


def test_only_a_failure_is_one() -> None:
    assert diagnosis.verdict([diagnosis.ok("a", "b"), diagnosis.warning("a", "b", "c", "d")]) == 0
    assert diagnosis.verdict([diagnosis.failure("a", "b", "c", "d")]) == 1
