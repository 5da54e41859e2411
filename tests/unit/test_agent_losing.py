"""Packets that are lost: in the report at once, in the log once, in the verdict as long as it lasts."""

from __future__ import annotations

import json

import pytest
from prometheus_client.metrics_core import Metric

from ctl.agent.schedule import TICK_S
from ctl.core.errors import KernelError
from ctl.core.findings import Concern
from ctl.core.losing import Way
from ctl.core.report import from_json, health, to_json
from metrics.collector import families
from metrics.snapshot import NodeSnapshot
from tests.samples import NOW, REPORT, report
from tests.unit.world import RESYNC, World

LINE = "packets are lost: 30 packets"


def test_what_is_lost_is_reported_at_once_and_logged_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.run(TICK_S)
    world.kernel.lost_packets = {Way.OUT: LINE}
    world.run(TICK_S + 1)
    assert world.report.losing == {Way.OUT: LINE}
    world.kernel.lost_packets = {Way.OUT: LINE + " more"}
    world.run(5 * RESYNC)
    assert world.report.losing == {Way.OUT: LINE + " more"}
    assert sum(LINE in record.getMessage() for record in caplog.records) == 1
    world.kernel.lost_packets = {}
    world.run(TICK_S + 1)
    assert world.report.losing == {}


def test_counters_that_cannot_be_read_are_a_problem_and_no_end(world: World) -> None:
    world.kernel.failing["losing"] = KernelError("map counters cannot be read")
    world.run(2 * RESYNC)
    assert world.report.ready
    assert world.problem(Concern.COUNTING) == ("map counters cannot be read",)


def test_a_node_that_loses_packets_is_not_healthy() -> None:
    assert health(report(losing={"out": LINE}), NOW) == (False, [LINE])


def test_a_report_of_an_agent_that_does_not_look_is_read() -> None:
    raw = json.loads(to_json(REPORT))
    del raw["losing"]
    assert from_json(json.dumps(raw)) == REPORT
    losing = report(losing={"out": LINE})
    assert from_json(to_json(losing)) == losing


def values(metrics: list[Metric]) -> dict[str, float]:
    found = next(each for each in metrics if each.name == "ovnet_losing_packets")
    return {sample.labels["way"]: sample.value for sample in found.samples}


def test_each_way_is_a_number() -> None:
    assert values(families(NodeSnapshot(REPORT))) == {"out": 0, "in": 0, "answers": 0}
    assert values(families(NodeSnapshot(report(losing={"in": LINE})))) == {"out": 0, "in": 1, "answers": 0}
