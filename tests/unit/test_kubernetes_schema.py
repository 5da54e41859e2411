"""Nodes as leases: what is read of them, what is written, and what is not looked at."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctl.core.errors import ConfigError
from ctl.core.model import FOUND_OUT, Addresses, IPv6Lease, Lease, MacAddress, Subnets
from ctl.core.wire import parse_network
from ctl.settings.values import annotation_prefix
from ctl.store.kubernetes import scan
from ctl.store.kubernetes.cache import Cache, Listing
from ctl.store.kubernetes.schema import Entry, Schema, chosen_addresses, pod_cidrs
from tests.kube.nodes import PREFIX, alone, node, published, text

MAC = "02:00:00:00:00:02"
SCHEMA = Schema(PREFIX, "own")


def read(name: str = "n2", *cidrs: str, **annotations: str) -> Entry:
    """A Node of flannel's with these annotations put over what it publishes; "-" takes one away."""
    written = published("10.0.0.2")
    for key, value in annotations.items():
        full = PREFIX + key.replace("_", "-")
        written[full] = value
        if value == "-":
            del written[full]
    made = node(name, *(cidrs or ("10.244.2.0/24",)), annotations=written)
    made["metadata"] |= {"uid": "u", "resourceVersion": "7", "creationTimestamp": "2026-01-01T00:00:00Z"}
    return SCHEMA.read(made)


def lease_of(entry: Entry) -> Lease:
    assert entry.lease is not None, entry.problem
    return entry.lease


def test_a_node_of_flannels_is_a_lease_without_an_end() -> None:
    lease = lease_of(read())
    assert lease == Lease(
        IPv4Network("10.244.2.0/24"), IPv4Address("10.0.0.2"), MacAddress.parse(MAC), 1, "vxlan", "n2"
    )
    assert lease.expires_at is None and lease.revision == 7


@pytest.mark.parametrize("mark", ["-", "", "false", "True"])
def test_a_node_without_flannels_mark_is_no_lease_and_no_problem(mark: str) -> None:
    entry = read(kube_subnet_manager=mark)
    assert (entry.lease, entry.problem) == (None, "")


@pytest.mark.parametrize(
    ("data", "vni"),
    [
        ('{"VNI":7,"VtepMAC":"02:00:00:00:00:02"}', 7),
        ('{"VtepMAC":"02:00:00:00:00:02"}', None),
        ('{ "vtepmac": "02:00:00:00:00:02", "vni": 1 }', 1),
        ('{"VNI":1,"VtepMAC":"02:00:00:00:00:02","Other":[1]}', 1),
    ],
)
def test_backend_data_is_read_as_go_reads_it(data: str, vni: int | None) -> None:
    lease = lease_of(read(backend_data=data))
    assert (str(lease.vtep_mac), lease.vni) == (MAC, vni)


@pytest.mark.parametrize(
    ("kind", "backend"), [("host-gw", "host-gw"), ("", "udp"), ("wireguard", "wireguard")]
)
def test_other_backends_are_named_and_their_data_is_let_be(kind: str, backend: str) -> None:
    lease = lease_of(read(backend_type=kind, backend_data="null"))
    assert (lease.backend, lease.vtep_mac) == (backend, None)


@pytest.mark.parametrize(
    ("annotation", "value", "said"),
    [
        ("public_ip", "-", "node n2: public-ip: "),
        ("public_ip", "10.0.0.300", "node n2: public-ip: "),
        ("public_ip", "127.0.0.1", "node n2: public-ip: 127.0.0.1 is not a host's address"),
        ("backend_data", '{"VNI":1', "node n2: backend-data: "),
        ("backend_data", "[]", "node n2: backend-data: BackendData must be an object"),
        ("backend_data", '{"VtepMAC":"01:00:00:00:00:02"}', "is not a unicast address"),
        ("backend_data", '{"VNI":"1","VtepMAC":"02:00:00:00:00:02"}', "VNI must be a whole number"),
        ("backend_data", "[" * 5000, "node n2: backend-data: "),
        ("backend_type", "vx\nlan", "node n2: backend-type is no name"),
    ],
)
def test_what_does_not_parse_is_one_line_that_names_the_node(annotation: str, value: str, said: str) -> None:
    entry = read(**{annotation: value})
    assert entry.lease is None and said in entry.problem
    assert "\n" not in entry.problem and len(entry.problem) < 400


