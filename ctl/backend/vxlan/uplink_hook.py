"""The uplink's hook: tc alone, or XDP in front of it.

from_wire at tc ingress does all that XDP leaves to it, and delivers what XDP has
decapsulated. So XDP comes after it and goes before it, and whichever is in use may change
under traffic.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Final

from ctl.core.errors import ForeignProgram, KernelError
from ctl.core.findings import Concern, Findings
from ctl.core.host import Link
from ctl.core.model import HookMode
from ctl.core.plan import wants_xdp
from ctl.kernel.bpf.loader import Program
from ctl.kernel.hooks.xdp import Xdp
from ctl.kernel.netlink.session import Netlink
from ctl.settings.config import Settings

log = logging.getLogger(__name__)


class UplinkHook:
    """XDP on the uplink as `--hook` has it, as far as the driver goes along.

    `steady`: seconds that only go up.
    """

    def __init__(
        self,
        settings: Settings,
        netlink: Netlink,
        findings: Findings,
        *,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._mode: Final = settings.hook
        # Less than from one resync to the next, so that each of them finds it over.
        self._patience_s: Final = settings.resync_interval / 2
        self._steady = steady
        self._xdp = Xdp(netlink, settings.bpffs)
        self._findings = findings
        self._refused: tuple[int, int, int] | None = None
        """(ifindex, MTU, program) that a driver has refused: attaching may reset it, so not at once again."""
        self._refused_at = 0.0

    def preflight(self, link: Link) -> None:
        """ForeignProgram if someone else's XDP program would see the packets first."""
        if why := self._foreign(link):
            raise ForeignProgram(f"{why}, or run with --bypass=off")

    def keep(self) -> None:
        """The pins are gone, but not the program of an earlier life. KernelError."""
        self._xdp.keep()

    def _foreign(self, link: Link) -> str:
        if not link.xdp or self._xdp.is_ours(link.xdp):
            return ""
        return (
            f"{link.name} carries an XDP program that is not ours (id {link.xdp}): "
            f"remove it (ip link set dev {link.name} xdp off)"
        )

    def reconcile(
        self, links: Mapping[int, Link], uplink: int, program: Program | None, lacking: str = ""
    ) -> None:
        """Bring the interfaces in line. KernelError if ours cannot be removed.

        `program`: what may hang on `uplink`, where from_wire is in place; None: nothing, and
        `lacking` says why if that is the kernel's doing.
        """
        link = links.get(uplink)
        wanted = program if link and wants_xdp(self._mode, link) else None
        for other in links.values():
            if other.xdp and not (wanted and other.ifindex == uplink) and self._xdp.is_ours(other.xdp):
                self._xdp.remove(other)
                self._findings.count("xdp", 1)
                log.info("XDP taken off %s", other.name)
        foreign = self._foreign(link) if link and program else ""
        self._findings.problems[Concern.XDP] = (foreign,) if foreign else ()
        if not wanted or foreign:
            self._refused = None
            self._say(self._lacking(link, lacking) if link else "")
        attached = bool(link and wanted and not foreign and self._attach(link, wanted))
        self._findings.hook = HookMode.XDP if attached else HookMode.TC

    def _lacking(self, link: Link, refused: str) -> str:
        """Why there is no XDP on the uplink, if somebody wants it; `refused`: by the kernel, if it has."""
        if self._mode is HookMode.XDP and not link.has_ethernet:
            return f"{link.name} is no Ethernet device, and XDP needs frames"
        return refused if wants_xdp(self._mode, link) else ""

    def _attach(self, link: Link, program: Program) -> bool:
        """Whether the program is on the link in the end."""
        this = (link.ifindex, link.mtu, program.id)
        if link.xdp == program.id:
            return True
        if self._refused != this or self._steady() - self._refused_at >= self._patience_s:
            try:
                self._xdp.put(link, program)
            except KernelError as error:
                self._refuse(link, this, str(error))
            else:
                self._refused, self._findings.hook_refused = None, ""
                self._findings.count("xdp", 1)
                log.info("XDP attached to %s", link.name)
                return True
        if link.xdp:  # an older build's, whose notes this from_wire may not know
            self._xdp.remove(link)
        return False

    def _refuse(self, link: Link, this: tuple[int, int, int], why: str) -> None:
        """From_wire goes on alone, with `auto` perhaps only because the driver has no XDP."""
        self._refused, self._refused_at = this, self._steady()
        self._say(f"{why} (MTU {link.mtu})")

    def _say(self, why: str) -> None:
        """Once: why there is no XDP; empty: there is, or nobody wants it."""
        text = f"{why}: from_wire stays at tc" if why else ""
        if text and text != self._findings.hook_refused:
            log.log(logging.WARNING if self._mode is HookMode.XDP else logging.INFO, "%s", text)
        self._findings.hook_refused = text
