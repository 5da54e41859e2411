"""The figures in docs/performance.md, from the bench's results: `python -m tests.bench.document [RESULTS]`.

Writes what stands between two marks, and the plots beside it; the rest is written by hand. Figures of IPv6
come from a file of their own, stand between marks of their own, and stay if there is no such file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.bench.results import (
    HALTING,
    OFFLOADS_ON,
    WIRE,
    Results,
    Series,
    comparable,
    differs,
    from_json,
    ratio,
)
from tests.bench.targets import TARGETS, WHILE_HALTING, Target, judge

RESULTS: Final = Path(__file__).parent / "results" / "latest.json"
IPV6_RESULTS: Final = RESULTS.with_name("latest-ipv6.json")
PERFORMANCE: Final = Path(__file__).parents[2] / "docs" / "performance.md"
BEGIN: Final = "<!-- begin: made by python -m tests.bench.document -->\n"
BEGIN_IPV6: Final = "<!-- begin IPv6: made by python -m tests.bench.document -->\n"
END: Final = "<!-- end -->\n"

TITLES: Final = {OFFLOADS_ON: "Offloads on", WIRE: "Like a wire", HALTING: "While CPUs halt"}
BASE: Final = "kernel-vxlan"
COLUMNS: Final = {
    "tcp_1": "TCP 1 flow, Gb/s", "tcp_4": "TCP 4 flows, Gb/s", "tcp_rr_p50": "TCP round trip p50, us",
    "tcp_rr_p99": "p99", "tcp_rr_p99.9": "p99.9", "udp_rr_p50": "UDP round trip p50, us", "udp_rr_p99": "p99",
    "udp_rr_p99.9": "p99.9", "tcp_crr": "new connections/s", "udp_pps_64": "UDP 64 B, packets/s",
    "cpu_per_gb": "CPU, s/GB",
    "svc_tcp_1": "service: TCP 1 flow, Gb/s", "svc_tcp_rr_p50": "service: TCP round trip p50, us",
    "svc_tcp_rr_p99": "p99", "svc_tcp_rr_p99.9": "p99.9", "svc_tcp_crr": "service: new connections/s",
    "svc_udp_pps_64": "service: UDP 64 B, packets/s",
    "host_tcp_1": "from the host: TCP 1 flow, Gb/s",
    "host_tcp_rr_p50": "from the host: TCP round trip p50, us", "host_tcp_rr_p99": "p99",
    "host_tcp_rr_p99.9": "p99.9",
    "inject_decap": "injected decap, packets/s",
    "inject_encap": "injected encap, packets/s",
}  # fmt: skip
NODE: Final = {
    "rss": "RSS of the agent", "idle_cpu": "its CPU while nothing happens",
    "cold_start": "cold start to forwarding",
    "restart": "restart until ready, all in place",
    "convergence_sqlite": "store put to first packet the new way, sqlite",
    "convergence_etcd": "store put to first packet the new way, etcd",
}  # fmt: skip


def number(value: float) -> str:
    """Three digits that count."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def cell(series: Series | None, base: Series | None) -> str:
    """Median and deviation; the ratio to the base only where it is a difference."""
    if series is None:
        return ""
    text = f"{number(series.median)} ± {number(series.stdev)}"
    if base is None or base is series:
        return text
    return (
        f"{text} ({ratio(series, base).median:.2f}x)" if differs(series, base) else f"{text} (within noise)"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def targets_table(results: Results, targets: Sequence[Target] = TARGETS) -> str:
    """Every target, what was measured, and whether that is enough."""
    verdicts = [judge(target, results) for target in targets]
    return table(
        ("", "against", "target", "measured", ""),
        (
            (
                each.target.title,
                each.target.base.partition("/")[2],
                each.target.wanted,
                each.shown(),
                each.words(),
            )
            for each in verdicts
        ),
    )


def paths_table(results: Results) -> str:
    """A row a measure, a column a path."""
    paths = list(results)
    measures = [name for name in COLUMNS if any(name in found for found in results.values())]
    return table(
        ("", *paths),
        (
            (
                COLUMNS[name],
                *(cell(results[path].get(name), comparable(results, BASE, name)) for path in paths),
            )
            for name in measures
        ),
    )


def plain_table(results: Results, first: str) -> str:
    """A row a key, a column a measure."""
    measures = list(dict.fromkeys(name for found in results.values() for name in found))
    units = {name: series.unit for found in results.values() for name, series in found.items()}
    return table(
        (first, *(f"{name}, {units[name]}" for name in measures)),
        ((key, *(cell(found.get(name), None) for name in measures)) for key, found in results.items()),
    )


def node_table(found: Mapping[str, Series]) -> str:
    return table(
        ("", "measured"),
        (
            (words, f"{cell(found[name], None)} {found[name].unit}")
            for name, words in NODE.items()
            if name in found
        ),
    )


def by_setting(document: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Series]]]:
    """Setting -> path -> measure -> series, in the order of TITLES and of the paths."""
    order = ("direct", "routed", BASE, "ebpf", "ebpf-always", "ebpf-xdp", "udp")
    found = from_json(document["paths"])
    return {
        setting: {path: found[f"{setting}/{path}"] for path in order if f"{setting}/{path}" in found}
        for setting in TITLES
        if any(key.startswith(f"{setting}/") for key in found)
    }


