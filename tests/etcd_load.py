"""How the etcd store fares with many leases: `python -m tests.etcd_load [LEASES]` prints figures.

The store runs in a process of its own (this one, with `--observe`), so that its memory is
measured and nothing else's. A change is timed from before the put to after the snapshot
that has it, in the observer's callback; both processes are on one machine.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from contextlib import closing
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from ctl.core.model import Lease, MacAddress
from ctl.core.ports import LeaseStore
from ctl.settings.endpoint import parse_store_url
from ctl.store import open_store
from ctl.store.etcd.client import EtcdClient, EtcdOptions
from ctl.store.etcd.schema import Schema, encode
from tests.etcd import Etcd
from tests.namespace import REPOSITORY
from tests.process import Process, wait_until

BATCH = 100
SINGLE, BURST = 300, 1000


def lease(number: int) -> Lease:
    """The lease of simulated node `number`, of 10.0.0.0/8 cut into /24s."""
    subnet = IPv4Network((int(IPv4Address("10.0.0.0")) + 256 * (number + 1), 24))
    mac = MacAddress(b"\x02\x00" + number.to_bytes(4, "big"))
    return Lease(subnet, IPv4Address(int(IPv4Address("172.16.0.1")) + number), mac, 1, node=f"node-{number}")


class Load:
    """Writes leases in bulk, as no node would."""

    def __init__(self, url: str) -> None:
        options = EtcdOptions(parse_store_url(url))
        self._client, self._schema = EtcdClient(options), Schema(options.prefix)
        self._grant = self._client.call("/v3/lease/grant", {"TTL": "86400"})["ID"]

    def put(self, *leases: Lease) -> None:
        """All of them in one transaction."""
        self._client.call(
            "/v3/kv/txn", {"success": [{"request_put": self._request(each)} for each in leases]}
        )

    def delete(self, *leases: Lease) -> None:
        """All of them in one transaction."""
        keys = [encode(self._schema.key(each)) for each in leases]
        self._client.call("/v3/kv/txn", {"success": [{"request_delete_range": {"key": key}} for key in keys]})

    def _request(self, each: Lease) -> dict[str, Any]:
        key, value = self._schema.key(each), self._schema.value(each)
        return {"key": encode(key), "value": encode(value), "lease": self._grant}

    def close(self) -> None:
        self._client.close()

    def fill(self, count: int) -> None:
        """Leases 0 to `count` - 1."""
        for first in range(0, count, BATCH):
            self.put(*map(lease, range(first, min(first + BATCH, count))))


def resident(field: str = "VmRSS") -> float:
    """RSS of this process, MB; with VmHWM, the most that it ever was."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


def observe(url: str, count: int) -> None:
    """First list, then a line per change that the callback has seen: the time and how many leases."""
    with closing(open_store(url)) as store:
        _observe(store, count)


def _observe(store: LeaseStore, count: int) -> None:
    before = resident()
    started = time.monotonic()
    found = store.snapshot()
    first = time.monotonic() - started
    assert len(found.leases) == count, found.problems[:3]
    done = threading.Event()

    def changed() -> None:
        leases = store.snapshot().leases
        print(json.dumps([time.time(), len(leases)]), flush=True)
        if len(leases) >= count + SINGLE + BURST:
            done.set()

    with closing(store.watch(changed)):
        done.wait(120)
    print(json.dumps({"first_list_s": first, "rss_before_mb": before, "rss_mb": resident()}), flush=True)


def measure(version: str, count: int, directory: Path) -> dict[str, float]:
    """The figures, by name; times in ms but where the name says otherwise."""
    with Etcd(version, directory) as etcd:
        etcd.start()
        load = Load(etcd.url)
        load.fill(count)
        observer = Process(
            [sys.executable, "-m", "tests.etcd_load", "--observe", etcd.url, str(count)],
            directory / "observer",
            cwd=REPOSITORY,
        )
        try:
            return _drive(load, observer, count)
        finally:
            observer.stop()
            load.close()


def _lines(observer: Process) -> list[Any]:
    return [json.loads(line) for line in observer.out().splitlines() if line.endswith(("]", "}"))]


def _seen(observer: Process, total: int) -> float:
    """When the observer first had `total` leases."""

    def look() -> float:
        lines = [line for line in _lines(observer) if isinstance(line, list)]
        return next((moment for moment, leases in lines if leases >= total), 0.0)

    return wait_until(look, 60, lambda: f"{total} leases seen\n{observer.log()}", every=0.001)


def _drive(load: Load, observer: Process, count: int) -> dict[str, float]:
    _seen(observer, count)
    delays = []
    for number in range(count, count + SINGLE):
        started = time.time()
        load.put(lease(number))
        delays.append(1000 * (_seen(observer, number + 1) - started))
    started, first = time.time(), count + SINGLE
    for number in range(first, first + BURST):
        load.put(lease(number))
    written = time.time() - started
    burst = _seen(observer, first + BURST) - started
    wait_until(lambda: isinstance(_lines(observer)[-1], dict), 60, "the observer's sum")
    delays.sort()
    told = _lines(observer)[-1]
    return {
        "first_list_s": told["first_list_s"],
        "rss_before_mb": told["rss_before_mb"],
        "rss_mb": told["rss_mb"],
        "change_p50_ms": delays[len(delays) // 2],
        "change_p99_ms": delays[len(delays) * 99 // 100],
        "burst_written_s": written,
        "burst_seen_s": burst,
    }


def main(argv: list[str]) -> None:
    """Observe, or print the figures of both versions."""
    if argv[:1] == ["--observe"]:
        observe(argv[1], int(argv[2]))
        return
    count = int(argv[0]) if argv else 10_000
    for version in ("3.4", "3.5"):
        with tempfile.TemporaryDirectory(prefix="ovlab-load-") as directory:
            figures = measure(version, count, Path(directory))
        print(
            f"etcd {version}, {count} leases: "
            + ", ".join(f"{key} {value:.4g}" for key, value in figures.items())
        )


if __name__ == "__main__":
    main(sys.argv[1:])
