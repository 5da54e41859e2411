"""The settings of this invocation: the one place that opens the file."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ctl.core.errors import ConfigError
from ctl.settings.config import DEFAULT_FILE, FILE_VARIABLE, Settings, resolve


def load(args: argparse.Namespace) -> Settings:
    """From `args` (its `config` names the file), the environment and the file."""
    path, text = _file(getattr(args, "config", None) or os.environ.get(FILE_VARIABLE))
    return resolve(args, os.environ, text, file=str(path), hostname=os.uname().nodename)


def _file(named: str | None) -> tuple[Path, str | None]:
    """The file and its text. Only a file that was named must exist."""
    path = Path(named) if named else DEFAULT_FILE
    try:
        return path, path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if named:
            raise ConfigError(f"{path}: no such file") from None
        return path, None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{path}: {reason}") from error
