"""Tables in docs/ that are made from the code, and copies of files: `python -m tests.docs` renews them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from ctl.settings.config import SETTINGS, Setting
from metrics import names
from tests.netns.faults import FAULTS, TIMES, WITHOUT_AGENT

DOCS = Path(__file__).parent.parent / "docs"
OPERATING, METRICS, TROUBLESHOOTING = (
    DOCS / f"{name}.md" for name in ("operating", "metrics", "troubleshooting")
)
BEGIN = "<!-- begin: made by python -m tests.docs -->\n"
END = "<!-- end -->\n"


def settings_table() -> str:
    """Every setting of a node, in the order of `--help`."""
    rows = ["| flag | variable | TOML key | default | meaning |", "|---|---|---|---|---|"]
    return "\n".join([*rows, *map(_row, SETTINGS)]) + "\n"


def _row(setting: Setting) -> str:
    default = f"`{setting.default}`" if setting.default else ""
    flags = f"`{setting.flag} {setting.metavar}` | `{setting.variable}` | `{setting.name}`"
    return f"| {flags} | {default} | {setting.help} |"


def metrics_table() -> str:
    """Every metric of a node, in the order of metrics/names.py."""
    rows = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for family in names.TABLE:
        labels = ", ".join(f"`{label}`" for label in family.labels)
        rows.append(f"| `{family.name}` | {family.kind} | {labels} | {family.help} |")
    return "\n".join(rows) + "\n"


def faults_table() -> str:
    """What the doctor is shown in the tests, by which words it names that and its remedy, and how soon."""
    seconds = json.loads(TIMES.read_text())
    rows = ["| what is wrong | `ovctl doctor` says | and to do | after |", "|---|---|---|---|"]
    rows += [
        f"| {each.name} | {each.seen} | {each.remedy} | {seconds[each.name]} s |"
        for each in (*FAULTS, *WITHOUT_AGENT)
    ]
    return "\n".join(rows) + "\n"


TABLES: dict[Path, Callable[[], str]] = {
    OPERATING: settings_table,
    METRICS: metrics_table,
    TROUBLESHOOTING: faults_table,
}
"""Which document holds which table."""


MANIFEST = DOCS.parent / "deploy" / "kubernetes" / "base" / "ovnet.yml"
COPIES = {MANIFEST.parents[1] / "ovnet.yml": MANIFEST}
"""What has to be a file of its own, for a link is only its text where it is fetched by URL; and of what."""


def renewed(text: str, table: str) -> str:
    """The document with its table replaced. ValueError without the two marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError("the document has no begin and end marks")
    return before + BEGIN + table + END + after


if __name__ == "__main__":
    for path, table in TABLES.items():
        path.write_text(renewed(path.read_text(), table()))
    for copy, original in COPIES.items():
        copy.write_bytes(original.read_bytes())
