"""ovctl on real pinned maps, without any agent."""

from __future__ import annotations

import fcntl
import json
import os
import re
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, TextIO

import pytest

from ctl.cli.main import main
from ctl.core import abi
from ctl.core.abi import Direction, EndpointEntry, FlowEntry, FlowKey, NodeEntry, PeerEntry
from ctl.core.model import Bypass, MacAddress
from ctl.core.report import AgentReport, to_json
from ctl.kernel.bpf import bpffs, syscall
from ctl.kernel.bpf.maps import Maps, create_or_adopt, specs, unpin_all
from tests.samples import REPORT

MAC = MacAddress.parse("02:00:00:00:00:01")
LO = 1
NODE = NodeEntry(
    IPv4Address("192.168.50.1"), IPv4Network("10.1.0.0/16"), IPv4Network("10.1.1.0/24"),
    (IPv4Address("10.1.1.0"), IPv4Address("10.1.255.255")), 1, LO, 1450, MAC, 8472, (32768, 60999),
    Bypass.LEARNED, 5 * 10**9, 7,
)  # fmt: skip
PEERS = {
    IPv4Address("10.1.10.0"): PeerEntry(IPv4Address("192.168.50.10"), MAC, 8472, 1, 0, None, 1),
    IPv4Address("10.1.2.0"): PeerEntry(
        IPv4Address("192.168.50.2"), MAC, 8472, 1, LO, IPv4Address("192.168.50.2")
    ),
}
ENDPOINT = EndpointEntry(999_999, MAC, MacAddress.parse("02:00:00:00:00:02"))


def put(maps: Maps[IPv4Address], name: str, key: bytes, value: bytes) -> None:
    """Straight into the map, past all that ovctl has in common with the agent."""
    with closing(syscall.Map(os.dup(maps.fd(name)))) as raw:
        raw.update(key, value)


@pytest.fixture
def pins() -> Iterator[Path]:
    """A directory for pins of this test alone."""
    path = Path(f"/sys/fs/bpf/ovnet-test-{os.getpid()}")
    bpffs.ensure(str(path))
    yield path
    unpin_all(path)
    assert not path.exists()


