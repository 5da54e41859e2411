"""What scenarios happen to: two nodes with a container each, and what their agents said."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.dual import guest, leases, with_ipv6, write_network
from tests.host import Agent, Container, Host, ovctl_argv
from tests.lab import Lab, wait_until
from tests.namespace import REPOSITORY


@dataclass
class Site:
    """Node `a` is the one that things happen to; `b` watches."""

    lab: Lab
    a: Host
    b: Host
    one: Container
    """On a."""
    two: Container
    """On b."""
    flags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Of each host's agent, by name."""
    lives: dict[str, list[Agent]] = field(default_factory=dict)
    """All agents of a host, the newest last."""
    ipv6: tuple[str, str] | None = None
    """Addresses of both containers, if the network is dual stack."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What a scenario wants to know later."""

    def agent(self, host: str = "a") -> Agent:
        """The newest one."""
        return self.lives[host][-1]

    def start(
        self,
        host: str = "a",
        *flags: str,
        wait: bool = True,
        program: Sequence[str] = (),
        source: Path = REPOSITORY,
        env: Mapping[str, str] | None = None,
    ) -> Agent:
        """Another agent with the host's flags, and these.

        `program`: what runs instead of `ovctl`; `source`: the tree to run it from.
        """
        place = self.host(host)
        lives = self.lives.setdefault(host, [])
        stem = self.lab.dir / f"chaos-{host}-{len(lives)}"
        argv = (*(program or ovctl_argv()), "agent", *self.flags.get(host, ()), *flags)
        agent = Agent(place.argv(*argv), stem, env=place.environment(env), cwd=source)
        agent.host = place
        lives.append(agent)
        if len(lives) == 1:
            self.lab.at_close(lambda: lives[-1].kill(signal.SIGKILL))
        if wait:
            agent.wait_ready()
        return agent

    def host(self, name: str) -> Host:
        return self.a if name == "a" else self.b

    def log(self, host: str = "a") -> str:
        """What all agents of the host have said so far."""
        return "".join(agent.log() for agent in self.lives[host])

    def healthy(self, host: str = "a") -> bool:
        """Its agent's report complains of nothing, but of ports that someone else has."""
        report = self.host(host).status()
        return not (report["problems"] or report["not_ready"] or report["reconcile"]["error"])

    def passes(self, host: str = "a") -> int:
        """Reconciles of the running agent."""
        report = self.host(host).status()["reconcile"]
        return int(report["ok"]) + int(report["failed"])


def pair(lab: Lab, *flags: str, network: Sequence[Any] = ()) -> Site:
    """Two nodes as they are without any setting, and with `flags`."""
    a, b = lab.host("a"), lab.host("b")
    lab.init_network(*network)
    site = Site(lab, a, b, None, None, {"a": flags, "b": flags})  # type: ignore[arg-type]
    for name in ("a", "b"):
        site.start(name)
    for host in (a, b):
        wait_until(host.knows_a_peer, 10, f"{host.name} knows its peer")
    site.one, site.two = a.container("one"), b.container("two")
    return site


def dual_pair(lab: Lab) -> Site:
    """The same of a dual-stack network: its containers have IPv6, too."""
    a, b = (with_ipv6(lab.host(name)) for name in "ab")
    write_network(lab.store_url)
    site = Site(lab, a, b, None, None)  # type: ignore[arg-type]
    for name in ("a", "b"):
        site.start(name)
    for host in (a, b):
        wait_until(host.knows_a_peer, 10, f"{host.name} knows its peer")
    guests = [guest(host, leases(host)[host.name], name) for host, name in ((a, "one"), (b, "two"))]
    site.one, site.two = (each.place for each in guests)
    site.ipv6 = (guests[0].address, guests[1].address)
    return site


Build = Callable[[Lab], Site]


def complaints(host: Host) -> list[str]:
    """What the agent's report says is wrong, without a command."""
    report = host.status()
    left = [f"{port['name']}: {port['why']}" for port in report.get("kernel_ports", ())]
    return [*report.get("problems", ()), *report.get("not_ready", ()), *left]


def rule_handles(host: Host) -> str:
    """Our nftables rules, without counters."""
    return host.run("nft", "-s", "list", "table", "ip", "ovnet", check=False).stdout


def said(pattern: str, text: str) -> bool:
    """Whether a log has a line like that."""
    return re.search(pattern, text) is not None
