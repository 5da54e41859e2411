"""A dual-stack network whose agents load the programs for IPv6: what they carry, and what becomes of it."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from ipaddress import IPv6Address

import pytest

from ctl.core.abi import Direction, Hook
from ctl.core.family import IPV6
from ctl.core.model import Lease, MacAddress
from ctl.core.reasons import labelled
from ctl.kernel.bpf.maps import family_root, open_maps
from ctl.store import open_store
from tests import packets
from tests.dual import Guest, guest, init_network, reaches, underlay, with_ipv6
from tests.host import METRICS_PORT, Agent, Host, started
from tests.lab import Lab
from tests.netns.test_following import listening
from tests.netns.test_resilience import agent_without_bcc
from tests.process import wait_until
from tests.stream import TcpSink, UdpStream, tcp_send

MEGABYTE = 1_000_000
SOON = 20.0
"""Seconds within which an agent notices and mends what it hears of."""


@dataclass
class Node:
    """A node of a dual-stack network, and a container of it."""

    host: Host
    guest: Guest
    agent: Agent

    def counts(self) -> Mapping[tuple[Hook, int], int]:
        """Packets by hook and reason, as the programs for IPv6 have counted them."""
        with open_maps(self.host.bpffs, IPV6) as maps:
            return {key: found.packets for key, found in maps.counters().items()}

    def count(self, hook: Hook, label: str) -> int:
        return self.counts().get((hook, labelled(label).number), 0)

    def approved(self, direction: Direction) -> set[tuple[str, str]]:
        """Ends of the IPv6 flows that may bypass."""
        with open_maps(self.host.bpffs, IPV6) as maps:
            return {(str(key.saddr), str(key.daddr)) for key in maps.flows() if key.direction is direction}

    def handed_over(self) -> dict[Hook, int]:
        """Programs that those for IPv4 hand IPv6 on to."""
        with open_maps(self.host.bpffs) as maps:
            return maps.handed_over()

    def serves(self) -> bool:
        """Whether eBPF can carry IPv6 of the container."""
        if Hook.FROM_WIRE not in self.handed_over():
            return False
        with open_maps(self.host.bpffs, IPV6) as maps:
            return IPv6Address(self.guest.address) in maps.endpoints() and bool(maps.peers())

    def start(self, *flags: str) -> None:
        """An agent, once the one before has ended, and IPv6 of the container by eBPF."""
        self.agent.stop()
        self.agent = self.host.agent(*flags)


@dataclass
class Duals:
    lab: Lab
    one: Node
    two: Node

    @property
    def both(self) -> tuple[Node, Node]:
        return self.one, self.two


def leases(host: Host) -> dict[str, Lease]:
    """By the node's name."""

    def read() -> dict[str, Lease]:
        with closing(open_store(host.lab.store_url)) as store:
            return {each.node: each for each in store.snapshot(fresh=True).leases}

    return host.call(read)


def served(duals: Duals) -> None:
    """Wait until a flow between the containers can bypass from its first packets on."""
    reaches(duals.one.guest.place, duals.two.guest.address)
    for node in duals.both:
        wait_until(node.serves, SOON, f"{node.host.name} serves IPv6 of its container")


@pytest.fixture(scope="module")
def made() -> Iterator[Duals]:
    with ExitStack() as undone:
        lab = undone.enter_context(Lab())
        hosts = [with_ipv6(lab.host(name)) for name in "ab"]
        init_network(hosts[0])
        agents = started(hosts)
        held = leases(hosts[0])
        nodes = [Node(host, guest(host, held[host.name]), agents[host.name]) for host in hosts]
        yield Duals(lab, *nodes)


@pytest.fixture
def duals(made: Duals) -> Iterator[Duals]:
    """As it begins: both agents run, with the gear that is the default."""
    served(made)
    yield made
    for node in made.both:
        node.guest.place.stop_processes()


