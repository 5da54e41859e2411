"""The addresses behind a server's name, found in a given time.

The resolver knows no time limit: with DNS away it takes half a minute, in which a node
would look at nothing else. So it is asked in a thread, and where it is slow, the addresses
that it gave before serve: what is there still has to prove its name by TLS.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

Address = tuple[socket.AddressFamily, Any]
"""An address family, and an address as `socket.connect` takes it."""

PATIENCE_S: Final = 1.0
"""How many seconds the resolver is waited for where an older answer would serve."""

_PASSING: Final = frozenset({socket.EAI_AGAIN, socket.EAI_FAIL, socket.EAI_SYSTEM})
"""The resolver's errors that tell about itself, and nothing about the name."""


class Name:
    """A host and port. Not for several threads at once."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._known: Sequence[Address] = ()
        """The addresses of the resolver's last good answer; empty before the first."""
        self._error: socket.gaierror | None = None
        """Why the last question brought no addresses; None if it did."""
        self._asking: threading.Thread | None = None
        """The thread that asks the resolver; it may outlive the call that started it."""
        self._asked = 0.0
        try:
            self._numeric = self._look_up(socket.AI_NUMERICHOST)
        except socket.gaierror:
            self._numeric = ()

    def addresses(self, seconds: float) -> Sequence[Address]:
        """Where to connect to, within `seconds`. socket.gaierror if that is not known."""
        if self._numeric:
            return self._numeric
        if self._asking is None or not self._asking.is_alive():
            self._asking = threading.Thread(target=self._ask, name="store-name", daemon=True)
            self._asked = time.monotonic()
            self._asking.start()
        if self._known:
            seconds = min(self._asked + PATIENCE_S - time.monotonic(), seconds)
        self._asking.join(max(seconds, 0))
        late = socket.gaierror(socket.EAI_AGAIN, "name resolution timed out")
        # What it has found is read only once it has ended, which may be just after the wait.
        error = late if self._asking.is_alive() else self._error
        if error is None or (self._known and error.errno in _PASSING):
            return self._known
        raise socket.gaierror(*error.args)

    def _ask(self) -> None:
        try:
            self._known = self._look_up(0)
        except socket.gaierror as error:
            self._error = error
        else:
            self._error = None

    def _look_up(self, flags: int) -> Sequence[Address]:
        try:
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM, flags=flags)
        except UnicodeError as error:
            raise socket.gaierror(socket.EAI_NONAME, "not a host name") from error
        return [(family, address) for family, _, _, _, address in found]