@pytest.mark.parametrize(
    ("cidrs", "subnet", "ipv6"),
    [
        (["10.244.0.0/24"], "10.244.0.0/24", None),
        (["10.244.16.0/20"], "10.244.16.0/20", None),
        (["fd00:1::/64", "10.244.3.0/26"], "10.244.3.0/26", "fd00:1::/64"),
        (["10.244.3.7/24", "fd00:1::7/80"], "10.244.3.0/24", "fd00:1::/80"),
    ],
)
def test_the_subnets_are_the_first_cidr_of_each_family(
    cidrs: list[str], subnet: str, ipv6: str | None
) -> None:
    wanted = Subnets(IPv4Network(subnet), IPv6Network(ipv6) if ipv6 else None)
    assert pod_cidrs({"podCIDR": cidrs[0], "podCIDRs": cidrs}) == wanted


def test_a_node_of_an_old_api_has_one_cidr() -> None:
    assert pod_cidrs({"podCIDR": "10.244.0.0/24"}) == Subnets(IPv4Network("10.244.0.0/24"))
    assert pod_cidrs({}) is None


@pytest.mark.parametrize(
    ("cidrs", "said"),
    [
        (["10.1.0.0/24", "fd00::/64", "10.2.0.0/24"], "more than one"),
        (["fd00::/64"], "no podCIDR for IPv4"),
        (["10.1.0.0/33"], "is no network"),
        (["10.1.0.0/24", "fd00::/129"], "is no network"),
    ],
)
def test_a_cidr_that_is_none_is_a_problem_of_flannels_nodes_only(cidrs: list[str], said: str) -> None:
    assert said in read("n2", *cidrs).problem
    assert read("n2", *cidrs, kube_subnet_manager="-").problem == ""


OWN = Lease(IPv4Network("10.244.1.0/24"), IPv4Address("10.0.0.1"), MacAddress.parse(MAC), 1, node="own")


def written_of(lease: Lease) -> dict[str, str]:
    """To a Node that has none of them yet."""
    return {key: value for key, value in SCHEMA.annotations(lease, {}).items() if value is not None}


def test_what_is_written_is_flannels_byte_for_byte() -> None:
    assert SCHEMA.annotations(OWN, {}) == {
        "flannel.alpha.coreos.com/backend-type": "vxlan",
        "flannel.alpha.coreos.com/backend-data": '{"VNI":1,"VtepMAC":"02:00:00:00:00:02"}',
        "flannel.alpha.coreos.com/public-ip": "10.0.0.1",
        "flannel.alpha.coreos.com/kube-subnet-manager": "true",
    }


@pytest.mark.parametrize(("backend", "kind"), [("host-gw", "host-gw"), ("udp", "")])
def test_backends_without_data_write_null_as_flannel_does(backend: str, kind: str) -> None:
    lease = Lease(OWN.subnet, OWN.host, backend=backend, node="own")
    written = SCHEMA.annotations(lease, {})
    assert written[f"{PREFIX}backend-type"] == kind and written[f"{PREFIX}backend-data"] == "null"


def test_only_what_differs_is_written() -> None:
    stands = {key.removeprefix(PREFIX): value for key, value in written_of(OWN).items()}
    assert SCHEMA.annotations(OWN, stands) == {}
    assert SCHEMA.annotations(OWN, {**stands, "public-ip": "10.9.9.9"}) == {f"{PREFIX}public-ip": "10.0.0.1"}


