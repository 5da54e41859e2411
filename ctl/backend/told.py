"""What is wrong, said where people look: in `ovctl status` while it lasts, in the log when it begins."""

from __future__ import annotations

import logging

from ctl.core.findings import Concern, Findings

log = logging.getLogger(__name__)


def told(findings: Findings, concern: Concern, *lines: str) -> None:
    """Have `ovctl status` say these lines, and the log those that are new. Empty ones are none."""
    before, now = findings.problems.get(concern, ()), tuple(filter(None, lines))
    for line in now:
        if line not in before:
            log.warning("%s", line)
    findings.problems[concern] = now
