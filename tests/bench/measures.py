"""What is measured on a path. Client on CPU 0, server on CPU 1, as far as there are two."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass

from tests.bench.paths import Path

PORT = 5201
PING_PORT = 11111


@dataclass(frozen=True, slots=True)
class Measure:
    """A number with its unit; `higher` tells which direction is better."""

    name: str
    unit: str
    higher: bool
    run: Callable[[Path, float], dict[str, float]]
    """(path, seconds) -> values by measure name: some runs yield more than one."""
    yields: tuple[str, ...]


def pinned(cpu: int, *command: str) -> list[str]:
    """`command` on one CPU."""
    return ["taskset", "-c", str(min(cpu, (os.cpu_count() or 1) - 1)), *command]


def _iperf(path: Path, seconds: float, *flags: str) -> dict[str, float]:
    server = path.server.serve(*pinned(1, "iperf3", "--server", "--one-off", "--port", str(PORT)), port=PORT)
    done = path.client.run(
        *pinned(0, "iperf3", "--client", path.server_address, "--port", str(PORT), "--json",
                "--time", f"{seconds:.0f}", "--omit", "1", *flags),
        seconds=seconds + 30,
    )  # fmt: skip
    server.stop()
    end: dict[str, dict[str, float]] = json.loads(done.stdout)["end"]
    return end.get("sum_received") or end["sum"]


def _tcp(path: Path, seconds: float) -> dict[str, float]:
    return {"tcp_1": _iperf(path, seconds)["bits_per_second"] / 1e9}


def _udp(path: Path, seconds: float) -> dict[str, float]:
    got = _iperf(path, seconds, "--udp", "--bitrate", "0", "--length", "64")
    return {"udp_pps_64": (got["packets"] - got["lost_packets"]) / got["seconds"]}


def _sockperf(path: Path, seconds: float, protocol: str) -> tuple[float, float]:
    """(median, 99th percentile) of the round trip in us; sockperf reports half of it."""
    flags = ["--tcp"] if protocol == "tcp" else []
    server = path.server.serve(
        *pinned(1, "sockperf", "server", "-i", path.server_address, "-p", str(PING_PORT), *flags),
        port=PING_PORT, protocol=protocol,
    )  # fmt: skip
    done = path.client.run(
        *pinned(0, "sockperf", "ping-pong", "-i", path.server_address, "-p", str(PING_PORT), *flags,
                "--time", f"{seconds:.0f}", "--full-rtt"),
        seconds=seconds + 30,
    )  # fmt: skip
    server.stop()
    found = dict(re.findall(r"percentile (\d+\.\d+) =\s+(\d+\.\d+)", done.stdout))
    return float(found["50.000"]), float(found["99.000"])


def _tcp_rr(path: Path, seconds: float) -> dict[str, float]:
    p50, p99 = _sockperf(path, seconds, "tcp")
    return {"tcp_rr_p50": p50, "tcp_rr_p99": p99}


def _udp_rr(path: Path, seconds: float) -> dict[str, float]:
    return {"udp_rr_p50": _sockperf(path, seconds, "udp")[0]}


RUNS: tuple[Measure, ...] = (
    Measure("TCP, one flow", "Gb/s", True, _tcp, ("tcp_1",)),
    Measure("TCP round trip", "us", False, _tcp_rr, ("tcp_rr_p50", "tcp_rr_p99")),
    Measure("UDP round trip", "us", False, _udp_rr, ("udp_rr_p50",)),
    Measure("UDP packets of 64 bytes", "packets/s", True, _udp, ("udp_pps_64",)),
)
"""Everything that is run on each path in each round."""
