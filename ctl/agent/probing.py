"""Echoes to all peers in the background, with `--probe-interval`: who answers, how soon, how large a packet.

In a thread of its own, since it waits for answers. It changes nothing, and decides nothing for the node: what
it finds is for metrics.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, Self

from ctl.backend.site import Site
from ctl.core.errors import OvnetError
from ctl.core.family import IPV4, IPV6, Family
from ctl.core.model import Lease
from ctl.core.pace import TICK_S, Address, Pace
from ctl.core.probing import Probed
from ctl.kernel.echo import SMALL, Echo
from ctl.node.reach import addressed, answering, largest, own_address, usable

log = logging.getLogger(__name__)

Told = tuple[Site, Sequence[Lease]]
"""Where the node stands, and the leases that there are."""

_ENDING_S: Final = 5.0
"""How long a group that is being asked may take to end."""


class BackgroundProbe:
    """Asks each peer once in `interval` seconds until it is closed. `told` is called from its thread.

    `steady`: seconds that only go up.
    """

    def __init__(
        self,
        interval: float,
        told: Callable[[], Told | None],
        *,
        echo: Callable[[Any], Echo[Any]] = Echo,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self.found: Mapping[Address, Probed] = {}
        """What each peer has shown last, by its host. Replaced as a whole: any thread may read it."""
        self._interval, self._told, self._open, self._steady = interval, told, echo, steady
        self._seen: Told | None = None
        """By what the peers were looked up."""
        self._peers: dict[Address, Address] = {}
        """Overlay addresses of the peers, by host; a host with several leases is asked at one."""
        self._pace: Pace | None = None
        self._wrong = ""
        """Why nobody could be asked, once that was said."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="probe", daemon=True)

    def start(self) -> Self:
        self._thread.start()
        return self

    def close(self) -> None:
        self._ended.set()
        self._thread.join(_ENDING_S)

    def _run(self) -> None:
        pause = TICK_S
        while not self._ended.wait(pause):
            pause = self.turn()

    def turn(self) -> float:
        """Ask those whose turn it is; returns for how many seconds there is nothing to do."""
        told = self._told()
        if told is None or told[0].fenced:
            self.found, self._seen = {}, None
            return TICK_S
        site = self._look_up(told)
        self._pace = self._pace or Pace(self._interval, site.uplink.address)
        due = set(self._pace.due(self._peers.keys(), self._steady()))
        fresh = self._ask(site, {host: self._peers[host] for host in due}) if due else {}
        kept = {host: each for host, each in self.found.items() if host in self._peers and host not in due}
        self.found = kept | fresh
        return self._pace.look_in(self._steady())

    def _look_up(self, told: Told) -> Site:
        """Who the peers are; nothing is done as long as we are told the same."""
        site, leases = told
        if self._seen is None or leases is not self._seen[1] or site != self._seen[0]:
            peers, self._peers = usable(site, leases), {}
            for family in _families(site):
                for address, member in addressed(family, site, peers).items():
                    self._peers.setdefault(member.host, address)
            self._seen = told
        return site

    def _ask(self, site: Site, peers: Mapping[Address, Address]) -> dict[Address, Probed]:
        """What these show now; nothing if nobody can be asked, which is said once."""
        found: dict[Address, Probed] = {}
        try:
            for family in _families(site):
                asked = {at: host for host, at in peers.items() if at.version == family.version}
                answers = self._asked(family, site, asked) if asked else {}
                found |= {asked[at]: each for at, each in answers.items()}
        except OvnetError as error:
            if str(error) != self._wrong:
                log.warning("peers are not probed: %s", error)
            self._wrong = str(error)
            return {}
        self._wrong = ""
        return found

    def _asked(self, family: Family[Any, Any], site: Site, targets: Collection[Any]) -> dict[Any, Probed]:
        with self._open(own_address(family, site)) as echo:
            trips = answering(echo, targets, SMALL, self._ended.is_set)
            sizes = largest(echo, trips.keys(), site.mtu, self._ended.is_set)
        return {
            target: Probed(1, (trips[target],) if target in trips else (), sizes.get(target, 0))
            for target in targets
        }


def _families(site: Site) -> list[Family[Any, Any]]:
    return [IPV4, IPV6] if site.has_ipv6 else [IPV4]
