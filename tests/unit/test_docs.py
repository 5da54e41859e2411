from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs import DOCS, TABLES, renewed
from tests.netns.parity import document

DOCUMENTS = [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))]


@pytest.mark.parametrize("document", TABLES, ids=lambda path: str(path.name))
def test_tables_are_current(document: Path) -> None:
    text = document.read_text()
    assert renewed(text, TABLES[document]()) == text, "run: python -m tests.docs"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.name))
def test_links_lead_to_files(document: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text())
    assert [target for target in targets if not (document.parent / target).exists()] == []


def test_parity_tables_are_current() -> None:
    text = document.PARITY.read_text()
    assert document.renewed(text) == text, "run: python -m tests.netns.parity.document"
