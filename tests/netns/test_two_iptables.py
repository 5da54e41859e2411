"""iptables of both kinds, and others' nftables chains: what drops what is ours is undone, or named."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from ctl.core.base_chains import base_chains
from ctl.kernel import firewall, forward, iptables
from ctl.kernel.firewall import Firewall
from tests.host import Host
from tests.lab import Lab
from tests.namespace import Namespace

NETWORK, OWN, BRIDGE = IPv4Network("172.17.0.0/16"), IPv4Network("172.17.8.0/24"), "ovnet0"
OURS = [
    "-N OVNET-FWD",
    "-A OVNET-FWD -s 172.17.0.0/16 -j ACCEPT",
    "-A OVNET-FWD -d 172.17.0.0/16 -j ACCEPT",
]
JUMP = "-A FORWARD -j OVNET-FWD"


@pytest.fixture
def place() -> Iterator[Namespace]:
    with Lab() as lab:
        yield lab.namespace("host")


def rules(place: Namespace, tool: str, chain: str) -> list[str]:
    return place.run(tool, "-S", chain, check=False).stdout.splitlines()


def ensure(place: Namespace, rules: Firewall) -> bool:
    return place.call(lambda: rules.ensure(NETWORK, OWN, masquerade=True, bridge=BRIDGE))


def named(place: Namespace) -> tuple[str, ...]:
    listing = place.run("nft", "list", "chains").stdout
    return place.call(lambda: forward.refusing(base_chains(listing), NETWORK, BRIDGE))


@pytest.mark.parametrize("other", ["iptables-legacy", "iptables-nft"])
def test_a_policy_of_either_kind_is_undone_and_left_as_it_was(place: Namespace, other: str) -> None:
    place.run(other, "-P", "FORWARD", "DROP")
    mine = Firewall()
    assert ensure(place, mine) is True
    assert rules(place, other, "OVNET-FWD") == OURS
    assert rules(place, other, "FORWARD") == ["-P FORWARD DROP", JUMP]
    assert ensure(place, mine) is False
    assert (mine.unseen, named(place)) == ((), ())
    place.run(other, "-F", "FORWARD")
    assert ensure(place, mine) is True
    assert JUMP in rules(place, other, "FORWARD")
    place.call(firewall.remove)
    assert rules(place, other, "FORWARD") == ["-P FORWARD DROP"]
    assert rules(place, other, "OVNET-FWD") == []


def test_a_kind_that_nobody_uses_is_not_made(place: Namespace) -> None:
    """To ask legacy's tool would be enough to have its tables, through which each packet goes."""
    ensure(place, Firewall())
    place.call(firewall.remove)
    assert place.call(iptables.legacy_in_use) is False


def test_rules_that_cannot_be_looked_at_are_named(
    place: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Legacy's tool wants more of the process than nft: CAP_NET_RAW, and to write its lock."""
    place.run("iptables-legacy", "-P", "FORWARD", "DROP")
    tool = tmp_path / "iptables-legacy"
    tool.write_text("#!/bin/sh\necho 'iptables: Permission denied (you must be root)' >&2\nexit 3\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/sbin:/usr/bin")
    mine = Firewall()
    assert ensure(place, mine) is True
    (line,) = mine.unseen
    assert "Permission denied (you must be root)" in line
    assert "iptables-legacy -A FORWARD -s 172.17.0.0/16 -j ACCEPT" in line
    assert rules(place, "iptables-nft", "OVNET-FWD") == OURS, "the other kind has its rules all the same"
    place.call(firewall.remove)


def test_where_iptables_is_legacy_both_kinds_are_looked_at(
    place: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.run("iptables-nft", "-P", "FORWARD", "DROP")
    for name in ("iptables", "iptables-restore"):
        (tmp_path / name).symlink_to("/usr/sbin/xtables-legacy-multi")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/sbin:/usr/bin")
    mine = Firewall()
    assert ensure(place, mine) is True
    assert rules(place, "iptables-legacy", "OVNET-FWD") == OURS, "whoever comes later finds it there"
    assert rules(place, "iptables-nft", "OVNET-FWD") == OURS
    assert (mine.unseen, ensure(place, mine)) == ((), False)
    place.call(firewall.remove)
    assert rules(place, "iptables-nft", "OVNET-FWD") == rules(place, "iptables-legacy", "OVNET-FWD") == []


FIREWALLD = """
table inet firewalld {
	chain filter_FORWARD {
		type filter hook forward priority filter + 10; policy accept;
		ct state { established, related } accept
		ct status dnat accept
		iifname "lo" accept
		jump zones
		reject with icmpx admin-prohibited
	}
	chain zones {
	}
}
"""
STRICT = """
table inet host {
	chain strict {
		type filter hook forward priority 0; policy drop;
		tcp dport 22 accept
	}
}
"""


@pytest.mark.parametrize(
    ("rules_", "chain", "remedy", "mend"),
    [
        (FIREWALLD, "inet firewalld filter_FORWARD", "firewall-cmd --permanent --zone=trusted",
         'add rule inet firewalld zones iifname "ovnet0" accept'),
        (STRICT, "inet host strict", "nft insert rule inet host strict ip saddr 172.17.0.0/16 accept",
         "insert rule inet host strict ip saddr 172.16.0.0/12 accept"),
    ],
)  # fmt: skip
def test_a_chain_that_drops_what_is_ours_is_named_until_it_knows_us(
    place: Namespace, rules_: str, chain: str, remedy: str, mend: str
) -> None:
    ensure(place, Firewall())
    assert named(place) == ()
    place.nft(rules_)
    (line,) = named(place)
    assert chain in line and remedy in line
    place.nft(mend)
    assert named(place) == ()


def test_docker_s_policy_is_not_named_beside_our_accept(place: Namespace) -> None:
    place.run("iptables-nft", "-P", "FORWARD", "DROP")
    assert [line.split(" drops")[0] for line in named(place)] == ["the nftables chain ip filter FORWARD"]
    ensure(place, Firewall())
    assert named(place) == ()


def test_status_names_what_drops_and_containers_are_reached_past_legacys_policy(lab: Lab) -> None:
    a, b = lab.host("a"), lab.host("b")
    lab.init_network()
    for host in (a, b):
        host.run("iptables-legacy", "-P", "FORWARD", "DROP")
    b.nft(STRICT)
    for host in (a, b):
        host.agent()
    assert "inet host strict" in problems(b)
    assert b.ovctl("status", check=False).returncode == 1
    assert problems(a) == ""
    b.nft("delete table inet host")
    one, two = a.container("one"), b.container("two")
    one.run("ping", "-c3", "-i0.2", "-W5", two.address)


def problems(host: Host) -> str:
    return "\n".join(host.status()["problems"])
