"""What an agent needs, and what it leaves open to others: capabilities, modes, sockets."""

from __future__ import annotations

import re
import stat
import sys
from pathlib import Path

import pytest

from tests.host import METRICS_PORT, Agent, Host, ovctl_argv
from tests.lab import Lab, wait_until
from tests.namespace import REPOSITORY

UNIT = REPOSITORY / "deploy" / "ovnet.service"
HEALTH_PORT = 9476


def of_the_unit() -> set[str]:
    """Names in the unit's CapabilityBoundingSet."""
    (line,) = re.findall(r"^CapabilityBoundingSet=(.+)$", UNIT.read_text(), re.MULTILINE)
    return {name.removeprefix("CAP_").lower() for name in line.split()}


def confined(host: Host, *flags: str) -> Agent:
    """An agent with the unit's capabilities, and with an umask that hides nothing."""
    setpriv = ("setpriv", "--bounding-set=-all," + ",".join(f"+{name}" for name in sorted(of_the_unit())),
               "--inh-caps=-all", "--no-new-privs")  # fmt: skip
    shell = ("sh", "-c", 'umask 000; exec "$@"', "sh")
    argv = host.argv(*setpriv, *shell, *ovctl_argv(), "agent", *flags)
    agent = Agent(argv, host.lab.dir / f"confined-{host.name}", env=host.environment(), cwd=REPOSITORY)
    agent.host = host
    host._processes.append(agent)
    agent.wait_ready()
    return agent


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def capabilities(agent: Agent) -> set[int]:
    text = Path(f"/proc/{agent.pid}/status").read_text()
    held = int(re.findall(r"^CapEff:\s*(\w+)", text, re.MULTILINE)[0], 16)
    return {bit for bit in range(64) if held >> bit & 1}


@pytest.mark.parametrize("hook", ["tc", "xdp"])
def test_the_units_capabilities_are_enough_and_nothing_is_open(lab: Lab, hook: str) -> None:
    a, b = lab.host("a"), lab.host("b")
    lab.init_network()
    agents = [confined(host, "--hook", hook, "--healthz-port", str(HEALTH_PORT)) for host in (a, b)]
    for host, agent in zip((a, b), agents, strict=True):
        assert capabilities(agent) == {12, 13, 38, 39}, (
            "NET_ADMIN, NET_RAW, PERFMON, BPF (linux/capability.h)"
        )
        assert host.status()["hook"] == hook
    one, two = a.container("one"), b.container("two")

    def bypassed() -> bool:
        one.run("ping", "-c3", "-i0.05", "-W2", two.address, check=False)
        return a.bypassed()[0] > 0 and b.bypassed()[0] > 0

    wait_until(bypassed, 10, "eBPF carries a ping and its answer")
    pins_are_roots(a)
    files_are_as_documented(a)
    listens_on_loopback_only(a)


def pins_are_roots(host: Host) -> None:
    """The secret that signs flows is in one of them."""
    assert mode(host.bpffs) == 0o700
    pins = [path for path in host.bpffs.rglob("*") if path.is_file()]
    assert {path.name for path in pins} >= {"node", "flows", "from_wire"}
    assert {path.name: mode(path) for path in pins if mode(path) != 0o600} == {}
    assert {
        str(path): mode(path) for path in host.bpffs.rglob("*") if path.is_dir() and mode(path) & 0o022
    } == {}


def files_are_as_documented(host: Host) -> None:
    """Read by anybody, written by root; the lock not even read."""
    assert mode(host.state_dir) == 0o755
    modes = {path.name: mode(path) for path in host.state_dir.iterdir() if path.is_file()}
    assert modes.pop("agent.lock") == 0o600
    assert modes.keys() >= {"status.json", "subnet.env"}
    assert set(modes.values()) == {0o644}


def listens_on_loopback_only(host: Host) -> None:
    shown = host.run("ss", "-Hltun").stdout
    local = {line.split()[4] for line in shown.splitlines() if line.split()[0] == "tcp"}
    assert local == {f"127.0.0.1:{METRICS_PORT}", f"127.0.0.1:{HEALTH_PORT}"}, sys.stdout.write(shown)


def test_secrets_are_in_no_output(lab: Lab) -> None:
    a = lab.host("a")
    lab.init_network()
    agent = a.agent("--log-level", "debug", env={"OVNET_ETCD_PASSWORD": "a-secret-word"})
    shown = a.ovctl("map", "dump", "-o", "json").stdout + a.ovctl("status", "-o", "json").stdout
    shown += a.http(f"http://127.0.0.1:{METRICS_PORT}/metrics")[1] + agent.log() + agent.out()
    shown += "".join(path.read_text() for path in a.state_dir.iterdir() if path.is_file())
    assert "a-secret-word" not in shown
    assert "seed" not in shown
