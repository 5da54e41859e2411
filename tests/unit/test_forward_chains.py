"""Others' chains at the hook `forward`: which drop what is ours, by nft's listings."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

import pytest

from ctl.core.base_chains import Chain, base_chains
from ctl.core.forward_chains import drops_all, names, refuses, sees_forwarded

NETWORK = IPv4Network("172.17.0.0/16")
NAT = ("nat", "postrouting")

LISTING = """\
table ip filter {
	chain FORWARD {
		type filter hook forward priority filter; policy drop;
	}
	chain DOCKER {
	}
}
table inet firewalld {
	chain filter_FORWARD {
		type filter hook forward priority filter + 10; policy accept;
	}
	chain nat_POSTROUTING {
		type nat hook postrouting priority srcnat + 10; policy accept;
	}
}
table ip6 filter {
	chain FORWARD {
		type filter hook forward priority filter; policy drop;
	}
}
table bridge guard {
	chain forward {
		type filter hook forward priority filter; policy drop;
	}
}
table inet old {
	flags dormant
	chain fwd {
		type filter hook forward priority -10;
	}
}
"""


def test_base_chains_that_see_forwarded_ipv4_are_found() -> None:
    assert [str(chain) for chain in base_chains(LISTING) if sees_forwarded(chain, 4)] == [
        "ip filter FORWARD",
        "inet firewalld filter_FORWARD",
        "inet old fwd",
    ]
    assert list(base_chains("")) == []


def test_base_chains_that_see_forwarded_ipv6_are_those_of_its_own_tables() -> None:
    assert [str(chain) for chain in base_chains(LISTING) if sees_forwarded(chain, 6)] == [
        "inet firewalld filter_FORWARD",
        "ip6 filter FORWARD",
        "inet old fwd",
    ]


def test_base_chains_are_told_with_their_type_and_hook() -> None:
    translating = [str(chain) for chain in base_chains(LISTING) if (chain.type, chain.hook) == NAT]
    assert translating == ["inet firewalld nat_POSTROUTING"]


def chain(*rules: str, policy: str = "accept") -> str:
    lines = [f"type filter hook forward priority filter; policy {policy};", *rules]
    body = "".join(f"\t\t{line}\n" for line in lines)
    return f"table inet theirs {{\n\tchain forward {{\n{body}\t}}\n}}\n"


@pytest.mark.parametrize(
    ("listing", "expected"),
    [
        (chain(policy="drop"), True),
        (chain("ct state established,related accept", policy="drop"), True),
        (chain("ct state established accept", "reject with icmpx admin-prohibited"), True),
        (chain("counter drop"), True),
        (chain("counter packets 3 bytes 252 drop"), True),
        (chain('reject comment "the rest"'), True),
        (chain(), False),
        (chain("ct state invalid drop"), False),
        (chain('iifname "eth9" reject'), False),
        (chain("counter packets 3 bytes 252 ip saddr 10.0.0.1 drop"), False),
        (chain('log prefix "no: " level info drop'), True),
        (chain("drop", "accept"), False),
        ("", False),
    ],
)
def test_a_chain_refuses_by_its_policy_or_its_last_rule(listing: str, expected: bool) -> None:
    assert refuses(listing) is expected


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ('iifname "ovnet0" accept', True),
        ('oifname { "docker0", "ovnet0" } accept', True),
        ('iifname "ovnet*" accept', True),
        ("ip saddr 172.17.0.0/16 accept", True),
        ("ip saddr 172.17.4.0/24 accept", True),
        ("ip daddr { 10.0.0.0/8, 172.16.0.0/12 } accept", True),
        ("ip saddr 172.16.0.0-172.31.255.255 accept", True),
        ("ip saddr 0.0.0.0/0 accept", True),
        ('iifname "eth0" accept', False),
        ('iifname "*.ovnet0" accept', False),
        ("ip saddr 172.18.0.0/16 accept", False),
        ("ip saddr 10.0.0.1-10.0.0.9 accept", False),
        ('ip saddr 1.2.3.4 accept comment "as of 999.1.1.1"', False),
    ],
)
def test_a_table_that_has_a_word_about_us_has_thought_of_us(rule: str, expected: bool) -> None:
    assert names(chain(rule, policy="drop"), "ovnet0", NETWORK) is expected


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ('iifname "ovnet0" accept', True),
        ("ip6 saddr fd00:10::/48 accept", True),
        ("ip6 saddr fd00:10:0:4::/64 accept", True),
        ("ip6 daddr { 2001:db8::/32, fd00::/8 } accept", True),
        ("ip6 saddr fd00::-fd00:ffff:: accept", True),
        ("ip6 saddr ::/0 accept", True),
        ("ip6 saddr fd00:10:0:4::5 accept", True),
        ("ip6 saddr fd00:11::/48 accept", False),
        ("ip6 saddr ::1 accept", False),
        ("ip saddr 172.17.0.0/16 accept", False),
        ("ether saddr 02:42:ac:11:00:02 accept", False),
        ('ip6 saddr fd00:11::1 accept comment "at 12:30:00, by 1:2:3"', False),
    ],
)
def test_a_table_has_a_word_about_ipv6_of_ours_by_the_same_rules(rule: str, expected: bool) -> None:
    assert names(chain(rule, policy="drop"), "ovnet0", IPv6Network("fd00:10::/48")) is expected


def test_a_chain_is_named_as_nft_takes_it() -> None:
    assert str(Chain("inet", "theirs", "forward", "filter", "forward")) == "inet theirs forward"


@pytest.mark.parametrize(
    ("rule", "all_of_ours"),
    [
        ('iifname "ovnet0" drop', True),
        ('iifname "ovnet0" counter packets 3 bytes 252 drop comment "mine"', True),
        ("ip daddr 172.16.0.0/12 reject with icmp port-unreachable", True),
        ('iifname "ovnet0" tcp dport 25 drop', False),
        ("ip saddr 172.17.3.0/24 drop", False),
        ('iifname "eth7" drop', False),
        ("drop", False),
        ('iifname "ovnet0" accept', False),
    ],
)
def test_a_rule_that_drops_all_of_ours_is_told_from_a_policy(rule: str, all_of_ours: bool) -> None:
    listing = chain(rule)
    found = drops_all(listing, "ovnet0", NETWORK)
    assert bool(found) is all_of_ours
