"""The file behind ctl.store.sqlite.store: made, opened, told from other files, its errors explained."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from typing import Final
from urllib.parse import quote

from ctl.core.errors import StoreError

APPLICATION_ID: Final = 0x6F766E74
"""The number in a SQLite file's header that marks it as ours ("ovnt")."""

SCHEMA_VERSION: Final = 1
SCHEMA: Final = f"""
CREATE TABLE network (id INTEGER PRIMARY KEY CHECK (id = 1), config TEXT NOT NULL) STRICT;
CREATE TABLE lease (
    subnet TEXT PRIMARY KEY,
    first INTEGER NOT NULL,  -- first and last address, to find overlaps
    last INTEGER NOT NULL,
    attributes TEXT NOT NULL,
    node TEXT NOT NULL,
    expires_at REAL,
    revision INTEGER NOT NULL
) STRICT;
CREATE INDEX lease_span ON lease (first, last);
CREATE TABLE counter (id INTEGER PRIMARY KEY CHECK (id = 1), revision INTEGER NOT NULL) STRICT;
INSERT INTO counter VALUES (1, 0);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""

INIT: Final = "run: ovctl network init"

FileId = tuple[int, int]
"""Which file it is: its device and inode."""


def explain(path: str, error: sqlite3.Error) -> StoreError:
    """SQLite's error as a line that says what to do."""
    # The low byte is the primary code; errors of the Python module itself have none.
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    reasons = {
        sqlite3.SQLITE_NOTADB: "is not a SQLite file",
        sqlite3.SQLITE_READONLY: "is read-only: check the file's and its directory's permissions",
        sqlite3.SQLITE_BUSY: "is locked by another process; try again, or find it with fuser",
        sqlite3.SQLITE_CANTOPEN: "cannot be opened: check its permissions and its directory's",
        sqlite3.SQLITE_CORRUPT: f"is damaged: move it away and {INIT}",
        sqlite3.SQLITE_FULL: "cannot grow: the disk is full",
    }
    return StoreError(f"store {path} {reasons.get(code, f'failed: {error}')}")


def file_id(path: str) -> FileId:
    """Which file `path` is now. StoreError if there is none, or it is out of reach."""
    try:
        status = os.stat(path)
    except PermissionError:
        raise StoreError(f"store {path}: permission denied (run as root)") from None
    except OSError:
        directory = os.path.dirname(path)
        gone = "it" if os.path.isdir(directory) else f"directory {directory}"
        raise StoreError(f"store {path}: {gone} does not exist: {INIT}, or set --store") from None
    return status.st_dev, status.st_ino


def make_file(path: str) -> None:
    """Create the file (0600) and its directory (0700) where they are missing."""
    directory = os.path.dirname(path)
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        with _alone_in(directory):
            if not os.path.exists(path):
                _forget_companions(path)
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise StoreError(f"store {path} cannot be created: {error.strerror}") from error


@contextlib.contextmanager
def _alone_in(directory: str) -> Iterator[None]:
    """One process at a time; a lock on the directory leaves nothing behind."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _forget_companions(path: str) -> None:
    """Remove what SQLite kept beside an earlier file: it would be replayed into the new one.

    Before the new file is there: from then on they may be its own.
    """
    for suffix in ("-wal", "-shm", "-journal"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + suffix)


def connect(path: str, timeout: float) -> sqlite3.Connection:
    """A connection in autocommit mode; `timeout` in seconds is for locks of others."""
    db = sqlite3.connect(
        f"file:{quote(path)}?mode=rw",
        uri=True,
        timeout=timeout,
        isolation_level=None,
        check_same_thread=False,  # SqliteStore has a lock of its own
    )
    try:
        _check_schema(db, path)
    except BaseException:
        db.close()
        raise
    return db


def _check_schema(db: sqlite3.Connection, path: str) -> None:
    db.execute("BEGIN")  # or a set-up meanwhile would show us half of two states
    (application, version), blank = _header(db), _is_blank(db)
    db.execute("COMMIT")
    if application != APPLICATION_ID:
        if blank:
            raise StoreError(f"store {path} is empty: {INIT}")
        raise StoreError(f"store {path} is another program's SQLite file")
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"store {path} was made by a newer ovnet (schema {version}, this one knows {SCHEMA_VERSION}):"
            " upgrade this one"
        )


def _header(db: sqlite3.Connection) -> tuple[int, int]:
    return db.execute("PRAGMA application_id").fetchone()[0], db.execute("PRAGMA user_version").fetchone()[0]


def _is_blank(db: sqlite3.Connection) -> bool:
    return _header(db) == (0, 0) and not db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]


def set_up(path: str, timeout: float) -> None:
    """Give a blank file our schema; two of these at once do it once."""
    uri = f"file:{quote(path)}?mode=rw"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=timeout, isolation_level=None)) as db:
        if not _is_blank(db):
            return
        db.execute("BEGIN EXCLUSIVE")
        # executescript would commit first, and with that let another set-up in between.
        for statement in SCHEMA.split(";\n") if _is_blank(db) else ():
            db.execute(statement)
        db.execute("COMMIT")
        # Readers and the writer do not wait for each other. Permanent, kept in the file.
        # Busy: the other set-up is at it, or will be.
        with contextlib.suppress(sqlite3.OperationalError):
            db.execute("PRAGMA journal_mode = WAL")
