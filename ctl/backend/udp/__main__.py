"""The forwarder's process: `python -m ctl.backend.udp DIRECTORY DEVICE LOCAL PORT`.

Started by ctl.backend.udp.client and by nobody else. In DIRECTORY it reads `table`, again
on SIGHUP; holds `lock`, which says who it is; counts in `stats`. It writes `ready` to
stdout once it forwards, or why it cannot. SIGTERM ends it; the device stays, with its routes.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from ctl.backend.udp import stats, tun
from ctl.backend.udp.files import LOCK, READY, STATS, TABLE, identity
from ctl.backend.udp.forwarder import Forwarder
from ctl.backend.udp.table import Table, parse_table
from ctl.backend.udp.underlay import Underlay
from ctl.core.errors import AgentError, ConfigError, OvnetError
from ctl.process import lockfile

_PATIENCE_S: Final = 0.5
"""How many seconds another holder of the lock is waited for: who looks whether a forwarder runs holds it
for an instant."""


def _answer(text: str) -> None:
    """The one line that whoever started us waits for."""
    with suppress(OSError):
        os.write(1, f"{text}\n".encode())
        os.close(1)


def _say(text: str) -> None:
    """To stderr, which may be a pipe that nobody reads any more."""
    with suppress(OSError):
        os.write(2, f"udp forwarder: {text}\n".encode())


def _lock(directory: str, who: str) -> int:
    """Be the only one in this directory, until the process ends. AgentError."""
    try:
        return lockfile.take(Path(directory, LOCK), f"{os.getpid()} {who}", _PATIENCE_S, mode=0o644)
    except lockfile.Held:
        raise AgentError(f"another forwarder runs in {directory}") from None
    except OSError as error:
        raise AgentError(f"{directory}/{LOCK}: {error.strerror}") from error


def _load(directory: str) -> Table:
    """The table file. ConfigError."""
    path = f"{directory}/{TABLE}"
    try:
        with open(path, encoding="ascii") as file:
            return parse_table(file.read(), path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error


class _Signals:
    """Signals as bytes in a pipe, which the loop can wait for."""

    def __init__(self) -> None:
        self.fd, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)

    def take(self) -> set[int]:
        """Those that came since the last call."""
        with suppress(BlockingIOError):
            return set(os.read(self.fd, 512))
        return set()


def serve(directory: str, device: str, local: str, port: int) -> None:
    """Forward until SIGTERM. OvnetError if that cannot be."""
    signals = _Signals()
    held = _lock(directory, identity(device, local, port))
    counters = stats.create(f"{directory}/{STATS}")
    table, underlay = _load(directory), Underlay(local, port)
    # The device last: a start that fails leaves none behind.
    forwarder = Forwarder(tun.open_device(device), underlay, counters, table)
    forwarder.use(table)

    def reload() -> None:
        try:
            forwarder.use(_load(directory))
        except ConfigError as error:
            counters[stats.TABLE_ERRORS] += 1
            _say(f"{error}; going on with the table from before")

    def handle() -> bool:
        came = signals.take()
        if signal.SIGHUP in came:
            reload()
        return not came & {signal.SIGTERM, signal.SIGINT}

    # Nothing here makes cycles, and a collection would only hold packets up.
    gc.freeze()
    gc.disable()
    _answer(READY)
    forwarder.run(signals.fd, handle)
    os.close(held)


def main() -> int:
    """Exit code: 0 after SIGTERM, else that of the error, whose line is on stderr."""
    try:
        serve(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
    except OvnetError as error:
        _say(str(error))
        _answer(str(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
