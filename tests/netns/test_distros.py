"""That nothing of a fresh system is left when it is given up (`make distros`)."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path

from tests.bootstrap import started

DAEMON = r"""
mount -t tmpfs tmpfs "$1"
setsid sleep 1000 </dev/null >/dev/null 2>&1 &
trap '' TERM INT HUP
readlink /proc/self/ns/pid
wait
"""


def members(namespace: str) -> list[str]:
    """Processes of a process namespace."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.readlink(process / "ns/pid") == namespace:
                found.append(process.name)
    return found


def test_a_system_that_is_given_up_leaves_no_process_and_no_mount(tmp_path: Path) -> None:
    with started(["bash", "-c", DAEMON, "daemon", str(tmp_path)], subprocess.PIPE) as child:
        assert child.stdout is not None
        namespace = child.stdout.readline().strip()
        assert len(members(namespace)) >= 2
        assert not os.path.ismount(tmp_path), "it is there for the system only"
    assert not members(namespace)
    tmp_path.rmdir()
