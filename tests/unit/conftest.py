"""What several files of this ring share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.world import World, new_world


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """An agent that has its lease and has not looked at anything yet."""
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    return new_world(tmp_path)
