"""A soak's result as a picture: what must be flat, over the hours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot

PANELS = (
    ("RSS, MB", ("a.rss_mb", "b.rss_mb")),
    ("descriptors, threads, netlink sockets", ("a.fds", "b.fds", "a.threads", "a.netlink_sockets")),
    ("entries: peers, routes, neighbours, FDB", ("a.map_peers", "b.routes", "c.neighbours", "c.fdb")),
    ("pins, filters, nft rules", ("c.pins", "c.filters", "c.nft_rules", "c.state_files")),
    ("approved flows (LRU of 1024)", ("a.map_flows", "b.map_flows", "c.map_flows")),
)


def draw(result: dict[str, Any], path: Path) -> None:
    """Write `path` (SVG): one panel for each group of series, the same time below all."""
    pyplot.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "ovnet", "font.size": 8})
    figure, axes = pyplot.subplots(len(PANELS), 1, sharex=True, figsize=(8, 9), layout="constrained")
    minutes = [each["at"] / 60 for each in result["samples"]]
    for axis, (title, names) in zip(axes, PANELS, strict=True):
        for name in names:
            axis.plot(minutes, [each[name] for each in result["samples"]], linewidth=1, label=name)
        axis.set_ylim(bottom=0)
        axis.set_title(title, loc="left")
        axis.legend(loc="lower right", ncols=4, frameon=False)
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("minutes")
    datagrams = result["datagrams"]
    faults = sum(count for name, count in result["events"].items() if name != "nothing")
    figure.suptitle(
        f"{result['rounds']} rounds of churn, {faults} faults, "
        f"{datagrams['sent']:,} datagrams, {datagrams['lost']} lost"
    )
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