def test_an_administrators_choice_of_an_address_is_one_or_is_named() -> None:
    ipv4, ipv6 = "node-public-ip", "node-public-ipv6"
    assert chosen_addresses({}) == chosen_addresses({ipv4: "", ipv6: ""}) == FOUND_OUT
    assert chosen_addresses({ipv4: "10.0.0.7"}) == Addresses(IPv4Address("10.0.0.7"))
    both = Addresses(IPv4Address("10.0.0.7"), IPv6Address("fd77::7"))
    assert chosen_addresses({ipv4: "10.0.0.7", ipv6: "fd77::7"}) == both
    for annotation, values in ((ipv4, ("eth1", "fd00::1", "127.0.0.1")), (ipv6, ("eth1", "10.0.0.7", "::1"))):
        for wrong in values:
            with pytest.raises(ValueError, match=f"^{annotation}: "):
                chosen_addresses({annotation: wrong})


@pytest.mark.parametrize("wrong", ["garbage", "10.0.0", "fd00::1", "127.0.0.1", "10.0.0.9 "])
def test_what_is_no_address_is_never_published_in_place_of_ours_and_named(wrong: str) -> None:
    written = SCHEMA.annotations(OWN, {"public-ip-overwrite": wrong})
    assert written[f"{PREFIX}public-ip"] == "10.0.0.1"
    stands = {**written_of(OWN), f"{PREFIX}public-ip-overwrite": wrong}
    ours, anothers = (SCHEMA.read(node(name, str(OWN.subnet), annotations=stands)) for name in ("own", "n2"))
    assert ours.lease == OWN
    assert ours.problem.startswith("node own: public-ip-overwrite: ")
    assert ours.problem.endswith(": our own address is published")
    assert anothers.problem == "", "that is for its own agent to say"


def test_an_administrators_address_is_published_in_place_of_ours() -> None:
    written = SCHEMA.annotations(OWN, {"public-ip-overwrite": "203.0.113.7"})
    assert written[f"{PREFIX}public-ip"] == "203.0.113.7"


@given(
    vni=st.integers(1, (1 << 24) - 1),
    mac=st.binary(min_size=6, max_size=6).filter(lambda b: not b[0] & 1 and any(b)),
)
def test_what_is_written_is_read_back(vni: int, mac: bytes) -> None:
    lease = Lease(OWN.subnet, OWN.host, MacAddress(mac), vni, node="own")
    made = node("own", str(OWN.subnet), annotations=written_of(lease))
    assert SCHEMA.read(made).lease == lease


# --- Both families ----------------------------------------------------------------

MAC6 = "02:00:00:00:00:66"
DUAL = replace(
    OWN,
    ipv6=IPv6Lease(IPv6Network("fd00:1::/64"), IPv6Address("fd77::1"), MacAddress.parse(MAC6), 1),
)


def read_dual(**annotations: str) -> Entry:
    """A Node of a flannel's with both families."""
    both = {"public_ipv6": "fd77::2", "backend_v6_data": f'{{"VNI":1,"VtepMAC":"{MAC6}"}}'}
    return read("n2", "fd00:1::/64", "10.244.2.0/24", **{**both, **annotations})


def test_a_node_of_both_families_is_one_lease() -> None:
    host, mac = IPv6Address("fd77::2"), MacAddress.parse(MAC6)
    entry = read_dual()
    assert (lease_of(entry).ipv6, entry.problem) == (IPv6Lease(IPv6Network("fd00:1::/64"), host, mac, 1), "")
    assert lease_of(entry).revision == 7


@pytest.mark.parametrize("kind", ["host-gw", "wireguard"])
def test_other_backends_have_no_data_of_ipv6(kind: str) -> None:
    ipv6 = lease_of(read_dual(backend_type=kind, backend_v6_data="null")).ipv6
    assert ipv6 is not None and (ipv6.host, ipv6.vtep_mac) == (IPv6Address("fd77::2"), None)


