"""A dual-stack host that has IPv6 of its own where the overlay would have it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.dual import give, init_network, lease, with_ipv6
from tests.host import Host
from tests.lab import Lab
from tests.process import wait_until

PLAIN = ("--bypass", "off")
"""Nothing here is about eBPF."""
PEERS = "fd00:10:0:7::"


@pytest.fixture(scope="module")
def node() -> Iterator[Host]:
    """One that looks around every second, with the subnets of number 3; a peer that does not run has 7."""
    with Lab() as lab:
        a, b = with_ipv6(lab.host("a")), with_ipv6(lab.host("b"))
        init_network(a)
        give(a, lease(a, 3), lease(b, 7))
        a.agent(*PLAIN, "--resync-interval", "1")
        yield a


def named(host: Host, key: str, *words: str) -> None:
    """Returns when a line of the agent's report has all these words."""

    def is_named() -> bool:
        return any(all(word in line for word in words) for line in host.status()[key])

    wait_until(is_named, 20, lambda: f"{words} in {host.status()[key]}")


def clean(host: Host) -> None:
    """Returns when the agent names nothing of that kind."""

    def nothing() -> bool:
        report = host.status()
        return not any("fd0" in line for line in (*report["problems"], *report["warnings"]))

    wait_until(nothing, 20, lambda: f"{host.status()}")


def test_a_more_specific_ipv6_route_of_anothers_is_a_problem_and_a_wider_one_is_none(node: Host) -> None:
    clean(node)
    node.ip("link", "add", "vpn0", "type", "bridge")
    try:
        node.sysctl("net.ipv6.conf.vpn0.disable_ipv6", "0")
        node.ip("link", "set", "vpn0", "up")
        for route in ("fd00::/8", f"{PEERS}/80"):
            node.ip("-6", "route", "add", route, "dev", "vpn0")
        named(
            node, "problems", f"there is a route to {PEERS}/80 by vpn0", f"within {PEERS}/64 of b at fd77::"
        )
        assert "fd00::/8" not in str(node.status())
    finally:
        node.ip("link", "del", "vpn0")
    clean(node)


MASQUERADE = ("POSTROUTING", "-s", "fd00:10::/48", "!", "-o", "docker0", "-j", "MASQUERADE")
RULES = {
    "nft": (
        ("nft", "table inet theirs { chain post { type nat hook postrouting priority 100;"
         " ip6 saddr fd00:10::/48 masquerade; }; }"),
        ("nft", "delete table inet theirs"),
    ),
    **{
        tool: ((tool, "-t", "nat", "-A", *MASQUERADE), (tool, "-t", "nat", "-D", *MASQUERADE))
        for tool in ("ip6tables-nft", "ip6tables-legacy")
    },
}  # fmt: skip
"""What somebody puts there, and takes away, by the tool."""


@pytest.mark.parametrize("tool", RULES)
def test_a_masquerade_of_the_overlays_ipv6_is_named_while_it_is_there(node: Host, tool: str) -> None:
    clean(node)
    put, away = RULES[tool]
    node.run(*put)
    try:
        named(
            node, "problems", "changes the source address of packets between containers", "from fd00:10::/48"
        )
    finally:
        node.run(*away)
    clean(node)


def test_a_node_takes_no_ipv6_subnet_over_its_own_link(lab: Lab) -> None:
    a = with_ipv6(lab.host("a"))
    init_network(a)
    a.ip("address", "add", "fd00:10::1/51", "dev", "eth0", "nodad")  # a quarter of all that there is to lease
    a.agent(*PLAIN)
    (held,) = a.json("lease", "list")
    assert held["host"] == a.address
    ours = a.subnet_env()["FLANNEL_IPV6_SUBNET"]
    assert int(ours.split(":")[3], 16) >= 0x2000, ours
    assert a.status()["problems"] == []
