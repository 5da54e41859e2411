"""Following etcd: a cache that is kept by one endless request, and doubted now and then.

    list at revision R -> watch from R + 1 -> events -> cache, callback
         ^                        |
         |                        |  connection lost: again from the last revision,
         |  revision compacted,   |  at another endpoint, until there is one
         +---- another cluster ---+

A stream can be silent because nothing happens or because nobody is there. So a second
thread asks the stream's own member for something small when it has been silent for a
while, and lists everything every few minutes: servers have lost events before.
"""

from __future__ import annotations

import random
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from ctl.core.errors import StoreAway, StoreError
from ctl.core.model import Snapshot
from ctl.process.backoff import BackOff
from ctl.store.connection.http import TRANSPORT_ERRORS, Json, Stream
from ctl.store.etcd.cache import Cache, Event, Listing
from ctl.store.etcd.client import Compacted, EtcdClient, classify, stream_error
from ctl.store.etcd.list import read_list
from ctl.store.etcd.schema import Entry, Schema, encode, integer

BACK_OFF_MIN_S: Final = 0.1
BACK_OFF_MAX_S: Final = 5.0
JOIN_S: Final = 1.0
CATCH_UP_S: Final = 1.0
"""How many seconds a reader waits until the stream tells of what this process has written."""
FIRST_LIST_S: Final = 60.0
"""How many seconds a reader waits for the first list, rather than ask for one itself. 100,000 leases take
4 s where the CPU is free; where it is not, a second list beside it would make both late."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a watch doubts what it hears, seconds."""

    probe: float = 10.0
    """How long a silence may last before the stream's member is asked whether it is still there."""
    full_list: float = 300.0
    """How long after the last full list the next one is read."""


