"""The bench: every path side by side in one run.

    python -m tests.bench [--rounds N] [--seconds S] [--paths A,B] [--wire] [--output FILE]

With --wire the underlay is like a wire: finished checksums, frames of at most the MTU, GRO. On a
bare veth XDP is at a loss, as it takes the sender's offloads away.

Builds the paths, measures them in rotated order, prints a table and writes JSON:

    {"paths": {"<setting>/<path>": {"<measure>": {"median", "stdev", "values", "unit"}}},
     "ratios": {"ebpf": {"<measure>": {"kernel-vxlan": x, ...}}}, "machine": {...}}
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path as FilePath

from tests.bench.measures import RUNS
from tests.bench.paths import PATHS, Path
from tests.bench.results import Results, Series, ratios, table
from tests.lab import Lab

OFFLOADS_ON, WIRE = "offloads-on", "wire"
"""Settings of the underlay."""
OUTPUT = FilePath(__file__).parent / "results" / "latest.json"


def measure(paths: list[Path], rounds: int, seconds: float) -> Results:
    """Every measure on every path, `rounds` times; each round starts with another path."""
    values: dict[str, dict[str, list[float]]] = {path.name: {} for path in paths}
    total = rounds * len(paths) * len(RUNS)
    done = 0
    for number in range(rounds):
        shift = number % len(paths)
        for run in RUNS:
            for path in paths[shift:] + paths[:shift]:
                progress(done, total, f"round {number + 1}: {run.name}, {path.name}")
                for name, value in run.run(path, seconds).items():
                    values[path.name].setdefault(name, []).append(value)
                done += 1
    progress(total, total, "done")
    units = {name: run.unit for run in RUNS for name in run.yields}
    return {
        path: {name: Series(tuple(series), units[name]) for name, series in found.items()}
        for path, found in values.items()
    }


def progress(done: int, total: int, what: str) -> None:
    """One line on a terminal, nothing elsewhere."""
    if sys.stderr.isatty():
        bar = "#" * (30 * done // total)
        print(f"\r\033[K[{bar:<30}] {what}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def document(results: Results, setting: str = OFFLOADS_ON) -> dict[str, object]:
    """The results file's content."""
    overlay = [path for path in results if path.startswith("ebpf")]
    return {
        "machine": {"kernel": platform.release(), "cpus": os.cpu_count(), "machine": platform.machine()},
        "paths": {
            f"{setting}/{path}": {name: series.json() for name, series in found.items()}
            for path, found in results.items()
        },
        "ratios": {path: ratios(results, path) for path in overlay},
    }


def run(names: list[str], rounds: int, seconds: float, setting: str = OFFLOADS_ON) -> Results:
    """Build the named paths, measure, remove them again."""
    with Lab() as lab:
        lab.init_network()
        paths = [PATHS[name](lab) for name in names]
        for host in (host for path in paths for host in path.hosts if setting == WIRE):
            host.like_a_wire()
        for path in paths:  # neighbours, learning, caches
            path.client.run("ping", "-c2", "-i0.1", path.server_address)
        return measure(paths, rounds, seconds)


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="tests.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--paths", default=",".join(PATHS), help="comma-separated, of: " + ", ".join(PATHS))
    parser.add_argument("--wire", action="store_true", help="an underlay like a wire (see above)")
    parser.add_argument("--output", type=FilePath, default=OUTPUT)
    args = parser.parse_args()
    names = args.paths.split(",")
    if unknown := set(names) - set(PATHS):
        parser.error(f"no such path: {', '.join(sorted(unknown))}")
    setting = WIRE if args.wire else OFFLOADS_ON
    results = run(names, args.rounds, args.seconds, setting)
    print("\n".join(table(results)))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(document(results, setting), indent=1, sort_keys=True) + "\n")
    print(f"\nraw values: {args.output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
