"""When a watch of etcd asks whether the other end of a silent stream is still there."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ctl.core.errors import StoreAway
from ctl.store.etcd.watch import Pace, Watch

PACE = Pace(probe=10.0, full_list=1e9)


class Doubting(Watch):
    """A watch without threads and without etcd, by a clock that goes on when it is waited for."""

    def __init__(self, heard: list[float], end: float) -> None:
        """`heard`: when the stream says something; `end`: when the watch is closed."""
        self.now = 0.0
        self.asked: list[float] = []
        self.aborted: list[float] = []
        self.away = False
        self._coming, self._end = heard, end
        self._pace, self._error, self._heard = PACE, None, 0.0
        self._closing = SimpleNamespace(wait=self._wait)  # type: ignore[assignment]

    def _wait(self, seconds: float) -> bool:
        assert seconds > 0, "else it would be a hot loop"
        self.now += seconds
        self._heard = max([self._heard, *(at for at in self._coming if at <= self.now)])
        return self.now >= self._end

    def _probe(self) -> None:
        self.asked.append(self.now)
        if self.away:
            raise StoreAway("no answer")

    def _abort(self) -> None:
        self.aborted.append(self.now)


@pytest.fixture
def doubting(monkeypatch: pytest.MonkeyPatch) -> Doubting:
    made = Doubting([4.0, 13.0], 50.0)
    monkeypatch.setattr("ctl.store.etcd.watch.time", SimpleNamespace(monotonic=lambda: made.now))
    return made


def test_a_member_is_asked_when_its_silence_has_lasted_and_not_a_beat_later(doubting: Doubting) -> None:
    doubting._doubt()
    assert doubting.asked == [23.0, 33.0, 43.0]
    assert doubting.aborted == []


def test_a_member_that_does_not_answer_is_left_and_asked_again_later(doubting: Doubting) -> None:
    doubting.away = True
    doubting._doubt()
    assert doubting.asked == doubting.aborted == [23.0, 33.0, 43.0]
