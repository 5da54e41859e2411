"""What an agent says about itself, for people (`ovctl status`) and for metrics. Pure.

    report = AgentReport(...)       built by the agent after every reconcile
    text   = to_json(report)        what <state_dir>/status.json holds
    report = from_json(text)        the same value, or one clear error
    good, why = health(report, now) the verdict, with a line per complaint

Times are seconds since the epoch, durations seconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from ctl.core.abi import Counter, Direction, Hook, Ip, PeerStats
from ctl.core.errors import AgentError
from ctl.core.model import Bypass, IPv4Address, IPv4Network, IPv6Network
from ctl.core.reasons import Verdict, total

FORMAT: Final = 1
"""Version of the JSON; goes up when a field changes its meaning or goes away."""

STALE_RECONCILES: Final = 3
STALE_GRACE: Final = 30.0
"""A reconcile is overdue after STALE_RECONCILES intervals and this many seconds."""

LEASE_GRACE: Final = 60.0
"""A lease without a known renewal time is near its end for its last so many seconds."""

Fill = Mapping[str, tuple[int, int]]
"""How full each map is: name, as `map_name` has it -> (entries, capacity)."""

_IPV6_MAP: Final = "ipv6_"


def map_name(name: str, version: int) -> str:
    """What a map of this IP version is called where those of both families are named."""
    return name if version == 4 else f"{_IPV6_MAP}{name}"


def plain_name(name: str) -> str:
    """The name that a map of any family has in its own set, from that of `map_name`."""
    return name.removeprefix(_IPV6_MAP)


@dataclass(frozen=True, slots=True)
class LeaseReport:
    """The subnet that this node holds."""

    subnet: IPv4Network
    expires_at: float | None = None
    """None: a reservation, which does not expire."""
    renew_at: float | None = None
    """When the agent means to renew it; None: a reservation, or not known."""
    conflict: str = ""
    """One line that says what has become of a subnet that is lost: then the node is fenced."""
    ipv6: IPv6Network | None = None
    """The IPv6 one; None: it has IPv4 only."""


@dataclass(frozen=True, slots=True)
class StoreReport:
    """The lease store as last seen; `url` is without credentials."""

    url: str
    up: bool = False
    last_success: float | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class KernelPort:
    """A port without our programs, and why."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class ReconcileReport:
    """How reconciling goes; counts since the agent's start."""

    interval: float
    """Seconds between two full reconciles."""
    ok: int = 0
    failed: int = 0
    last_duration: float = 0.0
    last_success: float | None = None
    operations: Mapping[str, int] = field(default_factory=dict)
    """Entries put or removed, by table."""
    back_off: float = 0.0
    """Seconds until the next try after a failure; 0: none is pending."""
    error: str = ""
    """Why the last one failed; empty if it did not."""


@dataclass(frozen=True, slots=True)
class AgentReport:
    """One running node."""

    version: str
    pid: int
    node: str
    started_at: float
    host: IPv4Address
    store: StoreReport
    reconcile: ReconcileReport
    network: IPv4Network | None = None
    """None until the store has a network."""
    lease: LeaseReport | None = None
    """None until a subnet is leased."""
    backend: str = "vxlan"
    vni: int = 0
    port: int = 0
    mtu: int = 0
    """Largest inner IP packet, bytes."""
    bridge: str = ""
    uplink: str = ""
    bypass: Bypass = Bypass.LEARNED
    approval_ttl: float = 0.0
    hook: str = "tc"
    """Where packets from the uplink meet our programs first: tc or xdp."""
    hook_refused: str = ""
    """Why XDP that was asked for is not; one line."""
    program: str = ""
    """Digest of the loaded programs; empty: none is loaded."""
    ready: bool = False
    not_ready: tuple[str, ...] = ()
    """Why it is not ready, a line each."""
    leases: int = 0
    """Live leases in the store, our own included."""
    peers_ebpf: int = 0
    peers_kernel_path: int = 0
    peers_ipv6: int | None = None
    """Peers that are routed to by IPv6 too; None: this node has no IPv6."""
    peers_ipv6_ebpf: int | None = None
    """Those of them that eBPF carries IPv6 to; None: it carries none here."""
    peers_silent: int = 0
    """Peers that packets go to and nothing comes back from."""
    ports: tuple[str, ...] = ()
    """Ports that carry our programs."""
    kernel_ports: tuple[KernelPort, ...] = ()
    problems: tuple[str, ...] = ()
    """Conflicts, foreign programs, full maps, unparsable leases: a line each."""
    unhealthy: tuple[str, ...] = ()
    """Those of `problems` for which the node is not healthy."""
    warnings: tuple[str, ...] = ()
    """What is worth knowing, and no fault: a line each."""
    losing: Mapping[str, str] = field(default_factory=dict)
    """Where all packets are lost at present (ctl.core.losing.Way), a line each."""
    blind: tuple[str, ...] = ()
    """Our programs that do not see the packets that pass where they hang, by name."""


