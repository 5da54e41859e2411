"""The agent's side of the udp backend: start, adopt, update, watch and end the forwarder."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Final

import ctl
from ctl.backend.udp import stats
from ctl.backend.udp.files import LOCK, READY, STATS, TABLE, device_name, directory, identity
from ctl.backend.udp.table import format_table
from ctl.backend.udp.tun import remove_device
from ctl.core.errors import KernelError
from ctl.process import lockfile, statedir

_START_S: Final = 10.0
_UPDATE_S: Final = 5.0
_END_S: Final = 5.0
_POLL_S: Final = 0.002


@dataclass(frozen=True, slots=True)
class TunnelRoutes:
    """What the forwarder has to know: the own subnet, and the host of each peer's."""

    own: IPv4Network
    peers: Mapping[IPv4Network, IPv4Address]


@dataclass(frozen=True, slots=True)
class Running:
    """The forwarder that holds the lock: a process that cannot be mistaken for another."""

    pid: int
    identity: str
    pidfd: int

    @property
    def device(self) -> str:
        return self.identity.split()[1]

    def signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def ended(self, seconds: float) -> bool:
        """Wait for its end, `seconds` at most; a process that is ours to reap is reaped."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        over = bool(poll.poll(seconds * 1000))
        if over:
            with suppress(ChildProcessError):
                os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        return over


class ForwarderProcess:
    """One node's forwarder, seen from whoever runs the node now.

    Belongs to one thread. An object may go at any time: the forwarder does not notice.
    """

    def __init__(self, state_dir: Path, local: IPv4Address, port: int) -> None:
        """`state_dir`: the node's; `local`: the host's underlay address; `port`: of all nodes."""
        self.device: Final = device_name(port)
        self._directory: Final = directory(state_dir)
        self._local, self._port = str(local), port
        self._identity: Final = identity(self.device, self._local, port)
        self._routes: TunnelRoutes | None = None
        """What the forwarder is known to have; None if it has to be told."""
        self._child = 0
        """The pid of the forwarder if this object started it, else 0."""

    def start(self, routes: TunnelRoutes) -> bool:
        """Have the forwarder run by these routes; True if it had to be started.

        The one that runs already is adopted if it is of our settings and version, and
        replaced if not. KernelError with the forwarder's own words if it cannot run.
        """
        with self._running() as running:
            if running and running.identity == self._identity:
                self._update(routes, running)
                return False
            if running:
                self._end(running)
                if running.device != self.device:
                    remove_device(running.device)
        self._write(routes)
        self._forget_leftovers()
        self._spawn()
        self._routes = routes
        return True

    def update(self, routes: TunnelRoutes) -> None:
        """Forward by these routes; returns when the forwarder does. KernelError if none runs."""
        with self._running() as running:
            if running is None:
                raise KernelError("the udp forwarder does not run: it has ended, or was never started")
            self._update(routes, running)

    def pid(self) -> int | None:
        """Of the forwarder, whoever started it; None if none runs."""
        with self._running() as running:
            return running.pid if running else None

    def runs(self) -> bool:
        """Whether a forwarder runs, or something that has its lock. Never waits. KernelError."""
        return self._holder() is not None

    def stats(self) -> dict[str, int] | None:
        """Counters by name (`stats.NAMES` says what they are); None if no forwarder runs.

        They start again from 0 with a new forwarder.
        """
        if self.pid() is None:
            return None
        with suppress(OSError, ValueError):
            return stats.read(str(self._directory / STATS))
        return None

    def stop(self, *, remove: bool = False) -> None:
        """End the forwarder, if one runs; `remove` its device and files too. KernelError."""
        with self._running() as running:
            if running:
                self._end(running)
        self._routes = None
        if remove:
            remove_device(self.device)
            for name in (TABLE, STATS, LOCK):
                (self._directory / name).unlink(missing_ok=True)
            self._forget_leftovers()
            with suppress(OSError):
                self._directory.rmdir()

    def _forget_leftovers(self) -> None:
        """Remove what killed agents and forwarders have left half written; nobody is writing now."""
        with suppress(OSError):
            for path in statedir.leftovers(self._directory):
                path.unlink()

    # --- The process -----------------------------------------------------------

    @contextmanager
    def _running(self) -> Iterator[Running | None]:
        """Whoever holds the lock; None if nobody does."""
        running = self._find()
        try:
            yield running
        finally:
            if running:
                os.close(running.pidfd)

    def _find(self) -> Running | None:
        """The lock's holder is asked again with its pidfd open: pids are used twice."""
        deadline = time.monotonic() + _START_S
        while (said := self._holder()) is not None:
            pid, _, who = said.partition(" ")
            if pid:
                with suppress(ProcessLookupError):
                    pidfd = os.pidfd_open(int(pid))
                    if self._holder() == said:
                        return Running(int(pid), who, pidfd)
                    os.close(pidfd)
            if time.monotonic() > deadline:
                raise KernelError(f"{self._directory / LOCK} is held by an unknown process: end it")
            time.sleep(_POLL_S)  # it has the lock and is about to write its name
        self._reap()
        return None

    def _reap(self) -> None:
        """A forwarder of ours that ended by itself: leave no zombie."""
        if self._child:
            with suppress(ChildProcessError):
                if os.waitpid(self._child, os.WNOHANG) == (0, 0):
                    return
            self._child = 0

    def _holder(self) -> str | None:
        """What the lock's holder says of itself; None if nobody holds it. KernelError."""
        try:
            return lockfile.holder(self._directory / LOCK)
        except OSError as error:
            raise KernelError(f"{self._directory / LOCK}: {error.strerror}") from error

    def _spawn(self) -> None:
        """Start the process and return when it forwards.

        In a session of its own and with nothing of ours open but stderr, so that it stays.
        -S: it needs the standard library only, and of `site` not even the memory.
        """
        command = [sys.executable, "-S", "-P", "-m", "ctl.backend.udp",
                   str(self._directory.resolve()), self.device, self._local, str(self._port)]  # fmt: skip
        theirs, ours = os.pipe2(os.O_CLOEXEC)[::-1]
        try:
            self._child = os.posix_spawn(
                sys.executable,
                command,
                {"PYTHONPATH": str(Path(ctl.__file__).parent.parent)},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, theirs, 1),
                ],
                setsid=True,
            )
        except OSError as error:
            os.close(ours)
            raise KernelError(f"{sys.executable}: {error.strerror}") from error
        finally:
            os.close(theirs)
        said = _first_line(ours)
        if said != READY:
            with suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)
            self._child = 0
            raise KernelError(f"udp forwarder: {said or 'it ended before it was ready'}")

    def _end(self, running: Running) -> None:
        running.signal(signal.SIGTERM)
        if not running.ended(_END_S):
            running.signal(signal.SIGKILL)
            if not running.ended(_END_S):
                raise KernelError(f"the udp forwarder (pid {running.pid}) does not end")

    # --- The table -------------------------------------------------------------

    def _update(self, routes: TunnelRoutes, running: Running) -> None:
        if routes == self._routes:
            return
        self._routes = None
        generation = self._write(routes)
        running.signal(signal.SIGHUP)
        deadline = time.monotonic() + _UPDATE_S
        while self._generation() != generation:
            if running.ended(_POLL_S):
                raise KernelError("the udp forwarder ended while it was given new routes")
            if time.monotonic() > deadline:
                raise KernelError(f"the udp forwarder (pid {running.pid}) does not take new routes")
        self._routes = routes

    def _generation(self) -> int:
        """Of the table that the forwarder uses; 0 if that cannot be said."""
        try:
            return stats.read(str(self._directory / STATS))["generation"]
        except (OSError, ValueError):
            return 0

    def _write(self, routes: TunnelRoutes) -> int:
        """The table file, in one step; returns its generation, which no earlier one had."""
        generation = time.time_ns()
        peers = [(str(subnet), str(host)) for subnet, host in routes.peers.items()]
        path = self._directory / TABLE
        try:
            statedir.write_atomically(path, format_table(str(routes.own), peers, generation))
        except OSError as error:
            raise KernelError(f"{path}: {error.strerror}") from error
        return generation


def _first_line(fd: int) -> str:
    """What the child says first, within its time; empty if it ends without a word."""
    with os.fdopen(fd, "rb") as pipe:
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        if not poll.poll(_START_S * 1000):
            return f"not ready in {_START_S:.0f} s"
        return pipe.readline().decode(errors="replace").strip()
