"""What a container has inside, and what is wrong with it for the overlay. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface

from ctl.core.diagnosis.finding import Finding, failure, ok
from ctl.core.model import Lease, Network


@dataclass(frozen=True, slots=True)
class Inside:
    """A container, seen from inside of its network namespace."""

    port: str
    """The interface on the bridge that leads to it."""
    device: str
    """The other end of that, inside."""
    mtu: int
    addresses: tuple[IPv4Interface, ...]
    """Of `device`."""
    out: str
    """The interface by which it sends to other nodes' containers; empty: it has no route."""
    hop: IPv4Address | None
    """The neighbour to which it sends them; None: it has no route."""


def of_inside(containers: Sequence[Inside], own: Lease, network: Network, mtu: int) -> Iterator[Finding]:
    """What is wrong with each. `own`: our lease; `mtu`: the largest inner packet, bytes."""
    count = Counter(address.ip for each in containers for address in each.addresses)
    wrong = [
        finding for each in containers for finding in (_address(each, own, count) or _way(each, own, network))
    ]
    wrong += [_too_large(each, mtu) for each in containers if each.mtu > mtu]
    yield from wrong
    if containers and not wrong:
        yield ok("containers", f"{len(containers)} looked into: addresses, routes and MTUs fit")


def _address(each: Inside, own: Lease, count: Counter[IPv4Address]) -> list[Finding]:
    """One cause at most. A container that has no address at all is still being made."""
    doubled = sorted(address.ip for address in each.addresses if count[address.ip] > 1)
    if doubled:
        return [
            failure(
                "containers",
                f"the container at port {each.port} and another one have {doubled[0]}",
                "packets for that address reach now one, now the other",
                "stop one of them; who gives out addresses beside the runtime's IPAM?",
            )
        ]
    if each.addresses and not any(address.ip in own.subnet for address in each.addresses):
        return [
            failure(
                "containers",
                f"the container at port {each.port} has {each.addresses[0]}, of no address of {own.subnet}",
                "other nodes do not send here what is for it",
                f"start it anew with an address of {own.subnet} (ovctl docker-opts, subnet.env)",
            )
        ]
    return []


def _way(each: Inside, own: Lease, network: Network) -> list[Finding]:
    if not each.addresses or (each.out and each.out != each.device):
        return []  # still being made; or its way leads over another network, which is somebody's choice
    if each.hop is None:
        return [
            failure(
                "containers",
                f"the container at port {each.port} has no route to {network.network}",
                "it reaches its own node's containers at most",
                f"inside: ip route add default via {own.gateway}",
            )
        ]
    if each.hop != own.gateway:
        return [
            failure(
                "containers",
                f"the container at port {each.port} sends to other nodes by {each.hop}, not by {own.gateway}",
                "this node's bridge does not get its packets, or gets them by a detour",
                f"inside: ip route replace default via {own.gateway}",
            )
        ]
    return []


def _too_large(each: Inside, mtu: int) -> Finding:
    return failure(
        "containers",
        f"{each.device} of the container at port {each.port} has MTU {each.mtu}, the overlay carries {mtu}",
        "it sends packets that do not fit, and waits where ICMP is filtered",
        f"start it anew with MTU {mtu}, or inside: ip link set dev {each.device} mtu {mtu}",
    )
