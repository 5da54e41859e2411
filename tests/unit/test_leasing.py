from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest

from ctl.cluster.leasing import ATTEMPTS, LeaseHolder
from ctl.core.errors import LeaseConflict, NetworkExhausted
from ctl.core.host import Identity
from ctl.core.model import END_UNKNOWN, IPv6Lease, Lease, MacAddress, Snapshot, Subnets
from ctl.core.wire import parse_network
from ctl.store.memory import MemoryStore
from tests.unit.strategies import NETWORK

TTL, MARGIN = 86_400.0, 3600.0
A = Identity(IPv4Address("10.0.0.1"), MacAddress.parse("02:00:00:00:00:0a"), 1, "a")
B = Identity(IPv4Address("10.0.0.2"), MacAddress.parse("02:00:00:00:00:0b"), 1, "b")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def lowest(candidates: Sequence[IPv4Network]) -> IPv4Network:
    return candidates[0]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> MemoryStore:
    return MemoryStore(clock)


def node(store: MemoryStore, identity: Identity, clock: Clock) -> LeaseHolder:
    return LeaseHolder(store, identity, ttl=TTL, margin=MARGIN, clock=clock, pick=lowest)


def test_a_new_node_creates_a_lease_that_says_who_it_is(store: MemoryStore, clock: Clock) -> None:
    lease = node(store, A, clock).acquire(NETWORK)
    assert lease == Lease(NETWORK.subnet_min, A.host, A.vtep_mac, 1, node="a", expires_at=1000 + TTL)
    assert store.snapshot().leases == (lease,)


def test_a_node_that_comes_back_has_its_subnet_and_its_new_mac(store: MemoryStore, clock: Clock) -> None:
    first = node(store, A, clock).acquire(NETWORK)
    node(store, B, clock).acquire(NETWORK)
    clock.now += 50
    reborn = replace(A, vtep_mac=MacAddress.parse("02:00:00:00:00:0c"))
    again = node(store, reborn, clock).acquire(NETWORK)
    assert again.subnet == first.subnet
    assert again.vtep_mac == reborn.vtep_mac
    assert again.expires_at == 1050 + TTL


def test_a_lost_race_is_run_again(store: MemoryStore, clock: Clock) -> None:
    rivals = iter(range(3))

    def beaten(candidates: Sequence[IPv4Network]) -> IPv4Network:
        for n in rivals:
            store.put(Lease(candidates[0], IPv4Address(f"10.1.0.{n}"), expires_at=math.inf), None)
            break
        return candidates[0]

    holder = LeaseHolder(store, A, ttl=TTL, margin=MARGIN, clock=clock, pick=beaten)
    assert holder.acquire(NETWORK).subnet == IPv4Network("172.17.4.0/24")


def test_races_without_end_are_given_up(clock: Clock) -> None:
    class Unlucky(MemoryStore):
        tries = 0

        def put(self, lease: Lease, expected: Lease | None) -> Lease:
            self.tries += 1
            raise LeaseConflict("taken")

    store = Unlucky(clock)
    with pytest.raises(LeaseConflict, match="no lease after 20 attempts: taken"):
        node(store, A, clock).acquire(NETWORK)
    assert store.tries == ATTEMPTS


