"""A real systemd that runs the real unit on a host of the lab.

It is PID 1 of a PID namespace, in the host's network namespace, with mounts and a control
group of its own. /run, /etc and /var/lib are directories of the lab there, /opt/ovnet is this
checkout. The targets that the unit names are empty, so nothing else is started.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from tests.host import METRICS_PORT, Host
from tests.lab import remove_cgroup
from tests.namespace import REPOSITORY
from tests.process import CommandFailed, Process, run, wait_until

UNIT = REPOSITORY / "deploy" / "ovnet.service"
INIT = "/lib/systemd/systemd"
_NOT_OURS = shutil.ignore_patterns("ovnet", "systemd")
TARGETS = ("sysinit", "basic", "shutdown", "network-online", "multi-user", "emergency")

BOOT = r"""
set -e
root=$1 checkout=$2
mount --make-rprivate /
mount -t proc proc /proc
for part in /proc/sys/fs /proc/sys/kernel /proc/sys/vm; do
    mount --bind $part $part
    mount -o remount,bind,ro $part
done
umount -l /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs tmpfs /opt
mkdir /opt/ovnet
mount --bind "$checkout" /opt/ovnet
# What other labs have mounted below /run is not for this namespace to keep alive.
tac /proc/self/mounts | while read -r _ place _; do
    # One that has gone meanwhile is unmounted.
    case $place in /run/?*) umount -l "$place" || ! grep -qF " $place " /proc/self/mounts ;; esac
done
for part in run etc var/lib; do mount --bind "$root/$part" "/$part"; done
export container=ovlab SYSTEMD_UNIT_PATH=/run/units SYSTEMD_GENERATOR_PATH=/run/generators
exec /lib/systemd/systemd --system --unit=multi-user.target --log-target=console --log-level=info
"""


def cgroup2() -> Path:
    """Where the machine has mounted its unified hierarchy."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        if line.split()[2] == "cgroup2":
            return Path(line.split()[1])
    raise CommandFailed("no cgroup2 is mounted")


class Systemd:
    """systemd on `host`. The host's state directory is the unit's from now on, its store `store`."""

    def __init__(self, host: Host, drop_in: str = "") -> None:
        self._host = host
        root = host.lab.dir / f"{host.name}-root"
        shutil.copytree("/etc", root / "etc", symlinks=True, ignore=_NOT_OURS)
        (root / "var/lib/ovnet").mkdir(parents=True)
        self._units = root / "run/units"
        self._write_units(drop_in)
        (root / "etc/default/ovnet").write_text(self._environment())
        host.state_dir = root / "run/ovnet"
        self.store_url = f"sqlite://{root}/var/lib/ovnet/store.db"
        self._log = root / "run/ovnet.log"
        self._root = root
        self.init: Process
        self.pid = 0

    def _write_units(self, drop_in: str) -> None:
        extra = self._units / "ovnet.service.d"
        extra.mkdir(parents=True)
        wants = self._units / "multi-user.target.wants"
        wants.mkdir()
        for target in TARGETS:
            (self._units / f"{target}.target").write_text("[Unit]\nDefaultDependencies=no\n")
        shutil.copy(UNIT, self._units)
        (wants / UNIT.name).symlink_to(f"../{UNIT.name}")
        # The venv names the checkout by its path, which PrivateTmp or ProtectHome may hide.
        (extra / "lab.conf").write_text(
            f"[Service]\nBindReadOnlyPaths={REPOSITORY}\nStandardError=append:/run/ovnet.log\n{drop_in}"
        )

    def _environment(self) -> str:
        """What an administrator would write; all else is the default."""
        host = self._host
        return (
            f"OVNET_IFACE=eth0\nOVNET_NODE_NAME={host.name}\nOVNET_BPFFS={host.bpffs}\n"
            f"OVNET_METRICS_PORT={METRICS_PORT}\nOVNET_APPROVAL_TTL=1\n"
        )

    def boot(self) -> None:
        """Start it; returns when it answers."""
        host = self._host
        group = cgroup2() / f"{host.netns}-systemd"
        group.mkdir()
        host.lab.at_close(partial(remove_cgroup, group))
        join = ("sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(group))
        unshare = ("unshare", "--cgroup", "--pid", "--fork", "--mount", "--uts", "--ipc")
        self.init = host.spawn(
            host.argv(*join, *unshare, "sh", "-c", BOOT, "boot", str(self._root), str(REPOSITORY))
        )
        wait_until(self._answers, 30, lambda: f"systemd answers\n{self.init.out()}{self.init.log()}")

    def _answers(self) -> bool:
        assert self.init.poll() is None, self.init.out() + self.init.log()
        children = Path(f"/proc/{self.init.pid}/task/{self.init.pid}/children").read_text().split()
        self.pid = int(children[0]) if children else 0
        return bool(self.pid) and self.ctl("show", "-p", "Version", check=False).startswith("Version=")

    def inside(self, *command: str, check: bool = True) -> str:
        """Stdout of a command in all of its namespaces."""
        return run(["nsenter", "--target", str(self.pid), "--all", *command], check=check).stdout

    def ctl(self, *arguments: str, check: bool = True) -> str:
        """`systemctl`."""
        return self.inside("systemctl", "--no-pager", *arguments, check=check)

    def show(self, name: str) -> str:
        """A property of the unit."""
        return self.ctl("show", UNIT.name, "--property", name, "--value").strip()

    def wait_state(self, state: str, seconds: float = 60) -> None:
        """Until ActiveState is `state`."""
        wait_until(
            lambda: self.show("ActiveState") == state,
            seconds,
            lambda: f"the unit is {state}\n{self.ctl('status', UNIT.name, check=False)}\n{self.log()}",
        )

    def main_pid(self) -> int:
        """The agent, as the lab's own PID namespace numbers it."""
        (group,) = cgroup2().glob(f"{self._host.netns}-systemd/system.slice/{UNIT.name}")
        ours = self.show("MainPID")
        for pid in (group / "cgroup.procs").read_text().split():
            inner = Path(f"/proc/{pid}/status").read_text().split("NSpid:")[1].splitlines()[0].split()
            if inner[-1] == ours:
                return int(pid)
        raise CommandFailed(f"no process {ours} in {group}")

    def log(self) -> str:
        """The agent's stderr, over all its lives."""
        return self._log.read_text() if self._log.exists() else ""
