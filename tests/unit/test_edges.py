"""Small edges of the agent that need no kernel: rules as text, messages, files, systemd."""

from __future__ import annotations

import argparse
import errno
import os
import re
import socket
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from pyroute2.netlink import NETLINK_NETFILTER
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from ctl.agent.mailbox import Mailbox
from ctl.backend.vxlan.device import vtep_mac
from ctl.core.errors import AgentError, ConfigError, KernelError
from ctl.core.host import EVERYTHING, Change, Devices, RouteKey
from ctl.core.model import IPv4Address, MacAddress
from ctl.kernel.bpf.source import source
from ctl.kernel.command import run
from ctl.kernel.firewall import ruleset
from ctl.kernel.netlink import monitor
from ctl.kernel.netlink.classify import POLICIES, Classifier, routes, rules
from ctl.kernel.netlink.message import body, message
from ctl.kernel.netlink.monitor import Monitor, hear
from ctl.kernel.netlink.tables import ROUTE_PROTOCOL
from ctl.process import statedir
from ctl.process.backoff import BackOff
from ctl.process.notify import notify, watchdog_seconds
from ctl.settings.config import resolve

NETWORK, OWN = IPv4Network("172.17.0.0/16"), IPv4Network("172.17.8.0/24")
VXLAN = 7


def test_masquerade_keeps_flannels_order() -> None:
    lines = [line.strip() for line in ruleset(NETWORK, OWN, masquerade=True).splitlines()]
    rules = [line.split(" comment")[0] for line in lines if line.startswith(("meta", "ip "))]
    assert rules == [
        "meta mark & 0x4000 == 0x4000 return",
        "ip saddr 172.17.8.0/24 ip daddr 172.17.0.0/16 return",
        "ip saddr 172.17.0.0/16 ip daddr 172.17.8.0/24 return",
        "ip saddr != 172.17.0.0/16 ip daddr 172.17.8.0/24 return",
        "ip saddr 172.17.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random",
        "ip saddr != 172.17.0.0/16 ip daddr 172.17.0.0/16 masquerade fully-random",
    ]


UPLINK, BRIDGE, NIC = 2, 3, 4
NEW, GONE = 28, 29
REACHABLE, STALE, FAILED = 2, 4, 32
WANTED = RouteKey(IPv4Network("172.17.9.0/24"), 109), IPv4Address("172.17.9.0"), MacAddress(b"\2peer.")


def classifier() -> Classifier:
    made = Classifier(lambda entry: entry in WANTED)
    made.devices = Devices(VXLAN, BRIDGE, UPLINK, frozenset({NIC}))
    return made


UP = 1
"""IFF_UP of linux/if.h."""


def link(ifindex: int, flags: int = 0, change: int = 0) -> bytes:
    return body(message(ifinfmsg, index=ifindex, flags=flags, change=change))


def route(protocol: int, third: int = 9, metric: int = 109, oif: int = 0) -> bytes:
    attributes = [("RTA_DST", f"172.17.{third}.0"), ("RTA_PRIORITY", metric)]
    attributes += [("RTA_OIF", oif)] if oif else []
    return body(message(rtmsg, attributes, family=2, dst_len=24, table=254, proto=protocol, type=1))


