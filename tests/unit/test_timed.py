"""A socket whose whole use has a time limit."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from ctl.process.timed import TimedSocket


class Pair:
    """Two ends of a connection, ours with 10 s, by a clock that the test sets."""

    def __init__(self, ours: socket.socket, theirs: socket.socket) -> None:
        self.now = 0.0
        self.theirs = theirs
        self.timed = TimedSocket(ours, 10)
        self.reader = self.timed.makefile()


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    clock = SimpleNamespace(monotonic=lambda: 0.0)
    monkeypatch.setattr("ctl.process.timed.time", clock)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        made = Pair(ours, theirs)
        clock.monotonic = lambda: made.now
        with made.reader:
            yield made


def test_an_end_that_sends_a_byte_now_and_then_is_late(pair: Pair) -> None:
    for pair.now in (0.0, 4.0, 8.0):
        pair.theirs.send(b"x")
        assert pair.reader.read(1) == b"x"
    pair.now = 12.0
    pair.theirs.send(b"x")
    with pytest.raises(TimeoutError):
        pair.reader.read(1)


def test_each_call_may_take_what_is_left_of_the_time(pair: Pair) -> None:
    pair.now = 7.0
    pair.timed.sendall(b"x")
    assert pair.timed.socket.gettimeout() == 3.0
    pair.now = 10.0
    with pytest.raises(TimeoutError):
        pair.timed.sendall(b"x")


def test_time_can_be_allowed_anew_or_without_end(pair: Pair) -> None:
    pair.now = 9.0
    pair.timed.allow(10)
    pair.now = 18.0
    pair.timed.sendall(b"one")
    pair.timed.allow(None)
    pair.now = 1e9
    pair.timed.sendall(b"two")
    assert pair.theirs.recv(6) == b"onetwo"
