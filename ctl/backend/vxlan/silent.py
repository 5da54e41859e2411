"""The vxlan backend looks for peers that packets go to and nothing comes back from, and asks these.

An echo goes to each suspect at a look, and the next one sees who has answered: nobody waits.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Final, Generic, Protocol

from ctl.core.losing import LOOK_S
from ctl.core.model import A
from ctl.core.silence import PACKETS, Silence
from ctl.kernel.bpf.maps import Maps
from ctl.kernel.echo import SMALL, Echo

log = logging.getLogger(__name__)

TOLD: Final = 10
"""So many peers are named; a peer is one line."""


class Who(Protocol[A]):
    """Where overlay addresses are looked up: our own, and that of the peer at a host."""

    def own_address(self) -> A | None: ...
    def peer_address(self, host: A, /) -> A | None: ...


class SilentPeers(Generic[A]):
    """Looks every so often, and remembers whom it has asked. One thread's.

    `interval`: seconds between two looks at everything, which is the longest between two of these;
    `steady`: seconds that only go up.
    """

    def __init__(
        self,
        who: Who[A],
        interval: float,
        *,
        echo: Callable[[A], Echo[A]] = Echo,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._who, self._open, self._steady = who, echo, steady
        self._pause: Final = min(LOOK_S, interval)
        self._next = -math.inf
        self._silence = Silence[A]()
        self._echo: Echo[A] | None = None
        """Through which questions are out; None: there are none."""
        self._asked: dict[A, A] = {}
        """Hosts of the peers that were asked at the last look, by the address that was."""
        self.silent: Mapping[A, int] = {}
        """Hosts of the peers that do not answer, and how many packets went to each."""

    def look(self, opened: Maps[A]) -> None:
        """Once it is time. AgentError or KernelError if nobody can be asked, or the map not be read."""
        now = self._steady()
        if now < self._next:
            return
        self._next = now + self._pause
        if self._echo is not None:
            self._silence.heard([self._asked[each] for each in self._echo.answered() & self._asked.keys()])
        suspects = self._silence.looked(opened.busy_peers())
        asked = set(self._asked.values())
        self._say({host: sent for host, sent in suspects.items() if host in asked})
        self._ask(suspects)

    def _ask(self, suspects: Mapping[A, int]) -> None:
        addresses = {address: host for host in suspects if (address := self._who.peer_address(host))}
        self.close()
        source = self._who.own_address()
        if addresses and source:
            self._echo = self._open(source)
            self._echo.send(addresses, SMALL, PACKETS)
            self._asked = addresses

    def _say(self, silent: Mapping[A, int]) -> None:
        for host in silent.keys() - self.silent.keys():
            log.warning("nothing comes back from %s, which %d packets went to", host, silent[host])
        for host in self.silent.keys() - silent.keys():
            log.info("%s is not silent any more", host)
        self.silent = silent

    def close(self) -> None:
        """Nobody is asked any more."""
        if self._echo is not None:
            self._echo.close()
        self._echo, self._asked = None, {}


def lines(silent: Mapping[A, int], port: int) -> tuple[str, ...]:
    """A line for each of the first, and one for the others; `port`: UDP's, of the tunnel."""
    told = [
        f"nothing comes back from {host}, which {silent[host]} packets went to and which answers no echo: "
        f"is it up, and UDP port {port} let through on the way, both ways? See ovctl doctor --peer {host}"
        for host in sorted(silent, key=int)[:TOLD]
    ]
    others = len(silent) - len(told)
    return (*told, f"nor from {others} peers more") if others else tuple(told)