@pytest.mark.parametrize("turn", ["there", "back"])
def test_tcp_is_bypassed_in_both_directions(duals: Duals, turn: str) -> None:
    one, two = duals.both if turn == "there" else duals.both[::-1]
    before = one.count(Hook.FROM_CONTAINER, "encap"), two.count(Hook.FROM_WIRE, "decap")
    acknowledged = two.count(Hook.FROM_CONTAINER, "encap")
    sink = TcpSink(two.guest.place, address=two.guest.address)
    said = tcp_send(one.guest.place, two.guest.address, 20 * MEGABYTE)
    assert said["seen_as"] == one.guest.address
    assert one.count(Hook.FROM_CONTAINER, "encap") - before[0] > 20 * MEGABYTE / 1430 / 2
    assert two.count(Hook.FROM_WIRE, "decap") > before[1]
    ends = (one.guest.address, two.guest.address)
    assert ends in one.approved(Direction.OUT) and ends in two.approved(Direction.IN)
    assert two.count(Hook.FROM_CONTAINER, "encap") > acknowledged
    sink.stop()


def test_udp_is_bypassed_once_it_was_answered_and_its_first_packets_take_the_tunnel_gear(
    duals: Duals,
) -> None:
    one, two = duals.both
    geared = one.count(Hook.TUNNEL_OUT, "tunnel_encap"), two.count(Hook.TUNNEL_IN, "tunnel_decap")
    stream = UdpStream(one.guest.place, two.guest.place, two.guest.address, echo=10)
    stream.advance(1)
    before = one.count(Hook.FROM_CONTAINER, "encap"), two.count(Hook.FROM_WIRE, "decap")
    stream.advance(1)
    sent, tally = stream.finish()
    assert (tally.received, tally.lost, tally.sources) == (sent, 0, (one.guest.address,))
    assert one.count(Hook.FROM_CONTAINER, "encap") - before[0] > 900
    assert two.count(Hook.FROM_WIRE, "decap") - before[1] > 900
    assert one.count(Hook.TUNNEL_OUT, "tunnel_encap") > geared[0]
    assert two.count(Hook.TUNNEL_IN, "tunnel_decap") > geared[1]


def test_what_looks_into_the_datapath_shows_both_families(duals: Duals) -> None:
    one, two = duals.both
    ends = (one.guest.address, two.guest.address)
    stream = UdpStream(one.guest.place, two.guest.place, two.guest.address, echo=10)
    stream.advance(0.5)
    with listening(one.host, "monitor", "--container", ends[0], "--count", "20", "-o", "json") as monitor:
        stream.advance(0.5)
    stream.finish()
    seen = [json.loads(line) for line in monitor.out().splitlines()]
    assert {(each["inner"]["src"], each["inner"]["dst"]) for each in seen} <= {ends, ends[::-1]}
    assert {each["reason"] for each in seen} & {"encap", "decap"}
    assert one.host.status()["peers_ipv6_ebpf"] == 1
    shown = json.loads(one.host.ovctl("status", "-o", "json").stdout)["datapath"]
    assert shown["maps"]["ipv6_peers"]["entries"] == 1
    assert shown["gears"]["out"]["bypass"]["packets"] >= one.count(Hook.FROM_CONTAINER, "encap") > 0
    subnets = [each["subnet"] for each in one.host.json("map", "dump", "peers")]
    assert [":" in each for each in subnets] == [False, True]
    hops = one.host.json("trace", *ends, "--proto", "udp")
    assert [(hop["hop"], hop["by"], hop["fate"]) for hop in hops[:2]] == [
        ("container", "", "on"), ("program", "ebpf", "on"),
    ]  # fmt: skip
    assert hops[-1]["hop"] == "peer" and hops[-1]["fate"] == "on"
    assert one.host.json("map", "diff") == []
    text = one.host.http(f"http://127.0.0.1:{METRICS_PORT}/metrics")[1]
    assert 'ovnet_map_entries{map="ipv6_peers"} 1.0' in text
    assert f'ovnet_peer_transmit_packets_total{{peer="{underlay(two.host)}"}}' in text
    assert not [each for each in one.host.json("doctor", "--no-probe") if each["level"] == "failure"]


