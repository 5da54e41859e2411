"""A terminal's output as an SVG: `python -m tests.demo --picture` makes docs/demo.svg of a real run."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from html import escape
from pathlib import Path
from typing import Final, TextIO

PICTURE: Final = Path(__file__).parent.parent / "docs" / "demo.svg"
COLUMNS: Final = 112
"""Longer lines are cut."""
SIZE, PITCH, ADVANCE, MARGIN = 13, 17, 7.83, 14
"""Of the letters, of the lines, of a letter's width, around all: pixels."""

_HEADING: Final = re.compile(r"== \d+\. ")
_CLAIM: Final = re.compile(r"   ok  ")
_TOLD: Final = re.compile(r"   host \w+: .* by eBPF|demo: all steps hold")
_COLOURS: Final = {_HEADING: "#e6edf3", _CLAIM: "#7ee787"}


class Copied(io.TextIOBase):
    """Passes on what is printed, and keeps it."""

    def __init__(self, shown: TextIO) -> None:
        self._shown, self._kept = shown, io.StringIO()

    def write(self, text: str) -> int:
        self._kept.write(text)
        return self._shown.write(text)

    def flush(self) -> None:
        self._shown.flush()

    def lines(self) -> list[str]:
        return self._kept.getvalue().splitlines()


def chosen(lines: Sequence[str]) -> list[str]:
    """Of a run of the demo: its steps, what was claimed and held, and who carried the packets."""
    return [line for line in lines if any(kind.match(line) for kind in (_HEADING, _CLAIM, _TOLD))]


def picture(lines: Sequence[str]) -> str:
    """These lines on a dark ground, in the letters of the reader's own terminal."""
    width, height = int(COLUMNS * ADVANCE) + 2 * MARGIN, len(lines) * PITCH + 2 * MARGIN
    rows = [
        f'<text x="{MARGIN}" y="{MARGIN + SIZE + PITCH * number}" fill="{_colour(line)}">'
        f"{escape(line[:COLUMNS])}</text>"
        for number, line in enumerate(lines)
    ]
    frame = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace" '
        f'font-size="{SIZE}" xml:space="preserve">'
    )
    ground = f'<rect width="{width}" height="{height}" rx="8" fill="#0d1117"/>'
    return "\n".join([frame, ground, *rows, "</svg>", ""])


def _colour(line: str) -> str:
    return next((colour for kind, colour in _COLOURS.items() if kind.match(line)), "#9da7b3")


def drawn(run: Callable[[], int]) -> int:
    """What `run` returns; if it is 0, docs/demo.svg is of what it has printed."""
    copied = Copied(sys.stdout)
    with redirect_stdout(copied):
        code = run()
    if code == 0:
        PICTURE.write_text(picture(["# make demo", *chosen(copied.lines())]))
    return code
