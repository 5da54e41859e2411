"""An address that goes to another container under a peer's traffic: eBPF leaves the old place when the
kernel path does.

The receiver's agent is stopped meanwhile: it hears of such moves a moment later, so what is seen
here the programs have done alone.
"""

from __future__ import annotations

import json
import select
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address
from typing import Final

import pytest

from ctl.backend.vxlan.device import vtep_mac
from ctl.core.model import MacAddress
from ctl.store import open_store
from tests import packets
from tests.host import Container, Host
from tests.lab import Lab
from tests.netns.parity.capture import Shot, Tap
from tests.netns.parity.conftest import LEARNED
from tests.netns.parity.site import Site, knows
from tests.netns.parity.talk import PORT
from tests.netns.parity.test_underlay import sink
from tests.netns.test_resilience import stopped
from tests.process import wait_until

SOON: Final = 20
NUMBERS: Final = 50
LOST: Final = 2
"""Seconds in which nothing more has come: then it is lost. It comes in microseconds."""
OFF: Final = ("--bypass", "off")
BROADCAST: Final = MacAddress(b"\xff" * 6)
OTHER_MAC: Final = "02:42:0a:0b:0c:0d"


class Line:
    """Numbered datagrams from a container, and those at which they may arrive."""

    def __init__(self, source: Container, address: str, places: dict[str, Container]) -> None:
        with ExitStack() as stack:
            self._sender = stack.enter_context(source.call(partial(socket.socket, type=socket.SOCK_DGRAM)))
            self._sinks = {name: stack.enter_context(place.call(sink)) for name, place in places.items()}
            self._stack = stack.pop_all()
        self._sender.connect((address, PORT))
        self._sent = 0

    def close(self) -> None:
        self._stack.close()

    def send(self, count: int = NUMBERS) -> dict[str, int]:
        """How many of these arrive where."""
        first, found = self._sent, dict.fromkeys(self._sinks, 0)
        for _ in range(count):
            self._sender.send(struct.pack("!I", self._sent))
            self._sent += 1
        while sum(found.values()) < count:
            ready, _, _ = select.select(self._sinks.values(), [], [], LOST)
            if not ready:
                break
            for name, each in self._sinks.items():
                if each in ready and struct.unpack("!I", each.recv(100))[0] >= first:
                    found[name] += 1
        return {name: number for name, number in found.items() if number}

    def listen(self, name: str, place: Container) -> None:
        """One more of them."""
        self._sinks[name] = self._stack.enter_context(place.call(sink))


def by_ebpf(site: Site, line: Line) -> bool:
    """Whether node b's programs deliver a datagram; in vain where there are none."""
    before = delivered(site)
    line.send(1)
    return "off" in site.flags or delivered(site) - before == 1


def delivered(site: Site) -> int:
    return site.counters()["b", "from_wire"]["decap"]


def announce(who: Container, address: str, mac: str) -> None:
    """A gratuitous ARP request, as kernels and CNI plugins send it."""
    own, place = MacAddress.parse(mac), IPv4Address(address)
    claim = packets.ether(packets.arp(place, own, place), own, BROADCAST, packets.ARP)
    with closing(Tap(who)) as tap:
        tap.send(Shot(claim))


def port_of(site: Site, address: str) -> str:
    """Where node b's bridge sends what is for the address."""
    neighbours = json.loads(site.b.ip("-j", "neigh", "show", address, "dev", site.b.bridge))
    macs = {row.get("lladdr") for row in neighbours}
    rows = json.loads(site.b.run("bridge", "-j", "fdb", "show", "br", site.b.bridge).stdout)
    return next((row["ifname"] for row in rows if row["mac"] in macs and "permanent" not in row["state"]), "")


def newcomer(site: Site, address: str, mac: str | None = None) -> Container:
    """A container that has the address, on a port of its own, and is not up yet."""
    made = site.b.container("newcomer", address)
    made.ip("link", "set", "eth0", "down")
    if mac:
        made.ip("link", "set", "eth0", "address", mac)
        made.mac = mac
    return made


def bring_up(site: Site, new: Container) -> None:
    new.ip("link", "set", "eth0", "up")
    new.ip("route", "replace", "default", "via", str(site.b.gateway.ip))
    wait_until(lambda: "state forwarding" in port_state(site, new), SOON, "its port forwards")


def port_state(site: Site, new: Container) -> str:
    return site.b.run("bridge", "link", "show", "dev", new.port).stdout


Take = Callable[[Site, Container, Container], None]


def recreated(site: Site, old: Container, new: Container) -> None:
    """The old one is gone when the new one comes, which only listens."""
    site.b.ip("link", "del", old.port)
    bring_up(site, new)


def recreated_and_said(site: Site, old: Container, new: Container) -> None:
    recreated(site, old, new)
    take_over(site, old, new)


def take_over(site: Site, old: Container, new: Container) -> None:
    """The old one is still there."""
    if new.name == "newcomer":
        bring_up(site, new)
    else:
        new.ip("link", "set", "eth0", "address", new.mac)
        new.ip("addr", "add", f"{old.address}/32", "dev", "eth0")
    announce(new, old.address, new.mac)
    wait_until(lambda: port_of(site, old.address) == new.port, SOON, "the bridge has learned of it")


