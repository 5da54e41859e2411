"""What `make distros` makes of what it reads, and how it judges."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bootstrap import debootstrap
from tests.distros import Outcome, Reader, entering, environment, judge, table

PARTS = ("setup", "bpf")


def outcome(suite: str, **said: str) -> Outcome:
    return Outcome(suite, "Python 3.13.5, BCC 0.31.0, LLVM 19", said)


def test_the_last_sum_counts_and_what_is_wrong_is_shown() -> None:
    reader = Reader()
    assert reader.read("\x1b[32m....\x1b[0m   [ 12%]\n") is None
    assert reader.read("..........   [ 51%]\n") == "50 %"
    assert reader.read("..........   [ 60%]\n") is None
    assert reader.read("FAILED tests/bpf/test_xdp.py::test_it - refused\r\n") == (
        "FAILED tests/bpf/test_xdp.py::test_it - refused"
    )
    assert reader.read("setup: error: not root\n") == "setup: error: not root"
    assert reader.read("======= 1 failed, 696 passed in 342.03s (0:05:42) =======\n") is None
    assert reader.verdict(1, 342.4) == "FAILED (1), 1 failed, 696 passed, 342 s"
    assert reader.read("696 passed, 1 failed\n") is None
    assert reader.verdict(1, 1) == "FAILED (1), 696 passed, 1 failed, 1 s"
    assert reader.read("== 1 passed, 1 deselected in 9.12s ==\n") is None
    assert reader.verdict(0, 9.1) == "ok, 1 passed, 9 s"
    assert Reader().verdict(0, 61.2) == "ok, 61 s"


def test_a_failure_counts_on_a_supported_suite_and_warns_on_another() -> None:
    good = outcome("trixie", setup="ok, 60 s", bpf="ok, 696 passed, 300 s")
    assert judge([good], PARTS) == (0, [])
    code, warnings = judge([good, outcome("forky", setup="ok, 60 s", bpf="FAILED (1)")], PARTS)
    assert (code, len(warnings)) == (0, 1)
    assert "forky" in warnings[0]
    assert judge([outcome("bookworm", setup="FAILED (2), 9 s")], PARTS) == (1, [])
    assert judge([Outcome("trixie", error="no system")], PARTS)[0] == 1
    assert judge([Outcome("buster", error="no system")], PARTS)[0] == 0


def test_the_table_has_a_line_for_each_suite() -> None:
    lines = table(
        [outcome("trixie", setup="ok, 60 s"), Outcome("forky", error="no system")], PARTS
    ).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["suite", "trixie", "forky"]
    assert lines[1].endswith("ok, 60 s   not tried")
    assert lines[2].split() == ["forky", "-", "no", "system", "no", "system"]


def test_a_fresh_system_gets_of_our_environment_only_the_ways_out() -> None:
    ways = {"https_proxy": "http://proxy:3128", "NO_PROXY": "localhost", "PIP_INDEX_URL": "http://index"}
    given = dict(pair.split("=", 1) for pair in environment({**ways, "HOME": "/h", "VIRTUAL_ENV": "/v"}))
    assert ways.items() <= given.items()
    assert given["HOME"] == "/root"
    assert "VIRTUAL_ENV" not in given


def test_packages_and_wheels_of_each_suite_are_kept_beside_it() -> None:
    argv = entering(Path("/b/trixie.root"), "make demo")
    assert argv[3:6] == ["enter", "/b/trixie.root", argv[5]]
    assert argv[5].endswith("/trixie.kept")
    assert argv[-1].splitlines()[1:] == ["make demo", "exit $?"]


def test_each_distribution_is_made_from_its_own_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MIRROR", raising=False)
    monkeypatch.setattr(Path, "exists", lambda path: path.name in ("trixie", "noble"))
    root = Path("/somewhere")
    assert debootstrap("trixie", root)[-4:] == [
        "--components=main", "trixie", "/somewhere", "http://deb.debian.org/debian",
    ]  # fmt: skip
    assert debootstrap("forky", root)[-1] == "sid", "a suite that this debootstrap does not know"
    assert debootstrap("noble", root)[-4:] == [
        "--components=main,universe", "noble", "/somewhere", "http://archive.ubuntu.com/ubuntu",
    ]  # fmt: skip
    monkeypatch.setenv("MIRROR", "http://mirror/")
    assert debootstrap("resolute", root)[-2:] == ["http://mirror/", "gutsy"]
