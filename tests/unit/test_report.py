from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctl.core.abi import Counter, Direction, Hook
from ctl.core.errors import AgentError
from ctl.core.model import Bypass
from ctl.core.report import (
    FORMAT,
    AgentReport,
    Gears,
    KernelPort,
    LeaseReport,
    from_json,
    gears,
    health,
    readiness,
    to_json,
)
from tests.samples import EARLY, NOW, REPORT, report


@pytest.mark.parametrize("value", [REPORT, EARLY], ids=["full", "early"])
def test_a_report_survives_json(value: AgentReport) -> None:
    assert from_json(to_json(value)) == value


lines = st.text(max_size=20)
moments = st.floats(min_value=0, max_value=1e10) | st.none()


@given(
    problems=st.lists(lines).map(tuple),
    ports=st.lists(st.builds(KernelPort, lines, lines)).map(tuple),
    lease=st.none() | st.builds(LeaseReport, st.just(IPv4Network("10.1.2.0/24")), moments, moments, lines),
    operations=st.dictionaries(lines, st.integers(0)),
)
def test_any_report_survives_json(problems: Any, ports: Any, lease: Any, operations: Any) -> None:
    value = report(
        problems=problems,
        kernel_ports=ports,
        lease=lease,
        reconcile=replace(REPORT.reconcile, operations=operations),
    )
    assert from_json(to_json(value)) == value


def test_json_is_stable_and_for_programs() -> None:
    raw = json.loads(to_json(REPORT))
    assert raw["format"] == FORMAT
    assert raw["host"] == "192.168.50.1"
    assert raw["lease"]["subnet"] == "172.17.1.0/24"
    assert raw["bypass"] == "learned"
    assert list(raw) == sorted(raw)


def test_another_format_is_refused_by_name() -> None:
    raw = json.loads(to_json(REPORT)) | {"format": 99}
    with pytest.raises(AgentError, match="has format 99, this ovctl reads 1"):
        from_json(json.dumps(raw))


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "7", '"x"', "{}", '{"format": 1}', to_json(REPORT)[:-20],
     to_json(REPORT).replace("172.17.1.0/24", "172.17.1.0/99"), to_json(REPORT).replace("learned", "perhaps"),
     to_json(REPORT).replace('"lease": {', '"lease": 3, "was": {')],
)  # fmt: skip
def test_a_damaged_report_is_one_line(text: str) -> None:
    with pytest.raises(AgentError, match="damaged") as caught:
        from_json(text)
    assert "\n" not in str(caught.value)


def complaints(value: AgentReport, fill: dict[str, tuple[int, int]] | None = None) -> list[str]:
    healthy, why = health(value, NOW, fill)
    assert healthy is (not why)
    return why


def test_a_working_node_is_healthy_whatever_its_problems() -> None:
    assert complaints(REPORT, {"peers": (3, 4)}) == []


def reconciled(age: float) -> AgentReport:
    return report(reconcile=replace(REPORT.reconcile, last_success=NOW - age, error="nft refused"))


def test_a_reconcile_is_overdue_after_three_intervals_and_a_grace() -> None:
    assert complaints(reconciled(3 * 60 + 30)) == ["reconciling fails: nft refused"]
    assert complaints(reconciled(3 * 60 + 31)) == ["last successful reconcile was 211 s ago: nft refused"]


def test_an_early_agent_says_what_it_waits_for() -> None:
    assert complaints(EARLY) == [
        "not ready: the store has no network yet",
        "no reconcile has succeeded yet: store unreachable",
        "store sqlite:///x unreachable: no such file",
    ]


def test_not_ready_without_a_reason_is_still_said() -> None:
    assert complaints(report(ready=False)) == ["not ready: starting"]


def leased(left: float | None, margin: float | None = 60, conflict: str = "") -> AgentReport:
    expires = None if left is None else NOW + left
    renew = None if expires is None or margin is None else expires - margin
    return report(lease=LeaseReport(IPv4Network("172.17.1.0/24"), expires, renew, conflict))


@pytest.mark.parametrize(
    ("lease", "words"),
    [
        (leased(None), None),
        (leased(31), None),
        (leased(29), "expires in 29 s and was not renewed"),
        (leased(61, margin=None), None),
        (leased(59, margin=None), "expires in 59 s and was not renewed"),
        (leased(-5), "expired 5 s ago"),
        (leased(1000, conflict="10.0.0.9 claims it"), "lease conflict: 10.0.0.9 claims it"),
    ],
)
def test_lease_trouble(lease: AgentReport, words: str | None) -> None:
    why = complaints(lease)
    assert len(why) == (words is not None)
    assert words is None or words in why[0]


def test_a_full_map_is_unhealthy_and_named() -> None:
    fill = {"peers": (4, 4), "flows": (3, 4), "odd": (0, 0)}
    assert complaints(REPORT, fill) == ["map peers is full: 4 of 4 entries"]


