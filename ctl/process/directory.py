"""Directories that others have to get into, whatever the umask."""

from __future__ import annotations

from pathlib import Path


def make_public(path: Path) -> None:
    """`path`, and those above it that are missing, each 0755. One that is there stays as it is. OSError."""
    try:
        path.mkdir()
    except FileNotFoundError:
        make_public(path.parent)
        make_public(path)
    except FileExistsError:
        if not path.is_dir():
            raise
    else:
        path.chmod(0o755)
