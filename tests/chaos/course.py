"""Several scenarios one after the other, each once, under one traffic: the short form, for CI.

Judged by what was lost and when it was sent, and by nothing that a slow machine changes: what
TCP sends again may have been late only.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tests.chaos.datagrams import SHARE
from tests.chaos.figures import Figures, Windows, under_way
from tests.chaos.instrument import Instrument
from tests.chaos.run import Turn, once
from tests.chaos.scenario import FRESH, Scenario, unseen
from tests.chaos.site import Site

RATE: Final = 5000
"""Datagrams a second each way: two cores have to do everything else as well."""
AFTER_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Course:
    """What came of it."""

    turns: tuple[Turn, ...]
    finishes: Windows
    """When each scenario was finished: some of them lose again what they may lose."""
    figures: Figures

    def windows(self, stream: str) -> Windows:
        """Times in which a stream may lose packets."""
        pairs = zip(self.turns, self.finishes, strict=True)
        return [spell for turn, finish in pairs if stream in turn.scenario.lossy
                for spell in ((turn.begin, turn.mended), finish)]  # fmt: skip

    def name_at(self, at: float) -> str:
        """The scenario whose turn it was at `at`, ns."""
        begun = [turn.scenario.name for turn in self.turns if turn.begin <= at]
        return begun[-1] if begun else "before the first"


def run_course(site: Site, scenarios: Sequence[Scenario]) -> Course:
    """Do each once. AssertionError if one is not mended in time."""
    instrument = Instrument(site.one, site.two, RATE, site.ipv6)
    instrument.begin()
    turns, finishes = [], []
    for scenario in scenarios:
        turns.append(once(site, scenario, instrument, AFTER_S))
        began = time.time_ns()
        scenario.finish(site)
        instrument.flows()
        finishes.append((began, time.time_ns()))
    return Course(tuple(turns), finishes, instrument.finish())


def broken_promises(course: Course) -> list[str]:
    """A line for each promise that was not kept, with the scenario that it falls to."""
    figures = course.figures
    found = [f"{turn.scenario.name}: {line}" for turn in course.turns
             for line in unseen(turn.scenario.sight, turn.log, turn.complaints)]  # fmt: skip
    lost = sum(figures.lost_outside(course.windows(stream), stream) for stream in SHARE)
    if lost > figures.backlog:  # what the CPUs had no time for is not the network's loss
        found += _lost(course)
    failed = list(_failed(course))
    if len(failed) > figures.backlog:
        found += failed
    if figures.duplicates:
        found.append(f"{figures.duplicates} datagrams came twice")
    return found + [f"TCP stream of {side.name} is not whole: {side.stream_error or 'other bytes'}"
                    for side in figures.sides if not side.stream_whole]  # fmt: skip


def _lost(course: Course) -> Iterator[str]:
    for stream in SHARE:
        windows = course.windows(stream)
        for way in course.figures.of(stream):
            if way.lost_outside(windows):
                for loss in way.losses:
                    if count := way.outside(loss, windows):
                        yield f"{course.name_at(loss.after)}: {count} datagrams lost: {way.name}"


def _failed(course: Course) -> Iterator[str]:
    windows = course.windows(FRESH)
    for side in course.figures.sides:
        for at, why in side.failures:
            if "failed" in why and not under_way(at, windows):
                yield f"{course.name_at(at * 1e9)}: new flow of {side.name}: {why}"
