"""What becomes of connections in conntrack's eyes is the same, though it sees a part of the packets only."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import Final

from tests.host import Host
from tests.netns.parity.site import Site
from tests.netns.parity.talk import PORT, Server, Told, servers, talk
from tests.netns.parity.tracked import assured, full_table
from tests.netns.test_netfilter import rules
from tests.process import wait_until

SOON: Final = 10
UNTRACKED: Final = "\n".join(
    f"chain {hook} {{ type filter hook {hook} priority raw; udp dport 8472 notrack; }}"
    for hook in ("prerouting", "output")
)
"""VXLAN itself is not answered, so the kernel may push its entries out at any time, and with them
what is in the tunnel."""


class Talkers:
    """A UDP flow and a TCP connection from container one to container two, already open."""

    def __init__(self, site: Site, server: Server, stack: ExitStack) -> None:
        make = partial(socket.socket, socket.AF_INET)
        self._server = server
        self._udp = stack.enter_context(site.one.call(partial(make, socket.SOCK_DGRAM)))
        self._tcp = stack.enter_context(site.one.call(partial(make, socket.SOCK_STREAM)))
        for each in (self._udp, self._tcp):
            each.settimeout(SOON)
            each.connect((site.two.address, PORT))
        self._accepted = stack.enter_context(closing(server.tcp.accept()[0]))
        self._accepted.settimeout(SOON)
        server.udp.settimeout(SOON)

    def exchange(self) -> None:
        """A question and an answer over each. TimeoutError if one is lost."""
        self._udp.send(b"question")
        data, client = self._server.udp.recvfrom(100)
        self._server.udp.sendto(data, client)
        assert self._udp.recv(100) == data
        self._tcp.sendall(data)
        assert self._accepted.recv(100) == data
        self._accepted.sendall(data)
        assert self._tcp.recv(100) == data


@contextmanager
def talkers(site: Site) -> Iterator[tuple[Talkers, dict[str, Server]]]:
    """Open ones, and who answers. VXLAN is not tracked, and no earlier connection remembered."""
    with ExitStack() as stack:
        for host in (site.a, site.b):
            stack.enter_context(rules(host, "untracked", UNTRACKED))
            host.run("conntrack", "-F")
        answering = stack.enter_context(servers({"two": site.two}))
        yield Talkers(site, answering["two"], stack), answering


def settle(site: Site, open_ones: Talkers) -> None:
    """Talk until both count as long-lived on both nodes: of UDP, conntrack says so after two seconds."""

    def settled() -> bool:
        open_ones.exchange()
        return all(assured(host, PORT) == 2 for host in (site.a, site.b))

    wait_until(settled, SOON, lambda: site.a.run("conntrack", "-L", "-o", "extended").stdout)


def renew(site: Site, host: Host) -> None:
    """Approvals end: the next packets ask the kernel path again."""
    if "off" not in site.flags:
        host.ovctl("flow", "flush")


def full(site: Site) -> list[Told]:
    """How a new conversation goes while node b's table is full, and one afterwards."""
    with talkers(site) as (open_ones, answering):
        settle(site, open_ones)
        ask = partial(talk, site.one, (site.two.address, PORT), answering)
        with full_table(site.b):
            for _ in range(3):
                renew(site, site.b)
                open_ones.exchange()
                open_ones.exchange()
            refused = ask()
            open_ones.exchange()
        return [refused, ask()]


def test_a_full_table(kernel: Site, learned: Site) -> None:
    """Open connections go on, new ones get nowhere. Before that, what lasts counts as lasting on both."""
    refused, later = by_kernel = full(kernel)
    assert (refused.udp, refused.tcp) == (("lost",), ("lost",))
    assert later.tcp[-1] == "closed"
    assert full(learned) == by_kernel