@pytest.mark.parametrize(
    ("annotation", "value", "said"),
    [
        ("public_ipv6", "", "node n2: public-ipv6: "),
        ("public_ipv6", "10.0.0.2", "node n2: public-ipv6: "),
        ("public_ipv6", "::ffff:10.0.0.2", "is not a host's address"),
        ("public_ipv6", "fe80::2", "node n2: public-ipv6: fe80::2 is not a host's address"),
        ("backend_v6_data", "[]", "node n2: backend-v6-data: BackendData must be an object"),
        ("backend_v6_data", '{"VtepMAC":"01:00:00:00:00:02"}', "is not a unicast address"),
        ("backend_v6_data", "[" * 5000, "node n2: backend-v6-data: "),
    ],
)
def test_what_is_wrong_with_ipv6_costs_the_node_ipv6_only(annotation: str, value: str, said: str) -> None:
    entry = read_dual(**{annotation: value})
    assert lease_of(entry).ipv6 is None and str(lease_of(entry).host) == "10.0.0.2"
    assert said in entry.problem and "\n" not in entry.problem


def test_a_node_that_publishes_no_ipv6_or_has_no_podcidr_of_it_has_ipv4_only() -> None:
    for entry in (read_dual(public_ipv6="-"), read("n2", "10.244.2.0/24", public_ipv6="fd77::2")):
        assert (lease_of(entry).ipv6, entry.problem) == (None, "")


def test_what_is_written_of_both_families_is_flannels_byte_for_byte() -> None:
    of_ipv6 = {
        "flannel.alpha.coreos.com/backend-v6-data": '{"VNI":1,"VtepMAC":"02:00:00:00:00:66"}',
        "flannel.alpha.coreos.com/public-ipv6": "fd77::1",
    }
    assert SCHEMA.annotations(DUAL, {}) == {**SCHEMA.annotations(OWN, {}), **of_ipv6}
    made = node("own", str(OWN.subnet), "fd00:1::/64", annotations=written_of(DUAL))
    assert SCHEMA.read(made).lease == DUAL
    gateway = IPv6Lease(IPv6Network("fd00:1::/64"), IPv6Address("fd77::1"))
    plain = Lease(OWN.subnet, OWN.host, backend="host-gw", node="own", ipv6=gateway)
    assert written_of(plain)[f"{PREFIX}backend-v6-data"] == "null"


def test_a_node_that_goes_back_to_ipv4_takes_its_ipv6_away() -> None:
    stands = {key.removeprefix(PREFIX): value for key, value in written_of(DUAL).items()}
    assert SCHEMA.annotations(OWN, stands) == {f"{PREFIX}backend-v6-data": None, f"{PREFIX}public-ipv6": None}


def test_an_administrators_ipv6_address_is_published_in_place_of_ours() -> None:
    written = SCHEMA.annotations(DUAL, {"public-ipv6-overwrite": "2001:db8::7"})
    assert written[f"{PREFIX}public-ipv6"] == "2001:db8::7"
    assert f"{PREFIX}public-ipv6" not in SCHEMA.annotations(OWN, {"public-ipv6-overwrite": "2001:db8::7"})
    for wrong in ("garbage", "10.0.0.7", "fe80::7%eth0"):
        written = SCHEMA.annotations(DUAL, {"public-ipv6-overwrite": wrong})
        assert written[f"{PREFIX}public-ipv6"] == "fd77::1"


@pytest.mark.parametrize(
    ("given_text", "prefix"),
    [
        ("flannel.alpha.coreos.com", "flannel.alpha.coreos.com/"),
        ("flannel.alpha.coreos.com/", "flannel.alpha.coreos.com/"),
        ("example.com/pre", "example.com/pre-"),
        ("example.com/pre-", "example.com/pre-"),
    ],
)
def test_a_prefix_is_completed_as_flannel_does(given_text: str, prefix: str) -> None:
    assert annotation_prefix(given_text) == prefix


