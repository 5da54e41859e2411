"""What each program costs a packet, by the kernel's own count while traffic flows.

BPF_ENABLE_STATS lasts as long as its file descriptor, so it never stays on. Taking the
time costs time itself: what an empty program seems to take is subtracted.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Final

from ctl.kernel.bpf import syscall
from ctl.kernel.bpf.maps import layout_dir
from tests.bench.inject import command, instruction
from tests.bench.measures import Conditions, tcp_1, tcp_crr, udp_pps
from tests.bench.paths import Path
from tests.bench.results import Collected
from tests.process import run

_ENABLE_STATS: Final = 32
_EMPTY: Final = instruction(0xB7, 0) + instruction(0x95)


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a program so far."""

    ns: int = 0
    runs: int = 0

    def since(self, before: Cost) -> Cost:
        return Cost(self.ns - before.ns, self.runs - before.runs)

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.ns + other.ns, self.runs + other.runs)


@contextmanager
def statistics() -> Iterator[None]:
    """Let the kernel count runs and time of all programs."""
    fd = command(_ENABLE_STATS, struct.pack("=I", 0))
    try:
        yield
    finally:
        os.close(fd)


def costs(roots: Sequence[FilePath]) -> dict[str, Cost]:
    """By program, of all hosts with these --bpffs together."""
    total: dict[str, Cost] = {}
    for pin in (pin for root in roots for pin in layout_dir(root).glob("progs-*/*")):
        shown = json.loads(run(["bpftool", "-j", "prog", "show", "pinned", str(pin)]).stdout)
        cost = Cost(shown.get("run_time_ns", 0), shown.get("run_cnt", 0))
        total[pin.name] = total.get(pin.name, Cost()) + cost
    return total


def overhead(runs: int = 200_000) -> float:
    """Ns that an empty program seems to take while `statistics` are on."""
    pin = FilePath(f"/sys/fs/bpf/ovlab-{os.getpid()}-empty")
    fd = syscall.prog_load(_EMPTY, "empty")
    try:
        syscall.obj_pin(fd, str(pin))
        syscall.prog_test_run(fd, bytes(64), repeat=runs)
        shown = json.loads(run(["bpftool", "-j", "prog", "show", "pinned", str(pin)]).stdout)
        return float(shown["run_time_ns"] / shown["run_cnt"])
    finally:
        pin.unlink(missing_ok=True)
        os.close(fd)


LOADS: Final = {"UDP 64 bytes": udp_pps, "TCP, one flow": tcp_1, "new connections": tcp_crr}
"""Under which traffic it is measured: mostly bypass, super-packets, mostly the kernel path."""
_FEW: Final = 100
"""Runs, below which an average says nothing."""


def measure(paths: Sequence[Path], rounds: int, how: Conditions, tick: Callable[[str], None]) -> Collected:
    """Ns a run, by `<path>, <load>` and program."""
    found = Collected()
    for _ in range(rounds):
        for path in paths:
            roots = [host.bpffs for host in path.hosts]
            for name, load in LOADS.items():
                tick(f"cost of the programs, {path.name}")
                with statistics():
                    empty, before = overhead(), costs(roots)
                    load(path, how)
                    after = costs(roots)
                for program, cost in after.items():
                    spent = cost.since(before.get(program, Cost()))
                    if spent.runs >= _FEW:
                        found.add(
                            f"{path.name}, {name}", program, "ns", max(0.0, spent.ns / spent.runs - empty)
                        )
    return found
