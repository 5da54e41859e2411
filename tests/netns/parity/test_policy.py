"""Policy routing of the packets between hosts: they leave by the interface that the kernel path takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Final

import pytest

from ctl.core.model import MacAddress
from tests.netns.parity.capture import Shot, Tap
from tests.netns.parity.rows import Ends, udp
from tests.netns.parity.site import Site, not_ours, one_cpu
from tests.netns.parity.test_uplinks import NIC, SOON, VIA_NIC, second_uplink, tunnels
from tests.process import wait_until

FLOWS: Final = 12
FIRST: Final = 28000
PEER: Final = "192.168.77.12"
MARKED: Final = "udp sport 28000-28999 meta mark set 0x80"
RULES: Final = {
    "to the peer": (f"to {PEER}", "", "eBPF"),
    "from our address": ("from 192.168.77.11", "", "eBPF"),
    "by the VXLAN port": ("ipproto udp dport 8472", "", "eBPF"),
    "by all source ports": ("ipproto udp sport 1024-65534", "", "eBPF"),
    "by the kernel's user": ("uidrange 0-0", "", "eBPF"),
    "by another mark than theirs": ("not fwmark 0xca6c", "", "eBPF"),
    "by TOS, which is the inner packet's": ("tos 0x10", "", "eBPF"),
    "by the containers' bridge, where only inner packets come in": ("iif ovnet0", "", "eBPF"),
    "by TCP": ("ipproto tcp", "", "eBPF"),
    "by a mark, which they do not have": ("fwmark 0x80/0x80", "", "eBPF"),
    "by a mark, which they have": ("fwmark 0x80/0x80", MARKED, "policy_routed"),
    "by a mark, and they have another": ("fwmark 0x100/0xf00", MARKED, "eBPF"),
}
"""Rules of node a that lead to its second uplink, what its netfilter does to containers' packets, and by
what they are carried, or why not by eBPF."""


@contextmanager
def ruled(site: Site, words: str, statement: str) -> Iterator[None]:
    """Node a has such a rule, its containers' packets meet such a statement, and its agent has followed."""
    a = site.a
    route = (f"{site.b.address}/32", "via", VIA_NIC[0], "dev", NIC, "src", a.address)
    a.ip("route", "add", *route, "table", "100")
    a.ip("rule", "add", *words.split(), "lookup", "100", "pref", "100")
    chain = "chain pre { type filter hook prerouting priority mangle; "
    a.nft(f"table ip marks {{ {chain}{statement}; }}; }}")
    try:
        wait_until(lambda: follows(site), SOON, "the agent follows")
        yield
    finally:
        a.nft("delete table ip marks")
        a.ip("rule", "del", "pref", "100")
        a.ip("route", "del", *route, "table", "100")
        wait_until(lambda: follows(site), SOON, "the agent follows")


def follows(site: Site) -> bool:
    """Whether node a's programs send where its kernel would, a packet without a mark; and know which marks
    rules look at. Where there are no programs, nobody needs to.
    """
    if "off" in site.flags:
        return True
    way = site.a.ip(
        "route",
        "get",
        site.b.address,
        "from",
        site.a.address,
        "ipproto",
        "udp",
        "sport",
        "40000",
        "dport",
        "8472",
    )
    (row,) = site.a.json("map", "dump", "peers")
    node = site.maps["a"].node()
    asked = "fwmark 0x80/0x80" in site.a.ip("rule")
    return (
        row["dev"] == (NIC if f"dev {NIC}" in way else "eth0")
        and node is not None
        and (not asked or node.routing_marks == 0x80)
    )


def shoot_all(site: Site, first: int) -> None:
    """A datagram of each of several flows; returns when all have come into container two."""
    came: list[bytes] = []

    def all_there() -> bool:
        came.extend(frame for out, frame in site.at_two.frames() if not out and not_ours(frame))
        return len(came) >= FLOWS

    src, dst = site.addresses()
    site.at_two.frames()
    with one_cpu():
        for port in range(first, first + FLOWS):
            for shot in udp()(Ends(src, dst, MacAddress.parse(site.one.mac), site.gateway, port)):
                site.at_one.send(Shot(shot.frame))
    wait_until(all_there, SOON, lambda: f"{FLOWS} arrive, not {len(came)}")


def where(site: Site, words: str, statement: str, first: int) -> tuple[Counter[str], Counter[str]]:
    """How many left by each interface, and why, when the flows are approved."""
    with (
        second_uplink(site) as at_nic,
        closing(Tap(site.lab.wire, "a")) as at_eth,
        ruled(site, words, statement),
    ):
        for turn in range(3):
            before = site.counters()["a", "from_container"]
            at_nic.frames(), at_eth.frames()
            shoot_all(site, first)
            counted = site.counters()["a", "from_container"] - before
            on = Counter({NIC: len(list(tunnels(at_nic))), "eth0": len(list(tunnels(at_eth)))})
            if turn and not counted["flow_expired"]:
                break
        return +on, counted


@pytest.mark.parametrize("rule", RULES)
def test_packets_leave_by_the_interface_that_rules_lead_to(kernel: Site, learned: Site, rule: str) -> None:
    words, statement, way = RULES[rule]
    first = FIRST + FLOWS * list(RULES).index(rule)
    by_kernel, _ = where(kernel, words, statement, first)
    assert len(by_kernel) == 1, "all by one of them"
    assert by_kernel.total() == FLOWS
    by_both, counted = where(learned, words, statement, first)
    assert by_both == by_kernel
    assert counted["encap" if way == "eBPF" else way] == FLOWS


def test_source_ports_that_lead_several_ways_leave_the_peer_to_the_kernel_path(learned: Site) -> None:
    with second_uplink(learned):
        a = learned.a
        a.ip("route", "add", f"{learned.b.address}/32", "via", VIA_NIC[0], "dev", NIC, "table", "100")
        a.ip("rule", "add", "ipproto", "udp", "sport", "40000-50000", "lookup", "100", "pref", "100")

        def flags() -> list[str]:
            (row,) = a.json("map", "dump", "peers")
            found: list[str] = row["flags"]
            return found

        try:
            wait_until(lambda: flags() == ["kernel-path"], SOON, "the agent follows")
            assert [line for line in a.status()["warnings"] if "ip rules look at source ports" in line]
        finally:
            a.ip("rule", "del", "pref", "100")
            a.ip("route", "del", f"{learned.b.address}/32", "table", "100")
            wait_until(lambda: flags() == [], SOON, "the agent follows")
        assert not [line for line in a.status()["warnings"] if "ip rules" in line]
