"""Which of others' nftables chains drop what we forward: by nft's listings. Pure.

An accept in one table undoes no drop in another, so a chain at the hook `forward` that refuses what
it has no rule for has to have one for our containers. Whether a rule that names them accepts is not
looked at: who names them has thought of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Final

from ctl.core.base_chains import Chain
from ctl.core.lease import span

_REFUSAL: Final = re.compile(
    r"(counter( packets \d+ bytes \d+)? )?"
    r'(log( prefix "[^"]*")?( (level|flags|group) \S+)* )?'
    r"(drop|reject( with .+)?)( comment .*)?$"
)
"""A rule that asks nothing and refuses."""
_NAME: Final = re.compile(r'"([^"]*)"')
_ADDRESSES: Final = {
    4: re.compile(r"\b(\d{1,3}(?:\.\d{1,3}){3})(/\d{1,2})?(?:-(\d{1,3}(?:\.\d{1,3}){3}))?\b"),
    6: re.compile(r"(?<![\w:])([\da-f]*:[\da-f:]*:[\da-f]*)(/\d{1,3})?(?:-([\da-f:]+:[\da-f]*))?(?![\w:])"),
}
"""By IP version: an address, with the length of a prefix or the end of a range."""


def sees_forwarded(chain: Chain, version: int) -> bool:
    """Whether a base chain sees forwarded packets of that IP version and may refuse some."""
    families = ("ip" if version == 4 else "ip6", "inet")
    return (chain.type, chain.hook) == ("filter", "forward") and chain.family in families


def refuses(listing: str) -> bool:
    """Whether a base chain, by `nft list chain`, refuses what none of its rules is about."""
    lines = [line.strip() for line in listing.splitlines()]
    base = next((line for line in lines if line.startswith("type filter hook")), "")
    rules = [line for line in lines if line.strip("}") and line != base and not line.endswith("{")]
    return "policy drop;" in base or bool(rules and _REFUSAL.match(rules[-1]))


_MATCH: Final = re.compile(
    r'(?:iifname|oifname) "([^"]+)"|ip (?:saddr|daddr) (\d+(?:\.\d+){3}(?:/\d+)?)'
    r"|counter(?: packets \d+ bytes \d+)?"
)
"""What a rule may ask and yet be about all packets of a device or of a network."""


def drops_all(listing: str, bridge: str, network: IPv4Network) -> list[str]:
    """Rules of a chain, by `nft list chain`, that drop all that containers send to others or get from them.

    Those that ask for more than our bridge or our network are somebody's policy, and left alone.
    """
    return [
        rule
        for rule in map(str.strip, listing.splitlines())
        if (end := re.search(r" ?(?:drop|reject\b.*?)(?: comment .*)?$", rule))
        and _is_ours(rule[: end.start()], bridge, network)
    ]


def _is_ours(matches: str, bridge: str, network: IPv4Network) -> bool:
    found = list(_MATCH.finditer(matches))
    if not found or _MATCH.sub("", matches).strip():
        return False
    devices = [each[1] for each in found if each[1]]
    blocks = [IPv4Network(each[2], strict=False) for each in found if each[2]]
    ours = all(device == bridge for device in devices) and all(block.supernet_of(network) for block in blocks)
    return ours and bool(devices or blocks)


def names(listing: str, bridge: str, network: IPv4Network | IPv6Network) -> bool:
    """Whether a table, by `nft list table`, has a word about our bridge or addresses of our network."""
    interfaces = _NAME.findall(listing)
    if any(name == bridge or (name[-1:] == "*" and bridge.startswith(name[:-1])) for name in interfaces):
        return True
    first, last = span(network)
    return any(begin <= last and end >= first for begin, end in _ranges(listing, network.version))


def _ranges(listing: str, version: int) -> Iterator[tuple[int, int]]:
    for address, length, end in _ADDRESSES[version].findall(listing):
        with suppress(ValueError):  # a version, say, in a comment
            first, last = span(ip_network(address + length, strict=False))
            yield first, int(ip_address(end)) if end else last
