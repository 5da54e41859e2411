"""The agent's report: what it knows of itself, put together and left for `ovctl status`."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Final

from ctl import __version__
from ctl.cluster.membership import Membership
from ctl.core.model import Snapshot
from ctl.core.report import AgentReport, ReconcileReport, to_json
from ctl.node.node import Node
from ctl.process import statedir

log = logging.getLogger(__name__)


def describe(
    node: Node, membership: Membership, reconciles: ReconcileReport, *, started: float, passed: bool
) -> AgentReport:
    """The report of this moment. `started`: epoch seconds; `passed`: a whole reconcile has succeeded."""
    seen, settings, network = node.findings, node.settings, membership.network
    leases = membership.snapshot or Snapshot((), 0)
    wrong = [line for lines in seen.problems.values() for line in lines]
    not_ready = list(seen.problems.get("bridge", ()))
    if not passed:
        not_ready.append(reconciles.error or "starting")
    if membership.conflict:
        not_ready.append(f"lease conflict: {membership.conflict}")
    return AgentReport(
        version=__version__,
        pid=os.getpid(),
        node=settings.node_name,
        started_at=started,
        host=node.uplink.address,
        store=membership.report,
        reconcile=replace(reconciles, operations=dict(seen.operations)),
        network=network.network,
        backend=network.backend,
        lease=membership.lease_report(),
        vni=network.vni,
        port=network.port,
        mtu=node.mtu,
        bridge=settings.bridge,
        uplink=node.uplink.link.name,
        bypass=settings.bypass,
        approval_ttl=settings.approval_ttl,
        hook=seen.hook.value,
        hook_refused=seen.hook_refused,
        program=seen.program,
        ready=not not_ready,
        not_ready=tuple(not_ready),
        leases=len(leases.leases),
        peers_ebpf=seen.peers_ebpf,
        peers_kernel_path=seen.peers_kernel_path,
        ports=seen.ports,
        kernel_ports=seen.kernel_ports,
        problems=(*wrong, *leases.problems),
    )


class ReportFile:
    """The report where `ovctl` reads it."""

    def __init__(self, state_dir: Path) -> None:
        self._path: Final = state_dir / statedir.REPORT
        self._failed = False

    def write(self, report: AgentReport) -> None:
        """Whole or not at all. A disk that is full is said once, and stops nothing else."""
        try:
            statedir.write_atomically(self._path, to_json(report))
            self._failed = False
        except OSError as error:
            if not self._failed:
                log.error("cannot write the status report: %s", error.strerror)
            self._failed = True
