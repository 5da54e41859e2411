"""A set-up that meets a full disk: one line, and the next one does not build upon what it has left."""

from __future__ import annotations

from pathlib import Path

from tests.namespace import REPOSITORY
from tests.process import run

SCRIPT = r"""
set -u
mount -t tmpfs -o size=3m tmpfs "$0"
cp -r "$1/scripts" "$1/pyproject.toml" "$1/README.md" "$0"
cd "$0"
export TMPDIR=$0 PIP_NO_INDEX=1
scripts/setup.sh run; echo "full: $?" >&2
mount -o remount,size=200m "$0"
scripts/setup.sh run; echo "with room, without PyPI: $?" >&2
"""


def test_a_disk_that_is_full_while_setup_runs_leaves_nothing_to_stumble_over(tmp_path: Path) -> None:
    said = run(["unshare", "--mount", "sh", "-c", SCRIPT, str(tmp_path), str(REPOSITORY)], seconds=100).stderr
    first, _, second = said.partition("full: 1\n")
    assert first.splitlines()[-1].startswith(f"setup: error: cannot create {tmp_path}/.venv")
    assert "setup: venv: new, of /usr/bin/python3" in second, said
    assert second.splitlines()[-2].startswith("setup: error: pip install"), said
    assert second.endswith("with room, without PyPI: 1\n")
