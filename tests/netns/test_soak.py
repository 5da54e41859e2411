"""A soak of a few rounds: what `make soak` does for hours."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.__main__ import MIN_ROUNDS, broken, soak, summary
from tests.soak.plot import draw


# Some 30 s on a machine of its own; one that is starved has taken more than the usual limit.
@pytest.mark.timeout(900)
def test_a_few_rounds_leave_nothing_behind_and_lose_nothing(tmp_path: Path) -> None:
    """Memory is not judged: a node that has just started still fills its caches."""
    told: list[int] = []
    result = soak(0, 1, (0.2,), lambda each: told.append(each["rounds"]))
    assert told == list(range(1, MIN_ROUNDS + 1))
    assert [line for line in broken(result) if "rss_mb" not in line] == [], "\n".join(summary(result))
    assert result["datagrams"]["sent"] > 0
    draw(result, tmp_path / "soak.svg")
    assert "<svg" in (tmp_path / "soak.svg").read_text()
