"""What a watch on real etcd makes of servers that restart, hang, forget and vanish."""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from ctl.core.errors import StoreError
from ctl.core.model import Lease
from ctl.store.etcd.store import EtcdStore
from ctl.store.etcd.watch import Pace
from tests.conformance.conftest import Opener
from tests.etcd import Etcd, Wire
from tests.process import wait_until
from tests.unit.stores import MAC

SECONDS = 40.0


def lease(third: int, host: str = "10.0.0.1") -> Lease:
    subnet = IPv4Network(f"172.17.{third}.0/24")
    return Lease(subnet, IPv4Address(host), MAC, 1, expires_at=time.time() + 600)


class Seen:
    """What the callback of a watch finds, as an agent's would."""

    def __init__(self, store: EtcdStore) -> None:
        self._store = store
        self.subnets: set[str] = set()
        self.error = ""
        self.calls = 0
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            self.calls += 1
            try:
                self.subnets = {str(each.subnet) for each in self._store.snapshot().leases}
                self.error = ""
            except StoreError as error:
                self.error = str(error)

    def until(self, condition: Callable[[Seen], object], what: str) -> None:
        def settled() -> bool:
            return bool(condition(self))

        wait_until(settled, SECONDS, lambda: f"{what}; seen {sorted(self.subnets)[:5]}, error {self.error!r}")

    def has(self, *thirds: int) -> None:
        expected = {f"172.17.{third}.0/24" for third in thirds}
        self.until(lambda seen: seen.subnets == expected and not seen.error, f"leases are {expected}")


@contextmanager
def watched(store: EtcdStore) -> Iterator[Seen]:
    seen = Seen(store)
    watch = store.watch(seen)
    try:
        yield seen
    finally:
        watch.close()


def synced(store: EtcdStore) -> bool:
    return store._watch is not None and store._watch._synced


def test_a_cut_connection_is_made_again_and_nothing_is_missed(etcd: Etcd, opened: Opener) -> None:
    member = etcd.members[0]
    with Wire(member.port) as wire:
        store, other = opened(wire.url), opened(etcd.url)
        stored = other.put(lease(1), None)
        with watched(store) as seen:
            seen.has(1)
            wire.cut()
            other.delete(stored)
            other.put(lease(2), None)
            seen.until(
                lambda seen: "refused" in seen.error or "reset" in seen.error or seen.error, "it says so"
            )
            wire.mend()
            seen.has(2)


def test_readers_are_told_at_once_while_etcd_is_away(etcd: Etcd, opened: Opener) -> None:
    with Wire(etcd.members[0].port) as wire:
        store = opened(wire.url)
        with watched(store) as seen:
            seen.has()
            wire.cut()
            seen.until(lambda seen: seen.error, "the callback reports it")
            with pytest.raises(StoreError, match=f"etcd unreachable: http://127.0.0.1:{wire.port}: "):
                store.snapshot()
            calls = seen.calls
            with pytest.raises(StoreError):
                store.snapshot(fresh=True)
            assert seen.calls == calls  # down is news once


def test_a_partition_is_noticed_and_survived(etcd: Etcd, opened: Opener) -> None:
    """The connection stays up and nothing passes: only asking finds out."""
    with Wire(etcd.members[0].port) as wire:
        store, other = opened(wire.url, timeout=0.5), opened(etcd.url)
        with watched(store) as seen:
            seen.has()
            wire.freeze()
            other.put(lease(1), None)
            seen.until(lambda seen: "timed out" in seen.error, "it says so")
            wire.mend()
            seen.has(1)


def test_a_hanging_server_is_noticed_and_survived(own_etcd: Etcd, opened: Opener) -> None:
    member = own_etcd.start().members[0]
    store = opened(own_etcd.url, timeout=0.5)
    store.put(lease(1), None)
    with watched(store) as seen:
        seen.has(1)
        member.signal(signal.SIGSTOP)
        try:
            seen.until(lambda seen: "timed out" in seen.error, "it says so")
        finally:
            member.signal(signal.SIGCONT)
        seen.has(1)


def test_a_restart_is_survived(own_etcd: Etcd, opened: Opener) -> None:
    member = own_etcd.start().members[0]
    store = opened(own_etcd.url)
    kept = store.put(lease(1), None)
    with watched(store) as seen:
        seen.has(1)
        member.kill()
        seen.until(lambda seen: seen.error, "it says so")
        member.start()
        seen.has(1)
        store.put(replace(kept, host=IPv4Address("10.0.0.2")), kept)
        store.put(lease(2), None)
        seen.has(1, 2)


def compact(etcd: Etcd, prefix: str) -> None:
    """Move the revision on, and forget everything before it."""
    for number in range(5):
        etcd.ctl("put", f"{prefix}-elsewhere", str(number))
    etcd.ctl("compaction", str(etcd.revision()))


def test_a_compaction_under_a_cut_connection_loses_nothing(etcd: Etcd, opened: Opener, prefix: str) -> None:
    with Wire(etcd.members[0].port) as wire:
        store, other = opened(wire.url), opened(etcd.url)
        gone, changed = other.put(lease(1), None), other.put(lease(2), None)
        with watched(store) as seen:
            seen.has(1, 2)
            wire.cut()
            other.delete(gone)
            other.put(replace(changed, host=IPv4Address("10.0.0.99")), changed)
            other.put(lease(3), None)
            compact(etcd, prefix)
            wire.mend()
            seen.has(2, 3)
            assert str(store.snapshot().leases[0].host) == "10.0.0.99"
            other.put(lease(4), None)
            seen.has(2, 3, 4)