@pytest.mark.parametrize("wrong", ["", "nodots", "a.b/c/d", "Example.com", "a.b/C", "a b.c"])
def test_a_prefix_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="prefix|more than one"):
        annotation_prefix(wrong)


# --- Before parsing -------------------------------------------------------------


def line(found: dict[str, Any], kind: str = "MODIFIED", version: str = "9") -> bytes:
    found = json.loads(json.dumps(found))
    found["metadata"] |= {
        "uid": "u1",
        "resourceVersion": version,
        "creationTimestamp": "2026-01-01T00:00:00Z",
    }
    return b'{"type":"' + kind.encode() + b'","object":' + alone(text(found)) + b"}"


NODE = node("n2", "10.244.2.0/24", annotations=published("10.0.0.2"), images=20)


def mark_of(text_: bytes) -> int:
    seen = scan.glance(text_)
    assert seen is not None
    return seen.mark


def test_a_heartbeat_has_the_mark_of_the_node_before_it() -> None:
    beat = json.loads(json.dumps(NODE))
    beat["status"]["conditions"][0]["lastHeartbeatTime"] = "2027-01-01T00:00:00Z"
    beat["metadata"]["managedFields"][0]["time"] = "2027-01-01T00:00:00Z"
    beat["metadata"]["labels"]["new"] = "label"
    one, other = scan.glance(line(NODE)), scan.glance(line(beat, version="10"))
    assert one is not None and other is not None
    assert (other.name, other.version, other.mark) == ("n2", "10", one.mark)


def test_the_same_node_in_a_list_has_the_same_mark() -> None:
    found = json.loads(line(NODE))["object"]
    (item,) = scan.items(
        b'{"kind":"NodeList","metadata":{"resourceVersion":"9"},"items":[' + text(found) + b"]}"
    )[1]
    assert mark_of(item) == mark_of(line(NODE))


@pytest.mark.parametrize(
    "change",
    [
        {"metadata": {"annotations": published("10.0.0.3")}},
        {"metadata": {"annotations": {}}},
        {"spec": {"podCIDR": "10.244.9.0/24", "podCIDRs": ["10.244.9.0/24"]}},
        {"spec": {}},
    ],
)
def test_what_concerns_us_changes_the_mark(change: dict[str, Any]) -> None:
    other = {**NODE, **change, "metadata": {**NODE["metadata"], **change.get("metadata", {})}}
    assert mark_of(line(other)) != mark_of(line(NODE))


def test_another_node_of_the_same_name_has_another_mark() -> None:
    assert mark_of(line(NODE)) != mark_of(line(NODE).replace(b'"uid":"u1"', b'"uid":"u2"'))


TRICKS = st.sampled_from(
    [
        'x","status":{"a":"b"}',
        ',"spec":{"podCIDR":"1.2.3.0/24"}',
        '"}',
        '\\"}',
        "\\",
        '{"metadata":{"name":"evil"}},',
        "ü<&>",
    ]
)


@given(value=st.text() | TRICKS, other=st.text() | TRICKS)
def test_no_annotation_can_be_taken_for_something_else(value: str, other: str) -> None:
    """A mark that is the same means that all of ours is; what is parsed is what stands there."""
    found = node("n2", "10.244.2.0/24", annotations={**published("10.0.0.2"), "evil": value, "zz": other})
    written = line(found)
    parsed = scan.parse(written, 2)["object"]
    assert parsed["metadata"]["annotations"]["evil"] == value
    assert parsed["spec"] == found["spec"]
    moved = node("n2", "10.244.2.0/24", annotations={**published("10.0.0.3"), "evil": value, "zz": other})
    one, another = scan.glance(written), scan.glance(line(moved))
    assert one is None or another is None or one.mark != another.mark
    listed = (
        b'{"kind":"NodeList","metadata":{"resourceVersion":"9"},"items":['
        + b",".join(
            text({**each, "metadata": {**each["metadata"], "uid": "u", "resourceVersion": "1"}})
            for each in (found, moved)
        )
        + b"]}"
    )
    _, items = scan.items(listed)
    assert [scan.parse(item, 1)["metadata"]["annotations"]["evil"] for item in items] == [value, value]


