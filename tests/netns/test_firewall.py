"""The rules of our table: what they stop, and that they are there again when someone removes them.

    guest: eth0 --- inner0: host :eth0 --- eth0: outside

`host` has a vxlan device; a UDP socket behind it shows what gets in.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv4Network

import pytest

from ctl.core.errors import KernelError
from ctl.kernel import command, firewall
from ctl.kernel.firewall import Firewall, Tunnel
from tests.lab import Lab
from tests.namespace import Namespace
from tests.process import wait_until

NETWORK, OWN = IPv4Network("172.17.0.0/16"), IPv4Network("172.17.8.0/24")
VNI, PORT, SINK = 7, 8472, 5555
HOST, GATEWAY, INSIDE = "192.168.77.11", "172.17.8.1", "172.17.8.0"
TUNNEL = Tunnel(PORT, VNI, "eth0", IPv4Address(HOST), "tunnel")
VTEP_MAC = "02:00:00:00:00:11"


@dataclass
class Site:
    """Three namespaces, and the rules of one of them."""

    host: Namespace
    guest: Namespace
    outside: Namespace
    rules: Firewall
    sink: socket.socket

    def ensure(self, tunnel: Tunnel | None = TUNNEL) -> bool:
        return self.host.call(
            lambda: self.rules.ensure(NETWORK, OWN, masquerade=True, tunnel=tunnel, bridge="inner0")
        )

    def listing(self) -> str:
        return self.host.run("nft", "-s", "list", "table", "ip", "ovnet", check=False).stdout

    def chain(self) -> list[str]:
        return self.host.run("iptables", "-S", "OVNET-FWD").stdout.splitlines()

    def delivered(self, sender: Namespace, to: str, vni: int = VNI) -> bool:
        """Whether a VXLAN packet sent to `to` comes out of the host's vxlan device, or is dropped."""
        before = self.dropped()
        sender.call(partial(send, vxlan(vni), to, PORT))
        fate = wait_until(
            lambda: self.received() or (self.dropped() > before and "dropped"),
            10,
            "the packet's fate is known",
        )
        return fate == "received"

    def received(self) -> str:
        try:
            assert self.sink.recv(100) == b"injected"
        except BlockingIOError:
            return ""
        return "received"

    def dropped(self) -> int:
        listing = self.host.run("nft", "list", "table", "ip", "ovnet", check=False).stdout
        return sum(map(int, re.findall(r"counter packets (\d+)", listing)))


