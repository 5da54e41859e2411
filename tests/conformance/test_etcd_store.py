"""The lease store on real etcd: the contract of all stores, and flannel's."""

from __future__ import annotations

import base64
import json
import math
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from ctl.cluster.leasing import LeaseHolder
from ctl.core.errors import ConfigError, LeaseConflict
from ctl.core.host import Identity
from ctl.core.model import END_UNKNOWN, IPv6Lease, Lease, MacAddress, Subnets
from ctl.core.ports import LeaseStore
from ctl.core.wire import format_network
from ctl.store.etcd.store import EtcdStore
from tests.conformance.conftest import Opener
from tests.etcd import Etcd
from tests.process import wait_until
from tests.unit.stores import DEADLINE, MAC, Clock, watching
from tests.unit.strategies import NETWORK
from tests.unit.test_store import (  # noqa: F401  # the contract, run here with these fixtures
    test_a_lease_of_both_families_is_one,
    test_a_new_store_is_empty,
    test_a_watch_fires_on_a_change_of_another_client,
    test_creating_over_a_live_lease_is_refused,
    test_it_can_move_to_another_ipv6_subnet_or_to_none,
    test_no_two_have_one_ipv6_subnet_created_or_moved,
    test_of_two_creators_exactly_one_wins,
    test_replacing_needs_the_revision_that_is_stored,
    test_the_network_is_written_once_unless_replaced,
    test_what_is_put_is_seen_by_all_in_order,
)

TTL = 600

GOOD = (
    '{"PublicIP":"10.0.0.9","PublicIPv6":null,"BackendType":"vxlan",'
    '"BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}'
)


@pytest.fixture
def two(etcd: Etcd, opened: Opener) -> Iterator[tuple[LeaseStore, LeaseStore]]:
    clock = Clock()  # the contract's leases begin in 1970
    yield opened(etcd.url, clock=clock), opened(etcd.url, clock=clock)


@pytest.fixture
def store(two: tuple[LeaseStore, LeaseStore]) -> LeaseStore:
    return two[0]


@pytest.fixture
def one(etcd: Etcd, opened: Opener) -> EtcdStore:
    return opened(etcd.url)


def lease(third: int = 3, host: str = "10.0.0.1", ttl: float = TTL, node: str = "alpha") -> Lease:
    subnet = IPv4Network(f"172.17.{third}.0/24")
    return Lease(subnet, IPv4Address(host), MAC, 1, node=node, expires_at=time.time() + ttl)


def holder(store: EtcdStore, host: str = "10.0.0.1", node: str = "alpha", ttl: float = TTL) -> LeaseHolder:
    return LeaseHolder(store, Identity(IPv4Address(host), MAC, 1, node), ttl=ttl, margin=60)


def key(prefix: str, third: int = 3) -> str:
    return f"{prefix}/subnets/172.17.{third}.0-24"


# --- Flannel's schema ----------------------------------------------------------


def test_keys_and_values_are_flannels(etcd: Etcd, one: EtcdStore, prefix: str) -> None:
    one.put(lease(node=""), None)
    assert etcd.value(key(prefix)) == (
        '{"PublicIP":"10.0.0.1","PublicIPv6":null,"BackendType":"vxlan",'
        '"BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}}'
    )
    one.put(lease(4, "10.0.0.2"), None)
    assert etcd.value(key(prefix, 4)).endswith(
        '"BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:01","Node":"alpha"}}'
    )
    one.put(replace(lease(5, "10.0.0.3", node=""), backend="udp", vtep_mac=None, vni=None), None)
    assert etcd.value(key(prefix, 5)) == '{"PublicIP":"10.0.0.3","PublicIPv6":null}'


def test_nothing_else_is_written(etcd: Etcd, one: EtcdStore, prefix: str) -> None:
    one.write_network(NETWORK)
    alpha = holder(one)
    alpha.acquire(NETWORK, Subnets(IPv4Network("172.17.3.0/24")))
    alpha.keep(time.time() + TTL)
    keys = etcd.ctl("get", prefix, "--prefix", "--keys-only").split()
    assert keys == [f"{prefix}/config", key(prefix)]
    assert etcd.value(f"{prefix}/config") == format_network(NETWORK)


