"""Hosts, containers and an underlay in network namespaces of this machine.

    with Lab() as lab:
        a, b = lab.host("a"), lab.host("b")
        lab.init_network()
        a.agent(), b.agent()
        c1, c2 = a.container("c1"), b.container("c2")
        c1.run("ping", "-c1", c2.address)

                 +-- wire: bridge `lab0` --+
    a: eth0 -----+                         +----- eth0: b
    ovnet0 -- eth0: c1         |                  ovnet0 -- eth0: c2
                         eth0: outside

Everything carries one prefix, `ovlab-<pid>-<random>`, and goes when the lab closes, by
whatever way: end of the block, exception, Ctrl-C, SIGTERM, exit. After a SIGKILL,
`python -m tests.lab clean` removes what labs of dead processes left.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from tests.etcd import Etcd
from tests.host import Container, Host, ovctl_argv
from tests.namespace import REPOSITORY, Namespace, alive, end_processes
from tests.process import CommandFailed, Process, TimedOut, run, wait_until

__all__ = ["CommandFailed", "Container", "Host", "Lab", "Process", "TimedOut", "run", "wait_until"]

PREFIX = "ovlab"
BPFFS = Path("/sys/fs/bpf")
UNDERLAY = IPv4Network("192.168.77.0/24")
SignalHandler = Callable[[int, FrameType | None], object] | int | None


class Lab:
    """A whole experiment. Use it in a `with` block."""

    def __init__(self) -> None:
        self.id = f"{PREFIX}-{os.getpid()}-{secrets.token_hex(2)}"
        self.dir = Path(tempfile.mkdtemp(prefix=f"{self.id}-"))
        self.store = self.dir / "leases.sqlite"
        self.settings = self.dir / "ovnet.toml"
        self.settings.write_text("")  # so that the machine's own settings do not count
        self.store_url = f"sqlite://{self.store}"
        """What `--store` takes."""
        self.hosts: list[Host] = []
        self._wire: Namespace | None = None
        self._etcd: Etcd | None = None
        self._undo: list[Callable[[], None]] = [self._remove_dir]
        self._old_sigterm: SignalHandler = signal.getsignal(signal.SIGTERM)

    def __enter__(self) -> Self:
        atexit.register(self.close)
        self._old_sigterm = signal.getsignal(signal.SIGTERM)
        if self._old_sigterm in (signal.SIG_DFL, signal.SIG_IGN):  # a program's own way to end is kept
            signal.signal(signal.SIGTERM, _exit_on_signal)
        try:
            self.at_close(hold_bpffs())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def at_close(self, undo: Callable[[], None]) -> None:
        """Have `undo` called when the lab closes, latest first."""
        self._undo.append(undo)

    def close(self) -> None:
        """Remove everything. A failing step does not keep the others from running."""
        # A second Ctrl-C must not stop this, nor SIGTERM, which make sends again to what it runs.
        interrupt, _ = (signal.signal(each, signal.SIG_IGN) for each in (signal.SIGINT, signal.SIGTERM))
        atexit.unregister(self.close)
        failures: list[Exception] = []
        while self._undo:
            try:
                self._undo.pop()()
            except Exception as error:
                failures.append(error)
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, self._old_sigterm)
        if failures:
            raise ExceptionGroup(f"closing {self.id}", failures)

    def namespace(self, name: str) -> Namespace:
        """A bare namespace of the lab."""
        made = Namespace(f"{self.id}-{name}", self.dir)
        self.at_close(made.remove)
        return made

    @property
    def wire(self) -> Namespace:
        """The underlay's switch; `tcpdump -i <host's name>` on it sees that host's cable."""
        if self._wire is None:
            self._wire = self.namespace("wire")
            self._wire.ip("link", "add", "lab0", "type", "bridge")
            self._wire.ip("link", "set", "lab0", "up")
        return self._wire

    def host(self, name: str, address: str | None = None, *, mtu: int = 1500) -> Host:
        """A host on the underlay's switch, its uplink `eth0`; `name` of 15 characters at most."""
        host = self._host(name, address)
        self.wire.ip("link", "add", "name", name, "mtu", str(mtu), "type", "veth",
                     "peer", "name", "eth0", "mtu", str(mtu), "netns", host.netns)  # fmt: skip
        self.wire.ip("link", "set", "dev", name, "master", "lab0", "up")
        host.up("eth0")
        host.settle()
        return host

    def pair(self, first: str = "a", second: str = "b", *, mtu: int = 1500) -> tuple[Host, Host]:
        """Two hosts joined by one veth and nothing else: the fastest underlay there is."""
        one, two = self._host(first, None), self._host(second, None)
        one.ip("link", "add", "eth0", "mtu", str(mtu), "type", "veth",
               "peer", "name", "eth0", "mtu", str(mtu), "netns", two.netns)  # fmt: skip
        for host in (one, two):
            host.up("eth0")
        for host in (one, two):
            host.settle()
        return one, two

    def outside(self, name: str = "outside") -> Host:
        """A host that all hosts reach over the underlay, and that knows no overlay."""
        return self.host(name, str(UNDERLAY.broadcast_address - 1))

    def etcd(self, version: str = "3.5") -> Etcd:
        """A running etcd on a host of its own; it is the lab's store from now on."""
        host = self.host("etcd", str(UNDERLAY.broadcast_address - 2))
        self._etcd = Etcd(version, self.dir / "etcd-data", place=host, address=host.address)
        self.at_close(self._etcd.stop)
        self.store_url = self._etcd.start().url
        return self._etcd

    def _host(self, name: str, address: str | None) -> Host:
        chosen = IPv4Address(address) if address else UNDERLAY.network_address + 11 + len(self.hosts)
        host = Host(self, name, chosen, UNDERLAY.prefixlen)
        self.hosts.append(host)
        self.at_close(host.remove)
        return host

    def init_network(self, network: str = "172.17.0.0/16", subnet_len: int = 24, *flags: str) -> str:
        """`ovctl network init` in the lab's store; returns what it printed.

        Where this machine is none of the hosts: what it has itself must not count.
        """
        argv = [*ovctl_argv(), "network", "init", "--network", network, "--subnet-len", str(subnet_len),
                "--store", self.store_url, *flags]  # fmt: skip
        return run(
            self._etcd.inside(argv) if self._etcd else ["unshare", "--net", *argv],
            cwd=REPOSITORY,
            env={**os.environ, "OVNET_CONFIG": str(self.settings)},
        ).stdout

    def leftovers(self) -> list[str]:
        """What of this lab exists on the machine, for people; empty after `close`."""
        found = [str(path) for path in leftover_paths() if path.name.startswith(self.id)]
        for stat in Path("/proc").glob("[0-9]*/environ"):
            pid = int(stat.parent.name)
            try:
                command = (stat.parent / "cmdline").read_bytes() + stat.read_bytes()
            except OSError:
                continue
            if self.id.encode() in command and pid != os.getpid() and alive(pid):
                found.append(f"process {pid}")
        return found

    def _remove_dir(self) -> None:
        shutil.rmtree(self.dir, ignore_errors=True)


def _exit_on_signal(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # until the lab is closed
    sys.exit(128 + number)


def hold_bpffs() -> Callable[[], None]:
    """Mount /sys/fs/bpf if it is not; returns what gives it up again.

    All labs share the mount, and each holds a shared lock meanwhile. The last one
    unmounts it, if a lab did the mounting (the mount's source says so) and it is empty.
    """
    lock = os.open("/run/lock", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(lock, fcntl.LOCK_SH)
    while not _bpffs_source():
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _bpffs_source():
            run(["mount", "-t", "bpf", PREFIX, str(BPFFS)])
        fcntl.flock(lock, fcntl.LOCK_SH)  # not atomic: look again

    def release() -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # another lab runs
        else:
            if _bpffs_source() == PREFIX and not _pins():
                run(["umount", str(BPFFS)])
        finally:
            os.close(lock)

    return release


def _bpffs_source() -> str:
    """Source of the mount at /sys/fs/bpf; empty if there is none."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return next((source for source, place, *_ in mounts if place == str(BPFFS)), "")


def _pins() -> list[Path]:
    """What somebody pinned; the kernel puts two iterators of its own into each new bpffs."""
    return [path for path in BPFFS.iterdir() if path.suffix != ".debug"]


def leftover_paths() -> list[Path]:
    """Everything in the file system that any lab made."""
    places = (Path("/run/netns"), BPFFS, Path(tempfile.gettempdir()), *Path("/sys/fs/cgroup").glob("*"),
              Path("/sys/fs/cgroup"))  # fmt: skip
    return sorted(path for place in places if place.is_dir() for path in place.glob(f"{PREFIX}-[0-9]*"))


def remove_path(path: Path) -> None:
    """A namespace (with its processes), a pin, a cgroup, or a directory of pins or files."""
    if path.parent == Path("/run/netns"):
        end_processes(path.name)
        run(["ip", "netns", "del", path.name], check=False)
    elif path.is_file():
        path.unlink()
    elif path.is_relative_to("/sys/fs/cgroup"):
        remove_cgroup(path)
    else:
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            if Path(line.split()[1]).is_relative_to(path):
                run(["umount", "--lazy", line.split()[1]], check=False)
        shutil.rmtree(path, ignore_errors=True)


def remove_cgroup(path: Path) -> None:
    """Kill what is in a control group of ours, then remove it from the leaves up.

    With processes of another process namespace in it (read as 0), it is a lab's there, and left alone.
    """
    groups = sorted({path, *path.glob("**/")}, reverse=True)
    pids = {int(pid) for group in groups for pid in (group / "cgroup.procs").read_text().split()}
    if 0 in pids:
        return
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for group in groups:
        wait_until(partial(_removed, group), 5, f"control group {group} is empty")


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except OSError:
        return not group.exists()
    return True


def clean() -> list[Path]:
    """Remove what labs left whose process is gone; returns what that was."""
    release = hold_bpffs() if _bpffs_source() else None
    gone = []
    for path in leftover_paths():
        match = re.match(rf"{PREFIX}-(\d+)-", path.name)
        if match and not alive(int(match[1])):
            remove_path(path)
            gone.append(path)
    if release:
        release()
    return gone


if __name__ == "__main__":
    if sys.argv[1:] != ["clean"]:
        sys.exit("usage: python -m tests.lab clean")
    for removed in clean():
        print(f"removed {removed}")
