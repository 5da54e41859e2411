"""XDP on the uplink: when it is tried, what is said of a refusal, and what is left alone."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from ctl.backend.vxlan.uplink_hook import UplinkHook
from ctl.core.errors import ForeignProgram, KernelError
from ctl.core.findings import Concern, Findings
from ctl.core.host import NONE, Link
from ctl.kernel.bpf.loader import Program
from ctl.settings.config import resolve

ETH0 = Link(2, "eth0", "", None, 1500, True, 0, False, "", 0)
ETH1 = replace(ETH0, ifindex=3, name="eth1")
RESYNC_S = 60
PROGRAM, OLD, FOREIGN = Program("from_wire_xdp", 9, 100), 99, 7


class Driver:
    """The part of Xdp that the hook uses; `refuses` is what the driver says."""

    def __init__(self) -> None:
        self.links = {2: ETH0, 3: ETH1}
        self.refuses = ""
        self.tries = 0

    def is_ours(self, ident: int) -> bool:
        return ident in (PROGRAM.id, OLD)

    def put(self, link: Link, program: Program) -> None:
        self.tries += 1
        if self.refuses:
            raise KernelError(f"{link.name}: XDP: {self.refuses}")
        self.set(link, xdp=program.id)

    def remove(self, link: Link) -> None:
        self.set(link, xdp=0)

    def set(self, link: Link, **changes: Any) -> None:
        self.links[link.ifindex] = replace(self.links[link.ifindex], **changes)


@pytest.fixture
def driver() -> Driver:
    return Driver()


def hook(driver: Driver, mode: str, steady: Callable[[], float] = float) -> tuple[UplinkHook, Findings]:
    netlink: Any = None
    xdp: Any = driver
    made = UplinkHook(resolve(Namespace(hook=mode), {}, None), netlink, seen := Findings(), steady=steady)
    made._xdp = xdp
    return made, seen


@pytest.mark.parametrize(("mode", "attached"), [("tc", 0), ("xdp", PROGRAM.id), ("auto", PROGRAM.id)])
@pytest.mark.parametrize("before", [0, OLD, PROGRAM.id])
def test_the_uplink_ends_as_asked(driver: Driver, mode: str, attached: int, before: int) -> None:
    driver.set(ETH0, xdp=before)
    made, seen = hook(driver, mode)
    for _ in range(2):
        made.reconcile(driver.links, 2, PROGRAM)
        assert driver.links[2].xdp == attached
        assert seen.hook == ("xdp" if attached else "tc")
    assert driver.tries == int(attached not in (0, before)), "what is in place is left alone"


def test_a_refusal_that_passes_is_tried_again_at_the_resync(
    driver: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    driver.refuses = "no memory"
    now = 1000.0
    made, seen = hook(driver, "xdp", lambda: now)
    for tries in (1, 2, 3):
        for _ in range(3):  # ports come and go
            made.reconcile(driver.links, 2, PROGRAM)
        assert (seen.hook, driver.tries) == ("tc", tries)
        now += RESYNC_S - 0.5  # as long as a pass takes, since it was refused
    assert len(caplog.records) == 1, "said once, not on each try"
    driver.refuses = ""
    made.reconcile(driver.links, 2, PROGRAM)
    assert (seen.hook, seen.hook_refused) == ("xdp", "")


def test_a_refusal_is_not_tried_again_until_something_has_changed(
    driver: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    driver.refuses = "MTU too large"
    made, seen = hook(driver, "xdp")
    for _ in range(3):
        made.reconcile(driver.links, 2, PROGRAM)
        assert (seen.hook, driver.tries) == ("tc", 1)
        assert seen.hook_refused == "eth0: XDP: MTU too large (MTU 1500): from_wire stays at tc"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    driver.set(ETH0, mtu=1400)
    made.reconcile(driver.links, 2, PROGRAM)
    assert driver.tries == 2
    driver.refuses = ""
    made.reconcile(driver.links, 2, PROGRAM)
    assert driver.tries == 2, "nothing has changed that we know of"
    driver.set(ETH0, mtu=1300)
    made.reconcile(driver.links, 2, PROGRAM)
    assert (seen.hook, seen.hook_refused) == ("xdp", "")


def test_an_older_build_does_not_stay_where_the_new_one_is_refused(driver: Driver) -> None:
    driver.set(ETH0, xdp=OLD)
    driver.refuses = "no memory"
    made, seen = hook(driver, "xdp")
    made.reconcile(driver.links, 2, PROGRAM)
    assert (driver.links[2].xdp, seen.hook) == (0, "tc")
    assert "no memory" in seen.hook_refused


def test_what_was_refused_for_someone_elses_program_is_tried_when_that_is_gone(driver: Driver) -> None:
    """It came between our look and our try."""
    driver.refuses = "File exists"
    made, seen = hook(driver, "xdp")
    made.reconcile(driver.links, 2, PROGRAM)
    driver.refuses = ""
    for there, expected in ((FOREIGN, ("tc", "")), (0, ("xdp", ""))):
        driver.set(ETH0, xdp=there)
        made.reconcile(driver.links, 2, PROGRAM)
        assert (seen.hook, seen.hook_refused) == expected


def test_with_auto_a_driver_without_xdp_is_no_warning(
    driver: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    driver.refuses = "not supported"
    made, seen = hook(driver, "auto")
    made.reconcile(driver.links, 2, PROGRAM)
    assert "not supported" in seen.hook_refused
    assert not [record for record in caplog.records if record.levelname != "INFO"]


@pytest.mark.parametrize("mode", ["tc", "xdp", "auto"])
def test_someone_elses_is_left_and_named(driver: Driver, mode: str) -> None:
    driver.set(ETH0, xdp=FOREIGN)
    driver.set(ETH1, xdp=FOREIGN)
    made, seen = hook(driver, mode)
    with pytest.raises(ForeignProgram, match="eth0 carries an XDP program that is not ours"):
        made.preflight(driver.links[2])
    made.reconcile(driver.links, 2, PROGRAM)
    assert [link.xdp for link in driver.links.values()] == [FOREIGN, FOREIGN]
    assert "not ours" in seen.problems[Concern.XDP][0]
    driver.set(ETH0, xdp=0)
    made.reconcile(driver.links, 2, PROGRAM)
    assert seen.problems[Concern.XDP] == ()


def test_ours_is_taken_off_where_it_does_not_belong(driver: Driver) -> None:
    made, seen = hook(driver, "xdp")
    made.reconcile(driver.links, 2, PROGRAM)
    made.reconcile(driver.links, 3, PROGRAM)
    assert [link.xdp for link in driver.links.values()] == [0, PROGRAM.id]
    made.reconcile(driver.links, 3, None)
    assert [link.xdp for link in driver.links.values()] == [0, 0]
    assert seen.hook == "tc"


def test_an_uplink_that_is_gone_is_no_error(driver: Driver) -> None:
    made, seen = hook(driver, "xdp")
    made.reconcile({}, 2, PROGRAM)
    assert seen.hook == "tc"


@pytest.mark.parametrize(("mode", "level"), [("tc", ""), ("xdp", "WARNING"), ("auto", "INFO")])
def test_a_kernel_that_refused_the_program_is_named_once_to_who_asked_for_it(
    driver: Driver, caplog: pytest.LogCaptureFixture, mode: str, level: str
) -> None:
    caplog.set_level("INFO")
    driver.set(ETH0, xdp=OLD)
    made, seen = hook(driver, mode)
    for _ in range(2):
        made.reconcile(driver.links, 2, None, "the kernel refused it")
        assert (driver.links[2].xdp, seen.hook) == (0, "tc")
        assert seen.hook_refused == ("the kernel refused it: from_wire stays at tc" if level else "")
    said = [record.levelname for record in caplog.records if "refused" in record.message]
    assert said == [level] * bool(level)


@pytest.mark.parametrize(("mode", "level"), [("tc", ""), ("xdp", "WARNING"), ("auto", "")])
def test_an_uplink_without_frames_gets_no_xdp_which_is_said_once_to_who_asked_for_it(
    driver: Driver, caplog: pytest.LogCaptureFixture, mode: str, level: str
) -> None:
    """A TUN's driver would take the program."""
    caplog.set_level("INFO")
    driver.set(ETH0, name="wg0", type=NONE)
    made, seen = hook(driver, mode)
    for _ in range(2):
        made.reconcile(driver.links, 2, PROGRAM)
        assert (driver.tries, seen.hook) == (0, "tc")
    text = "wg0 is no Ethernet device, and XDP needs frames: from_wire stays at tc"
    assert seen.hook_refused == (text if level else "")
    assert [record.levelname for record in caplog.records] == [level] * bool(level)
