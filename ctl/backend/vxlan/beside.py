"""eBPF for IPv6 beside that for IPv4: programs that hang at no hook, as those for IPv4 hand IPv6 on to them.

They are handed it last, once their maps hold all peers, and it is taken from them first, before a map or a
device goes: in between it is the kernel path's, from one packet to the next. What is wrong with them
costs IPv6 its shortcut, and IPv4 nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from typing import Final

from ctl.backend.site import Site
from ctl.backend.told import told
from ctl.backend.vxlan.datapath import Datapath
from ctl.core.errors import KernelError
from ctl.core.family import IPV6
from ctl.core.findings import Concern, Findings
from ctl.core.model import Bypass
from ctl.kernel.bpf import loader, maps
from ctl.settings.config import Settings

IPv6Datapath = Datapath[IPv6Address, IPv6Network]


class Beside:
    """Loads them, has IPv6 handed to them, and leaves nothing where there are to be none. One thread's.

    `steady`: seconds that only go up.
    """

    def __init__(
        self, settings: Settings, findings: Findings, *, steady: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings, self._findings, self._steady = settings, findings, steady
        # Less than from one look at everything to the next, so that each of them finds it over.
        self._patience_s: Final = settings.resync_interval / 2
        self._failed_at = -math.inf
        """When it was tried last, and in vain: to compile takes a second, so not at once again."""
        self._loaded = ""
        """Digest of the programs that are handed IPv6 by us; empty: none are."""
        self._clean = False
        """Whether nothing is left of any, of an earlier life either."""

    def load(
        self, ipv4: maps.Maps[IPv4Address], ipv6: IPv6Datapath | None, site: Site, *, first: bool
    ) -> None:
        """Their maps and programs, if there are to be any. KernelError. `first`: see Datapath.announce."""
        if ipv6 is None or self._settings.bypass is Bypass.OFF:
            self.remove(ipv4, ipv6)
            return
        self._clean = False
        if ipv6.programs is None and self._steady() - self._failed_at < self._patience_s:
            return
        try:
            ipv6.open_maps()
            ipv6.announce(site, first=first)
            ipv6.load_programs()
        except KernelError as error:
            self._do_without(ipv4, str(error))

    def hand_over(self, ipv4: maps.Maps[IPv4Address], ipv6: IPv6Datapath) -> None:
        """Let the programs for IPv4 hand IPv6 on to those that are loaded and know all peers. KernelError."""
        programs = ipv6.programs
        if programs is None or not ipv6.is_filled:
            return
        try:
            loader.hand_over(ipv4, programs.by_name)
        except KernelError as error:
            self._do_without(ipv4, str(error))
            return
        told(self._findings, Concern.IPV6_PROGRAMS)
        if self._loaded != programs.digest:
            loader.drop_others(ipv6.root, programs.digest)
            self._loaded = programs.digest

    def _do_without(self, ipv4: maps.Maps[IPv4Address], why: str) -> None:
        self._failed_at = self._steady()
        told(self._findings, Concern.IPV6_PROGRAMS, f"IPv6 takes the kernel path only: {why}")
        loader.hand_over(ipv4, None)

    def remove(self, ipv4: maps.Maps[IPv4Address], ipv6: IPv6Datapath | None) -> None:
        """IPv6 is the kernel path's; then maps, programs and pins go. KernelError."""
        if self._clean:
            return
        loader.hand_over(ipv4, None)
        if ipv6 is not None:
            ipv6.close()
        maps.unpin_all(maps.family_root(self._settings.bpffs, IPV6))
        told(self._findings, Concern.IPV6_PROGRAMS)
        self._loaded, self._clean = "", True