def test_many_nodes_at_once_get_a_subnet_each(clock: Clock) -> None:
    store = MemoryStore(clock)
    start = threading.Barrier(16)
    got: list[Lease] = []

    def run(n: int) -> None:
        identity = replace(A, host=IPv4Address(f"10.0.1.{n}"), node=str(n))
        start.wait(20)
        got.append(node(store, identity, clock).acquire(NETWORK))

    threads = [threading.Thread(target=run, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len({lease.subnet for lease in got}) == 16


def test_a_lease_outside_a_changed_network_is_replaced(store: MemoryStore, clock: Clock) -> None:
    store.put(A.mark(Lease(IPv4Network("10.9.0.0/24"), A.host, expires_at=5000.0)), None)
    lease = node(store, A, clock).acquire(NETWORK)
    assert store.snapshot().leases == (lease,)
    assert lease.subnet == NETWORK.subnet_min


def test_a_full_network_is_exhausted(store: MemoryStore, clock: Clock) -> None:
    small = replace(NETWORK, subnet_max=NETWORK.subnet_min)
    node(store, A, clock).acquire(small)
    with pytest.raises(NetworkExhausted):
        node(store, B, clock).acquire(small)


def test_keep_writes_nothing_until_renewal_is_due(store: MemoryStore, clock: Clock) -> None:
    holder = node(store, A, clock)
    lease = holder.acquire(NETWORK)
    due = 1000 + TTL - MARGIN
    assert holder.next_renewal() == due
    assert holder.keep(due - 1).revision == lease.revision
    clock.now = due
    renewed = holder.keep()
    assert renewed.revision > lease.revision
    assert renewed.expires_at == due + TTL
    assert holder.next_renewal() == due + TTL - MARGIN


def test_a_lease_that_ends_says_when_it_is_to_be_renewed(store: MemoryStore, clock: Clock) -> None:
    holder = node(store, A, clock)
    holder.acquire(NETWORK)
    assert store.snapshot().leases[0].renew_at == holder.next_renewal() == 1000 + TTL - MARGIN
    clock.now = holder.next_renewal()
    renewed = holder.keep()
    assert renewed.renew_at == holder.next_renewal() == clock.now + TTL - MARGIN
    store.put(replace(renewed, expires_at=None), renewed)
    assert node(store, A, clock).acquire(NETWORK).renew_at is None


def test_keep_publishes_a_changed_identity(store: MemoryStore, clock: Clock) -> None:
    holder = node(store, A, clock)
    holder.acquire(NETWORK)
    holder.identity = replace(A, host=IPv4Address("10.0.0.9"), vtep_mac=B.vtep_mac)
    lease = holder.keep()
    assert store.snapshot().leases == (lease,)
    assert (lease.host, lease.vtep_mac) == (IPv4Address("10.0.0.9"), B.vtep_mac)


def gone(store: MemoryStore, clock: Clock) -> None:
    store.delete(store.snapshot().leases[0])


def expired(store: MemoryStore, clock: Clock) -> None:
    clock.now += TTL + 1


@pytest.mark.parametrize("lose", [gone, expired])
def test_a_lease_that_has_gone_is_claimed_again(
    store: MemoryStore, clock: Clock, lose: Callable[[MemoryStore, Clock], None]
) -> None:
    holder = node(store, A, clock)
    first = holder.acquire(NETWORK)
    lose(store, clock)
    again = holder.keep()
    assert again.subnet == first.subnet
    assert store.snapshot().leases == (again,)
    assert again.expires_at == clock.now + TTL


@pytest.mark.parametrize("subnet", ["172.17.1.0/24", "172.17.0.0/20"])
def test_a_subnet_that_another_host_took_is_never_taken_back(
    store: MemoryStore, clock: Clock, subnet: str
) -> None:
    holder = node(store, A, clock)
    holder.acquire(NETWORK)
    gone(store, clock)
    taken = store.put(B.mark(Lease(IPv4Network(subnet), B.host, expires_at=math.inf)), None)
    with pytest.raises(
        LeaseConflict, match=r"lost 172\.17\.1\.0/24 of a at 10\.0\.0\.1.* of b at 10\.0\.0\.2"
    ):
        holder.keep()
    assert store.snapshot().leases == (taken,)


@pytest.mark.parametrize("around", ["0.0.0.0/0", "172.17.0.0/16", "172.17.1.0/25"])
def test_what_somebody_writes_around_our_subnet_takes_nothing_from_us(clock: Clock, around: str) -> None:
    """A store lets no node of ours create it; but keys can be put by hand."""

    class Careless(MemoryStore):
        def snapshot(self, *, fresh: bool = False) -> Snapshot:
            found = super().snapshot(fresh=fresh)
            junk = B.mark(Lease(IPv4Network(around), B.host))
            return replace(found, leases=tuple(sorted((junk, *found.leases), key=lambda each: each.subnet)))

    store = Careless(clock)
    holder = node(store, A, clock)
    store.put(A.mark(Lease(NETWORK.subnet_min, A.host, expires_at=1000 + TTL)), None)
    lease = holder.acquire(NETWORK)
    clock.now = holder.next_renewal()
    assert holder.keep().expires_at == clock.now + TTL
    assert lease.subnet == NETWORK.subnet_min


def test_two_nodes_with_one_host_address_are_told_apart(store: MemoryStore, clock: Clock) -> None:
    holder = node(store, A, clock)
    holder.acquire(NETWORK)
    twin = node(store, replace(B, host=A.host), clock)
    taken = twin.acquire(NETWORK)
    with pytest.raises(LeaseConflict, match=r"b and a both have host address 10\.0\.0\.1"):
        holder.keep()
    assert store.snapshot().leases == (taken,)
    assert twin.keep() == taken


def test_a_reservation_gets_our_data_and_no_end(store: MemoryStore, clock: Clock) -> None:
    reserved = store.put(Lease(IPv4Network("172.17.77.0/24"), A.host), None)
    holder = node(store, A, clock)
    lease = holder.acquire(NETWORK)
    assert lease == replace(A.mark(reserved), expires_at=None)
    assert holder.next_renewal() == math.inf
    assert holder.keep(1e12).revision == lease.revision


def test_a_lease_that_is_made_a_reservation_stays_one(store: MemoryStore, clock: Clock) -> None:
    holder = node(store, A, clock)
    lease = holder.acquire(NETWORK)
    store.put(replace(lease, expires_at=None), lease)
    clock.now += 2 * TTL
    assert holder.keep().expires_at is None
    assert store.snapshot().leases[0].expires_at is None


def test_a_race_with_an_edit_of_our_own_lease_is_run_again(clock: Clock) -> None:
    class Edited(MemoryStore):
        """Someone reserves the subnet between our reading and our writing."""

        armed = False

        def snapshot(self, *, fresh: bool = False) -> Snapshot:
            before = super().snapshot(fresh=fresh)
            if self.armed:
                self.armed = False
                self.put(replace(before.leases[0], expires_at=None), before.leases[0])
            return before

    store = Edited(clock)
    holder = node(store, A, clock)
    holder.acquire(NETWORK)
    store.armed = True
    clock.now += TTL - 1
    assert holder.keep().expires_at is None


def test_an_end_by_a_clock_that_was_set_is_written_anew_once(store: MemoryStore, clock: Clock) -> None:
    holder = node(store, A, clock)
    lease = holder.acquire(NETWORK)
    clock.now -= 500  # set back: the lease would seem to last longer
    holder.distrust_end()
    renewed = holder.keep()
    assert renewed.expires_at == clock.now + TTL
    assert renewed.revision > lease.revision
    assert holder.keep().revision == renewed.revision


def test_a_reservation_has_no_end_to_distrust(store: MemoryStore, clock: Clock) -> None:
    reserved = store.put(Lease(IPv4Network("172.17.77.0/24"), A.host), None)
    holder = node(store, A, clock)
    lease = holder.acquire(NETWORK)
    holder.distrust_end()
    assert holder.keep().revision == lease.revision > reserved.revision


def test_a_lease_whose_end_somebody_made_unknown_is_renewed(store: MemoryStore, clock: Clock) -> None:
    """In etcd: our very entry, put again on another etcd lease."""
    holder = node(store, A, clock)
    lease = holder.acquire(NETWORK)
    store.put(replace(lease, expires_at=END_UNKNOWN), lease)
    assert holder.keep().expires_at == clock.now + TTL
    assert holder.next_renewal() == clock.now + TTL - MARGIN


def test_keep_needs_a_lease(store: MemoryStore, clock: Clock) -> None:
    with pytest.raises(RuntimeError, match="acquire"):
        node(store, A, clock).keep()


# --- Both families ----------------------------------------------------------------

DUAL = parse_network(
    '{"Network":"172.17.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10::/48","Backend":{"Type":"vxlan"}}'
)
BEFORE = Subnets(IPv4Network("172.17.9.0/24"), IPv6Network("fd00:10:0:9::/64"))
FIRST = IPv6Network("fd00:10:0:1::/64")


def dual_node(store: MemoryStore, clock: Clock) -> LeaseHolder:
    return LeaseHolder(
        store, A, ttl=TTL, margin=MARGIN, clock=clock, pick=lowest, pick_ipv6=lambda candidates: candidates[0]
    )


def held(lease: Lease) -> Subnets:
    return Subnets(lease.subnet, lease.ipv6.subnet if lease.ipv6 else None)


def test_a_node_whose_lease_has_ended_has_the_subnets_of_both_families_again(
    store: MemoryStore, clock: Clock
) -> None:
    before = dual_node(store, clock).acquire(DUAL, BEFORE)
    clock.now += 2 * TTL
    assert store.snapshot().leases == ()
    again = dual_node(store, clock).acquire(DUAL, held(before))
    assert held(before) == held(again) == BEFORE


@pytest.mark.parametrize(
    ("theirs", "before", "got"),
    [
        (Lease(IPv4Network("172.17.4.0/24"), B.host, ipv6=IPv6Lease(IPv6Network("fd00:10:0:9::/64"))), BEFORE,
         Subnets(BEFORE.ipv4, FIRST)),
        (Lease(BEFORE.ipv4, B.host), BEFORE, Subnets(NETWORK.subnet_min, BEFORE.ipv6)),
        (Lease(IPv4Network("172.17.4.0/24"), B.host), Subnets(BEFORE.ipv4, IPv6Network("fd00:11::/64")),
         Subnets(BEFORE.ipv4, FIRST)),
        (Lease(IPv4Network("172.17.4.0/24"), B.host), Subnets(BEFORE.ipv4), Subnets(BEFORE.ipv4, FIRST)),
    ],
    ids=["IPv6's is another's", "IPv4's is another's", "IPv6's does not fit", "it had IPv4 only"],
)  # fmt: skip
def test_of_the_subnets_before_it_has_what_can_be_had(
    store: MemoryStore, clock: Clock, theirs: Lease, before: Subnets, got: Subnets
) -> None:
    store.put(replace(theirs, expires_at=math.inf), None)
    assert held(dual_node(store, clock).acquire(DUAL, before)) == got


def test_a_node_moved_by_a_changed_ipv4_network_keeps_its_ipv6_subnet(
    store: MemoryStore, clock: Clock
) -> None:
    dual_node(store, clock).acquire(DUAL, BEFORE)
    small = replace(DUAL, subnet_max=IPv4Network("172.17.2.0/24"))
    assert held(dual_node(store, clock).acquire(small, BEFORE)) == Subnets(NETWORK.subnet_min, BEFORE.ipv6)
