"""What a scenario is: what is done, what is promised, what the operator sees. And how it is judged. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.chaos import site as sites
from tests.chaos.datagrams import IPV6, OPTIONS, PLAIN, SERVICE, SHARE
from tests.chaos.figures import Figures, Windows
from tests.chaos.site import Build, Site

FRESH: Final = "new flows"
ALL: Final = frozenset({PLAIN, OPTIONS, SERVICE, FRESH, IPV6})
KERNEL_PATH: Final = frozenset({OPTIONS, FRESH, PLAIN, SERVICE, IPV6})
"""What needs the kernel path: packets with options, new flows, and of each approved flow a packet every
`--approval-ttl`, and all of it where that one falls into the time."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What the operator sees; each is checked where it is not empty."""

    log: str = ""
    """Regular expression for a line that the agent writes meanwhile."""
    status: str = ""
    """Part of what `ovctl status` names while it lasts."""
    metric: str = ""
    """Says so on /metrics; not checked."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One row of the table. Things happen to node `a` of a site."""

    group: str
    name: str
    done: str
    """What is done, for people."""
    act: Callable[[Site], None]
    """Does it, and returns when it is done. Not what puts it right: that is the agent's."""
    mended: Callable[[Site], bool] = Site.healthy
    """Whether all is as it should be again; asked again and again after `act`."""
    sight: Sight = Sight()
    lossy: frozenset[str] = frozenset()
    """What may lose packets between `act` and its mending; nothing else may lose any, ever."""
    why: str = ""
    """Why it cannot be none."""
    restore: Callable[[Site], None] = lambda _: None
    """Puts the site back as it was, under traffic: this may lose nothing either."""
    finish: Callable[[Site], None] = lambda _: None
    """The same for what no traffic may see."""
    times: int = 5
    """How often `make chaos` does it, if not told for how long."""
    build: Build = sites.pair
    limit: float = 30
    """Seconds in which it has to be mended, on a machine that does other things as well."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one scenario."""

    figures: Figures
    windows: Windows
    detected_ms: float | None
    """From the event to the first sign of it; the worst of all times. None: there is nothing to detect."""
    mended_ms: float
    log: str = ""
    """What the agent of a said meanwhile."""
    complaints: frozenset[str] = field(default_factory=frozenset)
    """What its report named meanwhile."""


def broken(scenario: Scenario, outcome: Outcome) -> list[str]:
    """Promises that were not kept, a line each."""
    figures, windows = outcome.figures, outcome.windows
    found = []
    for stream in SHARE:
        lost = figures.lost_outside(windows, stream) if stream in scenario.lossy else figures.lost(stream)
        if lost > figures.backlog:  # what the CPUs had no time for is not the network's loss
            found.append(f"{lost} datagrams lost: {stream}")
    failed = figures.failed_outside(windows if FRESH in scenario.lossy else ())
    if len(failed) > figures.backlog:
        found.append(f"{len(failed)} new flows failed: {', '.join(sorted(set(failed)))}")
    if figures.duplicates:
        found.append(f"{figures.duplicates} datagrams came twice")
    found += [f"TCP stream of {side.name} is not whole: {side.stream_error or 'other bytes'}"
              for side in figures.sides if not side.stream_whole]  # fmt: skip
    return [*found, *unseen(scenario.sight, outcome.log, outcome.complaints)]


def unseen(sight: Sight, log: str, complaints: Collection[str]) -> list[str]:
    """What the operator should have seen, and could not."""
    found = []
    if sight.log and not re.search(sight.log, log):
        found.append(f"the log has no line like: {sight.log}")
    if sight.status and not any(sight.status in line for line in complaints):
        found.append(f"status did not say: {sight.status}")
    return found


HEADS: Final = ("scenario", "lost", "dup", "late", "gap ms", "tcp again", "new flows", "failed", "starved",
                "eBPF", "kernel", "detected", "mended")  # fmt: skip


def row(scenario: Scenario, outcome: Outcome) -> tuple[str, ...]:
    """For the table of `make chaos`."""
    figures = outcome.figures
    detected = "" if outcome.detected_ms is None else f"{outcome.detected_ms:.0f} ms"
    return (
        f"{scenario.group}: {scenario.name}",
        f"{figures.lost()} of {figures.sent}",
        str(figures.duplicates),
        str(figures.late),
        f"{figures.longest_gap_ms:.0f}",
        str(figures.retransmitted),
        str(figures.opened),
        str(figures.failed),
        str(figures.starved + figures.backlog),
        str(figures.carried),
        str(figures.passed),
        detected,
        f"{outcome.mended_ms:.0f} ms",
    )


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table with these rows under HEADS."""
    every = [HEADS, *rows]
    widths = [max(len(line[column]) for line in every) for column in range(len(HEADS))]
    return ["  ".join(
        cell.ljust(width) if column == 0 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(line, widths, strict=True))
    ) for line in every]  # fmt: skip
