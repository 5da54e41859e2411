from __future__ import annotations

import json
import os
import subprocess
import sys
from base64 import b64encode
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ctl.core.model import END_UNKNOWN, Lease
from ctl.core.wire import parse_attributes
from ctl.store.etcd.cache import Cache, Event, Listing
from ctl.store.etcd.schema import Entry, KeyValue, Schema
from tests.unit.strategies import leases

SCHEMA = Schema("/coreos.com/network")
SUBNETS = "/coreos.com/network/subnets"


def raw(key: bytes, value: bytes, revision: int = 1, grant: int = 0) -> KeyValue:
    """As the gateway has it."""
    found = {"key": b64encode(key).decode(), "mod_revision": str(revision)}
    if value:
        found["value"] = b64encode(value).decode()
    return found | ({"lease": str(grant)} if grant else {})


def entry_of(lease: Lease, revision: int = 1, grant: int = 7) -> Entry:
    return SCHEMA.decode(raw(SCHEMA.key(lease), SCHEMA.value(lease), revision, grant))


# --- Schema --------------------------------------------------------------------


@given(leases(), st.booleans())
def test_a_lease_comes_back_as_it_was_put(lease: Lease, reserved: bool) -> None:
    found = entry_of(lease, 9, 0 if reserved else 7).lease
    assert found == replace(lease, expires_at=None if reserved else END_UNKNOWN)
    assert found.revision == 9


@given(leases())
def test_flannel_reads_what_is_written(lease: Lease) -> None:
    """Its regular expression, its JSON types; the name of the node is the one field it does not know."""
    import re

    key = SCHEMA.key(lease).decode()
    match = re.search(r"(\d+\.\d+.\d+.\d+)-(\d+)(?:&([a-f\d:]+)-(\d+))?$", key)
    assert match is not None and match[3] is None
    assert IPv4Network(f"{match[1]}/{match[2]}") == lease.subnet
    value = json.loads(SCHEMA.value(lease))
    assert list(value) == ["PublicIP", "PublicIPv6", "BackendType", "BackendData"]
    assert set(value["BackendData"]) - {"Node"} == {"VNI", "VtepMAC"}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from(["10.0.0.1", "vxlan", "02:00:00:00:00:01"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["PublicIP", "publicip", "BackendType", "BackendData", "VNI", "VtepMAC", "Node"]),
        inner, max_size=5,
    ),
    max_leaves=10,
)  # fmt: skip

keys = st.one_of(
    st.binary(max_size=30).map(lambda tail: SUBNETS.encode() + tail),
    st.text(alphabet="0123456789.-&/:af", max_size=30).map(lambda tail: f"{SUBNETS}/{tail}".encode()),
    st.from_regex(r"[0-9]{1,3}(\.[0-9]{1,3}){3}-[0-9]{1,3}", fullmatch=True).map(
        lambda tail: f"{SUBNETS}/{tail}".encode()
    ),
    st.from_regex(r"[0-9]{1,3}(\.[0-9]{1,3}){3}-[0-9]{1,2}&[0-9a-f:]{2,10}-[0-9]{1,3}", fullmatch=True).map(
        lambda tail: f"{SUBNETS}/{tail}".encode()
    ),
    st.just(f"{SUBNETS}/172.17.3.0-24".encode()),
)
values = st.one_of(st.binary(max_size=60), json_values.map(lambda value: json.dumps(value).encode()))


@given(keys, values, st.integers(0, 1 << 63), st.integers(0, 1 << 63))
@example(f"{SUBNETS}/172.17.3.0-24".encode(), b"[" * 100_000, 1, 0)
@example(
    f"{SUBNETS}/172.17.3.0-24".encode(), b'{"PublicIP":"10.0.0.1","BackendData":{"Node":"\\ud800"}}', 1, 0
)
@example(f"{SUBNETS}/172.17.3.0-24".encode(), b"1" * 10_000, 1, 0)
@example(f"{SUBNETS}/172.17.3.0-24".encode(), b'{"PublicIP":"' + b"1" * 1_500_000 + b'"}', 1, 0)
@example(f"{SUBNETS}/172.17.3.0-24".encode(), b'{"PublicIP":"10.0.0.1","BackendType":"\\ud800"}', 1, 0)
@example(f"{SUBNETS}/172.17.3.0-24".encode(), b'{"PublicIP":"10.0.0.1"}\0', 1, 0)
@example(f"{SUBNETS}/172.17.3.0-24\0".encode(), b"{}", 1, 0)
@example(f"{SUBNETS}/172.17.3.0-24&fd00::-64".encode(), b'{"PublicIP":"10.0.0.1"}', 1, 0)
@example(f"{SUBNETS}/".encode() + b"9" * 100_000, b"{}", 1, 0)
@example(f"{SUBNETS}/\xff\x1b[2J\n".encode("latin-1"), b"{}", 1, 0)
def test_any_key_and_value_is_a_lease_or_a_line(key: bytes, value: bytes, revision: int, grant: int) -> None:
    entry = SCHEMA.decode(raw(key, value, revision, grant))
    assert (entry.lease is None) == bool(entry.problem)
    assert (entry.key, entry.revision, entry.grant) == (key, revision, grant)
    assert (entry.value, entry.mark) == ((b"", hash(value)) if entry.lease else (value, 0))
    if entry.lease is None:
        assert entry.problem.isprintable() and len(entry.problem) <= 310
        entry.problem.encode()
    else:
        assert SCHEMA.key(entry.lease) == key
        assert entry.lease.node.isprintable()
        entry.lease.node.encode()
        parse_attributes(entry.lease.subnet, SCHEMA.value(entry.lease).decode())


