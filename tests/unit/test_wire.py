from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctl.core.errors import ConfigError
from ctl.core.model import BACKENDS, Lease, MacAddress, Network
from ctl.core.wire import (
    SubnetEnv,
    format_attributes,
    format_key,
    format_network,
    format_subnet_env,
    parse_attributes,
    parse_key,
    parse_network,
    parse_subnet_env,
)
from ctl.node import node
from tests.unit.strategies import leases, networks, subnets

SUBNET = IPv4Network("10.5.52.0/24")
MAC = MacAddress.parse("c6:d2:32:6f:8f:44")


@given(networks())
def test_a_network_survives_the_store(network: Network) -> None:
    assert parse_network(format_network(network)) == network


@given(networks(), st.data())
def test_keys_are_read_in_any_case(network: Network, data: st.DataObject) -> None:
    text = format_network(network)
    keys = ["Network", "SubnetLen", "SubnetMin", "SubnetMax", "Backend", "Type", "VNI", "Port", "MTU"]
    for key in keys:
        spelling = "".join(data.draw(st.sampled_from([c.lower(), c.upper()])) for c in key)
        text = text.replace(f'"{key}"', f'"{spelling}"')
    assert parse_network(text) == network


@pytest.mark.parametrize(
    ("cidr", "length", "low", "high"),
    [
        ("10.0.0.0/8", 24, "10.0.1.0", "10.255.255.0"),
        ("172.17.0.0/16", 24, "172.17.1.0", "172.17.255.0"),
        ("10.5.0.0/22", 24, "10.5.1.0", "10.5.3.0"),
        ("10.5.0.0/23", 25, "10.5.0.128", "10.5.1.128"),
        ("10.5.0.0/28", 30, "10.5.0.4", "10.5.0.12"),
        ("10.5.3.4/16", 24, "10.5.1.0", "10.5.255.0"),
        ("0.0.0.0/0", 24, "0.0.1.0", "255.255.255.0"),
    ],
)
def test_defaults_are_flannels(cidr: str, length: int, low: str, high: str) -> None:
    network = parse_network(json.dumps({"Network": cidr, "Backend": {"Type": "vxlan"}}))
    assert network.subnet_len == length
    assert str(network.subnet_min) == f"{low}/{length}"
    assert str(network.subnet_max) == f"{high}/{length}"
    assert (network.backend, network.vni, network.port, network.mtu) == ("vxlan", 1, 8472, None)


def test_no_backend_means_udp() -> None:
    network = parse_network('{"Network":"10.0.0.0/8"}')
    assert (network.backend, network.port) == ("udp", 8285)


def test_a_foreign_backend_is_read_as_it_stands() -> None:
    network = parse_network('{"Network":"10.0.0.0/8","Backend":{"Type":"WireGuard","PSK":"x"},"More":[]}')
    assert network.backend == "wireguard"
    assert parse_network(format_network(network)) == network


