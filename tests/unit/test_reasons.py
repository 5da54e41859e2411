"""A reason lives in four places; these tests fail when one was forgotten."""

from __future__ import annotations

import re
from pathlib import Path

from ctl.core.abi import REASON_MAX
from ctl.core.reasons import REASONS, reason

ROOT = Path(__file__).parents[2]


def header() -> dict[str, int]:
    """The enum of bpf/reason.h: label -> number."""
    text = (ROOT / "bpf" / "reason.h").read_text()
    return {name.lower(): int(number) for name, number in re.findall(r"REASON_(\w+)\s*=\s*(\d+)", text)}


def documented() -> dict[int, tuple[str, str]]:
    """The tables of docs/reasons.md: number -> (label, verdict)."""
    text = (ROOT / "docs" / "reasons.md").read_text()
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| (\w+) \| [^|]+ \| [^|]+ \|$", text, re.MULTILINE)
    return {int(number): (label, verdict) for number, label, verdict in rows}


def test_python_and_c_have_the_same_reasons() -> None:
    in_c = header()
    assert (in_c.pop("none"), in_c.pop("max")) == (0, REASON_MAX)
    assert in_c == {row.label: number for number, row in REASONS.items()}


def test_every_reason_is_documented_with_its_verdict() -> None:
    assert documented() == {number: (row.label, row.verdict) for number, row in REASONS.items()}


def test_labels_are_unique_and_numbers_fit_the_counters() -> None:
    assert len({row.label for row in REASONS.values()}) == len(REASONS)
    assert all(0 < number < REASON_MAX for number in REASONS)
    assert all(number == row.number for number, row in REASONS.items())


def test_an_unknown_number_is_shown() -> None:
    assert reason(63).label == "reason_63"