def test_a_node_without_programs_says_so_where_they_are_wanted() -> None:
    without = replace(REPORT, program="")
    assert complaints(without) == ["eBPF carries nothing: no programs are loaded"]
    assert readiness(without, NOW) == "", "the kernel path is whole: containers may come"
    assert complaints(replace(without, bypass=Bypass.OFF)) == []
    assert complaints(replace(without, backend="host-gw")) == []
    failing = replace(REPORT.reconcile, error="no compiler")
    assert complaints(replace(without, reconcile=failing)) == ["reconciling fails: no compiler"]


def test_readiness_ignores_the_store_but_not_a_stuck_agent() -> None:
    down = replace(REPORT.store, up=False)
    assert readiness(report(store=down), NOW) == ""
    assert readiness(reconciled(1000), NOW).startswith("last successful reconcile")
    assert readiness(EARLY, NOW).startswith("the store has no network yet; ")
    assert readiness(None, NOW) == "no reconcile has finished yet"


COUNTERS = {
    (Hook.FROM_CONTAINER, 1): Counter(90, 9000),  # encap
    (Hook.FROM_CONTAINER, 11): Counter(12, 1200),  # flow_unknown: two of them stopped by netfilter
    (Hook.FROM_CONTAINER, 5): Counter(1000, 10),  # not_overlay
    (Hook.TO_OVERLAY, 3): Counter(10, 1000),  # learned: the same packets again
    (Hook.TO_OVERLAY, 13): Counter(20, 500),  # no_endpoint: of the host itself
    (Hook.TO_OVERLAY, 4): Counter(7, 7),  # not_ipv4
    (Hook.TUNNEL_OUT, 34): Counter(25, 1200),  # tunnel_encap: the same packets again
    (Hook.TUNNEL_OUT, 9): Counter(5, 300),  # oversize
    (Hook.FROM_WIRE, 40): Counter(7, 70),  # unknown_vtep: a drop
}


def test_gears_are_told_apart_by_packets_and_bytes() -> None:
    found = gears(COUNTERS)
    assert found == {Direction.OUT: Gears(Counter(90, 9000), Counter(25, 1200), Counter(5, 300)),
                     Direction.IN: Gears()}  # fmt: skip
    assert found[Direction.OUT].packets_percent == {"bypass": 75, "tunnel": 125 / 6, "kernel": 25 / 6}
    assert sum(filter(None, found[Direction.OUT].bytes_percent.values())) == pytest.approx(100)
    assert found[Direction.IN].packets_percent == dict.fromkeys(("bypass", "tunnel", "kernel"))


def test_what_comes_in_counts_where_it_is_delivered() -> None:
    counters = {
        (Hook.FROM_WIRE_XDP, 2): Counter(30, 0),  # decap
        (Hook.FROM_WIRE, 32): Counter(30, 3000),  # delivered: the same packets again
        (Hook.FROM_WIRE_XDP, 11): Counter(10, 0),
        (Hook.FROM_WIRE, 11): Counter(10, 900),
        (Hook.FROM_WIRE, 20): Counter(50, 50),  # vxlan_header: another's VXLAN
        (Hook.TUNNEL_IN, 35): Counter(6, 500),
        (Hook.TUNNEL_IN, 29): Counter(4, 400),  # udp_gso
        (Hook.TO_CONTAINER, 3): Counter(10, 900),
    }
    assert gears(counters)[Direction.IN] == Gears(Counter(30, 3000), Counter(6, 500), Counter(4, 400))


def test_no_gear_has_carried_less_than_nothing() -> None:
    """Counters are read one after the other, while packets come."""
    late = {(Hook.FROM_WIRE, 11): Counter(10, 1000), (Hook.TUNNEL_IN, 35): Counter(11, 1100)}
    assert gears(late)[Direction.IN].kernel == Counter(0, 0)


def test_a_node_with_a_fault_in_its_traffic_is_not_healthy_though_it_is_ready() -> None:
    faulty = report(unhealthy=("packets are lost",), problems=("packets are lost",))
    assert complaints(faulty) == ["packets are lost"]
    assert readiness(faulty, NOW) == ""


def test_what_is_only_worth_knowing_leaves_a_node_healthy() -> None:
    assert complaints(report(warnings=("a second default route",))) == []


def test_a_report_of_before_there_were_faults_and_warnings_is_read() -> None:
    raw = json.loads(to_json(REPORT))
    del raw["unhealthy"], raw["warnings"], raw["blind"]
    assert from_json(json.dumps(raw)) == REPORT


def test_a_report_of_both_families_is_read_as_it_was_written_and_one_of_before_them_too() -> None:
    assert REPORT.lease is not None
    lease = replace(REPORT.lease, ipv6=IPv6Network("fd00:10:0:1::/64"))
    both = replace(REPORT, lease=lease, peers_ipv6=2, peers_ipv6_ebpf=1)
    assert from_json(to_json(both)) == both
    raw = json.loads(to_json(REPORT))
    del raw["peers_ipv6"], raw["peers_ipv6_ebpf"], raw["lease"]["ipv6"]
    assert from_json(json.dumps(raw)) == REPORT
