"""The lease store in a SQLite file, shared by the nodes of one machine.

Writers take the write lock first (BEGIN IMMEDIATE), look, and then write, so that what
they saw still holds when they commit. Expired leases are purged by the next write; until
then readers leave them out. Not for network filesystems: SQLite's locks fail there.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from ctl.core.errors import LeaseConflict, StoreError
from ctl.core.lease import in_words, moves, require_free
from ctl.core.model import Lease, Network, Snapshot
from ctl.core.ports import Closing
from ctl.core.wire import decode, format_attributes, format_network, parse_attributes, parse_network
from ctl.store.choosing import Choosing
from ctl.store.sqlite.file import FileId, connect, explain, file_id, make_file, set_up

POLL_SECONDS: Final = 0.2
"""How many seconds pass between two looks of a watch; one costs a stat and a PRAGMA, some microseconds."""

_Row = tuple[str, str, str, float | None, int]
IPV6_SUBNET: Final = "IPv6Subnet"
RENEW_AT: Final = "RenewAt"
"""The attributes that have what etcd has in the key, or not at all."""
_COLUMNS: Final = "subnet, attributes, node, expires_at, revision"


class SqliteStore(Choosing):
    """A LeaseStore in the file at `path`. Any thread may call it.

    `create` makes the file and its directory. `timeout`: seconds to wait for another
    process's lock. `clock` gives seconds since the epoch.
    """

    def __init__(
        self,
        path: str,
        clock: Callable[[], float] = time.time,
        *,
        create: bool = False,
        timeout: float = 5.0,
    ) -> None:
        self._path = path
        self._clock = clock
        self._timeout = timeout
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._opened: FileId | None = None
        self._parsed: dict[_Row, Lease] = {}
        with self._errors():
            if create:
                make_file(path)
                set_up(path, timeout)
            self._connection()

    def read_network(self) -> Network | None:
        with self._transaction("BEGIN") as db:
            row = db.execute("SELECT config FROM network").fetchone()
        return parse_network(row[0], f"network config in {self._path}") if row else None

    def write_network(self, network: Network, *, replace: bool = False) -> None:
        text = format_network(network)
        with self._transaction("BEGIN IMMEDIATE") as db:
            row = db.execute("SELECT config FROM network").fetchone()
            if row == (text,):
                return
            if row and not replace:
                raise LeaseConflict(f"store {self._path} has another network config: {row[0]}")
            db.execute("INSERT OR REPLACE INTO network VALUES (1, ?)", (text,))

    def snapshot(self, *, fresh: bool = False) -> Snapshot:
        with self._transaction("BEGIN") as db:
            revision = db.execute("SELECT revision FROM counter").fetchone()[0]
            rows = db.execute(
                f"SELECT {_COLUMNS} FROM lease WHERE expires_at IS NULL OR expires_at > ?"
                " ORDER BY first, last DESC",
                (self._clock(),),
            ).fetchall()
            return self._parse(rows, revision)

    def put(self, lease: Lease, expected: Lease | None) -> Lease:
        first, last = int(lease.subnet.network_address), int(lease.subnet.broadcast_address)
        with self._transaction("BEGIN IMMEDIATE") as db:
            db.execute("DELETE FROM lease WHERE expires_at <= ?", (self._clock(),))
            if expected is None:
                self._require_free(db, lease.subnet, first, last)
            else:
                self._require_unchanged(db, expected)
            if lease.ipv6 and (expected is None or moves(lease, expected)):
                self._require_free_ipv6(db, lease)
            stored = replace(lease, revision=self._next_revision(db))
            db.execute(
                "INSERT OR REPLACE INTO lease VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    str(stored.subnet),
                    first,
                    last,
                    _attributes(stored),
                    stored.node,
                    stored.expires_at,
                    stored.revision,
                ),
            )
        return stored

    def delete(self, lease: Lease) -> None:
        with self._transaction("BEGIN IMMEDIATE") as db:
            self._require_unchanged(db, lease)
            db.execute("DELETE FROM lease WHERE subnet = ?", (str(lease.subnet),))
            self._next_revision(db)

    def watch(self, changed: Callable[[], None]) -> Closing:
        return _Watch(self._path, self._timeout, changed)

    def close(self) -> None:
        """Close the file; another call opens it again."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
        self._db = self._opened = None

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise explain(self._path, error) from error

    def _connection(self) -> sqlite3.Connection:
        """The open connection, to the file that is there now and not one since replaced."""
        try:
            current = file_id(self._path)
        except StoreError:
            self._close()  # a file moved away is someone else's now
            raise
        if self._db is None or self._opened != current:
            self._close()
            self._db, self._opened = connect(self._path, self._timeout), current
        return self._db

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        """Commits when the block ends, rolls back when it raises."""
        with self._lock, self._errors():
            db = self._connection()
            db.execute(begin)
            try:
                yield db
                db.execute("COMMIT")
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")

    def _next_revision(self, db: sqlite3.Connection) -> int:
        db.execute("UPDATE counter SET revision = revision + 1")
        revision: int = db.execute("SELECT revision FROM counter").fetchone()[0]
        return revision

    def _require_free(self, db: sqlite3.Connection, subnet: IPv4Network, first: int, last: int) -> None:
        row = db.execute(
            f"SELECT {_COLUMNS} FROM lease WHERE first <= ? AND last >= ?", (last, first)
        ).fetchone()
        if row:
            raise LeaseConflict(f"{subnet} is taken: {self._describe(row)}")

    def _require_free_ipv6(self, db: sqlite3.Connection, lease: Lease) -> None:
        query = f"SELECT {_COLUMNS} FROM lease WHERE subnet != ?"
        require_free(lease, self._parse(db.execute(query, (str(lease.subnet),)).fetchall(), 0).leases)

    def _require_unchanged(self, db: sqlite3.Connection, expected: Lease) -> None:
        row = db.execute(
            f"SELECT {_COLUMNS} FROM lease WHERE subnet = ? AND (expires_at IS NULL OR expires_at > ?)",
            (str(expected.subnet), self._clock()),
        ).fetchone()
        if row is None:
            raise LeaseConflict(f"the lease on {expected.subnet} has gone")
        if row[-1] != expected.revision:
            raise LeaseConflict(f"the lease on {expected.subnet} has changed: {self._describe(row)}")

    def _describe(self, row: _Row) -> str:
        try:
            return in_words(_lease(row))
        except ValueError:
            return f"{row[0]} (unreadable)"

    def _parse(self, rows: list[_Row], revision: int) -> Snapshot:
        """Rows that are as they were at the last snapshot are not parsed again."""
        problems = []
        parsed = {}
        for row in rows:
            try:
                parsed[row] = self._parsed.get(row) or _lease(row)
            except ValueError as error:
                problems.append(f"lease {row[0]}: {error}")
        self._parsed = parsed
        return Snapshot(tuple(parsed.values()), revision, tuple(problems))


