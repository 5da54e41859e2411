"""The leases as a list and the events after it have them. Pure.

A snapshot after an event costs no parsing and no sorting: leases are kept in order, by
first address and then from the largest subnet down, and an event moves one of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Network

from ctl.core.lease import rank
from ctl.core.model import Lease, Snapshot
from ctl.store.etcd.schema import Entry

Rank = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Listing:
    """All entries at one revision."""

    revision: int
    cluster: int
    """The id of the cluster that was listed; the revisions of another one mean something else."""
    entries: Mapping[bytes, Entry]


@dataclass(frozen=True, slots=True)
class Event:
    """A change of one key; `entry` None: it was deleted."""

    key: bytes
    revision: int
    entry: Entry | None


class Cache:
    """Entries by key, and their leases in order. Not for several threads at once."""

    def __init__(self, config: bytes) -> None:
        """`config`: the key of the network config."""
        self._config = config
        self.revision = 0
        self.cluster = 0
        self.entries: dict[bytes, Entry] = {}
        self._leases: list[Lease] = []
        """In the order of their ranks."""
        self._problems: dict[bytes, str] = {}
        self._second: dict[bytes, Rank] = {}
        """Leases on an IPv4 subnet for which there is another key: with an IPv6 subnet, or another one."""
        self._granted: dict[int, set[bytes]] = {}
        """The keys that hang on each etcd lease of our own, by its number."""
        self._endings: dict[IPv4Network, Lease] = {}
        """Our own leases by subnet, as the last snapshot had them."""

    @property
    def config(self) -> Entry | None:
        """The network config's entry."""
        return self.entries.get(self._config)

    def load(self, listing: Listing) -> bool:
        """Become `listing`; whether that changed anything. Whole entries are compared, not keys."""
        changed = self.entries != listing.entries
        self.revision, self.cluster = listing.revision, listing.cluster
        if not changed:
            return False
        self.entries = dict(listing.entries)
        self._problems = {entry.key: entry.problem for entry in self.entries.values() if entry.problem}
        self._order()
        self._granted = {}
        return True

    def _order(self) -> None:
        """The leases by their rank; of two on one subnet the first by key."""
        found: dict[Rank, Lease] = {}
        self._second = {}
        for entry in sorted(self.entries.values(), key=lambda entry: entry.key):
            if entry.lease is None:
                continue
            if (ranked := rank(entry.lease)) in found:
                self._put_second(entry, ranked)
            else:
                found[ranked] = entry.lease
        self._leases = [found[ranked] for ranked in sorted(found)]

    def _place(self, ranked: Rank) -> int:
        """Where among the leases the one of that rank is, or would be."""
        return bisect_left(self._leases, ranked, key=rank)

    def _put_second(self, entry: Entry, ranked: Rank) -> None:
        self._second[entry.key] = ranked
        text = f"etcd key {entry.key.decode(errors='backslashreplace')}: another key has its IPv4 subnet too"
        self._problems[entry.key] = text

    def take(self, events: Iterable[Event]) -> bool:
        """Take events in their order; whether any was news. Those that a list had already are not."""
        news = False
        for event in events:
            if event.revision <= self.revision and not self._is_later_part(event):
                continue
            news = True
            self._forget(event.key)
            if event.entry is not None:
                self._remember(event.entry)
            self.revision = max(self.revision, event.revision)
        return news

    def _is_later_part(self, event: Event) -> bool:
        """One transaction changes several keys at one revision: the second is no repetition."""
        known = self.entries.get(event.key)
        if event.entry is None:
            return event.revision == self.revision and known is not None and known.revision < event.revision
        return event.revision == self.revision and (known is None or known.revision < event.revision)

    def snapshot(self, ends: Mapping[int, float]) -> Snapshot:
        """All leases; `ends`: when the etcd leases of our own expire, by number."""
        leases = list(self._leases)
        self._granted = {grant: self._keys_of(grant) for grant in ends}
        for grant, end in ends.items():
            for key in self._granted[grant]:
                lease = self.entries[key].lease
                if lease is not None and key not in self._second:
                    leases[self._place(rank(lease))] = self._ending(lease, end)
        return Snapshot(tuple(leases), self.revision, tuple(sorted(self._problems.values())))

    def _keys_of(self, grant: int) -> set[bytes]:
        """Looked for once: an index of all leases' would be for nothing."""
        known = self._granted.get(grant)
        if known is None:
            known = {entry.key for entry in self.entries.values() if entry.grant == grant}
        return known

    def _ending(self, lease: Lease, end: float) -> Lease:
        """`lease` with its end; the same object for as long as both are the same."""
        known = self._endings.get(lease.subnet)
        if known is None or known.revision != lease.revision or known.expires_at != end:
            known = self._endings[lease.subnet] = replace(lease, expires_at=end)
        return known

    def _forget(self, key: bytes) -> None:
        entry = self.entries.pop(key, None)
        if entry is None:
            return
        self._problems.pop(key, None)
        self._granted.get(entry.grant, set()).discard(key)
        if self._second.pop(key, None) is None and entry.lease is not None:
            ranked = rank(entry.lease)
            del self._leases[self._place(ranked)]
            self._follow(ranked)

    def _follow(self, ranked: Rank) -> None:
        """A subnet's lease has gone: another key's takes its place, if there is one."""
        heirs = sorted(key for key, each in self._second.items() if each == ranked)
        for key in heirs[:1]:
            del self._second[key], self._problems[key]
            self._seat(self.entries[key])

    def _remember(self, entry: Entry) -> None:
        self.entries[entry.key] = entry
        if entry.grant in self._granted:
            self._granted[entry.grant].add(entry.key)
        if entry.problem:
            self._problems[entry.key] = entry.problem
        self._seat(entry)

    def _seat(self, entry: Entry) -> None:
        """Put an entry's lease among the others, if it is one."""
        if entry.lease is None:
            return
        place = self._place(ranked := rank(entry.lease))
        if any(rank(each) == ranked for each in self._leases[place : place + 1]):
            self._put_second(entry, ranked)
        else:
            self._leases.insert(place, entry.lease)
