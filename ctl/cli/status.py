"""`ovctl status`: how this node is, from the agent's report, its lock and the maps.

Exit 0: healthy, 1: not (a line each says why), 4: no agent runs here.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctl.cli.output import add_output_option, dumps, duration, say
from ctl.core.abi import NodeEntry
from ctl.core.errors import AgentError, AgentUnreachable, OvnetError
from ctl.core.model import Bypass
from ctl.core.report import AgentReport, Datapath, Gears, from_json, gears, health
from ctl.process import lockfile, statedir
from ctl.settings.config import Settings, add_options


@dataclass(frozen=True, slots=True)
class Status:
    """All that can be known from outside the agent."""

    alive: bool
    report: AgentReport | None = None
    """The last report that an agent wrote, which may be gone since."""
    report_error: str = ""
    node: NodeEntry | None = None
    """What the programs know of this node; None without maps, or if they are not filled."""
    datapath: Datapath = field(default_factory=Datapath)
    maps_error: str = ""

    def verdict(self, now: float) -> tuple[bool, list[str]]:
        """(healthy, complaints) at `now`, seconds since the epoch."""
        if not self.alive:
            return False, [f"no agent runs here; {self.forwarding}"]
        if self.report is None:
            return False, [self.report_error or "the agent is starting: it has not reported yet"]
        healthy, why = health(self.report, now, self.datapath.fill)
        if self.maps_error and self.report.program:
            why.append(self.maps_error)
        return healthy and not why, why

    @property
    def forwarding(self) -> str:
        """What carries packets now, in words."""
        if self.report and self.report.bypass is Bypass.OFF:
            return "bypass is off: the kernel path carries everything"
        if self.node is None:
            return f"no eBPF datapath ({self.maps_error or 'not configured'})"
        return "the eBPF datapath is in place and forwards what it knows"


def register(subparsers: Any) -> None:
    """Add `ovctl status`."""
    parser = subparsers.add_parser(
        "status",
        help="how this node is; exit 0 healthy, 1 not, 4 no agent",
        epilog="example: ovctl status -o wide",
    )
    parser.set_defaults(func=run)
    add_output_option(parser)
    add_options(parser, ["state_dir", "bpffs"])


def run(args: argparse.Namespace) -> int:
    """Print the status. Exit code 0, 1 or 4."""
    from ctl.cli.settings import load

    now = time.time()
    status = gather(load(args))
    healthy, why = status.verdict(now)
    if args.output == "json":
        sys.stdout.write(dumps(as_json(status, now)))
    else:
        sys.stdout.write(as_text(status, now, wide=args.output == "wide"))
        for line in why:
            say(line)
    if not status.alive:
        return 4
    return 0 if healthy else 1


def gather(settings: Settings) -> Status:
    """Look at the lock, the report and the maps. AgentError if the files may not be read."""
    alive = agent_alive(settings.state_dir)
    report, report_error = _read_report(settings.state_dir / statedir.REPORT)
    try:
        node, datapath = _read_maps(str(settings.bpffs))
    except OvnetError as error:
        return Status(alive, report, report_error, maps_error=str(error))
    return Status(alive, report, report_error, node, datapath)


def agent_alive(state_dir: Path) -> bool:
    """Whether a process holds the agent's lock. AgentError if we may not look."""
    path = state_dir / statedir.LOCK
    try:
        return lockfile.holder(path) is not None
    except OSError as error:
        raise AgentError(f"{path}: {error.strerror}: run as root") from error


def last_report(state_dir: Path) -> AgentReport:
    """What an agent said of itself last, whether it still runs or not. AgentUnreachable if none has."""
    report, error = _read_report(state_dir / statedir.REPORT)
    if report is None:
        raise AgentUnreachable(
            error or f"no agent has reported in {state_dir}: start one, or name --state-dir"
        )
    return report


def _read_report(path: Path) -> tuple[AgentReport | None, str]:
    try:
        return from_json(path.read_text()), ""
    except FileNotFoundError:
        return None, ""
    except OSError as error:
        raise AgentError(f"{path}: {error.strerror}") from error
    except (AgentError, UnicodeDecodeError) as error:
        return None, f"{path}: {error}"


def _read_maps(bpffs: str) -> tuple[NodeEntry | None, Datapath]:
    from ctl.kernel.bpf.families import open_all
    from metrics.snapshot import read_datapath

    with open_all(bpffs) as maps:
        return maps.ipv4.node(), read_datapath(maps)


def as_json(status: Status, now: float) -> dict[str, Any]:
    """The contract of `-o json`: keys stay, new ones may come."""
    from ctl.core.report import to_dict

    healthy, why = status.verdict(now)
    return {
        "alive": status.alive,
        "healthy": healthy,
        "why": why,
        "report": to_dict(status.report) if status.report else None,
        "datapath": {
            "present": status.node is not None,
            "error": status.maps_error,
            "bypass_percent": {
                way.name.lower(): _rounded(each.packets_percent["bypass"])
                for way, each in gears(status.datapath.counters).items()
            },
            "gears": {
                way.name.lower(): _gears(each) for way, each in gears(status.datapath.counters).items()
            },
            "maps": {
                name: {"entries": entries, "capacity": capacity}
                for name, (entries, capacity) in status.datapath.fill.items()
            },
        },
    }


