"""The measure of many peers runs, with few; what it finds is asserted only where it is no time."""

from __future__ import annotations

from tests.bench.scale import LIMITS, measure


def test_a_short_run_yields_every_figure() -> None:
    # The burst that leaves is less than half of all: more would be a mass removal, not believed at once.
    figures = measure(nodes=1500)
    print(figures)
    assert set(LIMITS) < set(figures)
    assert all(value >= 0 for value in figures.values())
    assert figures["RSS after MB"] < LIMITS["RSS MB"]
