"""What the text of a setting may say: parsers from text to value. Pure.

Each raises ValueError with a line that needs no context.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from ctl.core.model import Bypass, HookMode, host_address
from ctl.settings.endpoint import ETCD_PREFIX, is_etcd, is_kubernetes, kubeconfig_path, parse_store_url


def integer(low: int, high: int) -> Callable[[str], int]:
    """A whole number in the range."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]+", text):
            raise ValueError(f"{text!r} is not a whole number")
        if not low <= int(text) <= high:
            raise ValueError(f"{text} is not between {low} and {high}")
        return int(text)

    return parse


def number(low: float, high: float, unit: str) -> Callable[[str], float]:
    """A number in the range; `unit` is for the complaint."""

    def parse(text: str) -> float:
        if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text):
            raise ValueError(f"{text!r} is not a number of {unit}")
        if not low <= float(text) <= high:
            raise ValueError(f"{text} is not between {low:g} and {high:g} {unit}")
        return float(text)

    return parse


def choice(*values: str) -> Callable[[str], str]:
    """One of `values`."""

    def parse(text: str) -> str:
        if text not in values:
            raise ValueError(f"{text!r} is none of {', '.join(values)}")
        return text

    return parse


def boolean(text: str) -> bool:
    """As Go's flags, which flannel's users write."""
    lowered = text.lower()
    if lowered in ("true", "t", "1", "yes", "on"):
        return True
    if lowered in ("false", "f", "0", "no", "off"):
        return False
    raise ValueError(f"{text!r} is neither true nor false")


def bypass(text: str) -> Bypass:
    """What eBPF may carry."""
    return Bypass(choice(*Bypass)(text))


def hook(text: str) -> HookMode:
    """A hook by name."""
    return HookMode(choice(*HookMode)(text))


def ifname(text: str) -> str:
    """An interface name as the kernel takes it: IFNAMSIZ, no slash, no space, no colon."""
    if not re.fullmatch(r"[^\s/:]{1,15}", text) or text in (".", ".."):
        raise ValueError(f"{text!r} is no interface name (1 to 15 characters, no '/', ':' or space)")
    return text


def uplink(text: str) -> str:
    """An interface's name or an address of it, or nothing."""
    if ":" in text:
        return str(optional_ipv6(text))
    return ifname(text) if text else ""


def pattern(text: str) -> str:
    """A regular expression, or nothing."""
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is no regular expression: {error}") from None
    return text


def ipv4(text: str) -> IPv4Address:
    """A host's address, such as a lease may have."""
    try:
        address = IPv4Address(text)
    except ValueError:
        raise ValueError(f"{text!r} is not an IPv4 address") from None
    return host_address(address)


def optional_ipv4(text: str) -> IPv4Address | None:
    """A host's address, or nothing."""
    return ipv4(text) if text else None


def optional_ip(text: str) -> IPv4Address | IPv6Address | None:
    """A host's address of either family, or nothing."""
    return optional_ipv6(text) if ":" in text else optional_ipv4(text)


def optional_ipv6(text: str) -> IPv6Address | None:
    """A host's IPv6 address, or nothing."""
    if not text:
        return None
    try:
        return host_address(IPv6Address(text))
    except ValueError:
        raise ValueError(f"{text!r} is not the IPv6 address of a host") from None


def listen_address(text: str) -> str:
    """An IPv4 or IPv6 address to listen on."""
    try:
        return str(ip_address(text))
    except ValueError:
        raise ValueError(f"{text!r} is not an IP address to listen on") from None


def path(text: str) -> Path:
    """An absolute path."""
    if not text.startswith("/") or "\0" in text:
        raise ValueError(f"{text!r} is not an absolute path")
    return Path(text)


def optional_path(text: str) -> Path | None:
    """An absolute path, or nothing."""
    return path(text) if text else None


def node_name(text: str) -> str:
    """A name for people; it is printed, so it must stay on one line."""
    if len(text) > 253 or not (text.isprintable() or not text):
        raise ValueError(f"{text!r} is no node name (printable, at most 253 characters)")
    return text


def store_url(text: str) -> str:
    """A store's URL; of etcd's, the endpoints are looked at too."""
    if is_etcd(text):
        parse_store_url(text)
    elif is_kubernetes(text):
        kubeconfig_path(text)
    elif not re.match(r"[a-z0-9+]+:", text):
        raise ValueError(f"{text!r} is no store URL (such as sqlite:///var/lib/ovnet/store.db)")
    return text


def optional_file(text: str) -> str:
    """An absolute path, or nothing, as text."""
    return str(path(text)) if text else ""


def any_text(text: str) -> str:
    """Anything."""
    return text


def etcd_prefix(text: str) -> str:
    """Where in etcd flannel's keys are; not everything that there is."""
    if not text.strip("/") or not text.isprintable():
        raise ValueError(f"{text!r} is no key prefix such as {ETCD_PREFIX}")
    return text


def annotation_prefix(text: str) -> str:
    """What annotations' names begin with, as flannel makes it of its flag: `DOMAIN/` or `DOMAIN/NAME-`."""
    domain, slash, name = text.partition("/")
    if "/" in name:
        raise ValueError(f"{text!r} has more than one '/'")
    if name and not name.endswith("-"):
        name += "-"
    label = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
    if not re.fullmatch(rf"{label}([.]{label})+", domain) or not re.fullmatch(r"([a-z0-9_-]+-)?", name):
        raise ValueError(f"{text!r} is no prefix of annotations such as flannel.alpha.coreos.com")
    return f"{domain}/{name}"
