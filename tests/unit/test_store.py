"""The contract of LeaseStore, against every store there is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import pytest

from ctl.core.errors import LeaseConflict
from ctl.core.model import IPv6Lease, Lease, MacAddress
from ctl.core.ports import LeaseStore
from ctl.store.memory import MemoryStore
from ctl.store.sqlite.store import SqliteStore
from tests.unit.stores import DEADLINE, Clock, lease, watching
from tests.unit.strategies import NETWORK


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ovnet" / "store.db"


@pytest.fixture(params=["memory", "sqlite"])
def two(request: pytest.FixtureRequest, clock: Clock, path: Path) -> Iterator[tuple[LeaseStore, LeaseStore]]:
    """Two clients of one store."""
    if request.param == "memory":
        store = MemoryStore(clock)
        yield store, store
        return
    one = SqliteStore(str(path), clock, create=True)
    other = SqliteStore(str(path), clock)
    yield one, other
    one.close()
    other.close()


@pytest.fixture
def store(two: tuple[LeaseStore, LeaseStore]) -> LeaseStore:
    return two[0]


def test_a_new_store_is_empty(store: LeaseStore) -> None:
    assert store.read_network() is None
    assert store.snapshot().leases == ()


def test_the_network_is_written_once_unless_replaced(two: tuple[LeaseStore, LeaseStore]) -> None:
    one, other = two
    one.write_network(NETWORK)
    other.write_network(NETWORK)
    with pytest.raises(LeaseConflict):
        other.write_network(replace(NETWORK, vni=7))
    assert other.read_network() == NETWORK
    other.write_network(replace(NETWORK, vni=7), replace=True)
    assert one.read_network() == replace(NETWORK, vni=7)


def test_what_is_put_is_seen_by_all_in_order(two: tuple[LeaseStore, LeaseStore]) -> None:
    one, other = two
    nine = one.put(lease(9), None)
    three = other.put(lease(3, "10.0.0.2", None), None)
    snapshot = one.snapshot()
    assert snapshot.leases == (three, nine) == (lease(3, "10.0.0.2", None), lease(9))
    assert [stored.revision for stored in snapshot.leases] == [three.revision, nine.revision]
    assert 0 < nine.revision < three.revision <= snapshot.revision


@pytest.mark.parametrize("renew_at", [None, 1234.5])
def test_when_a_lease_is_to_be_renewed_is_kept(
    two: tuple[LeaseStore, LeaseStore], renew_at: float | None
) -> None:
    one, other = two
    one.put(replace(lease(), renew_at=renew_at, ipv6=IPv6Lease(IPv6Network("fd00:0:0:1::/64"))), None)
    (found,) = other.snapshot().leases
    assert found.renew_at == renew_at and found.ipv6 is not None


@pytest.mark.parametrize("subnet", ["172.17.3.0/24", "172.17.3.128/25", "172.17.0.0/16"])
def test_creating_over_a_live_lease_is_refused(store: LeaseStore, subnet: str) -> None:
    store.put(lease(), None)
    before = store.snapshot()
    with pytest.raises(LeaseConflict, match=r"is taken: 172\.17\.3\.0/24 of node-10\.0\.0\.1"):
        store.put(replace(lease(host="10.0.0.2"), subnet=IPv4Network(subnet)), None)
    assert store.snapshot() == before


def test_replacing_needs_the_revision_that_is_stored(two: tuple[LeaseStore, LeaseStore]) -> None:
    one, other = two
    first = one.put(lease(), None)
    second = one.put(replace(first, expires_at=2000.0), first)
    with pytest.raises(LeaseConflict):
        other.put(replace(first, expires_at=3000.0), first)
    with pytest.raises(LeaseConflict):
        other.delete(first)
    assert one.snapshot().leases == (second,)
    other.delete(second)
    assert one.snapshot().leases == ()
    with pytest.raises(LeaseConflict):
        one.put(second, second)
    with pytest.raises(LeaseConflict):
        one.delete(second)


def test_an_expired_lease_is_gone_and_its_subnet_free(store: LeaseStore, clock: Clock) -> None:
    old = store.put(lease(expires_at=1060.0), None)
    reserved = store.put(lease(4, "10.0.0.3", None), None)
    clock.now = 1060.0
    assert store.snapshot().leases == (reserved,)
    with pytest.raises(LeaseConflict):
        store.put(old, old)
    new = store.put(lease(host="10.0.0.2", expires_at=2000.0), None)
    assert store.snapshot().leases == (new, reserved)


def test_of_two_creators_exactly_one_wins(two: tuple[LeaseStore, LeaseStore]) -> None:
    for third in range(1, 21):
        start = threading.Barrier(2)
        won: list[Lease] = []
        lost: list[LeaseConflict] = []

        def create(
            store: LeaseStore, host: str, third: int = third, start: threading.Barrier = start,
            won: list[Lease] = won, lost: list[LeaseConflict] = lost,
        ) -> None:  # fmt: skip
            start.wait(DEADLINE)
            try:
                won.append(store.put(lease(third, host), None))
            except LeaseConflict as error:
                lost.append(error)

        threads = [
            threading.Thread(target=create, args=(two[0], "10.0.0.1")),
            threading.Thread(target=create, args=(two[1], "10.0.0.2")),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
        assert (len(won), len(lost)) == (1, 1)
        live = [(each.subnet, each.host) for each in two[0].snapshot().leases]
        assert (won[0].subnet, won[0].host) in live


def test_a_watch_fires_on_a_change_of_another_client(two: tuple[LeaseStore, LeaseStore]) -> None:
    one, other = two
    assert watching(one, lambda: other.put(lease(), None))
    assert watching(one, lambda: other.delete(other.snapshot().leases[0]))
    assert watching(one, lambda: other.write_network(NETWORK))
    assert watching(one, lambda: one.put(lease(), None))


IPV6 = IPv6Lease(
    IPv6Network("fd00:10:0:1::/64"), IPv6Address("fd77::1"), MacAddress.parse("02:06:00:00:00:01"), 1
)


def test_a_lease_of_both_families_is_one(two: tuple[LeaseStore, LeaseStore]) -> None:
    one, other = two
    stored = one.put(replace(lease(1), ipv6=IPV6), None)
    (found,) = other.snapshot().leases
    assert (found.subnet, found.ipv6) == (stored.subnet, stored.ipv6) == (lease(1).subnet, IPV6)


@pytest.mark.parametrize("moved", [replace(IPV6, subnet=IPv6Network("fd00:10:0:2::/64")), None])
def test_it_can_move_to_another_ipv6_subnet_or_to_none(store: LeaseStore, moved: IPv6Lease | None) -> None:
    stored = store.put(replace(lease(1), ipv6=IPV6), None)
    (found,) = (store.put(replace(stored, ipv6=moved), stored), *store.snapshot().leases)[1:]
    assert found.ipv6 == moved


def test_no_two_have_one_ipv6_subnet_created_or_moved(store: LeaseStore) -> None:
    store.put(replace(lease(1), ipv6=IPV6), None)
    with pytest.raises(LeaseConflict, match="fd00:10:0:1::/64 is taken"):
        store.put(replace(lease(2), ipv6=IPV6), None)
    plain = store.put(lease(2), None)
    with pytest.raises(LeaseConflict, match="fd00:10:0:1::/64 is taken"):
        store.put(replace(plain, ipv6=IPV6), plain)
    assert [each.ipv6 for each in store.snapshot().leases] == [IPV6, None]
