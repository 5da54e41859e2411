"""Which rules of others change the source of the overlay's packets."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctl.core.nat import Leaving, Rule, Verdict, parse_iptables, parse_nft, probes, rewriting
from ctl.core.wire import parse_network

NETWORK = parse_network('{"Network":"172.17.0.0/16","Backend":{"Type":"vxlan"}}')
OWN = IPv4Network("172.17.3.0/24")
OUT = Leaving(IPv4Address("172.17.3.2"), IPv4Address("172.17.9.2"), "ovnet.1")
IN = Leaving(OUT.destination, OUT.source, "ovnet0")


def blamed(rules: str, packet: Leaving = OUT) -> Rule | None:
    """By the lines of `iptables -t nat -S`, without their `-A`."""
    lines = ["-P POSTROUTING ACCEPT", *(f"-A {line.strip()}" for line in rules.strip().splitlines())]
    return rewriting(parse_iptables(lines), "POSTROUTING", packet)


@pytest.mark.parametrize(
    "rules",
    [
        "POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",  # dockerd's default bridge
        "POSTROUTING -s 172.17.3.0/24 ! -o docker0 -j MASQUERADE",  # without --ip-masq=false
        "POSTROUTING -j MASQUERADE --random-fully",
        "POSTROUTING ! -s 127.0.0.0/8 -j SNAT --to-source 192.0.2.1",
        "POSTROUTING -o ovnet+ -j MASQUERADE",
        "POSTROUTING -d 172.16.0.0/12 -m comment --comment \"to the office -j RETURN\" -j MASQUERADE",
        # ip-masq-agent, told of another range
        """POSTROUTING -m comment --comment "ip-masq-agent: ..." -m addrtype ! --dst-type LOCAL -j MASQ-AGENT
           MASQ-AGENT -d 169.254.0.0/16 -m comment --comment "not masqueraded" -j RETURN
           MASQ-AGENT -d 10.0.0.0/8 -j RETURN
           MASQ-AGENT -m comment --comment "the rest" -j MASQUERADE""",
        """POSTROUTING -j LOG --log-prefix x
           POSTROUTING -g ONE
           ONE -j TWO
           ONE -s 172.17.0.0/16 -j MASQUERADE
           TWO -d 10.0.0.0/8 -j ACCEPT""",
    ],
)  # fmt: skip
def test_a_rule_that_masquerades_the_overlay_is_found(rules: str) -> None:
    found = blamed(rules)
    assert found is not None
    assert found.verdict is Verdict.REWRITE


@pytest.mark.parametrize(
    "rules",
    [
        "",
        "POSTROUTING -s 172.18.0.0/16 ! -o br-1234 -j MASQUERADE",
        "POSTROUTING -s 172.17.0.0/16 -o eth0 -j MASQUERADE",
        "POSTROUTING -s 172.17.0.0/16 ! -o ovnet.1 -j MASQUERADE",
        "POSTROUTING -s 172.17.0.0/16 ! -d 172.17.0.0/16 -j MASQUERADE",
        "POSTROUTING -s 192.168.122.0/24 ! -d 192.168.122.0/24 -p tcp -j MASQUERADE --to-ports 1024-65535",
        "POSTROUTING -s 172.17.3.2/32 -d 172.17.3.2/32 -p tcp -m tcp --dport 80 -j MASQUERADE",  # a hairpin
        "POSTROUTING -m mark --mark 0x1/0x1 -j MASQUERADE",
        "POSTROUTING -m set --match-set pods src -j MASQUERADE",  # Calico's
        # kube-proxy's
        """POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
           KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
           KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
           KUBE-POSTROUTING -m comment --comment "requiring SNAT" -j MASQUERADE --random-fully""",
        # flannel's
        """POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
           FLANNEL-POSTRTG -s 172.17.3.0/24 -d 172.17.0.0/16 -m comment --comment "flanneld masq" -j RETURN
           FLANNEL-POSTRTG -s 172.17.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully""",
        """POSTROUTING -s 172.17.0.0/16 -j ACCEPT
           POSTROUTING -j MASQUERADE""",
        """POSTROUTING -g ONE
           POSTROUTING -j MASQUERADE
           ONE -d 10.0.0.0/8 -j RETURN""",
        """POSTROUTING -j ONE
           ONE -j POSTROUTING""",
        "POSTROUTING -s nonsense -j MASQUERADE",
        'POSTROUTING -m comment --comment "never ends -j MASQUERADE',
    ],
)
def test_a_rule_that_may_be_harmless_is_not_blamed(rules: str) -> None:
    assert blamed(rules) is None


def test_a_rule_is_told_by_what_it_asks() -> None:
    assert str(blamed("POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE")) == (
        "from 172.17.0.0/16 not by docker0"
    )
    assert str(blamed("POSTROUTING -j MASQUERADE")) == "everything"


def test_what_comes_in_is_asked_too() -> None:
    """Docker's rule changes the source of what is on its way to our containers too: not by docker0 either."""
    rule = "POSTROUTING -s 172.17.0.0/16 ! -o ovnet.1 -j MASQUERADE"
    assert blamed(rule, OUT) is None
    assert blamed(rule, IN) is not None


