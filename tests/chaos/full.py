"""Scenarios: a map is full. What does not fit takes the kernel path, and somebody says so."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from ctl.core.model import Lease, MacAddress
from ctl.store import open_store
from tests.chaos.scenario import Scenario, Sight
from tests.chaos.site import Site, complaints, pair
from tests.lab import Lab, wait_until

GROUP: Final = "Maps"
FLOWS_MAX: Final = 64
MORE: Final = (211, 212)


def small(lab: Lab) -> Site:
    """Room for a second peer, a second container, few flows."""
    return pair(lab, "--peers-max", "2", "--endpoints-max", "2", "--flows-max", str(FLOWS_MAX))


def named(site: Site, text: str) -> bool:
    """Whether a's report says so, and `ovctl status` fails by it."""
    return any(text in line for line in complaints(site.a)) and not site.healthy()


def peers_full(site: Site) -> None:
    """Two more peers."""
    with closing(open_store(site.lab.store_url)) as store:
        for number in MORE:
            mac = MacAddress(b"\x02\x00\x00\x00\x02" + bytes([number]))
            host = IPv4Address(f"192.168.77.{number}")
            store.put(Lease(IPv4Network(f"172.17.{number}.0/24"), host, mac, 1, node=f"n{number}"), None)


def peers_leave(site: Site) -> None:
    for number in MORE:
        site.b.ovctl("lease", "release", f"172.17.{number}.0/24")
    wait_until(site.healthy, 60, lambda: str(complaints(site.a)))


def endpoints_full(site: Site) -> None:
    """Two more containers on a, which reach b."""
    site.notes["extras"] = extras = [site.a.container(f"extra{number}") for number in range(2)]
    for extra in extras:
        extra.run("ping", "-c2", "-i0.05", "-W2", site.two.address)


def endpoint_leaves(site: Site) -> None:
    for extra in site.notes["extras"]:
        extra.remove()
    wait_until(site.healthy, 60, lambda: str(complaints(site.a)))


def flows_full(site: Site) -> None:
    """Many more flows than there is room for; each has a few packets."""
    script = (
        "import socket, sys\n"
        "for port in range(20000, 20000 + int(sys.argv[2])):\n"
        "    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:\n"
        "        for _ in range(3):\n"
        "            sock.sendto(b'x', (sys.argv[1], port))\n"
    )
    site.one.run("python3", "-c", script, site.two.address, str(20 * FLOWS_MAX), check=False)


SCENARIOS: Final = (
    Scenario(
        GROUP,
        "peers full",
        "more peers than `--peers-max`",
        peers_full,
        partial(named, text="map peers is full"),
        Sight(status="map peers is full", metric="`ovnet_map_entries`, `ovnet_map_capacity`"),
        restore=peers_leave,
        build=small,
        limit=60,
    ),
    Scenario(
        GROUP,
        "endpoints full",
        "more containers than `--endpoints-max`",
        endpoints_full,
        partial(named, text="map endpoints is full"),
        Sight(status="map endpoints is full", metric="`ovnet_map_entries`, `ovnet_map_capacity`"),
        restore=endpoint_leaves,
        build=small,
        limit=60,
    ),
    Scenario(
        GROUP,
        "flows full",
        "20 times as many flows as `--flows-max`; those used least lose their approval",
        flows_full,
        Site.healthy,
        Sight(metric="`ovnet_map_entries`, `ovnet_map_capacity`"),
        build=small,
        limit=60,
    ),
)
