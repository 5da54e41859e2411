"""Two nodes of a dual-stack network, as site.py has them, and what an exchange by IPv6 shows."""

from __future__ import annotations

from functools import partial
from ipaddress import IPv6Address

from ctl.core.abi import Hook, Ip
from ctl.core.family import IPV6
from ctl.kernel.bpf.maps import open_maps
from tests.dual import Guest, give, guest, lease, reaches, with_ipv6, write_network
from tests.host import Host, started
from tests.netns.parity.site import Site
from tests.process import wait_until

NUMBERS = {"a": 20, "b": 30}
"""Of the hosts' subnets of either family."""
CARRIED = {Hook.FROM_CONTAINER, Hook.TO_OVERLAY, Hook.FROM_WIRE, Hook.TO_CONTAINER}
"""Hooks whose programs for IPv4 hand IPv6 on."""


class IPv6Site(Site):
    """Use it in a `with` block. It begins on the kernel path."""

    def __init__(self) -> None:
        super().__init__("--bypass", "off")

    def _lease(self) -> None:
        write_network(self.lab.store_url)
        self.leases = {host.name: lease(with_ipv6(host), NUMBERS[host.name]) for host in (self.a, self.b)}
        give(self.a, *self.leases.values())

    def _plug(self) -> None:
        self.guests = {host.name: self._guest(host) for host in (self.a, self.b)}
        self.one, self.two = self.guests["a"].place, self.guests["b"].place
        self.near, self.far = self.one, self.two

    def _guest(self, host: Host) -> Guest:
        return guest(host, self.leases[host.name], "one" if host is self.a else "two")

    def _open(self) -> None:
        self.maps = {}

    def _settle(self) -> None:
        reaches(self.one, self.guests["b"].address)

    def addresses(self) -> tuple[Ip, Ip]:
        return IPv6Address(self.guests["a"].address), IPv6Address(self.guests["b"].address)

    def bypass(self, *flags: str) -> None:
        """Other agents take over, with these flags; of the connections so far nothing is known."""
        for agent in self.agents.values():
            agent.stop()
        self.agents = started((self.a, self.b), *flags)
        for host in (self.a, self.b):
            self.maps[host.name] = self._stack.enter_context(open_maps(host.bpffs, IPV6))
            wait_until(partial(self._serves, host), 20, f"{host.name} serves IPv6 of its container")
            host.run("conntrack", "-F")

    def _serves(self, host: Host) -> bool:
        with open_maps(host.bpffs) as maps:
            if not set(maps.handed_over()) >= CARRIED:
                return False
        own = self.maps[host.name]
        return IPv6Address(self.guests[host.name].address) in own.endpoints() and bool(own.peers())
