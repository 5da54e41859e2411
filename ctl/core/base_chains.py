"""Base chains of nftables: where in the kernel which of them hang, by nft's listing. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_TABLE: Final = re.compile(r"table (\S+) (\S+) \{")
_CHAIN: Final = re.compile(r"\tchain (\S+) \{")
_BASE: Final = re.compile(r"\t\ttype (\w+) hook (\w+) ")


@dataclass(frozen=True, slots=True)
class Chain:
    """One that packets come to by themselves; `type` and `hook` as nft has them."""

    family: str
    table: str
    name: str
    type: str
    hook: str

    def __str__(self) -> str:
        return f"{self.family} {self.table} {self.name}"


def base_chains(listing: str) -> Iterator[Chain]:
    """Those of `nft list chains`, in its order."""
    family = table = name = ""
    for line in listing.splitlines():
        if found := _TABLE.match(line):
            family, table = found.groups()
        elif found := _CHAIN.match(line):
            name = found[1]
        elif found := _BASE.match(line):
            yield Chain(family, table, name, *found.groups())
