from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import rings
from tests.namespace import REPOSITORY, alive
from tests.process import Process, wait_until
from tests.rings import QUICK, RINGS, TESTS, Count, Ring, count, main, parts

JUNIT = """<testsuites><testsuite>
<testcase name="a"/><testcase name="b"/>
<testcase name="c"><failure>no</failure></testcase>
<testcase name="d"><error>in teardown</error></testcase>
<testcase name="e"><skipped type="pytest.skip">why</skipped></testcase>
<testcase name="f"><skipped type="pytest.xfail">known</skipped></testcase>
</testsuite></testsuites>"""
SKIPPED = '<testsuite><testcase name="a"><skipped type="pytest.skip"/></testcase></testsuite>'
PASSED = '<testsuite><testcase name="a"/></testsuite>'


@pytest.mark.parametrize(
    ("junit", "exit_code", "expected"),
    [
        (JUNIT, 1, Count(3, 2, 1)),
        (PASSED, 0, Count(1, 0, 0)),
        (PASSED, 3, Count(1, 1, 0)),
        (SKIPPED, 5, Count(0, 0, 1)),
        ("<testsuite/>", 5, Count(0, 1, 0)),
        (None, 2, Count(0, 1, 0)),
    ],
)
def test_counts_what_pytest_wrote(tmp_path: Path, junit: str | None, exit_code: int, expected: Count) -> None:
    path = tmp_path / "junit.xml"
    if junit is not None:
        path.write_text(junit)
    assert count(path, exit_code) == expected


def test_closing_line_names_skips_only_if_there_are() -> None:
    assert str(Count(3, 0, 0)) == "3 passed, 0 failed"
    assert str(Count(3, 1, 0) + Count(1, 0, 2)) == "4 passed, 1 failed, 2 skipped"


def test_every_ring_is_a_directory() -> None:
    folders = {path.parent for path in Path(__file__).parent.parent.glob("*/test_*.py")}
    assert {folder.name for folder in folders} <= RINGS.keys()


def test_unknown_ring_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nosuch"]) == 2
    assert "nosuch" in capsys.readouterr().err


def test_a_ring_may_have_none_of_the_tests_that_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "junit.xml"
    path.write_text("<testsuite/>")
    assert count(path, 5, some=True) == Count()
    path.write_text(PASSED)
    assert count(path, 3, some=True) == Count(1, 1, 0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Rings of our own: `one` and `wide` beside one another, `last` alone."""
    monkeypatch.setattr(rings, "TESTS", tmp_path / "tests")
    ours = {"one": Ring("one", needs_root=False), "wide": Ring("two workers", needs_root=False, workers=2),
            "last": Ring("measures", needs_root=False, alone=True)}  # fmt: skip
    for name in ours:
        (tmp_path / "tests" / name).mkdir(parents=True)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    alone(why): by itself\n")
    monkeypatch.setattr(rings, "RINGS", ours)
    before = signal.getsignal(signal.SIGTERM)
    yield tmp_path / "tests"
    signal.signal(signal.SIGTERM, before)


MEETS = """
import time
from pathlib import Path
def test_{name}():
    Path({here!r}, "{name}").touch()
    while not Path({here!r}, "{other}").exists():
        time.sleep(0.01)
"""
ALONE = """
import pytest
from pathlib import Path
def test_beside():
    pass
@pytest.mark.{mark}("because")
def test_alone():
    assert {{path.name for path in Path({here!r}).iterdir()}} >= {{"one", "wide"}}
"""


def test_rings_run_beside_one_another_and_what_measures_alone(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, other in (("one", "wide"), ("wide", "one")):
        text = MEETS.format(name=name, other=other, here=str(tmp_path))
        (folder / name / f"test_{name}.py").write_text(text)
    (folder / "wide" / "test_alone.py").write_text(ALONE.format(here=str(tmp_path), mark="alone"))
    (folder / "last" / "test_last.py").write_text("def test_last():\n    raise SystemError('no luck')\n")
    assert main(["--", "-p", "no:cacheprovider"]) == 1
    lines = capfd.readouterr().out.splitlines()
    assert lines[-1] == "4 passed, 1 failed"
    headings = [line.strip(" =") for line in lines if line.startswith("=") and ": " in line]
    assert headings == ["one: one", "wide: two workers", "wide: two workers, alone", "last: measures"]
    assert [line.partition(" in ")[0] for line in lines if line.startswith("ring ")] == [
        "ring one: 1 passed, 0 failed", "ring wide: 2 passed, 0 failed",
        "ring wide: 1 passed, 0 failed", "ring last: 0 passed, 1 failed",
    ]  # fmt: skip
    assert any("SystemError: no luck" in line for line in lines)


def test_every_test_is_in_one_part() -> None:
    assert parts(["unit"])[0].only == "", "nothing in it is marked, though these lines speak of marks"
    for name in RINGS:
        mine = [part for part in parts(list(RINGS)) if part.ring == name]
        assert [part.only for part in mine] in ([""], ["not alone", "alone"])
    assert all((TESTS / path).exists() for paths in QUICK.values() for path in paths)


HANGS = """
import signal, time
from pathlib import Path
import pytest
@pytest.fixture
def made():
    Path({here!r}, "made").touch()
    yield
    Path({here!r}, "made").unlink()
def test_hangs(made):
    Path({here!r}, "runs").touch()  # not before: what ends a fixture's beginning leaves it no end
    time.sleep(1000)
"""
MAIN = """
import sys
from pathlib import Path
from tests import rings
rings.TESTS = Path(sys.argv[1])
rings.RINGS = {"wide": rings.Ring("two workers", needs_root=False, workers=2)}
sys.exit(rings.main(["--", "-p", "tests.ending"]))
"""


def children(pid: int) -> list[int]:
    """Of a process, and theirs."""
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    mine = [int(child) for thread in threads for child in thread.read_text().split()]
    return [each for child in mine for each in (child, *children(child))]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_all_workers_which_remove_what_they_have_made(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    (tmp_path / "wide").mkdir()
    for name in ("a", "b"):
        here = tmp_path / name
        here.mkdir()
        (tmp_path / "wide" / f"test_{name}.py").write_text(HANGS.format(here=str(here)))
    run = Process([sys.executable, "-c", MAIN, str(tmp_path)], tmp_path / "rings", cwd=REPOSITORY,
                  env={**os.environ, "PYTHONPATH": str(REPOSITORY)})  # fmt: skip
    try:
        wait_until(lambda: len(list(tmp_path.glob("*/runs"))) == 2, 60, lambda: f"both run\n{run.out()}")
        family = children(run.pid)
        assert len(family) >= 3
        run.kill(number)
        assert run.wait(60) == code, run.out() + run.log()
    finally:
        run.stop()
    assert not list(tmp_path.glob("*/made"))
    assert not any(map(alive, family))
