"""Running nft and iptables: their words in our errors, and never for longer than they need."""

from __future__ import annotations

import subprocess
from typing import Final

from ctl.core.errors import KernelError

_TIMEOUT_S: Final = 30


def succeeds(*command: str) -> bool:
    """Whether a command works; one that is not installed does not."""
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=_TIMEOUT_S).returncode == 0
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
            command,
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
