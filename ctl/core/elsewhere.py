"""A trace that goes on at the other node: whom to ask for what, and what its answers say. Pure.

What the other node says is checked: that node may be anybody's. Its words are printable, and not endless.
"""

from __future__ import annotations

import heapq
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain
from typing import Any, Final

from ctl.core.abi import Direction, Ip
from ctl.core.decision import Probe, View
from ctl.core.path import Fate, Hop
from ctl.core.sighting import SHOWN, Flow, Sighting, as_json

WORD_CHARACTERS: Final = 1000
"""As long as a word of the other node's can be."""
_NODE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Names that can be no flag of the command, nor anything to a shell."""


# --- Whom to ask ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PeerCommand:
    """How a command is run on another node: these words come before it, with the node in its place."""

    words: tuple[str, ...]

    def argv(self, host: Ip, node: str) -> list[str]:
        """For the node of this name, by the store; ValueError if it is asked for and there is none to use."""
        if any("{node}" in word for word in self.words) and not _NODE.fullmatch(node):
            what = (
                f"its name {clean(node)!r} is not fit for a command"
                if node
                else "the store has no name of it"
            )
            raise ValueError(f"{what}: use {{host}}")
        return [word.replace("{host}", str(host)).replace("{node}", node) for word in self.words]


def parse_peer_command(text: str) -> PeerCommand:
    """From `ssh root@{host}`: words as a shell reads them, but no shell does. ValueError."""
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None
    if not any("{host}" in word or "{node}" in word for word in words):
        raise ValueError(f"{text!r} does not say which node: put {{host}} or {{node}} into it")
    return PeerCommand(words)


def arrives(probe: Probe, view: View) -> bool:
    """Whether the packet is for this node, so from the other one, if that is one of ours."""
    return probe.dst in view.node.subnet


def other_host(probe: Probe, view: View) -> Ip | None:
    """The node at the other end of the overlay; None: no peer is there."""
    peer = view.origin if arrives(probe, view) else view.peer
    return peer.host if peer else None


# --- For what ------------------------------------------------------------------


def as_there(probe: Probe, view: View) -> Probe:
    """The packet as the other node has it: translated, if its flow is, and of the flow that is known here."""
    direction = Direction.IN if arrives(probe, view) else Direction.OUT
    found = view.approval(direction)
    if found is None:
        return probe
    key, flow = found
    if flow.to and direction is Direction.OUT:
        return replace(probe, dst=flow.to.address, sport=flow.to.sport, dport=flow.to.dport)
    return replace(probe, sport=key.sport, dport=0 if probe.is_echo else key.dport)


def question(probe: Probe) -> list[str]:
    """What the other node's ovctl is asked about this packet."""
    size = ["--size", str(probe.size), *(["--df"] if probe.df else [])]
    return [*_asked(probe, probe.proto), *size]


def live_question(probe: Probe, flow: Flow) -> list[str]:
    """And about the packets of a flow, as that node has them: `probe`, as far as `flow` says what it is."""
    ports = [said if asked else 0 for asked, said in zip(flow.ports, (probe.sport, probe.dport), strict=True)]
    told = _asked(replace(probe, sport=ports[0], dport=ports[1]), flow.proto)
    return [*told, "--live", "--until-eof"]


def _asked(probe: Probe, proto: int) -> list[str]:
    said = ["ovctl", "trace", str(probe.src), str(probe.dst), "-o", "json"]
    for flag, value in (("--proto", proto), ("--sport", probe.sport), ("--dport", probe.dport)):
        said += [flag, str(value)] if value else []
    return said


# --- What it says --------------------------------------------------------------


def clean(text: str) -> str:
    """The same without what a terminal would obey, and of bounded length."""
    return "".join(char if char.isprintable() else "?" for char in text[:WORD_CHARACTERS])


def hops_told(text: str) -> list[Hop]:
    """From `ovctl trace -o json`. ValueError if it is anything else."""
    told = _json(text)
    if not isinstance(told, list) or not told:
        raise ValueError("no hops")
    return [_hop(each) for each in told]


def _hop(told: object) -> Hop:
    if not isinstance(told, dict):
        raise ValueError("a hop that is no object")
    words = {each.name: told.get(each.name) for each in fields(Hop)}
    if not all(isinstance(word, str) for word in words.values()):
        raise ValueError("a hop without its words")
    cleaned = {name: clean(str(word)) for name, word in words.items()}
    fate = Fate(cleaned.pop("fate"))
    return Hop(fate=fate, **cleaned)


def sighting_told(text: str) -> dict[str, Any]:
    """From a line of `ovctl trace --live -o json`: with all that is shown of it. ValueError."""
    told = _json(text)
    if not isinstance(told, dict):
        raise ValueError("a packet that is no object")
    for key, kind in SHOWN.items():
        if type(told.get(key)) is not kind:
            raise ValueError(f"a packet without {key}")
    if not 0 <= told["time_ns"] < 2**63:
        raise ValueError("a packet of no time")
    return {key: clean(value) if isinstance(value, str) else value for key, value in told.items()}


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("JSON that is too deep") from None


# --- Both in one ---------------------------------------------------------------


def in_one(
    here: Iterable[tuple[str, Hop]], there: Iterable[tuple[str, Hop]], *, arrives: bool
) -> Iterator[dict[str, Any]]:
    """Hops of both nodes, each with its node, in the packet's order and up to where it is lost.

    `arrives`: it comes from there to here.
    """
    for node, hop in chain(there, here) if arrives else chain(here, there):
        yield {"node": node, **asdict(hop)}
        if hop.fate is Fate.LOST:
            return


def of_node(seen: Sighting, node: str) -> dict[str, Any]:
    """A packet of this node, as `sighting_told` has another's."""
    return {**as_json(seen), "node": node}


class InOrder:
    """Packets of several nodes, in the order of their times.

    Each is held back for a while, so that one that was earlier and is told of later comes before it.
    """

    def __init__(self, hold_ns: int) -> None:
        self._hold_ns = hold_ns
        self._held: list[tuple[int, int, int, Mapping[str, Any]]] = []
        self._number = 0

    def add(self, told: Mapping[str, Any], now_ns: int) -> None:
        """One that is told of at `now_ns`, of any clock that does not go back."""
        self._number += 1
        heapq.heappush(self._held, (told["time_ns"], self._number, now_ns, told))

    def due(self, now_ns: int) -> Iterator[Mapping[str, Any]]:
        """Those that were held back for long enough."""
        while self._held and now_ns - self._held[0][2] >= self._hold_ns:
            yield heapq.heappop(self._held)[3]

    def rest(self) -> Iterator[Mapping[str, Any]]:
        """All that are left."""
        while self._held:
            yield heapq.heappop(self._held)[3]