def test_status_is_not_parsed_where_it_stands_last() -> None:
    assert "status" not in scan.parse(line(NODE), 2)["object"]


def test_fields_in_another_order_are_parsed_as_well() -> None:
    turned = {
        "type": "ADDED",
        "object": {"status": NODE["status"], "spec": NODE["spec"], "metadata": NODE["metadata"]},
    }
    written = json.dumps(turned, indent=1).encode()
    assert scan.glance(written) is None
    assert scan.parse(written, 2)["object"]["spec"] == NODE["spec"]
    listed = json.dumps(
        {"metadata": {"resourceVersion": "3"}, "items": [turned["object"]] * 2}, indent=1
    ).encode()
    metadata, found = scan.items(listed)
    items = list(found)
    assert metadata == {"resourceVersion": "3"} and len(items) == 2
    assert scan.parse(items[0], 1)["metadata"]["name"] == "n2"


@pytest.mark.parametrize("body", [b"", b"[]", b"404 page not found", b'{"kind":"Status"}'])
def test_what_is_no_list_is_an_error(body: bytes) -> None:
    with pytest.raises(ValueError):
        scan.items(body)


def test_an_empty_list_has_no_nodes() -> None:
    metadata, found = scan.items(b'{"metadata":{"resourceVersion":"5"},"items":[]}')
    assert (metadata, list(found)) == ({"resourceVersion": "5"}, [])


# --- The cache ------------------------------------------------------------------


def entry(name: str, third: int, *, uid: str = "u", version: int = 5, born: str = "1") -> Entry:
    subnet = IPv4Network(f"10.244.{third}.0/24")
    lease = Lease(
        subnet, IPv4Address(f"10.0.0.{third}"), MacAddress.parse(MAC), 1, node=name, revision=version
    )
    return Entry(name, uid, version, born, 0, Subnets(subnet), lease)


def loaded(*entries: Entry, own: str = "own") -> Cache:
    cache = Cache(own)
    cache.load(Listing("10", {each.name: each for each in entries}))
    return cache


def test_two_nodes_with_one_podcidr_are_named_and_the_older_one_is_used() -> None:
    found = loaded(entry("young", 1, born="2"), entry("old", 1, born="1")).snapshot()
    assert [lease.node for lease in found.leases] == ["old"]
    assert found.problems == ("node young: its podCIDR 10.244.1.0/24 is that of old: not used",)


def test_of_two_nodes_with_one_podcidr_ours_is_ours() -> None:
    found = loaded(entry("own", 1, born="2"), entry("old", 1, born="1")).snapshot()
    assert [lease.node for lease in found.leases] == ["own"]


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 3), st.sampled_from("12"), st.booleans())))
def test_a_cache_kept_by_events_is_what_a_list_would_make_it(
    events: list[tuple[str, int, str, bool]],
) -> None:
    """A Node comes or changes (its subnet, its uid), or goes; some subnets are those of several."""
    kept = Cache("c")
    for version, (name, third, uid, goes) in enumerate(events, start=1):
        if goes:
            kept.remove(name)
        else:
            kept.put(entry(name, third, uid=uid, version=version, born=uid))
        kept.snapshot()
    listed = Cache("c")
    listed.load(Listing("10", kept.entries))
    assert kept.snapshot().leases == listed.snapshot().leases
    assert kept.snapshot().problems == listed.snapshot().problems
    subnets = [lease.subnet for lease in kept.snapshot().leases]
    assert subnets == sorted(set(subnets))
    assert len(subnets) + len(kept.snapshot().problems) == len(kept.entries)


