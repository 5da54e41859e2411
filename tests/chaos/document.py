"""The table of scenarios in docs/operating.md: `python -m tests.chaos.document` renews it.

What is promised comes from the scenarios, what was measured from measured.json beside this file, which
`make chaos ARGS='--output tests/chaos/measured.json'` writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from tests.chaos.datagrams import IPV6, OPTIONS, PLAIN, SERVICE
from tests.chaos.scenario import ALL, Outcome, Scenario
from tests.chaos.scenarios import SCENARIOS

OPERATING: Final = Path(__file__).parents[2] / "docs" / "operating.md"
MEASURED: Final = Path(__file__).with_name("measured.json")
BEGIN: Final = "<!-- begin: made by python -m tests.chaos.document -->\n"
END: Final = "<!-- end -->\n"
HEADS: Final = ("event", "may be lost", "seen by the operator", "lost", "detected", "mended")


def measured(found: Iterable[tuple[Scenario, Outcome]]) -> dict[str, dict[str, float | None]]:
    """What is kept of a run, by scenario."""
    return {
        key(scenario): {
            "lost": outcome.figures.lost(),
            "sent": outcome.figures.sent,
            "times": len(outcome.windows),
            "detected_ms": None if outcome.detected_ms is None else round(outcome.detected_ms),
            "mended_ms": round(outcome.mended_ms),
        }
        for scenario, outcome in found
    }


def key(scenario: Scenario) -> str:
    """Names it for good."""
    return f"{scenario.group}: {scenario.name}"


def tables(figures: Mapping[str, Mapping[str, float | None]]) -> str:
    """A table for each group."""
    groups = dict.fromkeys(each.group for each in SCENARIOS)
    return "\n".join(_table(group, figures) for group in groups)


def _table(group: str, figures: Mapping[str, Mapping[str, float | None]]) -> str:
    rule = "|".join("---" for _ in HEADS)
    rows = [_row(each, figures.get(key(each), {})) for each in SCENARIOS if each.group == group]
    body = "".join(f"| {' | '.join(line)} |\n" for line in rows)
    return f"#### {group}\n\n| {' | '.join(HEADS)} |\n|{rule}|\n{body}"


def _row(scenario: Scenario, figures: Mapping[str, float | None]) -> tuple[str, ...]:
    lost = f"{figures['lost']:,} of {figures['sent']:,}" if figures else ""
    times = figures.get("times") or 0
    return (
        f"{scenario.name}: {scenario.done}",
        promise(scenario),
        seen(scenario),
        f"{lost}, {times:.0f} times" if times > 1 else lost,
        _ms(figures.get("detected_ms")),
        _ms(figures.get("mended_ms")),
    )


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.0f} ms"


def promise(scenario: Scenario) -> str:
    """What may be lost, and why."""
    if not scenario.lossy:
        return "nothing"
    if scenario.lossy == ALL:
        return f"all until mended: {scenario.why}"
    who = {
        PLAIN: "approved flows",
        OPTIONS: "what only the kernel path carries",
        SERVICE: "what goes to a service",
    }
    # What holds for approved flows of IPv4 holds for those of IPv6.
    words = [who.get(each, each) for each in sorted(scenario.lossy - {IPV6})]
    return f"{', '.join(words)}, until mended: {scenario.why}"


def seen(scenario: Scenario) -> str:
    """Log, status, metric."""
    sight = scenario.sight
    logged = sight.log.replace("[0-9a-f]+", "...").replace("\\", "")
    words = [
        f"log `{logged}`" if sight.log else "",
        f"status `{sight.status}`" if sight.status else "",
        sight.metric,
    ]
    return "; ".join(word for word in words if word)


def renewed(text: str) -> str:
    """The document with its tables made anew. ValueError without the two marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError("the document has no begin and end marks")
    return before + BEGIN + "\n" + tables(json.loads(MEASURED.read_text())) + "\n" + END + after


if __name__ == "__main__":
    OPERATING.write_text(renewed(OPERATING.read_text()))
