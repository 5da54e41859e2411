"""Following the Nodes: a cache that is kept by one endless request, and doubted now and then.

    list at version V -> watch from V on -> events -> cache, callback
         ^                    |
         |                    |  closed at its time, cut off: again from the last version
         |  history gone,     |
         +--- or another one -+

Who may list and not watch lists at intervals, and says so.

Bookmarks carry the version on where nothing happens. The server ends a watch when its time is over; what
it has not told by then it tells in the next one. A stream can be silent because nothing happens or because
nobody is there, so the server is asked for something small when it has been silent for a while, and
everything is listed anew once in a long while, the more Nodes there are the more seldom: 5,000 agents
that each list 5,000 Nodes of 12 KB are a load.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from ctl.core.errors import StoreAway, StoreDenied, StoreError
from ctl.process.backoff import BackOff
from ctl.store.connection.http import TRANSPORT_ERRORS, Stream
from ctl.store.kubernetes import scan
from ctl.store.kubernetes.cache import Cache
from ctl.store.kubernetes.client import ApiClient, Busy, Gone, status_error
from ctl.store.kubernetes.list import NODES, read_list, read_node
from ctl.store.kubernetes.schema import Entry, Schema, number

T = TypeVar("T")

JOIN_S: Final = 1.0
FIRST_LIST_S: Final = 30.0
"""How many seconds a reader waits for the first list, rather than ask for one itself."""
OVERDUE_S: Final = 30.0
"""How many seconds after its time a watch is given up that the server has not closed."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a watch doubts what it hears, seconds."""

    watch: float = 300.0
    """How long a watch is asked for; up to twice as long, so that not all end at once."""
    probe: float = 30.0
    """How long a silence may last before the server is asked whether it is still there."""
    full_list: float = 600.0
    """How long after the last full list the next one is read, at the least."""
    unwatched: float = 30.0
    """The same where only lists are allowed, and no watch."""
    per_node: float = 10.0
    """How much longer either is for each Node there is, if that is more."""
    spread: float = 1.0
    """How long a list is put off at most after the history has gone, for all nodes at once..."""
    spread_per_node: float = 0.001
    """...and by how much more for each Node."""
    file: float = 2.0
    """How often the network's config is looked at, which is a file."""
    back_off: tuple[float, float] = (0.25, 15.0)
    """How long after a failure the next try comes, at first and at most."""


