"""A node's place in the cluster, as the store tells it: its lease kept, everyone's leases read.

What the store says is not believed blindly: see `Membership.sync`. Belongs to one thread.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from ctl.cluster.leasing import LeaseHolder
from ctl.core.errors import ConfigError, LeaseConflict, StoreError
from ctl.core.findings import Concern, Problems
from ctl.core.following import followed, unfollowed
from ctl.core.host import Identity, Surroundings
from ctl.core.lease import NOTHING_AROUND, rank
from ctl.core.model import IPv4Network, Lease, Network, Snapshot, Subnets
from ctl.core.ports import Holding, LeaseStore
from ctl.core.report import LeaseReport, StoreReport
from ctl.core.roster import moves
from ctl.process.clock import JumpWatch
from ctl.settings.config import Settings

log = logging.getLogger(__name__)


HOLD_S: Final = 3.0
"""How long a lease that is gone is kept in any case: its node may be about to claim it again."""


def _vanished(before: Sequence[Lease], after: Sequence[Lease]) -> tuple[Lease, ...]:
    """Leases that are gone, where neither their subnet nor their host has a new one."""
    changes = moves(before, after)
    if not changes.gone:
        return ()
    subnets, hosts = {lease.subnet for lease in changes.new}, {lease.host for lease in changes.new}
    return tuple(lease for lease in changes.gone if lease.subnet not in subnets and lease.host not in hosts)


def _with(snapshot: Snapshot, kept: tuple[Lease, ...]) -> Snapshot:
    """The snapshot as if these were still in it."""
    if not kept:
        return snapshot
    return replace(snapshot, leases=tuple(sorted((*snapshot.leases, *kept), key=rank)))


class Membership:
    """Follows the store for a node. `clock` gives seconds since the epoch, `steady` such that nobody sets."""

    def __init__(
        self,
        settings: Settings,
        store: LeaseStore,
        network: Network,
        identity: Identity,
        problems: Problems,
        *,
        clock: Callable[[], float],
        steady: Callable[[], float],
    ) -> None:
        self.network = network
        """That which this node runs with."""
        self.wanted = network
        """What it is to run with from now on, as far as the store's can be followed without a restart."""
        self.conflict = ""
        """Who holds our subnet in our place, one line; empty: nobody."""
        self.snapshot: Snapshot | None = None
        """The leases as they are believed to be, ours included; None: none were read yet, which must
        not be taken for none being there."""
        self.report = StoreReport(settings.store)
        self._holder = LeaseHolder(
            store, identity, ttl=settings.lease_ttl, margin=settings.renew_margin, clock=clock
        )
        self._store, self._problems = store, problems
        self._clock, self._steady = clock, steady
        self._patience: Final = settings.resync_interval
        """Seconds for which the store has to say the same before it is believed."""
        self._jumps = JumpWatch(clock, steady)
        self._doubt_until = 0.0
        """Until then, by `steady`, no lease that vanishes is believed to be gone: a wall clock was set,
        or the store has lost data."""
        self._suspicious_since: float | None = None
        """When, by `steady`, the store was first seen without most of the leases that we know; None:
        it has them."""
        self._gone_since: dict[IPv4Network, float] = {}
        """When, by `steady`, each of a few leases was first seen to be gone, by its subnet. They count
        for HOLD_S as if they were there."""

    # --- Our lease -------------------------------------------------------------

    def join(self, previous: Subnets | None, around: Surroundings = NOTHING_AROUND) -> Lease:
        """Find or create our lease, `previous` if it can be had; `around`: what else is on this host.

        Raises as LeaseHolder.acquire.
        """
        return self._holder.acquire(self.network, previous, around)

    @property
    def lease(self) -> Lease:
        """Ours; only after `join`."""
        assert self._holder.lease is not None, "join() comes first"
        return self._holder.lease

    @property
    def holding(self) -> Holding:
        """Our lease, and whether another has its subnet; only after `join`."""
        return Holding(self.lease, fenced=bool(self.conflict))

    def present(self, identity: Identity) -> None:
        """From the next `sync` on our lease says this of us."""
        self._holder.identity = identity

    def look_in(self) -> float:
        """Seconds until `sync` has something to do though the store says nothing; inf: never.

        Our lease is to be renewed then, or one that is gone has been kept for long enough.
        """
        kept = [since + HOLD_S for since in self._gone_since.values()]
        renewal = math.inf if self.conflict else self._holder.next_renewal() - self._clock()
        return min(renewal, min(kept, default=math.inf) - self._steady())

    def lease_report(self) -> LeaseReport:
        """Of our own lease."""
        lease = self.lease
        renew_at = self._holder.next_renewal() if lease.expires_at is not None else None
        ipv6 = lease.ipv6.subnet if lease.ipv6 else None
        return LeaseReport(lease.subnet, lease.expires_at, renew_at, self.conflict, ipv6)

    # --- What the store says ---------------------------------------------------

    def sync(self) -> bool:
        """Keep our lease, read everyone's; False, and nothing changed, if the store does not answer."""
        try:
            self._keep_lease()
            self.snapshot = self._believe(self._store.snapshot())
            self._check_network()
        except StoreError as error:
            if str(error) != self.report.error:
                log.error("store: %s; going on with the leases known", error)
            self.report = replace(self.report, up=False, error=str(error))
            return False
        if not self.report.up and self.report.error:
            log.info("store is back")
        self.report = StoreReport(self.report.url, True, self._clock())
        return True

    def clock_was_set(self) -> bool:
        """Ends of leases are by the wall clock: ours is written anew, others' are doubted for a while."""
        jump = self._jumps.jumped()
        if jump:
            log.warning("the wall clock was set by %+.0f s", jump)
            self._doubt_until = self._steady() + self._patience
            self._holder.distrust_end()
        return bool(jump)

    def _keep_lease(self) -> None:
        before = self._holder.reclaims
        try:
            self._holder.keep()
        except LeaseConflict as error:
            if str(error) != self.conflict:
                log.critical("lease conflict: %s; fenced: no new containers here", error)
            self.conflict = str(error)
        else:
            if self.conflict:
                log.warning("%s is ours again: not fenced any more", self.lease.subnet)
            self.conflict = ""
        if self._holder.reclaims != before:
            # Who has lost ours has perhaps lost others, whose nodes will claim them again as we do.
            log.error("%s had gone from the store: claimed again", self.lease.subnet)
            self._doubt_until = self._steady() + self._patience

    def _believe(self, snapshot: Snapshot) -> Snapshot:
        """Many peers gone at once: kept until the store says the same for a while. Few: for a moment.

        A store that was restored empty, or a broken one, must not take the network down, nor
        a wall clock that was set: then all leases of a file may have ended at once.
        """
        before = self.snapshot.leases if self.snapshot else ()
        gone, now = _vanished(before, snapshot.leases), self._steady()
        if len(gone) <= (max(3, len(before) // 2) if now >= self._doubt_until else 0):
            self._suspicious_since = None
            self._problems[Concern.MASS_REMOVAL] = ()
            return _with(snapshot, self._briefly_kept(gone, now))
        self._gone_since = {}
        if self._suspicious_since is None:
            self._suspicious_since = now
            log.critical("%d of %d leases are gone at once: not believed yet", len(gone), len(before))
        if now >= self._suspicious_since + self._patience:
            self._suspicious_since = None
            self._problems[Concern.MASS_REMOVAL] = ()
            return self._store.snapshot(fresh=True)
        text = f"{len(gone)} of {len(before)} leases are gone from the store at once: kept for now"
        self._problems[Concern.MASS_REMOVAL] = (text,)
        return _with(snapshot, gone)

    def _briefly_kept(self, gone: tuple[Lease, ...], now: float) -> tuple[Lease, ...]:
        """Those that are gone for less than HOLD_S: a node that lives claims its lease again at once."""
        since = {lease.subnet: self._gone_since.get(lease.subnet, now) for lease in gone}
        kept = tuple(lease for lease in gone if now < since[lease.subnet] + HOLD_S)
        self._gone_since = {lease.subnet: since[lease.subnet] for lease in kept}
        return kept

    def _check_network(self) -> None:
        text = ""
        try:
            stored = self._store.read_network()
            if stored is None:
                text = "the network is gone from the store: run ovctl network init, as for a new one"
            else:
                self.wanted = followed(self.network, stored)
                if left := unfollowed(self.network, stored):
                    text = f"the network in the store has changed: restart this agent to follow it ({left})"
        except ConfigError as error:
            text = f"the network in the store is not usable any more: {error}"
        if text and (text,) != self._problems.get(Concern.NETWORK):
            log.error("%s", text)
        self._problems[Concern.NETWORK] = (text,) if text else ()
