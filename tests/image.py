"""The container image on two hosts with dockerd of their own: `make image-test`, or `python -m tests.image`.

Both nodes' agents run from dist/ovnet-VERSION.image.tar, as docs/operating.md says. They carry traffic by
eBPF; one is restarted, and replaced by a new container, under traffic. The first promise that does not
hold ends it with exit code 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

import ctl
from tests.debian import System
from tests.docker import PRIVATE, Dockerd
from tests.host import METRICS_PORT, Host
from tests.lab import Lab, wait_until
from tests.namespace import REPOSITORY
from tests.screen import expect, heading, tell
from tests.stream import traffic

TAG: Final = f"ovnet:{ctl.__version__}"
ARCHIVE: Final = REPOSITORY / "dist" / f"ovnet-{ctl.__version__}.image.tar"
LIMIT_MB: Final = 400
CONFINED: Final = (
    "--network", "host", "--cap-drop", "ALL", "--read-only", "--tmpfs", "/tmp",
    "--security-opt", "no-new-privileges", "--security-opt", "systempaths=unconfined",
)  # fmt: skip
CAPABILITIES: Final = ("BPF", "NET_ADMIN", "PERFMON")
BEFORE_23: Final = ("SYS_ADMIN", "NET_ADMIN")
"""Docker before 23 cannot give the two new ones; SYS_ADMIN has both in it."""


class DockerdOf(Dockerd):
    """The Docker of another Debian, run in a system of that."""

    def __init__(self, system: System, host: Host, *flags: str) -> None:
        self._system = system
        super().__init__(host, *flags)

    def _start(self, *program: str) -> None:
        super()._start(*self._system.enter(), *program)


class Node:
    """A host whose agent is a container."""

    def __init__(self, host: Host, store: Path, system: System | None) -> None:
        self.host, self._store = host, store
        flags = ("--bridge", "none", "--iptables=false")
        self.docker = DockerdOf(system, host, *flags) if system else Dockerd(host, *flags)
        self.docker.docker("load", "--input", str(ARCHIVE))
        version = self.docker.docker("version", "--format", "{{.Server.Version}}").strip()
        self._capabilities = CAPABILITIES if int(version.partition(".")[0]) >= 23 else BEFORE_23
        tell(f"{host.name}: dockerd {version}, --cap-add {','.join(self._capabilities)}")
        host.state_dir.mkdir()

    @property
    def options(self) -> tuple[str, ...]:
        """Of `docker run`: what confines it, the mounts, and this lab's places."""
        mounts = {
            "/sys/fs/bpf": "/sys/fs/bpf",
            str(self.host.state_dir): "/run/ovnet",
            str(self._store): "/var/lib/ovnet",
        }
        ours = self.host.env
        settings = {
            name: ours[name] for name in ("OVNET_IFACE", "OVNET_NODE_NAME", "OVNET_BPFFS", "OVNET_BRIDGE")
        }
        return (
            *CONFINED,
            *(word for name in self._capabilities for word in ("--cap-add", name)),
            *(word for pair in mounts.items() for word in ("--volume", ":".join(pair))),
            *(word for pair in settings.items() for word in ("--env", "=".join(pair))),
        )

    def start(self) -> None:
        """Run the agent; returns when it is ready."""
        self.docker.docker("run", "--detach", "--name", "ovnet", *self.options, TAG, "agent")
        self.wait_ready()

    def wait_ready(self) -> None:
        def ready() -> bool:
            try:
                return self.host.http(f"http://127.0.0.1:{METRICS_PORT}/readyz", seconds=1)[0] == 200
            except OSError:
                return False

        wait_until(ready, 60, lambda: f"the agent on {self.host.name} is ready\n{self.log()}")

    def log(self) -> str:
        """What the agent has said; docker logs prints it on two streams."""
        return self.host.run("docker", "--host", self.docker.socket, "logs", "ovnet", check=False).stderr

    def ovctl(self, *arguments: str, options: tuple[str, ...] = ()) -> str:
        """`ovctl` in a container of the same kind, removed afterwards."""
        return self.docker.docker("run", "--rm", *self.options, *options, TAG, *arguments)

    def restart(self) -> None:
        self.docker.docker("restart", "--time", "20", "ovnet")
        self.wait_ready()

    def replace(self) -> None:
        """As an upgrade does it."""
        self.docker.docker("rm", "--force", "ovnet")
        self.start()


def described(node: Node) -> None:
    """What the image says of itself."""
    docker = node.docker.docker
    size = int(docker("image", "inspect", "--format", "{{.Size}}", TAG)) / 1e6
    expect(size < LIMIT_MB, f"{size:.0f} MB, of {LIMIT_MB}")
    label = docker(
        "image", "inspect", "--format", '{{index .Config.Labels "org.opencontainers.image.version"}}', TAG
    )
    expect(label.strip() == ctl.__version__, f"labelled {label.strip()}")
    bare = ("run", "--rm", "--network", "none", "--cap-drop", "ALL", "--user", "ovnet", TAG)
    expect(
        docker(*bare, "--version") == f"ovctl {ctl.__version__}\n",
        "ovctl --version, as a user without capabilities",
    )


def docker_of(suite: str, host: Host) -> System:
    """A fresh Debian with its docker.io."""
    system = System(host, suite)
    system.run("apt-get", "-qq", "update")
    system.run("apt-get", "-qq", "install", "--yes", "--no-install-recommends", "docker.io", "iptables")
    system.run("mkdir", "-p", *PRIVATE)
    return system


def main() -> int:
    """Build nothing: `make image` has. Returns 0."""
    parser = argparse.ArgumentParser(prog="tests.image", description=__doc__)
    parser.add_argument("--docker", metavar="SUITE", help="Docker of that Debian (default: this machine's)")
    suite = parser.parse_args().docker
    with heading(1, "The image"), Lab() as lab:
        untouched = {}
        store = lab.dir / "store"
        store.mkdir()
        hosts = [lab.host(name) for name in ("a", "b")]
        for host in hosts:
            host.sysctl("net.ipv4.ip_forward", "1")
            untouched[host.name] = host.footprint()
        system = docker_of(suite, hosts[0]) if suite else None
        a, b = (Node(host, store, system) for host in hosts)
        described(a)
        a.ovctl("network", "init", "--network", "10.77.0.0/16", "--subnet-len", "24")
        for node in (a, b):
            node.start()
        for host in hosts:
            wait_until(host.knows_a_peer, 20, f"{host.name} knows its peer")
        one, two = a.host.container("one"), b.host.container("two")
        with traffic(one, two) as counted:
            wait_until(lambda: a.host.bypassed()[0] > 1000, 30, "eBPF carries it")
            tell(f"packets of containers carried by eBPF and left to the kernel path: {a.host.bypassed()}")
            a.restart()
            tell("docker restart")
            a.replace()
            tell("docker rm --force, docker run")
        expect(counted.lost == 0, f"restarted and replaced: {counted.lost} of {counted.sent} datagrams lost")
        for node, container in ((a, one), (b, two)):
            node.docker.docker("rm", "--force", "ovnet")
            container.remove()
            node.ovctl("teardown")
            now = node.host.footprint()
            left = [key for key in now if now[key] != untouched[node.host.name][key]]
            expect(left == [], f"teardown leaves nothing on {node.host.name} {left}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
