"""A node as a member: its agent, the store, its lease and the others'. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from ipaddress import IPv4Address
from typing import Final

from ctl.core.diagnosis.finding import Finding, failure, ok, warning
from ctl.core.errors import StoreDenied, StoreError
from ctl.core.model import END_UNKNOWN, Lease
from ctl.core.report import AgentReport

CLOCKS_S: Final = 60.0
"""By how much the clocks of two nodes may differ before it is told."""


def of_agent(
    alive: bool,
    why: Sequence[str],
    problems: Sequence[str],
    warnings: Sequence[str],
    known: Collection[str] = (),
) -> Iterator[Finding]:
    """By `ovctl status`: whether an agent runs, and what it complains of itself.

    `known`: lines of it that are told by what the doctor has looked at itself.
    """
    if not alive:
        yield failure(
            "agent",
            "no agent runs here",
            "what is in place forwards, and follows no change of the others",
            "systemctl start ovnet, and journalctl -u ovnet for why it ended",
        )
        return
    for line in why:
        if line not in known:
            yield failure("agent", line, "the agent says so of itself", "ovctl status -o wide")
    for line in problems:
        if line not in (*why, *known):
            yield warning("agent", line, "the agent says so of itself", "ovctl status -o wide")
    for line in warnings:
        yield warning("agent", line, "worth knowing", "")
    if not why:
        yield ok("agent", "it runs, and is healthy")


def of_store(error: StoreError) -> Finding:
    """Why it could not be read."""
    remedy = "is it up, and reachable from here?"
    if isinstance(error, StoreDenied):
        remedy = (
            "the user, password, certificate or token of the settings, or its rights: see ovctl agent --help"
        )
    return failure("store", str(error), "this node hears of no change, and its lease ends", remedy)


def of_lease(
    own: Lease | None, holder: Lease | None, host: IPv4Address, now: float, ttl: float
) -> Iterator[Finding]:
    """By the store. `own`: the lease of this host; `holder`: who has the subnet that it last had.

    `now`: seconds since the epoch; `ttl`: of leases, seconds.
    """
    if holder is not None and holder.host != host:
        yield failure(
            "lease",
            f"{holder.subnet}, which this node had, is held by {holder.host} ({holder.node or 'no name'})",
            "this node is fenced: the others send its containers' packets there",
            f"ovctl lease release {holder.subnet} if it is wrong there; see docs/operating.md if it is right",
        )
    elif own is None:
        yield failure(
            "lease",
            f"the store has no lease of {host}",
            "the others send nothing here",
            "look at the agent's log; ovctl lease list shows who holds what",
        )
    elif own.expires_at is not None and own.expires_at < now:
        yield failure(
            "lease",
            f"{own.subnet} ended {now - own.expires_at:.0f} s ago",
            "the others remove this node",
            "systemctl restart ovnet; is the clock right (timedatectl)?",
        )
    elif own.expires_at not in (None, END_UNKNOWN) and own.expires_at > now + ttl + CLOCKS_S:
        yield failure(
            "clock",
            f"our lease ends in {own.expires_at - now:.0f} s, and leases last {ttl:.0f} s",
            "this host's clock was set back since, or is behind that of who wrote it",
            "timedatectl; have the clock set by NTP",
        )
    else:
        yield ok("lease", f"{own.subnet} is held by {own.host}")


def of_unused(ignored: Sequence[str], unread: Sequence[str]) -> Iterator[Finding]:
    """Leases of other nodes that are not used, and entries of the store that are no lease, a line each."""
    for line in ignored:
        yield failure(
            "leases",
            line,
            "the containers of that node are not reached from here",
            "ovctl lease list; restart the agent there, so that it follows the network's config",
        )
    for line in unread:
        yield warning("leases", line, "that entry is not used", "ovctl lease list")


def of_renewals(peers: Sequence[Lease], now: float, margin: float) -> Iterator[Finding]:
    """Peers whose leases should have been renewed. `margin`: seconds before its end that we renew ours.

    One that has not ended is a warning, and no more than a guess where its holder has not said when it
    renews it.
    """
    for lease in peers:
        if lease.expires_at in (None, END_UNKNOWN) or not _late(lease, now, margin):
            continue
        assert lease.expires_at is not None
        who, left = f"{lease.node or lease.host} ({lease.subnet})", lease.expires_at - now
        remedy = f"on {lease.host}: systemctl status ovnet; ovctl doctor"
        cause = "its agent is dead, or cut off from the store"
        if left <= 0:
            seen = f"{who} has not renewed its lease, which ended {-left:.0f} s ago"
            yield failure("leases", seen, f"{cause}: its containers are not reached", remedy)
        else:
            seen = f"{who} has not renewed its lease, which ends in {left:.0f} s"
            unsure = "unless its leases are shorter than ours, " if lease.renew_at is None else ""
            yield warning("leases", seen, f"{unsure}{cause}", remedy)


def _late(lease: Lease, now: float, margin: float) -> bool:
    """Whether half of the time from its renewal to its end is over.

    As much is left to an agent that cannot reach the store for a while. `margin`: for a holder that has not
    said when it renews, and is taken to do it as we do.
    """
    assert lease.expires_at is not None
    due = lease.expires_at - margin if lease.renew_at is None else lease.renew_at
    return now > (due + lease.expires_at) / 2


def of_network(report: AgentReport, port: int, vni: int, backend: str) -> Iterator[Finding]:
    """Whether the agent runs with what the store's network config says now.

    A warning: it is so during each planned change, and a peer that has followed is named by its lease.
    """
    running, wanted = (report.backend, report.vni, report.port), (backend, vni, port)
    if running != wanted:
        yield warning(
            "network",
            "the agent runs with {}, VNI {}, port {}; ".format(*running)
            + "the store says {}, VNI {}, port {}".format(*wanted),
            "nodes that have started since speak another tunnel, and do not reach this one",
            "systemctl restart ovnet, on every node",
        )
