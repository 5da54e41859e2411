"""The laws of a soak: each can be broken, and breathing does not break it."""

from __future__ import annotations

import random

import pytest

from tests.soak.__main__ import LAWS, broken
from tests.soak.laws import Law, Sample, judge, slope

EXACT, FLOOR, TREND, CEILING = Law("exact"), Law("floor"), Law("trend", 1.0), Law("ceiling", 10)


def samples(*values: float) -> list[Sample]:
    return [Sample(10.0 * number, {"x": value}) for number, value in enumerate(values)]


def kept(law: Law, *values: float) -> bool:
    return judge("x", law, samples(*values)).kept


def test_exact_means_no_difference_after_the_warm_up() -> None:
    assert kept(EXACT, 1, *[5] * 10)
    assert not kept(EXACT, *[5] * 10, 6)
    assert not kept(EXACT, *[5] * 6, 4, *[5] * 6)


def test_a_floor_is_broken_by_what_never_goes_and_not_by_what_comes_and_goes() -> None:
    assert kept(FLOOR, *[3, 4, 3, 5] * 5)
    assert not kept(FLOOR, *[3, 4, 3, 5] * 3, *[4, 4, 5, 6] * 2)


@pytest.mark.parametrize("seed", range(5))
def test_a_trend_is_a_steady_rise_and_no_outlier(seed: int) -> None:
    pick = random.Random(seed)
    noise = [30 + pick.uniform(-0.2, 0.2) for _ in range(60)]
    noise[40] = 90
    assert kept(TREND, *noise)
    assert not kept(TREND, *[value + 0.05 * number for number, value in enumerate(noise)])


def test_a_ceiling_is_never_exceeded() -> None:
    assert kept(CEILING, *[10] * 9)
    assert not kept(CEILING, *[1] * 5, 11, *[1] * 5)


def test_too_few_samples_are_no_verdict() -> None:
    with pytest.raises(ValueError, match="too few"):
        judge("x", EXACT, samples(1, 1, 1))
    assert slope([(0, 1)]) == 0


def test_what_is_broken_is_named() -> None:
    verdict = {"series": "a.fds", "law": {"kind": "floor"}, "measured": 3, "allowed": 0, "kept": False}
    result = {"verdicts": [verdict], "datagrams": {"lost": 2, "duplicates": 0}, "trouble": ["round 3: no"]}
    lines = broken(result)
    assert lines == ["a.fds: floor: 3 is over 0", "round 3: no", "datagrams lost: 2"]
    assert {"rss_mb", "fds", "threads", "netlink_sockets", "pins", "nft_rules"} <= LAWS.keys()
