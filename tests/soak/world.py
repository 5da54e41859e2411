"""The world of a soak: three nodes, a real etcd, simulated peers, and what happens to them.

    a, b   nodes whose agents run from the first second to the last: they are measured
    c      a node whose agent is stopped, killed and started again
    etcd   on a host of its own, killed, frozen, cut off and compacted

Streams of numbered datagrams go between containers of a, b and c that stay. Others come and
go, as do peers, which exist as leases only.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import IPv4Interface
from pathlib import Path

from ctl.core.model import Lease, MacAddress
from tests.etcd import Etcd
from tests.etcd_load import Load, lease
from tests.hooks import detach
from tests.host import METRICS_PORT, Agent, Host
from tests.lab import Container, Lab
from tests.process import CommandFailed, wait_until
from tests.soak import sample
from tests.stream import UdpStream

RATE = 200
"""Datagrams a second on each path."""
PEERS = 200
"""Simulated peers that are always there; a fifth of them comes, changes and goes besides."""
MOVING = PEERS // 5
FLOWS_MAX = 1024
"""Small, so that the map is full for most of the time, too."""
SETTLE_SECONDS = 300.0
"""The longest back-off (30 s, jitter) and a resync, on a machine that has much else to do."""


@dataclass
class Account:
    """What became of the datagrams of all streams that have ended."""

    sent: int = 0
    received: int = 0
    duplicates: int = 0
    late: int = 0
    overflows: int = 0
    """Dropped at a receiver's own socket: a reader that the machine left without CPU."""
    longest_gap_ms: float = 0.0

    @property
    def lost(self) -> int:
        """By the network."""
        return self.sent - self.received - self.overflows


@dataclass
class World:
    """Built by `build`; one thread's."""

    lab: Lab
    etcd: Etcd
    nodes: dict[str, Host]
    agents: dict[str, Agent]
    containers: dict[str, Container]
    pick: random.Random
    account: Account = field(default_factory=Account)
    events: dict[str, int] = field(default_factory=dict)
    streams: list[UdpStream] = field(default_factory=list)
    ports: itertools.cycle[int] = field(default_factory=lambda: itertools.cycle(range(9000, 9100)))
    bag: list[str] = field(default_factory=list)
    seconds: float = 1.0
    """How long a fault lasts."""

    # --- Traffic ---------------------------------------------------------------

    def start_streams(self) -> None:
        """A new stream on each path; the old ones end when these run, so that no second is without."""
        old, self.streams = self.streams, []
        for source, sink in itertools.permutations(self.containers.values(), 2):
            stream = UdpStream(source, sink, sink.address, port=next(self.ports), rate=RATE)
            self.streams.append(stream)
        for stream in old:
            self.end(stream)

    def end(self, stream: UdpStream) -> None:
        """Stop it and enter what became of its datagrams into the account."""
        overflows = _overflows(stream)
        sent, tally = stream.finish()
        account = self.account
        account.sent += sent
        account.received += tally.received
        account.duplicates += tally.duplicates
        account.late += tally.late
        account.overflows += overflows
        account.longest_gap_ms = max(account.longest_gap_ms, tally.longest_gap_ms)

    # --- Churn -----------------------------------------------------------------

    def in_store(self, work: Callable[[Load], None]) -> None:
        """Write leases from the store's own namespace: that goes on while others are cut off."""

        def write() -> None:
            load = Load(self.etcd.url)
            try:
                work(load)
            finally:
                load.close()

        assert self.etcd.place is not None
        self.etcd.place.call(write)

    def move_peers(self, join: bool) -> None:
        """Some peers join and others get another MAC; or the ones that joined leave."""
        moving = list(map(lease, range(PEERS, PEERS + MOVING)))

        def work(load: Load) -> None:
            if join:
                load.put(*moving)
                load.put(*(self.another_mac(number) for number in self.pick.sample(range(PEERS), MOVING)))
            else:
                load.delete(*moving)

        self.in_store(work)

    def another_mac(self, number: int) -> Lease:
        return replace(lease(number), vtep_mac=MacAddress(b"\x02" + self.pick.randbytes(5)))

    def churn_containers(self) -> None:
        """A few on each node: made, pinged from another node, removed."""
        for (name, host), target in zip(
            self.nodes.items(), reversed(list(self.containers.values())), strict=True
        ):
            address = host.gateway.ip + self.pick.randrange(50, 250)
            interface = IPv4Interface((address, 24))
            # Not the host's list nor the lab's: they would grow for hours.
            made = Container(self.lab, host, f"x{name}", interface, host.gateway.ip)
            try:
                made.run("ping", "-c2", "-i0.05", "-W1", target.address, check=False)
            finally:
                made.remove()

    def scrape(self) -> None:
        for host in self.nodes.values():
            with contextlib.suppress(OSError):  # of a node whose agent is down
                host.http(f"http://127.0.0.1:{METRICS_PORT}/metrics")

    # --- Faults ----------------------------------------------------------------

    def fault(self) -> str:
        """Do the next one of the bag, and undo it; its name."""
        faults: dict[str, Callable[[], None]] = {
            "nothing": lambda: None,
            "etcd killed": self.etcd_killed,
            "etcd cut off": self.etcd_cut_off,
            "etcd frozen": self.etcd_frozen,
            "etcd compacted": self.etcd_compacted,
            "agent stopped": partial(self.agent_ended, signal.SIGTERM),
            "agent killed": partial(self.agent_ended, signal.SIGKILL),
            "nft flushed": self.nft_flushed,
            "filters removed": self.filters_removed,
            "routes flushed": self.routes_flushed,
        }
        if not self.bag:
            self.bag = list(faults)
            self.pick.shuffle(self.bag)
        name = self.bag.pop()
        self.events[name] = self.events.get(name, 0) + 1
        faults[name]()
        return name

    def while_broken(self) -> None:
        """What goes on meanwhile."""
        self.churn_containers()
        time.sleep(self.seconds)  # a duration, not a condition

    def etcd_killed(self) -> None:
        (member,) = self.etcd.members
        member.kill()
        self.while_broken()
        member.start()
        wait_until(member.healthy, SETTLE_SECONDS, "etcd answers again")

    def etcd_cut_off(self) -> None:
        self.lab.wire.ip("link", "set", "etcd", "down")
        self.while_broken()
        self.lab.wire.ip("link", "set", "etcd", "up")

    def etcd_frozen(self) -> None:
        (member,) = self.etcd.members
        member.signal(signal.SIGSTOP)
        self.while_broken()
        member.signal(signal.SIGCONT)

    def etcd_compacted(self) -> None:
        self.lab.wire.ip("link", "set", "etcd", "down")
        self.in_store(lambda load: load.put(*(self.another_mac(number) for number in range(MOVING))))
        self.etcd.ctl("compact", str(self.etcd.revision()))
        self.while_broken()
        self.lab.wire.ip("link", "set", "etcd", "up")

    def agent_ended(self, number: int) -> None:
        agent = self.agents["c"]
        agent.kill(number)
        if number == signal.SIGTERM:
            agent.wait(60)
        self.while_broken()
        self.start_agent("c")

    def start_agent(self, name: str) -> None:
        agent = self.nodes[name].agent("--flows-max", str(FLOWS_MAX), wait=False)
        agent.wait_ready(SETTLE_SECONDS)
        self.agents[name] = agent

    def nft_flushed(self) -> None:
        self._somewhere().nft("flush table ip ovnet\n")

    def filters_removed(self) -> None:
        detach(self._somewhere(), "ovnet.1")

    def routes_flushed(self) -> None:
        self._somewhere().ip("route", "flush", "proto", "147")

    def _somewhere(self) -> Host:
        return self.pick.choice([self.nodes["a"], self.nodes["b"]])

    # --- A round ---------------------------------------------------------------

    def round(self, seconds: float) -> str:
        """Churn, a fault that lasts `seconds`, back to the state in which samples are taken; the fault."""
        self.seconds = seconds
        self.start_streams()
        self.move_peers(join=True)
        self.churn_containers()
        fault = self.fault()
        self.move_peers(join=False)
        self.scrape()
        wait_until(self.settled, SETTLE_SECONDS, self.state, every=0.2)
        return fault

    def settled(self) -> bool:
        """Whether all nodes have what they should."""
        for name, host in self.nodes.items():
            fill = sample.fill(host)
            peers = PEERS + len(self.nodes) - 1
            if [fill[f"map_{map_}"] for map_ in ("peers", "peer_stats", "endpoints")] != [peers, peers, 1]:
                return False
            status = host.status()
            if not status["ready"] or not status["store"]["up"] or status["problems"]:
                return False
            assert self.agents[name].poll() is None, f"agent of {name} ended\n{self.agents[name].log()}"
        return all(_whole(host) for host in self.nodes.values())

    def state(self) -> str:
        lines = [f"{name}: {sample.fill(host)} {host.status()}" for name, host in self.nodes.items()]
        return "\n".join(["the world is as before", *lines])

    def sample(self) -> dict[str, float]:
        """Of all nodes; the process of a and b only."""
        found: dict[str, float] = {}
        for name, host in self.nodes.items():
            found |= sample.node(host, None if name == "c" else self.agents[name])
        return found