@pytest.mark.parametrize(
    ("kind", "content", "expected"),
    [
        (16, link(9), {Change.DEVICES, Change.PORTS}),
        (16, link(UPLINK), {Change.DEVICES, Change.PORTS, Change.HOPS, Change.PEERS}),
        (16, link(NIC), {Change.DEVICES, Change.PORTS, Change.HOPS, Change.PEERS}),
        (16, link(UPLINK, flags=UP), {Change.DEVICES, Change.PORTS, Change.HOPS}),
        (16, link(UPLINK, flags=UP, change=UP), {Change.DEVICES, Change.PORTS, Change.HOPS, Change.PEERS}),
        (17, link(NIC, flags=UP), {Change.DEVICES, Change.PORTS, Change.HOPS, Change.PEERS}),
        (16, link(VXLAN, flags=UP), {Change.DEVICES, Change.PORTS, Change.HOPS, Change.PEERS}),
        (17, link(VXLAN), {Change.DEVICES, Change.PORTS, Change.HOPS, Change.PEERS}),
        (20, b"", {Change.DEVICES, Change.HOPS}),
        (24, route(4), {Change.HOPS}),
        (25, route(2, oif=UPLINK), {Change.HOPS}),
        (25, route(2, oif=BRIDGE), {Change.HOPS, Change.DEVICES}),
        (24, route(ROUTE_PROTOCOL), set()),
        (25, route(ROUTE_PROTOCOL), {Change.PEERS}),
        (25, route(ROUTE_PROTOCOL, third=10), set()),
        (25, route(ROUTE_PROTOCOL, metric=0), set()),
        (44, bytes(20) + b"ovnet:from_wire:3\0", set()),
        (44, bytes(20) + b"someone\0", {Change.FILTERS}),
        (45, bytes(20) + b"ovnet:from_wire:3\0", {Change.FILTERS}),
        (99, b"", set()),
    ],
)
def test_kernel_messages_point_at_what_may_differ(kind: int, content: bytes, expected: set[Change]) -> None:
    assert classifier().classify(kind, content) == expected


def neighbour(
    ifindex: int,
    state: int = STALE,
    mac: bytes = b"",
    family: int = 2,
    address: str = "172.17.8.2",
    master: int = 0,
) -> bytes:
    known = [("NDA_DST", address if family == 2 else ""), ("NDA_LLADDR", str(MacAddress(mac)) if mac else "")]
    attributes: list[tuple[str, object]] = [(name, value) for name, value in known if value]
    attributes += [("NDA_MASTER", master)] if master else []
    return body(message(ndmsg, attributes, family=family, ifindex=ifindex, state=state, ndm_type=1))


def test_of_neighbours_only_what_is_new_counts() -> None:
    memory = classifier()
    one, two = b"\2one..", b"\2two.."
    story = [
        (NEW, neighbour(BRIDGE, STALE, one), {Change.PORTS}),
        (NEW, neighbour(BRIDGE, REACHABLE, one), set()),
        (NEW, neighbour(BRIDGE, STALE, two), {Change.PORTS}),
        (NEW, neighbour(BRIDGE, FAILED), {Change.PORTS}),
        (NEW, neighbour(BRIDGE, FAILED), set()),
        (GONE, neighbour(BRIDGE), set()),
        (NEW, neighbour(UPLINK, STALE, one), set()),
        (NEW, neighbour(5, STALE, one, family=7, master=BRIDGE), {Change.PORTS}),
        (GONE, neighbour(5, STALE, one, family=7, master=BRIDGE), {Change.PORTS}),
        (NEW, neighbour(5, STALE, one, family=7, master=8), set()),
        (NEW, neighbour(6, STALE, one, family=7), set()),
        (NEW, neighbour(VXLAN, 128, one), set()),
        (GONE, neighbour(VXLAN, 128, b"\2peer.", address="172.17.9.0"), {Change.PEERS}),
        (GONE, neighbour(VXLAN, 128, b"\2peer.", address="172.17.10.0"), set()),
        (GONE, neighbour(VXLAN, 128, b"\2peer.", family=7), {Change.PEERS}),
        (GONE, neighbour(VXLAN, 128, one, family=7), set()),
        (GONE, neighbour(VXLAN, FAILED, family=10), set()),
    ]
    for step, (kind, content, expected) in enumerate(story):
        assert memory.classify(kind, content) == expected, step


def test_neighbours_of_a_bridge_that_is_gone_are_forgotten() -> None:
    one = b"\2one.."
    memory = classifier()
    assert memory.classify(NEW, neighbour(BRIDGE, STALE, one)) == {Change.PORTS}
    memory.classify(17, link(UPLINK))
    assert memory.classify(NEW, neighbour(BRIDGE, STALE, one)) == set()
    memory.classify(17, link(BRIDGE))  # a new one may have its number
    assert memory.classify(NEW, neighbour(BRIDGE, STALE, one)) == {Change.PORTS}
    memory.devices = Devices(VXLAN, 8, UPLINK)
    assert memory.classify(NEW, neighbour(8, STALE, one)) == {Change.PORTS}
    memory.devices = Devices(VXLAN, BRIDGE, UPLINK)
    assert memory.classify(NEW, neighbour(BRIDGE, STALE, one)) == {Change.PORTS}


