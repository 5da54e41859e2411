"""A trace that goes on at the other node: how it is asked, and what is made of what it says."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctl.cli import both, trace
from ctl.cli.main import main
from ctl.core.abi import Hook
from ctl.core.decision import Probe, View
from ctl.core.elsewhere import (
    InOrder,
    as_there,
    hops_told,
    in_one,
    live_question,
    other_host,
    parse_peer_command,
    question,
    sighting_told,
)
from ctl.core.errors import AgentUnreachable
from ctl.core.path import Fate, Hop, hops
from ctl.core.reasons import labelled
from ctl.core.sighting import Flow, Sighting, as_json, line, sighting, worded
from ctl.core.tracer import Trace
from ctl.process.elsewhere import Elsewhere
from tests.datapath import sent
from tests.unit.test_path import ARRIVING, CALL, HOST, IN, LEASE, LEAVING, OUT, THERE, TRANSLATED

# --- Whom to ask ---------------------------------------------------------------


def test_a_command_is_words_with_the_node_in_its_place_and_no_shell_is_asked() -> None:
    command = parse_peer_command("ssh -o 'User name' root@{host} nsenter --net=/run/netns/{node}")
    assert command.argv(HOST, "beta") == [
        "ssh", "-o", "User name", "root@192.0.2.2", "nsenter", "--net=/run/netns/beta",
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


# --- For what ------------------------------------------------------------------


def test_the_node_at_the_other_end_is_asked_whichever_way_the_packet_goes() -> None:
    assert other_host(OUT, LEAVING) == other_host(IN, ARRIVING) == HOST
    assert other_host(OUT, View(LEAVING.node)) is None


# --- For what --------------------------------------------------------------------


def test_it_is_asked_about_the_flow_that_was_found_here() -> None:
    found = as_there(replace(OUT, sport=0, dport=0), LEAVING)
    assert (found.sport, found.dport) == (OUT.sport, OUT.dport)
    assert as_there(OUT, replace(LEAVING, flows={})) == OUT
    asked = question(replace(OUT, size=1400, df=True))
    words = "ovctl trace 10.77.1.2 10.77.2.3 -o json --proto 6 --sport 1000 --dport 80 --size 1400 --df"
    assert " ".join(asked) == words


def test_of_a_service_it_is_asked_about_what_netfilter_has_made_of_it() -> None:
    there = as_there(CALL, replace(LEAVING, flows=TRANSLATED))
    assert (there.dst, there.sport, there.dport) == (THERE, 1000, 8080)
    flow = Flow((None, None), (0, 80), 0)
    assert live_question(there, flow) == (
        ["ovctl", "trace", "10.77.1.2", "10.77.2.3", "-o", "json", "--dport", "8080", "--live", "--until-eof"]
    )


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


def seen(time_ns: int) -> Sighting:
    trace = Trace(time_ns, 7, 200, 250, labelled("encap").number, 0, Hook.FROM_CONTAINER, sent())
    return sighting(trace, 0, lambda _: "eth0", 8472)


def test_a_packet_that_the_other_node_tells_of_makes_the_line_that_it_would_make_there() -> None:
    assert worded(sighting_told(json.dumps(as_json(seen(5))))) == line(seen(5))


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


HOPS = list(hops(IN, ARRIVING))


def both_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], probe: Probe, view: View, there: Any
) -> tuple[int, list[tuple[str, str]]]:
    """Exit code, and the (node, hop) that are printed; `there`: the other node's hops."""
    monkeypatch.setattr(trace, "_asked", lambda args: (probe, view, [LEASE]))
    monkeypatch.setattr(both, "ask", there)
    code = main(["trace", "10.0.0.1", "10.0.0.2", "--peer-command", "ssh {host}", "-o", "json"])
    rows = json.loads(capsys.readouterr().out)
    return code, [(row["node"], row["hop"]) for row in rows]


LOST = Hop("program", "from_wire eth0", "ebpf", Fate.LOST, "unknown_vtep", "not from a peer")


def test_the_hops_of_both_nodes_are_one_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, told = both_told(monkeypatch, capsys, OUT, LEAVING, lambda host, argv: HOPS)
    here, there = (
        [("192.0.2.1", hop.hop) for hop in hops(OUT, LEAVING)],
        [("192.0.2.2", hop.hop) for hop in HOPS],
    )
    assert (code, told) == (0, here + there)
    assert both_told(monkeypatch, capsys, OUT, LEAVING, lambda host, argv: [LOST])[0] == 1


def test_what_arrives_begins_at_the_other_node_and_ends_where_it_is_lost_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, told = both_told(monkeypatch, capsys, IN, ARRIVING, lambda host, argv: HOPS)
    assert [node for node, _ in told] == ["192.0.2.2"] * len(HOPS) + ["192.0.2.1"] * len(HOPS)
    code, told = both_told(monkeypatch, capsys, IN, ARRIVING, lambda host, argv: [LOST])
    assert (code, told) == (1, [("192.0.2.2", "program")])


