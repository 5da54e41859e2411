"""CHANGELOG.md as Debian wants it: `python -m deploy.changelog [VERSION]` prints debian/changelog.

The date of all entries is $SOURCE_DATE_EPOCH's: of the commit that is built, not of the day.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from textwrap import fill
from typing import Final

CHANGELOG: Final = Path(__file__).parent.parent / "CHANGELOG.md"
MAINTAINER: Final = "ovnet maintainers <maintainers@ovnet.invalid>"

_HEADING: Final = re.compile(r"^## (\d\S*)$", re.MULTILINE)
_ITEM: Final = re.compile(r"^- (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Release:
    """A heading of CHANGELOG.md, and the lines below it."""

    version: str
    items: tuple[str, ...]


def releases(text: str) -> tuple[Release, ...]:
    """All of CHANGELOG.md's, in its order: the newest first. ValueError if one says nothing."""
    parts = _HEADING.split(text)[1:]
    found = tuple(
        Release(version, tuple(_ITEM.findall(body)))
        for version, body in zip(parts[::2], parts[1::2], strict=True)
    )
    for release in found:
        if not release.items:
            raise ValueError(f"CHANGELOG.md says nothing of {release.version}")
    return found


def debian(found: tuple[Release, ...], epoch: int) -> str:
    """debian/changelog, dated `epoch` (seconds since 1970)."""
    return "\n".join(
        f"ovnet ({release.version}) unstable; urgency=medium\n\n"
        + "".join(
            fill(item, 78, initial_indent="  * ", subsequent_indent="    ") + "\n" for item in release.items
        )
        + f"\n -- {MAINTAINER}  {formatdate(epoch)}\n"
        for release in found
    )


if __name__ == "__main__":
    entries = releases(CHANGELOG.read_text())
    if len(sys.argv) > 1 and sys.argv[1] != entries[0].version:
        entries = (Release(sys.argv[1], ("Not released.",)), *entries)
    sys.stdout.write(debian(entries, int(os.environ["SOURCE_DATE_EPOCH"])))
