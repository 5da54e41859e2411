"""What all rings share: a marker per directory, root where it is needed, no skips in CI."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import settings

from tests.ending import pytest_configure
from tests.rings import RINGS
from tests.workers import begin, pytest_xdist_make_scheduler

__all__ = ["pytest_configure", "pytest_xdist_make_scheduler"]

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)

CI = os.environ.get("CI", "").lower() in {"1", "true", "yes"}

# A slow machine is no bug; and the same commit gives the same verdict in CI.
settings.register_profile("ovnet", deadline=None, derandomize=CI)
settings.load_profile("ovnet")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its ring, skip what needs root and has none, and have a reason for each `alone`.

    What takes long comes first.
    """
    root = os.geteuid() == 0
    items.sort(key=lambda item: begin(item.path.relative_to(Path(__file__).parent.parent)))
    for item in items:
        ring = item.path.relative_to(Path(__file__).parent).parts[0]
        if ring not in RINGS:
            raise pytest.UsageError(f"{item.path}: tests live in one of the rings {', '.join(RINGS)}")
        item.add_marker(ring)
        alone = item.get_closest_marker("alone")
        if alone and not (len(alone.args) == 1 and isinstance(alone.args[0], str)):
            raise pytest.UsageError(f'{item.nodeid}: say why it runs alone: mark.alone("...")')
        if RINGS[ring].needs_root and not root:
            item.add_marker(pytest.mark.skip(reason=f"ring {ring} needs root: run it as root"))


@pytest.fixture(autouse=True)
def every_database_is_closed() -> Iterator[None]:
    """By whoever opened it. Python warns of others only from 3.13 on, and then in some later test.

    With a patch of its own: pytest's `monkeypatch` would come before the fixtures of each test, and what
    the test patches be undone after them.
    """
    opened: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def recorded(*args: Any, **options: Any) -> sqlite3.Connection:
        opened.append(connect(*args, **options))
        return opened[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", recorded)
        yield
    left = [database for database in opened if _is_open(database)]
    for database in left:
        database.close()
    assert not left, f"{len(left)} of {len(opened)} databases were left open"


def _is_open(database: sqlite3.Connection) -> bool:
    try:
        return database.total_changes >= 0
    except sqlite3.ProgrammingError:
        return False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a skipped test has failed: what is not tested there is tested nowhere."""
    report = yield
    return _no_skip(report, item.nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a module that skips itself as a whole."""
    report = yield
    return _no_skip(report, collector.nodeid)


def _no_skip(report: Report, name: str) -> Report:
    if CI and report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{name}: skipped, which CI does not allow: {reason}"
    return report
