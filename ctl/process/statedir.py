"""The agent's directory: its lock, its report, and what it hands to others.

agent.lock     held (flock) by the running agent, and says its pid
status.json    ctl.core.report, after every reconcile
subnet.env     what dockerd and CNI plugins read, in flannel's format
fenced.env     what subnet.env said, while another host holds the subnet
sysctls.json   kernel settings as they were before us
uplink.json    which address of the underlay is ours, and by which settings
vtep_mac       the tunnel device's, where it was taken over from flanneld
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from ctl.core.errors import AgentError, ConfigError
from ctl.process import lockfile
from ctl.process.directory import make_public

LOCK: Final = "agent.lock"
REPORT: Final = "status.json"
FENCED: Final = "fenced.env"
SYSCTLS: Final = "sysctls.json"
UPLINK: Final = "uplink.json"
VTEP_MAC: Final = "vtep_mac"

_PATIENCE_S: Final = 0.2
"""How long another holder of the lock is waited for: `ovctl status` holds it for an instant when it looks."""


class Lock:
    """One agent (or teardown) for a state directory, which is made for it.

    Leaving the `with` block removes both again, unless `keep` was called or others'
    files are in it: a start that failed leaves nothing behind.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._kept = False
        try:
            self._fd = lockfile.take(directory / LOCK, f"{os.getpid()}", _PATIENCE_S, make_directory=True)
        except lockfile.Held as held:
            raise AgentError(
                f"another agent (pid {str(held) or '?'}) runs with state directory {directory}: "
                "stop it, or choose another --state-dir"
            ) from None
        except OSError as error:
            raise ConfigError(f"--state-dir {directory}: {error.strerror}") from error

    def keep(self) -> None:
        """The directory stays: there is a node now. What killed agents have left half written goes."""
        self._kept = True
        with suppress(OSError):
            for path in leftovers(self._directory):
                if not path.name.endswith(f".{os.getpid()}"):
                    path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._kept:
            with suppress(OSError):
                if os.listdir(self._directory) == [LOCK]:
                    (self._directory / LOCK).unlink()
                    self._directory.rmdir()
        os.close(self._fd)


def write_atomically(path: Path, content: str | bytes) -> None:
    """A reader sees the old content or the new one, never half of it; mode 0644. OSError.

    A process that is killed meanwhile leaves `.NAME.PID` behind: see `leftovers`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        make_public(path.parent)
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.chmod(0o644)
        temporary.rename(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise


def leftovers(directory: Path, name: str = "") -> list[Path]:
    """What killed processes left there of `write_atomically`: of all files, or of that name."""
    written = re.compile(rf"\.{re.escape(name) or '.+'}\.[0-9]+")
    return [path for path in directory.iterdir() if written.fullmatch(path.name)]