def test_where_it_is_lost_here_nobody_else_is_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    view = replace(LEAVING, unresolved=frozenset({HOST}))
    code, told = both_told(monkeypatch, capsys, OUT, view, lambda host, argv: pytest.fail("asked"))
    assert (code, told[-1]) == (1, ("192.0.2.1", "wire"))


def test_what_is_known_here_is_told_also_if_the_other_node_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(host: str, argv: list[str]) -> list[Hop]:
        raise AgentUnreachable("192.0.2.2 does not tell")

    code, told = both_told(monkeypatch, capsys, OUT, LEAVING, refuse)
    assert (code, len(told)) == (4, len(list(hops(OUT, LEAVING))))


def test_a_live_trace_of_both_needs_a_peer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trace, "_asked", lambda args: (OUT, View(LEAVING.node), []))
    assert main(["trace", "10.77.1.2", "10.77.2.3", "--live", "--peer-command", "ssh {host}"]) == 3
    assert "no peer is known between 10.77.1.2 and 10.77.2.3" in capsys.readouterr().err


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


def test_one_that_says_nothing_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(both, "PATIENCE_S", 0.1)
    with pytest.raises(AgentUnreachable, match="exit code -9"):
        both.ask("192.0.2.2", python("import time; time.sleep(100)"))


def test_a_command_that_is_not_there_is_named() -> None:
    with pytest.raises(AgentUnreachable, match="/nowhere/ssh: No such file"):
        both.ask("b", ["/nowhere/ssh"])


def test_the_far_end_hears_of_the_end_by_its_stdin() -> None:
    code = "import sys; print('begun', flush=True); sys.stdin.read(); print('ended', flush=True)"
    with Elsewhere(python(code), lambda line: None) as there:
        assert [line.strip() for line in there.rest(30)] == ["begun", "ended"]
        assert there.ended and there.code() == 0


class Listening:
    """A listener that hears these packets, and of nothing until then."""

    def __init__(self, packets: list[Sighting], until: Callable[[], bool]) -> None:
        self._packets, self._until = packets, until

    def rounds(self) -> Iterator[Sighting | None]:
        while not self._until():
            yield None
        yield from self._packets

    def summary(self) -> str:
        return f"{len(self._packets)} packets"


def show(here: list[Sighting], text: str, fmt: str = "json", count: int | None = None) -> None:
    """What is shown, where the other node runs `text` and this one hears of packets after it has spoken."""
    with Elsewhere(python(text), lambda line: both.relay("b", line)) as there:
        packets: Any = Listening(here, there.spoke.is_set)
        both.show("a", packets, "b", there, count, fmt)


def telling(*times: int, then: str = "sys.stdin.read()") -> str:
    """A program that tells of packets of these times, and ends when it is hung up on."""
    lines = "".join(f"{json.dumps(as_json(seen(each)))}\n" for each in times)
    said = f"import sys; sys.stdout.write({lines!r}); sys.stdout.flush()"
    return f"{said}; print('hi', file=sys.stderr, flush=True); {then}"


def test_packets_of_both_are_shown_in_their_order(capsys: pytest.CaptureFixture[str]) -> None:
    show([seen(20), seen(40)], telling(10, 30))
    out, err = capsys.readouterr()
    told = list(map(json.loads, out.splitlines()))
    assert [(each["node"], each["time_ns"]) for each in told] == [("b", 10), ("a", 20), ("b", 30), ("a", 40)]
    assert sorted(err.splitlines()) == ["ovctl: a: 2 packets", "ovctl: b: hi"]


def test_what_the_other_node_tells_of_at_its_end_is_shown_too(capsys: pytest.CaptureFixture[str]) -> None:
    last = f"sys.stdin.read(); print({json.dumps(as_json(seen(10)))!r})"
    show([seen(20)], telling(then=last), "table")
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["b", "a"]


def test_count_is_of_both(capsys: pytest.CaptureFixture[str]) -> None:
    show([seen(20), seen(40)], telling(10, 30), "table", count=3)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["b", "a", "b"]


@pytest.mark.parametrize("ending", ["sys.exit(3)", "print('no packet'); sys.stdin.read()"])
def test_a_node_that_tells_of_nothing_more_ends_it_with_an_error(ending: str) -> None:
    packets: Any = Listening([], lambda: False)
    command = python(telling(then=ending))
    with pytest.raises(AgentUnreachable), Elsewhere(command, lambda line: None) as there:
        both.show("a", packets, "b", there, None, "json")


def test_more_than_anybody_takes_keeps_it_from_nothing() -> None:
    flood = "for _ in range(9999): print('x' * 99)"
    with Elsewhere(python(flood), lambda line: None) as there:
        pass
    assert there.code() == 0
