"""The lease store in etcd v3, shared with flannel: its keys, its values, its leases' meaning.

- A lease is a key that hangs on an etcd lease; etcd removes it when that ends. A key
  without one is a reservation, and stays one.
- Every write is a transaction on what was read. Renewing is a keep-alive: nobody hears it.
- When another node's lease ends, only etcd knows (Lease.expires_at is END_UNKNOWN): asking
  would be a request per key.
- While a watch runs, reads come from its cache and cost no request.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from ipaddress import IPv4Network

from ctl.core.errors import ConfigError, LeaseConflict
from ctl.core.lease import in_words, moves, require_free
from ctl.core.model import Lease, Network, Snapshot
from ctl.core.ports import Closing
from ctl.core.wire import format_network, parse_network
from ctl.store.choosing import Choosing
from ctl.store.connection.http import Json
from ctl.store.etcd.cache import Cache, Listing
from ctl.store.etcd.client import EtcdClient, EtcdOptions
from ctl.store.etcd.grants import Grants
from ctl.store.etcd.list import read_list
from ctl.store.etcd.schema import Entry, Schema, encode, integer
from ctl.store.etcd.watch import Pace, Watch

Stands = Mapping[bytes, int]
"""The revisions that keys are thought to be at; 0: there is no such key."""


class EtcdStore(Choosing):
    """A LeaseStore in the etcd that `options` name. Any thread may call it.

    Nothing is asked of etcd before the first call. ConfigError on unusable options.
    `clock` gives seconds since the epoch. `pace`: see `ctl.store.etcd.watch`.
    """

    def __init__(
        self,
        options: EtcdOptions,
        clock: Callable[[], float] = time.time,
        *,
        pace: Pace | None = None,
        timeout: float = 5.0,
    ) -> None:
        self._client = EtcdClient(options, timeout=timeout, deadline=2 * timeout)
        self._schema = Schema(options.prefix)
        self._grants = Grants(self._client, clock)
        self._clock = clock
        self._pace = pace or Pace()
        self._watch: Watch | None = None
        self._written = 0
        """The revision of our last write; nothing older may be read after it."""
        self._stale = False
        """Whether a conflict has shown that the cache misses a change of somebody else's."""

    # --- Network ---------------------------------------------------------------

    def read_network(self) -> Network | None:
        entry = self._config()
        if entry is None:
            return None
        source = f"etcd key {self._schema.config.decode()}"
        return parse_network(entry.value.decode(errors="replace"), source)

    def write_network(self, network: Network, *, replace: bool = False) -> None:
        found = self._range(self._schema.config)
        text = format_network(network)
        if found is not None:
            if _same_network(found, network):
                return
            if not replace:
                stored = found.value.decode(errors="backslashreplace")
                raise LeaseConflict(f"etcd has another network config: {stored!r}")
        self._swap(self._schema.config, found.revision if found else 0, text.encode(), 0)

    def _config(self) -> Entry | None:
        if self._watch is not None:
            cached = self._watch.config(self._written)
            if cached is not None:
                return cached[0]
        return self._range(self._schema.config)

    # --- Leases ----------------------------------------------------------------

    def snapshot(self, *, fresh: bool = False) -> Snapshot:
        if self._watch is not None:
            if fresh or self._stale:
                self._watch.correct()
                self._stale = False
            found = self._watch.snapshot(self._written, self._grants.ends())
            if found is not None:
                return found
        cache = self._list()
        # A cluster that begins anew numbers anew: what we wrote to the old one is no measure.
        self._written = min(self._written, cache.revision)
        return cache.snapshot(self._grants.ends())

    def put(self, lease: Lease, expected: Lease | None) -> Lease:
        if expected is None or moves(lease, expected):
            return self._claim(lease, expected)
        return self._renew(lease, expected) or self._replace(lease, expected)

    def delete(self, lease: Lease) -> None:
        key = self._schema.key(lease)
        deletion = {"request_delete_range": {"key": encode(key)}}
        stands = {key: lease.revision}
        answer = self._transact(stands, deletion)
        if not answer.get("succeeded"):
            raise self._changed(lease, stands, answer)
        self._note(answer)

    def watch(self, changed: Callable[[], None]) -> Closing:
        watch = self._watch = Watch(self._client, self._schema, changed, self._pace)
        return _Watching(self, watch)

    def close(self) -> None:
        """Close the connections; another call opens them again."""
        self._client.close()

    def ended(self, watch: Watch) -> None:
        """`watch` is closed: its cache grows old from now on."""
        if self._watch is watch:
            self._watch = None

    # --- Claiming --------------------------------------------------------------

    def _claim(self, lease: Lease, before: Lease | None) -> Lease:
        """Only where nothing overlaps, at no moment in between.

        `before`: our entry with other subnets, so under another key, whose place it takes: at no moment both
        are there or neither. None: there is none.

        The list shows what was there before. Same subnets, same key: the transaction sees to that,
        for a key that is moved to as for one that is new. What overlaps and was created since then (the
        network's SubnetLen was changed, or two have picked one IPv6 subnet) is shown by the transaction
        itself: the later one yields.
        """
        listing = self._listing()
        key = self._schema.key(lease)
        stands = {key: _left_behind(lease, before, listing.entries.get(key))}
        if before is not None:
            stands[self._schema.key(before)] = before.revision
        self._require_free(
            lease, before, [each for each in listing.entries.values() if not stands.get(each.key)]
        )
        since = {"request_range": {**self._schema.span, "min_create_revision": str(listing.revision + 1)}}
        away = [{"request_delete_range": {"key": encode(each)}} for each in stands if each != key]
        stored, answer = self._put(lease, stands, since, *away)
        found = answer["responses"][1]["response_range"].get("kvs", ())
        newer = map(self._schema.decode, found)
        try:
            require_free(lease, [each.lease for each in newer if each.lease is not None and each.key != key])
        except LeaseConflict:
            self.delete(stored)
            raise
        return stored

    def _listing(self) -> Listing:
        """What there is; where a watch runs, as that has heard it."""
        listing = self._watch.listing(self._written) if self._watch is not None and not self._stale else None
        return listing or read_list(self._client, self._schema, {})

    def _require_free(self, lease: Lease, before: Lease | None, others: Collection[Entry]) -> None:
        try:
            require_free(lease, [each.lease for each in others if each.lease])
        except LeaseConflict:
            self._stale = True
            raise
        if before is None:
            key = self._schema.ipv4_key(lease)
            # The second: one with an IPv6 subnet.
            unread = [each for each in others if each.key == key or each.key.startswith(key + b"&")]
            if unread:
                raise LeaseConflict(f"{lease.subnet} is taken: {unread[0].problem}")

    # --- Replacing -------------------------------------------------------------

    def _renew(self, lease: Lease, expected: Lease) -> Lease | None:
        """The same with a later end: a keep-alive, if the entry allows it. None: it has to be written."""
        if not _lasts(lease) or self._schema.value(lease) != self._schema.value(expected):
            return None
        entry = self._range(self._schema.key(expected))
        if entry is None or entry.revision != expected.revision:
            self._stale = True
            raise LeaseConflict(_has_changed(expected, entry))
        grant = self._grants.renew(entry.grant, self._ttl(lease)) if entry.grant else None
        return replace(lease, expires_at=grant.expires_at, revision=entry.revision) if grant else None

    def _replace(self, lease: Lease, expected: Lease) -> Lease:
        return self._put(lease, {self._schema.key(lease): expected.revision})[0]

    def _ttl(self, lease: Lease) -> int:
        assert lease.expires_at is not None
        return max(round(lease.expires_at - self._clock()), 1)

    # --- Requests --------------------------------------------------------------

    def _put(self, lease: Lease, stands: Stands, *more: Json) -> tuple[Lease, Json]:
        """Write the lease, with its time to live, where all stands as it is said to; and do `more`."""
        value = self._schema.value(lease)
        written: Json = {"key": encode(self._schema.key(lease)), "value": encode(value)}
        if not _lasts(lease):
            grant = None
            written |= {"lease": "0"} if lease.expires_at is None else {"ignore_lease": True}
            answer = self._transact(stands, {"request_put": written}, *more)
        else:
            grant = self._grants.lasting(self._ttl(lease))
            written["lease"] = str(grant.number)
            answer = self._transact(stands, {"request_put": written}, *more)
        if not answer.get("succeeded"):
            raise self._changed(lease, stands, answer)
        self._note(answer)
        expires_at = grant.expires_at if grant else lease.expires_at
        return replace(lease, expires_at=expires_at, revision=integer(answer["header"], "revision")), answer

    def _swap(self, key: bytes, revision: int, value: bytes, grant: int) -> None:
        put = {"request_put": {"key": encode(key), "value": encode(value), "lease": str(grant)}}
        answer = self._transact({key: revision}, put)
        if not answer.get("succeeded"):
            raise LeaseConflict(f"etcd key {key.decode()} was changed by someone else meanwhile")
        self._note(answer)

    def _note(self, answer: Json) -> None:
        self._written = max(self._written, integer(answer["header"], "revision"))

    def _transact(self, stands: Stands, *operations: Json) -> Json:
        """`operations` if all stands like that, else what there is under each of the keys."""
        compare = [_comparison(key, revision) for key, revision in stands.items()]
        present = [{"request_range": {"key": encode(key)}} for key in stands]
        return self._client.call(
            "/v3/kv/txn", {"compare": compare, "success": list(operations), "failure": present}
        )

    def _changed(self, lease: Lease, stands: Stands, answer: Json) -> LeaseConflict:
        """What stands otherwise than we thought."""
        self._stale = True
        for revision, each in zip(stands.values(), answer["responses"], strict=True):
            found = each["response_range"].get("kvs", ())
            entry = self._schema.decode(found[0]) if found else None
            if (entry.revision if entry else 0) != revision:
                break
        return LeaseConflict(_has_changed(lease, entry) if revision else _is_taken(lease.subnet, entry))

    def _range(self, key: bytes) -> Entry | None:
        found = self._client.call("/v3/kv/range", {"key": encode(key)}).get("kvs", ())
        return self._schema.decode(found[0]) if found else None

    def _list(self) -> Cache:
        cache = Cache(self._schema.config)
        cache.load(read_list(self._client, self._schema, {}))
        return cache


