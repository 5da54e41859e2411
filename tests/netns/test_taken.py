"""What an agent needs and somebody else has: the line names both, and nothing half made stays."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host import METRICS_PORT, Agent, Host, ovctl_argv
from tests.lab import Lab, wait_until
from tests.namespace import REPOSITORY
from tests.process import Process

BIND = "import socket, time; s = socket.socket({}); s.bind({}); {}; print(1, flush=True); time.sleep(600)"


@pytest.fixture
def host() -> Iterator[Host]:
    with Lab() as lab:
        made = lab.host("a")
        lab.init_network()
        yield made


def has_port(
    host: Host, port: int, protocol: str = "udp", address: str = "('', {})", family: str = "AF_INET"
) -> Process:
    """A process that has it."""
    stream = protocol == "tcp"
    kind = f"socket.{family}, socket.SOCK_{'STREAM' if stream else 'DGRAM'}"
    code = BIND.format(kind, address.format(port), "s.listen()" if stream else "pass")
    process = host.popen(sys.executable, "-c", code)
    wait_until(lambda: host.listens(port, protocol), 20, "the port is taken")
    return process


def says(agent: Agent, *words: str) -> None:
    """The agent runs, is not ready, and its log has a line with all these."""

    def said() -> bool:
        return any(all(word in line for word in words) for line in agent.log().splitlines())

    wait_until(said, 30, lambda: f"{words} in\n{agent.log()}")
    assert agent.poll() is None
    assert not agent.ready()
    assert "Traceback" not in agent.log()


def refused(host: Host, *words: str) -> None:
    """It ends with one line that has all these, and has changed nothing."""
    before = host.footprint()
    done = host.ovctl("agent", "--bypass", "off", check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert all(word in line for word in words), line
    assert host.footprint() == before


@pytest.mark.parametrize("kind", [("external",), ("id", "7", "gbp"), ("id", "7", "udp6zerocsumrx")], ids=str)
def test_a_tunnel_that_shares_its_port_with_none_is_named(host: Host, kind: tuple[str, ...]) -> None:
    """As Cilium's, which takes all VNIs."""
    host.ip("link", "add", "theirs", "type", "vxlan", *kind, "dstport", "8472")
    host.ip("link", "set", "theirs", "up")
    refused(host, "UDP port 8472", "tunnel device theirs", "--port")


def test_a_tunnel_that_shares_its_port_is_no_fault(host: Host) -> None:
    host.ip("link", "add", "theirs", "type", "vxlan", "id", "7", "dstport", "8472", "dev", "eth0")
    host.ip("link", "set", "theirs", "up")
    host.agent("--bypass", "off")


def test_a_process_that_has_the_port_is_named(host: Host) -> None:
    process = has_port(host, 8472)
    refused(host, "UDP port 8472", f"process {process.pid} (")


def test_one_that_only_the_kernel_knows_to_be_in_the_way_is_named_until_it_goes(host: Host) -> None:
    """A socket of IPv6, which may have IPv4's port or not."""
    process = has_port(host, 8472, address="('::', {})", family="AF_INET6")
    agent = host.agent("--bypass", "off", wait=False)
    says(agent, "UDP port 8472", f"process {process.pid} (")
    assert "ovnet.1" not in host.ip("-br", "link"), "no device stays half made"
    process.stop()
    agent.wait_ready()


def test_a_tunnel_that_has_the_vni_is_named(host: Host) -> None:
    host.ip("link", "add", "theirs", "type", "vxlan", "id", "1", "dstport", "8472", "dev", "eth0")
    agent = host.agent("--bypass", "off", wait=False)
    says(agent, "theirs has VNI 1 on port 8472")


def test_a_device_of_our_name_is_named_with_its_kind(host: Host) -> None:
    host.ip("link", "add", "ovnet.1", "type", "bridge")
    agent = host.agent("--bypass", "off", wait=False)
    says(agent, "ovnet.1 exists, is not ours and is bridge")


