"""The seams: what the agent needs of each outside world.

The edges (ctl.store, ctl.kernel) implement them, tests use in-memory twins, and
the core knows only these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

from ctl.core.model import Lease, Network, Snapshot
from ctl.core.plan import Delta

K = TypeVar("K")
V = TypeVar("V")


class Closing(Protocol):
    """Something that runs until it is closed."""

    def close(self) -> None: ...


class LeaseStore(Protocol):
    """Where nodes find the network and each other.

    Every method raises StoreError when the store cannot be reached or read.
    """

    def read_network(self) -> Network | None:
        """The network's config; None if there is none yet."""

    def write_network(self, network: Network, *, replace: bool = False) -> None:
        """Store the config. LeaseConflict if another is stored and not `replace`."""

    def snapshot(self, *, fresh: bool = False) -> Snapshot:
        """All leases that have not expired, and the revision they belong to.

        Never older than what this client wrote. While a watch runs it may be what the
        watch was told; `fresh` asks the store itself.
        """

    def put(self, lease: Lease, expected: Lease | None) -> Lease:
        """Compare-and-swap; returns the lease as stored, with its revision.

        The revision may stay the same where nothing but the end has moved.
        `expected` None: create only where no live lease overlaps the subnet.
        Else: replace only the entry that has `expected.revision`.
        LeaseConflict if another one was quicker.
        """

    def delete(self, lease: Lease) -> None:
        """Remove the entry that has `lease.revision`. LeaseConflict if it changed."""

    def watch(self, changed: Callable[[], None]) -> Closing:
        """Call `changed` from a thread of the store's own, soon after any change."""


class Table(Protocol[K, V]):
    """One kind of kernel state that reconciling keeps as desired: a BPF map, routes.

    Raises KernelError. `apply` goes on after a failing entry and raises at the end: Unapplied, if
    all entries but those that it names are as the delta has them.
    """

    def read(self) -> Mapping[K, V]:
        """What is there now, of ours."""

    def apply(self, delta: Delta[K, V]) -> None:
        """Put and remove entries, in the order given."""
