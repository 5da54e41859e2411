"""Our programs on a host's interfaces, as the kernel has them."""

from __future__ import annotations

import os

from ctl.kernel.bpf import syscall
from ctl.kernel.hooks import tcx
from ctl.kernel.hooks.listing import Hooked
from tests.host import Host


def programs(host: Host, *devices: str) -> list[Hooked]:
    """Those of ours at tc (tcx or clsact) of these devices, or of all, in the order in which they run."""
    found = [each for each in host.hooks() if each.ours and each.at != "xdp"]
    return [each for each in found if not devices or each.dev in devices]


def detach(host: Host, *devices: str) -> None:
    """Take our links off these devices as `bpftool link detach` would: their pins stay."""
    indexes = set(map(host.ifindex, devices))
    for key, pin in tcx.pins(host.bpffs).items():
        if key.ifindex in indexes:
            fd = syscall.obj_get(str(pin))
            syscall.link_detach(fd)
            os.close(fd)


def put_foreign_filter(
    host: Host, device: str, side: str, priority: int | str, *, ends: bool = False
) -> None:
    """Someone's filter on clsact, which has to be there: it sees every packet and passes it on.

    With `ends` it takes each one instead (TC_ACT_OK): what comes behind it is not run any more.
    """
    sees_all = ("bpf", "bytecode", "1,6 0 0 0")  # "no match"
    takes_all = ("u32", "match", "u32", "0", "0")
    host.run("tc", "filter", "add", "dev", device, side, "prio", str(priority), "protocol", "ip",
             *(takes_all if ends else sees_all), "classid", "1:1")  # fmt: skip


def counted(host: Host, program: str) -> int:
    """Packets that one of our programs has seen."""
    return sum(packets for (hook, _), packets in host.counters().items() if hook == program)