def test_the_last_of_equal_keys_wins_and_null_sets_nothing() -> None:
    text = '{"Network":"10.0.0.0/8","subnetlen":25,"SUBNETLEN":26,"SubnetLen":null}'
    assert parse_network(text).subnet_len == 26


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"Network": None}, "Network is missing"),
        ({"Network": "10.0.0.0"}, "Network '10.0.0.0' is not an IPv4 network"),
        ({"Network": "10.0.0.0/33"}, "is not an IPv4 network"),
        ({"Network": 10}, "Network must be a string, not 10"),
        ({"Network": "10.0.0.0/29"}, "too small"),
        ({"SubnetLen": 9}, "SubnetLen 9 does not fit 10.0.0.0/8: it must be between 10 and 30"),
        ({"SubnetLen": 31}, "SubnetLen 31"),
        ({"SubnetLen": -1}, "SubnetLen -1"),
        ({"SubnetLen": "24"}, 'SubnetLen must be a whole number, not "24"'),
        ({"SubnetLen": 24.0}, "SubnetLen must be a whole number"),
        ({"SubnetLen": True}, "SubnetLen must be a whole number"),
        ({"SubnetLen": 1e1}, "SubnetLen must be a whole number, not 10.0"),
        ({"SubnetLen": float("nan")}, "SubnetLen must be a whole number, not NaN"),
        ({"SubnetLen": 10**4000}, "SubnetLen 1000"),
        ({"SubnetLen": [24]}, "SubnetLen must be a whole number, not a list"),
        ({"SubnetLen": {"a": 1}}, "SubnetLen must be a whole number, not an object"),
        ({"Network": ["10.0.0.0/8"]}, "Network must be a string, not a list"),
        ({"Network": "10.0.0.0/8\0"}, "is not an IPv4 network"),
        ({"Network": "10.0.0.0/-1"}, "is not an IPv4 network"),
        ({"Network": "10.0.0.0/255.0.0.0"}, "is not an IPv4 network"),
        ({"Network": "fd00::/56"}, "Network 'fd00::/56' is not an IPv4 network"),
        ({"Network": "1" * 100_000}, "Network is too long"),
        ({"Network": "127.0.0.0/8"}, "Network 127.0.0.0/8 is no network of hosts"),
        ({"Network": "239.1.0.0/16"}, "Network 239.1.0.0/16 is no network of hosts"),
        ({"SubnetMin": 10}, "SubnetMin must be a string, not 10"),
        ({"SubnetMin": "fd00::1"}, "SubnetMin 'fd00::1' is not an IPv4 address"),
        ({"SubnetMin": "10.0.1.0/24"}, "SubnetMin '10.0.1.0/24' is not an IPv4 address"),
        ({"SubnetMin": ""}, "SubnetMin '' is not an IPv4 address"),
        ({"SubnetMax": "11.0.0.0"}, "SubnetMax 11.0.0.0 is not in Network"),
        ({"SubnetMax": "10.0.0.1"}, "SubnetMax 10.0.0.1 is not on a /24 boundary"),
        ({"SubnetMax": [1]}, "SubnetMax must be a string, not a list"),
        ({"SubnetLen": 26, "SubnetMin": "10.1.0.32"}, "is not on a /26 boundary"),
        ({"EnableIPv6": 1}, "EnableIPv6 must be true or false, not 1"),
        ({"SubnetMin": "11.0.0.0"}, "SubnetMin 11.0.0.0 is not in Network"),
        ({"SubnetMin": "10.0.0.5"}, "SubnetMin 10.0.0.5 is not on a /24 boundary"),
        ({"SubnetMax": "x"}, "SubnetMax 'x' is not an IPv4 address"),
        ({"SubnetMin": "10.9.0.0", "SubnetMax": "10.8.0.0"}, "SubnetMin 10.9.0.0 is above SubnetMax"),
        ({"EnableIPv4": False}, "without IPv4"),
        ({"EnableIPv6": True}, "IPv6Network is missing"),
        ({"EnableIPv6": True, "IPv6Network": 6}, "IPv6Network must be a string, not 6"),
        ({"EnableIPv6": True, "IPv6Network": "10.5.0.0/16"}, "'10.5.0.0/16' is not an IPv6 network"),
        ({"EnableIPv6": True, "IPv6Network": "fd00::/129"}, "is not an IPv6 network such as"),
        ({"EnableIPv6": True, "IPv6Network": "fd00::/125"}, "/124 is the smallest"),
        ({"EnableIPv6": True, "IPv6Network": "fe80::/64"}, "is no network of hosts"),
        ({"EnableIPv6": True, "IPv6Network": "::ffff:10.5.0.0/112"}, "is no network of hosts"),
        ({"EnableIPv6": True, "IPv6Network": "fd00::/48", "IPv6SubnetLen": 49}, "between 50 and 126"),
        ({"EnableIPv6": True, "IPv6Network": "::fffe:0:0/94"}, "no host is reached in ::ffff:0:0/96"),
        ({"EnableIPv6": True, "IPv6Network": "fe00::/8"}, "no host is reached in fe80::/10"),
        ({"EnableIPv6": True, "IPv6Network": "f000::/4"}, "choose another, or IPv6SubnetMin"),
        ({"EnableIPv6": True, "IPv6Network": "fd00::/48", "IPv6SubnetLen": "64"}, "IPv6SubnetLen must be"),
        (
            {"EnableIPv6": True, "IPv6Network": "fd00::/48", "IPv6SubnetMin": "10.5.0.0"},
            "not an IPv6 address",
        ),
        ({"EnableIPv6": True, "IPv6Network": "fd00::/48", "IPv6SubnetMin": "fd01::"}, "not in IPv6Network"),
        ({"EnableIPv6": True, "IPv6Network": "fd00::/48", "IPv6SubnetMax": "fd00::1"}, "/64 boundary"),
        (
            {
                "EnableIPv6": True,
                "IPv6Network": "fd00::/48",
                "IPv6SubnetMin": "fd00:0:0:9::",
                "IPv6SubnetMax": "fd00:0:0:8::",
            },
            "IPv6SubnetMin fd00:0:0:9:: is above IPv6SubnetMax fd00:0:0:8::",
        ),
        ({"EnableIPv4": "yes"}, "EnableIPv4 must be true or false"),
        ({"Backend": "vxlan"}, "Backend must be an object"),
        ({"Backend": ["vxlan"]}, "Backend must be an object"),
        ({"Backend": None}, "Backend must be an object"),
        ({"Backend": {}}, "Backend has no Type"),
        ({"Backend": {"Type": None}}, "Backend has no Type"),
        ({"Backend": {"Type": 5}}, "Type must be a string, not 5"),
        ({"Backend": {"Type": "vx\nlan"}}, r'Type "vx\nlan" is no name'),
        ({"Backend": {"Type": "\ud800"}}, r'Type "\ud800" is no name'),
        ({"Backend": {"Type": "v" * 1000}}, "Type is too long"),
        ({"Backend": {"Type": "vxlan", "VNI": 0}}, "VNI 0"),
        ({"Backend": {"Type": "vxlan", "VNI": -1}}, "VNI -1"),
        ({"Backend": {"Type": "vxlan", "VNI": "1"}}, 'VNI must be a whole number, not "1"'),
        ({"Backend": {"Type": "vxlan", "VNI": 1.5}}, "VNI must be a whole number, not 1.5"),
        ({"Backend": {"Type": "vxlan", "Port": -1}}, "Port -1"),
        ({"Backend": {"Type": "vxlan", "Port": "8472"}}, "Port must be a whole number"),
        ({"Backend": {"Type": "vxlan", "Port": 8472.0}}, "Port must be a whole number, not 8472.0"),
        ({"Backend": {"Type": "udp", "Port": 1 << 64}}, "Port 18446744073709551616"),
        ({"Backend": {"Type": "vxlan", "MTU": True}}, "MTU must be a whole number, not true"),
        ({"Backend": {"Type": "vxlan", "MTU": -1}}, "MTU -1"),
        ({"Backend": {"Type": "vxlan", "MTU": 65536}}, "MTU 65536"),
        ({"Backend": {"Type": "vxlan", "DirectRouting": 1}}, "DirectRouting must be true or false, not 1"),
        ({"Backend": {"Type": "vxlan", "GBP": "no"}}, "GBP must be true or false"),
        ({"Backend": {"Type": "vxlan", "GBP": True}}, "GBP true is not supported"),
        ({"Backend": {"Type": "vxlan", "Learning": 0}}, "Learning must be true or false"),
        ({"Backend": {"Type": "vxlan", "VNI": 1 << 24}}, "VNI 16777216"),
        ({"Backend": {"Type": "vxlan", "Port": 65536}}, "Port 65536"),
        ({"Backend": {"Type": "vxlan", "MTU": 600}}, "MTU 600 is not between 626 and 65535"),
    ],
)
def test_a_bad_network_config_is_refused_by_name(change: dict[str, object], complaint: str) -> None:
    config = {"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan"}} | change
    with pytest.raises(ConfigError, match="^etcd: ") as caught:
        parse_network(json.dumps(config), "etcd")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["10.0.0.0/8", "10.0.1.0", "fd00::/56", "vxlan", 24, 10**30, "\0", "\ud800\n"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["Type", "VNI", "PORT", "mtu", "DirectRouting", "GBP", "Learning", "\ud800"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
_keys = st.sampled_from(
    ["Network", "SubnetLen", "SubnetMin", "SubnetMax", "Backend", "EnableIPv4", "EnableIPv6", "network", "x"]
)


@given(st.dictionaries(_keys, _values, max_size=7), st.booleans())
def test_any_config_is_a_network_or_one_short_line(config: dict[str, object], good: bool) -> None:
    base: dict[str, object] = {"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan"}} if good else {}
    with suppress(ConfigError):
        _network_or_line(json.dumps(base | config))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\0",
        "\ufeff{}",
        '{"Network":"10.0.0.0/8"}\0',
        "[" * 100_000,
        '{"Backend":' * 100_000,
        '{"Network":"10.0.0.0/8","SubnetLen":' + "9" * 5000 + "}",
        '{"Network":"10.0.0.0/8","SubnetLen":' + "[" * 900 + "]" * 900 + "}",
        '{"Network":"10.0.0.0/8","SubnetMin":"' + "x" * 1_000_000 + '"}',
        '{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan","VNI":1e999}}',
    ],
    ids=range(10),
)
def test_a_config_of_any_size_and_depth_is_refused_in_one_short_line(text: str) -> None:
    with pytest.raises(ConfigError):
        _network_or_line(text)


