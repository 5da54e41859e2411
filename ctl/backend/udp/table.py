"""Which subnet is behind which host, and the text by which the agent says so. Pure.

ovnet-udp 1                      version of this format
generation 17                    counts up with every change
own 172.17.3.0/24
172.17.4.0/24 192.168.77.12      a peer's subnet and its host
end
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ctl.core.errors import ConfigError

FORMAT: Final = "ovnet-udp 1"


def _address(text: str) -> int:
    """An IPv4 address as a number in host order. Not ipaddress: it is slow and large."""
    parts = text.split(".")
    if len(parts) != 4 or not all(part.isascii() and part.isdecimal() and len(part) <= 3 for part in parts):
        raise ValueError(f"{text!r} is not an IPv4 address")
    numbers = [int(part) for part in parts]
    if max(numbers) > 255:
        raise ValueError(f"{text!r} is not an IPv4 address")
    return numbers[0] << 24 | numbers[1] << 16 | numbers[2] << 8 | numbers[3]


def _network(text: str) -> tuple[int, int]:
    """(base, mask) of `a.b.c.d/len`."""
    address, _, length = text.partition("/")
    if not (length.isascii() and length.isdecimal() and int(length) <= 32):
        raise ValueError(f"{text!r} is not an IPv4 network")
    mask = (0xFFFFFFFF << (32 - int(length))) & 0xFFFFFFFF
    base = _address(address)
    if base & ~mask:
        raise ValueError(f"{text!r} has host bits set")
    return base, mask


class Table:
    """Peers by subnet, longest prefix first; networks of one length cost one look."""

    __slots__ = ("_by_mask", "_mask", "base", "generation", "hosts")

    def __init__(self, own: str, routes: Iterable[tuple[str, str]], generation: int = 0) -> None:
        """`own` subnet and (subnet, host) of each peer, as text. ValueError names what is wrong."""
        self.base, self._mask = _network(own)
        self.generation = generation
        by_mask: dict[int, dict[int, str]] = {}
        hosts = set()
        for subnet, host in routes:
            _address(host)
            base, mask = _network(subnet)
            by_mask.setdefault(mask, {})[base] = host
            hosts.add(host)
        self.hosts = frozenset(hosts)
        """The underlay addresses of all peers: nobody else may send to us."""
        self._by_mask = tuple(sorted(by_mask.items(), reverse=True))

    def host(self, address: int) -> str | None:
        """The host behind which an inner address is; None if no peer has it."""
        for mask, subnets in self._by_mask:
            found = subnets.get(address & mask)
            if found is not None:
                return found
        return None

    def is_ours(self, address: int) -> bool:
        """Whether an inner address is in the own subnet."""
        return address & self._mask == self.base

    def __len__(self) -> int:
        return sum(len(subnets) for _, subnets in self._by_mask)


def format_table(own: str, routes: Iterable[tuple[str, str]], generation: int) -> str:
    """The text; `parse_table` gives it back."""
    lines = [FORMAT, f"generation {generation}", f"own {own}"]
    lines += [f"{subnet} {host}" for subnet, host in routes]
    return "\n".join([*lines, "end", ""])


def parse_table(text: str, source: str = "table") -> Table:
    """From the text. ConfigError names `source` and the line; half a text is refused."""
    lines = text.splitlines()
    if not lines or lines[0] != FORMAT or lines[-1] != "end":
        raise ConfigError(f"{source}: not a complete table of format {FORMAT!r}")
    try:
        (_, generation), (_, own) = (line.split() for line in lines[1:3])
        routes = [(subnet, host) for subnet, host in (line.split() for line in lines[3:-1])]
        return Table(own, routes, int(generation))
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from error
