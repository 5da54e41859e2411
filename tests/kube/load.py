"""How the Kubernetes store fares with many Nodes: `python -m tests.kube.load [NODES]` prints figures.

The store runs in a process of its own (this one, with `--observe`), so that its memory and CPU time are
measured and nothing else's. A change is timed from before the twin takes it to after the snapshot that
has it, in the observer's callback; both processes are on one machine.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from ctl.cli.agent import _give_memory_back
from ctl.store import open_store
from tests.etcd_load import resident
from tests.kube.nodes import node, now, published
from tests.kube.state import merge
from tests.kube.twin import Twin
from tests.namespace import REPOSITORY
from tests.process import Process, wait_until

IMAGES = 50
"""As many as kubelet reports: a Node of 12 KB."""
CHANGES, SECONDS = 200, 300.0


def say(line: Any) -> None:
    """One line in one piece: two threads do."""
    os.write(1, json.dumps(line).encode() + b"\n")


def observe(url: str, count: int) -> None:
    """A line per change that the callback has seen: the time, how many leases, CPU seconds so far."""
    _give_memory_back()  # as an agent has it
    with closing(open_store(url)) as store:
        before, cpu, started = resident(), time.process_time(), time.monotonic()
        done = threading.Event()

        def changed() -> None:
            leases = store.snapshot().leases
            say([time.time(), len(leases), time.process_time()])
            if len(leases) == 0:
                done.set()

        with closing(store.watch(changed)):
            found = store.snapshot()
            first = {
                "first_sync_s": time.monotonic() - started,
                "first_sync_cpu_s": time.process_time() - cpu,
            }
            assert len(found.leases) == count, found.problems[:3]
            say({**first, "rss_before_mb": before, "rss_mb": resident()})
            while not done.wait(0.5):
                say({"rss_later_mb": resident(), "rss_peak_mb": resident("VmHWM")})


def filled(count: int) -> Twin:
    twin = Twin()
    for number in range(count):
        high, low = divmod(number, 250)
        written = published(f"172.16.{high}.{1 + low}", f"02:00:00:00:{high:02x}:{low:02x}")
        subnet = f"10.{1 + high}.{low}.0/24"
        twin.state.create(node(f"worker-{number}.example", subnet, annotations=written, images=IMAGES))
    return twin


def lines(observer: Process) -> list[Any]:
    return [json.loads(line) for line in observer.out().splitlines() if line.endswith(("]", "}"))]


def seen(observer: Process, total: int) -> tuple[float, float]:
    """When, and after how much CPU time, the observer last began to have `total` leases."""

    def look() -> tuple[float, float] | None:
        assert observer.poll() is None, observer.log()
        found = [line for line in lines(observer) if isinstance(line, list)]
        return (found[-1][0], found[-1][2]) if found and found[-1][1] == total else None

    found = wait_until(look, SECONDS, lambda: f"{total} leases seen\n{observer.log()}", every=0.02)
    assert found is not None
    return found


def measure(count: int, directory: Path) -> dict[str, float]:
    """The figures, by name."""
    with filled(count) as twin:
        config = {
            "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
            "clusters": [{"name": "c", "cluster": {"server": twin.url}}],
            "users": [{"name": "c", "user": {"token": "node"}}],
        }  # fmt: skip
        (directory / "kubeconfig").write_text(json.dumps(config))
        url = f"kubernetes://{directory / 'kubeconfig'}"
        argv = [sys.executable, "-m", "tests.kube.load", "--observe", url, str(count)]
        observer = Process(argv, directory / "observer", cwd=REPOSITORY)
        try:
            return _drive(twin, observer, count)
        finally:
            observer.stop()


def _drive(twin: Twin, observer: Process, count: int) -> dict[str, float]:
    _, begun = seen(observer, count)
    wait_until(lambda: twin.of("watch"), SECONDS, "it watches")
    figures: dict[str, float] = {"node_bytes": len(twin.state.get("worker-0.example"))}
    figures |= {f"requests_{verb}": len(twin.of(verb)) for verb in ("list", "watch", "get")}
    delays = []
    for number in range(CHANGES):
        started = time.time()
        twin.state.create(node(f"new-{number}", f"10.200.{number}.0/24", annotations=published("172.30.0.1")))
        delays.append(1000 * (seen(observer, count + number + 1)[0] - started))
    figures |= {"change_p50_ms": median(delays), "change_p99_ms": quantiles(delays, n=100)[98]}
    before = seen(observer, count + CHANGES)[1]
    beats = min(count, 3000)
    for number in range(beats):
        ready = {"type": "Ready", "status": "True", "lastHeartbeatTime": now(), "beat": number}
        twin.state.patch(f"worker-{number}.example", merge, {"status": {"conditions": [ready]}}, status=True)
    twin.state.delete("new-0")
    figures["heartbeat_cpu_ms"] = 1000 * (seen(observer, count + CHANGES - 1)[1] - before) / beats
    told = [line for line in lines(observer) if isinstance(line, dict)]
    for each in told:
        figures |= each
    figures["watches"] = len(twin.of("watch"))
    figures["load"] = os.getloadavg()[0]
    return {**figures, "cpu_s_until_watching": begun}


def main() -> None:
    if "--observe" in sys.argv:
        observe(sys.argv[-2], int(sys.argv[-1]))
        return
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    with tempfile.TemporaryDirectory(prefix="ovlab-kube-load-") as directory:
        for name, value in measure(count, Path(directory)).items():
            print(f"{name:24} {value:.3f}")


if __name__ == "__main__":
    main()
