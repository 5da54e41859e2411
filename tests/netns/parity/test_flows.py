"""Approvals that come and go under load: nothing is lost, and order is lost for moments only."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import pairwise
from typing import Final

import pytest

from tests.netns.parity.site import Site
from tests.netns.parity.talk import PORT
from tests.netns.parity.test_underlay import sink

TTL: Final = 0.3
FLOWS_MAX: Final = 64
SECONDS: Final = 2.0
"""In which every approval ends several times."""
WINDOW: Final = 256
"""Packets under way at once, at the most."""


@pytest.fixture(scope="module")
def brief() -> Iterator[Site]:
    """Nodes whose approvals are short, and whose map of flows is small."""
    with Site("--bypass", "learned", "--approval-ttl", str(TTL), "--flows-max", str(FLOWS_MAX)) as site:
        yield site


@contextmanager
def line(site: Site, flows: int) -> Iterator[tuple[list[socket.socket], socket.socket]]:
    """Senders in container one, each a flow, and the receiver in container two."""
    with ExitStack() as stack:
        receiver = stack.enter_context(site.two.call(sink))
        make = partial(socket.socket, type=socket.SOCK_DGRAM)
        senders = [stack.enter_context(site.one.call(make)) for _ in range(flows)]
        for sender in senders:
            sender.connect((site.two.address, PORT))
        yield senders, receiver


def drain(receiver: socket.socket, found: list[int], wanted: int) -> None:
    """Receive until there are that many numbers, or none comes any more."""
    with suppress(TimeoutError):
        while len(found) < wanted:
            found.append(struct.unpack("!I", receiver.recv(100))[0])


def test_approvals_that_end_under_load_lose_nothing(brief: Site) -> None:
    with line(brief, 1) as ((sender,), receiver):
        found: list[int] = []
        before, number, end = brief.counters(), 0, time.monotonic() + SECONDS
        while time.monotonic() < end:
            sender.send(struct.pack("!I", number))
            number += 1
            drain(receiver, found, number - WINDOW)
        drain(receiver, found, number)
        counted = brief.counters()["a", "from_container"] - before["a", "from_container"]
    assert sorted(found) == list(range(number))
    assert counted["flow_expired"] >= 2, counted
    assert counted["encap"] > 0.9 * number
    late = sum(value < before_it for before_it, value in pairwise(found))
    assert late <= number / 100, "some overtake those that approve the flow anew, and no others"


def test_more_flows_than_the_map_holds_lose_nothing(brief: Site) -> None:
    flows, rounds = 4 * FLOWS_MAX, 20
    with line(brief, flows) as (senders, receiver):
        found: list[int] = []
        before = brief.counters()
        for number in range(flows * rounds):
            senders[number % flows].send(struct.pack("!I", number))
            drain(receiver, found, number + 1 - WINDOW)
        drain(receiver, found, flows * rounds)
        counted = brief.counters()["a", "from_container"] - before["a", "from_container"]
    assert sorted(found) == list(range(flows * rounds))
    assert counted["flow_unknown"] > flows, "approvals were pushed out"
