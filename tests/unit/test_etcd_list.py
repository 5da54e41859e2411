"""All leases are read a page at a time, each asked for while the one before is parsed."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable
from threading import Event
from typing import Any

import pytest

from ctl.core.errors import StoreAway
from ctl.store.connection.http import Json
from ctl.store.etcd.client import Compacted
from ctl.store.etcd.list import RESTARTS, read_list
from ctl.store.etcd.schema import Entry, KeyValue, Schema

SCHEMA = Schema("/coreos.com/network")


class Pages:
    """Leases by etcd's gateway, two in an answer. `fail` may raise instead of the call of that number."""

    def __init__(self, count: int, fail: Callable[[int], None] = lambda _: None) -> None:
        self.keys = [f"/coreos.com/network/subnets/10.5.{third}.0-24".encode() for third in range(count)]
        self.asked: list[Json] = []
        self.second = Event()
        """Whether a second page was asked for."""
        self._fail = fail

    def call(self, _: str, body: Json) -> Json:
        self.asked.append(body)
        if len(self.asked) > 1:
            self.second.set()
        self._fail(len(self.asked))
        rest = [key for key in self.keys if key >= b64decode(body["key"])]
        kvs = [{"key": b64encode(key).decode(), "mod_revision": "7"} for key in rest[:2]]
        header = {"revision": str(40 + len(self.asked)), "cluster_id": "3"}
        return {"kvs": kvs, "more": len(rest) > 2, "header": header}

    def read(self, schema: Schema = SCHEMA) -> Any:
        client: Any = self
        return read_list(client, schema, {})


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5])
def test_every_page_is_read_once_and_at_the_first_ones_revision(count: int) -> None:
    pages = Pages(count)
    found = pages.read()
    assert list(found.entries) == pages.keys
    assert (found.revision, found.cluster) == (41, 3)
    assert len(pages.asked) == max(1, -(-count // 2))
    assert [each.get("revision") for each in pages.asked] == [None, *[41] * (len(pages.asked) - 1)]


def test_the_next_page_is_asked_for_before_this_one_is_parsed() -> None:
    pages = Pages(4)

    class Waiting(Schema):
        def decode(self, found: KeyValue) -> Entry:
            assert pages.second.wait(30), "nobody asked for the second page"
            return super().decode(found)

    assert list(pages.read(Waiting("/coreos.com/network")).entries) == pages.keys


def test_what_goes_wrong_with_a_later_page_is_the_readers_to_hear() -> None:
    def gone(number: int) -> None:
        if number == 2:
            raise StoreAway("etcd unreachable")

    with pytest.raises(StoreAway, match="unreachable"):
        Pages(4, gone).read()


def test_a_list_whose_revision_is_compacted_away_is_begun_anew() -> None:
    def compacted(number: int) -> None:
        if number in (2, 4):
            raise Compacted("compacted")

    pages = Pages(4, compacted)
    assert list(pages.read().entries) == pages.keys
    assert [each.get("revision") for each in pages.asked] == [None, 41, None, 43, None, 45]

    def always(number: int) -> None:
        if not number % 2:
            raise Compacted("compacted")

    with pytest.raises(Compacted):
        (pages := Pages(4, always)).read()
    assert len(pages.asked) == 2 * RESTARTS