@pytest.mark.parametrize("prefix", ["/coreos.com/network", "/coreos.com/network/", "//coreos.com//network//"])
def test_a_prefix_is_cleaned_as_flannel_does(prefix: str) -> None:
    schema = Schema(prefix)
    assert (schema.config, schema.subnets) == (SCHEMA.config, SCHEMA.subnets)


def test_the_span_holds_what_flannel_sees_and_ends_there() -> None:
    first, last = SCHEMA.config, SCHEMA.end
    for key in (b"config", b"subnets", b"subnets/172.17.3.0-24", b"subnets\xff\xff"):
        assert first <= b"/coreos.com/network/" + key < last
        assert SCHEMA.belongs(b"/coreos.com/network/" + key)
    for key in (b"config.old", b"nodes", b"subnet"):
        assert not SCHEMA.belongs(b"/coreos.com/network/" + key)


# --- Cache ---------------------------------------------------------------------


def listing(entries: dict[bytes, Entry], revision: int) -> Listing:
    return Listing(revision, 1, entries)


@given(st.lists(st.tuples(leases(), st.booleans(), st.booleans()), max_size=30), st.data())
def test_events_lead_to_what_a_list_shows(
    changes: list[tuple[Lease, bool, bool]], data: st.DataObject
) -> None:
    """In any mix of lists and events, also ones that come twice or that a list was quicker than."""
    cache = Cache(SCHEMA.config)
    truth: dict[bytes, Entry] = {}
    events: list[Event] = []
    ends = {1: 1000.0, 2: 2000.0}
    for revision, (lease, gone, garbage) in enumerate(changes, 1):
        key = SCHEMA.key(lease)
        if gone:
            truth.pop(key, None)
            events.append(Event(key, revision, None))
        else:
            value = b"garbage" if garbage else SCHEMA.value(lease)
            truth[key] = SCHEMA.decode(raw(key, value, revision, revision % 3))
            events.append(Event(key, revision, truth[key]))
        if data.draw(st.booleans()):
            cache.load(listing(dict(truth), revision))
        if data.draw(st.booleans()):
            cache.take(events)  # some of them again: they must do nothing
        if data.draw(st.booleans()):
            cache.snapshot(ends)  # from now on it follows what hangs on these
    cache.take(events)
    fresh = Cache(SCHEMA.config)
    fresh.load(listing(truth, len(changes)))
    assert cache.entries == fresh.entries == truth
    assert cache.snapshot(ends) == replace(fresh.snapshot(ends), revision=cache.revision)
    subnets = [each.subnet for each in cache.snapshot({}).leases]
    assert subnets == sorted(subnets)


@given(leases(), leases())
def test_a_list_with_another_value_at_the_same_revision_is_news(one: Lease, other: Lease) -> None:
    """A cluster that was restored from a backup numbers anew: only whole values tell."""
    other = replace(other, subnet=one.subnet)
    cache = Cache(SCHEMA.config)
    cache.load(listing({SCHEMA.key(one): entry_of(one)}, 5))
    changed = cache.load(listing({SCHEMA.key(one): entry_of(other)}, 5))
    assert changed == (SCHEMA.value(one) != SCHEMA.value(other))
    assert cache.snapshot({}).leases[0].host == other.host


def test_two_keys_of_one_transaction_both_count() -> None:
    lease = Lease(IPv4Network("172.17.3.0/24"), IPv4Network("10.0.0.1/32")[0])
    second = replace(lease, subnet=IPv4Network("172.17.4.0/24"))
    cache = Cache(SCHEMA.config)
    events = [Event(entry.key, 5, entry) for entry in (entry_of(lease, 5), entry_of(second, 5))]
    assert cache.take(events[:1]) and cache.take(events[1:])
    assert not cache.take(events)
    assert len(cache.snapshot({}).leases) == 2


# --- Cost ----------------------------------------------------------------------


def test_only_etcd_users_pay_for_it() -> None:
    code = (
        "import sys; from ctl.store import open_store; open_store('memory:');"
        "assert not {'http.client', 'ssl', 'ctl.store.etcd.store'} & sys.modules.keys();"
        "open_store('etcd://127.0.0.1:1');"
        "assert not {'requests', 'urllib3', 'asyncio'} & sys.modules.keys()"
    )
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
