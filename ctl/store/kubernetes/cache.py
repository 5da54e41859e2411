"""The Nodes as a list and the events after it have them. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ctl.core.lease import rank
from ctl.core.model import Lease, Snapshot
from ctl.store.kubernetes.schema import Entry, number

Rank = tuple[int, int]
Key = tuple[int, int, bool, str, str]
"""A rank, whether the Node is another's, when it was created, its name."""


@dataclass(frozen=True, slots=True)
class Listing:
    """All Nodes at one version of the list."""

    version: str
    entries: Mapping[str, Entry]
    """By name."""


class Cache:
    """Nodes by name. Not for several threads at once. `own`: the name of ours.

    A snapshot after an event costs no sorting: leases are kept in order, and an event moves one of them.
    """

    def __init__(self, own: str) -> None:
        self._own = own
        self.version = ""
        """The resourceVersion up to which all is known; a watch goes on from there."""
        self.entries: dict[str, Entry] = {}
        self._keys: list[Key] = []
        self._leases: list[Lease] = []
        """In the order of their keys."""
        self._claims: dict[Rank, int] = {}
        """How many Nodes have a subnet, by its rank."""
        self._contested: set[Rank] = set()
        """Those that more than one has."""
        self._problems: dict[str, str] = {}
        self._changes = 0
        self._snapshot: Snapshot | None = None
        """What `snapshot` gave last; None: something has changed since."""

    def load(self, listing: Listing) -> bool:
        """Become `listing`; whether that changed anything. Whole entries are compared, not names."""
        changed = self.entries != listing.entries
        self.version = listing.version
        if changed:
            self._keys, self._leases, self._claims, self._contested = [], [], {}, set()
            self._problems, self.entries = {}, {}
            for entry in sorted(listing.entries.values(), key=self._key):
                self._remember(entry)
            self._touch()
        return changed

    def reached(self, version: str) -> bool:
        """All up to this version is known. Whether that is news: an older one is from before a list."""
        known, told = number(self.version), number(version)
        if known and told and told <= known:
            return False
        self.version = version
        return True

    def put(self, entry: Entry) -> bool:
        """A Node as it is now; whether that changed anything."""
        known = self.entries.get(entry.name)
        if known is not None and known.uid == entry.uid:
            if entry.version < known.version:
                return False  # from before what we have written ourselves
            if known.lease == entry.lease:
                entry = replace(entry, lease=known.lease)
        changed = known is None or _content(known) != _content(entry)
        if known is not None:
            self._forget(known)
        self._remember(entry)
        if changed:
            self._touch()
        return changed

    def remove(self, name: str, uid: str = "") -> bool:
        """A Node is deleted, the one with this uid; whether it was known. "": whichever has the name."""
        known = self.entries.get(name)
        if known is None or (uid and known.uid != uid):
            return False  # the one of this name that we know was created after it
        self._forget(known)
        self._touch()
        return True

    def snapshot(self) -> Snapshot:
        """All leases in order, one for each subnet; the same object for as long as nothing changes."""
        if self._snapshot is None:
            leases, problems = self._leases, list(self._problems.values())
            if self._contested:
                leases = list(leases)
                for rank_ in sorted(self._contested, reverse=True):
                    problems += self._settle(rank_, leases)
            self._snapshot = Snapshot(tuple(leases), self._changes, tuple(sorted(problems)))
        return self._snapshot

    def _settle(self, contested: Rank, leases: list[Lease]) -> list[str]:
        """Take those that do not get this subnet out of `leases`; a line for each."""
        first = bisect_left(self._keys, (*contested, False, "", "")) + 1
        last = first + self._claims[contested] - 1
        holder, others = leases[first - 1], leases[first:last]
        del leases[first:last]
        return [
            f"node {each.node}: its podCIDR {each.subnet} is that of {holder.node}: not used"
            for each in others
        ]

    # --- One Node ---------------------------------------------------------------

    def _key(self, entry: Entry) -> Key:
        """Of two Nodes with one podCIDR ours goes first, then the one that was there first."""
        ranked = rank(entry.lease) if entry.lease is not None else (0, 0)
        return (*ranked, entry.name != self._own, entry.born, entry.name)

    def _remember(self, entry: Entry) -> None:
        self.entries[entry.name] = entry
        if entry.problem:
            self._problems[entry.name] = entry.problem
        if entry.lease is None:
            return
        key = self._key(entry)
        place = bisect_left(self._keys, key)
        self._keys.insert(place, key)
        self._leases.insert(place, entry.lease)
        self._claim(key[:2], 1)

    def _forget(self, entry: Entry) -> None:
        del self.entries[entry.name]
        self._problems.pop(entry.name, None)
        if entry.lease is not None:
            key = self._key(entry)
            place = bisect_left(self._keys, key)
            del self._keys[place], self._leases[place]
            self._claim(key[:2], -1)

    def _claim(self, ranked: Rank, more: int) -> None:
        self._claims[ranked] = self._claims.get(ranked, 0) + more
        (self._contested.add if self._claims[ranked] > 1 else self._contested.discard)(ranked)
        if not self._claims[ranked]:
            del self._claims[ranked]

    def _touch(self) -> None:
        self._changes += 1
        self._snapshot = None


def _content(entry: Entry) -> Entry:
    """What of it is of interest to others."""
    return replace(entry, version=0, mark=0)