def send(data: bytes, to: str, port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(data, (to, port))


def vxlan(vni: int) -> bytes:
    from scapy.layers.inet import IP, UDP
    from scapy.layers.l2 import Ether

    inner = Ether(src="02:00:00:00:00:12", dst=VTEP_MAC) / IP(src="172.17.9.2", dst=GATEWAY)
    return struct.pack("!II", 0x08000000, vni << 8) + bytes(
        inner / UDP(sport=1, dport=SINK, chksum=0) / b"injected"
    )


def cable(one: Namespace, name: str, other: Namespace, far: str, address: str) -> None:
    """A veth pair; its far end, `eth0` or so, gets the address."""
    one.ip("link", "add", name, "type", "veth", "peer", "name", far, "netns", other.netns)
    other.ip("addr", "add", address, "dev", far)
    one.ip("link", "set", name, "up")
    other.ip("link", "set", far, "up")


@pytest.fixture
def site() -> Iterator[Site]:
    with Lab() as lab:
        host, guest, outside = (lab.namespace(name) for name in ("host", "guest", "outside"))
        host.ip("link", "add", "name", "inner0", "type", "bridge")
        host.ip("addr", "add", f"{GATEWAY}/24", "dev", "inner0")
        host.ip("link", "set", "inner0", "up")
        cable(host, "port", guest, "eth0", "172.17.8.2/24")
        host.ip("link", "set", "port", "master", "inner0")
        guest.ip("route", "add", "default", "via", GATEWAY)
        cable(outside, "eth0", host, "eth0", f"{HOST}/24")
        outside.ip("addr", "add", "192.168.77.12/24", "dev", "eth0")
        outside.ip("route", "add", INSIDE + "/24", "via", HOST)
        host.ip("link", "add", "tunnel", "address", VTEP_MAC, "type", "vxlan", "id", str(VNI), "dstport",
                str(PORT), "local", HOST, "dev", "eth0")  # fmt: skip
        host.ip("addr", "add", f"{INSIDE}/32", "dev", "tunnel")
        host.ip("link", "set", "tunnel", "up")
        host.ip("route", "add", "172.17.9.0/24", "dev", "tunnel")
        wait_until(lambda: "lladdr" in neighbour(guest), 10, "guest knows its gateway")
        host.settle()
        with host.call(listener) as sink:
            yield Site(host, guest, outside, Firewall(), sink)


def neighbour(guest: Namespace) -> str:
    guest.run("ping", "-c1", "-W1", GATEWAY, check=False)
    return guest.ip("neigh", "show", GATEWAY)


def listener() -> socket.socket:
    sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sink.bind((GATEWAY, SINK))
    sink.setblocking(False)
    return sink


def test_vxlan_is_taken_from_the_underlay_only(site: Site) -> None:
    assert site.ensure(tunnel=None) is True
    for sender, to in ((site.guest, HOST), (site.guest, GATEWAY), (site.outside, GATEWAY), (site.host, HOST)):
        assert site.delivered(sender, to), "without the rules it gets in"
    assert site.ensure() is True
    assert site.delivered(site.outside, HOST)
    assert not site.delivered(site.guest, HOST)
    assert not site.delivered(site.guest, GATEWAY)
    assert not site.delivered(site.host, HOST)
    assert not site.delivered(site.outside, GATEWAY)
    assert site.delivered(site.outside, HOST)


def test_vxlan_of_another_vni_is_not_ours_to_stop(site: Site) -> None:
    site.ensure()
    other = str(VNI + 1)
    site.host.ip("link", "set", "tunnel", "down")
    site.host.ip(
        "link", "add", "theirs", "address", VTEP_MAC, "type", "vxlan", "id", other, "dstport", str(PORT)
    )
    site.host.ip("link", "set", "theirs", "up")
    assert site.delivered(site.guest, HOST, VNI + 1)


def test_rules_that_are_in_place_are_left_alone(site: Site) -> None:
    assert site.ensure() is True
    before = site.listing()
    assert not site.delivered(site.guest, HOST), "so that there is a count"
    assert site.ensure() is False
    assert site.listing() == before
    assert site.ensure(Tunnel(PORT, VNI + 1, "eth0", TUNNEL.host, TUNNEL.device)) is True
    assert site.listing() != before
    assert site.ensure(tunnel=None) is True
    assert "vtep" not in site.listing()


@pytest.mark.parametrize(
    "damage",
    [
        "flush table ip ovnet",
        "delete table ip ovnet",
        "flush chain ip ovnet vtep",
        "insert rule ip ovnet vtep accept",
        "insert rule ip ovnet postrouting return",
        "flush ruleset",
    ],
)
def test_what_others_changed_is_mended(site: Site, damage: str) -> None:
    site.ensure()
    before = site.listing()
    site.host.nft(damage)
    assert site.listing() != before
    assert site.ensure() is True
    assert site.listing() == before
    assert site.ensure() is False
    # By an agent that knows nothing of it, too.
    site.host.nft(damage)
    site.rules = Firewall()
    site.ensure()
    assert site.listing() == before


def test_a_drop_between_containers_of_the_bridge_is_not_forestalled(site: Site) -> None:
    """Dockerd --icc=false appends its rule, so behind our jump if the agent was first."""
    site.ensure()
    rule = ("FORWARD", "-i", "inner0", "-o", "inner0", "-j", "DROP")
    accepts = [f"-A OVNET-FWD -{side} {NETWORK} -j ACCEPT" for side in "sd"]
    site.host.run("iptables", "-A", *rule)
    assert site.ensure() is True
    assert site.chain() == ["-N OVNET-FWD", "-A OVNET-FWD -i inner0 -o inner0 -j RETURN", *accepts]
    assert site.ensure() is False
    site.host.run("iptables", "-D", *rule)
    assert site.ensure() is True
    assert site.chain() == ["-N OVNET-FWD", *accepts]


def test_our_rules_go_and_no_others(site: Site) -> None:
    site.host.nft("table ip theirs { }")
    site.ensure()
    assert site.host.call(firewall.remove) is True
    assert site.host.run("nft", "list", "tables").stdout == "table ip theirs\n"
    assert site.host.call(firewall.remove) is False


def test_without_nftables_it_says_so(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(command, "_SBIN", ())
    with pytest.raises(KernelError, match="nft is not installed: install nftables"):
        Firewall().ensure(NETWORK, OWN, masquerade=True)
    assert firewall.remove() is False
