"""The agent's view of the udp forwarder, without one."""

from __future__ import annotations

import fcntl
import os
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from ctl.backend.udp import tun
from ctl.backend.udp.client import ForwarderProcess
from ctl.backend.udp.files import LOCK, directory
from ctl.core.errors import KernelError


def test_whether_a_forwarder_runs_is_told_without_waiting_for_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop asks at every turn. Who holds the lock is found out when there is something to do."""

    def wait(seconds: float) -> None:
        raise AssertionError("it waits")

    monkeypatch.setattr("ctl.backend.udp.client.time.sleep", wait)
    forwarder = ForwarderProcess(tmp_path, IPv4Address("10.0.0.1"), 8285)
    assert not forwarder.runs(), "there is not even a lock"
    directory(tmp_path).mkdir()
    with (directory(tmp_path) / LOCK).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert forwarder.runs(), "somebody has the lock"
    assert not forwarder.runs(), "it has ended, and left its lock"


def test_a_lock_that_cannot_be_looked_at_is_an_error_to_go_on_from(tmp_path: Path) -> None:
    """The agent's loop asks, and takes what is no such error for a bug."""
    directory(tmp_path).symlink_to(directory(tmp_path))
    with pytest.raises(KernelError, match="symbolic links"):
        ForwarderProcess(tmp_path, IPv4Address("10.0.0.1"), 8285).runs()


def test_a_device_that_the_kernel_keeps_leaves_no_descriptor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tun, "_names", lambda: {"ovnet8285"})
    monkeypatch.setattr(tun, "_attach", lambda _: os.open("/dev/null", os.O_RDWR))  # no TUN device
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(KernelError, match="TUN device ovnet8285: Inappropriate ioctl for device"):
        tun.remove_device("ovnet8285")
    assert len(os.listdir("/proc/self/fd")) == before