def test_a_snapshot_is_the_same_object_until_something_changes() -> None:
    cache = loaded(entry("a", 1))
    before = cache.snapshot()
    assert not cache.put(entry("a", 1, version=6)) and cache.snapshot() is before
    assert cache.put(entry("b", 2)) and cache.snapshot() is not before


def test_what_was_told_before_a_list_is_no_news() -> None:
    cache = loaded()
    assert not cache.reached("10") and not cache.reached("9")
    assert cache.reached("11") and cache.version == "11"


def test_an_event_from_before_our_own_write_changes_nothing() -> None:
    cache = loaded(entry("own", 1, version=20))
    assert not cache.put(entry("own", 2, version=15))
    assert cache.entries["own"].subnets == Subnets(IPv4Network("10.244.1.0/24"))
    assert cache.put(entry("own", 2, uid="another", version=15))


def test_the_end_of_a_node_that_was_created_anew_meanwhile_removes_nothing() -> None:
    cache = loaded(entry("a", 1, uid="new"))
    assert not cache.remove("a", "old") and "a" in cache.entries
    assert cache.remove("a", "new") and not cache.remove("a", "new")


# --- net-conf.json --------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "length", "low", "high"),
    [
        ("10.244.0.0/16", 24, "10.244.0.0/24", "10.244.255.0/24"),
        ("10.244.0.0/24", 24, "10.244.0.0/24", "10.244.0.0/24"),
        ("10.244.0.0/16", 20, "10.244.0.0/20", "10.244.240.0/20"),
    ],
)
def test_where_others_give_out_subnets_flannels_rules_for_them_do_not_count(
    network: str, length: int, low: str, high: str
) -> None:
    config = json.dumps(
        {"Network": network, "SubnetLen": 99, "SubnetMin": "1.2.3.4", "Backend": {"Type": "vxlan"}}
    )
    found = parse_network(config, given_out=(length, 64))
    assert (found.subnet_len, str(found.subnet_min), str(found.subnet_max)) == (length, low, high)
    assert found.ipv6 is None


@pytest.mark.parametrize(
    ("network", "length", "low", "high"),
    [
        ("fd00:10:244::/56", 64, "fd00:10:244::/64", "fd00:10:244:ff::/64"),
        ("fd00::/64", 64, "fd00::/64", "fd00::/64"),
        ("fd00::/108", 116, "fd00::/116", "fd00::f:f000/116"),
    ],
)
def test_nor_do_they_for_ipv6(network: str, length: int, low: str, high: str) -> None:
    config = {
        "Network": "10.244.0.0/16", "EnableIPv6": True, "IPv6Network": network, "IPv6SubnetLen": 7,
        "IPv6SubnetMin": "nonsense", "Backend": {"Type": "vxlan"},
    }  # fmt: skip
    found = parse_network(json.dumps(config), given_out=(24, length)).ipv6
    assert found is not None
    assert (found.subnet_len, str(found.subnet_min), str(found.subnet_max)) == (length, low, high)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{", "not JSON"),
        ("{}", "Network is missing"),
        ('{"Network":""}', "Network"),
        ('{"Network":"10.244.0.0/16","EnableIPv6":true}', "IPv6Network is missing"),
        ('{"Network":"10.244.0.0/16","EnableIPv6":"true"}', "EnableIPv6 must be true or false"),
        (
            '{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"10.0.0.0/8"}',
            "IPv6Network '10.0.0.0/8'",
        ),
        ('{"Network":"10.244.0.0/16","Backend":{"Type":""}}', "Backend has no Type"),
        ('{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","VNI":"1"}}', "VNI must be a whole number"),
    ],
)
def test_a_broken_net_conf_names_its_key(config: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"net-conf.json: .*{said}"):
        parse_network(config, "net-conf.json", given_out=(24, 64))