def _network_or_line(text: str) -> None:
    try:
        network = parse_network(text, "etcd")
    except ConfigError as error:
        line = str(error)
        assert line.isprintable() and len(line) < 300, line
        line.encode()
        raise
    assert parse_network(format_network(network)) == network
    network.backend.encode("ascii")


@given(
    st.text() | st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists).map(json.dumps)
)
def test_any_text_gives_a_network_or_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_network(text)


@pytest.mark.parametrize(
    ("lease", "text"),
    [
        (
            Lease(SUBNET, IPv4Address("192.168.64.3"), MAC, 1),
            '{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan",'
            '"BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}',
        ),
        (
            Lease(SUBNET, IPv4Address("10.0.0.1"), backend="host-gw"),
            '{"PublicIP":"10.0.0.1","PublicIPv6":null,"BackendType":"host-gw"}',
        ),
        (
            Lease(SUBNET, IPv4Address("10.0.0.1"), backend="udp"),
            '{"PublicIP":"10.0.0.1","PublicIPv6":null}',
        ),
    ],
)
def test_attributes_are_gos_bytes(lease: Lease, text: str) -> None:
    assert format_attributes(lease) == text
    assert parse_attributes(SUBNET, text) == lease


@given(leases())
def test_a_lease_survives_the_store(lease: Lease) -> None:
    again = parse_attributes(lease.subnet, format_attributes(lease))
    assert again == replace(lease, node="", expires_at=None)


