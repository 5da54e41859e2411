"""The measure of starts runs; what it finds is asserted only where it is no time."""

from __future__ import annotations

from tests.bench.start import LIMITS, measure


def test_a_short_run_yields_every_figure() -> None:
    found = measure(rounds=1, idle=0.1)
    print(found)
    assert set(LIMITS) < set(found)
    assert found["RSS MB"][0] < 1.2 * LIMITS["RSS MB"]