def test_packets_between_nodes_are_tried_both_ways() -> None:
    tried = set(probes(NETWORK, OWN, [OWN, IPv4Network("172.17.9.0/24")], ["ovnet.1"], "ovnet0"))
    assert {OUT, IN} <= tried
    assert all((each.source in OWN) != (each.destination in OWN) for each in tried)
    assert {each.out for each in tried if each.source in OWN} == {"ovnet.1"}
    alone = replace(NETWORK, subnet_min=OWN, subnet_max=OWN)
    assert list(probes(alone, OWN, [], ["ovnet.1"], "ovnet0")) == []


# --- As nft tells it ---------------------------------------------------------------


def match(left: object, right: object, op: str = "==") -> dict[str, object]:
    return {"match": {"op": op, "left": left, "right": right}}


SADDR = {"payload": {"protocol": "ip", "field": "saddr"}}
DADDR = {"payload": {"protocol": "ip", "field": "daddr"}}
OIFNAME = {"meta": {"key": "oifname"}}
WIDE = {"prefix": {"addr": "172.17.0.0", "len": 16}}
COUNTER = {"counter": {"packets": 0, "bytes": 0}}
XT = {"xt": {"type": "target", "name": "MASQUERADE"}}


@pytest.mark.parametrize(
    ("expressions", "guilty"),
    [
        ([match(OIFNAME, "docker0", "!="), match(SADDR, WIDE), COUNTER, XT], True),
        ([match(SADDR, WIDE), {"masquerade": None}], True),
        ([{"masquerade": {"flags": "fully-random"}}], True),
        ([match(OIFNAME, "ovnet*"), {"snat": {"addr": "192.0.2.1"}}], True),
        (
            [match({"meta": {"key": "nfproto"}}, "ipv4"), match(OIFNAME, "lo", "!="), {"masquerade": None}],
            True,
        ),
        ([{"xt": {"type": "match", "name": "comment"}}, {"log": None}, XT], True),
        ([match(SADDR, "172.17.3.2"), {"masquerade": None}], True),
        ([match(SADDR, "172.17.3.3"), {"masquerade": None}], False),
        ([match(SADDR, WIDE, "!="), {"masquerade": None}], False),
        ([match(SADDR, WIDE), match(DADDR, WIDE, "!="), {"masquerade": None}], False),  # libvirt's, podman's
        ([match(SADDR, {"set": [WIDE]}), {"masquerade": None}], False),
        ([match(SADDR, "@pods"), {"masquerade": None}], False),
        ([match({"&": [{"meta": {"key": "mark"}}, 16384]}, 16384), {"masquerade": None}], False),
        ([match({"ct": {"key": "status"}}, "dnat", "in"), {"masquerade": None}], False),
        ([{"xt": {"type": "match", "name": "addrtype"}}, XT], False),
        ([{"limit": {"rate": 1, "per": "second"}}, {"masquerade": None}], False),
        ([{"vmap": {"key": OIFNAME, "data": "@zones"}}], False),
        ([{"xt": {"type": "target", "name": "MARK"}}], False),
        ([match({"payload": {"protocol": "ip6", "field": "saddr"}}, "::1"), {"masquerade": None}], False),
    ],
    ids=str,
)
def test_nfts_rules_are_judged_alike(expressions: list[dict[str, object]], guilty: bool) -> None:
    chains = {"post": parse_nft([json.loads(json.dumps(expressions))])}
    assert (rewriting(chains, "post", OUT) is not None) is guilty


def test_nfts_chains_are_followed() -> None:
    """firewalld's, with masquerade on in its default zone: our devices are in no other."""
    chains = {
        "nat_POSTROUTING": parse_nft([[{"jump": {"target": "zones"}}]]),
        "zones": parse_nft(
            [[match(OIFNAME, "eth0"), {"goto": {"target": "internal"}}], [{"goto": {"target": "public"}}]]
        ),
        "public": parse_nft([[match(OIFNAME, "lo", "!="), {"masquerade": None}]]),
    }
    assert rewriting(chains, "nat_POSTROUTING", OUT) is not None
    kept = {**chains, "public": parse_nft([[match(DADDR, WIDE), {"return": None}], [{"masquerade": None}]])}
    assert rewriting(kept, "nat_POSTROUTING", OUT) is None


# --- Any rules ---------------------------------------------------------------------

prefixes = st.none() | st.sampled_from(
    [
        IPv4Network(text)
        for text in ("0.0.0.0/0", "172.17.0.0/16", "172.17.3.0/24", "172.17.9.2/32", "10.0.0.0/8")
    ]
)
names = st.sampled_from(["", "ovnet.1", "ovnet*", "docker0"])
rules = st.builds(
    Rule,
    st.sampled_from(Verdict),
    target=st.sampled_from(["one", "two", "nowhere"]),
    source=prefixes,
    not_source=prefixes,
    destination=prefixes,
    not_destination=prefixes,
    out=names,
    not_out=names,
    vague=st.booleans(),
)
chains = st.fixed_dictionaries({name: st.lists(rules, max_size=5) for name in ("base", "one", "two")})