def _attributes(lease: Lease) -> str:
    """Flannel's, and our own."""
    ours: dict[str, object] = {}
    if lease.ipv6 is not None:
        ours[IPV6_SUBNET] = str(lease.ipv6.subnet)
    if lease.renew_at is not None:
        ours[RENEW_AT] = lease.renew_at
    text = format_attributes(lease)
    return f"{text[:-1]},{json.dumps(ours, separators=(',', ':'))[1:]}" if ours else text


def _ours(attributes: str) -> tuple[IPv6Network | None, float | None]:
    """The IPv6 subnet, and when the lease is to be renewed; None: there is none, or nobody says so.

    ValueError; but what is not JSON is for who reads the rest.
    """
    try:
        found = decode(attributes)
    except ValueError:
        return None, None
    known = found if isinstance(found, dict) else {}
    subnet, renew_at = known.get(IPV6_SUBNET.lower()), known.get(RENEW_AT.lower())
    if not isinstance(renew_at, int | float | None):
        raise ValueError(f"{RENEW_AT} is not a number")
    return None if subnet is None else IPv6Network(str(subnet)), renew_at


def _lease(row: _Row) -> Lease:
    subnet, attributes, node, expires_at, revision = row
    ipv6, renew_at = _ours(attributes)
    lease = parse_attributes(IPv4Network(subnet), attributes, ipv6=ipv6)
    return replace(lease, node=node, expires_at=expires_at, renew_at=renew_at, revision=revision)


class _Watch:
    """Polls the file's identity and its `PRAGMA data_version`.

    The latter changes with every commit of another connection. A file that has gone
    or cannot be read is a change too: whoever reads it next gets the error. Any other
    failure is a bug and ends the process (see ctl.cli.main).
    """

    def __init__(self, path: str, timeout: float, changed: Callable[[], None]) -> None:
        self._path = path
        self._timeout = timeout
        self._changed = changed
        self._closing = threading.Event()
        self._db: sqlite3.Connection | None = None
        self._seen = self._look(None)
        self._thread = threading.Thread(target=self._run, name="sqlite-watch", daemon=True)
        self._thread.start()

    def _look(self, before: tuple[FileId, int] | None) -> tuple[FileId, int] | None:
        """What identifies the content now; None if it cannot be read."""
        try:
            file = file_id(self._path)
            if self._db is None or before is None or before[0] != file:
                self._disconnect()
                self._db = connect(self._path, self._timeout)
            return file, self._db.execute("PRAGMA data_version").fetchone()[0]
        except (sqlite3.Error, StoreError):
            self._disconnect()
            return None

    def _run(self) -> None:
        try:
            while not self._closing.wait(POLL_SECONDS):
                now = self._look(self._seen)
                if now != self._seen:
                    self._seen = now
                    self._changed()
        finally:
            self._disconnect()

    def _disconnect(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