def test_a_stranger_cannot_speak_for_a_peers_container(duals: Duals) -> None:
    one, two = duals.both
    stranger = with_ipv6(duals.lab.outside("stranger"))
    source, target = IPv6Address(one.guest.address), IPv6Address(two.guest.address)
    packet = packets.ip(packets.udp(b"forged", 1000, 2000), source, target, packets.UDP)
    mac = MacAddress.parse("02:00:00:00:00:01")
    data = packets.vxlan(packets.ether(packet, mac, mac, packets.IPV6), 1)
    before = two.count(Hook.FROM_WIRE, "unknown_vtep")

    def send() -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as plain:
            plain.sendto(data, (underlay(two.host), 8472))

    stranger.call(send)
    wait_until(
        lambda: two.count(Hook.FROM_WIRE, "unknown_vtep") == before + 1, 5, "it is refused by from_wire"
    )


@pytest.mark.parametrize("end", ["killed", "stopped"])
def test_an_agent_that_ends_and_comes_back_costs_no_packet_of_ipv6(duals: Duals, end: str) -> None:
    one, two = duals.both
    stream = UdpStream(one.guest.place, two.guest.place, two.guest.address, echo=10)
    stream.advance(0.5)
    for node in duals.both:
        handed = node.handed_over()
        if end == "killed":
            node.agent.kill(signal.SIGKILL)
            node.agent.wait(10)
        else:
            node.agent.stop()
        before = two.count(Hook.FROM_WIRE, "decap")
        stream.advance(0.5)
        assert two.count(Hook.FROM_WIRE, "decap") > before, "nobody is needed for it"
        node.agent = node.host.agent()
        stream.advance(0.5)
        assert node.handed_over() == handed, "what is there is adopted"
    sent, tally = stream.finish()
    assert (tally.received, tally.lost) == (sent, 0)


@pytest.mark.parametrize(
    ("flags", "hook", "label"),
    [
        ("--bypass=tunnel", Hook.TUNNEL_IN, "tunnel_decap"),
        ("--bypass=always", Hook.FROM_WIRE, "decap"),
        ("--hook=xdp", Hook.FROM_WIRE_XDP, "decap"),
    ],
)
def test_ipv6_goes_by_the_gear_and_the_hook_that_are_chosen(
    duals: Duals, flags: str, hook: Hook, label: str
) -> None:
    one, two = duals.both
    one.start(flags)
    try:
        served(duals)
        before = one.count(hook, label)
        stream = UdpStream(two.guest.place, one.guest.place, one.guest.address, echo=10)
        stream.advance(1)
        assert stream.finish()[1].lost == 0
        assert one.count(hook, label) - before >= 900
    finally:
        one.start()


def test_without_programs_for_ipv6_ipv4_has_all_that_it_had(duals: Duals) -> None:
    """No compiler, and IPv6's programs are gone; those for IPv4 are there to be adopted."""
    one, two = duals.both
    one.agent.stop()
    for pin in family_root(one.host.bpffs, IPV6).glob("v*/progs-*/*"):
        pin.unlink()
    try:
        one.agent = agent_without_bcc(one.host)
        one.agent.wait_ready()
        assert not one.handed_over()
        (line,) = [line for line in one.host.status()["problems"] if "IPv6" in line]
        assert "kernel path" in line and "bcc" in line.lower()
        reaches(one.guest.place, two.guest.address)
    finally:
        one.start()


def test_a_node_that_goes_back_to_ipv4_keeps_nothing_of_ipv6_and_teardown_leaves_nothing_of_either(
    made: Duals,
) -> None:
    host = with_ipv6(made.lab.host("c"))
    root = family_root(host.bpffs, IPV6)
    agent = host.agent()
    try:
        assert list(root.glob("v*/maps/*")) and list(root.glob("v*/progs-*/*"))
        agent.stop()
        init_network(host, ipv6=False)
        agent = host.agent()
        assert not root.exists()
        with open_maps(host.bpffs) as maps:
            assert not maps.handed_over()
        agent.stop()
        init_network(host)
        agent = host.agent()
        assert root.exists()
        agent.stop()
        host.teardown()
        assert not host.bpffs.exists()
        assert not [each for each in host.hooks() if each.ours]
        assert not [each for each in json.loads(host.ip("-json", "link")) if "ovnet" in each["ifname"]]
    finally:
        init_network(host)
        agent.stop()
