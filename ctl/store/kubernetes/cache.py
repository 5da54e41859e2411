"""The Nodes as a list and the events after it have them. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ctl.core.lease import rank
from ctl.core.model import Lease, Snapshot
from ctl.store.kubernetes.schema import Entry, number


@dataclass(frozen=True, slots=True)
class Listing:
    """All Nodes at one version of the list."""

    version: str
    entries: Mapping[str, Entry]
    """By name."""


class Cache:
    """Nodes by name. Not for several threads at once. `own`: the name of ours."""

    def __init__(self, own: str) -> None:
        self._own = own
        self.version = ""
        """The resourceVersion up to which all is known; a watch goes on from there."""
        self.entries: dict[str, Entry] = {}
        self._changes = 0
        self._snapshot: Snapshot | None = None
        """What `snapshot` gave last; None: something has changed since."""

    def load(self, listing: Listing) -> bool:
        """Become `listing`; whether that changed anything. Whole entries are compared, not names."""
        changed = self.entries != listing.entries
        self.version = listing.version
        if changed:
            self.entries = dict(listing.entries)
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
        self.entries[entry.name] = entry
        changed = known is None or _content(known) != _content(entry)
        if changed:
            self._touch()
        return changed

    def remove(self, name: str, uid: str = "") -> bool:
        """A Node is deleted, the one with this uid; whether it was known. "": whichever has the name."""
        known = self.entries.get(name)
        if known is None or (uid and known.uid != uid):
            return False  # the one of this name that we know was created after it
        del self.entries[name]
        self._touch()
        return True

    def _touch(self) -> None:
        self._changes += 1
        self._snapshot = None

    def snapshot(self) -> Snapshot:
        """All leases in order, one for each subnet; the same object for as long as nothing changes."""
        if self._snapshot is None:
            problems = [entry.problem for entry in self.entries.values() if entry.problem]
            leases = tuple(self._distinct(problems))
            self._snapshot = Snapshot(leases, self._changes, tuple(sorted(problems)))
        return self._snapshot

    def _distinct(self, problems: list[str]) -> Iterator[Lease]:
        """Of two Nodes with one podCIDR ours goes first, then the one that was there first."""
        held = [entry for entry in self.entries.values() if entry.lease is not None]
        held.sort(key=lambda entry: (_rank(entry), entry.name != self._own, entry.born, entry.name))
        before: Entry | None = None
        for entry in held:
            assert entry.lease is not None
            if before is not None and before.subnet == entry.subnet:
                problems.append(
                    f"node {entry.name}: its podCIDR {entry.subnet} is that of {before.name}: not used"
                )
                continue
            before = entry
            yield entry.lease


def _rank(entry: Entry) -> tuple[int, int]:
    assert entry.lease is not None
    return rank(entry.lease)


def _content(entry: Entry) -> Entry:
    """What of it is of interest to others."""
    return replace(entry, version=0, mark=0)
