"""The bench: every path side by side in one run, then the node itself.

    python -m tests.bench [--quick] [--rounds N] [--seconds S] [--paths A,B] [--setting NAME] [--family 6]
                          [--output FILE]

Settings: `offloads-on`, as a veth has them; `wire`, an underlay like a wire: finished checksums,
frames of at most the MTU, GRO (on a bare veth XDP is at a loss, as it takes the sender's offloads
away). In both, idle CPUs poll. `halting`: offloads on, and CPUs halt as the machine has it, on the
paths that targets are about. Each round starts with another path. Prints a table and writes JSON:

    {"paths": {"<setting>/<path>": {"<measure>": {"median", "stdev", "values", "unit"}}},
     "ratios": {"<setting>/<path>": {"<measure>": {"kernel-vxlan": x, ...}}},
     "within_noise": {"<setting>/<path>": {"<measure>": ["routed", ...]}},
     "peers", "programs", "node": as "paths"; "machine", "offloads", "busy", ...}

With --paths or --setting only that is measured, and nothing of the node; with --family 6 the paths that
have IPv6, by that, in the first setting unless told otherwise. Exit: 0 done, 1 a
measurement failed, 2 usage, or the machine cannot run it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path as FilePath
from typing import Any, Final

from ctl.core.errors import OvnetError
from tests import dual
from tests.bench import machine, node, programs, rigs
from tests.bench.document import IPV6_RESULTS, RESULTS
from tests.bench.measures import BETWEEN_CONTAINERS, RUNS, Conditions, Measure, count
from tests.bench.paths import IPV4_ONLY, PATHS, Path
from tests.bench.placement import Placement
from tests.bench.progress import Progress
from tests.bench.results import (
    BASES,
    HALTING,
    OFFLOADS_ON,
    SETTINGS,
    WIRE,
    Collected,
    Results,
    as_json,
    ratios,
    table,
    within_noise,
)
from tests.lab import CommandFailed, Lab, TimedOut

OUTPUT = {4: RESULTS, 6: IPV6_RESULTS}
BACKGROUND_S = 0.5
TRIES = 3

Tick = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    rounds: int
    seconds: int
    runs: Mapping[str, tuple[Measure, ...]] = field(default_factory=lambda: dict.fromkeys(SETTINGS, RUNS))
    node_rounds: int = 5
    moves: int = 20
    idle_s: float = 20.0
    peer_sizes: tuple[int, ...] = rigs.SIZES
    whole: bool = True
    """With the cost of the programs and convergence."""

    def steps(self) -> int:
        """Of a whole run, for the progress."""
        sides = self.rounds * sum(count(runs, paths_in(setting)) for setting, runs in self.runs.items())
        rest = self.rounds * (len(rigs.RIGS) + 1) + self.node_rounds * (len(self.peer_sizes) + 3)
        more = self.node_rounds * 2 * len(programs.LOADS) + 2 * self.moves
        return sides + rest + (more if self.whole else 0)


def paths_in(setting: str) -> list[str]:
    """Names of the paths that a whole run measures."""
    return [*BASES, "ebpf"] if setting == HALTING else list(PATHS)


def _without(*measures: str) -> tuple[Measure, ...]:
    """Those between containers, but those that yield one of these."""
    return tuple(run for run in BETWEEN_CONTAINERS if not set(measures) & set(run.yields))


_SHORT: Final = _without("tcp_4", "udp_rr_p50")
FULL = Plan(
    rounds=7,
    seconds=1,
    runs={OFFLOADS_ON: RUNS, WIRE: _without("tcp_4", "udp_rr_p50", "tcp_rr_p50"), HALTING: _SHORT},
)
QUICK = Plan(rounds=3, seconds=1, runs={OFFLOADS_ON: RUNS, WIRE: RUNS[:1]}, node_rounds=1, idle_s=3.0,
             peer_sizes=(100, 100_000), whole=False)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Side:
    """What came out in one setting."""

    results: Results
    offloads: Mapping[str, bool] = field(default_factory=dict)
    background: Sequence[float] = ()
    """CPUs in use by others, a value a round."""
    again: Sequence[str] = ()
    """Runs that failed and were tried again."""
    apart: int = 0
    """Values taken while the CPUs were apart (`placement`)."""
    extra: Mapping[str, Results] = field(default_factory=dict)
    """Of the node, if that was asked for."""


def measure(
    paths: Sequence[Path], rounds: int, how: Conditions, runs: Sequence[Measure], tick: Tick, polling: bool
) -> Side:
    """Every run on each of its paths, `rounds` times. `polling`: idle CPUs do, for as long as a run lasts."""
    found, background, again = Collected(), [], []
    placement = Placement(how.crr.parent)
    for number in range(rounds):
        shift = number % len(paths)
        background.append(machine.background(BACKGROUND_S))
        conditions = replace(how, background=background[-1])
        for run in runs:
            for path in (each for each in (*paths[shift:], *paths[:shift]) if each.name in run.paths):
                tick(f"round {number + 1} of {rounds}: {run.name}, {path.name}")
                once = partial(run.run, path, conditions)
                values, failures = persist(partial(placement.settled, once, polling))
                again += [f"round {number + 1}, {run.name}, {path.name}: {each}" for each in failures]
                for name, value in values.items():
                    found.add(path.name, name, run.yields[name], value)
    return Side(found.results(), background=background, again=again, apart=placement.apart)


def persist(run: Callable[[], dict[str, float]]) -> tuple[dict[str, float], list[str]]:
    """The values of a run, and why earlier tries failed: one bad run shall not lose all others.

    CommandFailed or TimedOut of the last of TRIES.
    """
    failures: list[str] = []
    while True:
        try:
            return run(), failures
        except (CommandFailed, TimedOut) as error:
            failures.append(_one_line(str(error)))
            if len(failures) == TRIES:
                raise


def side(
    names: Sequence[str], setting: str, plan: Plan, tick: Tick, whole: bool = False, version: int = 4
) -> Side:
    """Build the named paths, measure, remove them again; with agents and programs if `whole`."""
    with Lab() as lab:
        machine.compiled("echo", lab.dir)
        how = Conditions(plan.seconds, machine.compiled("crr", lab.dir))
        if version == 4:
            lab.init_network()
        else:
            dual.write_network(lab.store_url)
        paths = [PATHS[name](lab, version) for name in names]
        for path in paths:
            if setting == WIRE:
                path.like_a_wire()
            # Neighbours, learning, caches.
            path.client.run("ping", "-c3", "-i0.1", path.server_address)
        extra: dict[str, Results] = {}
        if whole:
            tick("memory and idle CPU of the agents")
            vxlan = [agent for path in paths if path.name.startswith("ebpf") for agent in path.agents]
            extra["node"] = node.idle(vxlan, plan.idle_s).results()
        measured = measure(paths, plan.rounds, how, plan.runs[setting], tick, polling=setting != HALTING)
        if whole and plan.whole:
            ours = [path for path in paths if path.name in ("ebpf", "ebpf-xdp")]
            extra["programs"] = programs.measure(ours, plan.node_rounds, how, tick).results()
        shown = next((path.hosts[0] for path in paths if path.hosts), paths[0].client)
        return replace(measured, offloads=machine.offloads(shown, "eth0"), extra=extra)


def document(sides: dict[str, Side], extra: dict[str, Results], facts: dict[str, Any]) -> dict[str, Any]:
    """The results file's content. `extra`: what is of no path; `facts`: go in as they are."""
    overlays = {
        f"{setting}/{path}": (each.results, path)
        for setting, each in sides.items()
        for path in each.results
        if path not in BASES[1:]
    }
    return {
        **facts,
        "offloads": {setting: dict(each.offloads) for setting, each in sides.items()},
        "background_cpus": {setting: list(each.background) for setting, each in sides.items()},
        "tried_again": {setting: list(each.again) for setting, each in sides.items()},
        "apart": {setting: each.apart for setting, each in sides.items()},
        "paths": {
            f"{setting}/{path}": series
            for setting, each in sides.items()
            for path, series in as_json(each.results).items()
        },
        "ratios": {key: ratios(results, path) for key, (results, path) in overlays.items()},
        "within_noise": {key: within_noise(results, path) for key, (results, path) in overlays.items()},
        **{name: as_json(results) for name, results in extra.items()},
    }


