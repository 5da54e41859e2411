"""The SQLite store: its file, its watch across processes, and everything wrong with a file."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from ctl.cluster.leasing import LeaseHolder
from ctl.core.errors import ConfigError, LeaseConflict, StoreError
from ctl.core.host import Identity
from ctl.store import open_store
from ctl.store.sqlite.store import SqliteStore
from tests.unit.stores import DEADLINE, Clock, lease, watching
from tests.unit.strategies import NETWORK


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ovnet" / "store.db"


def sqlite(path: Path, *, create: bool = False) -> SqliteStore:
    return SqliteStore(str(path), Clock(), create=create, timeout=0.1)


def in_other_process(path: Path, statements: str) -> None:
    code = f"""
from ctl.core.host import Identity
from ctl.cluster.leasing import LeaseHolder
from ctl.store import open_store
from tests.unit.stores import lease
from tests.unit.strategies import NETWORK
store = open_store("sqlite://{path}", clock=lambda: 1000.0)
{statements}
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=Path(__file__).parents[2])


def test_a_watch_fires_on_a_change_of_another_process(path: Path) -> None:
    store = sqlite(path, create=True)
    assert watching(store, lambda: in_other_process(path, "store.put(lease(), None)"))
    assert store.snapshot().leases == (lease(),)
    store.close()


def test_a_watch_tells_of_a_store_that_goes_and_comes_back(path: Path) -> None:
    store = sqlite(path, create=True)
    store.put(lease(), None)
    went, came = threading.Event(), threading.Event()

    def changed() -> None:
        try:
            store.snapshot()
        except StoreError:
            went.set()
        else:
            came.set()

    watch = store.watch(changed)
    shutil.move(path.parent, path.parent.with_name("away"))
    assert went.wait(DEADLINE)
    sqlite(path, create=True).close()
    assert came.wait(DEADLINE)
    assert store.snapshot().leases == ()
    watch.close()
    store.close()


def test_a_set_up_store_is_for_its_owner_only_and_keeps_what_it_has(path: Path) -> None:
    store = sqlite(path, create=True)
    store.put(lease(), None)
    again = sqlite(path, create=True)
    assert again.snapshot().leases == (lease(),)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    store.close()
    again.close()


def test_two_set_ups_at_once_make_one_store(tmp_path: Path) -> None:
    for attempt in range(10):
        path, start = tmp_path / str(attempt) / "store.db", threading.Barrier(4)
        failed: list[BaseException] = []

        def set_up(
            path: Path = path, start: threading.Barrier = start, failed: list[BaseException] = failed
        ) -> None:
            start.wait(DEADLINE)
            try:
                with_patience = SqliteStore(str(path), create=True)
                with_patience.write_network(NETWORK)
                with_patience.close()
            except Exception as error:
                failed.append(error)

        threads = [threading.Thread(target=set_up) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
        assert not failed
        # Whoever came last made the journal a WAL, or the next one does.
        store = sqlite(path)
        assert store.read_network() == NETWORK
        store.close()


@pytest.mark.parametrize(
    ("attributes", "why"),
    [("{", "not JSON"), ('{"PublicIP":"10.0.0.2","RenewAt":"soon"}', "RenewAt is not a number")],
)
def test_a_row_that_cannot_be_read_harms_no_other(path: Path, attributes: str, why: str) -> None:
    store = sqlite(path, create=True)
    good = store.put(lease(), None)
    bad = store.put(lease(4, "10.0.0.2"), None)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE lease SET attributes = ? WHERE subnet = ?", (attributes, str(bad.subnet)))
    snapshot = store.snapshot()
    assert snapshot.leases == (good,)
    assert len(snapshot.problems) == 1
    assert snapshot.problems[0].startswith(f"lease 172.17.4.0/24: {why}")
    with pytest.raises(LeaseConflict, match="unreadable"):
        store.put(lease(4), None)
    store.close()


def test_a_locked_store_says_so(path: Path) -> None:
    store = sqlite(path, create=True)
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="is locked by another process"):
        store.put(lease(), None)
    assert store.snapshot().leases == ()
    blocker.execute("ROLLBACK")
    store.put(lease(), None)
    blocker.close()
    store.close()


def test_opening_makes_nothing(path: Path) -> None:
    with pytest.raises(StoreError, match=r"directory .* does not exist: run: ovctl network init"):
        sqlite(path)
    path.parent.mkdir()
    with pytest.raises(StoreError, match=r": it does not exist: run: ovctl network init"):
        sqlite(path)
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("create", [False, True])
def test_a_file_that_is_not_sqlite_is_left_alone(path: Path, create: bool) -> None:
    path.parent.mkdir()
    path.write_text("these are somebody's notes\n" * 100)
    with pytest.raises(StoreError, match="is not a SQLite file"):
        sqlite(path, create=create)
    assert path.read_text().startswith("these are somebody's notes\n")


@pytest.mark.parametrize("create", [False, True])
def test_another_programs_database_is_left_alone(path: Path, create: bool) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE notes (text)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another program's SQLite file"):
        sqlite(path, create=create)
    assert path.read_bytes() == before