def _gears(each: Gears) -> dict[str, dict[str, float | None]]:
    """What each gear has carried in one direction, and its share."""
    return {
        name: {
            "packets": counter.packets,
            "bytes": counter.bytes,
            "packets_percent": _rounded(each.packets_percent[name]),
            "bytes_percent": _rounded(each.bytes_percent[name]),
        }
        for name, counter in each.by_name.items()
    }


def _rounded(percent: float | None) -> float | None:
    return None if percent is None else round(percent, 2)


def as_text(status: Status, now: float, *, wide: bool = False) -> str:
    """Lines of `name  value`; `wide` adds what is seldom asked for."""
    lines = [("agent", _agent(status, now))]
    if status.report:
        lines += _node(status.report, now)
        if wide:
            lines += _details(status.report, now)
    lines += _datapath(status)
    if status.report:
        lines += [("problem", text) for text in status.report.problems]
        lines += [("warning", text) for text in status.report.warnings]
    return "".join(f"{name:<12}{value}\n" for name, value in lines)


def _agent(status: Status, now: float) -> str:
    report = status.report
    if not status.alive:
        return "not running"
    if report is None:
        return "running"
    state = "ready" if report.ready else "not ready"
    up = duration(now - report.started_at)
    return f"running, {state}, pid {report.pid}, version {report.version}, up {up}"


def _node(report: AgentReport, now: float) -> Iterable[tuple[str, str]]:
    yield "node", f"{report.node}, host {report.host} on {report.uplink or 'no uplink'}"
    yield "network", f"{report.network or 'none yet'}, {report.backend}, VNI {report.vni}, port {report.port}"
    if report.lease:
        end = report.lease.expires_at
        life = "reserved" if end is None else f"ends in {duration(end - now)}"
        life = "lost: fenced" if report.lease.conflict else life
        both = f" and {report.lease.ipv6}" if report.lease.ipv6 else ""
        yield "lease", f"{report.lease.subnet}{both}, {life}"
    else:
        yield "lease", "none yet"
    store = "up" if report.store.up else f"down: {report.store.error}"
    yield "store", f"{report.store.url} {store}, {report.leases} leases"
    ipv4 = f"{report.peers_ebpf} by eBPF, {report.peers_kernel_path} by the kernel path only"
    yield "peers", ipv4 + _by_ipv6(report)
    yield "ports", f"{len(report.ports)} attached, {len(report.kernel_ports)} on the kernel path only"
    for port in report.kernel_ports:
        yield "", f"{port.name}: {port.why}"
    refused = f": {report.hook_refused}" if report.hook_refused else ""
    if report.program:
        yield "hook", f"{report.hook}{refused}"
    if report.reconcile.error:
        yield (
            "reconcile",
            f"failing, next try after {report.reconcile.back_off:g} s: {report.reconcile.error}",
        )


def _by_ipv6(report: AgentReport) -> str:
    """What IPv6 adds to how many peers there are."""
    if report.peers_ipv6 is None:
        return ""
    ebpf = "" if report.peers_ipv6_ebpf is None else f", {report.peers_ipv6_ebpf} of them by eBPF"
    return f"; {report.peers_ipv6} by IPv6 too{ebpf}"


def _details(report: AgentReport, now: float) -> Iterable[tuple[str, str]]:
    reconcile = report.reconcile
    last = "never" if reconcile.last_success is None else f"{duration(now - reconcile.last_success)} ago"
    yield "bridge", f"{report.bridge}, MTU {report.mtu}"
    yield "attached", ", ".join(report.ports) or "-"
    yield "bypass", f"{report.bypass.value}, approvals last {report.approval_ttl:g} s"
    yield "program", report.program or "none"
    yield "reconcile", f"{reconcile.ok} ok, {reconcile.failed} failed, last success {last}"
    yield (
        "",
        f"took {reconcile.last_duration * 1000:.0f} ms, next try in {reconcile.back_off:g} s after a failure",
    )
    for table, count in sorted(reconcile.operations.items()):
        yield "", f"{table}: {count} operations"


def _datapath(status: Status) -> Iterable[tuple[str, str]]:
    yield "datapath", status.forwarding
    if status.node is None:
        return
    for way, each in gears(status.datapath.counters).items():
        yield way.name.lower(), _shares(each)
    yield "maps", ", ".join(_filled(name, *fill) for name, fill in sorted(status.datapath.fill.items()))


def _shares(each: Gears) -> str:
    packets, octets = each.packets_percent, each.bytes_percent
    if None in packets.values():
        return "no packets yet"
    return ", ".join(
        f"{name} {packets[name]:.1f} % of packets and {octets[name]:.1f} % of bytes" for name in packets
    )


def _filled(name: str, entries: int, capacity: int) -> str:
    return f"{name} {entries}/{capacity}"
