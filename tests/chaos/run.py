"""Runs a scenario: traffic, the event, a watch for signs of it, mending, figures."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from tests.chaos.instrument import Instrument
from tests.chaos.scenario import Outcome, Scenario
from tests.chaos.site import Site, complaints
from tests.process import wait_until

BEFORE_S = 0.5
AFTER_S = 0.5
WATCH_S = 0.02


class Watch:
    """Looks at a's log and report from the event on: when there was a first sign, and all complaints."""

    def __init__(self, site: Site, scenario: Scenario) -> None:
        self._site, self._sight = site, scenario.sight
        self._length = len(site.log())
        self._end = threading.Event()
        self.began = time.time()
        self.seen_at: float | None = None
        self.complaints: set[str] = set()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._end.is_set():
            with suppress(ValueError, KeyError, OSError):  # an agent that is just starting
                self._look()
            self._end.wait(WATCH_S)

    def _look(self) -> None:
        self.complaints |= set(complaints(self._site.a))
        named = self._sight.status and any(self._sight.status in line for line in self.complaints)
        logged = self._sight.log and re.search(self._sight.log, self.log())
        if self.seen_at is None and (named or logged):
            self.seen_at = time.time()

    def log(self) -> str:
        """What was said since the event."""
        return self._site.log()[self._length :]

    def close(self) -> float | None:
        """Look once more; ms from the event to the first sign."""
        self._end.set()
        self._thread.join()
        with suppress(ValueError, KeyError, OSError):
            self._look()
        return None if self.seen_at is None else (self.seen_at - self.began) * 1e3


@dataclass(frozen=True, slots=True)
class Turn:
    """A scenario that was done once; times in ns since the epoch."""

    scenario: Scenario
    begin: int
    mended: int
    log: str
    """What the agent of a said until it was mended."""
    complaints: frozenset[str]
    detected_ms: float | None


def once(site: Site, scenario: Scenario, instrument: Instrument, after: float = AFTER_S) -> Turn:
    """Do it, wait until it is mended, look on for `after` seconds, put the site back."""
    watch = Watch(site, scenario)
    begin = time.time_ns()
    try:
        scenario.act(site)
        wait_until(lambda: scenario.mended(site), scenario.limit, lambda: f"mended\n{site.log()}", 0.01)
        instrument.flows()
    finally:
        mended = time.time_ns()
        detected = watch.close()
    turn = Turn(scenario, begin, mended, watch.log(), frozenset(watch.complaints), detected)
    instrument.advance(after)
    scenario.restore(site)
    return turn


def run(
    site: Site,
    scenario: Scenario,
    *,
    times: int = 1,
    seconds: float = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Do it so many times, and again for at least `seconds`. The site is as before afterwards."""
    instrument = Instrument(site.one, site.two, ipv6=site.ipv6)
    turns: list[Turn] = []
    instrument.begin()
    instrument.advance(BEFORE_S)
    deadline = time.monotonic() + seconds
    while len(turns) < times or time.monotonic() < deadline:
        progress(f"{scenario.group}: {scenario.name}" + (f" ({len(turns) + 1})" if turns else ""))
        turns.append(once(site, scenario, instrument))
    figures = instrument.finish()
    scenario.finish(site)
    return Outcome(
        figures,
        [(turn.begin, turn.mended) for turn in turns],
        max((turn.detected_ms for turn in turns if turn.detected_ms is not None), default=None),
        max(turn.mended - turn.begin for turn in turns) / 1e6,
        "".join(turn.log for turn in turns),
        frozenset().union(*(turn.complaints for turn in turns)),
    )
