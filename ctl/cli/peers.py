"""What commands about the way to other nodes have in common: which of them, and how far they are."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeVar

from ctl.cli.output import say
from ctl.core.errors import NotFound

if TYPE_CHECKING:
    from ctl.core.model import Lease

T = TypeVar("T")

MOST_PEERS: Final = 64
"""How many are asked unless all are asked for."""


class NoSuchPeer(NotFound):
    """Somebody has asked for a peer that there is not."""


def named(peers: Sequence[Lease], names: Sequence[str]) -> list[Lease]:
    """Those of these names: host, node or subnet. NoSuchPeer for a name that nobody has."""
    by_name: dict[str, list[Lease]] = {}
    for lease in peers:
        for name in {str(lease.host), lease.node, str(lease.subnet)}:
            by_name.setdefault(name, []).append(lease)
    for name in names:
        if name not in by_name:
            raise NoSuchPeer(f"no peer {name}: ovctl lease list shows them, by subnet, host and node")
    return [lease for lease in peers if any(lease in by_name[name] for name in names)]


def chosen(peers: Sequence[Lease], names: Sequence[str], *, everyone: bool) -> Sequence[Lease]:
    """Those of these names; without any the first ones, or all. NoSuchPeer."""
    return named(peers, names) if names else first(peers, MOST_PEERS, "peers are asked", everyone=everyone)


def first(each: Sequence[T], most: int, what: str, *, everyone: bool) -> Sequence[T]:
    """The first of them, if there are more than `most`, which is said; all for `everyone`."""
    if len(each) <= most or everyone:
        return each
    say(f"{most} of {len(each)} {what}: all of them with --all")
    return each[:most]


SHORT: Final = 200
"""So few steps need no bar."""


@contextmanager
def progress(steps: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, for what takes long; nothing elsewhere. Gives what is called after each step."""
    done, shown = 0, sys.stderr.isatty() and steps >= SHORT

    def step() -> None:
        nonlocal done
        done += 1
        if shown and (done % 50 == 0 or done == steps):
            share = min(done / steps, 1)
            sys.stderr.write(f"\r[{'#' * int(30 * share):<30}] {share:4.0%}")
            sys.stderr.flush()

    try:
        yield step
    finally:
        if shown:
            sys.stderr.write("\n")
