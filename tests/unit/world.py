"""An agent with everything around it in memory: clock, kernel, store. Time passes as it is told to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ctl.agent.loop import Agent
from ctl.agent.mailbox import Mailbox
from ctl.agent.steps import NOTHING, Part
from ctl.core.abi import Event
from ctl.core.errors import AgentError, ConfigError, StoreError
from ctl.core.findings import Concern, Findings
from ctl.core.host import EVERYTHING, Change, Identity, Link, Uplink
from ctl.core.losing import Way
from ctl.core.model import Addresses, Lease, MacAddress, Network, Snapshot, Subnets
from ctl.core.ports import Holding
from ctl.core.report import LeaseReport
from ctl.core.wire import SubnetEnv
from ctl.settings.config import Settings, resolve
from ctl.store.memory import MemoryStore
from tests.unit.strategies import NETWORK as STRATEGY_NETWORK

# One subnet to choose from: always the same.
NETWORK = replace(STRATEGY_NETWORK, subnet_max=STRATEGY_NETWORK.subnet_min)
HOST = IPv4Address("10.0.0.1")
RESYNC = 60.0
LEASE_TTL, MARGIN = 1000.0, 400.0
DAY = 86_400.0
ETH0 = Link(2, "eth0", "", MacAddress(bytes(6)), 1500, True, 0, False, "", 0)


class Clock:
    """The wall clock: somebody may set it, by `ahead` seconds so far."""

    now = 1_000_000.0
    ahead = 0.0

    def __call__(self) -> float:
        return self.now + self.ahead

    def steady(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class FlakyStore(MemoryStore):
    """A store that can be taken away, and whose network can be spoilt."""

    away = ""
    bad_network = ""
    gone = False
    """Whether the network's config is."""
    stale: Snapshot | None = None
    """What a watch that hears too little would say; None: it hears all."""
    failures: Sequence[Exception] = ()
    """What the next calls fail with, in turn."""

    def read_network(self) -> Network | None:
        self._reach()
        if self.bad_network:
            raise ConfigError(self.bad_network)
        return None if self.gone else super().read_network()

    def snapshot(self, *, fresh: bool = False) -> Snapshot:
        self._reach()
        return self.stale if self.stale and not fresh else super().snapshot(fresh=fresh)

    def put(self, lease: Lease, expected: Lease | None) -> Lease:
        self._reach()
        return super().put(lease, expected)

    def _reach(self) -> None:
        if self.failures:
            failure, *self.failures = self.failures
            raise failure
        if self.away:
            raise StoreError(self.away)


class Watching:
    """Something to close, which may be closed again."""

    def close(self) -> None:
        pass


