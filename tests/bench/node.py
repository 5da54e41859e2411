"""The node itself: memory and idle CPU of its agent, starts, and how soon a change is on the wire."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Final

from ctl.core.abi import REASON_MAX, Counter, Hook
from ctl.core.model import Lease, MacAddress
from ctl.core.ports import LeaseStore
from ctl.core.reasons import REASONS
from ctl.kernel.bpf import syscall
from ctl.kernel.bpf.maps import layout_dir
from ctl.store import open_store
from tests.bench.inject import ran
from tests.bench.results import Collected
from tests.bench.start import _listening as listening
from tests.bench.start import start
from tests.host import METRICS_PORT, Agent, Container, Host
from tests.lab import Lab
from tests.process import wait_until
from tests.stream import TRAFFIC

SUBNET: Final = IPv4Network("172.17.9.0/24")
"""Of the host that starts."""
FAR: Final = IPv4Network("172.17.200.0/24")
"""Of the peer that moves."""
VTEP: Final = MacAddress.parse("02:01:00:00:00:98")
VXLAN_PORT: Final = 8472
RATE: Final = 1000
"""Datagrams a second, while waiting for the first that goes another way."""
POLL_S: Final = 0.001
_ENCAP: Final = next(number for number, reason in REASONS.items() if reason.label == "encap")
_ENCAPSULATED: Final = struct.pack("=I", Hook.FROM_CONTAINER * REASON_MAX + _ENCAP)
"""Key of the counter."""


def resident(pid: int) -> float:
    """RSS in MB (of 1024 KB)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def cpu_time(pid: int) -> float:
    """CPU seconds of all threads of a process."""
    return sum(ran(int(task.name)) for task in Path(f"/proc/{pid}/task").iterdir())


def idle(agents: Sequence[Agent], seconds: float) -> Collected:
    """Memory and CPU of agents with nothing to do, all at once, after a scrape of their metrics."""
    found = Collected()
    for agent in agents:
        status, _ = agent.host.http(f"http://127.0.0.1:{METRICS_PORT}/metrics")
        assert status == 200
    before = [cpu_time(agent.pid) for agent in agents]
    started = time.monotonic()
    time.sleep(seconds)  # the measure is a time, not a condition
    passed = time.monotonic() - started
    for agent, used in zip(agents, before, strict=True):
        found.add("agent", "rss", "MB", resident(agent.pid))
        found.add("agent", "idle_cpu", "%", 100 * (cpu_time(agent.pid) - used) / passed)
    return found


# --- Starts -------------------------------------------------------------------------------


class Starting:
    """A host whose agent starts again and again; its one container is plugged into each new bridge."""

    def __init__(self, lab: Lab) -> None:
        lab.init_network()
        self._host, other = lab.pair("sa", "sb")
        self._host.ovctl("lease", "reserve", str(SUBNET), "--host", self._host.address)
        other.agent()
        far = other.container("far")
        self._agent = self._host.agent("--log-level", "warning")
        self._container: Container = self._host.container("c")
        # Through the gateway, and from before there is one.
        self._sender = self._container.popen(*TRAFFIC, "udp-send", far.address, "9", str(RATE))

    def cold(self) -> float:
        """Seconds to the first packet by eBPF; nothing of ours is there."""
        self._agent.stop()
        self._host.teardown()
        return self._to_forwarding()

    def restart(self) -> float:
        """Seconds from the start until ready where a stopped agent left all in place."""
        self._agent.stop()
        with listening(self._host.lab.dir / "notify") as listener:
            self._agent, took = start(self._host, listener)
        return took

    def _to_forwarding(self) -> float:
        started = time.monotonic()
        self._agent = self._host.agent("--log-level", "warning", wait=False)
        wait_until(self._bridged, 60, lambda: f"there is a bridge\n{self._agent.log()}", POLL_S)
        self._host.ip("link", "set", "dev", self._container.port, "master", self._host.bridge, "up")
        wait_until(self._encapsulated, 60, lambda: f"eBPF carries packets\n{self._agent.log()}", POLL_S)
        took = time.monotonic() - started
        self._agent.wait_ready()
        return took

    def _bridged(self) -> bool:
        # As the agent sees it: to ask from a process or thread of its own would slow the start down.
        with contextlib.suppress(OSError):
            return f"{self._host.bridge}:" in Path(f"/proc/{self._agent.pid}/net/dev").read_text()
        return False

    def _encapsulated(self) -> bool:
        with contextlib.suppress(OSError):
            pin = layout_dir(self._host.bpffs) / "maps" / "counters"
            with contextlib.closing(syscall.Map(syscall.obj_get(str(pin)))) as counters:
                return Counter.unpack(counters.lookup(_ENCAPSULATED) or ()).packets > 0
        return False


def starts(rounds: int, tick: Callable[[str], None]) -> Collected:
    """`cold_start` and `restart`, in seconds."""
    found = Collected()
    with Lab() as lab:
        host = Starting(lab)
        kinds = (("cold_start", host.cold), ("restart", host.restart))
        for _ in range(rounds):
            for name, begin in kinds:
                tick(name.replace("_", " "))
                found.add("agent", name, "s", begin())
    return found


# --- Convergence --------------------------------------------------------------------------


class Moving:
    """A peer whose lease goes from one host to the other and back, while datagrams flow to it."""

    def __init__(self, lab: Lab, etcd: bool) -> None:
        self._host: Host = lab.host("a")
        ends = [lab.host("pa"), lab.host("pb")]
        if etcd:
            lab.etcd()
        lab.init_network()
        self._url = lab.store_url
        self._lease = Lease(FAR, IPv4Address(ends[0].address), VTEP, 1, node="moving")
        self._sockets = {IPv4Address(end.address): end.call(_vxlan_socket) for end in ends}
        for each in self._sockets.values():
            lab.at_close(each.close)
        self._agent = self._host.agent()
        container = self._host.container("c")
        container.popen(*TRAFFIC, "udp-send", str(FAR.network_address + 5), "9", str(RATE))

    def run(self, count: int, tick: Callable[[str], None]) -> list[float]:
        """Milliseconds from before the store's put to the first packet at the new host."""
        return self._host.call(lambda: self._open(count, tick))

    def _open(self, count: int, tick: Callable[[str], None]) -> list[float]:
        with closing(open_store(self._url)) as store:
            return self._moves(store, count, tick)

    def _moves(self, store: LeaseStore, count: int, tick: Callable[[str], None]) -> list[float]:
        self._lease = store.put(self._lease, None)
        _receive(self._sockets[self._lease.host])
        taken = []
        for _ in range(count):
            tick("convergence")
            target = next(host for host in self._sockets if host != self._lease.host)
            _drain(self._sockets[target])
            started = time.monotonic()
            self._lease = store.put(replace(self._lease, host=target), self._lease)
            _receive(self._sockets[target])
            taken.append(1000 * (time.monotonic() - started))
        return taken


def _vxlan_socket() -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.bind(("", VXLAN_PORT))
    opened.settimeout(30)
    return opened


def _receive(sock: socket.socket) -> None:
    sock.recv(2048)


def _drain(sock: socket.socket) -> None:
    while select.select([sock], [], [], 0)[0]:
        _receive(sock)


def convergence(count: int, tick: Callable[[str], None]) -> Collected:
    """`convergence_sqlite` and `convergence_etcd`, in ms."""
    found = Collected()
    for store in ("sqlite", "etcd"):
        with Lab() as lab:
            for value in Moving(lab, etcd=store == "etcd").run(count, tick):
                found.add("agent", f"convergence_{store}", "ms", value)
    return found
