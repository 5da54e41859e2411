"""What has the name of a link's pin."""

from __future__ import annotations

import errno
import os
from contextlib import closing
from pathlib import Path

import pytest

from ctl.kernel.bpf import syscall
from ctl.kernel.bpf.bpffs import unpin
from ctl.kernel.hooks.tcx import DIRECTORY, Links
from ctl.kernel.netlink.socket import Refused
from tests.datapath import Datapath


def test_what_is_no_link_is_left_alone_and_keeps_no_descriptor_open(pins: Path, datapath: Datapath) -> None:
    pin = pins / DIRECTORY / "5-ingress"
    pin.parent.mkdir()
    syscall.obj_pin(datapath.fd("from_wire"), str(pin))
    with closing(Links(pins)) as links:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            assert links.read() == {}
        assert len(os.listdir("/proc/self/fd")) == before
        assert pin.exists()
    unpin(pin.parent)


def test_a_link_that_the_kernel_does_not_describe_now_is_not_taken_for_none(
    pins: Path, datapath: Datapath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program would be attached a second time beside it."""
    pin = pins / DIRECTORY / "5-ingress"
    pin.parent.mkdir()
    syscall.obj_pin(datapath.fd("from_wire"), str(pin))

    def refuse(_: int) -> syscall.LinkInfo:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(syscall, "link_info", refuse)
    with closing(Links(pins)) as links:
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(Refused, match="5-ingress: Cannot allocate memory"):
            links.read()
        assert len(os.listdir("/proc/self/fd")) == before
    unpin(pin.parent)
