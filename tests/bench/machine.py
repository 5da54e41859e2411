"""The machine under the bench: whether it is fit for it, what it is, how busy it is."""

from __future__ import annotations

import os
import platform
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.namespace import Netns
from tests.process import run

TOOLS = {
    "iperf3": "iperf3", "sockperf": "sockperf", "cc": "gcc", "bpftool": "bpftool", "ethtool": "ethtool",
    "taskset": "util-linux", "nsenter": "util-linux",
    "ping": "iputils-ping", "ip": "iproute2", "nft": "nftables",
}  # fmt: skip
"""What the bench runs, and Debian's package of it."""

BUSY_LIMIT = 0.1
"""CPUs in use by others from which on the machine counts as busy."""
OFFLOADS = (
    "tx-checksumming",
    "tcp-segmentation-offload",
    "generic-segmentation-offload",
    "generic-receive-offload",
)


def obstacle(find: Callable[[str], str | None] = shutil.which, uid: int | None = None) -> str | None:
    """Why the bench cannot run here, in one line with the remedy; None if it can."""
    if (os.geteuid() if uid is None else uid) != 0:
        return "not root: the bench makes network namespaces and loads BPF programs; run it as root"
    absent = [tool for tool in TOOLS if not find(tool)]
    if not absent:
        return None
    packages = " ".join(dict.fromkeys(TOOLS[tool] for tool in absent))
    return f"missing: {', '.join(absent)}; `make setup` installs them (Debian: apt-get install {packages})"


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU time of the whole machine until now: seconds used and stolen from it, and the time."""

    unused: float
    """Seconds of all CPUs idle, waiting for I/O, or stolen by the hypervisor."""
    at: float

    @classmethod
    def now(cls) -> Usage:
        return cls(unused(Path("/proc/stat").read_text()), time.monotonic())

    def used_since(self, before: Usage, cpus: int) -> float:
        """CPU seconds of everything, softirq included: what was not unused.

        The kernel measures idle time exactly, but the others by samples at each tick.
        """
        return (self.at - before.at) * cpus - (self.unused - before.unused)


def unused(stat: str) -> float:
    """Idle, iowait and steal of all CPUs in seconds, from /proc/stat."""
    fields = stat.split("\n", 1)[0].split()
    return sum(int(fields[column]) for column in (4, 5, 8)) / os.sysconf("SC_CLK_TCK")


def compiled(name: str, directory: Path) -> Path:
    """The C program of this name that is beside this file, in `directory`."""
    program = directory / name
    run(["cc", "-O2", "-pthread", "-o", str(program), str(Path(__file__).with_name(f"{name}.c"))])
    return program


def background(seconds: float) -> float:
    """CPUs in use while the bench does nothing: CPU seconds per second."""
    before = Usage.now()
    time.sleep(seconds)  # the measure is a time, not a condition
    after = Usage.now()
    return max(0.0, after.used_since(before, cpus()) / (after.at - before.at))


LATENCY = Path("/dev/cpu_dma_latency")
"""The kernel's latency request (Documentation/power/pm_qos_interface.rst): us as an int."""


@contextmanager
def awake(request: Path = LATENCY) -> Iterator[None]:
    """Keep idle CPUs from halting: they poll for work, and whatever wakes them needs no interrupt.

    Who waits for a packet lets its CPU halt. A virtual CPU that halts is the hypervisor's, which
    takes as long as the packet's whole way to bring it back; that would be measured, not the way.
    Without a cpuidle driver (`idle_driver`) they halt all the same.
    """
    with ExitStack() as held:
        if request.exists():
            held.enter_context(request.open("wb", buffering=0)).write(struct.pack("=i", 0))
        yield


def idle_driver() -> str:
    """What idle CPUs are left to; `none`: they halt, whatever is asked of them."""
    try:
        return Path("/sys/devices/system/cpu/cpuidle/current_driver").read_text().strip()
    except OSError:
        return "none"


def cpus() -> int:
    return os.cpu_count() or 1


def facts() -> dict[str, Any]:
    """What the machine is, for the results file."""
    models = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
              if line.startswith("model name")]  # fmt: skip
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "kernel": platform.release(),
        "cpus": cpus(),
        "cpu": models[0] if models else "",
        "machine": platform.machine(),
        "memory_gb": round(pages / 1e9, 1),
        "idle_driver": idle_driver(),
        "congestion_control": Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip(),
    }


def offloads(place: Netns, device: str) -> dict[str, bool]:
    """The features of a device that matter here, as `ethtool -k` has them."""
    shown = place.run("ethtool", "-k", device).stdout.splitlines()
    pairs = dict(line.strip().split(": ", 1) for line in shown if ": " in line)
    return {name: pairs[name].startswith("on") for name in OFFLOADS}
