"""Our own etcd leases ("grants" here, since a lease is a subnet): the time that keys have left.

A node has one, renewed by a keep-alive that writes nothing and that no peer hears of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ctl.process.clock import uptime
from ctl.store.etcd.client import EtcdClient, GrantGone
from ctl.store.etcd.schema import integer

SLACK_S: Final = 1.0
"""Two ends of a lease that differ by fewer seconds are the same one, computed at two times."""


def _alike(one: int, other: int) -> bool:
    """Whether two times to live come from the same setting: a slow call shifts them a little."""
    return abs(one - other) <= max(2, max(one, other) // 20)


@dataclass(slots=True)
class Grant:
    """An etcd lease, as of its last renewal."""

    number: int
    asked: int
    """How many seconds of life we asked for; etcd may give more."""
    ttl: int
    renewed: float
    """When it was last renewed, in seconds of `ctl.process.clock.uptime`."""
    expires_at: float
    """When it ends if it is not renewed, in seconds since the epoch."""


class Grants:
    """Those that this process made or took over. `clock` gives seconds since the epoch."""

    def __init__(self, client: EtcdClient, clock: Callable[[], float]) -> None:
        self._client, self._clock = client, clock
        self._known: dict[int, Grant] = {}

    def lasting(self, ttl: int) -> Grant:
        """A grant of `ttl` seconds, from now on: renewed if we have one, else new. StoreError."""
        for grant in tuple(self._known.values()):
            if _alike(grant.asked, ttl) and (renewed := self.renew(grant.number, ttl)):
                return renewed
        answer = self._client.call("/v3/lease/grant", {"TTL": str(ttl)})
        return self._note(integer(answer, "ID"), ttl, integer(answer, "TTL"))

    def renew(self, number: int, ttl: int) -> Grant | None:
        """Give the grant its whole life again; None if it has gone, or lives for another time than `ttl`.

        `number` may be one of an earlier life of this node.
        """
        try:
            answer = self._client.call("/v3/lease/keepalive", {"ID": str(number)})
        except GrantGone:
            answer = {}
        given = integer(answer.get("result", answer), "TTL")
        if given <= 0:
            self._known.pop(number, None)
            return None
        known = self._known.get(number)
        if not _alike(ttl, known.asked if known else given):
            return None
        return self._note(number, ttl, given)

    def ends(self) -> dict[int, float]:
        """When each ends, seconds since the epoch by today's clock."""
        return {grant.number: self._end(grant) for grant in tuple(self._known.values())}

    def _end(self, grant: Grant) -> float:
        """The wall clock may have been set since: what counts is the time that has passed."""
        now = self._clock() + grant.ttl - (uptime() - grant.renewed)
        if abs(now - grant.expires_at) > SLACK_S:
            grant.expires_at = now
        return grant.expires_at

    def _note(self, number: int, asked: int, ttl: int) -> Grant:
        grant = Grant(number, asked, ttl, uptime(), self._clock() + ttl)
        self._known[number] = grant
        return grant
