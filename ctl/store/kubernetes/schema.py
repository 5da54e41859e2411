"""Flannel's annotations of a Node, as a lease. Pure.

    spec.podCIDRs                       the subnet, which Kubernetes gives out
    <prefix>kube-subnet-manager         "true", or the Node is no lease
    <prefix>backend-type                vxlan, host-gw, ...; empty for udp
    <prefix>backend-data                {"VNI":1,"VtepMAC":".."}, or null
    <prefix>public-ip                   where the node is reached
    <prefix>public-ip-overwrite         an administrator's address for the one before
    <prefix>node-public-ip              an administrator's choice among the addresses of the node

What is written is flannel's, byte for byte: a flanneld that starts again takes its MAC out of
backend-data by cutting the text, and finds none if there is one more key in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Final

from ctl.core.model import Lease, host_address
from ctl.core.wire import backend_data, decode

Json = Mapping[str, Any]

PROBLEM_CHARACTERS: Final = 300
"""The longest line, in characters, about what somebody else has written, which may be as long as he likes."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A Node, as far as it concerns us."""

    name: str
    uid: str
    version: int
    """Its resourceVersion when what concerns us was last seen to change in it; 0: it is no number."""
    born: str
    """When it was created, as RFC 3339 in UTC: the order of the text is that of the times."""
    mark: int = 0
    """Stands for all that concerns us: two texts with one mark say the same. 0: not known."""
    subnet: IPv4Network | None = None
    """What Kubernetes has given it; None: nothing, or nothing for IPv4."""
    lease: Lease | None = None
    problem: str = ""
    """Why a Node with flannel's mark is no lease; empty if it is one, or has no mark."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    """Those below our prefix, without it; only of our own Node."""


def number(version: str) -> int:
    """A resourceVersion that can be compared; 0 for what is no number."""
    return int(version) if version.isascii() and version.isdigit() else 0


class Schema:
    """Names of annotations with one prefix, for the node `own` ("": for nobody's)."""

    def __init__(self, prefix: str, own: str) -> None:
        self._prefix, self.own = prefix, own

    def read(self, node: Json, mark: int = 0) -> Entry:
        """A Node object. Never fails over what is written in it; ValueError if it is no Node at all."""
        metadata = node.get("metadata")
        if not isinstance(metadata, dict) or not isinstance(name := metadata.get("name"), str):
            raise ValueError("an object without a name")
        spec = node.get("spec") or {}
        written = self._ours(metadata.get("annotations") or {})
        subnet, lease, problem = None, None, ""
        try:
            subnet = pod_cidr(spec)
            lease = (
                self._lease(name, subnet, written) if written.get("kube-subnet-manager") == "true" else None
            )
        except (ValueError, RecursionError) as error:
            problem = _line(name, error) if written.get("kube-subnet-manager") == "true" else ""
        version = number(str(metadata.get("resourceVersion", "")))
        return Entry(
            name, str(metadata.get("uid", "")), version, str(metadata.get("creationTimestamp", "")), mark,
            subnet, lease and _at(lease, version), problem, written if name == self.own else {},
        )  # fmt: skip

    def _ours(self, annotations: Mapping[str, Any]) -> dict[str, str]:
        return {
            name.removeprefix(self._prefix): value
            for name, value in annotations.items()
            if name.startswith(self._prefix) and isinstance(value, str)
        }

    def _lease(self, name: str, subnet: IPv4Network | None, written: Mapping[str, str]) -> Lease:
        if subnet is None:
            raise ValueError("it has no podCIDR")
        host = _host("public-ip", written)
        backend = written.get("backend-type", "") or "udp"
        if not (backend.isascii() and backend.isprintable() and len(backend) <= 64):
            raise ValueError("backend-type is no name")
        try:
            data = decode(written.get("backend-data", "") or "null")
            mac, vni = backend_data(data, backend)
        except ValueError as error:
            raise ValueError(f"backend-data: {error}") from error
        if isinstance(data, dict) and "vni" not in data:
            vni = None  # flannel does not look at a peer's
        return Lease(subnet, host, mac, vni, backend, name)

    def annotations(self, lease: Lease, own: Mapping[str, str]) -> dict[str, str]:
        """What has to be written to our Node, by full names. `own`: what stands there, an overwrite too."""
        host = own.get("public-ip-overwrite") or str(lease.host)
        data = "null"
        if lease.vtep_mac is not None and lease.vni is not None:
            data = json.dumps({"VNI": lease.vni, "VtepMAC": str(lease.vtep_mac)}, separators=(",", ":"))
        wanted = {
            "backend-type": "" if lease.backend == "udp" else lease.backend,
            "backend-data": data,
            "public-ip": host,
            "kube-subnet-manager": "true",
        }
        return {self._prefix + name: value for name, value in wanted.items() if own.get(name) != value}


def pod_cidr(spec: Json) -> IPv4Network | None:
    """The Node's subnet for IPv4; None: it has none yet. ValueError as flannel has it."""
    listed = spec.get("podCIDRs") or ([spec["podCIDR"]] if spec.get("podCIDR") else [])
    if not listed:
        return None
    if not isinstance(listed, Sequence) or len(listed) > 2:
        raise ValueError("its podCIDRs are more than one for each of IPv4 and IPv6")
    for text in listed:
        if isinstance(text, str) and ":" not in text:
            try:
                return IPv4Network(text, strict=False)
            except ValueError:
                raise ValueError(f"its podCIDR {text[:64]!r} is no network") from None
    raise ValueError("it has no podCIDR for IPv4")


def node_public_ip(own: Mapping[str, str]) -> IPv4Address | None:
    """By which address of our own an administrator wants our node to be reached; None: any. ValueError."""
    return _host("node-public-ip", own) if own.get("node-public-ip") else None


def _host(annotation: str, written: Mapping[str, str]) -> IPv4Address:
    try:
        return host_address(IPv4Address(written.get(annotation, "")))
    except ValueError as error:
        raise ValueError(f"{annotation}: {error}") from error


def _at(lease: Lease, version: int) -> Lease:
    return Lease(
        lease.subnet, lease.host, lease.vtep_mac, lease.vni, lease.backend, lease.node, revision=version
    )


def _line(name: str, error: Exception) -> str:
    """For the log: one line, printable, of bounded length."""
    text = f"node {name}: {error}"
    printable = "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)
    return printable if len(printable) <= PROBLEM_CHARACTERS else printable[:PROBLEM_CHARACTERS] + "..."