def test_who_has_the_metrics_port_is_named(host: Host) -> None:
    host.ip("link", "set", "lo", "up")
    process = has_port(host, METRICS_PORT, "tcp", "('127.0.0.1', {})")
    done = host.ovctl("agent", check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"port {METRICS_PORT}: Address already in use" in line
    assert f"process {process.pid} (" in line


def test_a_flanneld_that_only_its_probes_port_shows_keeps_what_it_has(host: Host) -> None:
    """As from a pod, which sees no process of others: nothing is taken over beside it."""
    host.ip("link", "set", "lo", "up")
    vxlan = ("vxlan", "id", "1", "dstport", "8472", "local", host.address, "dev", "eth0", "nolearning")
    host.ip("link", "add", "flannel.1", "type", *vxlan)
    host.ip("addr", "add", "172.17.9.0/32", "dev", "flannel.1")
    host.ip("link", "set", "flannel.1", "up")
    process = has_port(host, 8081, "tcp", "('0.0.0.0', {})")
    before = host.footprint()
    done = host.ovctl("agent", "--healthz-port", "8081", check=False)
    assert done.returncode == 2
    assert "port 8081: Address already in use" in done.stderr
    assert host.footprint() == before
    process.stop()
    host.agent("--healthz-port", "8081")
    assert {"flannel.1", "ovnet.1"} & set(host.ip("-br", "link").split()) == {"ovnet.1"}


def test_who_has_the_udp_backends_port_is_named(lab: Lab) -> None:
    host = lab.host("a")
    lab.init_network("172.17.0.0/16", 24, "--backend", "udp")
    process = has_port(host, 8285)
    says(host.agent(wait=False), "udp forwarder", ":8285", f"process {process.pid} (")


def test_who_has_the_udp_backends_device_is_named(lab: Lab) -> None:
    host = lab.host("a")
    lab.init_network("172.17.0.0/16", 24, "--backend", "udp")
    code = (
        "import fcntl, os, struct, time; f = os.open('/dev/net/tun', os.O_RDWR);"
        " fcntl.ioctl(f, 0x400454ca, struct.pack('16si20x', b'ovnetu8285', 0x1001));"
        " print(1, flush=True); time.sleep(600)"
    )
    process = host.popen(sys.executable, "-c", code)
    wait_until(lambda: "ovnetu8285" in host.ip("-br", "link"), 20, "the device is taken")
    says(host.agent(wait=False), "TUN device ovnetu8285", f"process {process.pid} (")


def test_a_second_agent_here_is_told_of_the_first(host: Host) -> None:
    first = host.agent("--bypass", "off")
    done = host.ovctl("agent", "--bypass", "off", "--metrics-port", "0", check=False,
                      env={"OVNET_STATE_DIR": f"{host.state_dir}-2"})  # fmt: skip
    assert done.returncode == 1
    assert f"another agent (process {first.pid} (" in done.stderr


@pytest.mark.parametrize("environment", ["PATH=/usr/bin:/bin", ""], ids=["su's PATH", "no environment"])
def test_an_agent_without_path_or_umask_runs_and_is_read_by_others(host: Host, environment: str) -> None:
    settings = (f"{key}={value}" for key, value in host.env.items())
    shell = ("sh", "-c", 'umask 077; exec "$@"', "sh", "/usr/bin/env", "-i", *environment.split(), *settings)
    argv = host.argv(*shell, *ovctl_argv(), "agent", "--bypass", "off")
    agent = Agent(argv, host.lab.dir / "odd", env=host.environment(), cwd=REPOSITORY)
    agent.host = host
    host._processes.append(agent)
    agent.wait_ready()
    assert "masquerade" in host.run("nft", "list", "table", "ip", "ovnet").stdout
    assert {
        name: oct(mode(host.state_dir / name)) for name in (".", "subnet.env", "status.json", "agent.lock")
    } == {
        ".": "0o755",
        "subnet.env": "0o644",
        "status.json": "0o644",
        "agent.lock": "0o600",
    }


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777
