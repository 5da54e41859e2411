"""Reading everything below the prefix, at one revision, a page at a time."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping
from typing import Any, Final

from ctl.store.connection.http import Json
from ctl.store.etcd.cache import Listing
from ctl.store.etcd.client import Compacted, EtcdClient
from ctl.store.etcd.schema import Entry, Schema, encode, integer

PAGE: Final = 1000
"""How many entries an answer may hold: 10,000 would take some 20 MB of memory while they are decoded."""

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
    while True:
        answer = client.call("/v3/kv/range", request)
        found = answer.get("kvs", ())
        for each in found:
            key = b64decode(each["key"])
            if schema.belongs(key):
                entry = _reuse(known.get(key), each) or schema.decode(each)
                entries[entry.key] = entry
        header = answer.get("header", {})
        # Later pages are of the first one's revision, or an entry could be in two or in none.
        request["revision"] = request.get("revision") or integer(header, "revision")
        if not (answer.get("more") and found):
            return Listing(request["revision"], integer(header, "cluster_id"), entries)
        request["key"] = encode(b64decode(found[-1]["key"]) + b"\0")


def _reuse(known: Entry | None, found: Mapping[str, Any]) -> Entry | None:
    """`known`, if it is the same in every part."""
    if known is None or known.revision != integer(found, "mod_revision"):
        return None
    value = b64decode(found.get("value", ""))
    same = known.mark == hash(value) if known.lease else known.value == value
    return known if same and known.grant == integer(found, "lease") else None
