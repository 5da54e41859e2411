"""What is looked at of the API's JSON before it is parsed, and how little is parsed then. Pure.

A Node is 8 to 30 KB of JSON, most of it its status, which kubelet changes at least every five minutes and
which is none of our business. So a line of the watch is compared with what is known by a few bytes of it,
and parsed only up to the status. The API writes a Node's fields in one order, and in a JSON string no
quotation mark stands without a backslash before it, so what is looked for cannot be inside of one. Where a
text is written in another way, all of it is parsed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

_HEAD: Final = re.compile(
    rb'\s*(?:\{"type":"(?:ADDED|MODIFIED)","object":)?\{(?:"kind":"Node","apiVersion":"v1",)?'
    rb'"metadata":\{"name":"([^"\\]+)","uid":"([^"\\]+)","resourceVersion":"([0-9]+)"'
)
_STATUS: Final = b',"status":{'
_UNAVAILABLE: Final = b'"type":"NetworkUnavailable","status":"True"'
_SPEC: Final = b'"spec":{'
_ANNOTATIONS: Final = b',"annotations":{'
_STRINGS: Final = re.compile(rb'(?:"(?:[^"\\]++|\\.)*+"[:,]?)*+\}')
"""What an object of strings is like behind its brace."""
_ITEMS: Final = b'"items":['
_ITEM: Final = b'{"metadata":{"name":'
_NEXT: Final = b"}," + _ITEM


@dataclass(frozen=True, slots=True)
class Glance:
    """What a text says without being parsed."""

    name: str
    version: str
    mark: int
    """See `ctl.store.kubernetes.schema.Entry`."""


def glance(text: bytes) -> Glance | None:
    """A Node, or an event that is no deletion, at a glance; None: it has to be parsed."""
    head = _HEAD.match(text)
    if head is None:
        return None
    status = text.find(_STATUS, head.end())
    spec = text.rfind(_SPEC, head.end(), status)
    if status < 0 or spec < 0:
        return None
    written = b""
    begin = text.find(_ANNOTATIONS, head.end(), spec)
    if begin >= 0:
        end = _STRINGS.match(text, begin + len(_ANNOTATIONS), spec)
        if end is None:
            return None
        written = text[begin : end.end()]
    name, uid, version = head.groups()
    return Glance(name.decode(), version.decode(), hash((uid, written, text[spec:status])) or 1)


def says_unavailable(text: bytes) -> bool:
    """Whether a Node has the condition that no network is there for its pods."""
    return _UNAVAILABLE in text


def parse(text: bytes, depth: int) -> dict[str, Any]:
    """A Node (`depth` 1) or an event (2) as an object, without the Node's status if that can be left out.

    ValueError if it is no JSON object.
    """
    status = text.find(_STATUS)
    if status >= 0:
        try:
            found = json.loads(text[:status] + b"}" * depth)
        except ValueError:
            found = None
        if isinstance(found, dict):
            node = found if depth == 1 else found.get("object")
            if isinstance(node, dict) and "metadata" in node and "spec" in node:
                return found
    whole = json.loads(text)
    if not isinstance(whole, dict):
        raise ValueError("not a JSON object")
    return whole


def items(body: bytes) -> tuple[dict[str, Any], Iterator[bytes]]:
    """A list's own metadata, and the text of each Node in it. ValueError if it is no list of Nodes."""
    found = _split(body)
    if found is not None:
        return found
    whole = json.loads(body)
    if not isinstance(whole, dict) or not isinstance(whole.get("metadata"), dict):
        raise ValueError("not a list of the Kubernetes API")
    return whole["metadata"], (json.dumps(each).encode() for each in whole.get("items") or ())


def _split(body: bytes) -> tuple[dict[str, Any], Iterator[bytes]] | None:
    begin, end = body.find(_ITEMS) + len(_ITEMS), body.rfind(b"]")
    if begin < len(_ITEMS) or body.find(_STATUS, 0, begin) >= 0:
        return None
    try:
        metadata = json.loads(body[:begin] + b"]}")["metadata"]
    except (ValueError, KeyError, TypeError):
        return None
    count = body.count(_STATUS, begin, end)
    if not count and not body[begin:end].strip():
        return metadata, iter(())
    if not body.startswith(_ITEM, begin) or body.count(_NEXT, begin, end) != count - 1:
        return None
    return metadata, _pieces(body, begin, end)


def _pieces(body: bytes, begin: int, end: int) -> Iterator[bytes]:
    """One at a time: all of a page, cut up, would be 6 MB more, of which the heap keeps what it had."""
    while (following := body.find(_NEXT, begin, end)) >= 0:
        yield body[begin : following + 1]
        begin = following + 2
    yield body[begin:end]
