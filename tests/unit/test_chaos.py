"""The instrument's arithmetic, and the table that comes of the scenarios."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chaos import crash, document
from tests.chaos.datagrams import OPTIONS, PLAIN, SHARE
from tests.chaos.figures import Figures, Side, Way
from tests.chaos.scenario import ALL, FRESH, Outcome, Scenario, Sight, broken
from tests.chaos.scenarios import SCENARIOS
from tests.chaos.tally import Loss, Tally

MS = 1_000_000


def arrive(tally: Tally, *numbers: int) -> None:
    """Each sent 1 ms after the one before, and 5 ms on the way."""
    tally.add(list(numbers), [n * MS for n in numbers], [(n + 5) * MS for n in numbers])


def test_what_arrives_in_order_is_whole() -> None:
    tally = Tally()
    arrive(tally, 0, 1, 2)
    arrive(tally, 3)
    assert (tally.received, tally.duplicates, tally.late, tally.highest) == (4, 0, 0, 3)
    assert tally.losses(4, 9 * MS) == []
    assert tally.longest_gap == 0


def test_losses_lie_between_what_was_sent_around_them() -> None:
    tally = Tally()
    arrive(tally, 1, 2)
    arrive(tally, 5, 6, 8)
    assert tally.losses(11, 20 * MS) == [
        Loss(0, 1, 1 * MS, 1 * MS),
        Loss(3, 2, 2 * MS, 5 * MS),
        Loss(7, 1, 6 * MS, 8 * MS),
        Loss(9, 2, 8 * MS, 20 * MS),
    ]
    assert tally.longest_gap == 3 * MS


def test_a_pause_of_the_sender_is_no_gap() -> None:
    tally = Tally()
    tally.add([0], [0], [5 * MS])
    tally.add([1], [300 * MS], [307 * MS])
    assert tally.longest_gap == 2 * MS


def test_late_ones_are_not_lost_and_second_ones_are_duplicates() -> None:
    tally = Tally()
    arrive(tally, 0, 1, 4)
    arrive(tally, 2, 4, 2, 5)
    assert (tally.received, tally.late, tally.duplicates) == (5, 1, 2)
    assert [loss.first for loss in tally.losses(6, 9 * MS)] == [3]


@given(st.lists(st.integers(0, 40), max_size=80), st.lists(st.integers(1, 9), max_size=20))
def test_every_datagram_is_accounted_for(numbers: list[int], batches: list[int]) -> None:
    tally = Tally()
    left = list(numbers)
    for size in [*batches, len(left)]:
        arrive(tally, *left[:size])
        left = left[size:]
    different = set(numbers)
    assert tally.received == len(different)
    assert tally.duplicates == len(numbers) - len(different)
    missing = [n for loss in tally.losses(41, 0) for n in range(loss.first, loss.first + loss.count)]
    assert missing == sorted(set(range(41)) - different)


WAY = Way("plain a>b", PLAIN, 1000.0, 5000, 5000, 0, 0, 0, 1.0, ())
SIDE = Side("a", True, "", 0, 0, 0, 0, 0.01, {"tcp_ok": 10, "udp_ok": 10}, ())
NOTHING = Sight()
WINDOW = ((1000 * MS, 1100 * MS),)


def outcome(way: Way = WAY, side: Side = SIDE, **changes: object) -> Outcome:
    made = Outcome(Figures((way,), (side,), 5000, 10, 0), WINDOW, None, 100.0)
    return replace(made, **changes)  # type: ignore[arg-type]


def scenario(lossy: frozenset[str] = frozenset(), sight: Sight = NOTHING) -> Scenario:
    return Scenario("Group", "name", "done", lambda _: None, sight=sight, lossy=lossy)


def lost(count: int, after: int, before: int, starved: int = 0) -> Way:
    return replace(
        WAY, received=WAY.sent - count, starved=starved, losses=(Loss(7, count, after * MS, before * MS),)
    )


def test_nothing_lost_is_a_promise_kept() -> None:
    assert broken(scenario(), outcome()) == []


@pytest.mark.parametrize("stream", SHARE)
def test_one_datagram_lost_is_a_promise_broken(stream: str) -> None:
    way = replace(lost(1, 1010, 1012), stream=stream)
    assert broken(scenario(), outcome(way)) == [f"1 datagrams lost: {stream}"]


def test_what_a_full_socket_lost_is_not_the_networks() -> None:
    assert broken(scenario(), outcome(lost(5, 1010, 1012, starved=5))) == []
    assert broken(scenario(), outcome(lost(5, 1010, 1012, starved=4))) == ["1 datagrams lost: plain"]


@pytest.mark.parametrize(
    ("way", "kept"),
    [
        (lost(80, 1010, 1090), True),
        (lost(80, 995, 1080), True),
        (lost(3, 500, 503), False),
        (lost(3, 1200, 1203), False),
        (lost(900, 1010, 1910), False),
    ],
    ids=["within", "begun just before", "before", "afterwards", "goes on"],
)
def test_what_may_be_lost_may_be_lost_until_it_is_mended(way: Way, kept: bool) -> None:
    assert (broken(scenario(ALL), outcome(way)) == []) is kept
    assert broken(scenario(frozenset({OPTIONS, FRESH})), outcome(way)), "another stream may not"


def test_a_loss_that_touches_two_times_counts_to_the_longer_one() -> None:
    windows = ((900 * MS, 1001 * MS), (1001 * MS, 2000 * MS))
    assert lost(900, 1000, 1900).lost_outside(windows) == 0
    assert lost(900, 1000, 1900).lost_outside(windows[:1]) > 0


def test_a_new_flow_that_fails_is_a_promise_broken() -> None:
    side = replace(SIDE, failures=((1.05, "udp failed: TimeoutError()"),))
    assert broken(scenario(), outcome(side=side)) == ["1 new flows failed: a: udp failed: TimeoutError()"]
    assert broken(scenario(ALL), outcome(side=side)) == []


def test_sent_again_counts_where_the_machine_was_not_to_blame() -> None:
    side = replace(SIDE, failures=((5.0, "tcp again: sent again"),))
    assert broken(scenario(), outcome(side=side)) == ["1 new flows failed: a: tcp again: sent again"]
    assert broken(scenario(), outcome(side=replace(side, lag=2.0))) == []


def test_what_the_operator_does_not_see_is_a_promise_broken() -> None:
    sight = Sight(log="said .*so", status="wrong")
    assert len(broken(scenario(sight=sight), outcome())) == 2
    assert (
        broken(scenario(sight=sight), outcome(log="it said it so", complaints=frozenset({"is wrong"}))) == []
    )


def test_a_stream_that_is_not_whole_is_a_promise_broken() -> None:
    side = replace(SIDE, stream_whole=False, stream_error="gone")
    assert broken(scenario(ALL), outcome(side=side)) == ["TCP stream of a is not whole: gone"]


def test_scenarios_are_told_apart_and_say_why_they_lose() -> None:
    keys = [document.key(each) for each in SCENARIOS]
    assert len(set(keys)) == len(keys)
    assert [document.key(each) for each in SCENARIOS if bool(each.lossy) != bool(each.why)] == []


def test_operating_md_has_the_scenarios() -> None:
    text = document.OPERATING.read_text()
    assert document.renewed(text) == text, "python -m tests.chaos.document renews it"


def test_what_was_measured_is_of_scenarios_that_there_are() -> None:
    assert set(json.loads(document.MEASURED.read_text())) <= {document.key(each) for each in SCENARIOS}


@pytest.mark.parametrize(("module", "path"), crash.EDGES, ids=str)
def test_the_edges_at_which_an_agent_is_killed_are_there(module: str, path: str) -> None:
    place = importlib.import_module(module)
    for name in path.split("."):
        place = getattr(place, name)
    assert callable(place)
