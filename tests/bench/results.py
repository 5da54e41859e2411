"""Numbers into medians, ratios and a table. Pure.

A ratio is the median of the rounds' ratios: a slow moment of the machine slows both sides of a
round. A difference is claimed only where the ratio is more than two standard deviations away
from 1: less than that a table shows as "=".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median, stdev
from typing import Any

BASES = ("kernel-vxlan", "routed", "direct")
"""Paths that the others are compared with."""
OFFLOADS_ON, WIRE, HALTING = SETTINGS = ("offloads-on", "wire", "halting")
"""The underlay as a veth is, or like a wire; and as the first, with CPUs that halt when idle."""


@dataclass(frozen=True, slots=True)
class Series:
    """The values of one measure on one path, a value a round."""

    values: tuple[float, ...]
    unit: str

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def stdev(self) -> float:
        return stdev(self.values) if len(self.values) > 1 else 0.0

    def json(self) -> dict[str, object]:
        """As in the results file."""
        return {"median": self.median, "stdev": self.stdev, "values": list(self.values), "unit": self.unit}


Results = Mapping[str, Mapping[str, Series]]
"""Path -> measure -> series."""


class Collected:
    """Values as they come, a value a round."""

    def __init__(self) -> None:
        self._values: dict[str, dict[str, tuple[list[float], str]]] = {}

    def add(self, path: str, measure: str, unit: str, value: float) -> None:
        self._values.setdefault(path, {}).setdefault(measure, ([], unit))[0].append(value)

    def results(self) -> dict[str, dict[str, Series]]:
        return {
            path: {name: Series(tuple(values), unit) for name, (values, unit) in found.items()}
            for path, found in self._values.items()
        }


def as_json(results: Results) -> dict[str, dict[str, object]]:
    """As in the results file."""
    return {path: {name: series.json() for name, series in found.items()} for path, found in results.items()}


def from_json(found: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Series]]:
    """What `as_json` made."""
    return {
        path: {name: Series(tuple(each["values"]), each["unit"]) for name, each in measures.items()}
        for path, measures in found.items()
    }


def comparable(results: Results, path: str, measure: str) -> Series | None:
    """What others may be compared with; None where it was not measured, or is nothing, which says nothing."""
    found = results.get(path, {}).get(measure)
    return found if found and found.median else None


def ratio(one: Series, other: Series) -> Series:
    """`one` over `other`, round by round; of the medians if they are not of the same rounds."""
    if len(one.values) != len(other.values) or not all(other.values):
        return Series((one.median / other.median,), "x")
    return Series(tuple(a / b for a, b in zip(one.values, other.values, strict=True)), "x")


def differs(one: Series, other: Series) -> bool:
    """Whether their ratio is more than two standard deviations away from 1."""
    found = ratio(one, other)
    return abs(found.median - 1) > 2 * found.stdev


def ratios(results: Results, path: str) -> dict[str, dict[str, float]]:
    """Measure -> base -> `path` over the base."""
    return {
        measure: {
            base: ratio(series, other).median
            for base in BASES
            if base != path and (other := comparable(results, base, measure))
        }
        for measure, series in results[path].items()
    }


def within_noise(results: Results, path: str) -> dict[str, list[str]]:
    """Measure -> bases that `path` does not differ from by more than two standard deviations."""
    return {
        measure: [base for base in found if not differs(results[path][measure], results[base][measure])]
        for measure, found in ratios(results, path).items()
    }


def table(results: Results) -> list[str]:
    """Lines for people: a row a path, a column a measure, with the spread and the ratio."""
    unit = {name: series.unit for found in results.values() for name, series in found.items()}
    measures = list(unit)
    head = ["path", *(f"{name} {unit[name]}" for name in measures)]
    rows = [[path, *(_cell(results, path, name) for name in measures)] for path in results]
    return _aligned([head, *rows])


def _cell(results: Results, path: str, measure: str) -> str:
    series = results[path].get(measure)
    if series is None:  # not every path has injected packets
        return ""
    text = f"{series.median:,.1f} ±{series.stdev:,.1f}" if series.median < 1e4 else f"{series.median:,.0f}"
    base = comparable(results, BASES[0], measure)
    if base is None or path == BASES[0]:
        return text
    return f"{text} ({ratio(series, base).median:.2f}x)" if differs(series, base) else f"{text} (=)"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
