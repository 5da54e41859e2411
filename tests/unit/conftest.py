"""What several files of this ring share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ctl.cli import main
from tests.unit.world import World, new_world

Ovctl = Callable[[str], tuple[int, str, str]]


@pytest.fixture(autouse=True)
def unsupervised(monkeypatch: pytest.MonkeyPatch) -> None:
    """No systemd waits for a word of these tests, whoever has started them."""
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """An agent that has its lease and has not looked at anything yet."""
    return new_world(tmp_path)


@pytest.fixture
def ovctl(capsys: pytest.CaptureFixture[str]) -> Ovctl:
    """Run a command line in this process: exit code, stdout, stderr."""

    def run(line: str) -> tuple[int, str, str]:
        try:
            code = main.main(line.split())
        except SystemExit as stopped:  # argparse's way
            code = int(stopped.code or 0)
        return (code, *capsys.readouterr())

    return run


def refuses(ovctl: Ovctl, line: str, words: str) -> None:
    """A wrong command line is one line with these words, and exit code 2."""
    code, out, err = ovctl(line)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err
