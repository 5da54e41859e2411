from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs import OPERATING, renewed
from tests.netns.parity import document

ROOT = OPERATING.parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_settings_table_is_current() -> None:
    text = OPERATING.read_text()
    assert renewed(text) == text, "run: python -m tests.docs"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.name))
def test_links_lead_to_files(document: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text())
    assert [target for target in targets if not (document.parent / target).exists()] == []


def test_parity_tables_are_current() -> None:
    text = document.PARITY.read_text()
    assert document.renewed(text) == text, "run: python -m tests.netns.parity.document"