@contextmanager
def open_elsewhere(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has put a lease and keeps the store open."""
    code = f"""
import sys
from ctl.core.host import Identity
from ctl.cluster.leasing import LeaseHolder
from ctl.store import open_store
from tests.unit.stores import lease
store = open_store("sqlite://{path}", clock=lambda: 1000.0)
store.put(lease(99), None)
print("open", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    ) as child:  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        yield child


@pytest.mark.parametrize("way", ["moved", "removed"])
@pytest.mark.parametrize("end", ["killed", "late"])
def test_a_new_store_has_nothing_of_the_one_before(path: Path, way: str, end: str) -> None:
    """An agent has the old one open, or was killed with it open: its journal stays behind."""
    sqlite(path, create=True).close()
    with open_elsewhere(path) as child:
        assert path.with_name("store.db-wal").exists()
        if end == "killed":
            child.kill()
            child.wait()
        if way == "moved":
            path.rename(path.with_name("away.db"))
        else:
            path.unlink()
        new = sqlite(path, create=True)
        assert new.put(lease(7), None) == replace(lease(7), revision=1)
    assert new.snapshot().leases == (replace(lease(7), revision=1),)
    new.close()
    again = sqlite(path)
    assert [each.subnet for each in again.snapshot().leases] == [lease(7).subnet]
    again.close()


def test_a_store_that_goes_is_let_go(path: Path) -> None:
    store = sqlite(path, create=True)
    store.put(lease(), None)
    path.rename(path.with_name("away.db"))
    with pytest.raises(StoreError, match="it does not exist"):
        store.snapshot()
    held = [os.path.realpath(fd) for fd in Path("/proc/self/fd").iterdir()]
    assert not [name for name in held if name.startswith(str(path.parent))]


def test_an_empty_file_asks_for_set_up(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    with pytest.raises(StoreError, match="is empty: run: ovctl network init"):
        sqlite(path)
    sqlite(path, create=True).close()


def test_a_newer_schema_asks_for_an_upgrade(path: Path) -> None:
    sqlite(path, create=True).close()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA user_version = 2")
    with pytest.raises(StoreError, match=r"newer ovnet \(schema 2, this one knows 1\)"):
        sqlite(path)


def test_a_damaged_file_says_so(path: Path) -> None:
    store = sqlite(path, create=True)
    for third in range(1, 200):
        store.put(lease(third), None)
    store.close()
    raw = bytearray(path.read_bytes())
    raw[4096:] = bytes(len(raw) - 4096)
    path.write_bytes(raw)
    damaged = sqlite(path)
    with pytest.raises(StoreError, match="is damaged"):
        damaged.snapshot()
    damaged.close()


def test_a_read_only_store_says_so(path: Path) -> None:
    sqlite(path, create=True).close()
    path.chmod(0o400)
    code = f"""
from ctl.core.errors import StoreError
from ctl.core.host import Identity
from ctl.cluster.leasing import LeaseHolder
from ctl.store import open_store
from tests.unit.stores import lease
try:
    open_store("sqlite://{path}").put(lease(), None)
except StoreError as error:
    print(error)
"""
    # Root writes where it likes, but not without the capability to.
    drop = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*drop, sys.executable, "-c", code],
        check=True, timeout=60, capture_output=True, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert "is read-only" in done.stdout
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("etcd:", "no endpoint"),
        ("etcd://10.0.0.1:0", "port"),
        ("sqlite:store.db", "absolute PATH"),
        ("sqlite://store.db", "absolute PATH"),
        ("sqlite:///", "absolute PATH"),
        ("postgres://x", "unknown kind of store"),
        ("", "unknown kind of store"),
    ],
)
def test_a_url_that_names_no_store_is_refused(url: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        open_store(url)


@pytest.mark.parametrize("slashes", ["///", "////"])
def test_a_sqlite_url_has_three_slashes_or_four(path: Path, slashes: str) -> None:
    with closing(open_store(f"sqlite:{slashes}{str(path).lstrip('/')}", create=True)) as store:
        assert path.exists()
        assert store.snapshot().leases == ()


def test_a_path_with_odd_characters_is_that_file(tmp_path: Path) -> None:
    path = tmp_path / "a b?c#d%41" / "store.db"
    sqlite(path, create=True).close()
    assert path.exists()


@pytest.mark.parametrize("jumps", [(86_400.0, -86_400.0), (-86_400.0, 86_400.0), (10 * 86_400.0,)])
def test_a_clock_that_is_set_costs_no_node_its_subnet(path: Path, jumps: tuple[float, ...]) -> None:
    """Nodes of one machine share the file and the clock; by it, all leases may have ended at once."""
    clock = Clock()
    store = SqliteStore(str(path), clock, create=True)
    holders = [
        LeaseHolder(store, Identity(IPv4Address(f"10.0.0.{n}"), node=str(n)), ttl=600, margin=60, clock=clock)
        for n in (1, 2, 3)
    ]
    subnets = [holder.acquire(NETWORK).subnet for holder in holders]
    for jump in jumps:
        clock.now += jump
        for holder in holders:
            holder.distrust_end()
            assert holder.keep().expires_at == clock.now + 600
        assert [holder.keep().subnet for holder in holders] == subnets
        assert len(store.snapshot().leases) == 3
    store.close()
