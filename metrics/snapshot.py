"""One moment of a node, as metrics and `ovctl status` see it. No Prometheus here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Final, Protocol

from ctl.backend.udp import stats
from ctl.backend.udp.files import STATS, directory
from ctl.core.abi import Counter, Hook, PeerStats
from ctl.core.errors import KernelError, OvnetError
from ctl.core.probing import Probed
from ctl.core.report import AgentReport, Datapath


class ReadableMaps(Protocol):
    """The part of `ctl.kernel.bpf.families.AllMaps` that a snapshot reads. Raises KernelError."""

    def counters(self) -> Mapping[tuple[Hook, int], Counter]: ...

    def peer_stats(self) -> Mapping[Any, PeerStats]: ...

    def fill(self) -> Mapping[str, tuple[int, int]]: ...


NOBODY: Final[Mapping[IPv4Address | IPv6Address, Probed]] = {}
"""No peer has been asked."""


@dataclass(frozen=True, slots=True)
class NodeSnapshot:
    """What the agent last reported and what the maps say now."""

    report: AgentReport | None = None
    """The agent's last report; None until a first reconcile has ended."""
    datapath: Datapath | None = None
    """What the maps say; None if there are none (bypass off) or they could not be read."""
    forwarder: Mapping[str, int] = field(default_factory=dict)
    """The udp forwarder's counters, by the names of its stats.NAMES; empty if none runs."""
    rules: Mapping[str, int] = field(default_factory=dict)
    """Packets that each of our rules has dropped, by its comment; empty without rules."""
    probed: Mapping[IPv4Address | IPv6Address, Probed] = field(default_factory=dict)
    """What each peer has shown that was asked in the background, by its host; empty if nobody is."""
    error: str = ""
    """Why maps or counters could not be read; empty if they could."""


def read_datapath(maps: ReadableMaps) -> Datapath:
    """All that is counted, read now. KernelError if the kernel refuses, or the maps were closed."""
    return Datapath(maps.counters(), maps.peer_stats(), maps.fill())


def read_forwarder(state_dir: Path) -> Mapping[str, int]:
    """What the udp forwarder counts, from its file; empty before the first one. KernelError."""
    path = directory(state_dir) / STATS
    try:
        return stats.read(str(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise KernelError(f"cannot read the udp forwarder's counters: {error}") from error


def take(
    report: AgentReport | None,
    maps: ReadableMaps | None,
    state_dir: Path,
    rules: Callable[[], Mapping[str, int]] = dict,
    probed: Mapping[IPv4Address | IPv6Address, Probed] = NOBODY,
) -> NodeSnapshot:
    """The snapshot for a scrape; it never fails: what cannot be read becomes its `error`.

    `state_dir`: the node's, where a udp forwarder counts. `rules` reads what our rules have dropped;
    `probed`: what the peers have shown that are asked in the background.
    """
    try:
        if report is not None and report.backend == "udp":
            return NodeSnapshot(report, forwarder=read_forwarder(state_dir), probed=probed)
        return NodeSnapshot(report, read_datapath(maps) if maps else None, rules=rules(), probed=probed)
    except OvnetError as error:
        return NodeSnapshot(report, probed=probed, error=str(error))
