"""A real Prometheus on a host of its own scrapes two running nodes over the underlay."""

from __future__ import annotations

import json
import shutil
import urllib.parse
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.lab import Host, Lab
from tests.process import wait_until

PORT = 9090
METRICS = 9476


def config(nodes: list[Host]) -> str:
    targets = [f"{node.address}:{METRICS}" for node in nodes]
    return json.dumps({
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "scrape_configs": [{"job_name": "ovnet", "static_configs": [{"targets": targets}]}],
    })  # fmt: skip


def query(host: Host, expression: str) -> list[Any]:
    """Samples of an instant query, asked on the host that Prometheus runs on."""
    url = f"http://127.0.0.1:{PORT}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    try:
        status, body = host.http(url)
    except OSError:
        return []
    return list(json.loads(body)["data"]["result"]) if status == 200 else []


def is_ready(node: Host) -> bool:
    return bool(node.status().get("ready"))


@pytest.mark.skipif(not shutil.which("prometheus"), reason="prometheus: apt install prometheus")
def test_prometheus_scrapes_both_nodes_and_sees_their_traffic(tmp_path: Path) -> None:
    with Lab() as lab:
        nodes, watcher = [lab.host("a"), lab.host("b")], lab.outside()
        lab.init_network()
        for node in nodes:
            agent = node.agent("--metrics-addr", node.address, "--metrics-port", str(METRICS), wait=False)
            wait_until(partial(is_ready, node), 60, f"{node.name} is ready\n{agent.log()}")
        ends = [node.container("one") if node.name == "a" else node.container("two") for node in nodes]
        ends[0].run("ping", "-c20", "-i0.02", ends[1].address)

        (tmp_path / "prometheus.yml").write_text(config(nodes))
        server = watcher.popen(
            "prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
            f"--web.listen-address=127.0.0.1:{PORT}",
        )  # fmt: skip
        carried = 'sum by (instance) (ovnet_packets_total{hook="from_container",verdict="bypass"}) > 0'
        wait_until(
            lambda: len(query(watcher, carried)) == 2,
            60,
            lambda: (
                f"both nodes count bypassed packets: {query(watcher, 'ovnet_packets_total')}\n{server.log()}"
            ),
        )
        assert {row["metric"]["node"] for row in query(watcher, "ovnet_node_info")} == {"a", "b"}
        assert {row["value"][1] for row in query(watcher, "up")} == {"1"}
        (memory,) = {max(float(row["value"][1]) for row in query(watcher, "process_resident_memory_bytes"))}
        assert memory < 47e6