@dataclass(frozen=True, slots=True)
class Datapath:
    """What the maps say at one moment."""

    counters: Mapping[tuple[Hook, int], Counter] = field(default_factory=dict)
    """(hook, reason's number) -> packets and bytes."""
    peer_stats: Mapping[Ip, PeerStats] = field(default_factory=dict)
    """By the host's address."""
    fill: Fill = field(default_factory=dict)


NOTHING: Final = Counter(0, 0)


@dataclass(frozen=True, slots=True)
class Gears:
    """The overlay's traffic of one direction, by the gear that carried it."""

    bypass: Counter = NOTHING
    """By eBPF alone."""
    tunnel: Counter = NOTHING
    """By the kernel path but for the tunnel header, which was eBPF's."""
    kernel: Counter = NOTHING

    @property
    def packets_percent(self) -> dict[str, float | None]:
        """Share of each gear, 0 to 100; None if nothing was carried at all."""
        return _percent({name: counter.packets for name, counter in self.by_name.items()})

    @property
    def bytes_percent(self) -> dict[str, float | None]:
        """The same of bytes."""
        return _percent({name: counter.bytes for name, counter in self.by_name.items()})

    @property
    def by_name(self) -> dict[str, Counter]:
        """The gears, the quickest first."""
        return {"bypass": self.bypass, "tunnel": self.tunnel, "kernel": self.kernel}


def _percent(parts: Mapping[str, int]) -> dict[str, float | None]:
    total = sum(parts.values())
    return {name: 100 * part / total if total else None for name, part in parts.items()}


def to_dict(report: AgentReport) -> dict[str, Any]:
    """What `to_json` writes; addresses are still values whose `str` is their JSON form."""
    return {"format": FORMAT, **asdict(report)}


def to_json(report: AgentReport) -> str:
    """One JSON object with sorted keys, a newline at its end."""
    return json.dumps(to_dict(report), default=str, sort_keys=True, indent=1, allow_nan=False) + "\n"


def from_json(text: str) -> AgentReport:
    """The report of `to_json`. AgentError if it is damaged or of another format."""
    try:
        raw = json.loads(text)
        found = raw["format"]
        if found == FORMAT:
            return _report(raw)
    except (ValueError, KeyError, TypeError) as error:
        raise AgentError(f"the agent's status report is damaged: {error!r}") from error
    raise AgentError(
        f"the agent's status report has format {found}, this ovctl reads {FORMAT}: use the agent's own ovctl"
    )


def health(report: AgentReport, now: float, fill: Fill | None = None) -> tuple[bool, list[str]]:
    """(healthy, complaints) of a report and the maps' fill at `now`, seconds since the epoch."""
    conflict = _lease_conflict(report.lease)  # said below, once
    why = [
        *(f"not ready: {line}" for line in not_ready(report) if line not in conflict),
        *(_overdue(report.reconcile, now) or _failing(report.reconcile)),
        *([] if report.store.up else [f"store {report.store.url} unreachable: {report.store.error}"]),
        *(_lease_trouble(report.lease, now) if report.lease else []),
        *full_maps(fill or {}),
        *_no_shortcut(report),
        *report.unhealthy,
        *report.losing.values(),
    ]
    return not why, why


def readiness(report: AgentReport | None, now: float) -> str:
    """Why the node cannot take new containers, in one line; empty if it can.

    The store does not count: a node without it goes on serving what it knows.
    """
    if report is None:
        return "no reconcile has finished yet"
    lines = not_ready(report) + _lease_conflict(report.lease) + _overdue(report.reconcile, now)
    return "; ".join(dict.fromkeys(lines))


def not_ready(report: AgentReport) -> list[str]:
    """The lines of `not_ready`, never empty for a report that is not ready."""
    if report.ready:
        return []
    return list(report.not_ready) or [report.reconcile.error or "starting"]


def without_room(fill: Fill) -> list[str]:
    """Names of the maps that take no new entry, sorted."""
    return sorted(name for name, (entries, capacity) in fill.items() if capacity and entries >= capacity)


def full_maps(fill: Fill) -> list[str]:
    """A line for each map that takes no new entry."""
    return ["map {} is full: {} of {} entries".format(name, *fill[name]) for name in without_room(fill)]


_ELSEWHERE: Final = frozenset(
    {"not_configured", "not_ipv4", "not_ipv6", "not_overlay", "not_routed", "vlan", "vxlan_header"}
)
"""Reasons of packets that are none of the overlay's, whichever path they take."""

_PLACES: Final = {
    Direction.OUT: (Hook.FROM_CONTAINER, Hook.TO_OVERLAY, Hook.TUNNEL_OUT),
    Direction.IN: (Hook.FROM_WIRE, Hook.FROM_WIRE, Hook.TUNNEL_IN),
}
"""Where packets are counted that bypass, those that do not, and of these those of the tunnel gear."""