@given(chains)
def test_who_is_blamed_rewrites_this_very_packet_for_sure(found: dict[str, list[Rule]]) -> None:
    rule = rewriting(found, "base", OUT)
    if rule is not None:
        assert rule.verdict is Verdict.REWRITE
        assert not rule.vague
        assert rule.source is None or OUT.source in rule.source
        assert rule.not_destination is None or OUT.destination not in rule.not_destination
        assert rule in found["base"] + found["one"] + found["two"]


@given(chains, st.booleans())
def test_behind_an_exemption_nobody_is_blamed(found: dict[str, list[Rule]], vague: bool) -> None:
    """Also one of which it is not known whether it holds."""
    exempted = {**found, "base": [Rule(Verdict.RETURN, vague=vague), *found["base"]]}
    assert rewriting(exempted, "base", OUT) is None


@given(chains, st.integers(0, 5))
def test_a_rule_about_something_else_changes_nothing(found: dict[str, list[Rule]], place: int) -> None:
    other = Rule(Verdict.RETURN, source=IPv4Network("192.0.2.0/24"))
    more = {**found, "base": [*found["base"][:place], other, *found["base"][place:]]}
    assert rewriting(more, "base", OUT) == rewriting(found, "base", OUT)


@given(st.text(alphabet="-!AsdojgmPN \"'\\0123456789./x", max_size=60))
def test_any_listing_is_read(text: str) -> None:
    parse_iptables([text, f"-A POSTROUTING {text}", f"-A {text} -j MASQUERADE"])


# --- IPv6 -----------------------------------------------------------------------------

SADDR6, DADDR6 = ({"payload": {"protocol": "ip6", "field": each}} for each in ("saddr", "daddr"))
NFPROTO = {"meta": {"key": "nfproto"}}
WIDE6 = {"prefix": {"addr": "fd00:10::", "len": 48}}
OUT6 = Leaving(IPv6Address("fd00:10:0:3::2"), IPv6Address("fd00:10:0:9::2"), "ovnet-v6.1")


@pytest.mark.parametrize(
    ("rule", "guilty"),
    [
        ("-s fd00:10::/48 -j MASQUERADE", True),
        ("-s fd00:10:0:3::/64 ! -o docker0 -j MASQUERADE", True),
        ("-s fd00:10::/48 ! -d fd00:10::/48 -j MASQUERADE", False),
        ("-s fd00:11::/48 -j MASQUERADE", False),
    ],
)
def test_ip6tables_rules_are_judged_alike(rule: str, guilty: bool) -> None:
    assert (blamed(f"POSTROUTING {rule}", OUT6) is not None) is guilty


@pytest.mark.parametrize(
    ("expressions", "of_ipv4", "of_ipv6"),
    [
        ([{"masquerade": None}], True, True),
        ([match(SADDR6, WIDE6), {"masquerade": None}], False, True),
        ([match(SADDR6, WIDE6, "!="), {"masquerade": None}], False, False),
        ([match(SADDR, "192.0.2.0", "!="), {"masquerade": None}], True, False),  # of IPv4's packets only
        ([match(SADDR6, "fd01::1", "!="), {"masquerade": None}], False, True),
        ([match(NFPROTO, "ipv6"), {"masquerade": None}], False, True),
        ([match(NFPROTO, "ipv4"), {"masquerade": None}], True, False),
        ([match(NFPROTO, "ipv6"), match(SADDR, WIDE), {"masquerade": None}], False, False),
        ([match(SADDR6, WIDE6), match(DADDR6, WIDE6, "!="), {"masquerade": None}], False, False),
        ([match(SADDR6, WIDE), {"masquerade": None}], False, False),
    ],
    ids=str,
)
def test_a_rule_for_both_families_is_judged_by_the_packets_that_it_is_about(
    expressions: list[dict[str, object]], of_ipv4: bool, of_ipv6: bool
) -> None:
    chains = {"post": parse_nft([json.loads(json.dumps(expressions))])}
    assert [rewriting(chains, "post", packet) is not None for packet in (OUT, OUT6)] == [of_ipv4, of_ipv6]


def test_packets_between_nodes_are_tried_in_ipv6_too() -> None:
    dual = parse_network(
        '{"Network":"172.17.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10::/48","Backend":{"Type":"vxlan"}}'
    )
    assert dual.ipv6 is not None
    own, peer = IPv6Network("fd00:10:0:3::/64"), IPv6Network("fd00:10:0:9::/64")
    tried = set(probes(dual.ipv6, own, [own, peer], ["ovnet-v6.1"], "ovnet0"))
    assert {OUT6, Leaving(OUT6.destination, OUT6.source, "ovnet0")} <= tried
