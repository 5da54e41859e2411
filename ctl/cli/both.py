"""`ovctl trace --peer-command`: what this node and the other one tell, in one answer."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from ctl.cli.output import emit, say
from ctl.core.elsewhere import (
    InOrder,
    arrives,
    as_there,
    clean,
    hops_told,
    in_one,
    of_node,
    other_host,
    question,
    sighting_told,
)
from ctl.core.errors import AgentUnreachable, NotFound
from ctl.core.family import of_version
from ctl.core.path import Fate, Hop, hops
from ctl.core.sighting import worded
from ctl.process.elsewhere import END_S, Elsewhere

if TYPE_CHECKING:
    from ctl.cli.live import Listener
    from ctl.core.abi import Ip
    from ctl.core.decision import Probe, View
    from ctl.core.elsewhere import PeerCommand
    from ctl.core.model import Lease

COLUMNS: Final = ("node", "hop", "at", "by", "fate", "reason", "seen")
PATIENCE_S: Final = 30.0
"""How long the other node has to answer, or to begin: somebody may have to type a password."""
HOLD_NS: Final = 10**9
"""How much later than the other one a node may tell of a packet."""
ANSWER_LINES: Final = 1000
"""Most of an answer that is read."""


def of_packet(probe: Probe, view: View, leases: Sequence[Lease], peer_command: PeerCommand, fmt: str) -> int:
    """Print the hops at both nodes; returns the exit code. Where it is lost before, nobody else is asked.

    AgentUnreachable, after what is known was printed, if that one does not tell; NotFound as `way`.
    """
    here = list(hops(probe, view))
    host, there, failure = other_host(probe, view), list[Hop](), None
    if host and (arrives(probe, view) or not any(hop.fate is Fate.LOST for hop in here)):
        try:
            there = ask(str(host), [*way(peer_command, host, leases), *question(as_there(probe, view))])
        except AgentUnreachable as error:
            failure = error
    both = [[(str(node), hop) for hop in told] for node, told in ((view.node.host, here), (host, there))]
    rows = list(in_one(*both, arrives=arrives(probe, view)))
    emit(rows, COLUMNS, fmt)
    if failure:
        raise failure
    return int(any(row["fate"] is Fate.LOST for row in rows))


def way(peer_command: PeerCommand, host: Ip, leases: Sequence[Lease]) -> list[str]:
    """The words that lead to a node. NotFound if they ask for its name, and there is none to use."""
    try:
        members = map(of_version(host.version).member, leases)
        name = next((each.node for each in members if each and each.host == host), "")
        return peer_command.argv(host, name)
    except ValueError as error:
        raise NotFound(f"--peer-command: {host}: {error}") from None


def ask(host: str, argv: Sequence[str]) -> list[Hop]:
    """The hops at the other node. AgentUnreachable if it does not tell them."""
    words: deque[str] = deque([""], maxlen=1)
    with Elsewhere(argv, words.append) as there:
        text = "".join(islice(there.rest(PATIENCE_S), ANSWER_LINES))
        code = there.code()
    try:
        return hops_told(text)
    except ValueError as error:
        why = _bare(words[0]) or str(error)
        raise AgentUnreachable(
            f"{host} does not tell its hops ({argv[0]}, exit code {code}): {why}"
        ) from None


def show(here: str, packets: Listener, other: str, there: Elsewhere, count: int | None, fmt: str) -> int:
    """Print packets of both nodes in the order of their times, `count` at the most; returns the exit code.

    AgentUnreachable if the other one ends before this one does, or tells of what is no packet.
    """
    with closing(_in_order(here, packets, other, there)) as told:
        for each in islice(told, count):
            sys.stdout.write(f"{_text(each, fmt)}\n")
            sys.stdout.flush()
    say(f"{here}: {packets.summary()}")
    return 0


def relay(host: str, line: str) -> None:
    """Say a line of the other node's stderr."""
    say(f"{host}: {_bare(line)}")


def _bare(line: str) -> str:
    return clean(line.removeprefix("ovctl: ").removeprefix("error: "))


def _text(told: Mapping[str, Any], fmt: str) -> str:
    if fmt == "json":
        return json.dumps(told, sort_keys=True)
    caption = f" ({told['caption']})" if fmt == "wide" else ""
    return f"{told['node']} {worded(told)}{caption}"


def _in_order(
    here: str, packets: Listener, other: str, there: Elsewhere
) -> Generator[Mapping[str, Any], None, None]:
    order = InOrder(HOLD_NS)
    for seen in packets.rounds():
        now = time.monotonic_ns()
        if seen:
            order.add(of_node(seen, here), now)
        for line in there.come():
            order.add(_told(line, other), now)
        if there.ended:
            raise AgentUnreachable(f"{other} tells of no more packets (exit code {there.code()})")
        yield from order.due(now)
    for line in there.rest(END_S):
        order.add(_told(line, other), 0)
    yield from order.rest()


def _told(line: str, other: str) -> dict[str, Any]:
    try:
        return {**sighting_told(line), "node": other}
    except ValueError as error:
        raise AgentUnreachable(f"{other} tells of what is no packet: {error}") from None
