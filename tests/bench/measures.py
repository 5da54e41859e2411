"""What is measured on a path. Client on CPU 0, server on CPU 1, as far as there are two."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path as FilePath
from typing import Any, Final

from tests.bench.machine import Usage, cpus
from tests.bench.paths import PATHS, WITH_CALLERS, Path, from_host, service
from tests.process import CommandFailed

FIXED_RATE = "4G"
"""Of the CPU measure, bit/s: what all paths but udp carry easily."""
WARM_UP_S = 0.3
"""Of a TCP flow, until it is as fast as it gets."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """How long to measure, and what else the machine does meanwhile."""

    seconds: int
    crr: FilePath
    """The program made of crr.c, beside that of echo.c."""
    background: float = 0.0
    """CPUs in use by others."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One run on a path, which may yield more than one number."""

    name: str
    yields: Mapping[str, str]
    """Measures with their units."""
    run: Callable[[Path, Conditions], dict[str, float]]
    paths: Collection[str] = tuple(PATHS)
    """Names of those that it is run on."""


def pinned(cpu: int, *command: str) -> list[str]:
    """`command` on one CPU."""
    return ["taskset", "-c", str(min(cpu, cpus() - 1)), *command]


@contextmanager
def _serving(path: Path, *command: str, port: int, protocol: str = "tcp") -> Iterator[None]:
    """The server's side of a run, gone afterwards even if the client failed."""
    server = path.server.serve(*pinned(1, *command), port=port, protocol=protocol)
    try:
        yield
    finally:
        server.stop()


def _iperf(path: Path, seconds: int, *flags: str) -> dict[str, Any]:
    """The client's report; the server's, at tenths of a second, is in it."""
    port = path.ports.iperf
    serve = ("iperf3", "--server", "--one-off", "--json", "--interval", "0.1", "--port", str(port))
    with _serving(path, *serve, port=port):
        done = path.client.run(
            *pinned(0, "iperf3", "--client", path.server_address, "--port", str(port), "--json",
                    "--get-server-output", "--time", str(seconds), *flags),
            seconds=seconds + 30,
        )  # fmt: skip
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def received_rate(report: dict[str, Any]) -> float:
    """Gb/s that the receiver saw once the flow was warm; of the whole run if it could not keep time."""
    sums = [each["sum"] for each in report["server_output_json"]["intervals"]]
    warm = [each for each in sums if each["start"] >= WARM_UP_S]
    seconds = sum(each["seconds"] for each in warm)
    if seconds < WARM_UP_S:
        return float(report["end"]["sum_received"]["bits_per_second"] / 1e9)
    return float(8e-9 * sum(each["bytes"] for each in warm) / seconds)


def tcp_1(path: Path, how: Conditions) -> dict[str, float]:
    """One flow."""
    return {"tcp_1": received_rate(_iperf(path, how.seconds))}


def _tcp_4(path: Path, how: Conditions) -> dict[str, float]:
    return {"tcp_4": received_rate(_iperf(path, how.seconds, "--parallel", "4"))}


def udp_pps(path: Path, how: Conditions) -> dict[str, float]:
    """As many datagrams as go, counted where they arrive."""
    got = _iperf(path, how.seconds, "--udp", "--bitrate", "0", "--length", "64")["end"]["sum"]
    return {"udp_pps_64": (got["packets"] - got["lost_packets"]) / got["seconds"]}


def _cpu_per_gb(path: Path, how: Conditions) -> dict[str, float]:
    """Both ends, both hosts, softirq included, less what the machine does anyway."""
    before = Usage.now()
    report = _iperf(path, how.seconds, "--bitrate", FIXED_RATE)
    after = Usage.now()
    used = after.used_since(before, cpus()) - how.background * (after.at - before.at)
    return {"cpu_per_gb": used / (report["end"]["sum_received"]["bytes"] / 1e9)}


def tcp_crr(path: Path, how: Conditions) -> dict[str, float]:
    """Connections one after the other."""
    port = path.ports.crr
    with _serving(path, str(how.crr), "serve", path.anywhere, str(port), port=port):
        done = path.client.run(
            *pinned(0, str(how.crr), "connect", path.server_address, str(port), str(how.seconds)),
            seconds=how.seconds + 30,
        )
    return {"tcp_crr": float(done.stdout)}