def whole(plan: Plan, tick: Tick) -> tuple[dict[str, Side], dict[str, Results]]:
    """Everything."""
    sides = {
        setting: side(paths_in(setting), setting, plan, tick, whole=setting == OFFLOADS_ON)
        for setting in plan.runs
    }
    first = sides[OFFLOADS_ON]
    injected = rigs.injected(plan.rounds, plan.seconds / 2, tick).results()
    merged = {path: {**found, **injected.get(path, {})} for path, found in first.results.items()}
    how = Conditions(plan.seconds, FilePath())
    about = dict(first.extra["node"]["agent"]) | node.starts(plan.node_rounds, tick).results()["agent"]
    if plan.whole:
        about |= node.convergence(plan.moves, tick).results()["agent"]
    extra = {
        "programs": first.extra.get("programs", {}),
        "peers": rigs.lookups(plan.node_rounds, how, tick, plan.peer_sizes).results(),
        "node": {"agent": about},
    }
    return sides | {OFFLOADS_ON: replace(first, results=merged)}, extra


def main(argv: list[str]) -> int:
    """Entry point; returns the exit code."""
    args = _arguments(argv)
    if why := machine.obstacle():
        print(f"bench: {why}", file=sys.stderr)
        return 2
    plan = QUICK if args.quick else FULL
    plan = replace(plan, rounds=args.rounds or plan.rounds, seconds=args.seconds or plan.seconds)
    busy = machine.background(2 * BACKGROUND_S)
    if busy > machine.BUSY_LIMIT:
        words = f"others use {busy:.2f} CPUs; figures will scatter (noted in the results)"
        print(f"bench: the machine is busy: {words}", file=sys.stderr)
    facts = {
        "machine": machine.facts(),
        "date": time.strftime("%Y-%m-%d"),
        "quick": args.quick,
        "family": args.family,
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "busy": {"cpus": busy, "limit": machine.BUSY_LIMIT, "busy": busy > machine.BUSY_LIMIT},
    }
    try:
        sides, extra = _run(args, plan)
    except KeyboardInterrupt:
        print("\nbench: interrupted; everything it made is removed", file=sys.stderr)
        return 130
    except (CommandFailed, TimedOut, OvnetError, OSError) as error:
        print(f"\nbench: a measurement failed: {_one_line(str(error))}", file=sys.stderr)
        return 1
    output = args.output or OUTPUT[args.family]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(document(sides, extra, facts), indent=1, sort_keys=True) + "\n")
    for setting, each in sides.items():
        print(f"\n{setting}", *table(each.results), sep="\n")
    print(f"\nresults: {output}; `python -m tests.bench.document` puts them into docs/", file=sys.stderr)
    return 0