def test_unknown_fields_of_others_are_ignored() -> None:
    text = (
        '{"publicip":"10.0.0.1","PublicIPv6":"fd00::1","BackendType":"vxlan","New":{},'
        '"BackendData":{"VNI":7,"VtepMAC":"C6:D2:32:6F:8F:44","Agent":"x"},"BackendV6Data":{}}'
    )
    assert parse_attributes(SUBNET, text) == Lease(SUBNET, IPv4Address("10.0.0.1"), MAC, 7)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "PublicIP"),
        ('{"PublicIP":null}', "PublicIP"),
        ('{"PublicIP":167772161}', "PublicIP must be a string, not 167772161"),
        ('{"PublicIP":"fd00::1"}', "PublicIP"),
        ('{"PublicIP":"127.0.0.1"}', "PublicIP: 127.0.0.1 is not a host's address"),
        ('{"PublicIP":"224.0.0.1"}', "PublicIP: 224.0.0.1 is not a host's address"),
        ('{"PublicIP":"0.0.0.0"}', "PublicIP: 0.0.0.0 is not a host's address"),
        ('{"PublicIP":"255.255.255.255"}', "PublicIP: 255.255.255.255 is not a host's address"),
        ('{"PublicIP":"10.0.0.1\\u0000"}', "PublicIP"),
        ('{"PublicIP":"' + "1" * 100_000 + '"}', "PublicIP is too long"),
        ('{"PublicIP":"10.0.0.1","BackendType":7}', "BackendType must be a string, not 7"),
        ('{"PublicIP":"10.0.0.1","BackendType":"\\ud800"}', r"BackendType \"\\ud800\" is no name"),
        ('{"PublicIP":"10.0.0.1","BackendType":"a\\nb"}', "BackendType .* is no name"),
        (
            '{"PublicIP":"10.0.0.1","BackendType":"vxlan","BackendData":{"VtepMAC":"02:00:00:00:00:01","VNI":1.0}}',
            "VNI must be a whole number, not 1.0",
        ),
        (
            '{"PublicIP":"10.0.0.1","BackendType":"vxlan","BackendData":{"VtepMAC":"02:00:00:00:00:01",'
            f'"VNI":{10**30}}}}}',
            "VNI 1000000000000000000000000000000 is not between",
        ),
        ('{"PublicIP":"10.0.0.256"}', "PublicIP"),
        ('{"PublicIP":"10.0.0.1","BackendType":"vxlan","BackendData":[]}', "BackendData must be an object"),
        ('{"PublicIP":"10.0.0.1","BackendType":"vxlan","BackendData":{"VtepMAC":"x"}}', "MAC"),
        (
            '{"PublicIP":"10.0.0.1","BackendType":"vxlan","BackendData":{"VtepMAC":"01:00:00:00:00:00"}}',
            "not a unicast",
        ),
    ],
)
def test_bad_attributes_name_the_field(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_attributes(SUBNET, text)


@given(subnets())
def test_a_key_survives(subnet: IPv4Network) -> None:
    assert parse_key(format_key(subnet)) == (subnet, None)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "10.5.52.0",
            "10.5.52.0/24",
            "10.5.52.1-24",
            "10.5.52.0-33",
            "10.5.52.0-24-24",
            "10.5.052.0-24",
        ),
        *("10.5.52.0-024", "10.5.52.0-24 ", "10.5.52.0-24\n", "10.5.52.0-24\0", "10.5.52.0-2\u0664"),
        *("10.5.52.0-24&fd00::1-64", "10.5.52.0-24&", "&fd00::-64", "fd00::-64", "0.0.0.0-0&fd00::-64"),
        *("999999999999.0.0.0-24", "1" * 100_000 + "-24", "10.5.52.0--1"),
    ],
    ids=range(20),
)
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_key(text)


