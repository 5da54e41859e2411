"""What others have to read, and what they must not, whatever the umask of who starts the agent."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ctl.backend.udp import stats
from ctl.process import lockfile, statedir
from ctl.store.sqlite.file import make_file


@contextmanager
def umask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


def modes(top: Path) -> dict[str, int]:
    """Of all below `top`, by their path in it."""
    return {str(path.relative_to(top)): stat.S_IMODE(path.lstat().st_mode) for path in top.rglob("*")}


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o027, 0o077, 0o177])
def test_a_state_directory_is_open_to_all_and_its_lock_to_nobody(tmp_path: Path, mask: int) -> None:
    with umask(mask), statedir.Lock(tmp_path / "run" / "deep" / "ovnet") as lock:
        lock.keep()
    assert modes(tmp_path) == {
        "run": 0o755,
        "run/deep": 0o755,
        "run/deep/ovnet": 0o755,
        "run/deep/ovnet/agent.lock": 0o600,
    }


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_what_is_written_for_others_can_be_read_and_reached(tmp_path: Path, mask: int) -> None:
    with umask(mask):
        statedir.write_atomically(tmp_path / "flannel" / "subnet.env", "a\n")
        stats.create(str(tmp_path / "state" / "udp" / "stats"))
        os.close(lockfile.take(tmp_path / "state" / "udp" / "lock", "1", 0, mode=0o644))
    assert modes(tmp_path) == {
        "flannel": 0o755,
        "flannel/subnet.env": 0o644,
        "state": 0o755,
        "state/udp": 0o755,
        "state/udp/stats": 0o644,
        "state/udp/lock": 0o644,
    }


def test_a_directory_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    place = tmp_path / "state"
    place.mkdir(mode=0o700)
    with statedir.Lock(place) as lock:
        lock.keep()
    assert stat.S_IMODE(place.stat().st_mode) == 0o700, "somebody wants it so"


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_a_store_is_its_owners_alone(tmp_path: Path, mask: int) -> None:
    with umask(mask):
        make_file(str(tmp_path / "ovnet" / "store.db"))
    assert modes(tmp_path) == {"ovnet": 0o700, "ovnet/store.db": 0o600}
