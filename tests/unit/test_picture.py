"""The picture of the demo: what it is made of, and that it is of the demo as it is."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests import picture
from tests.demo import Demo
from tests.picture import COLUMNS, Copied, chosen, drawn

TEXT = "{http://www.w3.org/2000/svg}text"
RUN = (
    "",
    "== 1. A step of <two>",
    "   a# ovctl lease list",
    "      SUBNET",
    "   ok  a & b have different subnets",
    "   host a: 12 packets by eBPF (97.0 %), 3 by the kernel path",
    "   app-b has received 12 datagrams, 0 lost",
    "   (1.2 s)",
    "demo: all steps hold, 40 s",
)


def shown(svg: str) -> list[str]:
    return [each.text or "" for each in ElementTree.fromstring(svg).iter(TEXT)]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "demo.svg"
    monkeypatch.setattr(picture, "PICTURE", path)
    yield path


def test_steps_claims_and_who_carried_are_chosen() -> None:
    assert chosen(RUN) == [RUN[1], RUN[4], RUN[5], RUN[8]]


def test_it_is_of_what_was_printed_letter_by_letter(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> int:
        print("\n".join(RUN))
        return 0

    assert drawn(run) == 0
    assert shown(file.read_text()) == ["# make demo", *chosen(RUN)]
    assert capsys.readouterr().out.splitlines() == list(RUN), "it is shown meanwhile"


def test_a_run_that_fails_leaves_the_old_picture(file: Path) -> None:
    file.write_text("old")
    assert drawn(lambda: 1) == 1
    assert file.read_text() == "old"


def test_a_line_that_is_too_long_is_cut() -> None:
    assert shown(picture.picture(["x" * 500])) == ["x" * COLUMNS]


def test_what_is_written_is_passed_on_and_kept() -> None:
    out = io.StringIO()
    copied = Copied(out)
    print("one", file=copied, flush=True)
    assert (out.getvalue(), copied.lines()) == ("one\n", ["one"])


def test_the_picture_in_the_readme_is_of_the_steps_of_the_demo() -> None:
    steps = [(step.__doc__ or "").splitlines()[0] for step in Demo.steps(object.__new__(Demo))]
    pictured = [re.match(r"== \d+\. (.*)", line) for line in shown(picture.PICTURE.read_text())]
    assert [found[1] for found in pictured if found] == steps, "run: python -m tests.demo --picture"
