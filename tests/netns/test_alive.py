"""An agent that is alive does its work: a thread that dies takes it along, a start removes what is stale."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path

from tests.chaos.stores import put_lease
from tests.hooks import programs
from tests.host import Agent, Host
from tests.lab import Lab, wait_until
from tests.namespace import REPOSITORY
from tests.netns.conftest import build

TRIPWIRE = """
import importlib, sys
from pathlib import Path
module, path, file = sys.argv[1:4]
*parents, name = path.split(".")
place = importlib.import_module(module)
for parent in parents:
    place = getattr(place, parent)
real = getattr(place, name)
def trip(*args, **kwargs):
    if Path(file).exists():
        raise RuntimeError("a bug in " + path)
    return real(*args, **kwargs)
setattr(place, name, trip)
sys.argv[1:] = sys.argv[4:]
from ctl.cli.main import main
sys.exit(main())
"""
"""An agent in which a function raises as soon as a file exists."""

THREADS = {
    "netlink-monitor": ("ctl.kernel.netlink.classify", "_decode"),
    "sqlite-watch": ("ctl.store.sqlite.store", "_Watch._look"),
    "metrics": ("metrics.http", "_Server.service_actions"),
}
ETCD_THREADS = {
    "etcd-watch": ("ctl.store.etcd.watch", "Watch._take"),
    "etcd-doubt": ("ctl.store.etcd.watch", "Watch._silent_for"),
}


def tripwired(host: Host, module: str, path: str, file: Path) -> Agent:
    """An agent of that kind, ready."""
    argv = host.argv(sys.executable, "-c", TRIPWIRE, module, path, str(file), "agent")
    agent = Agent(argv, host.lab.dir / f"tripwired-{path}", env=host.environment(), cwd=REPOSITORY)
    agent.host = host
    host.lab.at_close(lambda: agent.kill(signal.SIGKILL))
    agent.wait_ready()
    return agent


def provoke(host: Host) -> None:
    """Something for every thread to do."""
    host.ip("link", "add", "wakes", "type", "bridge")
    host.ip("link", "del", "wakes")


def ends(agent: Agent, path: str) -> None:
    """With code 1, and a traceback that names the function."""

    def ended() -> bool:
        if agent.poll() is None:
            provoke(agent.host)
        return agent.poll() is not None

    wait_until(ended, 60, lambda: f"the agent ends\n{agent.log()}")
    assert agent.poll() == 1, agent.log()
    assert f"RuntimeError: a bug in {path}" in agent.log()


def test_a_thread_that_dies_takes_the_process_down_with_a_message(lab: Lab) -> None:
    a = lab.host("a")
    lab.init_network()
    for thread, (module, path) in THREADS.items():
        file = lab.dir / f"trip-{thread}"
        agent = tripwired(a, module, path, file)
        threads = Path(f"/proc/{agent.pid}/task").glob("*/comm")
        assert len(list(threads)) >= 4, "main thread, monitor, watch, metrics"
        file.touch()
        ends(agent, path)
    assert a.agent().ready(), "and the next one starts"


def test_a_thread_of_the_etcd_store_that_dies_takes_the_process_down(lab: Lab) -> None:
    etcd = lab.etcd()
    a = lab.host("a")
    lab.init_network()
    for thread, (module, path) in ETCD_THREADS.items():
        file = lab.dir / f"trip-{thread}"
        agent = tripwired(a, module, path, file)
        file.touch()
        put_lease(etcd, "172.17.99.0-24", f"192.168.77.{len(thread)}")
        ends(agent, path)


OURS: dict[str, tuple[str, ...]] = {
    "route": ("ip", "route", "add", "172.17.250.0/24", "dev", "eth0", "proto", "147"),
    "neighbour": ("ip", "neigh", "add", "172.17.250.0", "lladdr", "02:00:00:00:02:50", "nud", "permanent",
                  "dev", "ovnet.1"),
    "fdb": ("bridge", "fdb", "add", "02:00:00:00:02:50", "dev", "ovnet.1", "dst", "192.168.77.250", "self"),
}  # fmt: skip
FOREIGN: tuple[tuple[str, ...], ...] = (
    ("ip", "route", "add", "172.17.251.0/24", "dev", "eth0"),
    ("ip", "route", "add", "172.18.0.0/24", "dev", "eth0", "proto", "static"),
    ("ip", "link", "add", "theirs", "type", "bridge"),
    (
        "ip",
        "link",
        "add",
        "other",
        "type",
        "vxlan",
        "id",
        "77",
        "dstport",
        "4789",
        "local",
        "192.168.77.11",
        "dev",
        "eth0",
    ),
    (
        "ip",
        "neigh",
        "add",
        "192.168.77.240",
        "lladdr",
        "02:00:00:00:02:40",
        "nud",
        "permanent",
        "dev",
        "eth0",
    ),
    ("bridge", "fdb", "add", "02:00:00:00:02:51", "dev", "other", "dst", "192.168.77.251", "self"),
    ("tc", "qdisc", "replace", "dev", "eth0", "clsact"),
    (
        "tc",
        "filter",
        "add",
        "dev",
        "eth0",
        "egress",
        "prio",
        "1",
        "protocol",
        "ip",
        "u32",
        "match",
        "u32",
        "0",
        "0",
        "classid",
        "1:1",
    ),
    ("nft", "add", "table", "ip", "theirs"),
    ("nft", "add", "chain", "ip", "theirs", "mine", "{ type filter hook forward priority 10; }"),
    ("nft", "add", "rule", "ip", "theirs", "mine", "counter", "comment", '"ovnet"'),
)


def test_a_start_removes_what_is_stale_and_only_what_is_ours(lab: Lab) -> None:
    """What an earlier life has left, of every kind; beside each something of somebody else."""
    pair = build(lab)
    a = pair.a
    wait_until(lambda: len(programs(a, pair.on_a.port)) == 2, 20, "the port has its programs")
    first = a.footprint()
    pair.agents["a"].stop()
    for command in FOREIGN:
        a.run(*command)
    with_foreign = a.footprint()
    for command in OURS.values():
        a.run(*command)
    a.nft("add rule ip ovnet postrouting counter accept\nadd chain ip ovnet stale\n")
    leave_pins(a)
    alien = a.bpffs / "not-ours"
    alien.mkdir()
    assert a.footprint() != with_foreign
    agent = a.agent("--approval-ttl", "1")
    alien.rmdir()
    now = a.footprint()
    for name, text in now.items():
        assert _stable(text) == _stable(with_foreign[name]), f"{name}: as it was, without what is stale"
    assert now["pins"] == first["pins"]
    agent.stop()


def leave_pins(host: Host) -> None:
    """Programs and maps of a build and of a layout that are no more."""
    (programs,) = host.bpffs.glob("v*/progs-*")
    (pin,) = programs.glob("from_wire")
    old = programs.with_name("progs-0123456789abcdef")
    older = host.bpffs / "v0" / "maps"
    for directory in (old, older):
        directory.mkdir(parents=True)
    host.run("bpftool", "prog", "pin", "pinned", str(pin), str(old / "from_wire"))
    (node,) = host.bpffs.glob("v*/maps/node")
    host.run("bpftool", "map", "pin", "pinned", str(node), str(older / "node"))


def _stable(text: str) -> str:
    """Without what counts and what is numbered anew."""
    text = re.sub(r"packets \d+ bytes \d+|handle \S+|id \d+|tag \w+|jited|pref \d+", "", text)
    return "\n".join(sorted(" ".join(line.split()) for line in text.splitlines()))