class Overflowed:
    """A socket that had no room for what it should have got."""

    def recv(self, _: int) -> bytes:
        raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))


def test_what_others_sockets_lose_says_nothing_of_links_routes_and_containers() -> None:
    """One that changes thousands of rules at a time (kube-proxy) overflows that of the rules."""
    assert hear(Overflowed(), rules(lambda _: True)) == {Change.FIREWALL}
    assert hear(Overflowed(), POLICIES) == {Change.HOPS}


def test_after_a_loss_all_neighbours_are_new() -> None:
    memory = classifier()
    event = neighbour(BRIDGE, STALE, b"\2one..")
    assert memory.classify(NEW, event) == {Change.PORTS}
    hear(Overflowed(), rules(lambda _: True))
    assert memory.classify(NEW, event) == set()
    assert hear(Overflowed(), routes(memory)) == EVERYTHING
    assert memory.classify(NEW, event) == {Change.PORTS}


def test_mailbox_hands_out_all_posts_together() -> None:
    box = Mailbox()
    box.post(frozenset({Change.PORTS}))
    box.post(frozenset({Change.PEERS, Change.LEASES}))
    assert box.take(0) == {Change.PORTS, Change.PEERS, Change.LEASES}
    assert box.take(0) == frozenset()


def test_what_has_arrived_at_a_mailbox_is_not_waited_for() -> None:
    box = Mailbox()
    assert box.arrived() == frozenset()
    box.post(frozenset({Change.PORTS}))
    box.post(frozenset({Change.PEERS}))
    assert box.arrived() == {Change.PORTS, Change.PEERS}
    assert box.arrived() == frozenset()


def test_who_waits_at_a_mailbox_is_woken_to_stop() -> None:
    box = Mailbox()
    assert not box.stopped
    box.stop()
    assert box.take(1e6) == frozenset()
    assert box.stopped


def test_everything_is_what_others_may_change() -> None:
    assert set(Change) - EVERYTHING == {Change.MAPS}, "new maps are our own doing"


def test_vtep_mac_is_stable_local_and_each_hosts_own() -> None:
    macs = {vtep_mac(IPv4Address(f"10.0.{i // 250}.{i % 250}"), 1) for i in range(5000)}
    assert len(macs) == 5000
    assert all(mac.is_unicast and mac.packed[0] & 2 for mac in macs)
    assert vtep_mac(IPv4Address("10.0.0.1"), 1) == vtep_mac(IPv4Address("10.0.0.1"), 1)
    assert vtep_mac(IPv4Address("10.0.0.1"), 1) != vtep_mac(IPv4Address("10.0.0.1"), 2)


def test_one_lock_for_a_state_directory(tmp_path: Path) -> None:
    place = tmp_path / "state"
    with statedir.Lock(place), pytest.raises(AgentError, match=f"pid {os.getpid()}.*--state-dir"):
        statedir.Lock(place)
    assert not place.exists(), "a start that came to nothing leaves nothing"


def test_a_full_disk_keeps_nobody_from_locking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with statedir.Lock(tmp_path), pytest.raises(AgentError, match=r"pid \?"):
        statedir.Lock(tmp_path)


def test_a_kept_lock_directory_stays(tmp_path: Path) -> None:
    place = tmp_path / "state"
    with statedir.Lock(place) as lock:
        lock.keep()
    assert (place / statedir.LOCK).exists()


def test_a_state_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--state-dir"):
        statedir.Lock(tmp_path / "file" / "state")


def test_files_are_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "subnet.env"
    old = os.umask(0o077)
    try:
        statedir.write_atomically(path, "one\n")
        statedir.write_atomically(path, "two\n")
    finally:
        os.umask(old)
    assert path.read_text() == "two\n"
    assert path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(path.parent) == ["subnet.env"]


