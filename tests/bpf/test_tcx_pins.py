"""What has the name of a link's pin."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

from ctl.kernel.bpf import syscall
from ctl.kernel.bpf.bpffs import unpin
from ctl.kernel.hooks.tcx import DIRECTORY, Links
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