def test_a_stream_whose_revision_is_compacted_away_lists_again(
    etcd: Etcd, opened: Opener, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream itself says so: between a list and its watch there is a compaction."""
    store, other = opened(etcd.url), opened(etcd.url)
    lists: list[object] = []
    real = store._client.stream

    def compacting(path: str, body: object) -> object:
        if not lists:
            lists.append(body)
            other.put(lease(1), None)
            compact(etcd, prefix)
        return real(path, body)  # type: ignore[arg-type]

    monkeypatch.setattr(store._client, "stream", compacting)
    with watched(store) as seen:
        seen.has(1)
        assert not store.snapshot().problems


def test_a_cluster_restored_to_another_history_is_followed(own_etcd: Etcd, opened: Opener) -> None:
    """A lower revision: waiting for the next one would be waiting for ever."""
    member = own_etcd.start().members[0]
    store = opened(own_etcd.url)
    for third in range(1, 9):
        store.put(lease(third), None)
    with watched(store) as seen:
        seen.has(*range(1, 9))
        member.kill()
        shutil.rmtree(member.data)
        own_etcd.token = "second"
        own_etcd.start()
        seen.has()
        opened(own_etcd.url).put(lease(3), None)
        seen.has(3)
        store.put(lease(4), None)
        assert len(store.snapshot().leases) == 2


def test_a_cluster_that_loses_its_leader_goes_on(cluster: Etcd, opened: Opener) -> None:
    store = opened(cluster.url)
    kept = store.put(lease(1), None)
    with watched(store) as seen:
        seen.has(1)
        leader = cluster.leader()
        leader.kill()
        wait_until(lambda: _puts(store, 2), SECONDS, "a write goes through again")
        seen.has(1, 2)
        assert store.put(replace(kept, host=IPv4Address("10.0.0.2")), kept).revision > kept.revision


def _puts(store: EtcdStore, third: int) -> bool:
    try:
        store.put(lease(third), None)
    except StoreError:
        # A write whose answer was lost may have been made.
        return any(str(each.subnet) == f"172.17.{third}.0/24" for each in store.snapshot(fresh=True).leases)
    return True


def test_a_member_cut_off_from_its_cluster_is_left(cluster: Etcd, opened: Opener) -> None:
    """It is up and answers, but has no leader: its stream would be silent for ever."""
    lonely, *others = cluster.members
    store = opened(f"etcd://127.0.0.1:{lonely.port},127.0.0.1:{others[0].port}")
    store.put(lease(1), None)
    with watched(store) as seen:
        seen.has(1)
        for member in others:
            member.signal(signal.SIGSTOP)
        seen.until(lambda seen: seen.error, "no quorum: it says so")
        for member in others:
            member.signal(signal.SIGCONT)
        seen.has(1)
        lonely.signal(signal.SIGSTOP)
        try:
            wait_until(
                lambda: _puts(opened(f"etcd://127.0.0.1:{others[0].port}"), 2), SECONDS, "others go on"
            )
            seen.has(1, 2)
        finally:
            lonely.signal(signal.SIGCONT)


def test_the_next_endpoint_is_used_when_one_is_away(etcd: Etcd, opened: Opener) -> None:
    port = etcd.members[0].port
    store = opened(f"etcd://127.0.0.1:1,127.0.0.1:{port}")
    store.put(lease(1), None)
    with watched(store) as seen:
        seen.has(1)


def test_a_lost_event_is_made_good_by_the_next_list(
    etcd: Etcd, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = opened(etcd.url, pace=Pace(probe=0.1, full_list=0.3)), opened(etcd.url)
    with watched(store) as seen:
        seen.has()
        watch = store._watch
        assert watch is not None
        monkeypatch.setattr(watch, "_take", lambda events: None)
        stored = other.put(lease(1), None)
        seen.has(1)
        other.put(replace(stored, host=IPv4Address("10.0.0.7")), stored)
        seen.until(lambda _: str(store.snapshot().leases[0].host) == "10.0.0.7", "the value is corrected")


def test_own_writes_are_seen_at_once(etcd: Etcd, opened: Opener) -> None:
    store = opened(etcd.url)
    with watched(store) as seen:
        seen.has()
        for third in range(1, 40):
            stored = store.put(lease(third), None)
            assert stored in store.snapshot().leases
            if third % 2:
                store.delete(stored)
                assert stored not in store.snapshot().leases


def test_a_burst_arrives_whole(etcd: Etcd, opened: Opener, prefix: str) -> None:
    store = opened(etcd.url)
    value = '{"PublicIP":"10.0.0.9","PublicIPv6":null,"BackendType":"host-gw"}'
    with watched(store) as seen:
        seen.has()
        puts = [f"put {prefix}/subnets/172.17.{n}.0-24 {json.dumps(value)}" for n in range(100)]
        # No compares; these; nothing otherwise.
        etcd.ctl("txn", stdin="\n".join(["", *puts, "", "", ""]))
        seen.has(*range(100))
        etcd.ctl("del", f"{prefix}/subnets/", "--prefix")
        seen.has()


def test_closing_ends_the_threads(etcd: Etcd, opened: Opener) -> None:
    before = set(threading.enumerate())
    store = opened(etcd.url)
    watch = store.watch(lambda: None)
    wait_until(lambda: synced(store), SECONDS, "the watch has a list")
    watch.close()
    wait_until(lambda: set(threading.enumerate()) <= before, SECONDS, "no thread is left")
    store.put(lease(1), None)
    assert len(store.snapshot().leases) == 1