class Watch:
    """From `start` on it keeps a cache current, and calls `changed` from its own thread after any change.

    An API that has gone, and one that is back, are changes too. A failure that is a bug ends the process.
    """

    def __init__(self, client: ApiClient, schema: Schema, changed: Callable[[], None], pace: Pace) -> None:
        self._client, self._schema, self._changed, self._pace = client, schema, changed, pace
        self._cache = Cache(schema.own)
        self._progress = threading.Condition()
        """The lock of the cache and of the attributes below; notified when one of them changes."""
        self._listed = False
        """Whether the cache holds a list that a stream can go on from."""
        self._begun = False
        """Whether the cache ever held a list."""
        self._doubted = False
        """Whether the server may have another history than the one that the cache is of."""
        self._error: StoreError | None = None
        """Why nothing can be read from the API; None if something can."""
        self._unwatched = ""
        """The refusal to let us watch, of an API that lets us list; empty: there is none."""
        self._unavailable = False
        """Whether our Node is said to have no network."""
        self._stream: Stream | None = None
        self._opened: float | None = None
        """When the stream of this round began, seconds of the steady clock; None: it has not."""
        self._heard = time.monotonic()
        self._learned: set[str] = set()
        """Nodes that readers have told us of, and the stream has not yet."""
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=target, name=f"kubernetes-{name}", daemon=True)
            for name, target in (("watch", self._follow), ("doubt", self._doubt))
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop. No callback begins after this; a call to an API that is away may end later."""
        self._closing.set()
        self._abort()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(JOIN_S)

    # --- For readers -----------------------------------------------------------

    def read(self, look: Callable[[Cache], T]) -> T:
        """What `look` finds in the cache. The error that keeps us from the API is raised at once."""
        with self._progress:
            if threading.current_thread() not in self._threads:
                self._progress.wait_for(lambda: self._error is not None or self._begun, FIRST_LIST_S)
            if self._error is not None:
                # A new one: several threads must not add to the traceback of one exception.
                raise (
                    StoreAway(str(self._error))
                    if isinstance(self._error, Busy)
                    else type(self._error)(str(self._error))
                )
            if not self._begun:
                raise StoreAway(f"kubernetes {self._client.where}: has not answered yet")
            return look(self._cache)

    def learn(self, name: str, entry: Entry | None) -> None:
        """What the API has just said of a Node; None: there is none of this name.

        The callback comes with the stream's own word of it, if that was not here before.
        """
        with self._progress:
            if self._cache.remove(name) if entry is None else self._cache.put(entry):
                self._learned.add(name)

    def unavailable(self) -> bool:
        """Whether somebody has said, since the watch began, that our Node has no network."""
        with self._progress:
            return self._unavailable

    def unwatched(self) -> str:
        """Why changes are heard of by lists only, one line; empty: they are not."""
        with self._progress:
            return self._unwatched

    def refresh(self) -> None:
        """List everything and correct the cache by it. StoreError."""
        with self._progress:
            before, known = self._cache.version, dict(self._cache.entries)
        listing = read_list(self._client, self._schema, known)
        with self._progress:
            told, now = number(listing.version), number(self._cache.version)
            if number(before) <= told < now and self._begun:
                return  # the stream was quicker: an older list has nothing to teach
            moved = told < number(before)
            news = self._cache.load(listing) or not self._begun or self._error is not None
            self._listed = self._begun = True
            self._error, self._doubted = None, False
            if moved and self._stream is not None:
                self._stream.abort()  # another history: its versions mean something else
            self._progress.notify_all()
        if news:
            self._notify()

    # --- The stream ------------------------------------------------------------

    def _follow(self) -> None:
        back_off = BackOff(*self._pace.back_off)
        while not self._closing.is_set():
            self._opened, least = None, 0.0
            try:
                self._round()
            except Gone:
                self._listed, least = False, self._put_off()
            except StoreError as error:
                self._lost(error)
                least = error.wait * random.uniform(1, 1.2) if isinstance(error, Busy) else 0.0
            if self._lasted() >= min(self._pace.back_off[1], self._pace.watch):
                back_off.succeeded()
                wait = random.uniform(0, self._pace.back_off[0])
            else:
                wait = back_off.failed(time.monotonic())
            self._closing.wait(max(wait, least))

    def _lasted(self) -> float:
        """For how many seconds this round had a stream."""
        return time.monotonic() - self._opened if self._opened is not None else 0.0

    def _put_off(self) -> float:
        """Seconds until the list is read, after all nodes have lost their place at once."""
        nodes = len(self._cache.entries)
        return random.uniform(0, self._pace.spread + nodes * self._pace.spread_per_node)

    def _round(self) -> None:
        """List if need be, then listen until the stream ends. StoreError if one of these cannot be."""
        try:
            if not self._listed:
                self.refresh()
            elif self._doubted:
                self._check_history()
            try:
                self._read_stream()
            except StoreDenied as error:
                self.refresh()  # refused like that, it is not the watch alone
                self._do_without(error)
        except ValueError as error:
            raise StoreError(f"kubernetes {self._client.where}: not the Kubernetes API: {error}") from error

    def _check_history(self) -> None:
        """A server that was restored from a backup begins another history, and a watch of it stays silent."""
        metadata, _ = scan.items(self._client.get(f"{NODES}?limit=1"))
        if number(str(metadata.get("resourceVersion", ""))) < number(self._cache.version):
            raise Gone(f"kubernetes {self._client.where}: another history than the one listed")

    def _read_stream(self) -> None:
        """Watch from the cache's version on, until the stream ends. StoreError, ValueError."""
        seconds = self._pace.watch * random.uniform(1, 2)
        stream = self._client.stream(
            f"{NODES}?watch=1&allowWatchBookmarks=true&resourceVersion={self._cache.version}"
            f"&timeoutSeconds={max(round(seconds), 1)}"
        )
        with self._progress:
            self._stream = stream
        self._heard = self._opened = time.monotonic()
        self._doubted = True  # until it tells something, and unless it is cut off
        try:
            if not self._closing.is_set():
                stream.patient(seconds + OVERDUE_S)
                self._resumed()
                self._listen(stream)
        except TRANSPORT_ERRORS:
            self._doubted = True  # the next round finds out whether for long
        finally:
            with self._progress:
                self._stream = None
            stream.close()

    def _do_without(self, refusal: StoreDenied) -> None:
        """No stream until it is time for the next list."""
        seconds = self._list_every(self._pace.unwatched)
        with self._progress:
            news, self._unwatched = not self._unwatched, f"{refusal}; listed every {seconds:.0f} s instead"
        if news:
            self._notify()
        self._closing.wait(seconds)

    def _listen(self, stream: Stream) -> None:
        for line in stream.lines():
            self._heard = time.monotonic()
            self._take(line)
            self._doubted = False

    def _resumed(self) -> None:
        """The stream has begun where the cache ends."""
        with self._progress:
            news = self._error is not None or self._unwatched != ""
            self._error, self._unwatched = None, ""
            self._progress.notify_all()
        if news:
            self._notify()

    def _take(self, line: bytes) -> None:
        """An event. One that changes nothing of ours (a heartbeat) is not parsed."""
        seen = scan.glance(line)
        if seen and seen.name == self._schema.own and self._is_unavailable(line):
            self._notify()
        with self._progress:
            known = self._cache.entries.get(seen.name) if seen else None
            if seen and known and known.mark == seen.mark and seen.name not in self._learned:
                self._cache.reached(seen.version)
                return
        event = scan.parse(line, 2)
        if self._apply(event, seen.mark if seen else 0):
            self._notify()

    def _is_unavailable(self, line: bytes) -> bool:
        """Whether our Node is said to have no network, and was not before."""
        before, now = self._unavailable, scan.says_unavailable(line)
        with self._progress:
            self._unavailable = now
        return now and not before

    def _apply(self, event: dict[str, Any], mark: int) -> bool:
        """Whether it has changed anything. Gone or another StoreError if it says that the watch is over."""
        kind, node = event.get("type"), event.get("object")
        if not isinstance(node, dict):
            raise ValueError(f"an event without an object: {kind!r}")
        if kind == "ERROR":
            raise status_error(self._client.where, node, 0)
        version = str((node.get("metadata") or {}).get("resourceVersion", ""))
        with self._progress:
            if not self._cache.reached(version) or kind == "BOOKMARK":
                return False
            entry = self._schema.read(node, mark)
            gone = kind == "DELETED"
            news = self._cache.remove(entry.name, entry.uid) if gone else self._cache.put(entry)
            learned = entry.name in self._learned
            self._learned.discard(entry.name)
            return news or learned

    def _lost(self, error: StoreError) -> None:
        """Readers learn at once; the callback only when it is news."""
        with self._progress:
            news, self._error = self._error is None, error
            self._progress.notify_all()
        if news:
            self._notify()

    def _notify(self) -> None:
        if not self._closing.is_set():
            self._changed()

    # --- Doubt -----------------------------------------------------------------

    def _doubt(self) -> None:
        listed = asked = time.monotonic()
        while not self._closing.wait(max(self._pace.probe - self._silent_for(asked), 0.01)):
            try:
                if self._silent_for(asked) >= self._pace.probe:
                    self._probe()
                    asked = time.monotonic()
                every = self._list_every(self._pace.full_list)
                if self._error is None and time.monotonic() - listed >= every:
                    listed = time.monotonic()
                    self.refresh()
            except Busy:
                asked = time.monotonic()  # it is there
            except StoreError:
                # Whether it has really gone, the other thread finds out by opening a new stream.
                asked = time.monotonic()
                self._abort()

    def _list_every(self, least: float) -> float:
        """Seconds; no less than `least`."""
        return max(least, self._pace.per_node * len(self._cache.entries))

    def _silent_for(self, asked: float) -> float:
        """Seconds since the stream said something, or the server was asked (at `asked`)."""
        return time.monotonic() - max(self._heard, asked)

    def _probe(self) -> None:
        """Whether the server answers; what, is of no interest, so a refusal is an answer too."""
        with self._progress:
            stream = self._stream
        if stream is not None:
            try:
                self._client.get("/version")
            except StoreAway:
                raise
            except StoreError:
                return

    def _abort(self) -> None:
        with self._progress:
            if self._stream is not None:
                self._stream.abort()


def entry_of(schema: Schema, body: bytes) -> Entry:
    """Of a Node that the API has answered with. StoreError."""
    try:
        return read_node(schema, body, {})
    except ValueError as error:
        raise StoreError(f"not the Kubernetes API: {error}") from error
