"""Tables in docs/ that are made from the code: `python -m tests.docs` renews them."""

from __future__ import annotations

from pathlib import Path

from ctl.config import SETTINGS, Setting

OPERATING = Path(__file__).parent.parent / "docs" / "operating.md"
BEGIN = "<!-- begin: made by python -m tests.docs -->\n"
END = "<!-- end -->\n"


def settings_table() -> str:
    """Every setting of a node, in the order of `--help`."""
    rows = ["| flag | variable | TOML key | default | meaning |", "|---|---|---|---|---|"]
    return "\n".join([*rows, *map(_row, SETTINGS)]) + "\n"


def _row(setting: Setting) -> str:
    default = f"`{setting.default}`" if setting.default else ""
    names = f"`{setting.flag} {setting.metavar}` | `{setting.variable}` | `{setting.name}`"
    return f"| {names} | {default} | {setting.help} |"


def renewed(text: str) -> str:
    """The document with its table made anew. ValueError without the two marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError("the document has no begin and end marks")
    return before + BEGIN + settings_table() + END + after


if __name__ == "__main__":
    OPERATING.write_text(renewed(OPERATING.read_text()))
