"""What a soak must show, as laws over its samples. Pure.

Samples are taken when the world looks the same: the same peers, the same containers, the
store answering. So what is counted may not differ at all, and what breathes (memory, open
connections) may not rise.

    exact    every sample after the warm-up equals the first one: routes, rules, pins, ...
    floor    the lowest of the last quarter is no higher than that of the second quarter, plus
             `slack`: what comes and goes (a connection that is kept) does not matter, what
             never goes does
    trend    the growth over the second half, by the median slope (Theil-Sen), stays below
             `slack`: outliers do not matter, a steady rise does
    ceiling  never above `slack`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

WARM_UP: Final = 0.1
"""Part of the run that no law looks at: caches fill, the compiler's child ends."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What was measured at one moment; `at` in seconds since the start."""

    at: float
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Law:
    """What holds for one series; `why` says where the bound comes from."""

    kind: str
    slack: float = 0.0
    why: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a series fared under its law."""

    series: str
    law: Law
    measured: float
    allowed: float
    first: float
    last: float

    @property
    def kept(self) -> bool:
        return self.measured <= self.allowed


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The median of the slopes of all pairs (Theil-Sen), per second; 0 for less than two points."""
    slopes = [
        (y2 - y1) / (x2 - x1)
        for number, (x1, y1) in enumerate(points)
        for x2, y2 in points[number + 1 :]
        if x2 > x1
    ]
    return median(slopes) if slopes else 0.0


def judge(name: str, law: Law, samples: Sequence[Sample]) -> Verdict:
    """One series against its law. ValueError if there are too few samples to tell."""
    settled = samples[int(len(samples) * WARM_UP) :]
    points = [(each.at, each.values[name]) for each in settled]
    if len(points) < 4:
        raise ValueError(f"{name}: {len(points)} samples are too few to judge")
    values = [value for _, value in points]
    quarter, half = max(1, len(values) // 4), len(values) // 2
    if law.kind == "exact":
        measured = max(abs(value - values[0]) for value in values)
    elif law.kind == "floor":
        measured = min(values[-quarter:]) - min(values[quarter : 2 * quarter])
    elif law.kind == "trend":
        late = points[half:]
        measured = slope(late) * (late[-1][0] - late[0][0])
    elif law.kind == "ceiling":
        measured = max(values)
    else:
        raise ValueError(f"no such law: {law.kind}")
    return Verdict(name, law, measured, law.slack, values[0], values[-1])
