"""A trace that goes on at the other node: how it is asked, and what is made of what it says."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctl.cli import both
from ctl.core.elsewhere import InOrder, hops_told, in_one, parse_peer_command, sighting_told
from ctl.core.errors import AgentUnreachable
from ctl.core.path import Fate, Hop
from ctl.process.elsewhere import Elsewhere

HOST = IPv4Address("192.0.2.7")


# --- Whom to ask ---------------------------------------------------------------


def test_a_command_is_words_with_the_node_in_its_place_and_no_shell_is_asked() -> None:
    command = parse_peer_command("ssh -o 'User name' root@{host} nsenter --net=/run/netns/{node}")
    assert command.argv(HOST, "beta") == [
        "ssh", "-o", "User name", "root@192.0.2.7", "nsenter", "--net=/run/netns/beta",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["ssh", "", "ssh 'root@{host}"])
def test_a_command_that_says_no_node_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="does not say which node|No closing quotation"):
        parse_peer_command(text)


@pytest.mark.parametrize("name", ["", "-oProxyCommand=sh", "a;reboot", "a b", "$(id)", "../a", "\x1b[2J"])
def test_a_name_of_the_store_that_a_command_could_take_for_more_is_refused(name: str) -> None:
    command = parse_peer_command("ssh {node}")
    with pytest.raises(ValueError, match=r"use \{host\}"):
        command.argv(HOST, name)


# --- What it says --------------------------------------------------------------

HOP = {"hop": "wire", "at": "eth0", "by": "ebpf", "fate": "on", "reason": "decap", "seen": "fine"}
PACKET = {
    "time_ns": 1, "hook": "from_wire", "dev": "eth0", "verdict": "bypass", "reason": "decap",
    "caption": "c", "came_bytes": 2, "bytes": 1, "packet": "a > b",
}  # fmt: skip


def test_what_it_says_is_taken_as_words_that_no_terminal_obeys() -> None:
    (hop,) = hops_told(json.dumps([{**HOP, "seen": "\x1b[2Jgone", "more": [1]}]))
    assert hop == Hop("wire", "eth0", "ebpf", Fate.ON, "decap", "?[2Jgone")
    assert sighting_told(json.dumps({**PACKET, "packet": "\x07" * 5000}))["packet"] == "?" * 1000


WRONG: list[Any] = [[], {}, None, "x", [None], [{}], [{**HOP, "fate": "luck"}], [{**HOP, "seen": 1}]]


@pytest.mark.parametrize("told", WRONG)
def test_what_is_no_hops_is_refused(told: Any) -> None:
    with pytest.raises(ValueError, match=".+"):
        hops_told(json.dumps(told))


@pytest.mark.parametrize(
    "change", [{"time_ns": -1}, {"time_ns": "1"}, {"time_ns": True}, {"bytes": None}, {"packet": 1}]
)
def test_what_is_no_packet_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a packet"):
        sighting_told(json.dumps(PACKET | change))


@given(st.text())
def test_no_text_is_more_than_a_value_error(text: str) -> None:
    for read in hops_told, sighting_told:
        try:
            read(text)
        except ValueError:
            continue


def test_json_that_is_too_deep_is_an_error_like_others() -> None:
    with pytest.raises(ValueError, match="too deep"):
        hops_told("[" * 100_000)


# --- Both in one ---------------------------------------------------------------


def hop(name: str, fate: Fate = Fate.ON) -> Hop:
    return Hop(name, "", "", fate, "", "")


def test_hops_follow_the_packet_and_end_where_it_does() -> None:
    here, there = [("a", hop("one")), ("a", hop("two"))], [("b", hop("three", Fate.LOST)), ("b", hop("four"))]
    assert [row["hop"] for row in in_one(here, there, arrives=False)] == ["one", "two", "three"]
    assert [row["hop"] for row in in_one(here, there, arrives=True)] == ["three"]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9))))
def test_what_is_told_late_but_not_too_late_comes_in_order(told: Sequence[tuple[int, int]]) -> None:
    """Each up to 9 after it has happened, and held back for 9."""
    order, shown = InOrder(9), []
    for now in range(30):
        for when, late in told:
            if when + late == now:
                order.add({"time_ns": when}, now)
        shown += [each["time_ns"] for each in order.due(now)]
    assert shown + [each["time_ns"] for each in order.rest()] == sorted(when for when, _ in told)


# --- Over there ----------------------------------------------------------------


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_an_answer_is_its_hops() -> None:
    assert both.ask("b", python(f"print({json.dumps([HOP])!r})")) == hops_told(json.dumps([HOP]))


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import sys; sys.exit('ovctl: error: no such flag')", r"exit code 1\): no such flag"),
        ("print('Welcome to Debian')", r"exit code 0\): Expecting value"),
        ("import os; os.kill(os.getpid(), 9)", r"exit code -9\)"),
        ("print('[]', end='')", "no hops"),
    ],
)
def test_who_does_not_tell_is_named_with_why(code: str, why: str) -> None:
    with pytest.raises(AgentUnreachable, match=f"b does not tell its hops .*{why}"):
        both.ask("b", python(code))


def test_a_command_that_is_not_there_is_named() -> None:
    with pytest.raises(AgentUnreachable, match="/nowhere/ssh: No such file"):
        both.ask("b", ["/nowhere/ssh"])


def test_the_far_end_hears_of_the_end_by_its_stdin() -> None:
    code = "import sys; print('begun', flush=True); sys.stdin.read(); print('ended', flush=True)"
    with Elsewhere(python(code), lambda line: None) as there:
        assert [line.strip() for line in there.rest(30)] == ["begun", "ended"]
        assert there.ended and there.code() == 0