@pytest.fixture
def maps(pins: Path) -> Iterator[Maps[IPv4Address]]:
    with create_or_adopt(pins, specs(4, 4, 64)) as opened:
        opened.write_node(NODE)
        for subnet, peer in PEERS.items():
            put(opened, "peers", subnet.packed, peer.pack())
        put(opened, "endpoints", IPv4Address("10.1.1.5").packed, ENDPOINT.pack())
        yield opened


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # main() sets its own
    for name in [name for name in os.environ if name.startswith("OVNET_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def ovctl(pins: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs ovctl on the test's pins: (exit code, stdout, stderr)."""

    def run(*argv: str) -> tuple[int, str, str]:
        code = main([*argv, f"--bpffs={pins}"])
        return code, *capsys.readouterr()

    return run


def test_peers_as_json_keep_the_contract(ovctl: Any, maps: Maps[IPv4Address]) -> None:
    code, out, err = ovctl("map", "dump", "peers", "-o", "json")
    assert (code, err) == (0, "")
    assert json.loads(out) == [
        {"subnet": "10.1.2.0/24", "host": "192.168.50.2", "vtep_mac": "02:00:00:00:00:01", "vni": 1,
         "port": 8472, "dev": "lo", "next_hop": "192.168.50.2", "ttl": 64, "flags": []},
        {"subnet": "10.1.10.0/24", "host": "192.168.50.10", "vtep_mac": "02:00:00:00:00:01", "vni": 1,
         "port": 8472, "dev": None, "next_hop": None, "ttl": 64, "flags": ["kernel-path"]},
    ]  # fmt: skip


def test_a_table_says_fib_where_the_kernel_is_asked(ovctl: Any, maps: Maps[IPv4Address]) -> None:
    _, out, _ = ovctl("map", "dump", "peers")
    assert out.splitlines()[0].split() == ["SUBNET", "HOST", "VTEP", "MAC", "DEV", "NEXT", "HOP", "FLAGS"]
    assert out.splitlines()[2].split() == [
        "10.1.10.0/24",
        "192.168.50.10",
        str(MAC),
        "-",
        "fib",
        "kernel-path",
    ]
    _, wide, _ = ovctl("map", "dump", "peers", "-o", "wide")
    assert "VNI" in wide
    assert "8472" in wide


def test_all_maps_have_a_heading_each(ovctl: Any, maps: Maps[IPv4Address]) -> None:
    shown = [
        "peers",
        "endpoints",
        "flows",
        "notes",
        "translations",
        "services",
        "node",
        "counters",
        "peer_stats",
    ]
    _, out, _ = ovctl("map", "dump")
    assert re.findall(r"^(\w+):$", out, re.MULTILINE) == shown
    _, out, _ = ovctl("map", "dump", "-o", "json")
    found = json.loads(out)
    assert sorted(found) == sorted(shown)
    assert found["counters"] == found["flows"] == found["peer_stats"] == []
    assert found["endpoints"][0]["dev"] == "if999999"
    assert found["node"][0]["subnet"] == "10.1.1.0/24"


def count(maps: Maps[IPv4Address], hook: abi.Hook, number: int, packets: int) -> None:
    """`packets` on every CPU."""
    index = struct.pack("=I", hook * abi.REASON_MAX + number)
    put(maps, "counters", index, abi.COUNTER.pack(packets, 100 * packets, 0))


def test_counters_show_what_counted_and_wide_shows_all(ovctl: Any, maps: Maps[IPv4Address]) -> None:
    count(maps, abi.Hook.FROM_WIRE, 40, 3)
    cpus = syscall.possible_cpus()
    _, out, _ = ovctl("map", "dump", "counters", "-o", "json")
    assert json.loads(out) == [
        {"hook": "from_wire", "verdict": "drop", "reason": "unknown_vtep", "packets": 3 * cpus,
         "bytes": 300 * cpus, "caption": "VXLAN from a host that is no peer"}
    ]  # fmt: skip
    _, out, _ = ovctl("map", "dump", "counters")
    assert len(out.splitlines()) == 2
    _, out, _ = ovctl("map", "dump", "counters", "-o", "wide")
    assert "spoofed_source" in out


def learn(maps: Maps[IPv4Address], sport: int, age_s: float) -> None:
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    key = FlowKey(IPv4Address("10.1.1.5"), IPv4Address("10.1.2.9"), sport, 80, LO, 6, Direction.OUT)
    put(maps, "flows", key.pack(), FlowEntry(now - int(age_s * 1e9), 0, 12).pack())


def test_flows_say_whether_they_are_approved_and_a_flush_says_how_many(
    ovctl: Any, maps: Maps[IPv4Address]
) -> None:
    learn(maps, 1000, 0)
    learn(maps, 1001, 60)
    _, out, _ = ovctl("map", "dump", "flows", "-o", "json")
    fresh, stale = json.loads(out)
    assert (fresh["state"], stale["state"]) == ("approved", "expired")
    assert stale["age"] >= 60
    assert (fresh["proto"], fresh["sport"], fresh["dport"], fresh["direction"]) == ("tcp", 1000, 80, "out")
    assert (fresh["dev"], fresh["packets"], fresh["idle"]) == ("lo", 12, None)
    assert ovctl("flow", "flush") == (0, "", "ovctl: flushed 2 flows\n")
    assert ovctl("flow", "flush") == (0, "", "ovctl: flushed 0 flows\n")
    assert maps.flows() == {}


def test_get_finds_the_peer_of_an_address(ovctl: Any, maps: Maps[IPv4Address]) -> None:
    code, out, _ = ovctl("map", "get", "10.1.2.77", "-o", "json")
    found = json.loads(out)
    assert (code, found["ip"], found["endpoint"]) == (0, "10.1.2.77", None)
    assert found["peer"]["subnet"] == "10.1.2.0/24"
    code, out, _ = ovctl("map", "get", "10.1.2.77")
    assert out.startswith("peers:\nSUBNET")


def test_get_finds_a_container(ovctl: Any, maps: Maps[IPv4Address]) -> None:
    _, out, _ = ovctl("map", "get", "10.1.1.5", "-o", "json")
    found = json.loads(out)
    assert found["peer"] is None
    assert found["endpoint"] == {
        "ip": "10.1.1.5", "dev": "if999999", "ifindex": 999_999, "mac": str(MAC),
        "bridge_mac": "02:00:00:00:00:02",
    }  # fmt: skip


def test_get_of_nobodys_address_is_3(ovctl: Any, maps: Maps[IPv4Address]) -> None:
    code, out, err = ovctl("map", "get", "10.1.1.6")
    assert (code, out) == (3, "")
    assert err == "ovctl: error: 10.1.1.6 is in no peer's subnet and is no container of this node\n"


@pytest.mark.parametrize(
    "text", ["10.1.2", "localhost", "10.1.2.0/24", "::1::", "", "10.1.2.999", "010.1.2.3"]
)
def test_get_of_what_is_no_address_is_2(ovctl: Any, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        ovctl("map", "get", text)
    assert caught.value.code == 2
    assert f"{text!r} is not an IPv4 or IPv6 address" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [("map", "dump"), ("map", "get", "10.1.2.3"), ("flow", "flush")])
def test_without_pins_it_is_4(ovctl: Any, pins: Path, argv: tuple[str, ...]) -> None:
    code, out, err = ovctl(*argv)
    assert (code, out) == (4, "")
    assert err == f"ovctl: error: no maps under {pins}: no agent has run here (or --bpffs is another)\n"


def test_maps_of_a_node_that_is_not_configured_are_shown(ovctl: Any, pins: Path) -> None:
    with create_or_adopt(pins, specs(4, 4, 64)):
        code, out, _ = ovctl("map", "dump", "-o", "json")
        assert code == 0
        assert not any(json.loads(out).values())
        assert ovctl("map", "get", "10.1.2.3")[0] == 3


# status


class Node:
    """A state directory, with or without a live agent."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._lock: TextIO | None = None

    def start(self) -> None:
        self._lock = (self.home / "agent.lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def stop(self) -> None:
        if self._lock:
            self._lock.close()

    def report(self, value: AgentReport) -> None:
        (self.home / "status.json").write_text(to_json(value))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    node.stop()


def fresh(**changes: Any) -> AgentReport:
    """A healthy report of this moment."""
    now = time.time()
    assert REPORT.lease is not None
    return replace(
        REPORT,
        started_at=now - 100,
        lease=replace(REPORT.lease, expires_at=now + 80_000, renew_at=now + 76_000),
        reconcile=replace(REPORT.reconcile, last_success=now),
        **changes,
    )


def test_status_of_a_healthy_node(ovctl: Any, maps: Maps[IPv4Address], node: Node) -> None:
    node.start()
    node.report(fresh())
    count(maps, abi.Hook.FROM_CONTAINER, 1, 9)
    count(maps, abi.Hook.TO_OVERLAY, 3, 3)
    count(maps, abi.Hook.TUNNEL_OUT, 34, 2)
    code, out, err = ovctl("status", f"--state-dir={node.home}")
    assert (code, err) == (0, "")
    lines = dict(line.split(None, 1) for line in out.splitlines() if not line.startswith(" "))
    assert lines["agent"].startswith("running, ready, pid 4711")
    assert lines["peers"] == "2 by eBPF, 1 by the kernel path only"
    assert lines["out"].startswith("bypass 75.0 % of packets and ")
    assert "tunnel 16.7 % of packets" in lines["out"]
    assert "kernel 8.3 % of packets" in lines["out"]
    assert lines["in"] == "no packets yet"
    assert "peers 2/4" in lines["maps"]
    assert lines["problem"] == "veth3: someone else's tc filter at prio 1"


def test_status_as_json(ovctl: Any, maps: Maps[IPv4Address], node: Node) -> None:
    node.start()
    node.report(fresh())
    count(maps, abi.Hook.FROM_WIRE, 2, 5)
    code, out, _ = ovctl("status", f"--state-dir={node.home}", "-o", "json")
    found = json.loads(out)
    assert (code, found["alive"], found["healthy"], found["why"]) == (0, True, True, [])
    assert found["report"]["lease"]["subnet"] == "172.17.1.0/24"
    assert found["datapath"]["bypass_percent"] == {"out": None, "in": 100.0}
    assert found["datapath"]["maps"]["flows"] == {"entries": 0, "capacity": 64}


def test_status_says_why_a_node_is_unhealthy(ovctl: Any, maps: Maps[IPv4Address], node: Node) -> None:
    node.start()
    node.report(fresh(store=replace(REPORT.store, up=False, error="disk I/O error")))
    for i in range(2):
        put(maps, "peers", IPv4Address(f"10.1.{20 + i}.0").packed, PEERS[IPv4Address("10.1.2.0")].pack())
    code, _, err = ovctl("status", f"--state-dir={node.home}")
    assert code == 1
    assert err.splitlines() == [
        "ovctl: store sqlite:///var/lib/ovnet/store.db unreachable: disk I/O error",
        "ovctl: map peers is full: 4 of 4 entries",
    ]


def test_status_of_an_agent_that_has_not_reported(ovctl: Any, node: Node) -> None:
    node.start()
    code, _, err = ovctl("status", f"--state-dir={node.home}")
    assert (code, err) == (1, "ovctl: the agent is starting: it has not reported yet\n")


def test_status_of_a_dead_agent_says_that_traffic_goes_on(
    ovctl: Any, maps: Maps[IPv4Address], node: Node
) -> None:
    node.start()
    node.report(fresh())
    node.stop()
    code, out, err = ovctl("status", f"--state-dir={node.home}")
    assert code == 4
    assert err == "ovctl: no agent runs here; the eBPF datapath is in place and forwards what it knows\n"
    assert out.startswith("agent       not running\n")
    assert "lease       172.17.1.0/24" in out


def test_status_where_nothing_ever_ran(ovctl: Any, tmp_path: Path) -> None:
    code, out, err = ovctl("status", f"--state-dir={tmp_path}/none")
    assert code == 4
    assert "no agent runs here; no eBPF datapath (no maps under" in err
    assert "agent       not running" in out


def test_status_of_a_damaged_report_is_one_line(ovctl: Any, maps: Maps[IPv4Address], node: Node) -> None:
    node.start()
    (node.home / "status.json").write_bytes(b"\xff\x00")
    code, _, err = ovctl("status", f"--state-dir={node.home}")
    assert code == 1
    assert len(err.splitlines()) == 1
    assert "status.json" in err


def test_looking_does_not_disturb_a_second_look(ovctl: Any, maps: Maps[IPv4Address], node: Node) -> None:
    (node.home / "agent.lock").touch()
    with (node.home / "agent.lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert ovctl("status", f"--state-dir={node.home}")[0] == 4
