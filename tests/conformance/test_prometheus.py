"""Prometheus itself judges our metrics: promtool, and a server that scrapes two nodes."""

from __future__ import annotations

import json
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pytest
from prometheus_client.exposition import generate_latest

from ctl.cli.main import build_parser
from metrics import names
from metrics.collector import registry
from metrics.http import HttpServer
from metrics.server import serve
from metrics.snapshot import NodeSnapshot
from tests.etcd import free_ports
from tests.process import Process, run, wait_until
from tests.samples import DATAPATH, EARLY, SNAPSHOT, report

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES: Final = (DEPLOY / "alerts.yml").read_text()
NODES = ("alpha", "beta")

needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="promtool: apt install prometheus")
needs_prometheus = pytest.mark.skipif(
    not shutil.which("prometheus"), reason="prometheus: apt install prometheus"
)


@needs_promtool
@pytest.mark.parametrize(
    "snapshot", [SNAPSHOT, NodeSnapshot(EARLY), NodeSnapshot()], ids=["full", "early", "empty"]
)
def test_promtool_finds_no_fault_in_our_metrics(snapshot: NodeSnapshot) -> None:
    text = generate_latest(registry(lambda: snapshot)).decode()
    done = run(["promtool", "check", "metrics"], stdin=text, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_promtool
def test_the_alert_rules_fire_when_they_should() -> None:
    run(["promtool", "check", "rules", str(DEPLOY / "alerts.yml")])
    run(["promtool", "test", "rules", str(DEPLOY / "alerts_test.yml")])


@needs_promtool
def test_every_alert_has_a_test() -> None:
    alerts = set(re.findall(r"- alert: (\w+)", RULES))
    tests = (DEPLOY / "alerts_test.yml").read_text()
    firing = re.findall(r'alertname: (\w+)\n\s+exp_alerts:(?! *\[\])|ALERTS\{alertname="(\w+)"', tests)
    assert alerts == {name for pair in firing for name in pair if name}


@pytest.mark.parametrize("file", ["alerts.yml", "alerts_test.yml", "grafana.json"])
def test_alerts_and_dashboard_use_only_metrics_that_exist(file: str) -> None:
    known = {row.name for row in names.TABLE}
    used = set(re.findall(r"\bovnet_[a-z_]+", (DEPLOY / file).read_text()))
    assert used
    assert used <= known


def test_every_alert_names_a_command_that_explains_it() -> None:
    descriptions = re.findall(r"- alert: (\w+)\n.*?description: (.+?)\n", RULES, re.DOTALL)
    assert len(descriptions) == RULES.count("- alert: ")
    for alert, description in descriptions:
        commands = re.findall(r"`ovctl ([^`]+)`", description)
        assert commands, alert
        for command in commands:
            build_parser().parse_args(command.split())


def test_the_dashboard_shows_what_alerts_are_raised_by() -> None:
    raised_by = set(re.findall(r"\bovnet_[a-z_]+", RULES)) - {"ovnet_reconcile_interval_seconds"}
    assert raised_by <= set(re.findall(r"\bovnet_[a-z_]+", (DEPLOY / "grafana.json").read_text()))


@dataclass
class Prometheus:
    """A running server and its HTTP API."""

    port: int
    process: Process

    def api(self, path: str, **query: str) -> Any:
        """`data` of an answer; None while the server cannot be reached."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as reply:
                return json.load(reply)["data"]
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 503:  # it is still starting
                    return None
                raise AssertionError(f"{query}: {error.read().decode()}") from error
        except OSError:
            assert self.process.poll() is None, self.process.log()
            return None

    def query(self, expression: str) -> list[Any]:
        """Samples of an instant query."""
        data = self.api("query", query=expression)
        return data["result"] if data else []


def scrape_config(servers: list[HttpServer]) -> str:
    """JSON is YAML."""
    targets = [f"127.0.0.1:{server.port}" for server in servers]
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(DEPLOY / "alerts.yml")],
        "scrape_configs": [{"job_name": "ovnet", "static_configs": [{"targets": targets}]}],
    }
    return json.dumps(config)


def served(node: str) -> HttpServer:
    snapshot = replace(SNAPSHOT, report=report(node=node))
    return serve("127.0.0.1", 0, lambda: snapshot, lambda: snapshot.report)


@pytest.fixture(scope="module")
def servers() -> Iterator[list[HttpServer]]:
    with ExitStack() as stack:
        yield [stack.enter_context(closing(served(node))) for node in NODES]


@pytest.fixture(scope="module")
def prometheus(servers: list[HttpServer], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    home = tmp_path_factory.mktemp("prometheus")
    (home / "prometheus.yml").write_text(scrape_config(servers))
    (port,) = free_ports(1)
    command = ["prometheus", f"--config.file={home}/prometheus.yml", f"--storage.tsdb.path={home}/data",
               f"--web.listen-address=127.0.0.1:{port}"]  # fmt: skip
    process = Process(command, home / "log", cwd=home)
    try:
        yield Prometheus(port, process)
    finally:
        process.stop()


@needs_prometheus
def test_a_real_prometheus_scrapes_two_nodes(prometheus: Prometheus) -> None:
    wait_until(
        lambda: [sample["value"][1] for sample in prometheus.query('sum(up{job="ovnet"})')] == ["2"],
        60,
        lambda: f"both nodes are up\n{prometheus.api('targets')}\n{prometheus.process.log()}",
    )
    seen = prometheus.query("ovnet_node_info")
    assert {sample["metric"]["node"] for sample in seen} == set(NODES)
    (drops,) = prometheus.query('sum(ovnet_drop_packets_total{reason="unknown_vtep"})')
    assert float(drops["value"][1]) == 2 * sum(
        counter.packets for (_, number), counter in DATAPATH.counters.items() if number == 40
    )


@needs_prometheus
def test_prometheus_knows_type_and_help_of_every_metric(prometheus: Prometheus) -> None:
    wait_until(lambda: prometheus.query("ovnet_build_info"), 60, "a first scrape")
    metadata = prometheus.api("targets/metadata", metric="", match_target='{job="ovnet"}')
    found = {row["metric"]: (row["type"], row["help"]) for row in metadata}
    for row in names.TABLE:
        # OpenMetrics names a counter's family without its _total.
        name = row.name if row.name in found else row.name.removesuffix("_total")
        assert found[name] == (row.kind, row.help)


@needs_prometheus
def test_prometheus_can_evaluate_every_panel_of_the_dashboard(prometheus: Prometheus) -> None:
    wait_until(lambda: prometheus.query("ovnet_build_info"), 60, "a first scrape")
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    assert len(expressions) > 20
    for expression in expressions:
        filled = expression.replace("$__rate_interval", "5s").replace("$instance", ".*")
        assert prometheus.api("query", query=filled) is not None
        if "rate(" not in filled and "increase(" not in filled:
            assert prometheus.query(filled), filled


@needs_prometheus
def test_the_alert_rules_load_and_evaluate(prometheus: Prometheus) -> None:
    def evaluated() -> bool:
        groups = (prometheus.api("rules") or {"groups": []})["groups"]
        return bool(groups) and all(rule["health"] == "ok" for group in groups for rule in group["rules"])

    wait_until(evaluated, 90, lambda: f"all rules are healthy: {prometheus.api('rules')}")
