from __future__ import annotations

from dataclasses import replace

import pytest

from ctl.cli.status import Status, as_json, as_text
from ctl.core.model import Bypass
from ctl.core.report import Datapath
from tests.samples import DATAPATH, EARLY, NOW, REPORT, report


def test_a_live_node_is_as_healthy_as_its_report() -> None:
    assert Status(alive=True, report=REPORT, datapath=DATAPATH).verdict(NOW) == (True, [])
    full = Datapath(fill={"endpoints": (4, 4)})
    assert Status(alive=True, report=REPORT, datapath=full).verdict(NOW)[1] == [
        "map endpoints is full: 4 of 4 entries"
    ]


def test_maps_that_a_node_should_have_are_missed() -> None:
    gone = Status(alive=True, report=REPORT, maps_error="no maps under /x")
    assert gone.verdict(NOW) == (False, ["no maps under /x"])
    off = report(bypass=Bypass.OFF, program="")
    status = replace(gone, report=off)
    assert status.verdict(NOW) == (True, [])
    assert "bypass is off: the kernel path carries everything" in as_text(status, NOW)


def test_a_failing_reconcile_is_shown_before_it_is_overdue() -> None:
    failing = report(reconcile=replace(REPORT.reconcile, error="nft: no such table", back_off=4))
    assert "reconcile   failing, next try after 4 s: nft: no such table" in as_text(
        Status(alive=True, report=failing), NOW
    )


def test_the_hook_and_why_it_is_not_another() -> None:
    assert "hook        tc\n" in as_text(Status(alive=True, report=REPORT), NOW)
    refused = report(hook_refused="eth0: XDP: no")
    assert "hook        tc: eth0: XDP: no\n" in as_text(Status(alive=True, report=refused), NOW)


def test_what_is_worth_knowing_is_shown_and_is_no_fault() -> None:
    line = "uplink stays eth0 with 10.0.0.1: vpn0 with 10.99.0.2 would be found now"
    status = Status(alive=True, report=report(warnings=(line,)))
    assert f"warning     {line}\n" in as_text(status, NOW)
    assert status.verdict(NOW) == (True, [])


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("known", [None, EARLY, REPORT])
@pytest.mark.parametrize("alive", [False, True])
def test_every_state_can_be_shown(alive: bool, known: object, wide: bool) -> None:
    status = Status(alive=alive, report=known)  # type: ignore[arg-type]
    text = as_text(status, NOW, wide=wide)
    assert all(line.strip() for line in text.splitlines())
    assert "None" not in text
    assert set(as_json(status, NOW)) == {"alive", "healthy", "why", "report", "datapath"}
