"""Services, and a kube-proxy on a node: what its rules are made from (`iptables`, `nftables`)."""

from __future__ import annotations

from base64 import b32encode
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import ip_network
from typing import Final

MARK: Final = "0x4000"
"""Of packets to be masqueraded (`--iptables-masquerade-bit 14`)."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A pod behind a service."""

    address: str
    port: int
    node: str

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class Service:
    """One port of a Service with its ready endpoints."""

    name: str
    cluster_ip: str
    """Empty: headless. DNS names its pods, and kube-proxy has nothing to do."""
    port: int
    endpoints: tuple[Endpoint, ...] = ()
    protocol: str = "tcp"
    node_port: int = 0
    external_local: bool = False
    """`externalTrafficPolicy: Local`"""
    internal_local: bool = False
    """`internalTrafficPolicy: Local`"""
    affinity: int = 0
    """Seconds of `sessionAffinity: ClientIP`; 0: none."""
    load_balancer: str = ""
    source_ranges: tuple[str, ...] = ()
    """`loadBalancerSourceRanges`"""

    @property
    def title(self) -> str:
        """Namespace, name and port as kube-proxy says them."""
        return f"default/{self.name}:p{self.port}"

    @property
    def is_external(self) -> bool:
        """Whether there is an address of it for others than pods."""
        return bool(self.node_port or self.load_balancer)

    def local(self, node: str) -> tuple[Endpoint, ...]:
        """Its endpoints on a node."""
        return tuple(each for each in self.endpoints if each.node == node)


@dataclass(frozen=True, slots=True)
class Proxy:
    """A kube-proxy: the node where it runs, and how it was started."""

    node: str
    addresses: tuple[str, ...]
    """Where node ports are served, in mode nftables (`--nodeport-addresses`)."""
    cluster_cidr: str
    """What counts as a pod's address (`--cluster-cidr`)."""
    in_turn: bool = False
    """Endpoints one after the other, for tests that compare. kube-proxy itself draws lots."""

    @property
    def version(self) -> int:
        """Of the IP that it is for; a node has one for each. By mode nftables only."""
        return ip_network(self.cluster_cidr).version


def digest(*words: str, length: int) -> str:
    """The part of a chain's name that tells it from others."""
    return b32encode(sha256("".join(words).encode()).digest()).decode()[:length]
