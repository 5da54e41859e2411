"""How an agent starts, and what it costs while nothing happens: `python -m tests.bench.start [--rounds N]`.

Two hosts, a SQLite store, metrics on. Times are from the start of the process until systemd
would be told READY=1: leased, compiled or adopted, attached, and the whole state reconciled.
What is attached by then carries every flow from its second packet on.

    cold        no state and no pins; the programs are compiled and verified
    restart     everything in place from an earlier life, and forwarding meanwhile
    CPU         user and system seconds of the agent until then; the compiling child is not in it
    RSS         of the agent after a scrape of its metrics
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from tests.host import METRICS_PORT, Agent, Host
from tests.lab import Lab

LIMITS = {"cold s": 1.8, "restart s": 0.5, "RSS MB": 46.0, "idle CPU %": 0.2}
"""What is promised on a machine that has nothing else to do."""

SECONDS = 60.0
"""After which a start has failed."""


@contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """The socket that systemd would listen on (sd_notify(3))."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.settimeout(SECONDS)
        try:
            yield listener
        finally:
            path.unlink()


def start(host: Host, listener: socket.socket) -> tuple[Agent, float]:
    """An agent, and the seconds until it was ready."""
    began = time.monotonic()
    agent = host.agent(wait=False, env={"NOTIFY_SOCKET": listener.getsockname()})
    while b"READY=1" not in listener.recv(4096):
        pass
    return agent, time.monotonic() - began


def used(agent: Agent) -> float:
    """User and system seconds."""
    fields = Path(f"/proc/{agent.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(agent: Agent) -> float:
    """MB."""
    status = Path(f"/proc/{agent.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def measure(rounds: int, idle: float) -> dict[str, list[float]]:
    """Every value of each figure."""
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    with Lab() as lab:
        a, b = lab.host("a"), lab.host("b")
        lab.init_network()
        b.agent()
        with _listening(lab.dir / "notify") as listener:
            for _ in range(rounds):
                agent, seconds = start(a, listener)
                note("cold s", seconds)
                note("cold CPU s", used(agent))
                agent.stop()
                agent, seconds = start(a, listener)
                note("restart s", seconds)
                note("restart CPU s", used(agent))
                assert a.http(f"http://127.0.0.1:{METRICS_PORT}/metrics")[0] == 200
                note("RSS MB", resident(agent))
                agent.stop()
                a.teardown()
            agent, _ = start(a, listener)
            before = used(agent)
            time.sleep(idle)  # the measure is a time, not a condition
            note("idle CPU %", 100 * (used(agent) - before) / idle)
    return found


def main(argv: list[str]) -> int:
    """Print medians and spread; 1 if a median is over its limit."""
    parser = argparse.ArgumentParser(prog="tests.bench.start", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--idle", type=float, default=30.0, metavar="SECONDS")
    parser.add_argument("--json", action="store_true", help="all values")
    args = parser.parse_args(argv)
    found = measure(args.rounds, args.idle)
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        for name, values in found.items():
            limit = f"   (limit {LIMITS[name]:g})" if name in LIMITS else ""
            print(f"{name:<14} {median(values):7.3f}   {min(values):.3f} to {max(values):.3f}{limit}")
    return int(any(median(found[name]) > limit for name, limit in LIMITS.items()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
