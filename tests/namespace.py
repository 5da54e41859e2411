"""One network namespace: run in it, read and write its sysctls, open sockets in it.

Commands go in with `nsenter --net=`, not with `ip netns exec`: that one mounts a new
/sys, in which neither bpffs nor the cgroups can be seen.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import TypeVar

from tests.process import Process, run, wait_until

T = TypeVar("T")

REPOSITORY = Path(__file__).resolve().parent.parent
CLONE_NEWNET = 0x40000000


def _enter(path: Path) -> None:
    """Have this thread be in the network namespace that a file stands for."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        if libc.setns(fd, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {path}")
    finally:
        os.close(fd)


class Netns:
    """Access to a network namespace by a file that stands for it."""

    def __init__(self, path: Path, scratch: Path) -> None:
        """`scratch`: directory for the output of processes."""
        self.path = path
        self._scratch = scratch
        self._processes: list[Process] = []

    def argv(self, *command: str) -> list[str]:
        """`command`, entering the namespace first."""
        return ["nsenter", f"--net={self.path}", *command]

    def run(
        self,
        *command: str,
        check: bool = True,
        seconds: float = 60,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in it to its end; see `tests.process.run`."""
        return run(self.argv(*command), check=check, seconds=seconds, stdin=stdin, env=env, cwd=REPOSITORY)

    def popen(self, *command: str, env: Mapping[str, str] | None = None) -> Process:
        """Start a command in it; it ends with the namespace at the latest."""
        return self.spawn(self.argv(*command), env)

    def spawn(self, argv: list[str], env: Mapping[str, str] | None = None) -> Process:
        """Start what belongs to this namespace, but need not run in it."""
        stem = self._scratch / f"{self.label}.{len(self._processes)}"
        process = Process(argv, stem, env=env, cwd=REPOSITORY)
        self._processes.append(process)
        return process

    @property
    def label(self) -> str:
        """Name for files and messages."""
        return self.path.name

    def ip(self, *arguments: str) -> str:
        """The `ip` command in it."""
        return self.run("ip", *arguments).stdout

    def settle(self) -> None:
        """Wait until what is up has its carrier, which the kernel may note a second later (link_watch.c)."""
        wait_until(
            lambda: "NO-CARRIER" not in self.ip("link", "show", "up"), 10, lambda: self.ip("link", "show")
        )

    def nft(self, rules: str) -> None:
        """Load rules in one transaction."""
        self.run("nft", "-f", "-", stdin=rules)

    def sysctl(self, name: str, value: str | None = None) -> str:
        """Read, or write and read, by dotted name. /proc/sys/net shows the reader's namespace."""
        file = Path("/proc/sys") / name.replace(".", "/")

        def access() -> str:
            if value is not None:
                file.write_text(value)
            return file.read_text().strip()

        return self.call(access)

    def call(self, function: Callable[[], T]) -> T:
        """Run a function of this program in the namespace, in a thread made for it.

        Sockets that it opens stay in the namespace, so they may be used outside afterwards.
        (Not pyroute2's, which opens another one for each thread.)
        """
        result: list[T] = []
        failure: list[BaseException] = []

        def enter() -> None:
            try:
                _enter(self.path)
                result.append(function())
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return result[0]

    @contextmanager
    def entered(self) -> Iterator[None]:
        """With the calling thread in the namespace meanwhile."""
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(self.path)
            try:
                yield
            finally:
                _enter(Path(f"/proc/self/fd/{own}"))
        finally:
            os.close(own)

    def http(self, url: str, seconds: float = 5) -> tuple[int, str]:
        """GET from inside: status and body; OSError if nobody answers, or not to the end."""

        def fetch() -> tuple[int, str]:
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Lenient())
            try:
                with opener.open(url, timeout=seconds) as response:
                    return response.status, response.read().decode()
            except HTTPException as error:  # killed in the middle of its answer
                raise ConnectionError(f"{url}: {error!r}") from error

        return self.call(fetch)

    def listens(self, port: int, protocol: str = "tcp") -> bool:
        """Whether a socket of the namespace is bound to the port."""
        found = self.run("ss", "-Hnl", f"--{protocol}", f"sport = :{port}")
        return bool(found.stdout.strip())

    def serve(self, *command: str, port: int, protocol: str = "tcp") -> Process:
        """`popen` a server and return when its port is bound."""
        server = self.popen(*command)

        def bound() -> bool:
            assert server.poll() is None, f"{command} ended\n{server.out()}{server.log()}"
            return self.listens(port, protocol)

        wait_until(bound, 60, f"{command} listens on {protocol} port {port}")
        return server

    def offload(self, device: str, feature: str, on: bool) -> None:
        """`ethtool -K`; `tx off` on an underlay veth models a real wire."""
        self.run("ethtool", "-K", device, feature, "on" if on else "off")

    def stop_processes(self) -> None:
        """End what `popen`, `serve` and `spawn` started."""
        for process in self._processes:
            process.stop(seconds=2)
        self._processes.clear()


class Namespace(Netns):
    """A network namespace that we made, by its name below /run/netns."""

    def __init__(self, netns: str, scratch: Path) -> None:
        """Create it, with its loopback up."""
        super().__init__(Path("/run/netns") / netns, scratch)
        self.netns = netns
        run(["ip", "netns", "add", netns])
        # A namespace of ours speaks IPv4 only: no router solicitations in captures and counters.
        self.sysctl("net.ipv6.conf.all.disable_ipv6", "1")
        self.ip("link", "set", "lo", "up")

    def ip(self, *arguments: str) -> str:
        """`ip -n`, which needs no process in the namespace."""
        return run(["ip", "-n", self.netns, *arguments]).stdout

    def remove(self) -> None:
        """End its processes and delete it. Twice is fine."""
        self.stop_processes()
        if self.path.exists():
            end_processes(self.netns)
            run(["ip", "netns", "del", self.netns])


class _Lenient(urllib.request.HTTPErrorProcessor):
    """A status of 400 and more is an answer, not an exception."""

    def http_response(self, request: object, response: object) -> object:
        return response


def end_processes(netns: str) -> None:
    """Kill whatever still runs in a namespace of ours (children that left their group)."""
    for _ in range(10):
        pids = [int(pid) for pid in run(["ip", "netns", "pids", netns], check=False).stdout.split()]
        if not pids:
            return
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for pid in pids:
            wait_until(partial(_gone, pid), 5, f"process {pid} of {netns} ends")


def _gone(pid: int) -> bool:
    return not alive(pid)


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"
