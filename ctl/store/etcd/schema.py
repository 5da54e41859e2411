"""Flannel's keys and values in etcd, as entries. Pure.

    <prefix>/config                      the network config
    <prefix>/subnets/10.5.52.0-24        a lease; without an etcd lease, a reservation
    <prefix>/subnets/10.5.52.0-24&fd00:10:244:1::-64        one with an IPv6 subnet

Everything else that begins with `<prefix>/subnets` is a problem to be told of: flanneld
sees it too, and many releases of it drop all their peers over one such key. So this module
writes nothing there that flanneld could not read.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ctl.core.model import END_UNKNOWN, Lease
from ctl.core.wire import format_attributes, format_key, parse_attributes, parse_key

PROBLEM_CHARACTERS: Final = 300
"""The longest line, in characters, about a value of somebody else's, which may be as long as etcd allows."""

KeyValue = Mapping[str, Any]
"""A key and its value as etcd's gateway writes them: base64, integers as strings, zero fields absent."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What etcd has under one key."""

    key: bytes
    value: bytes
    """Empty for a lease, of which there may be a hundred thousand."""
    revision: int
    """The revision of the key's last change (etcd's mod_revision)."""
    grant: int = 0
    """The etcd lease that the key hangs on; 0 if it hangs on none."""
    lease: Lease | None = None
    problem: str = ""
    """Why the key or value could not be read as a lease; empty if it could."""
    mark: int = 0
    """Of a lease: the hash of its value, by which this process knows it again."""


def encode(text: bytes) -> str:
    """As the gateway takes bytes."""
    return b64encode(text).decode()


def integer(fields: KeyValue, name: str) -> int:
    """A 64-bit integer; absent is 0."""
    return int(fields.get(name, 0))


class Schema:
    """Names and values below one prefix."""

    def __init__(self, prefix: str) -> None:
        """`prefix` as flannel takes it: doubled and trailing slashes do not count."""
        root = re.sub("/+", "/", prefix).rstrip("/")
        self.config: Final = f"{root}/config".encode()
        self.subnets: Final = f"{root}/subnets".encode()
        # Flannel watches this as a string prefix, so what follows need not be a slash.
        self.end: Final = self.subnets[:-1] + bytes([self.subnets[-1] + 1])

    @property
    def span(self) -> dict[str, str]:
        """The range that holds the config and all leases (and may hold more)."""
        return {"key": encode(self.config), "range_end": encode(self.end)}

    def key(self, lease: Lease) -> bytes:
        ipv6 = None if lease.ipv6 is None else lease.ipv6.subnet
        return self.subnets + b"/" + format_key(lease.subnet, ipv6).encode()

    def ipv4_key(self, lease: Lease) -> bytes:
        """Where a lease on the same IPv4 subnet without IPv6 is."""
        return self.subnets + b"/" + format_key(lease.subnet).encode()

    def value(self, lease: Lease) -> bytes:
        return format_attributes(lease, with_node=True).encode()

    def belongs(self, key: bytes) -> bool:
        """Whether a key of the span is one of flannel's."""
        return key == self.config or key.startswith(self.subnets)

    def decode(self, found: KeyValue) -> Entry:
        """An entry from a range or an event. Never fails: what does not parse says why."""
        key, value = b64decode(found["key"]), b64decode(found.get("value", ""))
        revision, grant = integer(found, "mod_revision"), integer(found, "lease")
        if key == self.config:
            return Entry(key, value, revision, grant)
        try:
            lease = self._lease(key, value, revision, grant)
            return Entry(key, b"", revision, grant, lease, mark=hash(value))
        except (ValueError, RecursionError) as error:
            return Entry(key, value, revision, grant, problem=_line(key, error))

    def _lease(self, key: bytes, value: bytes, revision: int, grant: int) -> Lease:
        if not key.startswith(self.subnets + b"/"):
            raise ValueError(f"not below {self.subnets.decode()}/: delete it, flanneld may drop its peers")
        subnet, ipv6 = parse_key(key[len(self.subnets) + 1 :].decode())
        expires_at = END_UNKNOWN if grant else None
        return parse_attributes(subnet, value.decode(), ipv6=ipv6, expires_at=expires_at, revision=revision)


def _line(key: bytes, error: Exception) -> str:
    """For the log: one line, printable, of bounded length."""
    text = f"etcd key {key.decode(errors='backslashreplace')}: {error}"
    printable = "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)
    return printable if len(printable) <= PROBLEM_CHARACTERS else printable[:PROBLEM_CHARACTERS] + "..."
