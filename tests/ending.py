"""SIGTERM ends a run of pytest as Ctrl-C does: every fixture takes away what it has made.

Without it SIGTERM would kill the run on the spot, or, within a lab, be one more failed test.
"""

from __future__ import annotations

import signal
from types import FrameType

import pytest


def pytest_configure() -> None:
    """Called by pytest at its start; `conftest.py` has this hook from here."""
    signal.signal(signal.SIGTERM, _end)


def _end(number: int, frame: FrameType | None) -> None:
    # Once is enough: what is being removed must not be stopped. SIGINT is how xdist ends its workers.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    pytest.exit("SIGTERM", returncode=pytest.ExitCode.INTERRUPTED)  # which shows what has failed so far
