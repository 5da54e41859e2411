"""How far a long run is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Final

EVERY_S: Final = 30.0
"""Between two lines where there is no terminal."""
WIDTH: Final = 30


def bar(share: float, left_s: float | None, what: str) -> str:
    """`share` from 0 to 1; `left_s` None: nobody knows yet."""
    left = "" if left_s is None else f" {int(left_s) // 60}:{int(left_s) % 60:02} left"
    return f"[{'#' * int(WIDTH * share):<{WIDTH}}] {100 * share:3.0f} %{left}  {what}"


class Progress:
    """Counts steps of `total`."""

    def __init__(self, total: int) -> None:
        self._total, self._done = max(total, 1), 0
        self._started = time.monotonic()
        self._spoke = 0.0
        self._tty = sys.stderr.isatty()

    def tick(self, what: str) -> None:
        """Another step begins."""
        self._show(self._done / self._total, what)
        self._done = min(self._done + 1, self._total)

    def end(self) -> None:
        self._show(1.0, "done", last=True)

    def _show(self, share: float, what: str, last: bool = False) -> None:
        now = time.monotonic()
        passed = now - self._started
        text = bar(share, passed / share - passed if share > 0.02 else None, what)
        if self._tty:
            print(f"\r\033[K{text}", end="\n" if last else "", file=sys.stderr, flush=True)
        elif last or now - self._spoke >= EVERY_S:
            self._spoke = now
            print(text, file=sys.stderr, flush=True)
