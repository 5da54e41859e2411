"""Which rules of policy routing can tell our packets apart, and by what."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctl.core.policy import MAX_CLASSES, Outer, Policy, Rule, Span, describe, may_match, plan_policy

OUTER = Outer(IPv4Address("192.168.77.11"), 8472, (32768, 60999))
MARKED = Rule(mask=0xFF)


def plan(*rules: Rule) -> Policy:
    return plan_policy(rules, OUTER)


def test_a_host_without_rules_of_its_own_is_asked_once() -> None:
    assert plan(Rule(), Rule(), Rule()) == Policy(0, (32768,))


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        ({}, True),
        ({"source": IPv4Network("192.168.77.0/24")}, True),
        ({"source": IPv4Network("10.0.0.0/8")}, False),
        ({"iif": "lo"}, True),
        ({"iif": "eth0"}, False),
        ({"bound": True}, False),
        ({"tos": 0x10}, False),
        ({"protocol": 17}, True),
        ({"protocol": 6}, False),
        ({"dports": (8000, 9000)}, True),
        ({"dports": (8472, 8472)}, True),
        ({"dports": (53, 53)}, False),
        ({"users": (0, 0)}, True),
        ({"users": (1000, 2000)}, False),
        ({"tos": 0x10, "inverted": True}, True),
    ],
    ids=str,
)
def test_marks_count_where_a_packet_of_ours_can_match_the_rest_of_the_rule(
    change: dict[str, object], counts: bool
) -> None:
    assert plan(replace(MARKED, **change)).marks == (0xFF if counts else 0)  # type: ignore[arg-type]


def test_bits_of_marks_of_several_rules_add_up() -> None:
    assert plan(Rule(mask=0xFF0000), Rule(mask=0x80), Rule(mask=0x1, protocol=6)).marks == 0xFF0080


@pytest.mark.parametrize(
    ("ranges", "asked"),
    [
        ([(1, 65535)], (32768,)),
        ([(32768, 60999)], (32768,)),
        ([(1, 1024)], (32768,)),
        ([(40000, 50000)], (32768, 40000, 50001)),
        ([(40000, 65535)], (32768, 40000)),
        ([(40000, 40000), (40001, 40001)], (32768, 40000, 40001, 40002)),
    ],
    ids=str,
)
def test_a_source_port_of_each_class_is_asked_for(ranges: list[Span], asked: tuple[int, ...]) -> None:
    assert plan(*(Rule(sports=each) for each in ranges)).sports == asked


def test_more_classes_than_are_asked_for_leave_all_to_the_kernel_path() -> None:
    many = [Rule(sports=(40000 + 10 * each, 40004 + 10 * each)) for each in range(MAX_CLASSES)]
    assert plan(*many).sports == ()
    assert plan(*(replace(each, protocol=6) for each in many)).sports == (32768,)


def test_rules_by_some_bits_of_the_source_port_leave_all_to_the_kernel_path() -> None:
    assert plan(Rule(sports=(1, 1), sport_bits=True)).sports == ()


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (Policy(0, (1,)), ""),
        (
            Policy(0xFF0000, (1,)),
            "ip rules look at marks (0xff0000): packets with such a bit take the kernel path",
        ),
        (
            Policy(0x1, (1, 2)),
            "ip rules look at marks (0x1): packets with such a bit take the kernel path; at source ports: "
            "peers that these lead to on several ways take the kernel path",
        ),
        (
            Policy(0, ()),
            "ip rules look at source ports, in more than 8 classes: all peers take the kernel path",
        ),
    ],
    ids=str,
)
def test_the_status_says_what_rules_look_at(policy: Policy, text: str) -> None:
    assert describe(policy) == text


def spans(last: int) -> st.SearchStrategy[Span | None]:
    ends = st.tuples(st.integers(1, last), st.integers(1, last))
    return st.none() | ends.map(lambda pair: (min(pair), max(pair)))


sources = st.sampled_from(
    [IPv4Network("0.0.0.0/0"), IPv4Network("192.168.77.0/24"), IPv4Network("10.0.0.0/8")]
)
rules = st.builds(
    Rule,
    source=sources,
    iif=st.sampled_from(["", "lo", "eth0"]),
    mask=st.sampled_from([0, 0x80, 0xFF0000]),
    tos=st.sampled_from([0, 0x10]),
    protocol=st.sampled_from([0, 6, 17]),
    sports=spans(65535),
    dports=spans(9000),
    inverted=st.booleans(),
)


def matches(rule: Rule, sport: int, mark: int) -> bool:
    """As the kernel does it (fib_rule_match), where every rule wants the bits of its mask set."""
    found = may_match(rule, OUTER) and mark & rule.mask == rule.mask
    if rule.sports is not None and not rule.sports[0] <= sport <= rule.sports[1]:
        found = False
    return found is not rule.inverted


@given(st.lists(rules, max_size=4), st.integers(*OUTER.sports), st.integers(0, 0xFFFFFF))
def test_packets_that_rules_tell_apart_are_asked_for_or_left_alone(
    found: list[Rule], sport: int, mark: int
) -> None:
    """Each packet without a bit that counts matches the rules that one matches which was asked for."""
    policy = plan(*found)
    mark &= ~policy.marks
    if policy.sports:
        asked = max(each for each in policy.sports if each <= sport)
        assert [matches(each, sport, mark) for each in found] == [matches(each, asked, 0) for each in found]
