"""An agent on a store that gives out the subnets: Kubernetes."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from ctl.agent.loop import Agent
from ctl.core.errors import AgentError, ConfigError, StoreError, Unassigned
from ctl.core.host import EVERYTHING, Ground, Surroundings
from ctl.core.lease import Create, Keep, take
from ctl.core.model import FOUND_OUT, Addresses, Lease, Network, Subnets
from tests.unit.world import NETWORK, Claims, FlakyStore, MemoryKernel, Posts, World, made

SUBNET = NETWORK.subnet_min
OTHER = IPv4Network("172.17.200.0/24")


class AssigningStore(FlakyStore):
    """It has a subnet for each node, or none."""

    subnet: IPv4Network | None = SUBNET
    addresses = FOUND_OUT
    told = 0
    """How often a node has said that it is in service, or tried to."""
    deaf = False

    def assigned(self, node: str) -> Subnets:
        if self.subnet is None:
            raise Unassigned(f"node {node} has no podCIDR")
        return Subnets(self.subnet)

    def read_network(self) -> Network | None:
        self.assigned("a")
        return super().read_network()

    def addresses_of(self, _node: str) -> Addresses:
        return self.addresses

    def in_service(self) -> None:
        self.told += 1
        if self.deaf:
            raise StoreError("cannot patch")


@pytest.fixture
def store(world: World) -> AssigningStore:
    found = AssigningStore(world.clock)
    found.write_network(NETWORK)
    return found


def agent_on(world: World, store: AssigningStore, **failing: Exception) -> Agent:
    kernel = MemoryKernel(replace(world.kernel.identity, node="a"), world.clock, failing=failing)
    return made(world.settings, store, kernel, Claims())


def conflict(agent: Agent) -> str:
    """Why it is fenced; empty: it is not, and ready."""
    report = agent.report
    assert report is not None and report.lease is not None
    assert report.ready is not bool(report.lease.conflict)
    return report.lease.conflict


def test_it_stands_at_the_address_that_the_store_has_for_it(world: World, store: AssigningStore) -> None:
    store.addresses = Addresses(IPv4Address("10.0.0.77"))
    agent = agent_on(world, store)
    assert agent.start()
    (lease,) = store.snapshot().leases
    assert (lease.subnet, lease.host) == (SUBNET, store.addresses.ipv4)


def test_an_address_in_the_store_that_this_host_has_not_is_named_before_anything_is_written(
    world: World, store: AssigningStore
) -> None:
    store.addresses = Addresses(IPv4Address("10.0.0.77"), IPv6Address("fd77::7"))
    agent = agent_on(world, store, find_uplink=AgentError("no interface has address 10.0.0.77"))
    with pytest.raises(
        AgentError, match=r"^the store has 10.0.0.77 and fd77::7 for this node, and no interface has"
    ):
        agent.start()
    assert store.snapshot().leases == ()


def test_where_the_store_has_nothing_to_say_of_addresses_the_uplink_is_looked_for_before_it_is_asked(
    world: World, store: AssigningStore
) -> None:
    store.subnet = None  # it would be waited for
    agent = agent_on(world, store, find_uplink=AgentError("no default route"))
    with pytest.raises(AgentError, match=r"^no default route$"):
        agent.start()


def test_it_waits_for_a_subnet_and_takes_that_one(world: World, store: AssigningStore) -> None:
    store.subnet = None
    agent = agent_on(world, store)
    posts = agent.mailbox
    assert isinstance(posts, Posts)

    def assign() -> None:
        if len(posts.waits) == 20:
            store.subnet = OTHER

    posts.said = assign
    assert agent.start()
    assert [lease.subnet for lease in store.snapshot().leases] == [OTHER]
    assert max(posts.waits) <= 2.0


def test_a_lease_of_another_life_is_taken_over_whatever_address_is_in_it(
    world: World, store: AssigningStore
) -> None:
    first = agent_on(world, store)
    assert first.start()
    (lease,) = store.snapshot().leases
    store.put(replace(lease, host=IPv4Address("10.9.9.9")), lease)
    assert agent_on(world, store).start()
    (lease,) = store.snapshot().leases
    assert (lease.subnet, lease.host) == (SUBNET, world.kernel.identity.host)


def test_a_subnet_that_is_taken_away_or_becomes_another_fences(world: World, store: AssigningStore) -> None:
    agent = agent_on(world, store)
    assert agent.start()
    agent.reconcile(EVERYTHING)
    store.subnet = None
    agent.reconcile(EVERYTHING)
    assert "has no podCIDR" in conflict(agent)
    store.subnet = OTHER
    agent.reconcile(EVERYTHING)
    assert "the node has 172.17.200.0/24 now" in conflict(agent)
    assert [lease.subnet for lease in store.snapshot().leases] == [SUBNET]
    store.subnet = SUBNET
    agent.reconcile(EVERYTHING)
    assert not conflict(agent)


@pytest.mark.parametrize("deaf", [False, True])
def test_it_says_that_it_is_in_service_once_it_is_and_is_ready_all_the_same(
    world: World, store: AssigningStore, deaf: bool, caplog: pytest.LogCaptureFixture
) -> None:
    store.deaf = deaf
    agent = agent_on(world, store)
    assert agent.start()
    assert store.told == 0
    for _ in range(3):
        agent.reconcile(EVERYTHING)
    assert store.told == 3
    assert agent.report is not None and agent.report.ready
    said = [record.getMessage() for record in caplog.records if "in service" in record.getMessage()]
    assert said == (["cannot tell that this node is in service: cannot patch"] if deaf else [])


def test_a_subnet_that_covers_the_hosts_own_link_is_refused() -> None:
    """Nothing is chosen there, so nothing can be chosen that is clear of it."""
    link = Ground(IPv4Network("172.17.0.0/22"), "eth0")
    around = Surroundings(underlay=(link,))
    with pytest.raises(ConfigError, match=r"the subnet of this node, 172.17.1.0/24, covers the underlay"):
        take(Subnets(IPv4Network("172.17.1.0/24")), [], "a", around)
    link6 = Surroundings(underlay=(Ground(IPv6Network("fd77::/64"), "eth0"),))
    both = Subnets(SUBNET, IPv6Network("fd77::/64"))
    with pytest.raises(ConfigError, match=r"the subnet of this node, fd77::/64, covers the underlay"):
        take(both, [], "a", link6)
    assert take(Subnets(SUBNET), [], "a", link6) == Create(SUBNET)
    assert take(Subnets(OTHER), [], "a", around) == Create(OTHER)


def test_only_our_name_makes_a_lease_ours() -> None:
    here, there = IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")
    ours, others = Lease(OTHER, there, node="a"), Lease(SUBNET, here, node="b")
    assert take(Subnets(OTHER), [others, ours], "a", Surroundings()) == Keep(ours)
    assert take(Subnets(SUBNET), [others, ours], "a", Surroundings()) == Create(SUBNET)
