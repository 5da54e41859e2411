"""The agent's report: what it knows of itself, put together and left for `ovctl status`."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Final

from ctl import __version__
from ctl.agent.steps import Outcome
from ctl.cluster.membership import Membership
from ctl.core.findings import UNHEALTHY, WARNINGS, Concern, Findings, Problems
from ctl.core.model import Snapshot
from ctl.core.report import AgentReport, ReconcileReport, to_json
from ctl.process import statedir
from ctl.settings.config import Settings

log = logging.getLogger(__name__)


def counted(
    before: ReconcileReport, outcome: Outcome, *, whole: bool, took: float, now: float
) -> ReconcileReport:
    """How reconciling goes after one more pass, which took `took` seconds to `now` (since the epoch).

    `whole`: it was about everything. A part that succeeds says nothing about the one that failed
    before, so only a whole pass takes an error back.
    """
    after = replace(before, last_duration=took)
    if outcome.error:
        return replace(after, failed=before.failed + 1, error=outcome.error)
    if before.error and not whole:
        return after
    return replace(after, ok=before.ok + 1, last_success=now, error="")


def describe(
    settings: Settings,
    found: Findings,
    membership: Membership,
    reconciles: ReconcileReport,
    *,
    started: float,
    passed: bool,
) -> AgentReport:
    """The report of this moment. `started`: epoch seconds; `passed`: a whole reconcile has succeeded."""
    assert found.uplink is not None, "preflight() comes first"
    network = membership.network
    leases = membership.snapshot or Snapshot((), 0)
    wrong = _lines(found.problems, frozenset(Concern) - WARNINGS)
    not_ready = list(found.problems.get(Concern.BRIDGE, ()))
    if not passed:
        not_ready.append(reconciles.error or "starting")
    if membership.conflict:
        not_ready.append(f"lease conflict: {membership.conflict}")
    return AgentReport(
        version=__version__,
        pid=os.getpid(),
        node=settings.node_name,
        started_at=started,
        host=found.uplink.address,
        store=membership.report,
        reconcile=replace(reconciles, operations=dict(found.operations)),
        network=network.network,
        backend=network.backend,
        lease=membership.lease_report(),
        vni=network.vni,
        port=network.port,
        mtu=found.mtu,
        bridge=settings.bridge,
        uplink=found.uplink.link.name,
        bypass=settings.bypass,
        approval_ttl=settings.approval_ttl,
        hook=found.hook.value,
        hook_refused=found.hook_refused,
        program=found.program,
        ready=not not_ready,
        not_ready=tuple(not_ready),
        leases=len(leases.leases),
        peers_ebpf=found.peers_ebpf,
        peers_kernel_path=found.peers_kernel_path,
        peers_ipv6=found.peers_ipv6,
        peers_ipv6_ebpf=found.peers_ipv6_ebpf,
        peers_silent=found.peers_silent,
        ports=found.ports,
        kernel_ports=found.kernel_ports,
        problems=(*wrong, *leases.problems),
        unhealthy=_lines(found.problems, UNHEALTHY),
        warnings=_lines(found.problems, WARNINGS),
        losing={str(way): line for way, line in found.losing.items()},
        blind=found.blind,
    )


def _lines(problems: Problems, concerns: Collection[Concern]) -> tuple[str, ...]:
    return tuple(line for concern, lines in problems.items() if concern in concerns for line in lines)


class ReportFile:
    """The report where `ovctl` reads it."""

    def __init__(self, state_dir: Path) -> None:
        self._path: Final = state_dir / statedir.REPORT
        self._failed = False
        """Whether the last report could not be written, and that was said."""

    def write(self, report: AgentReport) -> None:
        """Whole or not at all. A disk that is full is said once, and stops nothing else."""
        try:
            statedir.write_atomically(self._path, to_json(report))
            self._failed = False
        except OSError as error:
            if not self._failed:
                log.error("cannot write the status report: %s", error.strerror)
            self._failed = True
