"""Flannel's formats of a network and of leases that have IPv6 too."""

from __future__ import annotations

import json
from base64 import b64encode
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctl.core.model import IPv6Lease, Lease, MacAddress
from ctl.core.wire import (
    SubnetEnv,
    docker_options,
    format_attributes,
    format_key,
    format_network,
    format_subnet_env,
    parse_attributes,
    parse_key,
    parse_network,
    parse_subnet_env,
)
from ctl.store.etcd.cache import Cache, Event, Listing
from ctl.store.etcd.schema import Entry, Schema

KEY = "10.5.52.0-24&fd00:10:244:1::-64"
SUBNETS = IPv4Network("10.5.52.0/24"), IPv6Network("fd00:10:244:1::/64")
VALUE = (
    '{"PublicIP":"10.0.0.1","PublicIPv6":"fd00::1","BackendType":"vxlan",'
    '"BackendData":{"VNI":1,"VtepMAC":"aa:00:00:00:00:01"},'
    '"BackendV6Data":{"VNI":1,"VtepMAC":"ae:00:00:00:00:02"}}'
)
LEASE = Lease(
    SUBNETS[0],
    IPv4Address("10.0.0.1"),
    MacAddress.parse("aa:00:00:00:00:01"),
    1,
    ipv6=IPv6Lease(SUBNETS[1], IPv6Address("fd00::1"), MacAddress.parse("ae:00:00:00:00:02"), 1),
)
SCHEMA = Schema("/coreos.com/network")

ipv6_subnets = st.builds(
    lambda base, length: IPv6Network((base, length), strict=False),
    st.integers(0, 2**128 - 1),
    st.integers(1, 127),
)


@given(ipv6_subnets)
def test_a_key_of_both_families_is_read_as_it_is_written(subnet: IPv6Network) -> None:
    assert parse_key(format_key(SUBNETS[0], subnet)) == (SUBNETS[0], subnet)


@pytest.mark.parametrize(
    "text",
    [
        "10.5.52.0-24&FD00::-64",
        "10.5.52.0-24&fd00:0::-64",
        "10.5.52.0-24&fd00::-129",
        "10.5.52.0-24&fd00::-064",
        "10.5.52.0-24&fd00::-64&fd01::-64",
        "0.0.0.0-0&fd00:10:244:1::-64",
    ],
)
def test_what_is_no_key_of_both_families_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not an IPv6 subnet|written in another way|has no IPv4 subnet"):
        parse_key(text)


def test_key_and_value_of_both_families_are_flannels_bytes() -> None:
    assert format_key(*SUBNETS) == KEY
    assert format_attributes(LEASE) == VALUE
    assert parse_attributes(SUBNETS[0], VALUE, ipv6=SUBNETS[1]) == LEASE


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("fd00::1", "10.0.0.1"), "PublicIPv6"),
        (("fd00::1", "::ffff:10.0.0.1"), "PublicIPv6: ::ffff:a00:1 is not a host's address"),
        (("fd00::1", "fe80::1"), "PublicIPv6: fe80::1 is not a host's address"),
        (("fd00::1", "::"), "PublicIPv6: :: is not a host's address"),
        (("ae:00", "af:00"), "BackendV6Data: VtepMAC af:00:00:00:00:02 is not a unicast address"),
    ],
)
def test_a_value_that_is_wrong_in_ipv6_says_where(change: tuple[str, str], said: str) -> None:
    with pytest.raises(ValueError, match="Public|Backend") as error:
        parse_attributes(SUBNETS[0], VALUE.replace(*change), ipv6=SUBNETS[1])
    assert str(error.value).startswith(said) or said in str(error.value)


def test_a_reservation_of_both_families_has_no_ipv6_host_yet() -> None:
    found = parse_attributes(SUBNETS[0], '{"PublicIP":"10.0.0.1","PublicIPv6":null}', ipv6=SUBNETS[1])
    assert found.ipv6 == IPv6Lease(SUBNETS[1])


