"""What is wrong with a node, judged by what was seen of it. Pure.

Each judgement takes what was seen and gives findings: what it is about, how bad it is, what was seen,
what that means, and the command that mends it. Where several have one cause, the cause is said: a peer
that answers nothing because its route is stolen is named once, by the route.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address
from typing import Any, Final

from ctl.core.compare import Difference
from ctl.core.family import Member
from ctl.core.model import VXLAN_IPV6_OVERHEAD, VXLAN_OVERHEAD, Lease


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class Finding:
    """A line of the doctor's."""

    check: str
    """What was looked at, one word."""
    level: Level
    seen: str
    means: str = ""
    remedy: str = ""
    """A command, or what to do; empty where nothing has to be done."""


def ok(check: str, seen: str) -> Finding:
    """Something that is well."""
    return Finding(check, Level.OK, seen)


def failure(check: str, seen: str, means: str, remedy: str) -> Finding:
    """Something for which packets are lost, or will be."""
    return Finding(check, Level.FAILURE, seen, means, remedy)


def warning(check: str, seen: str, means: str, remedy: str) -> Finding:
    """Something that is worth knowing."""
    return Finding(check, Level.WARNING, seen, means, remedy)


# --- The node's own ------------------------------------------------------------


def of_agent(
    alive: bool, why: Sequence[str], problems: Sequence[str], warnings: Sequence[str]
) -> Iterator[Finding]:
    """By `ovctl status`: whether an agent runs, and what it complains of itself."""
    if not alive:
        yield failure(
            "agent",
            "no agent runs here",
            "what is in place forwards, and follows no change of the others",
            "systemctl start ovnet, and journalctl -u ovnet for why it ended",
        )
        return
    for line in why:
        yield failure("agent", line, "the agent says so of itself", "ovctl status -o wide")
    for line in problems:
        if line not in why:
            yield warning("agent", line, "the agent says so of itself", "ovctl status -o wide")
    for line in warnings:
        yield warning("agent", line, "worth knowing", "")
    if not why:
        yield ok("agent", "it runs, and is healthy")


def of_lease(own: Lease | None, host: IPv4Address, now: float) -> Iterator[Finding]:
    """By the store. `now`: seconds since the epoch."""
    if own is None:
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
    else:
        yield ok("lease", f"{own.subnet} is held by {own.host}")


def of_entries(differences: Sequence[Difference], interval: float, alive: bool) -> Iterator[Finding]:
    """By `ovctl map diff`. `interval`: after how many seconds an agent mends, at the latest."""
    if not differences:
        yield ok("entries", "routes, neighbours, FDB and maps are as the leases ask")
        return
    mend = f"the agent mends it within {interval:g} s" if alive else "systemctl start ovnet"
    for (table, state), count in sorted(Counter((each.table, each.state) for each in differences).items()):
        first = next(each for each in differences if (each.table, each.state) == (table, state))
        more = f" and {count - 1} more" if count > 1 else ""
        yield failure(
            "entries",
            f"{table}: {first.key}{more} {state}",
            f"wanted {first.wanted or 'nothing'}, found {first.found or 'nothing'}",
            f"ovctl map diff shows all; {mend}; who changed it?",
        )


def of_settings(settings: Mapping[str, str | None], devices: Collection[str]) -> Iterator[Finding]:
    """By kernel settings (sysctl's names, with slashes). `devices`: of ours, that have to forward."""
    if settings.get("net/ipv4/ip_forward") == "0":  # which sets each interface's too
        yield failure(
            "forwarding",
            "net.ipv4.ip_forward is 0",
            "no packet of a container leaves this host, and none comes in",
            "sysctl -w net.ipv4.ip_forward=1, and look who sets it (grep -r ip_forward /etc/sysctl*)",
        )
        return
    wrong = settings.get("net/ipv6/conf/all/forwarding") == "0"
    if wrong:
        yield failure(
            "forwarding",
            "net.ipv6.conf.all.forwarding is 0",
            "no IPv6 packet of a container leaves this host, and none comes in",
            "systemctl restart ovnet, and look who sets it (grep -r forwarding /etc/sysctl*)",
        )
    for device in sorted(devices):
        if settings.get(f"net/ipv4/conf/{device}/forwarding") == "0":
            wrong = True
            yield failure(
                "forwarding",
                f"net.ipv4.conf.{device}.forwarding is 0",
                f"what comes in by {device} is not forwarded",
                f"sysctl -w net.ipv4.conf.{device}.forwarding=1",
            )
    if not wrong:
        yield ok("forwarding", "it is on")


def of_conntrack(count: int | None, limit: int | None) -> Iterator[Finding]:
    """By the size of conntrack's table; None: there is no conntrack here."""
    if count is None or not limit:
        return
    if count >= limit:
        yield failure(
            "conntrack",
            f"its table is full: {count} of {limit} entries",
            "new connections are dropped",
            f"sysctl -w net.netfilter.nf_conntrack_max={2 * limit}",
        )
    elif count > 0.9 * limit:
        yield warning(
            "conntrack",
            f"its table is nearly full: {count} of {limit} entries",
            "new connections will be dropped",
            f"sysctl -w net.netfilter.nf_conntrack_max={2 * limit}",
        )
    else:
        yield ok("conntrack", f"{count} of {limit} entries")


