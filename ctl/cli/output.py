"""How results are shown: `-o table|wide|json` on stdout, words on stderr.

Tables are for people and may change; JSON is for programs and only grows. Nothing is coloured.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Final

FORMATS: Final = ("table", "wide", "json")

Row = Mapping[str, Any]
"""One result: plain values, or ones whose `str` is their form in JSON (addresses, MACs)."""


def _show(value: object) -> str:
    if value is None or value == "" or value == []:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return str(value)


def duration(seconds: float) -> str:
    """For people, with two units at most: `3h12m`."""
    whole = max(0, int(seconds))
    for size, unit, smaller, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // smaller}{name}"
    return f"{whole}s"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table: which key of the row, under which title, shown how."""

    key: str
    title: str = ""
    """The column's heading; "" stands for the key in capitals."""
    wide: bool = False
    """Whether the column is shown by `-o wide` only."""
    show: Callable[[Any], str] = _show

    @property
    def heading(self) -> str:
        return self.title or self.key.upper()


def add_output_option(parser: argparse.ArgumentParser, *more: str) -> None:
    """Give `parser` `-o`/`--output`, stored as `args.output`; `more`: formats of its own."""
    choices = (*FORMATS, *more)
    parser.add_argument("-o", "--output", choices=choices, default="table", help="default: table")


def table(rows: Iterable[Row], columns: Sequence[Column]) -> str:
    """Left-aligned columns, two spaces apart, with a heading; ends with a newline."""
    rows = list(rows)
    aligned = [_aligned([column.heading, *_cells(rows, column)]) for column in columns]
    return "".join("  ".join(line).rstrip() + "\n" for line in zip(*aligned, strict=True))


def _cells(rows: Sequence[Row], column: Column) -> Sequence[str]:
    values: list[Any] = [row.get(column.key) for row in rows]
    if column.show is _show and set(map(type, values)) == {str} and all(values):
        return values  # as they are shown anyway: a hundred thousand calls less
    return list(map(column.show, values))


def _aligned(cells: Sequence[str]) -> Iterator[str]:
    return map(str.ljust, cells, repeat(max(map(len, cells))))


def shown(rows: Iterable[Row], columns: Sequence[Column], width: int | None) -> str:
    """A table, or where a terminal of `width` columns is too narrow for it, a line for each value.

    None: it is no terminal that it goes to.
    """
    listed = list(rows)
    text = table(listed, columns)
    if width is None or max(map(len, text.splitlines())) <= width:
        return text
    return "\n".join(_record(row, columns, width) for row in listed)


def _record(row: Row, columns: Sequence[Column], width: int) -> str:
    """A row's values under one another, each behind its column's heading and broken at spaces."""
    import textwrap

    indent = max(len(column.heading) for column in columns) + 2
    wrapper = textwrap.TextWrapper(
        max(width, indent + 10),
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "".join(
        wrapper.fill(f"{column.heading:<{indent}}{column.show(row.get(column.key))}") + "\n"
        for column in columns
    )


def csv(rows: Iterable[Row], columns: Sequence[Column]) -> str:
    """Comma-separated values with the keys as a heading (RFC 4180, with bare newlines)."""
    import csv as module
    import io

    out = io.StringIO()
    writer = module.writer(out, lineterminator="\n")
    writer.writerow([column.key for column in columns])
    listed = list(rows)
    writer.writerows(zip(*(_plain_cells(listed, column) for column in columns), strict=True))
    return out.getvalue()


def _plain_cells(rows: Sequence[Row], column: Column) -> Sequence[Any]:
    values: list[Any] = [row.get(column.key) for row in rows]
    return values if set(map(type, values)) <= _AS_CSV_HAS_THEM else list(map(_plain, values))


_AS_CSV_HAS_THEM: Final = {str, int, float, type(None)}


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return "" if value is None else str(value)


_PIECE: Final = 500
"""So many rows are written at a time: all of a hundred thousand at once take half as long again."""


def dumps(value: object) -> str:
    """JSON with sorted keys; ends with a newline."""
    import json  # tables need none of it

    if isinstance(value, list) and value and all(map(_is_flat, value)):
        # What json writes in C has no indentation: but one level of it is a separator's affair. There are
        # newlines nowhere else, for those of strings are escaped: so they show where a row ends.
        between = "\n  },\n  {\n    "
        encode = json.JSONEncoder(sort_keys=True, default=str, separators=(",\n    ", ": ")).encode
        pieces = (encode(value[at : at + _PIECE]) for at in range(0, len(value), _PIECE))
        rows = between.join(piece[2:-2].replace("},\n    {", between) for piece in pieces)
        return f"[\n  {{\n    {rows}\n  }}\n]\n"
    return json.dumps(value, indent=2, sort_keys=True, default=str) + "\n"


def _is_flat(value: object) -> bool:
    """Whether it is an object with nothing in it that has parts itself."""
    if not isinstance(value, dict) or not value:
        return False
    return not any(each for each in value.values() if isinstance(each, (list, tuple, dict)))


def emit(rows: Iterable[Row], columns: Sequence[Column | str], fmt: str) -> None:
    """Print rows, in the order given. `fmt` is one of FORMATS; JSON has every key."""
    listed = list(rows)
    if fmt == "json":
        sys.stdout.write(dumps([row if isinstance(row, dict) else dict(row) for row in listed]))
        return
    chosen = [Column(column) if isinstance(column, str) else column for column in columns]
    if fmt == "csv":
        sys.stdout.write(csv(listed, chosen))
        return
    visible = [column for column in chosen if fmt == "wide" or not column.wide]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    sys.stdout.write(shown(listed, visible, width))


def emit_one(row: Row, columns: Sequence[Column | str], fmt: str) -> None:
    """Print a single thing: a table of one row, or a JSON object."""
    if fmt == "json":
        sys.stdout.write(dumps(dict(row)))
    else:
        emit([row], columns, fmt)


def say(text: str) -> None:
    """A line for the person at the terminal: stderr."""
    print(f"ovctl: {text}", file=sys.stderr)
