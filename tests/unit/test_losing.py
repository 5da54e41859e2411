"""Packets that go into the kernel path and do not come out: when that is said, and when it is not."""

from __future__ import annotations

import pytest

from ctl.core.abi import Counter, Hook
from ctl.core.losing import LOOKS, Counters, Device, Losing, Passed, Way, ways
from ctl.core.reasons import REASONS

NUMBERS = {row.label: number for number, row in REASONS.items()}
OUT, IN, LEFT, CAME = Hook.FROM_CONTAINER, Hook.FROM_WIRE, Hook.TO_OVERLAY, Hook.TO_CONTAINER


def counted(*rows: tuple[Hook, str, int]) -> Counters:
    return {(hook, NUMBERS[label]): Counter(packets, 0) for hook, label, packets in rows}


NOTHING = Device()


def said(*rows: tuple[Hook, str, int], device: Device = NOTHING, looks: int = 5) -> set[Way]:
    """What is said after some looks, between any two of which so much is counted."""
    losing = Losing()
    found: dict[Way, int] = {}
    for turn in range(looks + 1):
        counters = counted(*((hook, label, packets * turn) for hook, label, packets in rows))
        found = losing(ways(counters, Device(device.rx * turn, device.tx * turn)))
    return set(found)


LOST = {
    "new flows do not leave": ([(OUT, "flow_unknown", 10)], Device(), {Way.OUT}),
    "connections do not leave": ([(OUT, "tcp_control", 4)], Device(), {Way.OUT}),
    "nor do flows that were approved, beside what the host itself sends": (
        [(OUT, "flow_expired", 10), (LEFT, "no_endpoint", 4)],
        Device(tx=4),
        {Way.OUT},
    ),
    "new flows do not come in": ([(IN, "flow_unknown", 10)], Device(rx=10), {Way.IN}),
    "beside them containers talk to others": (
        [(IN, "tcp_control", 10), (CAME, "not_overlay", 4)],
        Device(rx=10),
        {Way.IN},
    ),
    "nobody answers": (
        [(OUT, "tcp_control", 10), (LEFT, "tcp_control", 10)],
        Device(tx=10),
        {Way.ANSWERS},
    ),
    "nor does a stranger's VXLAN count as an answer": (
        [(LEFT, "tcp_control", 10), (IN, "unknown_vtep", 10), (IN, "not_overlay", 999)],
        Device(tx=10),
        {Way.ANSWERS},
    ),
}
WELL = {
    "an idle node": [],
    "containers that talk to the outside only": [(OUT, "not_overlay", 1000), (CAME, "not_overlay", 1000)],
    "what is carried by eBPF alone": [(OUT, "encap", 1000), (IN, "decap", 1000)],
    "what is left to the kernel path comes out": [
        (OUT, "flow_unknown", 10), (LEFT, "learned", 10), (IN, "flow_expired", 10), (CAME, "learned", 10),
    ],
    "someone's policy drops some": [(OUT, "tcp_control", 50), (LEFT, "learned", 1)],
    "a packet or two": [(OUT, "flow_unknown", 2), (IN, "flow_unknown", 2)],
    "another's masquerade makes them the host's": [(OUT, "flow_unknown", 10), (LEFT, "no_endpoint", 10)],
    "another's masquerade makes them the receiver's": [(IN, "flow_unknown", 9), (CAME, "not_overlay", 9)],
    "a service that is translated": [(OUT, "tcp_control", 9), (LEFT, "changed", 9), (IN, "changed", 9)],
    "datagrams that nobody has to answer": [(OUT, "flow_unknown", 9), (LEFT, "learned", 9)],
    "answers that eBPF delivers": [(LEFT, "tcp_control", 9), (IN, "decap", 9)],
    "answers that came by XDP": [(LEFT, "tcp_control", 9), (IN, "delivered", 9)],
}  # fmt: skip


@pytest.mark.parametrize("case", LOST)
def test_all_that_is_lost_is_said(case: str) -> None:
    rows, device, expected = LOST[case]
    assert said(*rows, device=device) == expected


@pytest.mark.parametrize("case", WELL)
def test_no_alarm(case: str) -> None:
    rows = WELL[case]
    leaves = sum(packets for hook, _, packets in rows if hook is LEFT)
    assert said(*rows, device=Device(tx=leaves)) == set()


def test_packets_past_a_program_of_ours_that_does_not_run_are_not_lost() -> None:
    """Someone's filter ends classification before it: that is another matter."""
    assert said((OUT, "flow_unknown", 10), device=Device(tx=10)) == set()
    assert said((LEFT, "tcp_control", 10), device=Device(tx=10, rx=10)) == set()


@pytest.mark.parametrize("way", Way)
def test_one_look_says_nothing_and_one_packet_that_comes_takes_it_back(way: Way) -> None:
    losing, passed = Losing(), Passed(0, 0, 0)
    assert losing({way: passed}) == {}
    for turn in range(1, LOOKS[way] + 2):
        passed = Passed(passed.sent + 10, 0, 0)
        expected = {way: 10 * turn} if turn >= LOOKS[way] else {}
        assert losing({way: passed}) == expected
    assert losing({way: Passed(passed.sent + 10, 1, 0)}) == {}


def test_what_was_lost_before_the_first_look_is_not_known() -> None:
    assert Losing()(ways(counted((OUT, "flow_unknown", 1000)), Device())) == {}


def test_nothing_is_lost_any_more_when_nothing_is_sent() -> None:
    losing = Losing()
    for sent in (0, 10, 20):
        found = losing({Way.OUT: Passed(sent, 0, 0)})
    assert found == {Way.OUT: 20}
    assert losing({Way.OUT: Passed(20, 0, 0)}) == {}


def test_new_maps_begin_at_nothing() -> None:
    losing = Losing()
    for sent, came in ((0, 0), (1000, 1000), (0, 0), (2, 2)):
        assert losing({Way.OUT: Passed(sent, came, 0)}) == {}
