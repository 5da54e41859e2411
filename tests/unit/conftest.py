"""What several files of this ring share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.world import World, new_world


@pytest.fixture(autouse=True)
def unsupervised(monkeypatch: pytest.MonkeyPatch) -> None:
    """No systemd waits for a word of these tests, whoever has started them."""
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """An agent that has its lease and has not looked at anything yet."""
    return new_world(tmp_path)
