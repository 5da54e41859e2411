"""Our programs on a host's interfaces, as the kernel has them."""

from __future__ import annotations

import os

from ctl.kernel import bpf, tcx
from ctl.kernel.hooks import Hooked
from tests.host import Host


def programs(host: Host, *devices: str) -> list[Hooked]:
    """Those of ours at tc (tcx or clsact) of these devices, or of all, in the order in which they run."""
    found = [each for each in host.hooks() if each.ours and each.at != "xdp"]
    return [each for each in found if not devices or each.dev in devices]


def detach(host: Host, *devices: str) -> None:
    """Take our links off these devices as `bpftool link detach` would: their pins stay."""
    indexes = set(map(host.ifindex, devices))
    for pin in (host.bpffs / tcx.DIRECTORY).iterdir():
        if int(pin.name.partition("-")[0]) in indexes:
            fd = bpf.obj_get(str(pin))
            bpf.link_detach(fd)
            os.close(fd)
