"""Ten thousand leases: everything arrives, in bounded memory. `python -m tests.etcd_load` has the times."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.etcd import SERVERS
from tests.etcd_load import measure


@pytest.mark.parametrize("version", sorted(SERVERS))
def test_ten_thousand_leases(version: str, tmp_path: Path) -> None:
    figures = measure(version, 10_000, tmp_path / "etcd")
    print(figures)
    assert figures["rss_mb"] - figures["rss_before_mb"] < 40
