"""What runs on the hooks of interfaces, whoever put it there: tcx, clsact and XDP."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ctl.core.host import FilterKey, Link
from ctl.kernel.hooks import tcx
from ctl.kernel.hooks.filters import attached, is_ours
from ctl.kernel.hooks.xdp import Xdp
from ctl.kernel.netlink.session import Netlink


@dataclass(frozen=True, slots=True)
class Hooked:
    """A program, or a filter that is none."""

    dev: str
    hook: str
    """xdp, or ingress or egress."""
    at: str
    """xdp, tcx or clsact: in this order they run."""
    name: str
    """Empty if the kernel does not tell: it takes CAP_SYS_ADMIN to ask."""
    id: int
    """0 for one that is no BPF program."""
    ours: bool


def listing(netlink: Netlink, root: Path) -> list[Hooked]:
    """All of them by interface, in the order in which they run. KernelError. `root`: of our pins."""
    pinned = tcx.pinned(root)
    found: list[Hooked] = []
    for link in sorted(netlink.links().values(), key=lambda link: link.name):
        found += _xdp(netlink, link, root)
        for side, ingress in (("ingress", True), ("egress", False)):
            key = FilterKey(link.ifindex, ingress)
            for ident in tcx.programs(key):
                found.append(
                    Hooked(link.name, side, "tcx", tcx.name_of(ident), ident, pinned.get(key) == ident)
                )
            for each in attached(netlink.rtnl, key):
                name = each.name or each.kind
                found.append(Hooked(link.name, side, "clsact", name, each.program, is_ours(each)))
    return found


def _xdp(netlink: Netlink, link: Link, root: Path) -> list[Hooked]:
    if not link.xdp:
        return []
    with closing(Xdp(netlink, root)) as xdp:
        return [Hooked(link.name, "xdp", "xdp", tcx.name_of(link.xdp), link.xdp, xdp.is_ours(link.xdp))]