@dataclass
class MemoryKernel:
    """A host in memory: notes what it is asked, fails where it is told to."""

    identity: Identity
    clock: Clock
    findings: Findings = field(default_factory=lambda: Findings(Uplink(ETH0, HOST), 1450, program="feed"))
    previous: Subnets | None = None
    calls: list[Part] = field(default_factory=list)
    """Every part that was asked for."""
    told: list[frozenset[Change]] = field(default_factory=list)
    """Why the peers were looked at, each time."""
    failing: dict[str, Exception] = field(default_factory=dict)
    """By part, or by method of Events."""
    adds: dict[Part, frozenset[Change]] = field(default_factory=dict)
    """What a part says has to be looked at, the next time that it is asked."""
    moved: Identity | None = None
    """What the node is to publish because the uplink is another one."""
    routed: list[tuple[IPv4Network, ...]] = field(default_factory=list)
    """Subnets of the leases, each time that the peers were looked at."""
    networks: list[Network] = field(default_factory=list)
    """What it was told to be from then on."""
    fenced: bool = False
    """As told last."""
    cost: float = 0.0
    """Seconds that a look at the ports takes."""
    spent: float = 0.0
    """Seconds that they have taken so far."""
    whole: bool = True
    """Whether nothing has ended without a word."""
    dropped: list[Event] = field(default_factory=list)
    lost_packets: dict[Way, str] = field(default_factory=dict)
    looks_in: float = math.inf

    def preflight(self, network: Network) -> tuple[Identity, Subnets | None]:
        return replace(self.identity, vni=network.vni), self.previous

    def find_uplink(self, addresses: Addresses) -> None:
        self._raise("find_uplink")
        self.identity = replace(self.identity, host=addresses.ipv4 or self.identity.host)

    def follow_network(self, network: Network) -> None:
        self._raise("follow_network")
        self.networks.append(network)

    def follow_uplink(self) -> Identity | None:
        self._take(Part.UPLINK)
        moved, self.moved = self.moved, None
        return moved

    def reconcile_devices(self, holding: Holding) -> frozenset[Change]:
        self.fenced = holding.fenced
        return self._take(Part.DEVICES)

    def reconcile_peers(self, holding: Holding, leases: Sequence[Lease], changes: frozenset[Change]) -> None:
        self.told.append(changes)
        self.routed.append(tuple(lease.subnet for lease in leases))
        self._take(Part.PEERS)

    def reconcile_firewall(self, holding: Holding) -> None:
        self._take(Part.FIREWALL)

    def load_programs(self, holding: Holding) -> frozenset[Change]:
        return self._take(Part.PROGRAMS)

    def reconcile_ports(self, holding: Holding, changes: frozenset[Change]) -> None:
        self.clock.now += self.cost
        self.spent += self.cost
        self._take(Part.PORTS)

    def watch(self, changed: Callable[[frozenset[Change]], None]) -> Watching:
        return Watching()

    def lost(self) -> frozenset[Change]:
        self._raise("lost")
        return frozenset() if self.whole else frozenset({Change.PEERS})

    def drops(self) -> Iterable[Event]:
        self._raise("drops")
        dropped, self.dropped = self.dropped, []
        return dropped

    def look_in(self) -> float:
        return self.looks_in

    def losing(self) -> Mapping[Way, str]:
        self._raise("losing")
        return self.lost_packets

    def _take(self, part: Part) -> frozenset[Change]:
        self.calls.append(part)
        self._raise(part)
        return self.adds.pop(part, NOTHING)

    def _raise(self, name: str) -> None:
        if name in self.failing:
            raise self.failing[name]


KERNEL_PARTS = tuple(part for part in Part if part is not Part.STORE)


class Claims:
    """Who serves this network namespace: in a test nobody but the test's own agents."""

    held = False

    def take(self) -> Claims:
        if self.held:
            raise AgentError("another agent runs here")
        self.held = True
        return self

    def close(self) -> None:
        self.held = False


class MemoryRuntimes:
    """Container runtimes that remember what they were told, and fail where they are told to."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.failure: AgentError | None = None

    def admit(self, env: SubnetEnv) -> None:
        self._hear(f"{env.subnet} {env.mtu}")

    def refuse(self) -> None:
        self._hear("no more")

    def _hear(self, word: str) -> None:
        self.told.append(word)
        if self.failure:
            raise self.failure


class Posts(Mailbox):
    """A mailbox at which the clock goes on while nothing is posted. What threads post is not heard of."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self.waits: list[float] = []
        """Seconds of each wait so far."""
        self.until = float("inf")
        """When the agent is told to stop."""
        self.turns = 1000
        """More waits than that are a spinning loop."""
        self.said: Callable[[], frozenset[Change] | None] = lambda: None
        """What is posted, asked once for each wait."""

    def begin(self, until: float, turns: int) -> None:
        self.waits.clear()
        self.stopped, self.until, self.turns = False, until, turns

    def take(self, timeout: float) -> frozenset[Change]:
        self.waits.append(timeout)
        assert len(self.waits) <= self.turns, f"{len(self.waits)} turns: the loop spins"
        posted = self.said() or NOTHING
        self._clock.now += 0.001 if posted else max(timeout, 0.001)
        self.stopped |= self._clock.now >= self.until
        return posted


