"""With `--bypass=off` there are no programs: the kernel path itself refuses who is no peer.

    outside --+                              no peer
    b, c -----+-- underlay -- a -- ovnet0 -- one: the victim

Of whom the rules let in and nobody else, of who comes, goes and moves, and of what others do to our set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address

import pytest

from ctl.core.family import IPV4
from ctl.core.host import Change, Sender
from ctl.core.plan import Delta
from ctl.kernel.netlink.monitor import Monitor
from ctl.kernel.senders import Senders
from tests import packets
from tests.host import Host
from tests.lab import Lab, wait_until
from tests.netns.conftest import Pair, build
from tests.netns.test_firewall import HOST, PORT, TUNNEL, VNI, VTEP_MAC, Site, site
from tests.netns.test_source_check import DISGUISES, Attack, attack, evil, send
from tests.netns.test_xdp import streams

__all__ = ["attack", "evil", "site"]
"""Fixtures."""
SOON = 10
OUTSIDE, OTHER = IPv4Address("192.168.77.12"), IPv4Address("192.168.77.99")
OFF = ("--bypass", "off")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Pair]:
    with Lab() as made:
        yield build(made, *OFF)


def let_in(host: Host) -> set[str]:
    listing = host.run("nft", "list", "set", "ip", "ovnet", "senders", check=False).stdout
    return set(re.findall(r"\d+\.\d+\.\d+\.\d+", listing))


def admit(site: Site, *hosts: IPv4Address) -> bool:
    return site.ensure(replace(TUNNEL, senders=hosts))


def change(site: Site, *new: IPv4Address, gone: tuple[IPv4Address, ...] = ()) -> None:
    site.host.call(partial(Senders(IPV4).apply, Delta(tuple((host, True) for host in new), gone)))


def test_vxlan_is_taken_of_peers_only(site: Site) -> None:
    admit(site, OUTSIDE, OTHER)
    assert site.delivered(site.outside, HOST)
    change(site, gone=(OUTSIDE,))
    assert not site.delivered(site.outside, HOST)
    change(site, OUTSIDE, gone=(OTHER,))
    assert site.delivered(site.outside, HOST)
    assert site.host.call(Senders(IPV4).read) == {OUTSIDE: True}
    change(site, gone=(OTHER,))
    assert site.host.call(Senders(IPV4).read) == {OUTSIDE: True}, "who is gone already is no error"


def test_a_change_is_no_change_of_our_rules(site: Site) -> None:
    """Of which the agent would hear, and look at all of them for each peer that comes."""
    admit(site, OUTSIDE)
    heard: list[frozenset[Change]] = []
    monitor = site.host.call(lambda: Monitor(heard.append, lambda entry: entry == Sender(OTHER)))
    try:
        change(site, OTHER, gone=(OUTSIDE,))
        change(site, gone=(OTHER,))
        wait_until(lambda: heard, SOON, "it hears of who is wanted, and is not in any more")
    finally:
        monitor.close()
    assert set(heard) == {frozenset({Change.PEERS})}


def test_nobody_is_refused_as_long_as_nobody_knows_who_the_peers_are(site: Site) -> None:
    site.ensure()
    assert site.delivered(site.outside, HOST)
    assert "senders" not in site.listing()
    change(site, OTHER)
    assert site.delivered(site.outside, HOST), "a set without the rule, as beside an earlier version's"
    admit(site)
    assert not site.delivered(site.outside, HOST)


def test_a_strangers_other_vni_is_not_ours_to_judge(site: Site) -> None:
    """Another overlay's device on the same port, ours with a rule that refuses everyone."""
    admit(site)
    site.host.ip("link", "set", "tunnel", "down")
    site.host.ip("link", "add", "theirs", "address", VTEP_MAC, "type", "vxlan", "id", str(VNI + 1),
                 "dstport", str(PORT))  # fmt: skip
    site.host.ip("link", "set", "theirs", "up")
    assert site.delivered(site.outside, HOST, VNI + 1)
    assert not site.delivered(site.outside, HOST, VNI)


def test_rules_that_are_made_anew_let_all_peers_in(site: Site) -> None:
    admit(site, OUTSIDE)
    assert not admit(site, OUTSIDE, OTHER), "who is in is not the rules' business"
    site.host.nft("delete table ip ovnet")
    assert admit(site, OUTSIDE, OTHER)
    assert site.host.call(Senders(IPV4).read) == {OUTSIDE: True, OTHER: True}
    site.host.nft("delete rule ip ovnet vtep handle " + handle(site))
    assert admit(site, OUTSIDE)
    assert site.delivered(site.outside, HOST)
    assert site.host.call(Senders(IPV4).read) == {OUTSIDE: True}


def handle(site: Site) -> str:
    listing = site.host.run("nft", "-a", "list", "chain", "ip", "ovnet", "vtep").stdout
    (found,) = re.findall(r'"VXLAN of no peer" # handle (\d+)', listing)
    return str(found)


SEEN = {name: forged for name, (forged, _) in DISGUISES.items() if name != "first fragment"}
"""A fragment whose rest never comes shows up nowhere, and is counted by nobody."""


@pytest.mark.parametrize("disguise", SEEN.values(), ids=SEEN.keys())
def test_a_stranger_is_refused_in_any_disguise(attack: Attack, disguise: dict[str, object]) -> None:
    forged = replace(attack.true, host=IPv4Address(attack.pair.outside.address), **disguise)  # type: ignore[arg-type]
    assert attack.fate(attack.pair.outside, forged, attack.refused_by_rules) == "counted"


