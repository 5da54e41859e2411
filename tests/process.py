"""Processes and waiting, for the lab and the tests."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.05
PATIENCE = float(os.environ.get("LAB_PATIENCE", "1"))
"""How many times longer to wait for everything: a machine in software emulation is slow."""


class CommandFailed(AssertionError):
    """A command that had to work did not; the text has what it printed."""


class TimedOut(AssertionError):
    """A condition did not come true in time."""


def wait_until(
    predicate: Callable[[], T], seconds: float, what: str | Callable[[], str], every: float = POLL_SECONDS
) -> T:
    """Poll `predicate` until it is truthy and return its value.

    TimedOut after `seconds`; `what` says what was waited for, and may be a function
    when saying it (a log, a state) is work.
    """
    deadline = time.monotonic() + seconds * PATIENCE
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            text = what if isinstance(what, str) else what()
            raise TimedOut(f"after {seconds:g} s still not: {text}")
        time.sleep(every)


_PYTHONS_OWN = {signal.SIGPIPE, signal.SIGXFSZ}
"""Ignored by every Python; subprocess gives them back by itself."""


def undisturbed(argv: Sequence[str]) -> list[str]:
    """`argv`, started with the defaults of all signals, whatever this process ignores.

    A shell ignores SIGINT for what a script runs in the background, nohup SIGHUP, and that is
    inherited by all that is started from there: a test's interrupt would be in vain. By `env`,
    because code of ours between fork and exec is not safe beside threads; by its path, because some
    tests have no PATH.
    """
    ignored = {each for each in signal.valid_signals() if signal.getsignal(each) is signal.SIG_IGN}
    return ["/usr/bin/env", "--default-signal", *argv] if ignored - _PYTHONS_OWN else list(argv)


def run(
    argv: Sequence[str],
    *,
    check: bool = True,
    seconds: float = 60,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run to the end and capture; CommandFailed on a non-zero exit if `check`.

    In a session of its own, so that Ctrl-C reaches the lab and not the command, and with the
    defaults of all signals.
    """
    try:
        done = subprocess.run(
            undisturbed(argv),
            check=False,
            capture_output=True,
            text=True,
            timeout=seconds * PATIENCE,
            input=stdin,
            stdin=None if stdin is not None else subprocess.DEVNULL,
            env=None if env is None else dict(env),
            cwd=cwd,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(f"{' '.join(argv)}: did not end in {seconds:g} s") from error
    if check and done.returncode != 0:
        raise CommandFailed(f"{' '.join(argv)}: exit {done.returncode}\n{done.stdout}{done.stderr}".rstrip())
    return done


class Process:
    """A background process in a session of its own, with the defaults of all signals; output in two files."""

    def __init__(
        self,
        argv: Sequence[str],
        stem: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        """`stem`: path of the output files without their endings `.out` and `.err`."""
        self.argv = list(argv)
        self._out, self._err = stem.with_name(f"{stem.name}.out"), stem.with_name(f"{stem.name}.err")
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._child = subprocess.Popen(
                undisturbed(argv),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=None if env is None else dict(env),
                cwd=cwd,
                start_new_session=True,
            )
        self.pid = self._child.pid

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._child.poll()

    def out(self) -> str:
        """What it printed on stdout so far."""
        return self._out.read_text(errors="replace")

    def log(self) -> str:
        """What it printed on stderr so far."""
        return self._err.read_text(errors="replace")

    def kill(self, sig: int = signal.SIGKILL) -> None:
        """Send a signal to this process alone; SIGKILL is waited for."""
        if self._child.poll() is None:
            self._child.send_signal(sig)
        if sig == signal.SIGKILL:
            self._child.wait()

    def wait(self, seconds: float = 60) -> int:
        """Wait for its end and return the exit code; TimedOut with its output."""
        try:
            return self._child.wait(seconds * PATIENCE)
        except subprocess.TimeoutExpired:
            text = f"{' '.join(self.argv)} ends\n{self.out()}{self.log()}"
            raise TimedOut(f"after {seconds:g} s still not: {text}") from None

    def stop(self, seconds: float = 15) -> int:
        """SIGTERM, wait, then SIGKILL to its whole group; returns the exit code."""
        if self._child.poll() is None:
            self._child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        return self._child.wait()
