"""Others' rules of nat's postrouting, whoever made them: nftables', iptables' on top of it, legacy iptables'.

Chain by chain, from the base chain to those that it leads to: a Kubernetes node has tens of
thousands of rules in the same tables.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from ctl.core.base_chains import Chain
from ctl.core.nat import Chains, Leaving, Rule, Verdict, parse_iptables, parse_nft, rewriting
from ctl.kernel.command import find, run
from ctl.kernel.firewall import TABLE
from ctl.kernel.iptables import command, legacy_in_use

_MOST_CHAINS: Final = 50
"""More than these are not looked at."""

Load = Callable[[str], list[Rule]]
"""A chain's rules by its name."""


@dataclass(frozen=True, slots=True)
class Base:
    """A base chain of someone else's."""

    place: str
    """For people."""
    chains: Chains
    name: str


def complaints(version: int, chains: Iterable[Chain], packets: Iterable[Leaving]) -> Iterator[str]:
    """A line for each of the host's base chains, of others', that changes the source of one of these packets.

    `version`: the packets' IP version. KernelError.
    """
    tried = tuple(packets)
    for base in _bases(version, chains) if tried else ():
        found = (rewriting(base.chains, base.name, packet) for packet in tried)
        if rule := next(filter(None, found), None):
            yield (
                f"a rule of {base.place} changes the source address of packets between containers ({rule}):"
                " they do not see each other's own addresses, and eBPF carries nothing of it; narrow the rule"
                " (dockerd: --ip-masq=false, or another --bip), or choose another network"
            )


def _bases(version: int, chains: Iterable[Chain]) -> Iterator[Base]:
    tool = command(version)
    for chain in chains:
        if _translates(chain, version):
            yield _nft_base(tool, chain.family, chain.table, chain.name)
    if legacy_in_use("nat", version=version) and find(f"{tool}-legacy"):
        load = _by_iptables(f"{tool}-legacy")
        yield _followed(f"legacy {tool}' nat POSTROUTING", "POSTROUTING", load)


def _translates(chain: Chain, version: int) -> bool:
    """Whether it is one of others' that changes sources of packets of this IP version."""
    own = "ip" if version == 4 else "ip6"
    here = (chain.type, chain.hook) == ("nat", "postrouting") and chain.family in (own, "inet")
    return here and (chain.family, chain.table) != (own, TABLE)


def _nft_base(tool: str, family: str, table: str, name: str) -> Base:
    """Iptables knows its own rules better than nft does, of which it shows no matches."""
    if family != "inet" and table == "nat" and find(f"{tool}-nft"):
        base = _followed(f"{tool}' nat {name}", name, _by_iptables(f"{tool}-nft"))
        if base.chains[name]:
            return base
    return _followed(f"nftables' table {family} {table}, chain {name}", name, _by_nft(family, table))


def _followed(place: str, name: str, load: Load) -> Base:
    """A base chain with all that it leads to."""
    chains: dict[str, list[Rule]] = {}
    ahead = [name]
    while ahead and len(chains) < _MOST_CHAINS:
        chain = ahead.pop()
        if chain not in chains:
            chains[chain] = load(chain)
            jumps = (rule for rule in chains[chain] if rule.verdict in (Verdict.JUMP, Verdict.GOTO))
            ahead += (rule.target for rule in jumps if not rule.vague)
    return Base(place, chains, name)


def _by_iptables(command: str) -> Load:
    def load(chain: str) -> list[Rule]:
        listing = run(command, "-w", "-t", "nat", "-S", chain, check=False)
        return parse_iptables(listing.splitlines()).get(chain, [])

    return load


def _by_nft(family: str, table: str) -> Load:
    def load(chain: str) -> list[Rule]:
        listing = _listed("nft", "-j", "list", "chain", family, table, chain)
        return parse_nft(each["rule"].get("expr", []) for each in listing if "rule" in each)

    return load


def _listed(*command: str) -> list[dict[str, Any]]:
    """The objects that nft lists; none where it refuses, as for a chain that has gone meanwhile."""
    text = run(*command, check=False)
    try:
        found = json.loads(text)["nftables"]
    except (ValueError, KeyError, TypeError):
        return []
    return [each for each in found if isinstance(each, dict)]
