"""The agent's loop with everything around it faked: clock, kernel, store."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ctl.agent.loop import FAILING_GAP_S, MIN_GAP_S, TICK_S, Agent
from ctl.agent.mailbox import Signal
from ctl.backend.site import Site
from ctl.cluster.membership import HOLD_S
from ctl.core.errors import (
    AgentError,
    ConfigError,
    KernelError,
    LeaseConflict,
    StoreAway,
    StoreDenied,
    StoreError,
)
from ctl.core.findings import Findings
from ctl.core.host import EVERYTHING, Change, Devices, Identity, Link, Uplink
from ctl.core.model import Lease, MacAddress, Network, Snapshot
from ctl.core.report import health, readiness
from ctl.kernel.netlink.monitor import Monitor
from ctl.node.node import Node
from ctl.process.backoff import BACK_OFF_MAX_S, BACK_OFF_MIN_S
from ctl.settings.config import Settings, resolve
from ctl.store.memory import MemoryStore
from tests.unit.strategies import NETWORK as STRATEGY_NETWORK

# One subnet to choose from: always the same.
NETWORK = replace(STRATEGY_NETWORK, subnet_max=STRATEGY_NETWORK.subnet_min)
HOST = IPv4Address("10.0.0.1")
RESYNC = 60.0
LEASE_TTL, MARGIN = 1000.0, 400.0
UPLINK = Link(2, "eth0", "", MacAddress(bytes(6)), 1500, True, 0, False, "", 0)
NO_CHANGES: frozenset[Change] = frozenset()


class Clock:
    """The wall clock: somebody may set it, by `ahead` seconds so far."""

    now = 1_000_000.0
    ahead = 0.0

    def __call__(self) -> float:
        return self.now + self.ahead

    def steady(self) -> float:
        return self.now


class FlakyStore(MemoryStore):
    """A store that can be taken away, and whose network can be spoilt."""

    away = ""
    bad_network = ""
    gone = False
    """Whether the network's config is."""
    stale: Snapshot | None = None
    """What a watch that hears too little would say; None: it hears all."""

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
        if self.away:
            raise StoreError(self.away)


@dataclass
class FakeKernel:
    """A Node and its Backend in one: notes what it is asked, fails where it is told to."""

    settings: Settings
    findings: Findings = field(default_factory=lambda: Findings(program="feed"))
    uplink: Uplink = field(default_factory=lambda: Uplink(UPLINK, HOST))
    bridge: int = 3
    mtu: int = 1450
    device: int = 4
    takeover: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(subnet=None))
    maps: SimpleNamespace | None = None

    overhead: int = 50
    whole: bool = True
    fenced: bool = False
    calls: list[str] = field(default_factory=list)
    failing: dict[str, Exception] = field(default_factory=dict)
    """By step."""
    routed: list[tuple[IPv4Network, ...]] = field(default_factory=list)
    """Subnets of the leases of each `reconcile_peers`."""

    @property
    def backend(self) -> FakeKernel:
        return self

    def devices(self) -> Devices:
        return Devices(self.device, hops=frozenset({self.uplink.link.ifindex}))

    def preflight(self, network: object) -> FakeKernel:
        return self

    def identity(self, network: Network) -> Identity:
        host = self.uplink.address
        return Identity(host, MacAddress(b"\2\0" + host.packed), network.vni, self.settings.node_name)

    def refresh_uplink(self) -> bool:
        self._step("refresh_uplink")
        return False

    def site(self, network: Network, lease: Lease) -> Site:
        return Site(network, lease, self.uplink, self.mtu, self.bridge, Path("/nowhere"))

    def reconcile_devices(self, network: Network, lease: Lease) -> None:
        self._step("reconcile_devices")

    def reconcile_firewall(self, network: Network, lease: Lease) -> None:
        self._step("reconcile_firewall")

    def reconcile_peers(self, site: Site, leases: Sequence[Lease], changes: frozenset[Change]) -> None:
        self.routed.append(tuple(lease.subnet for lease in leases))
        self._step("reconcile_peers")

    def load(self, site: Site) -> frozenset[Change]:
        self._step("load")
        return frozenset()

    def reconcile_ports(self, site: Site, changes: frozenset[Change]) -> None:
        self._step("reconcile_ports")

    def lost(self) -> frozenset[Change]:
        if "lost" in self.failing:
            raise self.failing["lost"]
        return frozenset() if self.whole else frozenset({Change.PEERS})

    def _step(self, name: str) -> None:
        self.calls.append(name)
        if name in self.failing:
            raise self.failing[name]


STEPS = (
    "refresh_uplink",
    "reconcile_devices",
    "reconcile_peers",
    "reconcile_firewall",
    "load",
    "reconcile_ports",
)


