"""Under each firewall of the table, conversations go by eBPF as they go by the kernel path."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import pytest

from tests.host import Host
from tests.kube.cluster import proxied
from tests.kube.services import Proxy
from tests.netns.parity.rules import CALL_IPTABLES, DEMO, FIREWALLS, PORT, Rules
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
        with kube_proxy(host, row.proxy):
            yield
    finally:
        for name, value in before.items():
            host.sysctl(name, value)
        if nft:
            host.nft("delete table ip row\n")
        host.run("conntrack", "-F")


def kube_proxy(host: Host, mode: str) -> AbstractContextManager[None]:
    """Its rules in that mode; with no mode nothing."""
    if not mode:
        return nullcontext()
    proxy = Proxy(host.name, (host.address, str(host.gateway.ip)), "172.17.0.0/16", in_turn=True)
    return proxied(host, mode, proxy, DEMO)


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
