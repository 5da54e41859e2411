"""Flannel's annotations of a Node, as a lease. Pure.

    spec.podCIDRs                       the subnets, which Kubernetes gives out
    <prefix>kube-subnet-manager         "true", or the Node is no lease
    <prefix>backend-type                vxlan, host-gw, ...; empty for udp
    <prefix>backend-data                {"VNI":1,"VtepMAC":".."}, or null
    <prefix>public-ip                   where the node is reached
    <prefix>public-ip-overwrite         an administrator's address for the one before
    <prefix>node-public-ip              an administrator's choice among the addresses of the node
    <prefix>backend-v6-data, public-ipv6, public-ipv6-overwrite, node-public-ipv6       the same of IPv6

What is written is flannel's, byte for byte: a flanneld that starts again takes its MAC out of
backend-data by cutting the text, and finds none if there is one more key in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Any, Final

from ctl.core.model import Address, Addresses, IPv6Lease, Lease, MacAddress, Subnets, host_address
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
    subnets: Subnets | None = None
    """What Kubernetes has given it; None: nothing, or nothing for IPv4."""
    lease: Lease | None = None
    problem: str = ""
    """Why a Node with flannel's mark is no lease, or none for IPv6, or what of ours is not published as
    asked for; empty if it is one, or has no mark."""
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
        version = number(str(metadata.get("resourceVersion", "")))
        subnets, lease, wrong = None, None, None
        marked = written.get("kube-subnet-manager") == "true"
        try:
            subnets = pod_cidrs(spec)
            if marked:
                lease, wrong = _lease(name, subnets, written)
                lease = replace(lease, revision=version)
                if name == self.own:
                    wrong = wrong or _overwrites(written)[1]
        except (ValueError, RecursionError) as error:
            wrong = error
        return Entry(
            name, str(metadata.get("uid", "")), version, str(metadata.get("creationTimestamp", "")), mark,
            subnets, lease, _line(name, wrong) if wrong and marked else "",
            written if name == self.own else {},
        )  # fmt: skip

    def _ours(self, annotations: Mapping[str, Any]) -> dict[str, str]:
        return {
            name.removeprefix(self._prefix): value
            for name, value in annotations.items()
            if name.startswith(self._prefix) and isinstance(value, str)
        }

    def annotations(self, lease: Lease, own: Mapping[str, str]) -> dict[str, str | None]:
        """What has to be written to our Node, by full names; None: what has to go.

        `own`: what stands there, overwrites too.
        """
        overwrites, _ = _overwrites(own)
        wanted: dict[str, str | None] = {
            "backend-type": "" if lease.backend == "udp" else lease.backend,
            "backend-data": _format_data(lease),
            "public-ip": overwrites.get("public-ip", str(lease.host)),
            "kube-subnet-manager": "true",
            "backend-v6-data": None,
            "public-ipv6": None,
        }
        if lease.ipv6 is not None and lease.ipv6.host is not None:
            wanted["backend-v6-data"] = _format_data(lease.ipv6)
            wanted["public-ipv6"] = overwrites.get("public-ipv6", str(lease.ipv6.host))
        return {self._prefix + name: value for name, value in wanted.items() if own.get(name) != value}


def _format_data(lease: Lease | IPv6Lease) -> str:
    if lease.vtep_mac is None or lease.vni is None:
        return "null"
    return json.dumps({"VNI": lease.vni, "VtepMAC": str(lease.vtep_mac)}, separators=(",", ":"))


def _lease(
    name: str, subnets: Subnets | None, written: Mapping[str, str]
) -> tuple[Lease, ValueError | RecursionError | None]:
    """What a Node's annotations say, and what is wrong with their IPv6: that costs it IPv6 only.

    ValueError if there is no lease in them at all.
    """
    if subnets is None:
        raise ValueError("it has no podCIDR")
    host = _host(IPv4Address, "public-ip", written)
    backend = written.get("backend-type", "") or "udp"
    if not (backend.isascii() and backend.isprintable() and len(backend) <= 64):
        raise ValueError("backend-type is no name")
    lease = Lease(subnets.ipv4, host, *_data("backend-data", written, backend), backend, name)
    try:
        return replace(lease, ipv6=_ipv6(subnets.ipv6, written, backend)), None
    except (ValueError, RecursionError) as error:
        return lease, error


def _ipv6(subnet: IPv6Network | None, written: Mapping[str, str], backend: str) -> IPv6Lease | None:
    """What they say of IPv6; None: the Node does not take part in it. ValueError."""
    if subnet is None or "public-ipv6" not in written:
        return None
    host = _host(IPv6Address, "public-ipv6", written)
    return IPv6Lease(subnet, host, *_data("backend-v6-data", written, backend))


def _host(kind: type[Address], name: str, written: Mapping[str, str]) -> Address:
    try:
        return host_address(kind(written.get(name, "")))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _data(name: str, written: Mapping[str, str], backend: str) -> tuple[MacAddress | None, int | None]:
    """(VTEP MAC, VNI) of a family. ValueError."""
    try:
        data = decode(written.get(name, "") or "null")
        mac, vni = backend_data(data, backend)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if isinstance(data, dict) and "vni" not in data:
        vni = None  # flannel does not look at a peer's
    return mac, vni


def pod_cidrs(spec: Json) -> Subnets | None:
    """The Node's subnets; None: it has none yet. ValueError as flannel has it, and without one for IPv4."""
    listed = spec.get("podCIDRs") or ([spec["podCIDR"]] if spec.get("podCIDR") else [])
    if not listed:
        return None
    if not isinstance(listed, Sequence) or len(listed) > 2:
        raise ValueError("its podCIDRs are more than one for each of IPv4 and IPv6")
    found = [_network(text) for text in listed]
    ipv4 = next((each for each in found if isinstance(each, IPv4Network)), None)
    if ipv4 is None:
        raise ValueError("it has no podCIDR for IPv4")
    return Subnets(ipv4, next((each for each in found if isinstance(each, IPv6Network)), None))


def chosen_addresses(own: Mapping[str, str]) -> Addresses:
    """By which addresses of our host an administrator wants our node to be reached. ValueError."""
    ipv4, ipv6 = "node-public-ip", "node-public-ipv6"
    return Addresses(
        _host(IPv4Address, ipv4, own) if own.get(ipv4) else None,
        _host(IPv6Address, ipv6, own) if own.get(ipv6) else None,
    )


def _overwrites(own: Mapping[str, str]) -> tuple[dict[str, str], ValueError | None]:
    """What an administrator has published in place of our addresses, as written; why it cannot be."""
    found, wrong = {}, None
    kinds = ("public-ip", partial(_host, IPv4Address)), ("public-ipv6", partial(_host, IPv6Address))
    for annotation, parse in kinds:
        name = f"{annotation}-overwrite"
        if own.get(name):
            try:
                parse(name, own)
            except ValueError as error:
                wrong = ValueError(f"{error}: our own address is published")
            else:
                found[annotation] = own[name]
    return found, wrong


def _network(text: Any) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text, strict=False)
    except (TypeError, ValueError):
        raise ValueError(f"its podCIDR {str(text)[:64]!r} is no network") from None


def _line(name: str, error: Exception) -> str:
    """For the log: one line, printable, of bounded length."""
    text = f"node {name}: {error}"
    printable = "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)
    return printable if len(printable) <= PROBLEM_CHARACTERS else printable[:PROBLEM_CHARACTERS] + "..."
