"""The vxlan backend's containers in one family: whose addresses are behind which port of the bridge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic

from ctl.backend.settle import apply_fitting
from ctl.backend.site import Site
from ctl.core.family import Family
from ctl.core.findings import Concern, Findings
from ctl.core.host import Link
from ctl.core.model import A, N
from ctl.core.plan import plan_endpoints, plan_questions
from ctl.kernel.bpf.maps import Maps
from ctl.kernel.netlink.session import Netlink
from ctl.settings.config import Settings


class Endpoints(Generic[A, N]):
    """Fills the map `endpoints`, and has the kernel ask for whom it does not find. One thread's."""

    def __init__(
        self, settings: Settings, netlink: Netlink, family: Family[A, N], findings: Findings
    ) -> None:
        self._room, self._netlink, self._family = settings.endpoints_max, netlink, family
        self._findings = findings

    def reconcile(self, site: Site, bridge: Link, ports: Mapping[int, Link], opened: Maps[A]) -> None:
        """Bring the map in line with what the kernel knows. KernelError.

        `ports`: those of the bridge that carry our programs, by ifindex.
        """
        own = self._family.member(site.lease)
        assert own is not None, f"our lease has no {self._family}"
        seen = self._netlink.neighbours(site.bridge, self._family)
        found = {} if site.fenced else plan_endpoints(seen, ports, bridge, own.subnet)
        left = apply_fitting("endpoints", opened.endpoint_table, found, self._room, self._findings)
        text = f"map endpoints is full: {left} containers by the kernel path only, raise --endpoints-max"
        self._findings.say(Concern.ENDPOINTS, self._family.version, text if left else "")
        for address in plan_questions(seen, own.subnet) if ports else ():
            self._netlink.ask(site.bridge, address)
