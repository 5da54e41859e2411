"""Bars of the results, as SVG by matplotlib. The same numbers give the same file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

from tests.bench.results import Results, comparable, ratio

BASE: Final = "kernel-vxlan"
COLOURS: Final = {
    "direct": "#bbbbbb", "routed": "#888888", "kernel-vxlan": "#555555", "ebpf": "#0072b2",
    "ebpf-always": "#56b4e9", "ebpf-xdp": "#009e73", "udp": "#d55e00",
}  # fmt: skip
"""Paths, told apart by those who see no red or green, too."""
SHOWN: Final = {
    "tcp_1": "TCP, 1 flow", "tcp_4": "TCP, 4 flows", "udp_pps_64": "UDP 64 B, packets",
    "tcp_crr": "new connections",    "tcp_rr_p50": "TCP round trip p50", "tcp_rr_p99": "TCP round trip p99",
    "udp_rr_p50": "UDP round trip p50",     "cpu_per_gb": "CPU per GB",
}  # fmt: skip


def relative(results: Results, path: str, measure: str) -> tuple[float, float] | None:
    """Median and deviation of the ratio to the base, as in the tables; None where one is missing."""
    own, base = results.get(path, {}).get(measure), comparable(results, BASE, measure)
    if own is None or base is None:
        return None
    found = ratio(own, base)
    return found.median, found.stdev


def paths_plot(results: Results, title: str, file: Path) -> None:
    """Every path as a part of the kernel's vxlan, a group of bars a measure."""
    measures = [name for name in SHOWN if any(name in found for found in results.values())]
    names = [name for name in COLOURS if name in results]
    figure, axes = plt.subplots(figsize=(11, 4.5))
    width = 0.8 / max(len(names), 1)
    for place, name in enumerate(names):
        found = [(x, relative(results, name, measure)) for x, measure in enumerate(measures)]
        bars = [(x + (place - (len(names) - 1) / 2) * width, *pair) for x, pair in found if pair]
        axes.bar([x for x, _, _ in bars], [y for _, y, _ in bars], width, yerr=[e for _, _, e in bars],
                 color=COLOURS[name], label=name, error_kw={"elinewidth": 0.8})  # fmt: skip
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_ylim(0, 3.5)  # udp's round trips are far above: the table has them
    axes.set_xticks(range(len(measures)), [SHOWN[name] for name in measures], rotation=20, ha="right")
    axes.set_ylabel(f"times {BASE}")
    axes.set_title(title)
    axes.legend(ncols=len(names), fontsize="small", loc="upper center")
    _save(figure, file)


def peers_plot(results: Results, file: Path) -> None:
    """Cost of a packet, and TCP, by number of peers."""
    sizes = sorted(int(size) for size in results)
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.5))
    for axis, measure, title in (
        (axes[0], "tcp_1", "TCP, one flow"),
        (axes[1], "encap_random", "64 bytes to random peers"),
    ):
        series = [results[str(size)][measure] for size in sizes]
        axis.errorbar(sizes, [each.median for each in series], yerr=[each.stdev for each in series],
                      color=COLOURS["ebpf"], marker="o")  # fmt: skip
        axis.set_xscale("log")
        axis.set_ylim(bottom=0)
        axis.set_xlabel("peers")
        axis.set_ylabel(series[0].unit)
        axis.set_title(title)
    _save(figure, file)


def _save(figure: Any, file: Path) -> None:
    with mpl.rc_context({"svg.hashsalt": "ovnet", "svg.fonttype": "none"}):
        figure.tight_layout()
        figure.savefig(file, format="svg", metadata={"Date": None})
    plt.close(figure)
    file.write_text("".join(f"{line.rstrip()}\n" for line in file.read_text().splitlines()))
