"""The store in Kubernetes on a twin of its API that does what real ones do to their clients."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ctl.cluster.leasing import LeaseHolder
from ctl.core.errors import ConfigError, LeaseConflict, StoreAway, StoreDenied, StoreError, Unassigned
from ctl.core.host import Identity, IPv6Identity
from ctl.core.lease import conflicts
from ctl.core.model import IPv6Lease, Lease, MacAddress, Subnets
from ctl.process.backoff import BackOff
from ctl.settings.endpoint import Endpoint
from ctl.store.connection.files import Followed
from ctl.store.kubernetes import client
from ctl.store.kubernetes import watch as watch_module
from ctl.store.kubernetes.access import Access
from ctl.store.kubernetes.client import STRATEGIC_MERGE
from ctl.store.kubernetes.schema import Schema
from ctl.store.kubernetes.store import KubernetesOptions, KubernetesStore
from ctl.store.kubernetes.watch import Pace
from tests.etcd import Wire
from tests.kube.nodes import PREFIX, node, now, published
from tests.kube.state import ApiError, merge, strategic
from tests.kube.twin import FLANNEL, Twin, User
from tests.process import wait_until
from tests.unit.stores import MAC

SECONDS = 40.0
QUICK = Pace(watch=20.0, probe=0.5, file=0.05, spread=0.0, back_off=(0.02, 0.2))
NET_CONF = '{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}'
IDENTITY = Identity(IPv4Address("10.0.0.1"), MAC, 1, "n1")

Opener = Callable[..., KubernetesStore]


@pytest.fixture
def twin() -> Iterator[Twin]:
    with Twin() as made:
        made.state.create(node("n1", "10.244.1.0/24"))
        yield made


@pytest.fixture
def opened(twin: Twin, tmp_path: Path) -> Iterator[Opener]:
    """`opened(...)`: a store for the node n1, with flannel's rights; closed after the test."""
    stores: list[KubernetesStore] = []
    net_config = tmp_path / "net-conf.json"
    net_config.write_text(NET_CONF)
    token = tmp_path / "token"
    token.write_text("node")

    def open_one(
        *, port: int = 0, name: str = "n1", pace: Pace = QUICK, timeout: float = 2.0, patient: bool = False
    ) -> KubernetesStore:
        access = Access("test", Endpoint("127.0.0.1", port or twin.port), tokenfile=str(token))
        options = KubernetesOptions(PREFIX, net_config, name)
        stores.append(
            KubernetesStore(
                Followed(lambda: access, ()), options, pace=pace, timeout=timeout, patient=patient
            )
        )
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