class Watch:
    """Keeps a cache current, and calls `changed` from a thread of its own after any change.

    A store that has gone, and one that is back, are changes too. A failure that is a bug
    ends the process (see ctl.cli.main).
    """

    def __init__(self, client: EtcdClient, schema: Schema, changed: Callable[[], None], pace: Pace) -> None:
        self._client, self._schema, self._changed, self._pace = client, schema, changed, pace
        self._cache = Cache(schema.config)
        self._progress = threading.Condition()
        """The lock of the cache and of the attributes below; notified when one of them changes."""
        self._listed = False
        """Whether the cache holds a list that a stream can go on from."""
        self._begun = False
        """Whether the cache ever held a list."""
        self._synced = False
        """Whether the cache is current, as far as is known."""
        self._error: StoreError | None = None
        """Why nothing can be read from etcd; None if something can."""
        self._complaint = ""
        """Why there is no stream although lists work; empty if there is one."""
        self._stream: Stream | None = None
        self._heard = time.monotonic()
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=target, name=f"etcd-{name}", daemon=True)
            for name, target in (("watch", self._follow), ("doubt", self._doubt))
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop. No callback begins after this; a call to an etcd that is away may end later."""
        self._closing.set()
        self._abort()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(JOIN_S)

    # --- For readers -----------------------------------------------------------

    def snapshot(self, least: int, ends: Mapping[int, float]) -> Snapshot | None:
        """The leases, at revision `least` or later; None if they are not known that well.

        Raises the error that keeps the watch from the store, at once: a reader need not
        find out for itself.
        """
        with self._progress:
            if not self._reached(least):
                return None
            found = self._cache.snapshot(ends)
            return replace(found, problems=(*found.problems, self._complaint)) if self._complaint else found

    def listing(self, least: int) -> Listing | None:
        """All entries, as they are now; None as for `snapshot`."""
        with self._progress:
            if not self._reached(least):
                return None
            return Listing(self._cache.revision, self._cache.cluster, dict(self._cache.entries))

    def config(self, least: int) -> tuple[Entry | None] | None:
        """The network config's entry, in a tuple; None as for `snapshot`."""
        with self._progress:
            return (self._cache.config,) if self._reached(least) else None

    def _reached(self, least: int) -> bool:
        if threading.current_thread() not in self._threads:
            self._progress.wait_for(lambda: self._error is not None or self._begun, FIRST_LIST_S)
            self._progress.wait_for(
                lambda: self._error is not None or not self._synced or self._cache.revision >= least,
                CATCH_UP_S,
            )
        self._raise_error()
        return self._synced and self._cache.revision >= least

    def _raise_error(self) -> None:
        if self._error is not None:
            # A new one: several threads must not add to the traceback of one exception.
            raise type(self._error)(str(self._error))

    def correct(self) -> None:
        """List everything and correct the cache by it; raises at once while etcd is known to be away."""
        with self._progress:
            self._raise_error()
        self.refresh()

    def refresh(self) -> None:
        """List everything and correct the cache by it. StoreError."""
        with self._progress:
            before, known = self._cache.revision, self._cache.entries
            known = dict(known)
        listing = read_list(self._client, self._schema, known)
        with self._progress:
            if before <= listing.revision < self._cache.revision:
                return  # the stream was quicker: an older list has nothing to teach
            moved = listing.revision < before or listing.cluster != self._cache.cluster
            news = self._cache.load(listing) or not self._synced or self._error is not None
            self._listed = self._synced = self._begun = True
            self._error = None
            if moved and self._stream is not None:
                self._stream.abort()  # another history: its revisions mean something else
            self._progress.notify_all()
        if news:
            self._notify()

    # --- The stream ------------------------------------------------------------

    def _follow(self) -> None:
        back_off = BackOff(BACK_OFF_MIN_S, BACK_OFF_MAX_S, jitter=0.5)
        while not self._closing.is_set():
            started = time.monotonic()
            self._round()
            now = time.monotonic()
            if now - started > BACK_OFF_MAX_S:
                back_off.succeeded()
            self._closing.wait(back_off.failed(now))

    def _round(self) -> None:
        """List if need be, then listen until the stream ends."""
        try:
            if not self._listed or self._complaint:
                self.refresh()
            self._read_stream()
        except Compacted:
            self._listed = self._synced = False
        except StoreAway as error:
            # The list we have stays good: thousands of nodes must not all list when etcd is back.
            self._lost(error)
        except StoreError as error:
            self._no_stream(error)

    def _no_stream(self, error: StoreError) -> None:
        """Lists may still work: then this store is polled, at the back-off's pace."""
        try:
            self.refresh()
        except StoreError as worse:
            self._lost(worse)
        else:
            self._complaint = f"watch: {error}"

    def _lost(self, error: StoreError) -> None:
        """Readers learn at once; the callback only when it is news."""
        with self._progress:
            news, self._error, self._synced = self._error is None, error, False
            self._progress.notify_all()
        if news:
            self._notify()

    def _notify(self) -> None:
        if not self._closing.is_set():
            self._changed()

    def _read_stream(self) -> None:
        """Watch from the cache's revision on, until the stream ends. StoreError if it cannot."""
        request = {**self._schema.span, "start_revision": str(self._cache.revision + 1)}
        stream = self._client.stream("/v3/watch", {"create_request": request})
        with self._progress:
            self._stream = stream
        try:
            if not self._closing.is_set():
                self._listen(stream)
        except TimeoutError as error:
            raise StoreAway(f"etcd {stream.endpoint}: timed out") from error
        except ValueError as error:
            raise StoreError(f"etcd {stream.endpoint}: not etcd's v3 API: {error}") from error
        except TRANSPORT_ERRORS:
            return  # cut off: the next round finds out whether for long
        finally:
            with self._progress:
                self._stream = None
            stream.close()
            self._client.avoid(stream.endpoint)

    def _listen(self, stream: Stream) -> None:
        for message in stream:
            self._heard = time.monotonic()
            result = _result(stream, message)
            if result.get("created"):
                self._check_history(result.get("header", {}))
                stream.patient()
                self._resumed()
            if result.get("events"):
                self._take(result["events"])

    def _resumed(self) -> None:
        """The stream has begun where the cache ends."""
        with self._progress:
            news = self._error is not None
            self._synced, self._error, self._complaint = True, None, ""
        if news:
            self._notify()

    def _check_history(self, header: Mapping[str, Any]) -> None:
        """A member restored from a backup, or a new cluster, begins another history."""
        other = integer(header, "cluster_id") != self._cache.cluster
        if other or integer(header, "revision") < self._cache.revision:
            raise Compacted("etcd: another history than the one listed")

    def _take(self, events: list[Json]) -> None:
        decoded = tuple(self._decode(events))
        with self._progress:
            news = self._cache.take(decoded)
            self._progress.notify_all()
        if news:
            self._notify()

    def _decode(self, events: list[Json]) -> Iterator[Event]:
        for event in events:
            found = event.get("kv", {})
            key, revision = b64decode(found["key"]), integer(found, "mod_revision")
            if self._schema.belongs(key):
                # PUT is the type's zero value, which the gateway leaves out.
                gone = event.get("type") == "DELETE"
                yield Event(key, revision, None if gone else self._schema.decode(found))

    # --- Doubt -----------------------------------------------------------------

    def _doubt(self) -> None:
        listed = time.monotonic()
        every = self._pace.full_list * random.uniform(0.8, 1.2)
        asked = time.monotonic()
        # Until the silence has lasted, not at a beat of our own, which it could just have missed.
        while not self._closing.wait(self._pace.probe - self._silent_for(asked)):
            try:
                if self._silent_for(asked) >= self._pace.probe:
                    self._probe()
                    asked = time.monotonic()
                if self._error is None and time.monotonic() - listed >= every:
                    listed = time.monotonic()
                    self.refresh()
            except StoreError:
                # Whether it has really gone, the other thread finds out by opening a new stream.
                asked = time.monotonic()
                self._abort()

    def _silent_for(self, asked: float) -> float:
        """Seconds since the stream said something, or its member was asked (at `asked`)."""
        return time.monotonic() - max(self._heard, asked)

    def _probe(self) -> None:
        """Ask the stream's member; what it reads, a quorum has agreed to."""
        with self._progress:
            stream = self._stream
        if stream is not None:
            key = {"key": encode(self._schema.config), "limit": 1, "keys_only": True}
            self._client.probe(stream.endpoint, "/v3/kv/range", key)

    def _abort(self) -> None:
        with self._progress:
            if self._stream is not None:
                self._stream.abort()


def _result(stream: Stream, message: Json) -> Json:
    """A message's content. Compacted or another StoreError if it says that the watch is over."""
    result = message.get("result")
    if not isinstance(result, dict):
        raise stream_error(stream.endpoint, message)
    if integer(result, "compact_revision"):
        raise Compacted(f"etcd {stream.endpoint}: revision compacted")
    if result.get("canceled"):
        reason = str(result.get("cancel_reason") or "watch cancelled")
        raise classify(stream.endpoint, 0, reason)
    return result
