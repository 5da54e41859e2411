from __future__ import annotations

from pathlib import Path

import pytest

from tests.rings import RINGS, Count, count, main

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