MOVES: Final[dict[str, tuple[str, str | None, Take]]] = {
    "the container is made anew, and listens": ("newcomer", None, recreated),
    "the container is made anew, and says so": ("newcomer", None, recreated_and_said),
    "the container is made anew with another MAC": ("newcomer", OTHER_MAC, recreated_and_said),
    "a new container takes the address": ("newcomer", OTHER_MAC, take_over),
    "a new container takes address and MAC": ("newcomer", None, take_over),
    "a running container takes the address": ("running", OTHER_MAC, take_over),
    "a running container takes address and MAC": ("running", None, take_over),
}
"""Who takes the address over, with which MAC (None: the same), and how."""


@contextmanager
def ends(site: Site, who: str, mac: str | None) -> Iterator[tuple[Container, Container]]:
    """The container that has the address, and the one that is to have it."""
    with ExitStack() as stack:
        old = site.b.container("old")
        stack.callback(old.remove)
        new = newcomer(site, old.address, mac) if who == "newcomer" else site.b.container("running")
        stack.callback(new.remove)
        old.run("ping", "-c1", "-W2", str(site.b.gateway.ip))
        if who == "running":
            new.run("ping", "-c1", "-W2", str(site.b.gateway.ip))
            new.mac = mac or old.mac
        yield old, new


def moved(site: Site, move: str) -> list[dict[str, int]]:
    """Where datagrams arrive before the move, behind it, and when the agent has looked."""
    who, mac, take = MOVES[move]
    with (
        ends(site, who, mac) as (old, new),
        closing(Line(site.one, old.address, {"old": old, "new": new})) as line,
    ):
        if "off" not in site.flags:
            wait_until(partial(knows, site.maps["b"], old), SOON, "the agent has found it")
        wait_until(partial(by_ebpf, site, line), SOON, "eBPF delivers it")
        with stopped(site.agents["b"]):
            found = [line.send()]
            take(site, old, new)
            found.append(line.send())
        wait_until(partial(by_ebpf, site, line), SOON, "eBPF delivers to the new place")
        return [*found, line.send()]


@pytest.mark.parametrize("move", MOVES)
def test_an_address_on_another_port(kernel: Site, learned: Site, move: str) -> None:
    by_kernel = moved(kernel, move)
    assert by_kernel == [{"old": NUMBERS}, {"new": NUMBERS}, {"new": NUMBERS}]
    assert moved(learned, move) == by_kernel


@pytest.mark.parametrize("flags", [OFF, LEARNED["learned"]], ids=["off", "learned"])
def test_a_subnet_moves_to_another_node(flags: tuple[str, ...]) -> None:
    """With its lease. The old node has not been told, and its container still listens.

    `flags`: of the sender's node, which is what it is about; the others carry by the kernel path.
    """
    with Lab() as lab:
        a, b, c = (lab.host(name) for name in "abc")
        lab.init_network()
        agents = {host.name: host.agent(*how, wait=False) for host, how in ((a, flags), (b, OFF))}
        for agent in agents.values():
            agent.wait_ready()
        wait_until(a.knows_a_peer, SOON, "a knows its peer")
        one, old = a.container("one"), b.container("old")
        one.run("ping", "-c2", "-i0.1", "-W2", old.address)
        with closing(Line(one, old.address, {"old": old})) as line:
            wait_until(lambda: sent_by_ebpf(a, line, flags), SOON, "eBPF sends it")
            found = [line.send()]
            agents["b"].stop()
            hand_over(lab, b, c)
            vtep = str(vtep_mac(IPv4Address(c.address), 1))
            wait_until(lambda: vtep in a.ip("neigh", "show", "nud", "permanent"), SOON, "a has been told")
            found.append(line.send())
            c.agent(*OFF)
            new = c.container("new", old.address)
            new.run("ping", "-c1", "-W2", str(c.gateway.ip))
            line.listen("new", new)
            found.append(line.send())
            wait_until(lambda: sent_by_ebpf(a, line, flags), SOON, "eBPF sends to the new node")
            found.append(line.send())
    assert found == [{"old": NUMBERS}, {}, {"new": NUMBERS}, {"new": NUMBERS}]


def sent_by_ebpf(host: Host, line: Line, flags: tuple[str, ...]) -> bool:
    """Whether the host's programs send a datagram; in vain where there are none."""
    if "off" in flags:
        return True
    key = ("from_container", "encap")
    before = host.counters().get(key, 0)
    line.send(1)
    return host.counters().get(key, 0) > before


def hand_over(lab: Lab, old: Host, new: Host) -> None:
    """The lease of one host becomes another's, as if it had been released and taken at once."""
    host = IPv4Address(new.address)
    with closing(open_store(lab.store_url)) as store:
        held = next(lease for lease in store.snapshot().leases if str(lease.host) == old.address)
        store.put(replace(held, host=host, node=new.name, vtep_mac=vtep_mac(host, 1)), held)