def _overflows(stream: UdpStream) -> int:
    """What the sink's socket had no room for (the last column of /proc/net/udp)."""
    lines = Path(f"/proc/{stream.sink.pid}/net/udp").read_text().splitlines()[1:]
    port = int(stream.command[-2])
    return sum(int(line.split()[-1]) for line in lines if line.split()[1].endswith(f":{port:04X}"))


def _whole(host: Host) -> bool:
    """Whether what a fault took away is back."""
    found = sample.kernel(host)
    return (
        found["routes"] == found["neighbours"] == found["fdb"] == PEERS + 2
        and found["filters"] == 4
        and "masquerade" in host.run("nft", "list", "table", "ip", "ovnet", check=False).stdout
    )


def build(lab: Lab, seed: int) -> World:
    """Nodes, etcd and peers, all settled; nothing has happened yet."""
    etcd = lab.etcd()
    lab.init_network("10.0.0.0/8", 24, "--subnet-min", "10.200.0.0")
    nodes = {name: lab.host(name) for name in "abc"}
    for host in nodes.values():
        host.ip("route", "add", "default", "via", "192.168.77.254")
    world = World(lab, etcd, nodes, {}, {}, random.Random(seed))
    world.in_store(lambda load: load.fill(PEERS))
    for name, host in nodes.items():
        world.start_agent(name)
        world.containers[name] = host.container("one")
    for source, sink in itertools.permutations(world.containers.values(), 2):
        wait_until(partial(_reaches, source, sink), 60, f"{source.netns} reaches {sink.address}")
    return world


def _reaches(source: Container, sink: Container) -> bool:
    try:
        source.run("ping", "-c1", "-W1", sink.address)
    except CommandFailed:
        return False
    return True
