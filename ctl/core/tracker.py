"""Desired and actual state of one table, change by change. Pure.

    tracker.put(key, value) / tracker.drop(key)     what is wanted has changed
    tracker.saw(table.read())                       what is there, after a doubt
    delta = tracker.delta()                         what has to be done, if anything
    with tracker.applying(delta): ...               it is being done
    tracker.doubt()                                 someone else may have been at it: read again

What is there is not kept: it is what is wanted, but for the keys that are due. So a change
costs what it changes, and not what the table holds. What fails key by key (Unapplied) stays
due, and the rest is done; after any other failure the table has to be read again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

from ctl.core.errors import Unapplied
from ctl.core.plan import Delta

K = TypeVar("K")
V = TypeVar("V")
X = TypeVar("X")


class Tracker(Generic[K, V]):
    """One table's desired state, and what of it is not in place yet."""

    def __init__(self) -> None:
        self.desired: dict[K, V] = {}
        """All entries that are to be there."""
        self.known: bool = False
        """Whether the table holds what is wanted, but for the keys that are due; else it has to be read."""
        self._due: dict[K, None] = {}
        """Keys that have to be put, in the order in which they came."""
        self._stale: dict[K, V | None] = {}
        """Keys that have to be removed, with the value that is there; None: it is not known which."""

    def __bool__(self) -> bool:
        """Whether there is something to do, or to find out."""
        return bool(not self.known or self._due or self._stale)

    def put(self, key: K, value: V) -> None:
        """`key` is to have `value`."""
        if not self.known:  # what is due then, `saw` finds out
            self.desired[key] = value
            return
        if key in self.desired:
            if self.desired[key] != value:
                self.desired[key] = value
                self._due[key] = None
            return
        self.desired[key] = value
        if self._stale.pop(key, None) != value:
            self._due[key] = None

    def drop(self, key: K) -> None:
        """`key` is not to be there; nothing if it was not to be anyway."""
        if key not in self.desired:
            return
        was = self.desired.pop(key)
        if not self.known:
            return
        due = key in self._due
        self._due.pop(key, None)
        # Perhaps it never got there; to remove what is missing does no harm.
        self._stale[key] = None if due else was

    def want(self, desired: Mapping[K, V]) -> None:
        """All that is to be there, and nothing else."""
        for key in self.desired.keys() - desired.keys():
            self.drop(key)
        for key, value in desired.items():
            self.put(key, value)

    def doubt(self) -> None:
        """What is there may be anything: `saw` has to tell."""
        self.known = False

    def saw(self, actual: Mapping[K, V]) -> None:
        """The whole table, read now."""
        get, desired = actual.get, self.desired
        if not actual:  # a first sync's: no hash of an address is worked out again
            self._due, self._stale, self.known = dict.fromkeys(desired), {}, True
            return
        self._due = {key: None for key, value in desired.items() if get(key) != value}
        there = len(desired) - sum(key not in actual for key in self._due)
        # Mostly that is all there is: another hundred thousand look-ups would find nothing.
        odd = len(actual) > there
        self._stale = {key: value for key, value in actual.items() if key not in desired} if odd else {}
        self.known = True

    def delta(self) -> Delta[K, V]:
        """What is to be done now. Call `saw` first where `known` is false."""
        all_of_them = len(self._due) == len(self.desired)
        puts = self.desired.items() if all_of_them else ((key, self.desired[key]) for key in self._due)
        return Delta(puts=tuple(puts), removals=tuple(self._stale))

    @contextmanager
    def applying(self, delta: Delta[K, V]) -> Iterator[None]:
        """The block makes these changes to the table, and nothing else changes it meanwhile.

        The table is in doubt until the block is over, and stays so if it fails. But where it raises
        Unapplied only the keys named there are still due. A table that was in doubt before stays in
        doubt: an earlier part of the same changes has failed.
        """
        known, self.known = self.known, False
        try:
            yield
        except Unapplied as error:
            if known:
                self._applied(delta, error.keys)
            raise
        if known:
            self._applied(delta, frozenset())

    def _applied(self, delta: Delta[K, V], pending: frozenset[object]) -> None:
        self._due = _without(self._due, [key for key, _ in delta.puts], pending)
        self._stale = _without(self._stale, delta.removals, pending)
        self.known = True


def _without(keys: dict[K, X], done: Sequence[K], pending: frozenset[object]) -> dict[K, X]:
    """`keys` without those `done`, which are among them, but for the ones that are `pending`.

    A new dict where it is emptied: the old one keeps the room that all it held took.
    """
    if len(done) == len(keys) and not pending:
        return {}
    for key in done:
        if key not in pending:
            keys.pop(key, None)
    return keys or {}