@dataclass
class World:
    """An agent that has its lease, and what it believes to be the world."""

    agent: Agent
    kernel: FakeKernel
    store: FlakyStore
    clock: Clock
    patch: pytest.MonkeyPatch

    def full(self) -> None:
        """A pass over everything."""
        self.agent._reconcile(EVERYTHING, True, full=True)

    def part(self, *changes: Change) -> None:
        """A pass over what an event named."""
        self.agent._reconcile(frozenset(changes), False, full=False)

    def read_store(self) -> None:
        """A pass because the store has changed."""
        self.agent._reconcile(NO_CHANGES, True, full=False)

    @property
    def report(self) -> Any:
        return self.agent.report

    def passes(self) -> int:
        return int(self.report.reconcile.ok + self.report.reconcile.failed)

    def problem(self, part: str) -> tuple[str, ...]:
        return self.kernel.findings.problems.get(part, ())

    def peers(self, *numbers: int) -> list[Lease]:
        """Leases of other nodes, put into the store."""
        return [
            self.store.put(
                Lease(IPv4Network(f"172.17.{n}.0/24"), IPv4Address(f"10.0.1.{n}"), node=f"n{n}"), None
            )
            for n in numbers
        ]

    def run(self, seconds: float, *, turns: int = 5000, each: Callable[[], object] = lambda: None) -> int:
        """The loop for that long by its own clock, in no time; how often it turned.

        `each` is called at every turn; if it returns True, the store says that it has changed.
        More than `turns` of them are a spinning loop.
        """
        end, turned = self.clock.now + seconds, 0

        def take(timeout: float) -> tuple[frozenset[Change], frozenset[Signal]]:
            nonlocal turned
            turned += 1
            assert turned <= turns, f"{turned} turns, {self.passes()} passes: the loop spins"
            self.clock.now += max(timeout, 0.001)
            said = frozenset({Signal.STORE} if each() is True else ())
            return NO_CHANGES, said | frozenset({Signal.STOP} if self.clock.now >= end else ())

        with self.patch.context() as patch:
            patch.setattr(self.agent.mailbox, "take", take)
            self.agent._loop(cast(Monitor, SimpleNamespace(watch=lambda *_: None)))
        return turned


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


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    settings = replace(
        resolve(SimpleNamespace(), {}, None, hostname="a"),  # type: ignore[arg-type]
        store="memory:",
        state_dir=tmp_path,
        subnet_file=tmp_path / "subnet.env",
        resync_interval=RESYNC,
        lease_ttl=LEASE_TTL,
        subnet_lease_renew_margin=MARGIN / 60,
    )
    monkeypatch.setattr("ctl.agent.loop.claim_namespace", Claims().take)
    clock = Clock()
    store, kernel = FlakyStore(clock), FakeKernel(settings)
    store.write_network(NETWORK)
    agent = Agent(settings, store, cast(Node, kernel), clock=clock, steady=clock.steady, say=lambda _: None)
    assert agent.start()
    return World(agent, kernel, store, clock, monkeypatch)


def own(world: World) -> Lease:
    return world.agent._joined.lease


# --- Time ------------------------------------------------------------------------


def test_an_idle_agent_resyncs_and_ticks(world: World) -> None:
    turned = world.run(10 * RESYNC)
    assert 10 <= world.passes() <= 12
    assert turned <= 10 * RESYNC / TICK_S + 20


def test_a_renewal_that_is_due_while_the_store_is_away_does_not_spin(world: World) -> None:
    world.run(RESYNC)
    world.store.away = "store is away"
    world.clock.now = own(world).expires_at - MARGIN + 1  # type: ignore[operator]
    before, seconds = world.passes(), 20 * BACK_OFF_MAX_S
    world.run(seconds)
    # 0.5, 1, 2 ... 30 s, each at three quarters at the least, and the resyncs.
    assert world.passes() - before <= 8 + seconds / (0.75 * BACK_OFF_MAX_S) + seconds / RESYNC


def test_a_lease_is_renewed_when_the_store_is_back(world: World) -> None:
    world.run(RESYNC)
    world.store.away = "store is away"
    world.clock.now = own(world).expires_at - MARGIN + 1  # type: ignore[operator]
    world.run(RESYNC)
    world.store.away = ""
    world.run(2 * BACK_OFF_MAX_S)
    left = own(world).expires_at - world.clock.now  # type: ignore[operator]
    assert left > LEASE_TTL - 3 * BACK_OFF_MAX_S
    assert world.report.store.up
    assert world.report.reconcile.back_off == 0


def test_a_lease_is_renewed_in_time_again_and_again(world: World) -> None:
    shortest = [LEASE_TTL]

    def look() -> None:
        shortest[0] = min(shortest[0], own(world).expires_at - world.clock.now)  # type: ignore[operator]

    turned = world.run(10 * LEASE_TTL, each=look)
    assert shortest[0] > MARGIN - 2 * TICK_S
    assert turned < 10 * LEASE_TTL / TICK_S * 1.3


def test_a_conflict_does_not_spin(world: World) -> None:
    world.run(RESYNC)
    held = own(world)
    world.store.put(replace(held, host=IPv4Address("10.9.9.9"), node="thief", expires_at=None), held)
    before = world.passes()
    world.run(LEASE_TTL)
    assert world.passes() - before <= LEASE_TTL / RESYNC + 3
    assert "10.9.9.9" in world.report.lease.conflict


def test_an_uplink_without_its_address_does_not_spin_and_keeps_the_lease(world: World) -> None:
    world.run(RESYNC)
    world.kernel.failing["refresh_uplink"] = AgentError("eth0 has no IPv4 address")
    before, seconds = world.passes(), 2 * LEASE_TTL
    world.run(seconds)
    assert world.passes() - before <= 8 + seconds / (0.75 * BACK_OFF_MAX_S) + seconds / RESYNC
    assert own(world).expires_at > world.clock.now  # type: ignore[operator]
    assert "eth0 has no IPv4 address" in world.report.reconcile.error


DAY = 86_400.0


