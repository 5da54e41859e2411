"""What is wrong, said where people look: in `ovctl status` while it lasts, in the log when it begins."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from ctl.backend.site import Site
from ctl.core.family import without_ipv6
from ctl.core.findings import Concern, Findings
from ctl.core.model import Lease

log = logging.getLogger(__name__)


def told_of_ipv6(findings: Findings, site: Site, leases: Iterable[Lease], problems: Iterable[str]) -> None:
    """Which of these leases are not used for IPv6 (`problems`), or have none; nothing without IPv6 here."""
    told(findings, Concern.IPV6_LEASES, *(problems if site.has_ipv6 else ()))
    told(findings, Concern.IPV4_ONLY, without_ipv6(leases, site.lease) if site.has_ipv6 else "")


def told(findings: Findings, concern: Concern, *lines: str) -> None:
    """Have `ovctl status` say these lines, and the log those that are new. Empty ones are none."""
    before, now = findings.problems.get(concern, ()), tuple(filter(None, lines))
    for line in now:
        if line not in before:
            log.warning("%s", line)
    findings.problems[concern] = now
