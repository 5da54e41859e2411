"""What commands about the way to other nodes have in common: which of them, and how far they are."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ctl.core.errors import NotFound

if TYPE_CHECKING:
    from ctl.backend.site import Site
    from ctl.core.model import Lease


class NoSuchPeer(NotFound):
    """Somebody has asked for a peer that there is not."""


def usable(site: Site, leases: Sequence[Lease]) -> list[Lease]:
    """Those of them that are peers' and are used."""
    from ctl.core.family import IPV4
    from ctl.core.roster import Roster

    roster = Roster(IPV4, site.lease, site.network, site.underlay)
    roster.update(leases)
    return [lease for lease in leases if lease.key in roster.usable]


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


def progress(steps: int) -> Callable[[], None]:
    """A bar on a terminal, for what takes long; nothing elsewhere."""
    if not sys.stderr.isatty() or steps < 200:
        return lambda: None
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if done % 50 == 0 or done >= steps:
            share = min(done / steps, 1)
            sys.stderr.write(f"\r[{'#' * int(30 * share):<30}] {share:4.0%}" + ("\n" if share >= 1 else ""))
            sys.stderr.flush()

    return step
