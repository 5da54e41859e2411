"""Hosts with both families in network namespaces, nodes of a dual-stack network."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

from ctl.backend.vxlan.device import vtep_mac
from ctl.core.model import IPv6Lease, Lease, MacAddress
from ctl.core.wire import parse_network
from ctl.store import open_store
from tests.host import Container, Host
from tests.namespace import Netns
from tests.process import wait_until

NETWORK = IPv6Network("fd00:10::/48")
UNDERLAY = IPv6Network("fd77::/64")


def underlay(host: Host) -> str:
    """Its IPv6 address there: it ends as the IPv4 one does."""
    return str(UNDERLAY.network_address + int(host.address.rpartition(".")[2]))


def with_ipv6(host: Host) -> Host:
    """A host of the lab whose uplink has IPv6 too. What is made later has none by default."""
    host.sysctl("net.ipv6.conf.eth0.disable_ipv6", "0")
    host.ip("address", "add", f"{underlay(host)}/{UNDERLAY.prefixlen}", "dev", "eth0", "nodad")
    return host


def init_network(host: Host, backend: str = '{"Type":"vxlan"}', *, ipv6: bool = True) -> None:
    """A network of both families, in the lab's store, which the host reaches; in place of another one."""
    host.call(partial(write_network, host.lab.store_url, backend, ipv6=ipv6))


def write_network(store_url: str, backend: str = '{"Type":"vxlan"}', *, ipv6: bool = True) -> None:
    """The same, in a store that is reached from here."""
    both = f'"EnableIPv6":true,"IPv6Network":"{NETWORK}",' if ipv6 else ""
    text = f'{{"Network":"172.17.0.0/16",{both}"Backend":{backend}}}'
    with closing(open_store(store_url, create=True)) as store:
        store.write_network(parse_network(text), replace=True)


def leases(host: Host) -> dict[str, Lease]:
    """All of the lab's store, by the node's name."""

    def read() -> dict[str, Lease]:
        with closing(open_store(host.lab.store_url)) as store:
            return {each.node: each for each in store.snapshot(fresh=True).leases}

    return host.call(read)


def lease(host: Host, number: int, backend: str = "vxlan", *, ipv6: bool = True) -> Lease:
    """The host's, on the subnets of that number; of IPv6 all is as its agent will have it."""
    has_mac = backend == "vxlan"
    part = IPv6Lease(
        IPv6Network((int(NETWORK.network_address) + (number << 64), 64)),
        IPv6Address(underlay(host)),
        vtep_mac(IPv6Address(underlay(host)), 1) if has_mac else None,
        1 if has_mac else None,
    )
    return Lease(
        IPv4Network(f"172.17.{number}.0/24"),
        IPv4Address(host.address),
        MacAddress(bytes((2, 4, 0, 0, 0, number))) if has_mac else None,
        1 if has_mac else None,
        backend,
        host.name,
        ipv6=part if ipv6 else None,
    )


def give(host: Host, *leases: Lease) -> None:
    """Put leases into the lab's store, each new or in place of the one on its IPv4 subnet."""

    def put() -> None:
        with closing(open_store(host.lab.store_url)) as store:
            present = {each.subnet: each for each in store.snapshot(fresh=True).leases}
            for each in leases:
                if each.subnet in present:
                    store.delete(present[each.subnet])
                store.put(each, None)

    host.call(put)


@dataclass
class Guest:
    """A container with both families."""

    place: Container
    address: str
    """Its IPv6 one."""


def guest(host: Host, lease: Lease, name: str = "one") -> Guest:
    """A container on the node that has this lease, as a runtime makes it."""
    assert lease.ipv6 is not None
    made, subnet = host.container(name), lease.ipv6.subnet
    address = IPv6Interface((subnet.network_address + 0x10 + len(host.containers), subnet.prefixlen))
    made.sysctl("net.ipv6.conf.all.disable_ipv6", "0")
    made.ip("address", "add", str(address), "dev", "eth0", "nodad")
    made.ip("-6", "route", "add", "default", "via", str(subnet.network_address + 1))
    return Guest(made, str(address.ip))


def ping(source: Netns, target: str, *flags: str) -> bool:
    """Whether it answers."""
    return source.run("ping", "-6", "-c1", "-W1", *flags, target, check=False).returncode == 0


def reaches(source: Netns, target: str) -> None:
    """Wait until it does."""
    wait_until(partial(ping, source, target), 10, f"{target} answers")