def everything(document: Mapping[str, Any]) -> dict[str, dict[str, Series]]:
    """All series by the keys that targets use."""
    parts = {"": "paths", "peers/": "peers", "node/": "node"}
    return {
        f"{prefix}{key}": series
        for prefix, part in parts.items()
        for key, series in from_json(document.get(part, {})).items()
    }


def generated(document: Mapping[str, Any]) -> str:
    """What stands between the marks."""
    parts = [_heading(document), targets_table(everything(document))]
    for setting, results in by_setting(document).items():
        parts.append(f"### {TITLES[setting]}\n\n![{TITLES[setting]}](performance-{setting}.svg)\n")
        parts.append(f"{_offloads(document, setting)}\n\n{paths_table(results)}")
        if setting == HALTING:
            parts.append(targets_table(everything(document), WHILE_HALTING))
    if peers := from_json(document.get("peers", {})):
        sizes = {f"{int(size):,}": peers[size] for size in sorted(peers, key=int)}
        parts.append("### Entries in the maps\n\n![Peers](performance-peers.svg)\n")
        parts.append(plain_table(sizes, "peers"))
    if programs := from_json(document.get("programs", {})):
        parts.append(
            "### The programs\n\nns a run, which is a packet or a super-packet, as the kernel counts it.\n"
        )
        parts.append(plain_table(programs, "path and load"))
    if node := from_json(document.get("node", {})).get("agent"):
        parts.append("### The node\n")
        parts.append(node_table(node))
    return "\n".join(parts)


def _version(document: Mapping[str, Any]) -> int:
    """Of the IP that was measured by."""
    version: int = document.get("family", 4)
    return version


def generated_ipv6(document: Mapping[str, Any]) -> str:
    """What stands between the marks of IPv6: of the targets, those of what it was measured in."""
    results = everything(document)
    targets = [target for target in TARGETS if judge(target, results).value is not None]
    tables = [paths_table(each) for each in by_setting(document).values()]
    return "\n".join([_heading(document), targets_table(results, targets), *tables])


def _heading(document: Mapping[str, Any]) -> str:
    machine, busy = document["machine"], document["busy"]
    kind = "make bench QUICK=1" if document["quick"] else "make bench"
    if _version(document) == 6:
        kind += " ARGS='--family 6'"
    noisy = f" The machine was busy: others used {busy['cpus']:.2f} CPUs." if busy["busy"] else ""
    driver = machine["idle_driver"]
    idle = "halt, as there is no cpuidle driver" if driver == "none" else f"poll (cpuidle: {driver})"
    return (
        f"`{kind}` on {document['date']}: Linux {machine['kernel']}, "
        f"{machine['cpus']} CPUs ({machine['cpu']}), "
        f"{machine['congestion_control']}; {document['rounds']} rounds in rotated order, medians ± standard "
        f"deviation. Idle CPUs {idle}.{noisy}{_apart(document)} "
        "Ratios: medians of the rounds' ratios; one that is less than two standard deviations away from 1 "
        "is within noise.\n"
    )


def _apart(document: Mapping[str, Any]) -> str:
    count = sum(document["apart"].values())
    return f" {count} values had to be taken while the CPUs shared no cache." if count else ""


def _offloads(document: Mapping[str, Any], setting: str) -> str:
    found = document["offloads"].get(setting, {})
    return "Underlay: " + ", ".join(f"{name} {'on' if on else 'off'}" for name, on in found.items()) + "."


def renewed(text: str, document: Mapping[str, Any]) -> str:
    """The page with the figures of a document's family made anew. ValueError without the two marks."""
    begin, make = (BEGIN, generated) if _version(document) == 4 else (BEGIN_IPV6, generated_ipv6)
    before, found, rest = text.partition(begin)
    _, end, after = rest.partition(END)
    if not (found and end):
        raise ValueError(f"{PERFORMANCE} has no begin and end marks")
    return f"{before}{begin}{make(document)}{END}{after}"


def draw(document: Mapping[str, Any], directory: Path) -> list[Path]:
    """The plots that the text shows."""
    from tests.bench import plots

    files = []
    for setting, results in by_setting(document).items():
        files.append(directory / f"performance-{setting}.svg")
        plots.paths_plot(results, TITLES[setting], files[-1])
    if peers := from_json(document.get("peers", {})):
        files.append(directory / "performance-peers.svg")
        plots.peers_plot(peers, files[-1])
    return files


def main(argv: list[str]) -> int:
    """Renew the page from results files, by default those that the bench has left; 2 if there are none."""
    files = list(map(Path, argv)) or [each for each in (RESULTS, IPV6_RESULTS) if each.exists()] or [RESULTS]
    for file in files:
        try:
            document = json.loads(file.read_text())
            text = renewed(PERFORMANCE.read_text(), document)
        except FileNotFoundError as error:
            print(f"bench: no results in {error.filename}: run `make bench` first", file=sys.stderr)
            return 2
        except (KeyError, ValueError) as error:
            print(f"bench: {file} is not what the bench writes: {error}; run `make bench`", file=sys.stderr)
            return 2
        if _version(document) == 4:
            draw(document, PERFORMANCE.parent)
        PERFORMANCE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
