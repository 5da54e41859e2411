"""The unit in deploy/, started by a real systemd: readiness, confinement, watchdog, restart."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import Container, Host, Lab, run, wait_until
from tests.process import CommandFailed
from tests.stream import UdpStream
from tests.systemd import UNIT, Systemd

WATCHDOG_S = 8
"""Short for the test; still long for a busy machine."""


class Service:
    """Node a, run by systemd, and node b, run by the lab."""

    def __init__(self, lab: Lab) -> None:
        self.a, self.b = lab.host("a"), lab.host("b")
        note = "ExecStopPost=/bin/sh -c 'echo $$SERVICE_RESULT >> /run/results'\n"
        self.systemd = Systemd(self.a, f"WatchdogSec={WATCHDOG_S}\n{note}")
        lab.store_url = self.systemd.store_url
        lab.init_network()
        self.systemd.boot()
        self.systemd.wait_state("active")
        self.was_ready = (self.a.state_dir / "subnet.env").exists(), self.a.status()["reconcile"]["ok"]
        self.b.agent("--approval-ttl", "1")
        for host in (self.a, self.b):
            wait_until(host.knows_a_peer, 10, f"{host.name} knows its peer")
        self.one, self.two = self.a.container("one"), self.b.container("two")
        wait_until(lambda: carries(self.a, self.one, self.two), 20, "eBPF of a carries")


def carries(host: Host, source: Container, sink: Container) -> bool:
    """Whether eBPF on `host` takes part in a ping from one container to the other."""
    before = host.bypassed()[0]
    source.run("ping", "-c4", "-i0.05", "-W1", sink.address, check=False)
    return host.bypassed()[0] > before


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with Lab() as lab:
        yield Service(lab)


def test_systemd_finds_nothing_wrong_with_the_unit(service: Service) -> None:
    systemd = service.systemd
    found = run(["nsenter", "--target", str(systemd.pid), "--all", "env", "SYSTEMD_UNIT_PATH=/run/units",
                 "systemd-analyze", "verify", f"/run/units/{UNIT.name}"])  # fmt: skip
    assert UNIT.name not in found.stdout + found.stderr
    exposure = ("systemd-analyze", "security", "--offline=yes", f"/run/units/{UNIT.name}")
    systemd.inside(*exposure, "--threshold=27")
    with pytest.raises(CommandFailed):  # so the threshold is one
        systemd.inside(*exposure, "--threshold=20")


def test_active_means_that_the_node_has_reconciled(service: Service) -> None:
    written, reconciles = service.was_ready
    assert written and reconciles > 0
    assert service.systemd.show("Type") == "notify"


def test_the_agent_is_confined_and_does_its_work(service: Service) -> None:
    pid = service.systemd.main_pid()
    status = Path(f"/proc/{pid}/status").read_text()

    def value(name: str) -> str:
        (found,) = re.findall(rf"^{name}:\s*(\w+)", status, re.MULTILINE)
        return str(found)

    held = {bit for bit in range(64) if int(value("CapEff"), 16) >> bit & 1}
    assert held == {12, 13, 38, 39}, "NET_ADMIN, NET_RAW, PERFMON, BPF (linux/capability.h)"
    assert int(value("CapBnd"), 16) == int(value("CapEff"), 16)
    assert value("NoNewPrivs") == "1"
    assert value("Seccomp") == "2"
    mounts = [line.split() for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    modes = {fields[4]: fields[5].split(",")[0] for fields in mounts}
    assert modes["/"] == "ro"
    assert modes["/run/ovnet"] == modes["/var/lib/ovnet"] == "rw"
    assert carries(service.a, service.one, service.two)


def test_a_hung_main_loop_is_ended_by_the_watchdog_and_nothing_is_lost(service: Service) -> None:
    """Its other threads live: the metrics server answers, the monitor hears."""
    systemd, a = service.systemd, service.a
    before = systemd.main_pid()
    streams = [UdpStream(service.one, service.two, service.two.address, port=9001),
               UdpStream(service.two, service.one, service.one.address, port=9002)]  # fmt: skip
    never = a.state_dir.parent / "never"
    never.write_text("#!/bin/sh\nexec sleep 1000\n")
    never.chmod(0o755)
    run(["nsenter", "--target", str(before), "--mount", "mount", "--bind", "/run/never", "/usr/sbin/nft"])
    a.nft("flush table ip ovnet\n")
    wait_until(lambda: systemd.show("NRestarts") == "1", 2 * WATCHDOG_S + 20, systemd.log)
    systemd.wait_state("active")
    assert systemd.main_pid() != before
    assert (a.state_dir.parent / "results").read_text() == "watchdog\n"
    assert "reconcile_firewall" in systemd.log(), "the stack of the loop that hung"
    for stream in streams:
        sent, tally = stream.finish()
        assert (sent - tally.received, tally.duplicates) == (0, 0)
    assert "masquerade" in a.run("nft", "list", "table", "ip", "ovnet").stdout


def test_stop_leaves_it_forwarding_and_start_adopts_it(service: Service) -> None:
    systemd, a = service.systemd, service.a
    pins = sorted(a.bpffs.rglob("*"))
    stream = UdpStream(service.two, service.one, service.one.address, port=9003)
    stream.advance(1)
    systemd.ctl("stop", UNIT.name)
    assert (systemd.show("ActiveState"), systemd.show("Result")) == ("inactive", "success")
    assert (a.state_dir / "subnet.env").exists(), "others read it, also while the agent is down"
    stream.advance(1)
    systemd.ctl("start", UNIT.name)
    assert systemd.show("ActiveState") == "active", "start waits for READY=1"
    stream.advance(1)
    sent, tally = stream.finish()
    assert (sent - tally.received, tally.duplicates) == (0, 0)
    assert sorted(a.bpffs.rglob("*")) == pins
    assert carries(a, service.one, service.two)


START_S = 3
"""A start may take no longer, unless it says that it goes on."""


def test_a_start_that_waits_for_its_store_is_not_ended_by_the_start_timeout(lab: Lab) -> None:
    systemd = Systemd(
        lab.host("a"), f"TimeoutStartSec={START_S}\nEnvironment=OVNET_STORE=etcd://127.0.0.1:1\n"
    )
    systemd.boot()

    def waiting() -> float:
        """Seconds since the agent was started."""
        begun = int(systemd.show("ExecMainStartTimestampMonotonic"))
        return time.monotonic() - begun / 1e6 if begun else 0.0

    wait_until(lambda: waiting() > 3 * START_S, 60, systemd.log)
    assert (systemd.show("ActiveState"), systemd.show("NRestarts")) == ("activating", "0")
    assert systemd.show("StatusText").startswith("waiting for the store: etcd unreachable")
