"""What a running node follows of a network config that has changed, and what it names."""

from __future__ import annotations

from dataclasses import fields, replace
from ipaddress import IPv4Network, IPv6Network
from typing import Any

import pytest

from ctl.core.following import KEYS, changes, followed, unfollowed
from ctl.core.model import IPv6Range, Network

NETWORK = Network(
    IPv4Network("10.244.0.0/16"), 24, IPv4Network("10.244.16.0/24"), IPv4Network("10.244.31.0/24")
)
SMALLER, LARGER = IPv4Network("10.244.17.0/24"), IPv4Network("10.244.40.0/24")
IPV6 = IPv6Range(
    IPv6Network("fd00:10::/48"), 64, IPv6Network("fd00:10::/64"), IPv6Network("fd00:10:0:ffff::/64")
)


def test_each_field_of_a_network_has_the_configs_key() -> None:
    assert list(KEYS) == [field.name for field in fields(Network)]


@pytest.mark.parametrize(
    "change",
    [{"mtu": 1400}, {"direct_routing": True}, {"subnet_max": LARGER}, {"mtu": 1400, "subnet_max": LARGER}],
)
def test_what_is_each_nodes_own_matter_is_followed(change: dict[str, Any]) -> None:
    stored = replace(NETWORK, **change)
    assert followed(NETWORK, stored) == stored and unfollowed(NETWORK, stored) == ""


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"network": IPv4Network("10.244.0.0/15")}, "Network 10.244.0.0/16 -> 10.244.0.0/15"),
        ({"subnet_len": 25}, "SubnetLen 24 -> 25"),
        ({"subnet_min": SMALLER}, "SubnetMin 10.244.16.0/24 -> 10.244.17.0/24"),
        ({"backend": "host-gw"}, "Backend.Type vxlan -> host-gw"),
        ({"vni": 2, "port": 4789}, "Backend.VNI 1 -> 2, Backend.Port 8472 -> 4789"),
        ({"ipv6": IPV6}, "EnableIPv6, IPv6Network - -> fd00:10::/48, /64 each"),
    ],
)
def test_what_hosts_have_to_agree_on_is_named(change: dict[str, Any], named: str) -> None:
    stored = replace(NETWORK, **change)
    assert followed(NETWORK, stored) == NETWORK and unfollowed(NETWORK, stored) == named
    both = replace(stored, mtu=1400)
    assert followed(NETWORK, both) == replace(NETWORK, mtu=1400) and unfollowed(NETWORK, both) == named


def test_nothing_is_named_where_nothing_has_changed() -> None:
    assert changes(NETWORK, NETWORK) == ""
