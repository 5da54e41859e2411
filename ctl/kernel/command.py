"""Running nft and iptables: their words in our errors, and never for longer than they need."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from typing import Final

from ctl.core.errors import KernelError

_TIMEOUT_S: Final = 30
_SBIN: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin")
"""Where distributions have what only root runs. `su`, cron and an empty environment leave them out."""


def search_path(environ: Mapping[str, str]) -> str:
    """The environment's PATH, or the system's default, and behind it the directories that it lacks."""
    given = environ.get("PATH") or os.defpath
    return os.pathsep.join([given, *(each for each in _SBIN if each not in given.split(os.pathsep))])


def find(command: str) -> str | None:
    """Where a command is; None if it is not installed."""
    return shutil.which(command, path=search_path(os.environ))


def _located(command: tuple[str, ...]) -> list[str]:
    """With the command's place for its name. A command that is not there fails as it would by its name."""
    return [find(command[0]) or command[0], *command[1:]]


def _environment() -> dict[str, str]:
    """Ours, with a PATH by which a command finds those that it runs itself."""
    return {**os.environ, "PATH": search_path(os.environ)}


def succeeds(*command: str) -> bool:
    """Whether a command works; one that is not installed does not."""
    try:
        done = subprocess.run(
            _located(command), capture_output=True, check=False, timeout=_TIMEOUT_S, env=_environment()
        )
        return done.returncode == 0
    except FileNotFoundError:
        return False
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _did_not_run(command[0], error) from error


def run(*command: str, text: str = "", check: bool = True) -> str:
    """Stdout of a command; KernelError with its own words if it fails.

    Others' rules may have comments in any encoding: what is not UTF-8 in it is replaced.
    """
    try:
        done = subprocess.run(
            _located(command),
            env=_environment(),
            input=text,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _did_not_run(command[0], error) from error
    if check and done.returncode:
        words = (done.stderr.strip().splitlines() or ["no message"])[0]
        raise KernelError(f"{' '.join(command)}: {words}")
    return done.stdout


def _did_not_run(command: str, error: OSError | subprocess.TimeoutExpired) -> KernelError:
    if isinstance(error, subprocess.TimeoutExpired):
        return KernelError(f"{command} did not answer within {_TIMEOUT_S} s")
    if isinstance(error, FileNotFoundError):
        return KernelError(f"{command} is not installed: install nftables")
    return KernelError(f"cannot run {command}: {error.strerror}")