class Seen:
    """What the callback of a watch finds, as an agent's would."""

    def __init__(self, store: KubernetesStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self.nodes: dict[str, str] = {}
        """Address by name."""
        self.problems: tuple[str, ...] = ()
        self.error = ""
        self.calls = 0

    def __call__(self) -> None:
        with self._lock:
            self.calls += 1
            try:
                found = self._store.snapshot()
                self.nodes = {each.node: str(each.host) for each in found.leases}
                self.problems = found.problems
                self.error = ""
            except StoreError as error:
                self.error = str(error)

    def has(self, **nodes: str) -> None:
        """Returns when exactly these are known, and nothing is wrong."""
        wait_until(
            lambda: self.calls and self.nodes == nodes and not self.error, SECONDS,
            lambda: f"{nodes}; seen {list(self.nodes.items())[:5]}, error {self.error!r}",
        )  # fmt: skip

    def says(self, text: str) -> None:
        wait_until(lambda: text in self.error, SECONDS, lambda: f"{text!r} in {self.error!r}")


@contextmanager
def watched(store: KubernetesStore) -> Iterator[Seen]:
    seen = Seen(store)
    watch = store.watch(seen)
    try:
        yield seen
    finally:
        watch.close()


def join(twin: Twin, name: str, third: int, host: str) -> None:
    twin.state.create(node(name, f"10.244.{third}.0/24", annotations=published(host)))


def annotate(twin: Twin, name: str, **values: str | None) -> None:
    change = {PREFIX + key.replace("_", "-"): value for key, value in values.items()}
    twin.state.patch(name, merge, {"metadata": {"annotations": change}}, status=False)


def lease(**more: Any) -> Lease:
    return replace(Lease(IPv4Network("10.244.1.0/24"), IPv4Address("10.0.0.1"), MAC, 1, node="n1"), **more)


# --- Following -----------------------------------------------------------------


def test_nodes_that_come_change_and_go_are_followed(twin: Twin, opened: Opener) -> None:
    join(twin, "n2", 2, "10.0.0.2")
    with watched(opened()) as seen:
        seen.has(n2="10.0.0.2")
        join(twin, "n3", 3, "10.0.0.3")
        seen.has(n2="10.0.0.2", n3="10.0.0.3")
        annotate(twin, "n2", public_ip="10.0.0.22")
        seen.has(n2="10.0.0.22", n3="10.0.0.3")
        twin.state.delete("n3")
        seen.has(n2="10.0.0.22")
        annotate(twin, "n2", kube_subnet_manager=None)
        seen.has()


def join_many(twin: Twin, count: int) -> None:
    for number in range(count):
        high, low = divmod(number, 250)
        written = published(f"10.1.{high}.{1 + low}")
        twin.state.create(node(f"m{number}", f"10.{100 + high}.{low}.0/24", annotations=written))


def test_a_list_of_several_pages_is_one_state_and_costs_a_request_for_each(
    twin: Twin, opened: Opener
) -> None:
    join_many(twin, 1201)
    store = opened()
    with watched(store) as seen:
        wait_until(lambda: len(seen.nodes) == 1201, SECONDS, lambda: f"{len(seen.nodes)} nodes are seen")
        wait_until(lambda: twin.of("watch"), SECONDS, "it watches")
        assert [len(twin.of(verb)) for verb in ("list", "watch", "get")] == [3, 1, 0]
        assert store.snapshot().leases[0].node == "m0"


def test_heartbeats_are_not_parsed_and_wake_nobody(
    twin: Twin, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    join(twin, "n2", 2, "10.0.0.2")
    read: list[str] = []
    original = Schema.read

    def counting(self: Schema, found: Any, mark: int = 0) -> Any:
        read.append(found["metadata"]["name"])
        return original(self, found, mark)

    with watched(opened()) as seen:
        seen.has(n2="10.0.0.2")
        monkeypatch.setattr(Schema, "read", counting)
        calls = seen.calls
        for beat in range(200):
            condition = {"type": "Ready", "status": "True", "lastHeartbeatTime": f"{now()}-{beat}"}
            twin.state.patch("n2", merge, {"status": {"conditions": [condition]}}, status=True)
        join(twin, "n3", 3, "10.0.0.3")
        seen.has(n2="10.0.0.2", n3="10.0.0.3")
        assert read == ["n3"]
        assert seen.calls == calls + 1


# --- A watch that loses nothing ---------------------------------------------------


def test_a_watch_that_ends_at_its_time_goes_on_where_it_was(twin: Twin, opened: Opener) -> None:
    with watched(opened()) as seen:
        join(twin, "n2", 2, "10.0.0.2")
        seen.has(n2="10.0.0.2")
        twin.expire_watches()
        join(twin, "n3", 3, "10.0.0.3")
        seen.has(n2="10.0.0.2", n3="10.0.0.3")
        twin.expire_watches()
        twin.state.delete("n2")
        seen.has(n3="10.0.0.3")
        assert len(full_lists(twin)) == 1


def full_lists(twin: Twin) -> list[str]:
    return [each.path for each in twin.of("list") if "limit=500" in each.path]


def test_what_was_deleted_while_the_history_was_gone_is_not_kept(twin: Twin, opened: Opener) -> None:
    """An API server that is restarted answers 410: its history begins with its own first list."""
    join(twin, "n2", 2, "10.0.0.2")
    join(twin, "n3", 3, "10.0.0.3")
    with watched(opened()) as seen:
        seen.has(n2="10.0.0.2", n3="10.0.0.3")
        twin.stop()
        twin.state.delete("n2")
        join(twin, "n4", 4, "10.0.0.4")
        twin.state.forget()
        twin.start()
        seen.has(n3="10.0.0.3", n4="10.0.0.4")


def test_a_history_that_is_compacted_under_a_running_watch_is_listed_anew(twin: Twin, opened: Opener) -> None:
    join(twin, "n2", 2, "10.0.0.2")
    with watched(opened()) as seen:
        seen.has(n2="10.0.0.2")
        twin.faults.silent = True
        twin.state.delete("n2")
        twin.state.forget()
        twin.faults.silent = False
        seen.has()


def test_a_list_whose_history_goes_between_two_pages_begins_anew(twin: Twin, opened: Opener) -> None:
    join_many(twin, 501)
    original, calls = twin.state.page, []

    def forgetful(limit: int = 0, token: str = "", *more: Any) -> bytes:
        calls.append(token)
        page = original(limit, token, *more)
        if len(calls) == 1:
            twin.state.forget()
            twin.state.version += 1
            twin.state.floor += 1
        return page

    twin.state.page = forgetful  # type: ignore[method-assign,assignment]
    assert len(opened().snapshot().leases) == 501
    assert len(calls) == 4


@pytest.mark.parametrize("size", [0, 1, 20, 400])
def test_an_event_that_is_cut_off_in_the_middle_is_told_again(twin: Twin, opened: Opener, size: int) -> None:
    with watched(opened()) as seen:
        streams(twin, seen)
        twin.faults.cut_after = size
        join(twin, "n2", 2, "10.0.0.2")
        seen.has(n2="10.0.0.2", n9="10.0.0.9")
        assert twin.faults.cut_after is None


def test_a_watch_that_says_nothing_tells_what_it_kept_back_when_its_time_is_over(
    twin: Twin, opened: Opener
) -> None:
    """The server answers, and the stream is up: only its end helps, so it is not asked for for ever."""
    with watched(opened(pace=replace(QUICK, watch=0.5))) as seen:
        streams(twin, seen)
        twin.silence_running()
        join(twin, "n2", 2, "10.0.0.2")
        seen.has(n2="10.0.0.2", n9="10.0.0.9")


def test_what_we_write_is_told_though_its_answer_comes_before_the_watch_hears_of_it(
    twin: Twin, opened: Opener
) -> None:
    store = opened(pace=replace(QUICK, watch=0.5))
    with watched(store) as seen:
        streams(twin, seen)
        twin.silence_running()
        store.put(lease(), None)
        seen.has(n1="10.0.0.1", n9="10.0.0.9")


def test_a_server_that_hangs_is_noticed_and_survived(twin: Twin, opened: Opener) -> None:
    """The stream is up, and nothing passes: only asking finds out."""
    with Wire(twin.port) as wire, watched(opened(port=wire.port, timeout=0.5)) as seen:
        streams(twin, seen)
        wire.freeze()
        join(twin, "n2", 2, "10.0.0.2")
        seen.says("timed out")
        wire.mend()
        seen.has(n2="10.0.0.2", n9="10.0.0.9")


def streams(twin: Twin, seen: Seen) -> None:
    """Returns when a watch has told of something: of the node n9, which is there from now on."""
    wait_until(lambda: twin.of("watch"), SECONDS, "it watches")
    join(twin, "n9", 9, "10.0.0.9")
    wait_until(lambda: "n9" in seen.nodes, SECONDS, "the watch tells")


def test_a_server_that_is_busy_is_there_and_its_stream_is_kept(twin: Twin, opened: Opener) -> None:
    with watched(opened(pace=replace(QUICK, probe=0.1))) as seen:
        streams(twin, seen)
        twin.faults.busy = True
        wait_until(lambda: len(twin.of("get", "/version")) > 2, SECONDS, "it is asked")
        join(twin, "n2", 2, "10.0.0.2")
        seen.has(n2="10.0.0.2", n9="10.0.0.9")
        assert twin.watches == 1


def test_a_failure_that_takes_long_is_no_success(
    twin: Twin, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a server that is slow from load would be asked for everything again without a pause."""
    waits: list[float] = []

    class Noting(BackOff):
        def failed(self, now: float) -> float:
            waits.append(super().failed(now))
            return waits[-1]

        def succeeded(self) -> None:
            waits.clear()
            super().succeeded()

    monkeypatch.setattr(watch_module, "BackOff", Noting)
    twin.faults.delay = 0.3
    twin.faults.answers = [(500, {}, b"slow")] * 3
    with watched(opened(pace=replace(QUICK, back_off=(0.01, 0.1)))) as seen:
        wait_until(lambda: twin.watches, SECONDS, "it watches at last")
        assert len(waits) == 3 and waits[2] > waits[0]
        twin.faults.delay = 0.0
        seen.has()


def test_an_api_that_is_away_is_said_once_and_what_is_known_is_kept(twin: Twin, opened: Opener) -> None:
    join(twin, "n2", 2, "10.0.0.2")
    store = opened()
    with watched(store) as seen:
        seen.has(n2="10.0.0.2")
        twin.stop()
        seen.says("kubernetes unreachable: http://127.0.0.1:")
        calls = seen.calls
        with pytest.raises(StoreAway, match="connection refused"):
            store.snapshot()
        assert seen.calls == calls
        assert seen.nodes == {"n2": "10.0.0.2"}
        twin.start()
        seen.has(n2="10.0.0.2")
        assert len(full_lists(twin)) == 1  # the list that it had is still good


def test_an_etcd_restored_from_a_backup_is_believed(twin: Twin, opened: Opener) -> None:
    """Its versions are smaller: a watch from ours on stays silent, and no error tells of it."""
    join(twin, "n2", 2, "10.0.0.2")
    saved = twin.state.save()
    join(twin, "n3", 3, "10.0.0.3")
    with watched(opened()) as seen:
        seen.has(n2="10.0.0.2", n3="10.0.0.3")
        twin.stop()
        twin.state.restore(saved)
        twin.start()
        seen.has(n2="10.0.0.2")
        join(twin, "n4", 4, "10.0.0.4")
        seen.has(n2="10.0.0.2", n4="10.0.0.4")


def test_what_no_watch_has_told_the_full_list_makes_good(twin: Twin, opened: Opener) -> None:
    pace = replace(QUICK, full_list=0.2, per_node=0.0, probe=0.1)
    with watched(opened(pace=pace)) as seen:
        seen.has()
        twin.faults.silent = True
        join(twin, "n2", 2, "10.0.0.2")
        seen.has(n2="10.0.0.2")


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_a_watch_ends_where_a_fresh_list_does(twin: Twin, opened: Opener, seed: int) -> None:
    chosen = random.Random(seed)

    def change() -> None:
        name = f"m{chosen.randrange(12)}"
        try:
            twin.state.object(name)
        except ApiError:
            join(twin, name, 20 + int(name[1:]), f"10.0.1.{chosen.randrange(1, 250)}")
        else:
            if chosen.random() < 0.5:
                twin.state.delete(name)
            else:
                annotate(twin, name, public_ip=f"10.0.1.{chosen.randrange(1, 250)}")

    def cut() -> None:
        twin.faults.cut_after = chosen.randrange(600)

    accidents = [twin.hang_up, twin.expire_watches, twin.restart, twin.state.forget, cut]
    with watched(opened(pace=replace(QUICK, watch=0.3))) as seen:
        for _ in range(25):
            for _ in range(chosen.randrange(4)):
                change()
            chosen.choice(accidents)()
            wait_until(lambda: twin.running, SECONDS, "it runs")
        twin.faults.cut_after = None
        with_marks = {each.node: str(each.host) for each in opened().snapshot().leases}
        seen.has(**with_marks)


STATUS = {"kind": "Status", "status": "Failure"}
REFUSALS: list[tuple[int, dict[str, str], bytes]] = [
    (429, {"Retry-After": "1"}, b"too many"),
    (500, {}, json.dumps({**STATUS, "code": 500, "message": "etcdserver: leader changed"}).encode()),
    (502, {}, b"<html>bad gateway</html>"),
    (503, {"Retry-After": "1"}, json.dumps({**STATUS, "code": 503, "message": "not yet"}).encode()),
    (504, {}, json.dumps({**STATUS, "code": 504, "message": "Timeout: Too large resource version"}).encode()),
    (401, {}, json.dumps({**STATUS, "code": 401, "message": "Unauthorized"}).encode()),
    (403, {}, json.dumps({**STATUS, "code": 403, "message": "nodes is forbidden"}).encode()),
    (200, {}, b"<html>log in</html>"),
]


@pytest.mark.parametrize("answer", REFUSALS, ids=lambda answer: f"{answer[0]}")
def test_a_refusal_is_said_and_is_not_the_end(
    twin: Twin, opened: Opener, answer: tuple[int, dict[str, str], bytes]
) -> None:
    join(twin, "n2", 2, "10.0.0.2")
    twin.faults.answers = [answer, answer]
    with watched(opened(patient=True)) as seen:
        wait_until(lambda: seen.error or seen.nodes, SECONDS, "it is said")
        seen.has(n2="10.0.0.2")
        twin.faults.answers = [answer]
        twin.hang_up()
        join(twin, "n3", 3, "10.0.0.3")
        seen.has(n2="10.0.0.2", n3="10.0.0.3")


def test_a_right_that_stays_missing_is_told_as_final_though_others_are_there(
    twin: Twin, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read before each attempt to write is no sign that the right to write has come."""
    twin.users["node"] = User("node", FLANNEL - {"patch nodes/status"})
    now_ = [0.0]
    monkeypatch.setattr(client, "time", SimpleNamespace(monotonic=lambda: now_[0]))
    store = opened(patient=True)
    with pytest.raises(StoreAway, match="cannot patch"):
        store.put(lease(), None)
    now_[0] = client.REFUSAL_S
    with pytest.raises(StoreDenied, match='cannot patch resource "nodes/status"'):
        store.put(lease(), None)


def test_a_watch_refused_with_a_line_of_its_stream_is_asked_for_again(twin: Twin, opened: Opener) -> None:
    line = (
        json.dumps({"type": "ERROR", "object": {**STATUS, "code": 500, "message": "no progress"}}).encode()
        + b"\n"
    )
    with watched(opened()) as seen:
        seen.has()
        twin.faults.answers = [(200, {}, line)]
        twin.hang_up()
        join(twin, "n2", 2, "10.0.0.2")
        seen.has(n2="10.0.0.2")


# --- Who we are ------------------------------------------------------------------


def test_a_token_that_is_rotated_is_used_at_once_when_the_old_one_is_refused(
    twin: Twin, opened: Opener, tmp_path: Path
) -> None:
    store = opened()
    store.snapshot()
    twin.users["second"] = twin.users.pop("node")
    (tmp_path / "token").write_text("second")
    assert store.put(lease(), None).host == IPv4Address("10.0.0.1")
    with watched(store) as seen:
        seen.has(n1="10.0.0.1")
        twin.users["third"] = twin.users.pop("second")
        twin.hang_up()
        seen.says("Unauthorized (credentials of the test)")
        (tmp_path / "token").write_text("third")
        seen.has(n1="10.0.0.1")


@pytest.mark.parametrize("verb", ["list nodes", "get nodes", "patch nodes/status"])
def test_a_rule_that_is_missing_is_named(twin: Twin, opened: Opener, verb: str) -> None:
    twin.users["node"] = User("system:serviceaccount:kube-flannel:flannel", FLANNEL - {verb})
    store = opened()
    word, _, resource = verb.partition(" ")
    with pytest.raises(StoreDenied, match=f'cannot {word} resource "{resource}"'):
        store.snapshot()
        store.put(lease(), None)


def test_without_the_right_to_watch_nodes_are_listed_at_intervals_and_the_right_is_named(
    twin: Twin, opened: Opener
) -> None:
    twin.users["node"] = User("system:serviceaccount:kube-flannel:flannel", FLANNEL - {"watch nodes"})
    store = opened(pace=replace(QUICK, unwatched=0.05, per_node=0.0))
    with watched(store) as seen:
        wait_until(lambda: seen.problems, SECONDS, "it is said")
        join(twin, "n2", 2, "10.0.0.2")
        seen.has(n2="10.0.0.2")
        (said,) = seen.problems
        assert 'cannot watch resource "nodes"' in said
        twin.users["node"] = User("system:serviceaccount:kube-flannel:flannel")
        wait_until(lambda: not seen.problems, SECONDS, "it may watch again")


def test_flannels_rights_are_enough_and_no_other_are_asked_for(twin: Twin, opened: Opener) -> None:
    store = opened()
    store.put(lease(), None)
    store.in_service()
    with watched(store) as seen:
        seen.has(n1="10.0.0.1")
    assert {each.verb for each in twin.asked if each.user} <= {"get", "list", "watch", "patch"}
    assert all(each.path.startswith("/api/v1/nodes/n1/status") for each in twin.of("patch"))


# --- Our own Node ----------------------------------------------------------------


def stands(twin: Twin, name: str = "n1") -> dict[str, str]:
    """Flannel's annotations of a Node."""
    found: dict[str, str] = twin.state.object(name)["metadata"]["annotations"]
    return {key.removeprefix(PREFIX): value for key, value in found.items() if key.startswith(PREFIX)}


def test_what_is_published_is_flannels_and_the_same_again_is_no_request(twin: Twin, opened: Opener) -> None:
    store = opened()
    assert store.assigned("n1") == Subnets(IPv4Network("10.244.1.0/24"))
    stored = store.put(lease(expires_at=5.0), None)
    assert stored.expires_at is None
    assert stands(twin) == {
        "backend-data": f'{{"VNI":1,"VtepMAC":"{MAC}"}}',
        "backend-type": "vxlan", "kube-subnet-manager": "true", "public-ip": "10.0.0.1",
    }  # fmt: skip
    (patch,) = twin.of("patch")
    assert patch.content == STRATEGIC_MERGE and patch.body is not None
    assert set(patch.body["metadata"]) == {"uid", "annotations"}
    again = opened()
    again.put(lease(), None)
    again.put(lease(), again.snapshot().leases[0])
    assert len(twin.of("patch")) == 1


def test_only_what_differs_is_patched(twin: Twin, opened: Opener) -> None:
    store = opened()
    stored = store.put(lease(), None)
    store.put(replace(stored, host=IPv4Address("10.0.0.9")), stored)
    body = twin.of("patch")[-1].body
    assert body is not None and body["metadata"]["annotations"] == {f"{PREFIX}public-ip": "10.0.0.9"}


def test_a_node_created_anew_is_not_written_to_as_the_old_one(twin: Twin, opened: Opener) -> None:
    store = opened()
    with watched(store) as seen:
        store.put(lease(), None)
        seen.has(n1="10.0.0.1")
        twin.faults.silent = True  # so that the store does not know yet
        twin.state.delete("n1")
        twin.state.create(node("n1", "10.244.7.0/24"))
        with pytest.raises(LeaseConflict, match="field is immutable"):
            store.put(lease(host=IPv4Address("10.0.0.8")), None)
        assert stands(twin) == {}


@pytest.mark.parametrize("back", [True, False])
def test_a_node_that_is_another_one_by_now_is_asked_for_once(twin: Twin, opened: Opener, back: bool) -> None:
    """Before the watch tells: a holder that tries again and again must not flood the API."""
    store = opened()
    with watched(store) as seen:
        held = holder(store)
        held.acquire(network_of(store))
        seen.has(n1="10.0.0.1")
        twin.faults.silent = True
        twin.state.delete("n1")
        if back:
            twin.state.create(node("n1", "10.244.7.0/24"))
        before = len(twin.of("patch"))
        held.identity = replace(IDENTITY, host=IPv4Address("10.0.0.8"))
        said = "the node has 10.244.7.0/24 now" if back else "there is no node n1"
        assert said in _complaint(held)
        assert len(twin.of("patch")) == before + 1
        twin.faults.silent = False
        assert said in _complaint(held)


def test_a_node_without_a_podcidr_waits_for_one(twin: Twin, opened: Opener) -> None:
    twin.state.create(node("n2"))
    store = opened(name="n2")
    for look in (store.read_network, lambda: store.assigned("n2")):
        with pytest.raises(Unassigned, match=r"node n2 has no podCIDR .*--allocate-node-cidrs=true"):
            look()
    twin.state.patch("n2", merge, {"spec": {"podCIDR": "10.244.2.0/24"}}, status=False)
    network = store.read_network()
    assert network is not None and network.subnet_len == 24
    assert store.assigned("n2") == Subnets(IPv4Network("10.244.2.0/24"))


def test_a_node_that_nobody_has_registered_waits_and_one_without_a_name_is_refused(opened: Opener) -> None:
    with pytest.raises(Unassigned, match="there is no node n9 in the API"):
        opened(name="n9").assigned("n9")
    for ask in (opened(name="").assigned, opened(name="").addresses_of):
        with pytest.raises(ConfigError, match="set NODE_NAME"):
            ask("")


def test_a_podcidr_outside_of_the_network_is_refused_before_anything_is_published(
    twin: Twin, opened: Opener
) -> None:
    twin.state.create(node("n2", "10.42.2.0/24"))
    with pytest.raises(
        ConfigError, match=r"Network 10.244.0.0/16 does not contain 10.42.2.0/24, the podCIDR of node n2"
    ):
        opened(name="n2").read_network()
    assert twin.of("patch") == []


def test_the_network_is_a_file_and_is_written_by_nobody(opened: Opener, tmp_path: Path) -> None:
    store = opened()
    network = store.read_network()
    assert network is not None
    with pytest.raises(ConfigError, match="ConfigMap"):
        store.write_network(network)
    (tmp_path / "net-conf.json").write_text(NET_CONF.replace("vxlan", "host-gw"))
    changed = store.read_network()
    assert changed is not None and (network.backend, changed.backend) == ("vxlan", "host-gw")
    (tmp_path / "net-conf.json").unlink()
    with pytest.raises(
        ConfigError, match="net-conf.json: No such file or directory: mount flannel's ConfigMap"
    ):
        store.read_network()


def test_a_change_of_the_configmap_is_told_and_read_though_only_a_link_is_another_one(
    opened: Opener, tmp_path: Path
) -> None:
    """As kubelet mounts it: the file is a link to `..data/`, itself a link to a directory that is swapped."""
    store = opened()
    for version, backend in (("..1", '{"Type":"vxlan"}'), ("..2", '{"Type":"vxlan","MTU":1400}')):
        (tmp_path / version).mkdir()
        conf = json.dumps(json.loads(NET_CONF) | {"Backend": json.loads(backend)})
        (tmp_path / version / "net-conf.json").write_text(conf)
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "net-conf.json").unlink()
    (tmp_path / "net-conf.json").symlink_to("..data/net-conf.json")
    network = store.read_network()
    assert network is not None and network.mtu is None
    with watched(store) as seen:
        seen.has()
        calls = seen.calls
        (tmp_path / "..tmp").symlink_to("..2")
        (tmp_path / "..tmp").rename(tmp_path / "..data")
        wait_until(lambda: seen.calls > calls, SECONDS, "who watches is told")
        network = store.read_network()
        assert network is not None and network.mtu == 1400
        calls = seen.calls
        (tmp_path / "..data").unlink()
        wait_until(lambda: seen.calls > calls, SECONDS, "also that it is not there any more")


def test_leases_of_others_are_nobodys_to_write(twin: Twin, opened: Opener) -> None:
    join(twin, "n2", 2, "10.0.0.2")
    store = opened()
    (other,) = store.snapshot().leases
    with pytest.raises(ConfigError, match="nothing to reserve"):
        store.put(other, other)
    with pytest.raises(ConfigError, match="kubectl delete node n2"):
        store.delete(other)
    assert twin.of("patch") == []


def test_a_subnet_that_another_node_holds_is_not_published(twin: Twin, opened: Opener) -> None:
    """Kubernetes does not refuse a podCIDR that another Node has."""
    join(twin, "other", 1, "10.0.0.2")
    with pytest.raises(
        LeaseConflict, match=r"10.244.1.0/24 of other at 10.0.0.2 has a podCIDR that overlaps ours"
    ):
        opened().put(lease(), None)
    assert stands(twin) == {}


def test_the_condition_is_cleared_as_flannel_does_and_others_stay(twin: Twin, opened: Opener) -> None:
    opened().in_service()
    conditions = {each["type"]: each for each in twin.state.object("n1")["status"]["conditions"]}
    assert set(conditions) == {"Ready", "NetworkUnavailable"}
    told = conditions["NetworkUnavailable"]
    assert (told["status"], told["reason"]) == ("False", "FlannelIsUp")
    assert told["message"] == "Flannel is running on this node"


def test_the_condition_is_cleared_again_when_somebody_sets_it(twin: Twin, opened: Opener) -> None:
    store = opened()
    with watched(store) as seen:
        store.in_service()
        store.in_service()
        assert len(twin.of("patch")) == 1
        streams(twin, seen)
        set_unavailable(twin, "n1")
        wait_until(lambda: cleared(store, twin), SECONDS, "cleared again")
        wait_until(lambda: not store._watch or not store._watch.unavailable(), SECONDS, "heard of it")
        before = len(twin.of("patch"))
        store.in_service()
        set_unavailable(twin, "n9")
        store.in_service()
        assert len(twin.of("patch")) == before


def set_unavailable(twin: Twin, name: str) -> None:
    told = {"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"}
    twin.state.patch(name, strategic, {"status": {"conditions": [told]}}, status=True)


def cleared(store: KubernetesStore, twin: Twin) -> bool:
    store.in_service()
    conditions = twin.state.object("n1")["status"]["conditions"]
    return [each["status"] for each in conditions if each["type"] == "NetworkUnavailable"] == ["False"]


# --- With a holder of leases, as the agent has it -----------------------------------


def holder(store: KubernetesStore) -> LeaseHolder:
    return LeaseHolder(store, IDENTITY, ttl=100.0, margin=10.0)


def network_of(store: KubernetesStore) -> Any:
    return store.read_network()


def test_a_node_takes_the_subnet_that_it_is_given_and_no_other(twin: Twin, opened: Opener) -> None:
    store = opened()
    with watched(store) as seen:
        held = holder(store)
        acquired = held.acquire(network_of(store), Subnets(IPv4Network("10.244.77.0/24")))
        assert acquired.subnet == IPv4Network("10.244.1.0/24")
        seen.has(n1="10.0.0.1")
        assert held.keep().subnet == acquired.subnet and held.next_renewal() == float("inf")
        assert len(twin.of("patch")) == 1


@pytest.mark.parametrize(
    "damage",
    [
        {"public_ip": "10.9.9.9"},
        {"public_ip": None, "kube_subnet_manager": None},
        {"backend_data": '{"VNI":1,"VtepMAC":"02:00:00:00:00:99"}'},
        {"backend_data": "garbage"},
    ],
)
def test_annotations_changed_by_hand_are_put_back(
    twin: Twin, opened: Opener, damage: dict[str, str | None]
) -> None:
    store = opened()
    with watched(store) as seen:
        held = holder(store)
        held.acquire(network_of(store))
        before = stands(twin)
        annotate(twin, "n1", **damage)
        wait_until(
            lambda: seen.nodes != {"n1": "10.0.0.1"} or "backend_data" in damage, SECONDS, "it is seen"
        )
        wait_until(lambda: not _complaint(held) and stands(twin) == before, SECONDS, "put back")


def test_an_administrators_address_is_published_once_and_fought_over_by_nobody(
    twin: Twin, opened: Opener
) -> None:
    annotate(twin, "n1", public_ip_overwrite="203.0.113.7")
    store = opened()
    with watched(store) as seen:
        held = holder(store)
        assert held.acquire(network_of(store)).host == IPv4Address("10.0.0.1")
        wait_until(lambda: "n1" in seen.nodes, SECONDS, "it is published")
        assert stands(twin)["public-ip"] == "203.0.113.7"
        for _ in range(3):
            held.keep()
        assert len(twin.of("patch")) == 1


def test_an_administrators_address_that_is_none_is_named_and_ours_stays(twin: Twin, opened: Opener) -> None:
    store = opened()
    with watched(store) as seen:
        held = holder(store)
        held.acquire(network_of(store))
        annotate(twin, "n1", public_ip_overwrite="10.0.0")
        wait_until(lambda: "n1: public-ip-overwrite: " in str(seen.problems), SECONDS, "it is named")
        held.keep()
        seen.has(n1="10.0.0.1")
        assert stands(twin)["public-ip"] == "10.0.0.1"


def test_a_node_of_another_name_is_another_node_and_the_old_one_is_named_until_it_is_deleted(
    twin: Twin, opened: Opener
) -> None:
    holder(opened()).acquire(network_of(opened()))
    before = stands(twin)
    twin.state.create(node("renamed", "10.244.2.0/24"))
    store = opened(name="renamed")
    with watched(store) as seen:
        held = LeaseHolder(store, replace(IDENTITY, node="renamed"), ttl=100.0, margin=10.0)
        acquired = held.acquire(network_of(store), Subnets(IPv4Network("10.244.1.0/24")))
        assert (acquired.subnet, acquired.node) == (IPv4Network("10.244.2.0/24"), "renamed")
        seen.has(n1="10.0.0.1", renamed="10.0.0.1")
        (line,) = conflicts(store.snapshot().leases)
        assert "10.244.1.0/24 of n1" in str(line) and "10.244.2.0/24 of renamed" in str(line)
        assert stands(twin) == before, "the old Node is not ours to write"
        twin.state.delete("n1")
        seen.has(renamed="10.0.0.1")
        assert not _complaint(held) and conflicts(store.snapshot().leases) == ()


@pytest.mark.parametrize(
    "addresses", [[], [("ExternalIP", "203.0.113.7")], [("InternalIP", "10.99.0.1")]], ids=str
)
def test_what_the_cluster_takes_for_a_nodes_address_is_no_matter(
    twin: Twin, opened: Opener, addresses: list[tuple[str, str]]
) -> None:
    listed = [{"type": kind, "address": address} for kind, address in addresses]
    twin.state.patch("n1", merge, {"status": {"addresses": listed}}, status=True)
    holder(opened()).acquire(network_of(opened()))
    assert stands(twin)["public-ip"] == "10.0.0.1"


def test_our_node_deleted_and_back_with_its_subnet_is_published_again(twin: Twin, opened: Opener) -> None:
    store = opened()
    with watched(store) as seen:
        held = holder(store)
        held.acquire(network_of(store))
        seen.has(n1="10.0.0.1")
        twin.state.delete("n1")
        seen.has()
        with pytest.raises(LeaseConflict, match=r"lost 10.244.1.0/24 of n1 .*there is no node n1"):
            held.keep()
        twin.state.create(node("n1", "10.244.1.0/24"))
        wait_until(lambda: not _complaint(held), SECONDS, "it is ours again")
        assert stands(twin)["public-ip"] == "10.0.0.1"


def test_our_node_back_with_another_subnet_is_refused_and_the_old_one_is_not_published(
    twin: Twin, opened: Opener
) -> None:
    store = opened()
    with watched(store) as seen:
        held = holder(store)
        held.acquire(network_of(store))
        seen.has(n1="10.0.0.1")
        twin.state.delete("n1")
        twin.state.create(node("n1", "10.244.8.0/24"))
        said = r"the node has 10.244.8.0/24 now: drain it and restart"
        wait_until(lambda: said in _complaint(held), SECONDS, said)
        assert stands(twin) == {}


# --- Both families ----------------------------------------------------------------

SUBNET6, HOST6 = IPv6Network("fd00:10:244:1::/64"), IPv6Address("fd77::1")
MAC6 = MacAddress.parse("02:00:00:00:00:66")
DUAL_CONF = NET_CONF.replace('"Backend"', '"EnableIPv6":true,"IPv6Network":"fd00:10:244::/56","Backend"')


@pytest.fixture
def dual(twin: Twin, opened: Opener, tmp_path: Path) -> Opener:
    """As `opened`, in a cluster of both families."""
    (tmp_path / "net-conf.json").write_text(DUAL_CONF)
    twin.state.delete("n1")
    twin.state.create(node("n1", "10.244.1.0/24", str(SUBNET6)))
    return opened


def dual_holder(store: KubernetesStore) -> LeaseHolder:
    identity = replace(IDENTITY, ipv6=IPv6Identity(HOST6, MAC6, 1))
    return LeaseHolder(store, identity, ttl=100.0, margin=10.0)


def test_a_node_publishes_both_families_once_and_takes_ipv6_away_with_the_networks(
    twin: Twin, dual: Opener, tmp_path: Path
) -> None:
    store = dual()
    held = dual_holder(store)
    assert held.acquire(network_of(store)).ipv6 == IPv6Lease(SUBNET6, HOST6, MAC6, 1)
    both = stands(twin)
    assert both["public-ipv6"] == "fd77::1"
    assert both["backend-v6-data"] == f'{{"VNI":1,"VtepMAC":"{MAC6}"}}'
    held.keep()
    dual_holder(dual()).acquire(network_of(store))
    assert len(twin.of("patch")) == 1
    (tmp_path / "net-conf.json").write_text(NET_CONF)
    assert holder(store).acquire(network_of(store)).ipv6 is None
    assert stands(twin).items() == {k: v for k, v in both.items() if "v6" not in k}.items()


def test_a_podcidr_of_ipv6_outside_of_the_network_is_refused(twin: Twin, dual: Opener) -> None:
    twin.state.create(node("n2", "10.244.2.0/24", "fd00:9::/64"))
    said = "IPv6Network fd00:10:244::/56 does not contain fd00:9::/64, the podCIDR of node n2"
    with pytest.raises(ConfigError, match=said):
        dual(name="n2").read_network()
    assert twin.of("patch") == []


def test_a_node_without_a_podcidr_of_ipv6_has_ipv4_only(twin: Twin, dual: Opener) -> None:
    """A Node keeps the podCIDRs that it has: to wait for another one would be to wait for ever."""
    twin.state.create(node("n2", "10.244.2.0/24"))
    store = dual(name="n2")
    held = dual_holder(store)
    held.identity = replace(held.identity, node="n2")
    assert network_of(store).ipv6 is None, "nor is an uplink with IPv6 asked for"
    with watched(store):
        assert held.acquire(network_of(store)).ipv6 is None
        said = "node n2 has no podCIDR for IPv6, which the network has"
        assert [said in each for each in store.snapshot().problems] == [True]
        twin.state.delete("n2")
        wait_until(lambda: "there is no node n2" in _complaint(held), SECONDS, "it has gone")
        assert network_of(store).ipv6 is None
        twin.state.create(node("n2", "10.244.2.0/24", "fd00:10:244:2::/64"))
        wait_until(lambda: not _complaint(held), SECONDS, "it is ours again")
        assert network_of(store).ipv6 is not None, "which a running agent says, and a restart follows"
        assert store.snapshot().problems == ()
    assert "public-ipv6" not in stands(twin, "n2")


def test_an_ipv6_subnet_that_another_node_holds_is_not_published(twin: Twin, dual: Opener) -> None:
    theirs = {**published("10.0.0.2"), f"{PREFIX}public-ipv6": "fd77::2"}
    theirs[f"{PREFIX}backend-v6-data"] = theirs[f"{PREFIX}backend-data"]
    twin.state.create(node("other", "10.244.9.0/24", str(SUBNET6), annotations=theirs))
    with pytest.raises(LeaseConflict, match="10.244.9.0/24 of other at 10.0.0.2 has a podCIDR that overlaps"):
        dual().put(lease(ipv6=IPv6Lease(SUBNET6, HOST6, MAC6, 1)), None)
    assert stands(twin) == {}


@pytest.mark.parametrize(
    "damage",
    [{"public_ipv6": "fd77::9"}, {"public_ipv6": None}, {"public_ipv6": "x"}, {"backend_v6_data": "[]"}],
)
def test_annotations_of_ipv6_changed_by_hand_are_put_back(
    twin: Twin, dual: Opener, damage: dict[str, str | None]
) -> None:
    store = dual()
    with watched(store):
        held = dual_holder(store)
        held.acquire(network_of(store))
        before = stands(twin)
        annotate(twin, "n1", **damage)
        wait_until(lambda: not _complaint(held) and stands(twin) == before, SECONDS, "put back")


def test_an_administrators_ipv6_address_is_fought_over_by_nobody_however_it_is_written(
    twin: Twin, dual: Opener
) -> None:
    annotate(twin, "n1", public_ipv6_overwrite="2001:DB8:0::7")
    store = dual()
    with watched(store) as seen:
        held = dual_holder(store)
        acquired = held.acquire(network_of(store))
        assert acquired.ipv6 is not None and acquired.ipv6.host == HOST6
        seen.has(n1="10.0.0.1")
        assert stands(twin)["public-ipv6"] == "2001:DB8:0::7"
        for _ in range(3):
            assert held.keep() == acquired
        assert len(twin.of("patch")) == 1


@pytest.mark.parametrize("now", ["fd00:10:244:2::/64", ""])
def test_our_node_back_with_another_ipv6_subnet_is_refused(twin: Twin, dual: Opener, now: str) -> None:
    store = dual()
    with watched(store):
        held = dual_holder(store)
        held.acquire(network_of(store))
        twin.state.delete("n1")
        twin.state.create(node("n1", "10.244.1.0/24", *([now] if now else [])))
        said = "the node has 10.244.1.0/24" + (f" and {now}" if now else "") + " now: drain it and restart"
        wait_until(lambda: said in _complaint(held), SECONDS, said)
        assert stands(twin) == {}


def _complaint(held: LeaseHolder) -> str:
    """Why the lease cannot be kept; empty: it is."""
    try:
        held.keep()
    except StoreError as error:
        return str(error)
    return ""
