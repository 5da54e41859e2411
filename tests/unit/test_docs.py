from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.docs import DOCS, TABLES, renewed
from tests.netns.faults import FAULTS, TIMES, WITHOUT_AGENT
from tests.netns.parity import document

DOCUMENTS = [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))]


@pytest.mark.parametrize("document", TABLES, ids=lambda path: str(path.name))
def test_tables_are_current(document: Path) -> None:
    text = document.read_text()
    assert renewed(text, TABLES[document]()) == text, "run: python -m tests.docs"


def test_the_doctor_has_answered_within_five_seconds_whatever_was_wrong() -> None:
    """As measured: docs/faults.json."""
    seconds = json.loads(TIMES.read_text())
    assert seconds.keys() == {fault.name for fault in (*FAULTS, *WITHOUT_AGENT)}
    assert max(seconds.values()) < 5


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.name))
def test_links_lead_to_files(document: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text())
    assert [target for target in targets if not (document.parent / target).exists()] == []


def test_parity_tables_are_current() -> None:
    text = document.PARITY.read_text()
    assert document.renewed(text) == text, "run: python -m tests.netns.parity.document"