def of_programs(wanted: Iterable[tuple[str, str]], present: Collection[tuple[str, str]]) -> Iterator[Finding]:
    """By `ovctl hook list`: (interface, hook) where a program of ours has to be, and where one is."""
    missing = [each for each in wanted if each not in present]
    for device, hook in missing:
        yield failure(
            "programs",
            f"none of ours at {hook} of {device}",
            "eBPF carries nothing there, and the senders of VXLAN are not checked at the uplink",
            "ovctl hook list; systemctl restart ovnet",
        )
    if not missing:
        yield ok("programs", "they are where they have to be")


def of_mtu(mtu: int, device: int | None, ports: Mapping[str, int]) -> Iterator[Finding]:
    """`mtu`: largest inner packet; `device`: the tunnel's, None if there is none; `ports`: each port's."""
    wrong = False
    if device is not None and device < mtu:
        wrong = True
        yield failure(
            "mtu",
            f"the tunnel device takes {device} bytes, {mtu} are wanted",
            "larger packets of containers are refused",
            "systemctl restart ovnet; who set it? (NetworkManager, systemd-networkd)",
        )
    larger = sorted(name for name, size in ports.items() if size > mtu)
    if larger:
        wrong = True
        more = f" and {len(larger) - 1} more" if len(larger) > 1 else ""
        yield failure(
            "mtu",
            f"port {larger[0]}{more}: MTU {ports[larger[0]]}, the overlay carries {mtu}",
            "its container sends packets that do not fit, and waits where ICMP is filtered",
            f"start it anew with MTU {mtu}, or ip link set dev {larger[0]} mtu {mtu}, there and inside",
        )
    if not wrong:
        yield ok("mtu", f"{mtu} bytes inside, and no port has more")


# --- The way to the others -----------------------------------------------------


@dataclass(frozen=True, slots=True)
class Way:
    """What was seen of the way to one peer."""

    lease: Member[Any, Any]
    device: str
    """The interface that its subnet is routed to; empty: there is no route."""
    neighbour: str
    """The next hop to its host, if nobody tells its MAC; empty: it is known."""
    wanted: str
    """The interface that its subnet has to be routed to."""
    underlay: bool = True
    """Whether the peer's host answers echoes on the underlay."""
    answered: bool = True
    """Whether its overlay address answers small echoes."""
    largest: int = 0
    """The largest packet that it answers, bytes; 0: all that fit the overlay."""


_ASKING: Final = {4: "ARP", 6: "neighbour solicitation"}
"""How MAC addresses are asked for, by IP version."""
_OVERHEAD: Final = {4: VXLAN_OVERHEAD, 6: VXLAN_IPV6_OVERHEAD}


def of_way(way: Way, mtu: int, port: int) -> Iterator[Finding]:
    """The one cause why a peer cannot be reached, or only by small packets. `port`: UDP, of the tunnel."""
    lease = way.lease
    version = lease.subnet.version
    who = f"{lease.node or lease.host} ({lease.subnet})"
    if way.device != way.wanted:
        yield failure(
            "peer",
            f"{who} is routed to {way.device or 'nothing'}, not to {way.wanted}",
            "another route is more specific, or comes first in the rules",
            f"ip route get {lease.gateway}; ip route show table all; ip rule",
        )
    elif way.neighbour and not way.answered:
        yield failure(
            "peer",
            f"{who} answers nothing, and the next hop to it ({way.neighbour}) no {_ASKING[version]}",
            "the host is down, or cable, VLAN or a security group keep it apart",
            f"ip neigh; arping the next hop; ping {lease.host}",
        )
    elif not way.answered:
        yield _silent(who, way, port)
    elif way.largest and way.largest < mtu:
        yield failure(
            "peer",
            f"{who} answers packets up to {way.largest} bytes, not {mtu}",
            f"the underlay loses what is larger than {way.largest + _OVERHEAD[version]} bytes",
            "raise the underlay's MTU, or lower ours: "
            f"ovctl network init --mtu {way.largest + _OVERHEAD[version]} --force",
        )


def _silent(who: str, way: Way, port: int) -> Finding:
    host = way.lease.host
    if way.underlay:
        return failure(
            "peer",
            f"{who} answers nothing, its host {host} does",
            f"the underlay or a firewall stops UDP {port}, or no agent runs there",
            f"on both hosts: tcpdump -ni any udp port {port}; there: ovctl doctor; open UDP {port} both ways",
        )
    return failure(
        "peer",
        f"{who} answers nothing, nor does its host {host}",
        "the host is down, or the underlay leads nowhere",
        f"ping {host}; ip route get {host}",
    )


def verdict(findings: Sequence[Finding]) -> int:
    """The exit code: 1 if anything fails."""
    return int(any(each.level is Level.FAILURE for each in findings))
