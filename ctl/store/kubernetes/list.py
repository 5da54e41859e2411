"""Reading all Nodes, at one version, a page at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

from ctl.core.errors import StoreError
from ctl.store.kubernetes import scan
from ctl.store.kubernetes.cache import Listing
from ctl.store.kubernetes.client import ApiClient, Gone
from ctl.store.kubernetes.schema import Entry, Schema

NODES: Final = "/api/v1/nodes"
PAGE: Final = 500
"""How many Nodes an answer may hold, as kubectl asks; some 6 MB."""
PAGE_S: Final = 30.0
"""How long a page may take, seconds."""
RESTARTS: Final = 3
"""How often a list is begun anew after its history has gone between two pages; at last in one piece."""


def read_list(client: ApiClient, schema: Schema, known: Mapping[str, Entry]) -> Listing:
    """All Nodes as they are now. StoreError. Those that are as in `known` are not parsed again."""
    for attempt in range(1, RESTARTS + 1):
        try:
            return _read_pages(client, schema, known, PAGE if attempt < RESTARTS else 0)
        except Gone as error:
            gone = error
    raise gone


def _read_pages(client: ApiClient, schema: Schema, known: Mapping[str, Entry], page: int) -> Listing:
    entries: dict[str, Entry] = {}
    version, more = "", ""
    while True:
        path = f"{NODES}?limit={page}" + (f"&continue={quote(more)}" if more else "")
        body = client.get(path if page else NODES, PAGE_S)
        try:
            metadata, found = scan.items(body)
            for text in found:
                entry = read_node(schema, text, known)
                entries[entry.name] = entry
        except ValueError as error:
            raise StoreError(f"{client.where}: not the Kubernetes API: {error}") from error
        version = version or str(metadata.get("resourceVersion", ""))
        more = str(metadata.get("continue") or "")
        if not more:
            return Listing(version, entries)


def read_node(schema: Schema, text: bytes, known: Mapping[str, Entry]) -> Entry:
    """A Node's entry; the one that is known, if it says nothing else. ValueError."""
    seen = scan.glance(text)
    before = known.get(seen.name) if seen else None
    if seen and before and before.mark == seen.mark:
        return before
    return schema.read(scan.parse(text, 1), seen.mark if seen else 0)