def made(
    settings: Settings,
    store: MemoryStore,
    kernel: MemoryKernel,
    claims: Claims,
    runtimes: MemoryRuntimes | None = None,
) -> Agent:
    """An agent by the kernel's clock."""
    clock = kernel.clock
    return Agent(
        settings,
        store,
        kernel,
        kernel,
        hold=claims.take,
        mailbox=Posts(clock),
        clock=clock,
        steady=clock.steady,
        sleep=clock.sleep,
        say=lambda _: None,
        runtimes=runtimes,
    )


def quiet() -> None:
    """Nothing is posted."""


@dataclass
class World:
    """An agent that has its lease, and what it believes to be the world."""

    settings: Settings
    agent: Agent
    kernel: MemoryKernel
    store: FlakyStore
    clock: Clock
    claims: Claims
    runtimes: MemoryRuntimes

    def full(self) -> None:
        """A pass over everything."""
        self.agent.reconcile(EVERYTHING)

    def part(self, *changes: Change) -> None:
        """A pass over what an event named."""
        self.agent.reconcile(frozenset(changes))

    def read_store(self) -> None:
        """A pass because the store has changed."""
        self.part(Change.LEASES)

    @property
    def report(self) -> Any:
        return self.agent.report

    @property
    def lease(self) -> LeaseReport:
        """Our lease, as the report has it."""
        found: LeaseReport = self.report.lease
        return found

    @property
    def left(self) -> float:
        """Seconds that our lease has left, by the wall clock."""
        assert self.lease.expires_at is not None
        return self.lease.expires_at - self.clock()

    def stored(self) -> Lease:
        """Our lease, as the store has it."""
        (found,) = (lease for lease in self.store.snapshot().leases if lease.host == HOST)
        return found

    def passes(self) -> int:
        return int(self.report.reconcile.ok + self.report.reconcile.failed) if self.report else 0

    def resyncs(self) -> int:
        """How often everything was looked at since the calls were last cleared."""
        return self.kernel.calls.count(Part.UPLINK)

    def problem(self, concern: Concern) -> tuple[str, ...]:
        return self.kernel.findings.problems.get(concern, ())

    def peers(self, *numbers: int) -> list[Lease]:
        """Leases of other nodes, put into the store."""
        return [
            self.store.put(
                Lease(IPv4Network(f"172.17.{n}.0/24"), IPv4Address(f"10.0.1.{n}"), node=f"n{n}"), None
            )
            for n in numbers
        ]

    def run(
        self, seconds: float, *, turns: int = 5000, each: Callable[[], frozenset[Change] | None] = quiet
    ) -> int:
        """The loop for that long by its own clock, in no time; how often it turned.

        `each` is called at every turn; what it returns is posted. More than `turns` of them are a
        spinning loop.
        """
        posts = self.agent.mailbox
        assert isinstance(posts, Posts)
        posts.begin(self.clock.now + seconds, turns)
        posts.said = each
        self.agent.run()
        return len(posts.waits)


def new_world(directory: Path, *, resync: float = RESYNC) -> World:
    """An agent that has its lease and has not looked at anything yet."""
    settings = replace(
        resolve(SimpleNamespace(), {}, None, hostname="a"),  # type: ignore[arg-type]
        store="memory:",
        state_dir=directory,
        subnet_file=directory / "subnet.env",
        resync_interval=resync,
        lease_ttl=LEASE_TTL,
        subnet_lease_renew_margin=MARGIN / 60,
    )
    clock, claims = Clock(), Claims()
    store = FlakyStore(clock)
    kernel = MemoryKernel(Identity(HOST, MacAddress(b"\2\0" + HOST.packed), 1, "a"), clock)
    store.write_network(NETWORK)
    runtimes = MemoryRuntimes()
    agent = made(settings, store, kernel, claims, runtimes)
    assert agent.start()
    return World(settings, agent, kernel, store, clock, claims, runtimes)
