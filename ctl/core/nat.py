"""Whether others' rules change the source of a packet of the overlay. Pure.

Rules of nat's postrouting, as nft or iptables lists them, are walked as the kernel does. What a rule
asks that is not understood here (a set, a mark, a connection's state) is taken for whatever makes it
harmless: no rule is blamed that may not be guilty.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Any, Final

from ctl.core.family import Space
from ctl.core.lease import span

Net = IPv4Network | IPv6Network


class Verdict(StrEnum):
    """What becomes of a packet that a rule is about."""

    REWRITE = "rewrite"
    """Its source is changed: masquerade, snat, netmap."""
    STOP = "stop"
    """No more rules of this base chain."""
    RETURN = "return"
    JUMP = "jump"
    GOTO = "goto"
    NEXT = "next"
    """The next rule is asked."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule, as far as it matters here. None, and "": it does not ask for that."""

    verdict: Verdict = Verdict.NEXT
    target: str = ""
    """The chain to go on in."""
    version: int = 0
    """The IP version of its packets; 0: whichever."""
    source: Net | None = None
    not_source: Net | None = None
    destination: Net | None = None
    not_destination: Net | None = None
    out: str = ""
    """Name of the interface by which the packet leaves; with `*` at its end: what it begins with."""
    not_out: str = ""
    vague: bool = False
    """Whether it asks for more than that."""

    def __str__(self) -> str:
        asked = {
            "from": self.source,
            "not from": self.not_source,
            "to": self.destination,
            "not to": self.not_destination,
            "by": self.out,
            "not by": self.not_out,
        }
        return " ".join(f"{word} {value}" for word, value in asked.items() if value) or "everything"


@dataclass(frozen=True, slots=True)
class Leaving:
    """A packet, without a mark, that this host is about to send by the interface `out`."""

    source: IPv4Address | IPv6Address
    destination: IPv4Address | IPv6Address
    out: str


def probes(
    cut: Space[Any], own: Net, peers: Iterable[Net], ways: Sequence[str], bridge: str
) -> Iterator[Leaving]:
    """Packets that stand for those between containers of this node, which has `own`, and of others.

    All of one family.

    `ways`: the interfaces by which packets go to other nodes; `bridge`: the one to our containers.
    """
    here = own.network_address + 2
    others = {cut.subnet_min, cut.subnet_max, *peers}
    for subnet in sorted((each for each in others if not each.overlaps(own)), key=span):
        there = subnet.network_address + 2
        yield from (Leaving(here, there, way) for way in ways)
        yield Leaving(there, here, bridge)


Chains = Mapping[str, Sequence[Rule]]


def rewriting(chains: Chains, base: str, packet: Leaving) -> Rule | None:
    """The rule that surely changes the packet's source; None: there is none that one could name."""
    found = _walk(chains, base, packet, ())
    return found if isinstance(found, Rule) else None


def _walk(chains: Chains, name: str, packet: Leaving, above: tuple[str, ...]) -> Rule | Verdict:
    """The rule that rewrites; else STOP, or NEXT at the chain's end."""
    if name in above:  # no kernel accepts that
        return Verdict.STOP
    for rule in chains.get(name, ()):
        if not _holds(rule, packet):
            continue
        if rule.verdict in (Verdict.STOP, Verdict.RETURN):
            return Verdict.STOP if rule.verdict is Verdict.STOP else Verdict.NEXT
        if rule.vague:
            continue
        if rule.verdict is Verdict.REWRITE:
            return rule
        if rule.verdict in (Verdict.JUMP, Verdict.GOTO):
            found = _walk(chains, rule.target, packet, (*above, name))
            if found is not Verdict.NEXT or rule.verdict is Verdict.GOTO:
                return found
    return Verdict.NEXT


def _holds(rule: Rule, packet: Leaving) -> bool:
    """Whether what is understood of the rule is true of the packet."""
    return (
        rule.version in (0, packet.source.version)
        and (rule.source is None or packet.source in rule.source)
        and (rule.not_source is None or packet.source not in rule.not_source)
        and (rule.destination is None or packet.destination in rule.destination)
        and (rule.not_destination is None or packet.destination not in rule.not_destination)
        and (not rule.out or _named(rule.out, packet.out))
        and not (rule.not_out and _named(rule.not_out, packet.out))
    )


def _named(pattern: str, device: str) -> bool:
    return device.startswith(pattern[:-1]) if pattern.endswith("*") else device == pattern


def _asking(rule: Rule, field: str, value: object, *, negated: bool) -> Rule:
    """The rule with one condition more; vague, if it has one of that field already."""
    name = f"not_{field}" if negated else field
    if getattr(rule, name):
        return replace(rule, vague=True)
    return replace(rule, **{name: value})  # type: ignore[arg-type]


# --- iptables -S -------------------------------------------------------------------

_TARGETS: Final = {
    **dict.fromkeys(("MASQUERADE", "SNAT", "NETMAP"), Verdict.REWRITE),
    **dict.fromkeys(("ACCEPT", "DROP"), Verdict.STOP),
    **dict.fromkeys(("LOG", "NFLOG", "MARK", "CONNMARK"), Verdict.NEXT),
    "RETURN": Verdict.RETURN,
}
_OPTIONS: Final = {"-s": "source", "-d": "destination", "-o": "out"}
_TO_OTHERS: Final = ["-m", "addrtype", "!", "--dst-type", "LOCAL"]
"""What every packet to another host is."""