def test_a_stranger_in_outer_fragments_is_refused(attack: Attack) -> None:
    """The rule looks at what has been put together."""
    true = replace(attack.true, host=IPv4Address(attack.pair.outside.address))
    datagram, size = true.frame()[34:], 48
    pieces = ((datagram[:size], packets.MF), (datagram[size:], size // 8))

    before = attack.refused_by_rules()
    for data, at in pieces:
        packet = packets.ipv4(data, true.host, true.to, packets.UDP, fragment=at)
        send(attack.pair.outside, packets.ether(packet, *true.macs))
    wait_until(lambda: attack.refused_by_rules() > before, SOON, "it is counted")
    attack.send_true()


def test_status_and_metrics_tell_of_who_is_refused(attack: Attack) -> None:
    a = attack.pair.a
    forged = replace(attack.true, host=IPv4Address(attack.pair.outside.address))
    assert attack.fate(attack.pair.outside, forged, attack.refused_by_rules) == "counted"

    def said() -> bool:
        return any('"VXLAN of no peer" drops' in line for line in a.status()["warnings"])

    wait_until(said, SOON, lambda: str(a.status()["warnings"]))
    assert a.ovctl("status", check=False).returncode == 0, "a stranger at the door makes no node ill"
    metrics = a.http("http://127.0.0.1:9475/metrics")[1]
    (line,) = [line for line in metrics.splitlines() if 'rule="VXLAN of no peer"' in line]
    assert float(line.split()[-1]) >= 3


def test_vxlan_for_us_that_goes_astray_makes_the_node_unwell(attack: Attack) -> None:
    """It may be a peer's, whose packets come in another way than its lease says."""
    a, second = attack.pair.a, "192.168.77.201"
    a.ip("addr", "add", f"{second}/24", "dev", "eth0")
    forged = replace(attack.true, to=IPv4Address(second))
    assert attack.fate(attack.pair.outside, forged, attack.refused_by_rules) == "counted"

    def unwell() -> bool:
        done = a.ovctl("status", check=False)
        return done.returncode == 1 and "VXLAN not for the VTEP's address" in done.stderr

    wait_until(unwell, SOON, lambda: a.ovctl("status", check=False).stdout)
    a.ip("addr", "del", f"{second}/24", "dev", "eth0")


@pytest.mark.parametrize(
    "damage",
    ["flush set ip ovnet senders", "delete table ip ovnet", "flush ruleset", "flush chain ip ovnet vtep"],
)
def test_what_others_do_to_our_set_is_mended_and_costs_no_peer_a_packet(pair: Pair, damage: str) -> None:
    """But for the moment between a set that is emptied and our hearing of it."""
    a = pair.a
    before = let_in(a)
    assert before == {pair.b.address}

    def mended() -> bool:
        chain = a.run("nft", "list", "chain", "ip", "ovnet", "vtep", check=False).stdout
        return let_in(a) == before and "VXLAN of no peer" in chain

    if damage == "flush set ip ovnet senders":
        a.nft(damage)
        wait_until(mended, SOON, "it is mended")
        return
    with streams(pair):
        a.nft(damage)
        wait_until(mended, SOON, "it is mended")


def test_an_agent_that_starts_again_loses_no_packet_of_a_peer(pair: Pair) -> None:
    with streams(pair):
        pair.agents["a"].kill()
        assert let_in(pair.a) == {pair.b.address}, "the rules go on without an agent"
        pair.agents["a"] = pair.a.agent(*OFF)
    assert let_in(pair.a) == {pair.b.address}


def test_who_comes_is_let_in_who_moves_is_let_in_from_there_and_who_goes_is_not(pair: Pair) -> None:
    a, c = pair.a, pair.lab.host("c")
    old = c.address
    agent = c.agent(*OFF)
    wait_until(lambda: old in let_in(a), SOON, "a new peer is let in")
    assert c.reaches(a)
    agent.stop()
    c.ip("addr", "del", f"{old}/24", "dev", "eth0")
    c.ip("addr", "add", "192.168.77.77/24", "dev", "eth0")
    agent = c.agent(*OFF)
    wait_until(lambda: "192.168.77.77" in let_in(a), SOON, "it is let in from where it is now")
    agent.stop()
    for lease in a.json("lease", "list"):
        if lease["node"] == "c":
            a.ovctl("lease", "release", lease["subnet"])
    wait_until(lambda: let_in(a) == {pair.b.address}, SOON, lambda: f"it is let in no more: {let_in(a)}")
    c.teardown()
    assert "ovnet" not in c.run("nft", "list", "tables").stdout


def test_flannel_gets_a_host_back_whose_rules_refuse_nobody(lab: Lab) -> None:
    """Who is a peer is flanneld's to say then, and our rules stay until the second teardown."""
    host = lab.host("a")
    lab.init_network()
    host.agent(*OFF).stop()
    assert "VXLAN of no peer" in host.run("nft", "list", "chain", "ip", "ovnet", "vtep").stdout
    host.ovctl("teardown", "--to-flannel")
    assert "drop" not in host.run("nft", "list", "chain", "ip", "ovnet", "vtep").stdout
    host.teardown()
