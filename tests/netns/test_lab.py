"""The lab itself: it leaves nothing behind, whatever ends it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import Lab, leftover_paths
from tests.namespace import REPOSITORY
from tests.process import Process, run, wait_until

SCRIPT = """
import sys, time
from tests.lab import Lab
with Lab() as lab:
    a, b = lab.host("a"), lab.host("b")
    a.popen("sleep", "1000")
    a.bpffs.mkdir()
    a.run("ping", "-c1", "-W2", b.address)
    print(lab.id, flush=True)
    time.sleep(1000)
"""


@pytest.fixture
def started(tmp_path: Path) -> Iterator[tuple[Process, str]]:
    """A program with a lab, up and running, and the lab's id."""
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = Process([sys.executable, "-c", SCRIPT], tmp_path / "lab", env=env, cwd=REPOSITORY)
    wait_until(lambda: "\n" in process.out(), 20, lambda: f"the lab is up\n{process.log()}")
    yield process, process.out().strip()
    process.stop()


def left_of(lab_id: str) -> list[str]:
    return [str(path) for path in leftover_paths() if path.name.startswith(lab_id)]


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_removes_all(started: tuple[Process, str], sig: signal.Signals) -> None:
    process, lab_id = started
    assert len(left_of(lab_id)) == 5  # three namespaces, one pin directory, one of files
    process.kill(sig)
    process.wait(20)
    assert left_of(lab_id) == []


def test_clean_removes_what_a_killed_lab_left_and_no_other(started: tuple[Process, str]) -> None:
    with Lab() as other:
        other.host("a")
        process, lab_id = started
        process.kill(signal.SIGKILL)
        assert left_of(lab_id)
        said = run([sys.executable, "-m", "tests.lab", "clean"], cwd=REPOSITORY).stdout
        assert left_of(lab_id) == []
        assert lab_id in said
        assert len(left_of(other.id)) == 3
    assert other.leftovers() == []


def test_direct_pair_carries_traffic() -> None:
    with Lab() as lab:
        a, b = lab.pair()
        a.run("ping", "-c1", "-W2", b.address)
        a.offload("eth0", "tx", False)
        assert "tx-checksumming: off" in a.run("ethtool", "-k", "eth0").stdout