def parse_iptables(listing: Iterable[str]) -> dict[str, list[Rule]]:
    """The chains of `iptables -t nat -S`."""
    chains: dict[str, list[Rule]] = {}
    for line in listing:
        try:
            words = shlex.split(line)
        except ValueError:  # quotes that do not end
            continue
        if len(words) > 1 and words[0] in ("-P", "-N", "-A"):
            chain = chains.setdefault(words[1], [])
            if words[0] == "-A":
                chain.append(_iptables_rule(words[2:]))
    return chains


def _iptables_rule(words: list[str]) -> Rule:
    rule = Rule()
    while words:
        if words[: len(_TO_OTHERS)] == _TO_OTHERS:
            del words[: len(_TO_OTHERS)]
        elif words[:2] == ["-m", "comment"]:
            del words[:4]
        elif words[0] in ("-j", "-g") and len(words) > 1:
            return _aimed(rule, words[1], Verdict.GOTO if words[0] == "-g" else Verdict.JUMP)
        else:
            rule = _take_option(rule, words)
    return rule


def _take_option(rule: Rule, words: list[str]) -> Rule:
    """The rule with the condition that `words` begin with, which is taken away from them."""
    negated = words[0] == "!"
    option, value = (*words[negated : negated + 2], "", "")[:2]
    field = _OPTIONS.get(option)
    if field is None:
        del words[0]  # how many more are of it nobody knows
        return replace(rule, vague=True)
    del words[: negated + 2]
    wanted = _pattern(value) if field == "out" else _network(value)
    return _asking(rule, field, wanted, negated=negated) if wanted else replace(rule, vague=True)


def _pattern(name: str) -> str:
    return f"{name[:-1]}*" if name.endswith("+") else name


def _network(text: str) -> Net | None:
    try:
        return ip_network(text, strict=False)
    except ValueError:
        return None


def _aimed(rule: Rule, target: str, otherwise: Verdict) -> Rule:
    if target in _TARGETS:
        return replace(rule, verdict=_TARGETS[target])
    return replace(rule, verdict=otherwise, target=target)


# --- nft -j list chain -------------------------------------------------------------

_STATEMENTS: Final = {
    **dict.fromkeys(("masquerade", "snat"), Verdict.REWRITE),
    **dict.fromkeys(("accept", "drop", "reject"), Verdict.STOP),
    "return": Verdict.RETURN,
}
_HARMLESS: Final = frozenset({"counter", "log", "mangle"})
"""Statements after which a rule goes on, and by which nobody is left out."""
_FIELDS: Final = {"saddr": "source", "daddr": "destination"}
_PROTOCOLS: Final = {"ip": 4, "ip6": 6}
_FAMILIES: Final = {"ipv4": 4, "ipv6": 6}


def parse_nft(rules: Iterable[Sequence[Mapping[str, Any]]]) -> list[Rule]:
    """A chain by its rules' expressions, as `nft -j` has them."""
    return [_nft_rule(expressions) for expressions in rules]


def _nft_rule(expressions: Sequence[Mapping[str, Any]]) -> Rule:
    rule = Rule()
    for each in expressions:
        ((kind, said),) = each.items()
        if kind in _STATEMENTS:
            rule = replace(rule, verdict=_STATEMENTS[kind])
        elif kind in ("jump", "goto"):
            rule = replace(rule, verdict=Verdict(kind), target=str(said["target"]))
        elif kind == "xt":
            rule = _extended(rule, said)
        elif kind == "match":
            rule = _matched(rule, said)
        elif kind not in _HARMLESS:
            rule = replace(rule, vague=True)
    return rule


def _extended(rule: Rule, said: Mapping[str, Any]) -> Rule:
    """Something of iptables' that nft does not know itself."""
    name = str(said.get("name"))
    if said.get("type") == "target":
        return replace(rule, verdict=_TARGETS.get(name, Verdict.NEXT))
    return rule if name == "comment" else replace(rule, vague=True)


def _matched(rule: Rule, said: Mapping[str, Any]) -> Rule:
    left, right, negated = said["left"], said["right"], said["op"] == "!="
    known = said["op"] in ("==", "!=") and isinstance(left, dict)
    if known and left.get("meta", {}).get("key") == "oifname" and isinstance(right, str):
        return _asking(rule, "out", right, negated=negated)
    if known and left == {"meta": {"key": "nfproto"}} and right in _FAMILIES and not negated:
        return _about(rule, _FAMILIES[right])
    payload = left.get("payload", {}) if known else {}
    field, wanted = _FIELDS.get(payload.get("field", "")), _prefix(right)
    version = _PROTOCOLS.get(payload.get("protocol", ""), 0)
    if field is None or wanted is None or version != wanted.version:
        return replace(rule, vague=True)
    # An address of the one family is asked for only in packets of it, negated or not.
    return _asking(_about(rule, version), field, wanted, negated=negated)


def _about(rule: Rule, version: int) -> Rule:
    """The rule for packets of this IP version; vague, if it is for the other."""
    return replace(rule, version=version, vague=rule.vague or rule.version not in (0, version))


def _prefix(right: object) -> Net | None:
    """An address or a prefix; None for anything else, as a set."""
    if isinstance(right, dict) and isinstance(prefix := right.get("prefix"), dict):
        right = f"{prefix.get('addr')}/{prefix.get('len')}"
    return _network(right) if isinstance(right, str) else None
