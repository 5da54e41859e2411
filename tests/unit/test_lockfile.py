"""Locks whose file goes away while somebody waits for them."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ctl.backend.udp import __main__ as forwarder
from ctl.backend.udp.files import LOCK
from ctl.cli.status import agent_alive
from ctl.core.errors import AgentError
from ctl.process import lockfile, statedir

Before = Callable[[Callable[[], object]], None]


@pytest.fixture
def before_the_first_try(monkeypatch: pytest.MonkeyPatch) -> Before:
    """Have something happen between someone's opening of a lock's file and its locking."""
    flock = fcntl.flock

    def arrange(happens: Callable[[], object]) -> None:
        pending: Iterator[Callable[[], object]] = iter([happens])

        def first(fd: int, operation: int) -> None:
            for act in pending:
                act()
            flock(fd, operation)

        monkeypatch.setattr(fcntl, "flock", first)

    return arrange


def test_a_start_beside_one_that_fails_is_seen_by_all(tmp_path: Path, before_the_first_try: Before) -> None:
    place = tmp_path / "state"
    failing = statedir.Lock(place)
    before_the_first_try(lambda: failing.__exit__(None, None, None))
    with statedir.Lock(place) as lock:
        lock.keep()
        assert agent_alive(place)
        with pytest.raises(AgentError, match=f"pid {os.getpid()}"):
            statedir.Lock(place)


def test_who_looks_while_the_lock_changes_hands_sees_the_new_holder(
    tmp_path: Path, before_the_first_try: Before
) -> None:
    place, held = tmp_path / "state", []
    failing = statedir.Lock(place)

    def change_hands() -> None:
        failing.__exit__(None, None, None)
        held.append(statedir.Lock(place))

    before_the_first_try(change_hands)
    assert agent_alive(place)
    held[0].__exit__(None, None, None)
    assert not agent_alive(place)


def test_a_forwarder_holds_the_lock_that_the_agent_finds(
    tmp_path: Path, before_the_first_try: Before
) -> None:
    path = tmp_path / LOCK
    before_the_first_try(path.unlink)
    fd = forwarder._lock(str(tmp_path), "a forwarder")
    assert lockfile.holder(path) == f"{os.getpid()} a forwarder"
    with pytest.raises(AgentError, match="another forwarder"):
        forwarder._lock(str(tmp_path), "a second one")
    os.close(fd)


def test_a_forwarder_whose_directory_was_removed_does_not_run(
    tmp_path: Path, before_the_first_try: Before
) -> None:
    place = tmp_path / "udp"
    place.mkdir()

    def teardown() -> None:
        (place / LOCK).unlink()
        place.rmdir()

    before_the_first_try(teardown)
    with pytest.raises(AgentError, match="No such file"):
        forwarder._lock(str(place), "a forwarder")


def test_a_lock_that_nobody_holds_has_no_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert lockfile.holder(path) is None
    os.close(lockfile.take(path, "me", 0))
    assert path.exists()
    assert lockfile.holder(path) is None


def test_a_lock_that_cannot_be_taken_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(_fd: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="No locks"):
        lockfile.take(tmp_path / "lock", "me", 0)
    assert os.listdir("/proc/self/fd") == before
