"""Which worker of a ring gets which tests (pytest-xdist): a file's stay together, the long files first.

Tests of a file share what the file has built, and some say what holds "after all of the above".
What a whole directory shares stays together, too.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Final

import pytest
from xdist.scheduler import LoadFileScheduling

TOGETHER: Final = ("tests/netns/parity/",)
"""Directories whose fixtures are of the package: three pairs of nodes, seconds of work each."""
APART: Final = ("tests/chaos/",)
"""Directories whose tests share nothing, and are long: each goes to the worker that is free."""
LONG: Final = (
    "tests/netns/test_resilience.py",
    "tests/netns/parity/",
    "tests/netns/test_two_hosts.py",
    "tests/netns/test_xdp.py",
    "tests/netns/test_backends.py",
    "tests/netns/test_soak.py",
    "tests/netns/test_unchanged.py",
    "tests/netns/test_tcx.py",
    "tests/netns/test_netfilter.py",
    "tests/conformance/test_docker.py",
    "tests/conformance/test_takeover.py",
    "tests/conformance/test_etcd_access.py",
    "tests/conformance/test_story.py",
)
"""Longest first. Else one of them would begin when the others are nearly done."""


def scope(nodeid: str) -> str:
    """What is given to one worker as a whole: a directory of TOGETHER, a test of APART, or a file."""
    if nodeid.startswith(APART):
        return nodeid
    return next((each for each in TOGETHER if nodeid.startswith(each)), nodeid.partition("::")[0])


def begin(path: PurePath) -> int:
    """Sorts files, relative to the repository, by when they are begun."""
    found = scope(path.as_posix())
    return LONG.index(found) if found in LONG else len(LONG)


class Files(LoadFileScheduling):  # type: ignore[misc]
    """By scope, in the order in which they are collected."""

    def _split_scope(self, nodeid: str) -> str:
        return scope(nodeid)


class Named:
    """Names each failure as it comes: the dots of several workers say nothing about where they are."""

    def __init__(self, config: pytest.Config) -> None:
        self._terminal = config.pluginmanager.get_plugin("terminalreporter")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self._terminal:
            words = getattr(getattr(report.longrepr, "reprcrash", None), "message", "").partition("\n")[0]
            self._terminal.ensure_newline()
            self._terminal.write_line(f"{report.nodeid} ({report.when}): {words}")


@pytest.hookimpl(optionalhook=True)  # there is none with -p no:xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Files:
    """Called by xdist; `conftest.py` has this hook from here."""
    config.option.loadscopereorder = False
    config.pluginmanager.register(Named(config))
    return Files(config, log)
