"""Under each firewall of the table, conversations go by eBPF as they go by the kernel path."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.host import Host
from tests.netns.parity.rules import CALL_IPTABLES, FIREWALLS, PORT, Rules
from tests.netns.parity.site import Site
from tests.netns.parity.talk import Told, servers, talk

TALKS = 3
"""Conversations under each firewall: the rules of services take turns."""


@contextmanager
def told(host: Host, nft: str, row: Rules) -> Iterator[None]:
    """A node with a row's rules and settings."""
    settings = {CALL_IPTABLES: "0", **row.sysctls}
    before = {name: host.sysctl(name) for name in settings}
    try:
        for name, value in settings.items():
            host.sysctl(name, value)
        if nft:
            host.nft(f"table ip row {{\n{nft}\n}}\n")
        if row.iptables:
            host.run("iptables-restore", "--noflush", stdin=row.iptables)
        yield
    finally:
        for name, value in before.items():
            host.sysctl(name, value)
        if nft:
            host.nft("delete table ip row\n")
        if row.iptables:
            remove_iptables(host, row.iptables)
        host.run("conntrack", "-F")


def remove_iptables(host: Host, text: str) -> None:
    """Jumps first, then the chains that they led to."""
    undo = []
    for line in text.splitlines():
        if line.startswith("*"):
            undo.append(line)
            chains: list[str] = []
        elif line.startswith(":"):
            chains.append(line[1:].split()[0])
        elif line.startswith("-A") and not line.startswith("-A KUBE"):
            undo.append(line.replace("-A", "-D", 1))
        elif line == "COMMIT":
            undo += [f"-F {name}" for name in chains] + [f"-X {name}" for name in chains] + [line]
    host.run("iptables-restore", "--noflush", stdin="\n".join(undo) + "\n")


def conversations(site: Site, row: Rules) -> list[Told]:
    """What the client tells of each."""
    outside = site.outside if row.client == "outside" else None
    client = outside or {"one": site.one, "near": site.near}[row.client]
    places = {"one": site.one, "two": site.two, "near": site.near, "far": site.far}
    with ExitStack() as stack:
        for host, nft in ((site.a, row.on_a), (site.b, row.on_b)):
            stack.enter_context(told(host, nft, row))
        for maps in site.maps.values():
            maps.flush_flows()  # approved under other rules: a new socket may get the port of an old one
        answering = stack.enter_context(servers(places))
        first = talk(client, row.to, answering)
        lost = "lost" in (*first.udp, *first.tcp)  # which takes time: once is enough
        return [first, *(talk(client, row.to, answering) for _ in range(0 if lost else TALKS - 1))]


@pytest.mark.parametrize("number", range(len(FIREWALLS)), ids=[row.name for row in FIREWALLS])
def test_conversations(kernel: Site, learned: Site, number: int) -> None:
    row = FIREWALLS[number]
    assert row.to[1] in (PORT, 80, 81, 30080)
    by_kernel = conversations(kernel, row)
    before = {name: learned.carried(name) for name in "ab"}
    assert conversations(learned, row) == by_kernel
    assert [name for name in "ab" if learned.carried(name) > before[name]] == row.carried.split()
