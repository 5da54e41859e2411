"""Holding a lease: the loop around the decisions of ctl.core.lease.

A holder writes only by compare-and-swap on what it read. A race that it loses it runs
again; a subnet that another host holds it never takes.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from ctl.core.errors import LeaseConflict, Unassigned
from ctl.core.host import Identity, Surroundings
from ctl.core.lease import (
    NOTHING_AROUND,
    Keep,
    Pick,
    PickIPv6,
    Replace,
    choose,
    holder,
    in_words,
    named,
    renew_at,
    take,
    with_assigned_ipv6,
    with_ipv6,
)
from ctl.core.model import Lease, Network, Subnets
from ctl.core.ports import LeaseStore

ATTEMPTS: Final = 20
"""Races in a row that a node may lose: more than that many nodes never start at once."""


class LeaseHolder:
    """A node's hold on its subnet.

    `ttl` and `margin` in seconds; `clock` gives seconds since the epoch. `identity` may
    be replaced while the lease is held: `keep` then publishes the new one.
    """

    def __init__(
        self,
        store: LeaseStore,
        identity: Identity,
        *,
        ttl: float,
        margin: float,
        clock: Callable[[], float] = time.time,
        pick: Pick = random.choice,
        pick_ipv6: PickIPv6 = random.choice,
    ) -> None:
        self.identity = identity
        self.lease: Lease | None = None
        """Our lease as the store had it when we last looked; None: `acquire` has found none yet."""
        self._store = store
        self._ttl = ttl
        self._margin = margin
        self._clock = clock
        self._pick, self._pick_ipv6 = pick, pick_ipv6
        self._doubtful = False
        """Whether the end that the lease has was written by a wall clock that was set since."""
        self.reclaims = 0
        """How often our entry had gone from the store and was put there again."""

    def acquire(
        self,
        network: Network,
        previous: Subnets | None = None,
        around: Surroundings = NOTHING_AROUND,
    ) -> Lease:
        """Find or create this node's lease; `previous` are the subnets it had before.

        `around`: what else is on this host. NetworkExhausted if there is none left, ConfigError if what
        there is would cost this host its link, LeaseConflict if every race was lost.
        """
        lost: LeaseConflict | None = None
        for _ in range(ATTEMPTS):
            try:
                lease = self._try_acquire(network, previous, around)
            except LeaseConflict as error:
                # Taken by what no list shows (an entry that does not parse): not that one again.
                lost, previous = error, None
            else:
                if lease is not None:
                    return lease
        raise LeaseConflict(f"no lease after {ATTEMPTS} attempts: {lost}") from lost

    def _try_acquire(self, network: Network, previous: Subnets | None, around: Surroundings) -> Lease | None:
        """One attempt; None if it only made room for the next."""
        assigned = self._store.assigned(self.identity.node)
        leases = self._store.snapshot().leases
        if assigned is None:
            before = previous.ipv4 if previous else None
            choice = choose(network, leases, self.identity.host, before, self._pick, around)
        else:
            choice = take(assigned, leases, self.identity.node, around)
        if isinstance(choice, Replace):
            self._store.delete(choice.stale)
            return None
        kept = choice.lease if isinstance(choice, Keep) else None
        wanted = choice.lease if isinstance(choice, Keep) else Lease(choice.subnet, self.identity.host)
        if assigned is None:
            before6 = previous.ipv6 if previous else None
            wanted = with_ipv6(wanted, network, leases, self._pick_ipv6, before6, around)
        else:
            wanted = with_assigned_ipv6(wanted, network, assigned.ipv6)
        return self._write(wanted, kept, self._clock()) if kept else self._create(wanted, self._clock())

    def distrust_end(self) -> None:
        """The wall clock was set, and the lease's end is by that clock: `keep` writes it anew."""
        self._doubtful = True

    def keep(self, now: float | None = None) -> Lease:
        """Look after the lease, and return it as it now stands.

        Call it on every change of the store, and at `next_renewal`. Renews when due
        (`now` in seconds since the epoch; None: the clock's), publishes a changed
        identity, claims the subnet again if the entry has gone. LeaseConflict if another
        node holds the subnet: then stop using it.
        """
        now = self._clock() if now is None else now
        lost: LeaseConflict | None = None
        for _ in range(ATTEMPTS):
            stored = self._stored()
            try:
                return self._kept(stored, now)
            except LeaseConflict as error:
                lost = error  # changed since we read it: read again and judge anew
        raise LeaseConflict(f"lease not kept after {ATTEMPTS} attempts: {lost}") from lost

    def _kept(self, stored: Lease | None, now: float) -> Lease:
        held = self._held()
        if stored is None:
            self.reclaims += 1
            return self._create(held, now)
        # The IPv6 subnet is ours, too, whatever somebody has made of the entry.
        wanted = replace(stored, ipv6=held.ipv6)
        due = now >= renew_at(stored, self._ttl, self._margin) or (
            self._doubtful and stored.expires_at is not None
        )
        if due or self.identity.mark(wanted) != stored:
            return self._write(wanted, stored, now)
        self.lease = stored
        return stored

    def next_renewal(self) -> float:
        """When `keep` will have to renew, seconds since the epoch; inf for a reservation."""
        return renew_at(self._held(), self._ttl, self._margin)

    def _held(self) -> Lease:
        if self.lease is None:
            raise RuntimeError("no lease yet: acquire() first")
        return self.lease

    def _stored(self) -> Lease | None:
        """Our entry as the store has it; None if it has gone.

        LeaseConflict on what someone else wrote: another host, or another node that has
        our host address.
        """
        held = self._held()
        assigned = self._assigned(held)
        leases = self._store.snapshot().leases
        if assigned is not None:
            return named(leases, assigned.ipv4, self.identity.node)
        stored = holder(leases, held.subnet)
        if stored is None:
            return None
        if stored.subnet != held.subnet:
            # Ours counts if it is there: what somebody wrote around it takes nothing from us.
            stored = next((lease for lease in leases if lease.subnet == held.subnet), stored)
        if stored.subnet != held.subnet or stored.host not in (held.host, self.identity.host):
            raise LeaseConflict(
                f"lost {in_words(held)}: the store now has {in_words(stored)}; not taking it back"
            )
        if stored.revision != held.revision and stored.node not in ("", held.node, self.identity.node):
            raise LeaseConflict(
                f"{stored.node} and {held.node or 'this node'} both have host address {stored.host}:"
                f" give one of them another (--public-ip)"
            )
        return stored

    def _assigned(self, held: Lease) -> Subnets | None:
        """Our subnets if they are not for us to choose. LeaseConflict if they are none or others now."""
        try:
            assigned = self._store.assigned(self.identity.node)
        except Unassigned as error:
            raise LeaseConflict(f"lost {in_words(held)}: {error}") from error
        if assigned is None:
            return None
        # Of IPv6 as it was when we started: what comes later is for the next start.
        if assigned.ipv4 != held.subnet or (held.ipv6 and held.ipv6.subnet != assigned.ipv6):
            raise LeaseConflict(
                f"lost {in_words(held)}: the node has {assigned} now: drain it and restart this agent"
            )
        return assigned

    def _create(self, wanted: Lease, now: float) -> Lease:
        """An entry of ours on the subnets of `wanted`."""
        lease = self._lasting(Lease(wanted.subnet, self.identity.host, ipv6=wanted.ipv6), now)
        return self._wrote(self._store.put(self.identity.mark(lease), None))

    def _write(self, wanted: Lease, stored: Lease, now: float) -> Lease:
        """Put `wanted` with our identity in the place of `stored`. A reservation stays without an end."""
        endless = replace(wanted, expires_at=None, renew_at=None)
        lease = endless if stored.expires_at is None else self._lasting(wanted, now)
        return self._wrote(self._store.put(self.identity.mark(lease), stored))

    def _lasting(self, lease: Lease, now: float) -> Lease:
        """The same with its whole life before it."""
        whole = replace(lease, expires_at=now + self._ttl)
        return replace(whole, renew_at=renew_at(whole, self._ttl, self._margin))

    def _wrote(self, lease: Lease) -> Lease:
        self.lease, self._doubtful = lease, False
        return lease
