"""The maps of a node, of all families that it has: opened together, for whoever shows them.

IPv4's are there where there are any; IPv6's where eBPF is to carry that, too. Addresses tell the family of
most entries, so those of both are rows of one table; what is counted by place is added up.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Self

from ctl.core.abi import Counter, Hook, Ip, PeerStats
from ctl.core.errors import AgentUnreachable, NotFound, OvnetError
from ctl.core.family import IPV6
from ctl.core.report import map_name
from ctl.kernel.bpf.maps import Maps, open_maps


class AllMaps:
    """The open maps, IPv4's first. Reading never changes anything; KernelError."""

    def __init__(self, ipv4: Maps[IPv4Address], ipv6: Maps[IPv6Address] | None = None) -> None:
        self.ipv4, self.ipv6 = ipv4, ipv6

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for maps in self:
            maps.close()

    def __iter__(self) -> Iterator[Maps[Any]]:
        yield self.ipv4
        if self.ipv6 is not None:
            yield self.ipv6

    @property
    def both(self) -> bool:
        """Whether there are maps of IPv6 too."""
        return self.ipv6 is not None

    def of(self, version: int) -> Maps[Any]:
        """Those of this IP version. NotFound where eBPF does not carry it."""
        for maps in self:
            if maps.family.version == version:
                return maps
        raise NotFound(f"eBPF carries no IPv{version} on this node: see ip -{version} route get ADDRESS")

    def of_any(self, versions: Collection[int]) -> list[Maps[Any]]:
        """Those of these IP versions that eBPF carries. NotFound if it carries none of them."""
        return [maps for maps in self if maps.family.version in versions] or [self.of(min(versions))]

    def running(self, version: int) -> frozenset[Hook]:
        """Where the programs for this IP version get packets, if there are programs at all."""
        return frozenset(Hook if version == 4 else self.ipv4.handed_over())

    def counters(self) -> dict[tuple[Hook, int], Counter]:
        """By hook and number of the reason, of all families together; only those that ever counted."""
        found: dict[tuple[Hook, int], Counter] = {}
        for maps in self:
            for key, each in maps.counters().items():
                so_far = found.get(key, Counter(0, 0))
                found[key] = Counter(so_far.packets + each.packets, so_far.bytes + each.bytes)
        return found

    def peer_stats(self) -> dict[Ip, PeerStats]:
        """By address of the host: one with two has two."""
        return {host: stats for maps in self for host, stats in maps.peer_stats().items()}

    def fill(self) -> dict[str, tuple[int, int]]:
        """(entries, capacity) of each map that can fill up; that of the flows may be a second old."""
        return {
            map_name(name, maps.family.version): fill for maps in self for name, fill in maps.fill().items()
        }


def open_all(bpffs: str | Path) -> AllMaps:
    """The maps of a node, from its pins, for reading.

    AgentUnreachable if there are none, KernelError if they may not be opened.
    """
    ipv4, ipv6 = open_maps(bpffs), None
    try:
        with suppress(AgentUnreachable):
            ipv6 = open_maps(bpffs, IPV6)
    except OvnetError:
        ipv4.close()
        raise
    return AllMaps(ipv4, ipv6)
