"""A minimal system of a suite of Debian or Ubuntu, made once by debootstrap and kept as a tar.

Where `make distros` and `make deb-test` start from. debootstrap runs in namespaces of its own, so that
nothing of it is left running or mounted, also when it is interrupted.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TextIO

from tests.namespace import REPOSITORY

PLACE: Final = REPOSITORY / "build" / "debootstrap"
UBUNTU: Final = ("jammy", "noble", "resolute")
"""Ubuntu's suites: 22.04, 24.04, 26.04. BCC is in its `universe`."""
_DEBIAN: Final = ("http://deb.debian.org/debian", "main", "sid")
"""Mirror, components, and the script for a suite that this debootstrap does not know: all since
2013 are made alike."""
_UBUNTU: Final = ("http://archive.ubuntu.com/ubuntu", "main,universe", "gutsy")


def minimal(suite: str) -> Path:
    """The tar of it, with ca-certificates; made if it is not there. CalledProcessError."""
    PLACE.mkdir(parents=True, exist_ok=True)
    target, root = PLACE / f"{suite}.tar", PLACE / f"{suite}.new"
    with (PLACE / f"{suite}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            print(f"debootstrap {suite}", flush=True)
            with removed(root), (PLACE / f"{suite}.log").open("w") as log:
                contained(debootstrap(suite, root), log)
                half = target.with_suffix(".half")
                contained(["tar", "-C", str(root), "-cf", str(half), "."], log)
                half.rename(target)
    return target


def debootstrap(suite: str, root: Path) -> list[str]:
    """The command that makes it; $MIRROR is another mirror."""
    mirror, components, script = _UBUNTU if suite in UBUNTU else _DEBIAN
    known = Path("/usr/share/debootstrap/scripts", suite).exists()
    return ["debootstrap", "--variant=minbase", "--include=ca-certificates", f"--components={components}",
            suite, str(root), os.environ.get("MIRROR", mirror), *([] if known else [script])]  # fmt: skip


def contained(argv: Sequence[str], log: TextIO) -> None:
    """Run to the end in namespaces of its own; CalledProcessError if it fails."""
    with started(argv, log) as child:
        child.wait()
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, argv)


@contextmanager
def removed(root: Path) -> Iterator[None]:
    """`root` is not there before, and not afterwards."""
    remove = ["rm", "-rf", "--one-file-system", str(root)]
    subprocess.run(remove, check=True)
    try:
        yield
    finally:
        subprocess.run(remove, check=True, start_new_session=True)


@contextmanager
def started(argv: Sequence[str], output: TextIO | int) -> Iterator[subprocess.Popen[str]]:
    """A process with a mount and a process namespace of its own, which end with it and with us."""
    with subprocess.Popen(
        ["env", "--default-signal", "setpriv", "--pdeathsig", "KILL",
         "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", *argv],
        stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        text=True, errors="replace", start_new_session=True,
    ) as child:  # fmt: skip
        try:
            yield child
        finally:
            if child.poll() is None:
                # The first process of the namespace: the others die with it, before the child can end.
                first = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
                for pid in [int(pid) for pid in first] or [child.pid]:
                    os.kill(pid, signal.SIGKILL)
