"""What the demo shows: numbered steps, commands with their output, claims that were checked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

WIDTH = 120


class ClaimFailed(Exception):
    """Something that the demo says did not turn out so."""


def expect(holds: object, claim: str) -> None:
    """Print a claim that holds; ClaimFailed for one that does not."""
    if not holds:
        raise ClaimFailed(claim)
    print(f"   ok  {claim}", flush=True)


def tell(text: str) -> None:
    """A sentence for the reader."""
    print(f"   {text}", flush=True)


def show(prompt: str, command: str, output: str, lines: int = 12) -> None:
    """A command at a prompt, and the first `lines` of what it printed."""
    print(f"   {prompt}# {command}")
    printed = output.strip().splitlines()
    for line in printed[:lines]:
        print(f"      {line}" if len(line) <= WIDTH else f"      {line[:WIDTH]}...")
    if len(printed) > lines:
        print(f"      ... {len(printed) - lines} more lines")


@contextmanager
def heading(number: int, title: str) -> Iterator[None]:
    """A numbered step, with the time it took."""
    print(f"\n== {number}. {title}", flush=True)
    started = time.monotonic()
    yield
    print(f"   ({time.monotonic() - started:.1f} s)", flush=True)
