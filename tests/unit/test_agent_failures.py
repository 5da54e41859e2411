"""What becomes of a pass in which something fails, and of what the loop does beside it."""

from __future__ import annotations

import logging
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from ctl.agent.schedule import TICK_S
from ctl.agent.steps import Part
from ctl.core.abi import Event, Hook
from ctl.core.errors import AgentError, KernelError
from ctl.core.findings import Concern
from ctl.core.host import Change, Identity
from tests.unit.world import KERNEL_PARTS, RESYNC, MemoryKernel, World, made


@pytest.mark.parametrize("step", KERNEL_PARTS)
def test_a_step_that_fails_stops_no_other(world: World, step: Part, caplog: pytest.LogCaptureFixture) -> None:
    world.kernel.failing[step] = KernelError(f"{step} does not work")
    for _ in range(3):
        world.kernel.calls.clear()
        world.full()
        assert set(world.kernel.calls) == set(KERNEL_PARTS)
    assert world.report.reconcile.error == f"{step} does not work"
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert lines == [f"{step} does not work"], "said once"
    assert world.report.reconcile.failed == 3
    assert world.report.reconcile.back_off == 2.0
    world.kernel.failing.clear()
    world.full()
    assert (world.report.reconcile.error, world.report.reconcile.back_off) == ("", 0.0)


def test_all_that_fails_is_named_in_one_line(world: World) -> None:
    world.kernel.failing = {
        Part.PEERS: KernelError("routes"),
        Part.PROGRAMS: KernelError("compiler"),
        Part.FIREWALL: KernelError("compiler"),
        Part.PORTS: KernelError("ports"),
    }
    world.full()
    assert world.report.reconcile.error == "routes; compiler; ports"


def test_an_event_after_a_first_pass_that_failed_is_no_bug(world: World) -> None:
    world.store.away = "store is away"
    world.kernel.failing = {step: KernelError(step) for step in KERNEL_PARTS}
    world.full()
    for change in Change:
        world.part(change)
    assert not world.report.ready


def test_an_agent_that_cannot_tell_what_is_lost_goes_on_and_says_so_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.kernel.failing["lost"] = KernelError("the lock is held by an unknown process: end it")
    before = world.run(RESYNC)
    world.run(5 * RESYNC)
    assert before <= RESYNC / TICK_S + 5, "and does not spin"
    assert world.problem(Concern.WATCHING) == ("the lock is held by an unknown process: end it",)
    assert world.problem(Concern.WATCHING)[0] in world.report.problems
    assert sum("unknown process" in record.getMessage() for record in caplog.records) == 1
    world.kernel.failing.clear()
    world.run(TICK_S)
    assert world.report.problems == ()
    assert world.report.ready


def test_an_agent_that_cannot_read_what_was_dropped_goes_on_and_says_so_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.kernel.failing["drops"] = KernelError("cannot map the events ring: Cannot allocate memory")
    world.run(5 * RESYNC)
    assert world.report.ready
    assert "cannot map the events ring" in world.report.problems[0]
    assert sum("events ring" in record.getMessage() for record in caplog.records) == 1


def test_what_was_dropped_is_in_the_log(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.kernel.dropped = [Event(0, 2, 1450, 41, Hook.FROM_WIRE, b"\x02\x42")] * 100
    world.run(2 * RESYNC)
    said = [line for line in caplog.messages if line.startswith("dropped at from_wire")]
    assert len(said) < 10
    assert "97 more samples" in said[-1]


def test_a_bug_where_the_agent_looks_what_is_lost_ends_it(world: World) -> None:
    world.kernel.failing["lost"] = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        world.run(RESYNC)


def test_a_bug_ends_the_agent(world: World) -> None:
    world.kernel.failing[Part.PROGRAMS] = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        world.full()


def test_it_is_not_ready_before_a_whole_pass_has_succeeded(world: World) -> None:
    world.kernel.failing[Part.PROGRAMS] = KernelError("no compiler")
    world.full()
    assert not world.report.ready
    assert world.report.not_ready == ("no compiler",)
    world.kernel.failing.clear()
    for change in Change:
        world.part(change)
        assert not world.report.ready, f"a pass over {change} says nothing about the rest"
    world.read_store()
    assert not world.report.ready
    world.full()
    assert world.report.ready
    world.kernel.failing[Part.PROGRAMS] = KernelError("no compiler")
    world.full()
    assert world.report.ready, "it forwards, though something is wrong"


def test_partial_success_without_a_first_failure_makes_nobody_ready(world: World) -> None:
    for change in Change:
        world.part(change)
    assert not world.report.ready


@pytest.mark.parametrize("change", list(Change))
def test_a_partial_success_does_not_clear_an_error(world: World, change: Change) -> None:
    world.full()
    good = world.report.reconcile
    world.kernel.failing[Part.PROGRAMS] = KernelError("no compiler")
    world.clock.now += 1
    world.full()
    world.kernel.failing.clear()
    world.part(change)
    world.read_store()
    now = world.report.reconcile
    assert now.error == "no compiler"
    assert (now.ok, now.last_success) == (good.ok, good.last_success)
    assert now.back_off > 0, "the retry of everything still comes"


def test_an_error_is_cleared_by_the_retry(world: World) -> None:
    world.kernel.failing[Part.PROGRAMS] = KernelError("no compiler")

    def mend() -> None:
        if world.kernel.calls.count(Part.PROGRAMS) >= 3:
            world.kernel.failing.clear()

    world.run(RESYNC / 2, each=mend)
    assert world.report.reconcile.error == ""
    assert world.report.ready
    assert world.report.reconcile.failed == 3


def test_a_second_agent_is_refused_before_it_takes_a_lease(world: World) -> None:
    kernel = MemoryKernel(Identity(IPv4Address("10.0.0.2"), node="second"), world.clock)
    second = made(replace(world.settings, node_name="second"), world.store, kernel, world.claims)
    before = world.store.snapshot()
    with pytest.raises(AgentError, match="another agent"):
        second.start()
    assert world.store.snapshot() == before
