"""What a real flanneld (v0.28.9) wrote for a host at 192.168.77.12 with an uplink of 1500 bytes.

Its subnet.env and its key have to come out of the same config here, byte for byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address

import pytest

from ctl.backend.udp.underlay import OVERHEAD as UDP_OVERHEAD
from ctl.core.lease import fits
from ctl.core.model import VXLAN_OVERHEAD, Lease
from ctl.core.wire import (
    SubnetEnv,
    format_attributes,
    format_key,
    format_subnet_env,
    parse_attributes,
    parse_key,
    parse_network,
    parse_subnet_env,
)

HOST = IPv4Address("192.168.77.12")
UPLINK_MTU = 1500
OVERHEAD = {"vxlan": VXLAN_OVERHEAD, "host-gw": 0, "udp": UDP_OVERHEAD}


@dataclass(frozen=True, slots=True)
class Seen:
    """A config as it lay in etcd, and what flanneld made of it."""

    config: str
    key: str
    value: str
    env: str
    """The four values of subnet.env."""


SEEN = (
    Seen(
        '{"Network": "172.17.0.0/16", "Backend": {"Type": "vxlan"}}',
        "172.17.46.0-24",
        '{"PublicIP":"192.168.77.12","PublicIPv6":null,"BackendType":"vxlan",'
        '"BackendData":{"VNI":1,"VtepMAC":"8e:62:85:d6:6d:1e"}}',
        "172.17.0.0/16 172.17.46.1/24 1450 true",
    ),
    Seen(
        '{"Network": "172.17.0.0/16", "Backend": {"Type": "vxlan", "MTU": 1400, "VNI": 42, "Port": 4789}}',
        "172.17.79.0-24",
        '{"PublicIP":"192.168.77.12","PublicIPv6":null,"BackendType":"vxlan",'
        '"BackendData":{"VNI":42,"VtepMAC":"62:d4:67:bd:3f:c4"}}',
        "172.17.0.0/16 172.17.79.1/24 1350 false",
    ),
    Seen(
        '{"network": "10.3.7.9/20", "subnetLEN": 26, "SubnetMin": "10.3.2.0", "SubnetMax": "10.3.4.192",'
        ' "BACKEND": {"type": "VXLAN"}}',
        "10.3.2.192-26",
        '{"PublicIP":"192.168.77.12","PublicIPv6":null,"BackendType":"vxlan",'
        '"BackendData":{"VNI":1,"VtepMAC":"a2:c8:c0:d1:15:3f"}}',
        "10.3.0.0/20 10.3.2.193/26 1450 true",
    ),
    Seen(
        '{"Network": "10.9.0.0/28", "Backend": {"Type": "vxlan"}}',
        "10.9.0.12-30",
        '{"PublicIP":"192.168.77.12","PublicIPv6":null,"BackendType":"vxlan",'
        '"BackendData":{"VNI":1,"VtepMAC":"92:35:f2:5c:9f:de"}}',
        "10.9.0.0/28 10.9.0.13/30 1450 true",
    ),
    Seen(
        '{"Network": "10.5.0.0/16", "SubnetMin": "10.5.0.0", "SubnetMax": "10.5.0.0",'
        ' "Backend": {"Type": "vxlan"}}',
        "10.5.0.0-24",
        '{"PublicIP":"192.168.77.12","PublicIPv6":null,"BackendType":"vxlan",'
        '"BackendData":{"VNI":1,"VtepMAC":"b6:8a:b2:83:f1:d2"}}',
        "10.5.0.0/16 10.5.0.1/24 1450 true",
    ),
    Seen(
        '{"Network": "172.17.0.0/16", "Backend": {"Type": "host-gw"}}',
        "172.17.65.0-24",
        '{"PublicIP":"192.168.77.12","PublicIPv6":null,"BackendType":"host-gw"}',
        "172.17.0.0/16 172.17.65.1/24 1500 true",
    ),
    Seen(
        '{"Network": "172.17.0.0/16"}',
        "172.17.78.0-24",
        '{"PublicIP":"192.168.77.12","PublicIPv6":null}',
        "172.17.0.0/16 172.17.78.1/24 1472 true",
    ),
)


@pytest.fixture(params=SEEN, ids=lambda seen: seen.key)
def seen(request: pytest.FixtureRequest) -> Seen:
    found: Seen = request.param
    return found


def text(seen: Seen) -> str:
    names = ("FLANNEL_NETWORK", "FLANNEL_SUBNET", "FLANNEL_MTU", "FLANNEL_IPMASQ")
    return "".join(f"{name}={value}\n" for name, value in zip(names, seen.env.split(), strict=True))


def test_its_subnet_is_one_that_we_would_hand_out(seen: Seen) -> None:
    subnet = parse_key(seen.key)[0]
    assert fits(parse_network(seen.config), subnet)
    assert format_key(subnet) == seen.key


def test_our_subnet_env_is_its(seen: Seen) -> None:
    network, masq = parse_network(seen.config), seen.env.endswith("true")
    mtu = (network.mtu or UPLINK_MTU) - OVERHEAD[network.backend]
    env = SubnetEnv(network.network, parse_key(seen.key)[0], mtu, masq)
    assert format_subnet_env(env) == text(seen)
    assert parse_subnet_env(text(seen)) == env


def test_our_value_is_its(seen: Seen) -> None:
    network, lease = parse_network(seen.config), parse_attributes(parse_key(seen.key)[0], seen.value)
    vxlan = network.backend == "vxlan"
    ours = Lease(
        parse_key(seen.key)[0], HOST, lease.vtep_mac, network.vni if vxlan else None, network.backend
    )
    assert lease == ours
    assert format_attributes(ours) == seen.value
