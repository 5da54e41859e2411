"""Real containerd on hosts of the lab, and containers that it makes by the CNI configuration of our agent.

Its own client `ctr` asks for them: with `--cni` it does what containerd's CRI plugin does for kubelet, by
the same library, with the first file of /etc/cni/net.d and the plugins of /opt/cni/bin.

Traps, each met on Debian's containerd 1.6.20:
- Those places cannot be told to `ctr`, nor to containerd where its shims have their sockets, nor to
  host-local where it keeps addresses. Each containerd is in a mount namespace with its own of all of them.
- `ctr run --detach` never takes its container out of the network again. In the foreground it does at its end.
- Shims live on without containerd. In a process namespace of its own nothing does.
- Control groups of containers that ended so stay behind: they are below one of ours, and removed with it.
- `unshare --fork` blocks SIGTERM. SIGKILL ends it, and by `--kill-child` all that is in there.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Final

from tests.cni import PLUGINS, conflist
from tests.host import Host
from tests.lab import remove_path
from tests.namespace import Netns
from tests.process import CommandFailed, run, wait_until

OWN: Final = """
set -e
mount -t tmpfs tmpfs "$0"
for each in etc opt run var; do
    mkdir -p "$0/$each/upper" "$0/$each/work"
    layers="lowerdir=/$each,upperdir=$0/$each/upper,workdir=$0/$each/work"
    mount -t overlay overlay -o "$layers" "/$each"
done
mkdir -p /etc/cni/net.d /opt/cni
mount --bind "$1" /etc/cni/net.d
ln -s "$2" /opt/cni/bin
exec containerd --config /dev/null --root "$0/root" --log-level warn
"""
"""For a shell: containerd with files of its own, by its place, the agent's directory and the plugins'."""


class Containerd:
    """A containerd of one host's, with all its files in memory."""

    def __init__(self, host: Host) -> None:
        """Start it beside an agent that has its `conflist`; returns when it answers."""
        self.host = host
        self._place = host.lab.dir / f"containerd-{host.name}"
        self.rootfs = self._place / "rootfs"
        (self._place / "own").mkdir(parents=True)
        (self.rootfs / "bin").mkdir(parents=True)
        shutil.copy("/bin/busybox", self.rootfs / "bin")
        self._daemon = host.popen(
            "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
            "sh", "-c", OWN, str(self._place / "own"), str(conflist(host).parent), str(PLUGINS)
        )  # fmt: skip
        host.lab.at_close(self._remove)
        wait_until(self._answers, 60, lambda: f"containerd on {host.name} answers\n{self._daemon.log()}")

    def _remove(self) -> None:
        """End all that runs in its namespaces, and take its control groups away."""
        self._daemon.kill()
        for group in Path("/sys/fs/cgroup").glob(f"**/{self.host.netns}"):
            remove_path(group)

    def _answers(self) -> bool:
        if self._daemon.poll() is not None:
            raise CommandFailed(f"containerd on {self.host.name} ended\n{self._daemon.log()}")
        return bool(self._children()) and run(self.inside("ctr", "version"), check=False).returncode == 0

    def _children(self) -> list[str]:
        """Of the process that keeps its namespaces: the first process in there."""
        pid = self._daemon.pid
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()

    def inside(self, *command: str) -> list[str]:
        """`command`, entering all its namespaces first."""
        (pid,) = self._children()
        return ["nsenter", f"--target={pid}", "--mount", "--pid", "--net", *command]

    def ctr(self, *arguments: str) -> str:
        """`ctr`; returns its stdout."""
        return run(self.inside("ctr", *arguments)).stdout

    @property
    def root(self) -> Path:
        """Its file system, as seen from outside."""
        (pid,) = self._children()
        return Path(f"/proc/{pid}/root")

    def run(self, name: str) -> ContainerdContainer:
        """A container that sleeps."""
        return ContainerdContainer(self, name)

    def addresses(self) -> set[str]:
        """What host-local has given out and not got back."""
        kept = (self.root / "var/lib/cni/networks/cbr0").iterdir()
        return {each.name for each in kept if each.name[0].isdigit()}


class ContainerdContainer(Netns):
    """A container that containerd made; `run` and `popen` are in its network namespace only."""

    def __init__(self, containerd: Containerd, name: str) -> None:
        self.name, self._containerd = name, containerd
        place = ("--cgroup", f"/{containerd.host.netns}/{name}", "--rootfs", str(containerd.rootfs))
        asked = ("run", "--cni", "--rm", "--null-io", *place, name, "/bin/busybox", "sleep", "3600")
        self._ctr = containerd.host.spawn(containerd.inside("ctr", *asked))
        pid = wait_until(self._pid, 30, lambda: f"{name} runs\n{self._ctr.log()}")
        super().__init__(containerd.root / f"proc/{pid}/ns/net", containerd.host.lab.dir)
        (link,) = json.loads(self.run("ip", "-json", "-4", "address", "show", "eth0").stdout)
        self.mtu: int = link["mtu"]
        self.address: str = link["addr_info"][0]["local"]

    def _pid(self) -> str:
        """In containerd's namespace; empty until it runs, and by then the plugins have been called."""
        if self._ctr.poll() is not None:
            raise CommandFailed(f"ctr run {self.name} ended\n{self._ctr.log()}")
        rows = [line.split() for line in self._containerd.ctr("tasks", "list").splitlines()]
        return next((pid for name, pid, state in rows[1:] if (name, state) == (self.name, "RUNNING")), "")

    @property
    def label(self) -> str:
        return f"containerd-{self._containerd.host.name}-{self.name}"

    def remove(self) -> None:
        """Kill its processes; returns when `ctr` has called the plugins and removed it."""
        self.stop_processes()
        self._containerd.ctr("tasks", "kill", "--signal", "SIGKILL", self.name)
        self._ctr.wait()
