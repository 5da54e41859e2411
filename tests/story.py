"""One network on etcd, four ways between its hosts, one after the other; the containers stay.

What travels on the underlay is taken from the wire: tcpdump on host a's cable. Kernel and
eBPF send the same VXLAN, so these two are told apart on the vxlan device, by which the
kernel sends and receives, and by the programs' counters.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from tests import packets
from tests.capture import Capture, Carried
from tests.host import Agent, Container
from tests.lab import Lab, wait_until
from tests.screen import expect, show, tell
from tests.stream import TcpSink, UdpStream, tcp_send

NETWORK = ("10.77.0.0/16", 24)
PINGS = 5
PORT = 9100
MEGABYTE = 1_000_000


class Story:
    """The steps; each ends with what was on the wire meanwhile."""

    one: Container
    two: Container
    stream: UdpStream
    sink: TcpSink

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.etcd = lab.etcd()
        self.a, self.b = lab.host("a"), lab.host("b")
        self.agents: dict[str, Agent] = {}

    def udp(self) -> None:
        """Backend udp: through user space. It works, slowly."""
        self._switch("--backend", "udp")
        self.one, self.two = self.a.container("one"), self.b.container("two")
        self.sink = TcpSink(self.two, PORT)
        self.stream = UdpStream(self.one, self.two, self.two.address, rate=200)
        self._expect_on_wire("udp", "bare IPv4 packets in UDP, port 8285")
        self._speed(30 * MEGABYTE)

    def kernel(self) -> None:
        """Backend vxlan, by the kernel alone."""
        self._switch("--backend", "vxlan", flags=("--bypass=off",))
        before = self.a.bypassed()[0]
        device = self._expect_on_wire("vxlan 1", "VXLAN of VNI 1, port 8472", device="ovnet.1")
        expect(pings(device) == 2 * PINGS, f"all {2 * PINGS} went through the kernel's vxlan device")
        expect(self.a.bypassed()[0] == before, "and eBPF carried none")
        self._speed(200 * MEGABYTE)

    def ebpf(self) -> None:
        """Backend vxlan with eBPF."""
        self._restart()
        before = self.a.bypassed()[0]
        device = self._expect_on_wire("vxlan 1", "VXLAN of VNI 1, port 8472", device="ovnet.1")
        through, carried = pings(device), self.a.bypassed()[0] - before
        expect(
            0 < through < 2 * PINGS,
            f"{through} of {2 * PINGS} went through the vxlan device, for approval",
        )
        expect(carried > len(device), f"eBPF carried {carried} packets, the vxlan device {len(device)}")
        self._speed(200 * MEGABYTE)

    def host_gw(self) -> None:
        """Backend host-gw: plain routes."""
        self._switch("--backend", "host-gw")
        self._expect_on_wire("plain", "the containers' own packets, nothing around them")
        self._speed(200 * MEGABYTE)

    def same_containers(self) -> None:
        """Nobody in the containers had to notice."""
        sent, tally = self.stream.finish()
        tell(f"one sender to one receiver all the time: {tally.received} of {sent} datagrams arrived")
        expect(tally.sources == (self.one.address,), f"all from {self.one.address}")
        expect(len(self.sink.ends()) == 8, "and one server took all connections")
        self.sink.stop()

    def steps(self) -> Iterator[Callable[[], None]]:
        """The story's order."""
        yield from (self.udp, self.kernel, self.ebpf, self.host_gw, self.same_containers)

    # --- What the operator does -----------------------------------------------------------

    def _switch(self, *network: str, flags: Sequence[str] = ()) -> None:
        """Stop the agents, store another network, start them again."""
        force = ["--force"] if self.agents else []
        self._stop()
        self.lab.init_network(*NETWORK, *network, *force)
        show("etcd", shlex.join(["ovctl", "network", "init", "--network", NETWORK[0], *network, *force]), "")
        self._start(flags)

    def _restart(self, *flags: str) -> None:
        self._stop()
        self._start(flags)

    def _stop(self) -> None:
        for agent in self.agents.values():
            agent.stop()

    def _start(self, flags: Sequence[str]) -> None:
        """Both agents; their hosts' subnets stay what they were."""
        before = {host.name: host.gateway for host in (self.a, self.b) if self.agents}
        for host in (self.a, self.b):
            self.agents[host.name] = host.agent(*flags)
            show(host.name, shlex.join(["ovctl", "agent", "--store", self.etcd.url, *flags]) + " &", "")
        for host in (self.a, self.b):
            assert before.get(host.name, host.gateway) == host.gateway

    # --- What is to be seen ---------------------------------------------------------------

    def _expect_on_wire(self, carrier: str, words: str, device: str = "") -> list[Carried]:
        """Traffic of the containers, all of it on the wire in this and nothing else.

        Returns what went through host a's `device` meanwhile.
        """
        self.stream.advance(1)  # it flows again
        wire = Capture(self.lab.wire, self.a.name, self.lab.dir / f"wire-{carrier}-{device}.pcap")
        inside = Capture(self.a, device, self.lab.dir / f"{device}.pcap") if device else None
        tcp_send(self.one, self.two.address, MEGABYTE, port=PORT)
        self.one.run("ping", f"-c{PINGS}", "-i0.05", "-W2", self.two.address)
        wait_until(lambda: pings(self._between(wire)) >= 2 * PINGS, 10, "the pings are captured")
        for capture in (wire, inside):
            if capture:
                capture.stop()
        seen = self._between(wire)
        kinds = Counter(each.by for each in seen)
        expect(
            set(kinds) == {carrier}, f"on the wire: {kinds[carrier]} times {words}; nothing else of theirs"
        )
        expect(pings(seen) == 2 * PINGS, f"among them {PINGS} pings and their answers, once each")
        return self._between(inside) if inside else []

    def _between(self, capture: Capture) -> list[Carried]:
        return capture.between(self.one.address, self.two.address)

    def _speed(self, size: int) -> None:
        took = tcp_send(self.one, self.two.address, size, port=PORT)
        seconds = (took["send_ms"] + took["close_ms"]) / 1e3
        tell(f"TCP, one connection: {size * 8 / seconds / 1e9:.2f} Gbit/s")


def pings(seen: Sequence[Carried]) -> int:
    """Echo requests and replies."""
    return sum(each.inner.proto == packets.ICMP for each in seen)
