"""Runs a scenario: traffic, the event, a watch for signs of it, mending, figures."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress

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


def run(
    site: Site,
    scenario: Scenario,
    *,
    times: int = 1,
    seconds: float = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Do it so many times, and again for at least `seconds`. The site is as before afterwards."""
    instrument = Instrument(site.one, site.two)
    windows: list[tuple[int, int]] = []
    log = ""
    named: set[str] = set()
    detected: list[float] = []
    instrument.begin()
    instrument.advance(BEFORE_S)
    deadline = time.monotonic() + seconds
    while len(windows) < times or time.monotonic() < deadline:
        progress(f"{scenario.group}: {scenario.name}" + (f" ({len(windows) + 1})" if windows else ""))
        watch = Watch(site, scenario)
        begin = time.time_ns()
        try:
            scenario.act(site)
            wait_until(lambda: scenario.mended(site), scenario.limit, lambda: f"mended\n{site.log()}", 0.01)
            instrument.flows()
        finally:
            windows.append((begin, time.time_ns()))
            first = watch.close()
        detected += [] if first is None else [first]
        log, named = log + watch.log(), named | watch.complaints
        instrument.advance(AFTER_S)
        scenario.restore(site)
    figures = instrument.finish()
    scenario.finish(site)
    mended = max(end - begin for begin, end in windows) / 1e6
    return Outcome(figures, windows, max(detected, default=None), mended, log, frozenset(named))
