"""systemd's readiness protocol (sd_notify(3)): a datagram to the socket in $NOTIFY_SOCKET."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import Final

START_S: Final = 180.0
"""How much longer a start may take after each word of `Starting`: the pause until the next word
(38 s at the most), a store that answers slowly, and what the unit allows for compiling."""
PATIENCE_S: Final = 5.0
"""How long systemd may take to make room for a datagram; one that hangs must not hang us."""


def notify(state: str) -> None:
    """Send `state` (such as READY=1); does nothing where no one listens, or reads."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.settimeout(PATIENCE_S)
        sender.sendto(state.encode(), address)


class Starting:
    """What a start that has to wait tells systemd: for what, and that it is not stuck."""

    def __init__(self) -> None:
        self._said = False
        """Whether systemd shows something that is waited for."""

    def waits(self, why: str) -> None:
        """`systemctl status` shows `why`, and TimeoutStartSec ends nothing for START_S from now."""
        notify(f"STATUS={' '.join(why.split())}\nEXTEND_TIMEOUT_USEC={int(START_S * 1e6)}")
        self._said = True

    def goes_on(self) -> None:
        """It waits no longer: take the words back, if there were any."""
        if self._said:
            notify("STATUS=")
        self._said = False


def watchdog_seconds() -> float | None:
    """How often to say WATCHDOG=1, seconds: half of what systemd allows; None: not asked for."""
    limit = os.environ.get("WATCHDOG_USEC", "")
    ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(limit) / 2e6 if limit.isdigit() and ours else None