class _Watching:
    """A watch of a store's, for the one who asked for it."""

    def __init__(self, store: EtcdStore, watch: Watch) -> None:
        self._store, self._watch = store, watch

    def close(self) -> None:
        self._store.ended(self._watch)
        self._watch.close()


def _comparison(key: bytes, revision: int) -> Json:
    if revision:
        return {"key": encode(key), "target": "MOD", "mod_revision": str(revision)}
    return {"key": encode(key), "target": "VERSION", "version": "0"}


def _left_behind(lease: Lease, before: Lease | None, there: Entry | None) -> int:
    """The revision of what stands where `before` is to move to, if that is of the same host; else 0.

    A flanneld that became dual stack has left its lease of before to run out.
    """
    if before is None or there is None or there.lease is None:
        return 0
    return there.revision if there.lease.host == lease.host else 0


def _lasts(lease: Lease) -> bool:
    """Whether the lease has an end that we know, and so can ask etcd for."""
    return lease.expires_at is not None and math.isfinite(lease.expires_at)


def _is_taken(subnet: IPv4Network, entry: Entry | None) -> str:
    holder_ = (
        (in_words(entry.lease) if entry.lease else entry.problem) if entry else "by an entry that has gone"
    )
    return f"{subnet} is taken: {holder_}"


def _has_changed(lease: Lease, entry: Entry | None) -> str:
    if entry is None:
        return f"the lease on {lease.subnet} has gone"
    found = in_words(entry.lease) if entry.lease else entry.problem
    return f"the lease on {lease.subnet} has changed: {found}"


def _same_network(entry: Entry, network: Network) -> bool:
    """However it is written."""
    try:
        return parse_network(entry.value.decode()) == network
    except (ValueError, ConfigError):
        return False