def test_a_start_removes_what_killed_agents_left_half_written(tmp_path: Path) -> None:
    for name in (
        ".status.json.1",
        ".subnet.env.4194304",
        f".status.json.{os.getpid()}",
        ".theirs",
        "status.json",
    ):
        (tmp_path / name).write_text("half")
    with statedir.Lock(tmp_path) as lock:
        lock.keep()
    left = {".theirs", f".status.json.{os.getpid()}", "status.json", statedir.LOCK}
    assert set(os.listdir(tmp_path)) == left


def test_a_systemd_that_hangs_does_not_hang_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    monkeypatch.setattr("ctl.process.notify.PATIENCE_S", 0.01)
    datagrams = socket.AF_UNIX, socket.SOCK_DGRAM
    with socket.socket(*datagrams) as listener, socket.socket(*datagrams) as sender:
        listener.bind(path)
        sender.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                sender.sendto(b"WATCHDOG=1", path)
        notify("WATCHDOG=1")


def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify("READY=1")
        assert listener.recv(100) == b"READY=1"
    notify("READY=1")  # nobody listens any more: no harm
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    assert watchdog_seconds() == 15
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_seconds() is None


def test_the_source_is_whole_and_each_header_in_it_once() -> None:
    text = source()
    assert '#include "' not in text
    headers = [path.name for path in Path("bpf").glob("*.h")]
    for name in headers:
        assert text.count(f'#line 1 "bpf/{name}"') == 1, name


@pytest.mark.parametrize(("least", "most", "jitter"), [(0.5, 30.0, 0.25), (0.1, 5.0, 0.5)])
def test_waits_double_between_their_bounds_and_begin_anew(least: float, most: float, jitter: float) -> None:
    back_off = BackOff(least, most, jitter)
    for expected in (least, 2 * least, 4 * least):
        wait = back_off.failed(100.0)
        assert back_off.wait == expected
        assert (1 - jitter) * expected <= wait <= (1 + jitter) * expected
        assert back_off.left(100.0) == pytest.approx(wait)
    for _ in range(10):
        back_off.failed(0.0)
    assert back_off.wait == most
    back_off.succeeded()
    assert not back_off.pending
    back_off.failed(0.0)
    assert back_off.wait == least


def test_pointers_into_packets_are_made_and_compared_in_one_header() -> None:
    """What a compiler makes of comparisons elsewhere, some verifier refuses (see bpf/parse.h)."""
    for path in Path("bpf").glob("*.[ch]"):
        text = re.sub(r"\bcursor\((skb|xdp)->data\w*, (skb|xdp)->data\w*\)", "", path.read_text())
        assert not re.search(r"(skb|xdp)->data", text), path
        assert path.name == "parse.h" or not re.search(r"(->|\.)(pos|end)\b", text), path


def test_rules_of_others_may_say_what_they_like() -> None:
    """A comment in Latin-1 in FORWARD must not end the agent."""
    assert run("printf", r"-A FORWARD --comment \351t\351") == "-A FORWARD --comment \ufffdt\ufffd"


def test_the_service_may_open_what_as_many_containers_take_as_fit_the_map() -> None:
    """Of each port the agent keeps two links open, one a direction."""
    unit = (Path(__file__).parents[2] / "deploy" / "ovnet.service").read_text()
    limit = int(unit.partition("LimitNOFILE=")[2].split()[0])
    assert limit > 4 * resolve(argparse.Namespace(), {}, None).endpoints_max


def test_a_kernel_that_tells_of_no_rules_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def listen(family: int, _groups: object) -> socket.socket:
        if family == NETLINK_NETFILTER:
            raise OSError(errno.EPROTONOSUPPORT, os.strerror(errno.EPROTONOSUPPORT))
        return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    monkeypatch.setattr(monitor, "_listen", listen)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(KernelError, match="cannot hear of changes in the kernel: Protocol not supported"):
        Monitor(lambda _: None, lambda _: False)
    assert os.listdir("/proc/self/fd") == before