def test_what_flannel_wrote_is_read(etcd: Etcd, one: EtcdStore, prefix: str) -> None:
    etcd.ctl("put", f"{prefix}/config", '{ "network": "10.5.0.0/16", "BACKEND": {"Type": "vxlan"} }')
    found = one.read_network()
    assert found is not None and (found.network, found.vni) == (IPv4Network("10.5.0.0/16"), 1)
    value = GOOD.replace("10.0.0.9", "192.168.64.3")
    etcd.ctl("put", f"{prefix}/subnets/10.5.52.0-24", value)
    etcd.ctl(
        "put",
        f"{prefix}/subnets/10.5.1.0-24",
        '{"PublicIP":"192.168.64.4","PublicIPv6":null,"BackendType":"host-gw"}',
    )
    gateway, vxlan = one.snapshot().leases
    assert vxlan == Lease(
        IPv4Network("10.5.52.0/24"), IPv4Address("192.168.64.3"), MacAddress.parse("c6:d2:32:6f:8f:44"), 1
    )
    assert (gateway.backend, str(gateway.host)) == ("host-gw", "192.168.64.4")


def test_the_config_is_not_overwritten_by_two_at_once(one: EtcdStore, etcd: Etcd, opened: Opener) -> None:
    results: list[object] = []

    def write(store: EtcdStore, vni: int) -> None:
        try:
            store.write_network(replace(NETWORK, vni=vni))
            results.append(vni)
        except LeaseConflict as error:
            results.append(error)

    threads = [threading.Thread(target=write, args=(opened(etcd.url), vni)) for vni in range(1, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    won = [each for each in results if isinstance(each, int)]
    stored = one.read_network()
    assert len(results) == 5 and len(won) == 1
    assert stored is not None and stored.vni == won[0]


def test_a_config_that_is_none_is_a_config_error(etcd: Etcd, one: EtcdStore, prefix: str) -> None:
    etcd.ctl("put", f"{prefix}/config", '{"Network": "nonsense"}')
    with pytest.raises(ConfigError, match=f"etcd key {prefix}/config: Network 'nonsense'"):
        one.read_network()
    with pytest.raises(LeaseConflict):
        one.write_network(NETWORK)
    one.write_network(NETWORK, replace=True)
    assert one.read_network() == NETWORK


# --- Leases and their ends -----------------------------------------------------


def test_a_lease_hangs_on_an_etcd_lease_and_a_reservation_on_none(
    etcd: Etcd, one: EtcdStore, prefix: str
) -> None:
    one.put(lease(), None)
    one.put(replace(lease(4, "10.0.0.2"), expires_at=None), None)
    found = etcd.get(key(prefix))
    assert found is not None
    told = json.loads(etcd.ctl("lease", "timetolive", f"{found['lease']:x}", "--keys", "-w", "json"))
    assert told["granted-ttl"] == TTL
    assert [base64.b64decode(each).decode() for each in told["keys"]] == [key(prefix)]
    assert "lease" not in (etcd.get(key(prefix, 4)) or {})


def test_renewing_writes_nothing(etcd: Etcd, one: EtcdStore, prefix: str) -> None:
    alpha = holder(one, ttl=4)  # due at half its life
    first = alpha.acquire(NETWORK, Subnets(IPv4Network("172.17.3.0/24")))
    end = first.expires_at or 0.0
    wait_until(lambda: (alpha.keep().expires_at or 0.0) > end + 1, DEADLINE, "the lease is renewed")
    found = etcd.get(key(prefix))
    assert found is not None and (found["mod_revision"], found["version"]) == (first.revision, 1)


def test_a_clock_that_jumps_renews_neither_too_early_nor_too_late(etcd: Etcd, opened: Opener) -> None:
    clock = Clock()
    one = opened(etcd.url, clock=clock)
    alpha = LeaseHolder(one, Identity(IPv4Address("10.0.0.1"), MAC, 1), ttl=TTL, margin=60, clock=clock)
    first = alpha.acquire(NETWORK)
    for jump in (86_400, -2 * 86_400):
        clock.now += jump
        alpha.keep()
        assert alpha.next_renewal() == pytest.approx(clock.now + TTL - 60, abs=30)
        alpha.distrust_end()  # as an agent does that notices
        assert alpha.keep().revision == first.revision, "a keep-alive: nobody hears of it"
        assert alpha.next_renewal() == pytest.approx(clock.now + TTL - 60, abs=30)


def test_a_restarted_node_takes_its_etcd_lease_over(etcd: Etcd, opened: Opener, prefix: str) -> None:
    before = holder(opened(etcd.url)).acquire(NETWORK, Subnets(IPv4Network("172.17.3.0/24")))
    after = holder(opened(etcd.url)).acquire(NETWORK)
    assert (after.subnet, after.revision) == (before.subnet, before.revision)
    assert after.expires_at is not None and math.isfinite(after.expires_at)
    other_ttl = holder(opened(etcd.url), ttl=300).acquire(NETWORK)
    assert other_ttl.subnet == before.subnet and other_ttl.revision > before.revision
    assert other_ttl.expires_at == pytest.approx(time.time() + 300, abs=60)


def test_a_changed_attribute_is_written(etcd: Etcd, one: EtcdStore, prefix: str) -> None:
    alpha = holder(one)
    first = alpha.acquire(NETWORK)
    alpha.identity = replace(alpha.identity, host=IPv4Address("10.0.0.77"))
    second = alpha.keep()
    assert second.revision > first.revision
    assert (
        json.loads(etcd.value(key(prefix, first.subnet.network_address.packed[2])))["PublicIP"] == "10.0.0.77"
    )


def test_anothers_end_is_unknown_and_it_is_live(etcd: Etcd, one: EtcdStore, opened: Opener) -> None:
    own = one.put(lease(), None)
    assert one.snapshot().leases[0].expires_at == own.expires_at
    (seen,) = opened(etcd.url).snapshot().leases
    assert seen.expires_at == END_UNKNOWN and not seen.expired(time.time() + 1e9)


def test_a_lease_that_ends_is_gone_and_its_subnet_free(etcd: Etcd, one: EtcdStore, opened: Opener) -> None:
    other = opened(etcd.url)
    one.put(replace(lease(4), expires_at=None), None)
    assert watching(other, lambda: one.put(lease(ttl=2), None))
    wait_until(lambda: len(other.snapshot().leases) == 1, 30, "etcd ends the lease")
    assert other.put(lease(host="10.0.0.2"), None).host == IPv4Address("10.0.0.2")


def test_a_reservation_stays_one_when_its_node_comes(etcd: Etcd, one: EtcdStore, prefix: str) -> None:
    value = '{"PublicIP":"10.0.0.1","PublicIPv6":null,"BackendType":"vxlan"}'
    etcd.ctl("put", key(prefix, 9), value)
    alpha = holder(one)
    assert str(alpha.acquire(NETWORK).subnet) == "172.17.9.0/24"
    found = etcd.get(key(prefix, 9))
    assert found is not None and "lease" not in found and found["version"] == 2
    assert alpha.keep().expires_at is None


def test_a_lease_turned_into_a_reservation_loses_its_etcd_lease(
    etcd: Etcd, one: EtcdStore, prefix: str
) -> None:
    alpha = holder(one)
    stored = alpha.acquire(NETWORK, Subnets(IPv4Network("172.17.3.0/24")))
    one.put(replace(stored, expires_at=None), stored)
    assert "lease" not in (etcd.get(key(prefix)) or {})
    assert alpha.keep().expires_at is None


def test_a_revoked_etcd_lease_is_made_anew(etcd: Etcd, one: EtcdStore, prefix: str) -> None:
    alpha = holder(one)
    alpha.acquire(NETWORK, Subnets(IPv4Network("172.17.3.0/24")))
    etcd.ctl("lease", "revoke", f"{(etcd.get(key(prefix)) or {})['lease']:x}")
    assert etcd.get(key(prefix)) is None
    assert str(alpha.keep().subnet) == "172.17.3.0/24"
    assert etcd.get(key(prefix)) is not None


# --- Races ---------------------------------------------------------------------


def test_a_deleted_lease_is_claimed_again(etcd: Etcd, one: EtcdStore, prefix: str) -> None:
    alpha = holder(one)
    alpha.acquire(NETWORK, Subnets(IPv4Network("172.17.3.0/24")))
    changed = threading.Event()
    watch = one.watch(changed.set)
    try:
        wait_until(lambda: one._watch and one._watch._synced, DEADLINE, "the watch has a list")
        changed.clear()
        etcd.ctl("del", key(prefix))
        assert changed.wait(DEADLINE)
        assert one.snapshot().leases == ()
        assert str(alpha.keep().subnet) == "172.17.3.0/24"
        assert len(one.snapshot().leases) == 1
    finally:
        watch.close()


def test_a_lease_that_another_took_is_not_taken_back(etcd: Etcd, one: EtcdStore, prefix: str) -> None:
    alpha = holder(one)
    alpha.acquire(NETWORK, Subnets(IPv4Network("172.17.3.0/24")))
    value = GOOD.replace("10.0.0.9", "10.0.0.66")
    etcd.ctl("put", key(prefix), value)
    with pytest.raises(LeaseConflict, match=r"the store now has 172\.17\.3\.0/24 of 10\.0\.0\.66"):
        alpha.keep(time.time() + TTL)
    assert etcd.value(key(prefix)) == value


def test_an_entry_of_ours_that_was_put_on_another_etcd_lease_is_kept_alive(
    etcd: Etcd, one: EtcdStore, prefix: str
) -> None:
    """With it, it would end when somebody else's lease does, and nobody here would know when."""
    alpha = holder(one)
    alpha.acquire(NETWORK, Subnets(IPv4Network("172.17.3.0/24")))
    other = etcd.ctl("lease", "grant", "3000").split()[1]
    etcd.ctl("put", key(prefix), etcd.value(key(prefix)), "--lease", other)
    lease = alpha.keep()
    assert lease.expires_at is not None and math.isfinite(lease.expires_at)
    assert math.isfinite(alpha.next_renewal())
    now = etcd.get(key(prefix))
    assert now is not None and format(int(now["lease"]), "x") != other.lstrip("0")


def test_two_nodes_with_one_address_find_out(one: EtcdStore, etcd: Etcd, opened: Opener) -> None:
    alpha, beta = holder(one, node="alpha"), holder(opened(etcd.url), node="beta")
    alpha.acquire(NETWORK)
    beta.acquire(NETWORK)
    with pytest.raises(LeaseConflict, match="both have host address"):
        alpha.keep()


def test_many_nodes_at_once_all_get_a_subnet(one: EtcdStore, etcd: Etcd, opened: Opener) -> None:
    small = replace(NETWORK, subnet_max=IPv4Network("172.17.16.0/24"))
    start = threading.Barrier(16)
    got: list[IPv4Network] = []

    def join(store: EtcdStore, n: int) -> None:
        start.wait(DEADLINE)
        # All pick the first that is free: every round has one winner, as seldom in life.
        node = LeaseHolder(
            store, Identity(IPv4Address(f"10.0.1.{n}"), MAC, 1), ttl=TTL, margin=60, pick=lambda free: free[0]
        )
        got.append(node.acquire(small, Subnets(IPv4Network("172.17.7.0/24"))).subnet)

    threads = [threading.Thread(target=join, args=(opened(etcd.url, timeout=10.0), n)) for n in range(1, 17)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(got) == len(set(got)) == 16
    assert {each.subnet for each in one.snapshot().leases} == set(got)


def test_of_overlapping_subnets_created_at_once_one_wins(one: EtcdStore, etcd: Etcd, opened: Opener) -> None:
    """Not the same key, so only the transaction's own look shows the other."""
    for third in range(0, 40, 2):
        subnets = [IPv4Network(f"172.17.{third}.0/{length}") for length in (23, 24, 25)]
        start = threading.Barrier(3)
        won: list[Lease] = []

        def create(
            store: EtcdStore, subnet: IPv4Network, start: threading.Barrier = start, won: list[Lease] = won
        ) -> None:
            start.wait(DEADLINE)
            try:
                won.append(store.put(replace(lease(), subnet=subnet), None))
            except LeaseConflict:
                return

        threads = [threading.Thread(target=create, args=(opened(etcd.url), subnet)) for subnet in subnets]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
        live = [each.subnet for each in one.snapshot().leases if each.subnet.overlaps(subnets[0])]
        assert [each.subnet for each in won] == live
        assert len(live) <= 1


# --- What does not parse -------------------------------------------------------

MALFORMED = [
    ("/subnets/172.17.4.0-24", "", "not JSON"),
    ("/subnets/172.17.4.0-24", "{", "not JSON"),
    ("/subnets/172.17.4.0-24", "[]", "not a JSON object"),
    ("/subnets/172.17.4.0-24", "\xff\xfe", "PublicIP|JSON|codec"),
    ("/subnets/172.17.4.0-24", "[" * 100_000, "not JSON"),
    ("/subnets/172.17.4.0-24", '{"PublicIP":null,"PublicIPv6":null}', "PublicIP"),
    ("/subnets/172.17.4.0-24", '{"PublicIP":7}', "PublicIP"),
    ("/subnets/172.17.4.0-24", '{"PublicIP":"fd00::1"}', "PublicIP"),
    ("/subnets/172.17.4.0-24", GOOD.replace('"c6:', '"x6:'), "MAC"),
    ("/subnets/172.17.4.0-24", GOOD.replace('"c6:', '"c7:'), "unicast"),
    ("/subnets/172.17.4.0-24", GOOD.replace('"VNI":1', '"VNI":"1"'), "VNI"),
    ("/subnets/172.17.4.0-24", GOOD.replace('"VNI":1', '"VNI":1' + "0" * 5000), "VNI|digit"),
    ("/subnets/172.17.4.0-24", GOOD.replace('{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}', '"x"'), "BackendData"),
    ("/subnets/172.17.4.1-24", GOOD, "host bits"),
    ("/subnets/172.17.4.0-240", GOOD, "lease key"),
    ("/subnets/172.17.4.0-33", GOOD, "33"),
    ("/subnets/172.17.4.0-024", GOOD, "lease key"),
    ("/subnets/172.17.4.0-24&fd00:10:244:1::-640", GOOD, "IPv6 subnet"),
    ("/subnets/172.17.4.0-24&fd00:10:244:1::-64", GOOD.replace("null", "7"), "PublicIPv6"),
    ("/subnets/0.0.0.0-0&fd00:10:244:1::-64", GOOD, "no IPv4 subnet"),
    ("/subnets/x/172.17.4.0-24", GOOD, "lease key"),
    ("/subnets/", GOOD, "lease key"),
    ("/subnets", GOOD, "not below"),
    ("/subnets-own/172.17.4.0-24", GOOD, "not below"),
    ("/subnets/\x1b[31m\n", GOOD, "lease key"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "complaint"), MALFORMED)
def test_an_entry_that_does_not_parse_is_a_problem_and_touches_no_other(
    etcd: Etcd, one: EtcdStore, prefix: str, name: str, value: str, complaint: str
) -> None:
    good = one.put(lease(), None)

    def put() -> None:
        # From stdin: some values are longer than an argument may be. It takes no empty one.
        words = [] if value else [""]
        etcd.ctl("put", "--", prefix + name, *words, stdin=value or None)

    assert watching(one, put)
    watch = one.watch(lambda: None)
    try:
        wait_until(lambda: one._watch and one._watch._synced, DEADLINE, "the watch has a list")
        for found in (one.snapshot(), one.snapshot(fresh=True)):
            assert found.leases == (good,)
            (line,) = found.problems
            assert re.search(complaint, line), line
            assert line.isprintable() and len(line) < 400
        etcd.ctl("del", "--", prefix + name)
        wait_until(lambda: not one.snapshot().problems, DEADLINE, "the problem goes with the entry")
        assert one.snapshot().leases == (good,)
    finally:
        watch.close()


def test_a_subnet_whose_entry_does_not_parse_is_not_taken(etcd: Etcd, one: EtcdStore, prefix: str) -> None:
    etcd.ctl("put", key(prefix), "garbage")
    etcd.ctl("put", f"{prefix}/subnets/172.17.4.0-24&fd00:10:244:1::-64", "garbage")
    for third in (3, 4):
        with pytest.raises(LeaseConflict, match="is taken: etcd key"):
            one.put(lease(third), None)
    got = holder(one).acquire(NETWORK, Subnets(IPv4Network("172.17.3.0/24")))
    assert got.subnet not in (IPv4Network("172.17.3.0/24"), IPv4Network("172.17.4.0/24"))
    assert etcd.value(key(prefix)) == "garbage"


def test_a_lease_with_an_ipv6_subnet_is_a_lease_and_keeps_its_key_when_it_is_written(
    etcd: Etcd, one: EtcdStore, prefix: str
) -> None:
    both = f"{prefix}/subnets/172.17.4.0-24&fd00:10:244:1::-64"
    etcd.ctl("put", both, GOOD.replace('"PublicIPv6":null', '"PublicIPv6":"fd00::9"'))
    (found,) = one.snapshot().leases
    assert found.ipv6 is not None
    assert (str(found.subnet), str(found.ipv6.subnet)) == ("172.17.4.0/24", "fd00:10:244:1::/64")
    with pytest.raises(LeaseConflict, match="is taken: 172.17.4.0/24"):
        one.put(lease(4), None)
    written = one.put(replace(found, node="n"), found)
    assert etcd.get(key(prefix, 4)) is None
    assert '"PublicIPv6":"fd00::9"' in etcd.value(both)
    one.delete(written)
    assert etcd.get(both) is None


def _grant(etcd: Etcd, name: str) -> object:
    """The etcd lease that the key hangs on."""
    found = etcd.get(name)
    assert found is not None
    return found["lease"]


def test_a_lease_that_gets_ipv6_moves_to_another_key_on_its_etcd_lease_and_back(
    etcd: Etcd, one: EtcdStore, prefix: str
) -> None:
    stored = one.put(lease(4), None)
    grant = _grant(etcd, key(prefix, 4))
    both = f"{prefix}/subnets/172.17.4.0-24&fd00:10:244:1::-64"
    part = IPv6Lease(IPv6Network("fd00:10:244:1::/64"), IPv6Address("fd00::9"), MAC, 1)
    moved = one.put(replace(stored, ipv6=part), stored)
    assert etcd.get(key(prefix, 4)) is None
    assert _grant(etcd, both) == grant
    with pytest.raises(LeaseConflict):
        one.put(replace(stored, ipv6=None), stored)
    back = one.put(replace(moved, ipv6=None), moved)
    assert etcd.get(both) is None
    assert one.snapshot().leases == (back,)


BOTH = "172.17.4.0-24&fd00:10:244:1::-64"
PART = IPv6Lease(IPv6Network("fd00:10:244:1::/64"), IPv6Address("fd00::9"), MAC, 1)


@pytest.mark.parametrize("listed", [True, False], ids=["seen before", "created meanwhile"])
def test_a_lease_moves_to_no_key_that_another_host_has_put_there(
    etcd: Etcd, one: EtcdStore, prefix: str, monkeypatch: pytest.MonkeyPatch, listed: bool
) -> None:
    """Two keys of one IPv4 subnet: no list shows what is created after it, and the transaction has to."""
    stored = one.put(lease(4), None)
    theirs = f"{prefix}/subnets/{BOTH}"
    listing = one._listing()
    etcd.ctl("put", theirs, GOOD.replace('"PublicIPv6":null', '"PublicIPv6":"fd00::99"'))
    if not listed:
        monkeypatch.setattr(one, "_listing", lambda: listing)
    with pytest.raises(LeaseConflict, match=r"172.17.4.0/24 is taken: 172.17.4.0/24 of 10.0.0.9"):
        one.put(replace(stored, ipv6=PART), stored)
    assert '"PublicIPv6":"fd00::99"' in etcd.value(theirs)
    assert etcd.get(key(prefix, 4)) is not None, "ours is where it was"


def test_a_lease_moves_over_what_its_own_host_has_left_there(etcd: Etcd, one: EtcdStore, prefix: str) -> None:
    """As a flanneld that became dual stack, and leaves its lease of before to run out."""
    stored = one.put(lease(4, "10.0.0.9"), None)
    etcd.ctl("put", f"{prefix}/subnets/{BOTH}", GOOD.replace('"PublicIPv6":null', '"PublicIPv6":"fd00::99"'))
    moved = one.put(replace(stored, ipv6=PART), stored)
    assert one.snapshot().leases == (moved,) and etcd.get(key(prefix, 4)) is None


def test_a_lease_moves_to_no_ipv6_subnet_of_a_second_key_with_its_ipv4_subnet(
    etcd: Etcd, one: EtcdStore, prefix: str
) -> None:
    stored = one.put(lease(4), None)
    etcd.ctl("put", f"{prefix}/subnets/172.17.4.0-24&fd00:10:244:1::-65", GOOD)
    with pytest.raises(LeaseConflict, match="is taken"):
        one.put(replace(stored, ipv6=PART), stored)
    assert etcd.get(f"{prefix}/subnets/{BOTH}") is None and etcd.get(key(prefix, 4)) is not None


def test_keys_beside_flannels_are_not_looked_at(etcd: Etcd, one: EtcdStore, prefix: str) -> None:
    good = one.put(lease(), None)
    for name in ("/config-old", "/nodes/x", "/subnet", "/subnett", "-ov/x"):
        etcd.ctl("put", prefix + name, "anything")
    snapshot = one.snapshot()
    assert (snapshot.leases, snapshot.problems) == ((good,), ())


@pytest.mark.parametrize("written", ["/{}/", "//{}//"])
def test_slashes_in_the_prefix_do_not_count(etcd: Etcd, opened: Opener, prefix: str, written: str) -> None:
    opened(etcd.url, prefix=written.format(prefix.strip("/"))).put(lease(), None)
    assert etcd.get(key(prefix)) is not None


def test_more_entries_than_a_page_has_are_all_listed(
    etcd: Etcd, one: EtcdStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctl.store.etcd.list.PAGE", 3)
    expected = [one.put(lease(third, f"10.0.0.{third}"), None).subnet for third in range(1, 11)]
    assert [each.subnet for each in one.snapshot().leases] == sorted(expected)