def round_trip(path: Path, how: Conditions, protocol: str) -> dict[str, float]:
    """Us of a question and its answer."""
    ask = _sockperf if path.version == 4 else _echo
    return {f"{protocol}_rr_{name}": us for name, us in percentiles(ask(path, how, protocol)).items()}


def _sockperf(path: Path, how: Conditions, protocol: str) -> str:
    """What it prints; without `--full-rtt` half of each round trip."""
    flags = ["--tcp"] if protocol == "tcp" else []
    port = path.ports.sockperf
    with _serving(path, "sockperf", "server", "-p", str(port), *flags, port=port, protocol=protocol):
        return path.client.run(
            *pinned(0, "sockperf", "ping-pong", "-i", path.server_address, "-p", str(port), *flags,
                    "--time", str(how.seconds), "--full-rtt"),
            seconds=how.seconds + 30,
        ).stdout  # fmt: skip


def _echo(path: Path, how: Conditions, protocol: str) -> str:
    """The same of echo.c: sockperf 3.7 knows no IPv6."""
    program, port = str(how.crr.with_name("echo")), path.ports.sockperf
    with _serving(path, program, "serve", protocol, path.anywhere, str(port), port=port, protocol=protocol):
        return path.client.run(
            *pinned(0, program, "ask", protocol, path.server_address, str(port), str(how.seconds)),
            seconds=how.seconds + 30,
        ).stdout


def percentiles(printed: str) -> dict[str, float]:
    """p50, p99 and p99.9 of what sockperf or echo.c printed. CommandFailed without any.

    So it is when a datagram is lost early: sockperf waits for the answer until its time is up.
    """
    found = dict(re.findall(r"percentile (\d+\.\d+) =\s+(\d+\.\d+)", printed))
    if not found:
        raise CommandFailed(f"there were no answers\n{printed}")
    return {"p50": float(found["50.000"]), "p99": float(found["99.000"]), "p99.9": float(found["99.900"])}


def _units(protocol: str) -> dict[str, str]:
    return {f"{protocol}_rr_{name}": "us" for name in ("p50", "p99", "p99.9")}


_TCP: Final = Measure("TCP, one flow", {"tcp_1": "Gb/s"}, tcp_1)
_ROUND_TRIP: Final = Measure("TCP round trip", _units("tcp"), lambda path, how: round_trip(path, how, "tcp"))
_CONNECTIONS: Final = Measure("new TCP connections", {"tcp_crr": "/s"}, tcp_crr)
_PACKETS: Final = Measure("UDP packets of 64 bytes", {"udp_pps_64": "packets/s"}, udp_pps)

BETWEEN_CONTAINERS: Final = (
    _TCP,
    Measure("TCP, four flows", {"tcp_4": "Gb/s"}, _tcp_4),
    _ROUND_TRIP,
    Measure("UDP round trip", _units("udp"), lambda path, how: round_trip(path, how, "udp")),
    _CONNECTIONS,
    _PACKETS,
    Measure("CPU per gigabyte", {"cpu_per_gb": "s/GB"}, _cpu_per_gb),
)


def _called(
    prefix: str,
    words: str,
    by: Callable[[Path], AbstractContextManager[Path]],
    measures: Iterable[Measure],
) -> tuple[Measure, ...]:
    """The same for another client or address, which `by` makes of a path; what they yield gets the prefix."""

    def run(measure: Measure, path: Path, how: Conditions) -> dict[str, float]:
        with by(path) as called:
            return {f"{prefix}{name}": value for name, value in measure.run(called, how).items()}

    return tuple(
        Measure(
            f"{words}: {each.name}",
            {f"{prefix}{name}": unit for name, unit in each.yields.items()},
            partial(run, each),
            WITH_CALLERS,
        )
        for each in measures
    )


RUNS: Final = (
    *BETWEEN_CONTAINERS,
    *_called("svc_", "service", service, (_TCP, _ROUND_TRIP, _CONNECTIONS, _PACKETS)),
    *_called("host_", "from the host", from_host, (_TCP, _ROUND_TRIP)),
)
"""Everything that is run in each round."""


def count(runs: Iterable[Measure], paths: Collection[str]) -> int:
    """How many runs a round has on the paths of these names."""
    return sum(path in run.paths for run in runs for path in paths)
