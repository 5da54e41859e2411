"""How fast echoes follow one another, by a clock that only waiting moves."""

from __future__ import annotations

import select
import socket
from ipaddress import IPv4Address
from types import SimpleNamespace

import pytest

from ctl.kernel import echo as module
from ctl.kernel.echo import SMALL, Echo

SOURCE = IPv4Address("192.0.2.1")
PEERS = [IPv4Address("198.51.100.0") + number for number in range(100)]


class World:
    """A socket whose requests are answered at once, or never, the poll(2) that waits for it, and the time."""

    def __init__(self) -> None:
        self.now, self.answers, self.sent = 0.0, True, 0
        self._replies: list[bytes] = []

    def sendto(self, message: bytes, _address: tuple[str, int]) -> None:
        self.sent += 1
        if self.answers:
            self._replies.append(b"\x45" + bytes(19) + b"\0" + message[1:])

    def recv(self, _most: int) -> bytes:
        if not self._replies:
            raise BlockingIOError
        return self._replies.pop(0)

    def poll(self, milliseconds: float) -> list[int]:
        self.now += 1e-6 if self._replies else milliseconds / 1000
        return [select.POLLIN] if self._replies else []

    def ignore(self, *_: object) -> None: ...

    setsockopt = bind = setblocking = close = register = ignore


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: made.now))
    monkeypatch.setattr(module, "select", SimpleNamespace(poll=lambda: made, POLLIN=select.POLLIN))
    monkeypatch.setattr(socket, "socket", lambda *_: made)
    return made


def test_no_more_than_five_requests_go_out_in_a_millisecond_however_soon_they_are_answered(
    world: World,
) -> None:
    with Echo(SOURCE) as echo:
        answers = echo.ask(PEERS, SMALL, 1, 0.6)
    assert all(len(each.round_trips) == 1 for each in answers.values())
    assert 0.019 < world.now < 0.1


def test_one_peer_is_asked_a_hundred_times_a_second_at_the_most(world: World) -> None:
    with Echo(SOURCE) as echo:
        answers = echo.ask(PEERS[:1], SMALL, 50, 0.6)
    assert len(answers[PEERS[0]].round_trips) == 50
    assert 0.49 < world.now < 0.6


def test_what_is_not_answered_is_waited_for_once_and_not_after_each_round(world: World) -> None:
    world.answers = False
    with Echo(SOURCE) as echo:
        answers = echo.ask(PEERS[:1], SMALL, 50, 0.6)
    assert (answers[PEERS[0]].sent, answers[PEERS[0]].round_trips) == (50, ())
    assert world.now == pytest.approx(50 * 0.01 + 0.6, abs=0.1)


def test_once_it_is_enough_nothing_more_is_sent_and_what_was_is_told(world: World) -> None:
    with Echo(SOURCE) as echo:
        answers = echo.ask(PEERS, SMALL, 3, 0.6, enough=lambda: world.sent == 150)
    assert world.sent == 150
    assert [answers[PEERS[0]].sent, answers[PEERS[99]].sent] == [2, 1]
    assert sum(len(each.round_trips) for each in answers.values()) == 150