def _one_line(text: str) -> str:
    """What was run, and the last that it said."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ... ".join(dict.fromkeys((lines[0], lines[-1]))) if lines else "no message"


def _run(args: argparse.Namespace, plan: Plan) -> tuple[dict[str, Side], dict[str, Results]]:
    if not args.paths and not args.setting and args.family == 4:
        progress = Progress(plan.steps())
        found = whole(plan, progress.tick)
    else:
        setting = args.setting or OFFLOADS_ON
        names = args.paths.split(",") if args.paths else _of_family(args.family, paths_in(setting))
        plan = replace(plan, runs={setting: RUNS})
        progress = Progress(plan.rounds * count(RUNS, names))
        found = {setting: side(names, setting, plan, progress.tick, version=args.family)}, {}
    progress.end()
    return found


def _of_family(version: int, names: Sequence[str]) -> list[str]:
    """Those of the paths that can be measured by that IP."""
    return [name for name in names if version == 4 or name not in IPV4_ONLY]


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, shorter runs")
    parser.add_argument("--rounds", type=_positive, help=f"default: {FULL.rounds}, quick {QUICK.rounds}")
    parser.add_argument(
        "--seconds", type=_positive, help=f"a run; default: {FULL.seconds}, quick {QUICK.seconds}"
    )
    parser.add_argument("--paths", default="", help="comma-separated, of: " + ", ".join(PATHS))
    parser.add_argument("--setting", choices=SETTINGS, help="only this one; see above")
    parser.add_argument("--family", type=int, choices=OUTPUT, default=4, help="version of IP; default: 4")
    parser.add_argument(
        "--output", type=FilePath, help="default: one for each family, in tests/bench/results"
    )
    args = parser.parse_args(argv)
    known = _of_family(args.family, list(PATHS))
    if args.paths and (unknown := set(args.paths.split(",")) - set(known)):
        words = f"no such path of IPv{args.family}: {', '.join(sorted(unknown))}"
        parser.error(f"{words} (there are {', '.join(known)})")
    return args


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