@pytest.mark.parametrize("jumps", [(-DAY,), (DAY,), (-DAY, DAY), (DAY, -DAY), (LEASE_TTL / 2,), (5.0, -5.0)])
def test_a_clock_that_is_set_costs_no_lease_no_peer_and_no_rest(
    world: World, jumps: tuple[float, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """A day is more than the life of every lease here; the store judges by the wall clock."""
    peers = world.peers(10, 20, 30)
    for lease in peers:
        world.store.put(replace(lease, expires_at=world.clock() + LEASE_TTL), lease)
    world.run(RESYNC)
    before, subnet, start = world.passes(), own(world).subnet, world.clock.now
    pending = [(start + (2 * n + 0.5) * RESYNC, jump) for n, jump in enumerate(jumps)]
    world.kernel.routed.clear()

    def set_clock() -> None:
        if pending and world.clock.now >= pending[0][0]:
            world.clock.ahead += pending.pop(0)[1]
        # Their agents, on the same machine, notice a little later.
        mine = {lease.subnet for lease in world.store.snapshot().leases}
        if world.clock.now % (4 * TICK_S) < TICK_S:
            for lease in peers:
                if lease.subnet not in mine:
                    world.store.put(replace(lease, expires_at=world.clock() + LEASE_TTL), None)

    world.run(10 * RESYNC, each=set_clock)
    assert not pending
    assert world.passes() - before <= 10 + 3 * (1 + len(jumps)), "no hot loop"
    assert world.passes() - before >= 10, "the resync is not put off"
    for routed in world.kernel.routed:
        assert {lease.subnet for lease in peers} <= set(routed)
    left = own(world).expires_at - world.clock()  # type: ignore[operator]
    assert MARGIN <= left <= LEASE_TTL, "its end is by today's clock"
    assert own(world).subnet == subnet
    assert own(world) in world.store.snapshot().leases
    said = [record.getMessage() for record in caplog.records if "wall clock" in record.getMessage()]
    assert len(said) == len(jumps)


def test_a_retry_is_not_put_off_by_a_clock_set_back(world: World) -> None:
    world.kernel.failing["load"] = KernelError("no compiler")
    world.full()
    world.kernel.failing.clear()
    world.clock.ahead -= DAY
    assert world.agent._pause(world.clock.steady() + RESYNC) <= 1
    world.run(TICK_S)
    assert world.report.ready


def resyncs(world: World) -> int:
    """How often everything was looked at so far."""
    return world.kernel.calls.count("refresh_uplink")


@pytest.fixture
def rare(world: World) -> World:
    """An agent that has looked at everything, and will not again for a year."""
    world.agent._settings = replace(world.agent._settings, resync_interval=365 * DAY)
    world.run(1)
    world.kernel.calls.clear()
    return world


def looked_at_everything_but_at_the_start(world: World) -> int:
    return resyncs(world) - 1


def test_a_lease_that_leaves_costs_no_look_at_everything(rare: World) -> None:
    leases = rare.peers(10, 20, 30, 40, 50)
    rare.run(1)
    rare.kernel.calls.clear()
    begun = rare.clock.now

    def leave() -> bool:
        due = bool(leases) and rare.clock.now > begun + 10 * (6 - len(leases))
        if due:
            rare.store.delete(leases.pop())
        return due

    rare.run(100, each=leave)
    assert not leases
    assert rare.kernel.routed[-1] == (own(rare).subnet,), "they are gone"
    assert looked_at_everything_but_at_the_start(rare) == 0


def test_a_renewal_costs_no_look_at_everything(rare: World) -> None:
    rare.kernel.calls.clear()
    rare.run(2 * LEASE_TTL)
    assert own(rare).expires_at > rare.clock.now + MARGIN - TICK_S  # type: ignore[operator]
    assert looked_at_everything_but_at_the_start(rare) == 0


def test_a_store_that_stays_away_costs_no_look_at_everything(rare: World) -> None:
    rare.store.away = "store is away"
    rare.kernel.calls.clear()
    rare.run(10 * RESYNC)
    assert rare.report.reconcile.back_off == BACK_OFF_MAX_S
    rare.store.away = ""
    rare.run(2 * BACK_OFF_MAX_S)
    assert rare.report.store.up
    assert rare.report.reconcile.back_off == 0
    assert resyncs(rare) == 2, "when each loop starts"


def test_a_clock_that_is_set_costs_no_look_at_everything(rare: World) -> None:
    rare.kernel.calls.clear()
    jumps = iter([0.0, DAY])

    def set_clock() -> None:
        rare.clock.ahead += next(jumps, 0.0)

    rare.run(RESYNC, each=set_clock)
    assert own(rare).expires_at == pytest.approx(rare.clock() + LEASE_TTL, abs=2 * RESYNC)
    assert looked_at_everything_but_at_the_start(rare) == 0


def test_a_mass_removal_is_believed_no_sooner_by_a_clock_set_forward(world: World) -> None:
    leases = world.peers(*range(10, 30))
    world.full()
    for lease in leases:
        world.store.delete(lease)
    world.read_store()
    world.clock.ahead += DAY
    world.read_store()
    assert len(world.kernel.routed[-1]) >= 20


def test_a_process_of_ours_that_keeps_dying_is_looked_after_without_spinning(world: World) -> None:
    world.run(RESYNC)
    world.kernel.whole = False
    world.kernel.failing["reconcile_peers"] = KernelError("the forwarder does not start")
    before = world.passes()
    world.run(10 * RESYNC)
    assert world.passes() - before < 10 * RESYNC / TICK_S + 50
    del world.kernel.failing["reconcile_peers"]
    world.kernel.whole = True
    world.run(2 * BACK_OFF_MAX_S)
    assert world.report.reconcile.error == ""


def test_a_process_of_ours_that_dies_is_noticed_at_the_next_turn(world: World) -> None:
    world.run(RESYNC)
    world.kernel.calls.clear()
    alive = iter([True, False])

    def look() -> None:
        world.kernel.whole = next(alive, True)

    world.run(4 * TICK_S, each=look)
    assert world.kernel.calls.count("reconcile_peers") == 2, "when the loop starts, and for this"


def test_pause_is_as_long_as_the_next_thing_due_lets_it(world: World) -> None:
    world.full()
    now = world.clock.now
    assert world.agent._pause(now + RESYNC) == TICK_S
    assert world.agent._pause(now + 1) == 1
    world.clock.now = own(world).expires_at - MARGIN - 2  # type: ignore[operator]
    assert world.agent._pause(world.clock.now + RESYNC) == pytest.approx(2)
    assert world.agent._next_look_at_store() == pytest.approx(2)
    world.store.away = "store is away"
    world.clock.now += 3
    assert world.agent._next_look_at_store() <= 0
    world.agent._sync_store()
    assert world.agent._pause(world.clock.now + RESYNC) > 0.3, "until the back-off ends"
    assert world.agent._next_look_at_store() > 0


# --- The store --------------------------------------------------------------------


def test_peers_appear_and_disappear_with_their_leases(world: World) -> None:
    world.full()
    leases = world.peers(10, 20)
    world.read_store()
    assert set(world.kernel.routed[-1]) == {own(world).subnet, *(lease.subnet for lease in leases)}
    world.store.delete(leases[0])
    world.run(HOLD_S + 1)
    assert set(world.kernel.routed[-1]) == {own(world).subnet, leases[1].subnet}
    assert world.problem("mass removal") == ()


def test_a_lease_that_is_gone_for_a_moment_was_never_gone(world: World) -> None:
    """Its node lives, and claims again what a store has lost."""
    leases = world.peers(10, 20)
    world.full()
    everyone = set(world.kernel.routed[-1])
    world.store.delete(leases[0])
    before = world.passes()
    for _ in range(5):
        world.read_store()
        assert set(world.kernel.routed[-1]) == everyone
        world.clock.now += HOLD_S / 6
    world.peers(10)
    world.run(2 * HOLD_S)
    assert set(world.kernel.routed[-1]) == everyone
    assert world.passes() - before <= 7, "nothing is left to wait for"


@pytest.mark.parametrize("same", ["subnet", "host"])
def test_a_lease_that_another_takes_the_place_of_is_gone_at_once(world: World, same: str) -> None:
    (old,) = world.peers(10)
    world.full()
    world.store.delete(old)
    if same == "subnet":
        new = replace(old, host=IPv4Address("10.0.1.99"), node="n99")
    else:
        new = replace(old, subnet=IPv4Network("172.17.99.0/24"))
    new = world.store.put(new, None)
    world.read_store()
    assert set(world.kernel.routed[-1]) == {own(world).subnet, new.subnet}


def test_a_mass_removal_is_believed_only_when_it_lasts(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    leases = world.peers(*range(10, 30))
    world.full()
    everyone = set(world.kernel.routed[-1])
    for lease in leases:
        world.store.delete(lease)
    for _ in range(5):  # however often the store is read meanwhile
        world.read_store()
        assert set(world.kernel.routed[-1]) == everyone
        assert "20 of 21 leases are gone" in world.problem("mass removal")[0]
        world.clock.now += RESYNC / 6
    assert sum(record.levelno == logging.CRITICAL for record in caplog.records) == 1
    world.clock.now += RESYNC
    world.read_store()
    assert world.kernel.routed[-1] == (own(world).subnet,)
    assert world.problem("mass removal") == ()


@pytest.mark.parametrize("count", [1, 3])
def test_a_store_that_lost_our_lease_is_not_believed_about_the_others(
    world: World, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Restarted with its data lost, say: few leases are no mass, and each node claims its own again."""
    peers = world.peers(*range(10, 10 + count))
    world.full()
    for lease in (*peers, own(world)):
        world.store.delete(lease)
    world.read_store()
    assert set(world.kernel.routed[-1]) >= {lease.subnet for lease in peers}
    assert "gone from the store at once: kept for now" in world.problem("mass removal")[0]
    assert [record.levelno for record in caplog.records if "not believed yet" in record.message] == [
        logging.CRITICAL
    ]
    assert own(world).subnet in {lease.subnet for lease in world.store.snapshot().leases}
    world.peers(*range(10, 10 + count))
    world.read_store()
    assert world.problem("mass removal") == ()


def test_peers_that_a_store_without_our_lease_lacks_for_long_are_gone(world: World) -> None:
    peers = world.peers(10)
    world.full()
    for lease in (*peers, own(world)):
        world.store.delete(lease)
    world.run(2 * RESYNC)
    assert peers[0].subnet not in world.kernel.routed[-1]


def test_a_network_that_is_gone_from_the_store_is_named(world: World) -> None:
    world.full()
    world.store.gone = True
    world.full()
    assert "gone from the store" in world.problem("network")[0]
    world.store.gone = False
    world.full()
    assert world.problem("network") == ()


def test_before_a_mass_removal_is_believed_the_store_itself_is_asked(world: World) -> None:
    world.peers(*range(10, 30))
    world.full()
    everyone = set(world.kernel.routed[-1])
    world.store.stale = Snapshot((own(world),), 1)
    world.read_store()
    world.clock.now += RESYNC
    world.read_store()
    assert set(world.kernel.routed[-1]) == everyone


def test_a_mass_removal_that_is_taken_back_was_none(world: World) -> None:
    leases = world.peers(*range(10, 30))
    world.full()
    everyone = set(world.kernel.routed[-1])
    for lease in leases:
        world.store.delete(lease)
    world.read_store()
    world.peers(*range(10, 30))
    world.read_store()
    assert set(world.kernel.routed[-1]) == everyone
    assert world.problem("mass removal") == ()
    # The time of the first scare does not count towards a second one.
    world.clock.now += 2 * RESYNC
    for lease in world.store.snapshot().leases:
        if lease.host != HOST:
            world.store.delete(lease)
    world.read_store()
    assert set(world.kernel.routed[-1]) == everyone


def test_what_changes_during_a_mass_removal_is_followed(world: World) -> None:
    leases = world.peers(*range(10, 30))
    world.full()
    for lease in leases:
        world.store.delete(lease)
    world.read_store()
    (new,) = world.peers(99)
    world.read_store()
    assert {new.subnet, *(lease.subnet for lease in leases)} < set(world.kernel.routed[-1])


def test_an_unread_store_is_not_an_empty_one(world: World) -> None:
    world.peers(10, 20)
    world.store.away = "store is away"
    world.full()
    assert world.kernel.routed == [], "routes of an earlier life stay"
    assert "reconcile_maps" not in world.kernel.calls
    assert {"reconcile_devices", "reconcile_firewall", "load", "reconcile_ports"} <= set(world.kernel.calls)
    world.store.away = ""
    world.full()
    assert len(world.kernel.routed[-1]) == 3


def test_a_store_that_goes_away_leaves_the_peers(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.peers(10, 20)
    world.full()
    world.store.away = "store is away"
    for _ in range(4):
        world.full()
    assert len(world.kernel.routed[-1]) == 3
    assert not world.report.store.up
    assert world.report.store.error == "store is away"
    assert sum("store is away" in record.getMessage() for record in caplog.records) == 1


def test_a_bad_network_in_the_store_is_a_problem_and_no_more(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.full()
    world.store.bad_network = "network config: no JSON"
    world.peers(10)
    for _ in range(3):
        world.read_store()
    assert len(world.kernel.routed[-1]) == 2, "a new peer is let in"
    assert "network config: no JSON" in world.problem("network")[0]
    assert world.report.store.up
    assert world.report.reconcile.error == ""
    assert sum("no JSON" in record.getMessage() for record in caplog.records) == 1
    world.store.bad_network = ""
    world.read_store()
    assert world.problem("network") == ()


def test_another_network_in_the_store_is_a_problem(world: World) -> None:
    world.full()
    world.store.write_network(replace(NETWORK, port=4789), replace=True)
    world.read_store()
    assert "has changed: restart this agent" in world.problem("network")[0]
    assert world.report.problems == world.problem("network")


def test_a_lease_of_ours_that_is_deleted_is_claimed_again(world: World) -> None:
    world.full()
    held = own(world)
    world.store.delete(held)
    world.read_store()
    assert own(world).subnet == held.subnet
    assert own(world) in world.store.snapshot().leases
    assert not world.kernel.fenced
    assert world.report.ready


# --- Start ------------------------------------------------------------------------


class LateStore(FlakyStore):
    """A store that fails in turn with `failures`, then works."""

    failures: list[Exception] | None = None

    def _reach(self) -> None:
        if self.failures:
            raise self.failures.pop(0)


def starting(world: World, *failures: Exception) -> Agent:
    """Another agent, on a store that fails like this at first. Its waits take no time."""
    store = LateStore(world.clock)
    store.write_network(NETWORK)
    store.failures = [*failures]
    world.patch.setattr("ctl.agent.loop.claim_namespace", Claims().take)
    agent = Agent(
        world.kernel.settings,
        store,
        cast(Node, FakeKernel(world.kernel.settings)),
        clock=world.clock,
        steady=world.clock.steady,
        say=lambda _: None,
    )
    waits.clear()

    def take(timeout: float) -> tuple[frozenset[Change], frozenset[Signal]]:
        waits.append(timeout)
        assert len(waits) < 1000, "it spins"
        return NO_CHANGES, frozenset()

    world.patch.setattr(agent.mailbox, "take", take)
    return agent


waits: list[float] = []


def test_an_agent_that_starts_before_its_store_waits_and_says_so_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    away = [StoreAway("etcd unreachable: refused")] * 10
    assert starting(world, *away, StoreAway("etcd unreachable: no leader"), *away[:2]).start()
    said = [record.getMessage() for record in caplog.records if "waiting for it" in record.getMessage()]
    assert said == [
        f"store: etcd unreachable: {why}; waiting for it" for why in ("refused", "no leader", "refused")
    ]
    assert len(waits) == 13
    assert 0.75 * BACK_OFF_MIN_S <= waits[0] <= 1.25 * BACK_OFF_MIN_S
    assert 0.75 * BACK_OFF_MAX_S <= waits[-1] <= 1.25 * BACK_OFF_MAX_S, "less and less often"


@pytest.mark.parametrize(
    "failure",
    [
        StoreDenied("etcd http://a: authentication failed, invalid user ID or password"),
        ConfigError("etcd key /config: SubnetLen 9 does not fit"),
        StoreError("etcd http://a: database space exceeded"),
    ],
    ids=["denied", "config", "broken"],
)
def test_an_agent_that_waiting_would_not_help_ends(world: World, failure: Exception) -> None:
    with pytest.raises(type(failure), match=str(failure)):
        starting(world, StoreAway("etcd unreachable"), failure).start()
    assert len(waits) == 1


def test_an_agent_that_waits_for_its_store_can_be_stopped(world: World) -> None:
    agent = starting(world, *[StoreAway("etcd unreachable")] * 5)
    world.patch.setattr(agent.mailbox, "take", lambda _: (NO_CHANGES, frozenset({Signal.STOP})))
    assert not agent.start()


def test_an_agent_waits_for_a_network_and_says_so_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    agent = starting(world)
    store = cast(Any, agent._store)
    answers = iter([None, None, None, NETWORK, NETWORK])
    world.patch.setattr(store, "read_network", lambda: next(answers))
    assert agent.start()
    said = [record.getMessage() for record in caplog.records if "no network" in record.getMessage()]
    assert len(said) == 1 and "ovctl network init" in said[0]


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[dict[str, str]]]]:
    """What systemd is told, each message by its variables; since the last call."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)

        def messages() -> list[dict[str, str]]:
            found = []
            with suppress(BlockingIOError):
                while True:
                    lines = listener.recv(4096).decode().splitlines()
                    found.append(dict(line.split("=", 1) for line in lines))
            return found

        yield messages


Told = Callable[[], list[dict[str, str]]]
LONGEST_PAUSE_S = 1.25 * BACK_OFF_MAX_S


def test_an_agent_that_waits_for_its_store_is_given_time_by_systemd(world: World, told: Told) -> None:
    agent = starting(world, *[StoreAway("etcd unreachable:\nno leader")] * 8)
    world.patch.setenv("NOTIFY_SOCKET", str(world.kernel.settings.state_dir / "notify"))
    assert agent.start()
    *waiting, last = told()
    assert len(waiting) == 8, "at every try"
    for message, pause in zip(waiting, waits, strict=True):
        assert message["STATUS"] == "waiting for the store: etcd unreachable: no leader"
        assert int(message["EXTEND_TIMEOUT_USEC"]) / 1e6 > pause + LONGEST_PAUSE_S
    assert last == {"STATUS": ""}


def test_an_agent_that_waits_for_a_network_is_given_time_by_systemd(world: World, told: Told) -> None:
    agent = starting(world)
    answers = iter([None, None, None, NETWORK, NETWORK])
    world.patch.setattr(cast(Any, agent._store), "read_network", lambda: next(answers))
    world.patch.setenv("NOTIFY_SOCKET", str(world.kernel.settings.state_dir / "notify"))
    assert agent.start()
    *waiting, last = told()
    assert len(waiting) >= 2
    assert all("ovctl network init" in message["STATUS"] for message in waiting)
    assert all(int(message["EXTEND_TIMEOUT_USEC"]) > 0 for message in waiting)
    assert last == {"STATUS": ""}


def test_an_agent_whose_first_pass_fails_is_given_time_by_systemd(world: World, told: Told) -> None:
    world.patch.setenv("NOTIFY_SOCKET", str(world.kernel.settings.state_dir / "notify"))
    world.kernel.failing["load"] = KernelError("no compiler")
    heard: list[dict[str, str]] = []

    def hear() -> None:
        heard.extend(message for message in told() if message != {"WATCHDOG": "1"})

    world.run(RESYNC, each=hear)
    assert len(heard) == world.report.reconcile.failed
    assert {message["STATUS"] for message in heard} == {"not ready: no compiler"}
    assert all(int(message["EXTEND_TIMEOUT_USEC"]) / 1e6 > LONGEST_PAUSE_S for message in heard)
    heard.clear()
    world.kernel.failing.clear()
    world.run(LONGEST_PAUSE_S, each=hear)
    assert heard == [{"READY": "1"}, {"STATUS": ""}]
    world.kernel.failing["load"] = KernelError("no compiler")
    world.full()
    hear()
    assert len(heard) == 2, "a running agent does not start"


def test_an_agent_that_starts_at_once_tells_systemd_no_more_than_that(world: World, told: Told) -> None:
    world.patch.setenv("NOTIFY_SOCKET", str(world.kernel.settings.state_dir / "notify"))
    assert starting(world).start()
    world.full()
    assert told() == [{"READY": "1"}]


# --- Storms of events ---------------------------------------------------------------


def storm(world: World, seconds: float, cost: float) -> tuple[int, float]:
    """Events without a pause for that long, each pass taking `cost` seconds: (passes, share of the time)."""
    begun, spent, clock = world.clock.now, 0.0, world.clock
    passes_before = world.passes()

    def pass_(changes: frozenset[Change], store_changed: bool, full: bool) -> None:
        nonlocal spent
        clock.now += cost
        spent += cost
        original(changes, store_changed, full)

    def sleep(wait: float) -> None:
        clock.now += wait

    def take(timeout: float) -> tuple[frozenset[Change], frozenset[Signal]]:
        clock.now += 0.001
        over = clock.now >= begun + seconds
        return frozenset({Change.PORTS}), frozenset({Signal.STOP} if over else ())

    original = world.agent._pass
    with world.patch.context() as patch:
        patch.setattr(world.agent, "_pass", pass_)
        patch.setattr(world.agent.mailbox, "take", take)
        patch.setattr("ctl.agent.loop.time", SimpleNamespace(monotonic=clock.steady, sleep=sleep))
        world.agent._loop(cast(Monitor, SimpleNamespace(watch=lambda *_: None)))
    return world.passes() - passes_before, spent / (clock.now - begun)


@pytest.mark.parametrize("cost", [0.001, 0.1, 2.0])
def test_a_storm_takes_half_of_the_time_at_the_most(world: World, cost: float) -> None:
    world.full()
    passes, share = storm(world, 60, cost)
    assert 60 / 2 / FAILING_GAP_S < passes <= 60 / MIN_GAP_S, "events are still followed"
    assert share <= 0.52


@pytest.mark.parametrize("cost", [0.001, 0.1, 1.0])
@pytest.mark.parametrize("ready", [True, False])
def test_a_step_that_always_fails_is_not_tried_with_every_event_of_a_storm(
    world: World, ready: bool, cost: float
) -> None:
    """Such as one whose own attempts are the events, or the compiler that takes a second."""
    if ready:
        world.full()
    world.kernel.failing["reconcile_ports"] = KernelError("no")
    world.full()
    passes, share = storm(world, 200, cost)
    # 0.5, 1, 2, 4, 5 s, 5 s ...
    assert 200 / FAILING_GAP_S / 2 < passes <= 200 / FAILING_GAP_S + 5
    assert share <= 0.25


def test_what_fails_in_a_storm_is_mended_in_it(world: World) -> None:
    world.full()
    world.kernel.failing["reconcile_ports"] = KernelError("no")
    storm(world, 30, 0.1)
    world.kernel.failing.clear()
    storm(world, 2 * RESYNC, 0.1)
    assert (world.report.reconcile.error, world.report.reconcile.back_off) == ("", 0.0)


# --- Failing parts -----------------------------------------------------------------


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_fails_stops_no_other(world: World, step: str, caplog: pytest.LogCaptureFixture) -> None:
    world.kernel.failing[step] = KernelError(f"{step} does not work")
    for _ in range(3):
        world.kernel.calls.clear()
        world.full()
        assert set(world.kernel.calls) == set(STEPS)
    assert world.report.reconcile.error == f"{step} does not work"
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert lines == [f"{step} does not work"], "said once"
    assert world.report.reconcile.failed == 3
    assert world.report.reconcile.back_off == 2.0
    world.kernel.failing.clear()
    world.full()
    assert (world.report.reconcile.error, world.report.reconcile.back_off) == ("", 0.0)


def test_all_that_fails_is_named_in_one_line(world: World) -> None:
    world.kernel.failing = {
        "reconcile_peers": KernelError("routes"),
        "load": KernelError("compiler"),
        "reconcile_maps": KernelError("compiler"),
        "reconcile_ports": KernelError("ports"),
    }
    world.full()
    assert world.report.reconcile.error == "routes; compiler; ports"


def test_an_event_after_a_first_pass_that_failed_is_no_bug(world: World) -> None:
    world.store.away = "store is away"
    world.kernel.failing = {step: KernelError(step) for step in STEPS}
    world.full()
    for change in Change:
        world.part(change)
    assert not world.report.ready


def test_an_agent_that_cannot_tell_what_is_lost_goes_on_and_says_so_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.kernel.failing["lost"] = KernelError("the lock is held by an unknown process: end it")
    before = world.run(RESYNC)
    world.run(5 * RESYNC)
    assert before <= RESYNC / TICK_S + 5, "and does not spin"
    assert world.problem("watching") == ("the lock is held by an unknown process: end it",)
    assert world.problem("watching")[0] in world.report.problems
    assert sum("unknown process" in record.getMessage() for record in caplog.records) == 1
    world.kernel.failing.clear()
    world.run(TICK_S)
    assert world.report.problems == ()
    assert world.report.ready


def test_an_agent_that_cannot_read_what_was_dropped_goes_on_and_says_so_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(fd: int, size: int) -> None:
        raise KernelError("cannot map the events ring: Cannot allocate memory")

    world.patch.setattr("ctl.agent.loop.Ring", refuse)
    world.kernel.maps = SimpleNamespace(fd=lambda name: 3)
    world.run(5 * RESYNC)
    assert world.report.ready
    assert "cannot map the events ring" in world.report.problems[0]
    assert sum("events ring" in record.getMessage() for record in caplog.records) == 1


def test_a_bug_where_the_agent_looks_what_is_lost_ends_it(world: World) -> None:
    world.kernel.failing["lost"] = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        world.run(RESYNC)


def test_a_bug_ends_the_agent(world: World) -> None:
    world.kernel.failing["load"] = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        world.full()


def test_it_is_not_ready_before_a_whole_pass_has_succeeded(world: World) -> None:
    world.kernel.failing["load"] = KernelError("no compiler")
    world.full()
    assert not world.report.ready
    assert world.report.not_ready == ("no compiler",)
    world.kernel.failing.clear()
    for change in Change:
        world.part(change)
        assert not world.report.ready, f"a pass over {change} says nothing about the rest"
    world.read_store()
    assert not world.report.ready
    world.full()
    assert world.report.ready
    world.kernel.failing["load"] = KernelError("no compiler")
    world.full()
    assert world.report.ready, "it forwards, though something is wrong"


def test_partial_success_without_a_first_failure_makes_nobody_ready(world: World) -> None:
    for change in Change:
        world.part(change)
    assert not world.report.ready


@pytest.mark.parametrize("change", list(Change))
def test_a_partial_success_does_not_clear_an_error(world: World, change: Change) -> None:
    world.full()
    good = world.report.reconcile
    world.kernel.failing["load"] = KernelError("no compiler")
    world.clock.now += 1
    world.full()
    world.kernel.failing.clear()
    world.part(change)
    world.read_store()
    now = world.report.reconcile
    assert now.error == "no compiler"
    assert (now.ok, now.last_success) == (good.ok, good.last_success)
    assert now.back_off > 0, "the retry of everything still comes"


def test_an_error_is_cleared_by_the_retry(world: World) -> None:
    world.kernel.failing["load"] = KernelError("no compiler")

    def mend() -> None:
        if world.kernel.calls.count("load") >= 3:
            world.kernel.failing.clear()

    world.run(RESYNC / 2, each=mend)
    assert world.report.reconcile.error == ""
    assert world.report.ready
    assert world.report.reconcile.failed == 3


def test_a_first_event_makes_an_agent_that_is_not_ready_look_at_everything(world: World) -> None:
    world.kernel.failing["load"] = KernelError("no compiler")

    def mend_and_post(timeout: float) -> tuple[frozenset[Change], frozenset[Signal]]:
        assert timeout > 0.3, "the next try is not due yet"
        world.kernel.failing.clear()
        return next(posts)

    posts = iter([(frozenset({Change.PORTS}), frozenset()), (NO_CHANGES, frozenset({Signal.STOP}))])
    world.patch.setattr(
        world.agent, "_next", lambda next_resync: mend_and_post(world.agent._pause(next_resync))
    )
    world.agent._loop(cast(Monitor, SimpleNamespace(watch=lambda *_: None)))
    assert world.report.ready


def test_a_new_device_is_looked_at_whole(world: World) -> None:
    world.full()
    world.kernel.calls.clear()

    def replaced(network: Network, lease: Lease) -> None:
        world.kernel.device += 1

    world.patch.setattr(world.kernel, "reconcile_devices", replaced)
    world.part(Change.DEVICES)
    expected = set(STEPS) - {"reconcile_devices"}
    assert set(world.kernel.calls) == expected, "routes and programs went with the old one"


def test_a_second_agent_is_refused_before_it_takes_a_lease(world: World) -> None:
    second = Agent(
        replace(world.kernel.settings, node_name="second"),
        world.store,
        cast(Node, FakeKernel(world.kernel.settings, uplink=Uplink(UPLINK, IPv4Address("10.0.0.2")))),
        clock=world.clock,
        say=lambda _: None,
    )
    before = world.store.snapshot()
    with pytest.raises(AgentError, match="another agent"):
        second.start()
    assert world.store.snapshot() == before


# --- Fencing ------------------------------------------------------------------------


def steal(world: World, host: str = "10.9.9.9") -> Lease:
    """Another host's lease where ours was."""
    held = own(world)
    return world.store.put(replace(held, host=IPv4Address(host), node="thief", expires_at=None), held)


def test_a_lost_lease_is_told_and_the_rest_goes_on(world: World) -> None:
    world.full()
    world.peers(10)
    steal(world)
    world.full()
    assert "10.9.9.9" in world.report.lease.conflict
    assert len(world.kernel.routed[-1]) == 2
    with pytest.raises(LeaseConflict):
        world.agent._joined._holder.keep()


def test_a_node_whose_subnet_another_holds_is_fenced(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.full()
    stolen = steal(world)
    world.kernel.calls.clear()
    world.read_store()
    assert world.kernel.fenced
    assert set(world.kernel.calls) == set(STEPS) - {"refresh_uplink"}, "all of the kernel is told"
    assert world.store.snapshot().leases == (stolen,), "nothing is written"
    now = world.clock()
    assert not world.report.ready
    assert readiness(world.report, now).count("10.9.9.9") == 1
    healthy, why = health(world.report, now)
    assert not healthy
    assert [line for line in why if "10.9.9.9" in line] == [f"lease conflict: {world.report.lease.conflict}"]
    world.run(LEASE_TTL + RESYNC)
    assert world.store.snapshot().leases == (stolen,)
    assert not any("expired" in line for line in health(world.report, world.clock())[1])
    critical = [record.getMessage() for record in caplog.records if record.levelno == logging.CRITICAL]
    assert len(critical) == 1, critical
    assert "fenced" in critical[0]


def test_a_fenced_node_claims_its_subnet_when_it_is_free_again(world: World) -> None:
    world.full()
    subnet = own(world).subnet
    stolen = steal(world)
    world.read_store()
    world.store.delete(stolen)
    world.kernel.calls.clear()
    world.read_store()
    assert not world.kernel.fenced
    assert set(world.kernel.calls) == set(STEPS) - {"refresh_uplink"}
    (lease,) = world.store.snapshot().leases
    assert (lease.subnet, lease.host, lease.node) == (subnet, HOST, "a")
    assert world.report.ready
    assert health(world.report, world.clock()) == (True, [])


def test_a_fenced_node_stays_so_while_the_store_is_away(world: World) -> None:
    world.full()
    steal(world)
    world.read_store()
    world.store.away = "store is away"
    world.run(3 * RESYNC)
    assert world.kernel.fenced
    assert not world.report.ready


def test_a_node_that_another_has_the_address_of_is_fenced(world: World) -> None:
    world.full()
    twin = steal(world, str(HOST))
    world.read_store()
    assert world.kernel.fenced
    assert "thief and a both have host address" in world.report.lease.conflict
    assert world.store.snapshot().leases == (twin,)


def test_a_node_does_not_start_on_a_subnet_that_another_holds(world: World) -> None:
    """What it had before, it asks for; what is taken, it does not take."""
    world.full()
    stolen = steal(world)
    wide = replace(NETWORK, subnet_max=IPv4Network("172.17.2.0/24"))
    world.store.write_network(wide, replace=True)
    (world.kernel.settings.state_dir / "fenced.env").write_text(
        f"FLANNEL_NETWORK=172.17.0.0/16\nFLANNEL_SUBNET={stolen.subnet}\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    )
    assert world.agent._previous() == stolen.subnet
    again = world.agent._joined._holder.acquire(wide, world.agent._previous())
    assert again.subnet == IPv4Network("172.17.2.0/24")
    assert stolen in world.store.snapshot().leases
