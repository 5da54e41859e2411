"""Reading everything below the prefix, at one revision, a page at a time.

etcd has a page ready about as soon as we have parsed one: so the next one is asked for before.
"""

from __future__ import annotations

import threading
from base64 import b64decode
from collections.abc import Callable, Mapping
from functools import partial
from queue import SimpleQueue
from typing import Any, Final

from ctl.core.errors import OvnetError
from ctl.store.connection.http import Json
from ctl.store.etcd.cache import Listing
from ctl.store.etcd.client import Compacted, EtcdClient
from ctl.store.etcd.schema import Entry, Schema, encode, integer

PAGE: Final = 1000
"""How many entries an answer may hold: 10,000 would take some 20 MB of memory while they are decoded."""

_PATH: Final = "/v3/kv/range"

RESTARTS: Final = 3
"""How often a list is begun anew, after a compaction between two pages took away their revision."""


def read_list(client: EtcdClient, schema: Schema, known: Mapping[bytes, Entry]) -> Listing:
    """The config and all leases, as a quorum of etcd has them now. StoreError.

    Entries that are, value and all, as in `known` are not parsed again.
    """
    for _ in range(RESTARTS):
        try:
            return _read_pages(client, schema, known)
        except Compacted as error:
            compacted = error
    raise compacted


def _read_pages(client: EtcdClient, schema: Schema, known: Mapping[bytes, Entry]) -> Listing:
    entries: dict[bytes, Entry] = {}
    request: Json = {**schema.span, "limit": PAGE}
    answer = client.call(_PATH, request)
    header = answer.get("header", {})
    revision, cluster = integer(header, "revision"), integer(header, "cluster_id")
    while True:
        found, following = answer.get("kvs", ()), None
        if answer.get("more") and found:
            start = encode(b64decode(found[-1]["key"]) + b"\0")
            # Later pages are of the first one's revision, or an entry could be in two or in none.
            following = _Asked(partial(client.call, _PATH, {**request, "key": start, "revision": revision}))
        for each in found:
            key = b64decode(each["key"])
            if schema.belongs(key):
                entry = _reuse(known.get(key), each) or schema.decode(each)
                entries[entry.key] = entry
        if following is None:
            return Listing(revision, cluster, entries)
        answer = following.answer()


class _Asked:
    """A call that is being made while its caller goes on. No process waits for it to end."""

    def __init__(self, call: Callable[[], Json]) -> None:
        self._answered: SimpleQueue[Json | OvnetError] = SimpleQueue()
        threading.Thread(target=self._make, args=(call,), name="etcd-page", daemon=True).start()

    def _make(self, call: Callable[[], Json]) -> None:
        try:
            self._answered.put(call())
        except OvnetError as error:
            self._answered.put(error)

    def answer(self) -> Json:
        """Once it is there. Raises what the call has raised."""
        found = self._answered.get()
        if isinstance(found, OvnetError):
            raise found
        return found


def _reuse(known: Entry | None, found: Mapping[str, Any]) -> Entry | None:
    """`known`, if it is the same in every part."""
    if known is None or known.revision != integer(found, "mod_revision"):
        return None
    value = b64decode(found.get("value", ""))
    same = known.mark == hash(value) if known.lease else known.value == value
    return known if same and known.grant == integer(found, "lease") else None