def test_subnet_env_is_flannels_bytes() -> None:
    env = SubnetEnv(IPv4Network("10.5.0.0/16"), IPv4Network("10.5.72.0/24"), 1450, ip_masq=False)
    assert format_subnet_env(env) == (
        "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.72.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
    )


@given(networks(), st.integers(0, 65535), st.booleans())
def test_subnet_env_survives(network: Network, mtu: int, masq: bool) -> None:
    env = SubnetEnv(network.network, network.subnet_min, mtu, masq)
    assert parse_subnet_env(format_subnet_env(env)) == env


def test_subnet_env_of_a_dual_stack_flannel_is_read() -> None:
    env = parse_subnet_env(
        "FLANNEL_NETWORK=10.5.0.0/16,10.6.0.0/16\nFLANNEL_SUBNET=10.5.72.1/24\n"
        'FLANNEL_IPV6_NETWORK=fd00::/56\n\nFLANNEL_MTU="1450"\nFLANNEL_IPMASQ=true\n'
    )
    assert env == SubnetEnv(IPv4Network("10.5.0.0/16"), IPv4Network("10.5.72.0/24"), 1450, ip_masq=True)


@pytest.mark.parametrize(
    "line", ["FLANNEL_SUBNET=", "FLANNEL_SUBNET=10.5.72.1/64", "FLANNEL_MTU=x", "FLANNEL_"]
)
def test_a_broken_subnet_env_names_the_variable(line: str) -> None:
    good = ["FLANNEL_NETWORK=10.5.0.0/16", "FLANNEL_SUBNET=10.5.72.1/24", "FLANNEL_MTU=1450"]
    with pytest.raises(ValueError, match="FLANNEL_"):
        parse_subnet_env("\n".join([*good, line]))


def test_a_node_runs_the_backends_that_a_network_may_have() -> None:
    assert list(node.BACKENDS) == list(BACKENDS)
