"""What the datapath is to reach, and how far it is. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tests.bench.results import HALTING, OFFLOADS_ON, WIRE, Results, comparable, differs, ratio


@dataclass(frozen=True, slots=True)
class Target:
    """A bound for a number: a ratio to the same measure on another path, or an absolute one.

    `path`, `base`: `<setting>/<path>`; no base: the measure's own unit counts.
    """

    title: str
    path: str
    measure: str
    bound: float
    at_least: bool
    base: str = ""

    @property
    def wanted(self) -> str:
        bound = f"{_number(self.bound)}x" if self.base else f"{self.bound:,.10g}"
        return f"{'≥' if self.at_least else '≤'} {bound}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a target; `value` is None if it was not measured."""

    target: Target
    value: float | None = None
    noise: bool = False
    """Whether the ratio is less than two standard deviations away from 1."""

    @property
    def reached(self) -> bool | None:
        if self.value is None:
            return None
        target = self.target
        return self.value >= target.bound if target.at_least else self.value <= target.bound

    @property
    def missing(self) -> float:
        """By what part of the bound it is missed; 0 if reached."""
        if self.value is None or self.reached:
            return 0.0
        return abs(self.value - self.target.bound) / self.target.bound

    def words(self) -> str:
        """`reached`, by how much it is not, or that it was not measured."""
        if self.value is None:
            return "not measured"
        return "reached" if self.reached else f"missed by {100 * self.missing:.0f} %"

    def shown(self) -> str:
        """The value; a ratio that is no difference says so."""
        if self.value is None:
            return ""
        text = f"{_number(self.value)}{'x' if self.target.base else ''}"
        return f"{text}, within noise" if self.noise else text


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value < 0.1 else f"{value:.2f}"


def _ratios(
    title: str, measure: str, at_least: bool, setting: str, /, *bounds: float | None, path: str = "ebpf"
) -> tuple[Target, ...]:
    """Bounds against the kernel's vxlan, routed and direct; None: there is no such target."""
    bases = ("kernel-vxlan", "routed", "direct")
    return tuple(
        Target(title, f"{setting}/{path}", measure, bound, at_least, f"{setting}/{base}")
        for base, bound in zip(bases, bounds, strict=False)
        if bound is not None
    )


_EBPF: Final = f"{OFFLOADS_ON}/ebpf"

TARGETS: Final = (
    *_ratios("TCP, one flow", "tcp_1", True, OFFLOADS_ON, 1.60, 1.15, 0.90),
    *_ratios("UDP, packets of 64 bytes", "udp_pps_64", True, OFFLOADS_ON, 2.0, 1.30, 0.78),
    *_ratios("TCP round trip p50", "tcp_rr_p50", False, OFFLOADS_ON, 0.55, 0.85, 1.10),
    *_ratios("TCP round trip p99", "tcp_rr_p99", False, OFFLOADS_ON, 0.45, 0.75),
    *_ratios("new TCP connections", "tcp_crr", True, OFFLOADS_ON, 1.40, 0.80),
    *_ratios("CPU per gigabyte", "cpu_per_gb", False, OFFLOADS_ON, 0.65, 0.90),
    *_ratios("service: TCP, one flow", "svc_tcp_1", True, OFFLOADS_ON, 1.50, 1.10),
    *_ratios("service: TCP round trip p50", "svc_tcp_rr_p50", False, OFFLOADS_ON, 0.60, 0.90),
    *_ratios("service: UDP, packets of 64 bytes", "svc_udp_pps_64", True, OFFLOADS_ON, 1.8),
    *_ratios("service: new TCP connections", "svc_tcp_crr", True, OFFLOADS_ON, 1.35),
    *_ratios("from the host: TCP, one flow", "host_tcp_1", True, OFFLOADS_ON, 1.2),
    *_ratios("from the host: TCP round trip p50", "host_tcp_rr_p50", False, OFFLOADS_ON, 0.75),
    *_ratios("wire-like: TCP, one flow", "tcp_1", True, WIRE, 1.20, 1.0),
    *_ratios("udp backend: TCP, one flow", "tcp_1", True, OFFLOADS_ON, 0.026, path="udp"),
    Target("injected decapsulation, tc, packets/s a core", _EBPF, "inject_decap", 1.0e6, True),
    Target("injected decapsulation, XDP, packets/s a core", f"{_EBPF}-xdp", "inject_decap", 2.5e6, True),
    Target("TCP with 100,000 peers against 100", "peers/100000", "tcp_1", 0.95, True, "peers/100"),
    Target("RSS of the agent, MB", "node/agent", "rss", 46, False),
    Target("idle CPU of the agent, %", "node/agent", "idle_cpu", 0.2, False),
    Target("cold start to forwarding, s", "node/agent", "cold_start", 1.8, False),
    Target("restart, s", "node/agent", "restart", 0.5, False),
)

WHILE_HALTING: Final = (
    *_ratios("TCP, one flow", "tcp_1", True, HALTING, 1.30, 1.12, 0.90),
    *_ratios("UDP, packets of 64 bytes", "udp_pps_64", True, HALTING, 2.4, 1.30, 0.78),
    *_ratios("TCP round trip p50", "tcp_rr_p50", False, HALTING, 0.80, 0.95, 1.10),
    *_ratios("TCP round trip p99", "tcp_rr_p99", False, HALTING, 0.90, 1.0),
    *_ratios("new TCP connections", "tcp_crr", True, HALTING, 1.0),
    *_ratios("CPU per gigabyte", "cpu_per_gb", False, HALTING, 0.75, 0.90),
)
"""Where CPUs halt: to wake them takes most of a round trip, on every path."""


def judge(target: Target, results: Results) -> Verdict:
    """`results`: of all paths, keyed as in the targets."""
    own = results.get(target.path, {}).get(target.measure)
    if not target.base or own is None:
        return Verdict(target, own.median if own else None)
    base = comparable(results, target.base, target.measure)
    if base is None:
        return Verdict(target)
    return Verdict(target, ratio(own, base).median, not differs(own, base))
