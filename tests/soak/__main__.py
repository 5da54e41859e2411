"""A soak: `python -m tests.soak [--hours H] [--seed N] [--out docs/soak]`.

Rounds of churn and faults (tests.soak.world) until the time is over. After each the world
looks as before, and a sample is taken. At the end every series is judged by its law
(tests.soak.laws), and OUT.json and OUT.svg are written; the JSON after every round, so that a
run that is cut short is not lost. Exit code 1 if a law is broken or a datagram is lost.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from tests.lab import Lab
from tests.soak.laws import Law, Sample, Verdict, judge
from tests.soak.world import FLOWS_MAX, World, build

SAME: Final = Law("exact", why="the world looks the same at every sample")
LAWS: Final = {
    "rss_mb": Law("trend", 1.0, "pages that the allocator gives back late make steps of less than this"),
    "fds": Law("floor", 0, "a connection that is kept comes and goes; one that is never closed stays"),
    "threads": Law("floor", 0, "a scrape's thread ends; one that is forgotten stays"),
    "netlink_sockets": SAME,
    "map_peers": SAME,
    "map_endpoints": SAME,
    "map_peer_stats": SAME,
    "map_flows": Law("ceiling", FLOWS_MAX, "an LRU: full, and never more"),
    "routes": SAME,
    "neighbours": SAME,
    "fdb": SAME,
    "filters": SAME,
    "nft_rules": SAME,
    "nft_objects": SAME,
    "pins": SAME,
    "state_files": SAME,
}
MIN_ROUNDS: Final = 6
"""Fewer cannot be judged."""


def soak(
    seconds: float, seed: int, fault_seconds: Sequence[float], tell: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Run for `seconds`; the whole result. `tell` gets it after every round, too."""
    with Lab() as lab:
        world = build(lab, seed)
        samples: list[Sample] = []
        trouble: list[str] = []
        started = time.monotonic()
        while len(samples) < MIN_ROUNDS or time.monotonic() - started < seconds:
            try:
                fault = world.round(world.pick.choice(fault_seconds))
                samples.append(Sample(round(time.monotonic() - started, 1), world.sample()))
            except AssertionError as error:  # CommandFailed, TimedOut: hours of samples are not thrown away
                trouble = [f"round {len(samples) + 1}: {error}"]
                break
            tell(_result(seed, seconds, world, samples, []) | {"fault": fault})
        for stream in world.streams:
            world.end(stream)
        return _result(seed, seconds, world, samples, judgements(samples)) | {"trouble": trouble}


def judgements(samples: Sequence[Sample]) -> list[Verdict]:
    """A verdict for every series that has a law."""
    names = sorted(samples[0].values)
    return [judge(name, LAWS[what], samples) for name in names if (what := name.split(".")[1]) in LAWS]


def _result(
    seed: int, seconds: float, world: World, samples: list[Sample], verdicts: list[Verdict]
) -> dict[str, Any]:
    account = world.account
    return {
        "seed": seed,
        "seconds": seconds,
        "rounds": len(samples),
        "events": dict(sorted(world.events.items())),
        "datagrams": {**asdict(account), "lost": account.lost},
        "verdicts": [{**asdict(each), "kept": each.kept} for each in verdicts],
        "samples": [{"at": each.at, **each.values} for each in samples],
    }


def broken(result: dict[str, Any]) -> list[str]:
    """What is wrong, a line each; empty if all is well."""
    lines = [
        f"{each['series']}: {each['law']['kind']}: {each['measured']:g} is over {each['allowed']:g}"
        for each in result["verdicts"]
        if not each["kept"]
    ]
    lines += result["trouble"]
    datagrams = result["datagrams"]
    lines += [f"datagrams {what}: {datagrams[what]}" for what in ("lost", "duplicates") if datagrams[what]]
    return lines


def _progress(result: dict[str, Any]) -> str:
    last, datagrams = result["samples"][-1], result["datagrams"]
    memory = " ".join(f"{name} {last[f'{name}.rss_mb']:.1f} MB {last[f'{name}.fds']:.0f} fd" for name in "ab")
    return (
        f"{last['at']:7.0f} s  round {result['rounds']:4}  {memory}  sent {datagrams['sent']:8} "
        f"lost {datagrams['lost']}  {result['fault']}"
    )


def summary(result: dict[str, Any]) -> list[str]:
    """A table for people."""
    rows = [f"{'series':<22} {'law':<8} {'first':>9} {'last':>9} {'measured':>9} {'allowed':>9}"]
    for each in result["verdicts"]:
        mark = "" if each["kept"] else "   BROKEN"
        rows.append(
            f"{each['series']:<22} {each['law']['kind']:<8} {each['first']:9.6g} {each['last']:9.6g}"
            f" {each['measured']:9.3g} {each['allowed']:9g}{mark}"
        )
    rows.append(f"datagrams: {json.dumps(result['datagrams'])}")
    rows.append(f"events: {json.dumps(result['events'])}")
    return rows


def main(argv: list[str]) -> int:
    """Run, write, judge."""
    parser = argparse.ArgumentParser(prog="tests.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--out", type=Path, default=Path("docs/soak"), help="without the endings .json and .svg"
    )
    args = parser.parse_args(argv)
    data = args.out.with_suffix(".json")

    def tell(result: dict[str, Any]) -> None:
        print(_progress(result), flush=True)
        data.write_text(json.dumps(result) + "\n")

    result = soak(args.hours * 3600, args.seed, (1.0, 3.0, 8.0, 25.0), tell)
    data.write_text(json.dumps(result) + "\n")
    from tests.soak.plot import draw  # matplotlib takes a second to import

    draw(result, args.out.with_suffix(".svg"))
    print("\n".join(summary(result)))
    lines = broken(result)
    print("\n".join(f"broken: {line}" for line in lines) if lines else "flat: every law holds, nothing lost")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
