"""A node before it has asked the kernel anything."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import pytest

from ctl.core.errors import ConfigError
from ctl.core.model import Subnets
from ctl.core.wire import parse_network
from ctl.node.node import Node
from ctl.settings.config import resolve


class NoKernel:
    """Whoever asks it anything fails."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"it asks for {name}")


@pytest.fixture
def node(tmp_path: Path) -> Node:
    settings = replace(
        resolve(Namespace(), {}, None), state_dir=tmp_path, subnet_file=tmp_path / "subnet.env"
    )
    return Node(settings, NoKernel())  # type: ignore[arg-type]


def subnet_env(subnet: str) -> str:
    return f"FLANNEL_NETWORK=172.17.0.0/16\nFLANNEL_SUBNET={subnet}\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"


def test_a_node_can_be_made_without_a_kernel(node: Node) -> None:
    assert node.findings.uplink is None
    assert node.maps is None
    assert list(node.drops()) == []


def test_a_network_with_ipv6_is_refused_by_udp_before_the_kernel_is_asked_anything(node: Node) -> None:
    ipv6 = '"EnableIPv6":true,"IPv6Network":"fd00:77::/48"'
    network = parse_network(f'{{"Network":"172.17.0.0/16",{ipv6},"Backend":{{"Type":"udp"}}}}')
    with pytest.raises(ConfigError, match="udp carries IPv4 only: EnableIPv6 must be false"):
        node.preflight(network)


def test_a_node_that_was_never_here_has_no_previous_subnet(node: Node) -> None:
    assert node.previous() is None


@pytest.mark.parametrize("name", ["subnet.env", "fenced.env"])
def test_a_node_asks_for_the_subnet_of_an_earlier_life(node: Node, tmp_path: Path, name: str) -> None:
    """Also if that life ended fenced."""
    (tmp_path / name).write_text(subnet_env("172.17.9.1/24"))
    assert node.previous() == Subnets(IPv4Network("172.17.9.0/24"))


def test_a_node_of_both_families_asks_for_both_subnets_of_an_earlier_life(node: Node, tmp_path: Path) -> None:
    ipv6 = "FLANNEL_IPV6_NETWORK=fd00:10::/48\nFLANNEL_IPV6_SUBNET=fd00:10:0:9::1/64\n"
    (tmp_path / "subnet.env").write_text(subnet_env("172.17.9.1/24") + ipv6)
    assert node.previous() == Subnets(IPv4Network("172.17.9.0/24"), IPv6Network("fd00:10:0:9::/64"))


def test_a_file_of_subnets_that_does_not_parse_tells_nothing(node: Node, tmp_path: Path) -> None:
    (tmp_path / "subnet.env").write_text("FLANNEL_SUBNET=many\n")
    assert node.previous() is None