@pytest.mark.parametrize(
    ("config", "length", "lowest", "highest"),
    [
        ({"IPv6Network": "fd00::/48"}, 64, "fd00:0:0:1::/64", "fd00:0:0:ffff::/64"),
        ({"IPv6Network": "fd00::/62"}, 64, "fd00:0:0:1::/64", "fd00:0:0:3::/64"),
        ({"IPv6Network": "fd00::/63"}, 65, "fd00::8000:0:0:0/65", "fd00:0:0:1:8000::/65"),
        ({"IPv6Network": "fd00::/124"}, 126, "fd00::4/126", "fd00::c/126"),
        (
            {"ipv6network": "fd00::/48", "IPV6SUBNETLEN": 80},
            80,
            "fd00::1:0:0:0/80",
            "fd00:0:0:ffff:ffff::/80",
        ),
    ],
)
def test_a_network_with_ipv6_has_flannels_defaults(
    config: dict[str, object], length: int, lowest: str, highest: str
) -> None:
    whole = {"Network": "10.5.0.0/16", "EnableIPv6": True, **config, "Backend": {"Type": "vxlan"}}
    network = parse_network(json.dumps(whole))
    assert network.ipv6 is not None
    assert network.ipv6.subnet_len == length
    assert (str(network.ipv6.subnet_min), str(network.ipv6.subnet_max)) == (lowest, highest)
    assert parse_network(format_network(network)) == network


def test_ipv6_keys_do_not_count_without_enable_ipv6() -> None:
    text = '{"Network":"10.5.0.0/16","IPv6Network":"nonsense","Backend":{"Type":"vxlan"}}'
    assert parse_network(text).ipv6 is None


def test_subnet_env_has_flannels_ipv6_lines_in_its_order() -> None:
    env = SubnetEnv(
        IPv4Network("10.5.0.0/16"),
        IPv4Network("10.5.72.0/24"),
        1430,
        ip_masq=True,
        ipv6=(IPv6Network("fd00::/56"), IPv6Network("fd00:0:0:1::/64")),
    )
    text = format_subnet_env(env)
    assert text == (
        "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.72.1/24\n"
        "FLANNEL_IPV6_NETWORK=fd00::/56\nFLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64\n"
        "FLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n"
    )
    assert parse_subnet_env(text) == env
    assert docker_options(env)["DOCKER_OPT_IPV6"] == "--ipv6 --fixed-cidr-v6=fd00:0:0:1::/64"


def test_subnet_env_with_half_of_ipv6_is_one_without() -> None:
    text = (
        "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.72.1/24\n"
        "FLANNEL_IPV6_NETWORK=fd00::/56\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    )
    assert parse_subnet_env(text).ipv6 is None


# --- etcd ------------------------------------------------------------------------


def entry(key: str, revision: int) -> Entry:
    """What is read of that key below subnets/, with a value of both families."""
    raw = {
        "key": b64encode(SCHEMA.subnets + b"/" + key.encode()).decode(),
        "value": b64encode(VALUE.encode()).decode(),
        "mod_revision": str(revision),
    }
    return SCHEMA.decode(raw)


def test_a_flannels_lease_of_both_families_is_read_from_etcd_and_written_under_its_key() -> None:
    found = entry(KEY, 3)
    assert found.lease is not None
    assert (found.problem, found.lease) == ("", LEASE)
    assert SCHEMA.key(found.lease) == found.key


@pytest.mark.parametrize("first", [0, 1])
def test_of_two_keys_with_one_ipv4_subnet_one_counts_until_it_goes(first: int) -> None:
    plain, dual = entry("10.5.52.0-24", 3), entry(KEY, 4)
    other = entry("10.5.53.0-24", 2)
    cache = Cache(SCHEMA.config)
    cache.load(Listing(4, 1, {each.key: each for each in (dual, other, plain)}))
    assert [each.ipv6 is None for each in cache.snapshot({}).leases] == [True, True]
    assert "another key has its IPv4 subnet too" in cache.snapshot({}).problems[0]
    gone, stays = (plain, dual) if first == 0 else (dual, plain)
    cache.take([Event(gone.key, 5, None)])
    assert cache.snapshot({}).leases[0] == stays.lease
    assert cache.snapshot({}).problems == ()
    cache.take([Event(stays.key, 6, None)])
    assert [each.subnet for each in cache.snapshot({}).leases] == [IPv4Network("10.5.53.0/24")]


def test_a_key_with_another_ipv6_subnet_takes_the_place_of_one_that_is_deleted_after_it() -> None:
    before, after = entry(KEY, 3), entry("10.5.52.0-24&fd00:10:244:2::-64", 4)
    cache = Cache(SCHEMA.config)
    cache.load(Listing(3, 1, {before.key: before}))
    cache.take([Event(after.key, 4, after), Event(before.key, 4, None)])
    (lease,) = cache.snapshot({}).leases
    assert lease == after.lease