def gears(counters: Mapping[tuple[Hook, int], Counter]) -> dict[Direction, Gears]:
    """Who carried the overlay's packets since the maps were made; drops do not count.

    Packets as they are on the wire: a TCP super-packet counts as its segments. What a container sends
    and netfilter drops was carried by none; what the host itself sends was.
    """
    return {way: _gears(counters, *places) for way, places in _PLACES.items()}


def _gears(counters: Mapping[tuple[Hook, int], Counter], fast: Hook, slow: Hook, stage: Hook) -> Gears:
    tunnel, left = _sum(counters, stage, Verdict.TUNNEL), _sum(counters, slow, Verdict.PASS)
    # Read one after the other, while packets come: never below 0.
    kernel = Counter(max(left.packets - tunnel.packets, 0), max(left.bytes - tunnel.bytes, 0))
    return Gears(_sum(counters, fast, Verdict.BYPASS), tunnel, kernel)


def _sum(counters: Mapping[tuple[Hook, int], Counter], where: Hook, verdict: Verdict) -> Counter:
    return total(counters, where, lambda row: row.verdict is verdict and row.label not in _ELSEWHERE)


def _overdue(reconcile: ReconcileReport, now: float) -> list[str]:
    if reconcile.last_success is None:
        return ["no reconcile has succeeded yet" + _because(reconcile.error)]
    age = now - reconcile.last_success
    if age <= STALE_RECONCILES * reconcile.interval + STALE_GRACE:
        return []
    return [f"last successful reconcile was {age:.0f} s ago" + _because(reconcile.error)]


def _no_shortcut(report: AgentReport) -> list[str]:
    """Where programs are wanted, nothing failed, and none are there: `problems` says why."""
    wanted = report.backend == "vxlan" and report.bypass is not Bypass.OFF
    if not wanted or report.program or not report.ready or report.reconcile.error:
        return []
    return ["eBPF carries nothing: no programs are loaded"]


def _failing(reconcile: ReconcileReport) -> list[str]:
    return [f"reconciling fails: {reconcile.error}"] if reconcile.error else []


def _because(error: str) -> str:
    return f": {error}" if error else ""


def _lease_trouble(lease: LeaseReport, now: float) -> list[str]:
    if lease.conflict or lease.expires_at is None:
        return _lease_conflict(lease)
    left = lease.expires_at - now
    if left <= 0:
        return [f"lease {lease.subnet} expired {-left:.0f} s ago"]
    if left < _lease_margin(lease):
        return [f"lease {lease.subnet} expires in {left:.0f} s and was not renewed"]
    return []


def _lease_conflict(lease: LeaseReport | None) -> list[str]:
    return [f"lease conflict: {lease.conflict}"] if lease and lease.conflict else []


def _lease_margin(lease: LeaseReport) -> float:
    """Half of the time kept for renewing: then something is wrong with renewing."""
    if lease.expires_at is None or lease.renew_at is None:
        return LEASE_GRACE
    return (lease.expires_at - lease.renew_at) / 2


def _report(raw: dict[str, Any]) -> AgentReport:
    """From parsed JSON; KeyError, TypeError or ValueError for what does not fit."""
    # An agent of before there were any says nothing of these.
    later: dict[str, Any] = {"peers_ipv6": None, "peers_ipv6_ebpf": None}
    raw = {"unhealthy": [], "warnings": [], "losing": {}, "blind": [], **later, **raw}
    known = {name: raw[name] for name in AgentReport.__slots__}
    known["host"] = IPv4Address(raw["host"])
    known["network"] = _optional_network(raw["network"])
    known["bypass"] = Bypass(raw["bypass"])
    known["store"] = _fields(StoreReport, raw["store"])
    known["reconcile"] = _fields(ReconcileReport, raw["reconcile"])
    known["lease"] = _lease(raw["lease"])
    known["kernel_ports"] = tuple(_fields(KernelPort, port) for port in raw["kernel_ports"])
    known["losing"] = dict(raw["losing"])
    for name in ("not_ready", "ports", "problems", "unhealthy", "warnings", "blind"):
        known[name] = tuple(raw[name])
    return AgentReport(**known)


def _fields(kind: Any, raw: dict[str, Any]) -> Any:
    return kind(**{name: raw[name] for name in kind.__slots__})


def _optional_network(text: str | None) -> IPv4Network | None:
    return None if text is None else IPv4Network(text)


def _lease(raw: dict[str, Any] | None) -> LeaseReport | None:
    if raw is None:
        return None
    raw = {"ipv6": None, **raw}  # an agent of before there was any says nothing of it
    ipv6 = raw["ipv6"]
    return LeaseReport(
        IPv4Network(raw["subnet"]), raw["expires_at"], raw["renew_at"], raw["conflict"],
        None if ipv6 is None else IPv6Network(ipv6),
    )  # fmt: skip
