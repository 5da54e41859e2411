"""Bad input to the real agent: one clear line, the documented exit code, nothing changed."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.host import Host, ovctl_argv
from tests.lab import Lab, run, wait_until
from tests.namespace import REPOSITORY

FAILED, USAGE, NOT_FOUND, UNREACHABLE = 1, 2, 3, 4


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """A host with a network in its store, on which no agent has run."""
    with Lab() as lab:
        made = lab.host("a")
        lab.init_network()
        yield made


def refused(
    host: Host,
    code: int,
    *words: str,
    command: tuple[str, ...] = ("agent",),
    env: dict[str, str] | None = None,
) -> str:
    """Run it; check exit code, the one line with `words` in it, and that nothing has changed."""
    before = host.footprint()
    done = host.ovctl(*command, check=False, env=env)
    lines = done.stderr.splitlines()
    assert done.returncode == code, done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("ovctl: error: ")
    for word in words:
        assert word in lines[0]
    assert done.stdout == ""
    assert host.footprint() == before
    assert not (host.state_dir / "subnet.env").exists()
    return lines[0]


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--bogus"], "--bogus"),
        (["--bypas", "off"], "--bypas"),
        (["--bypass", "sideways"], "sideways"),
        (["--hook", "kprobe"], "kprobe"),
        (["--approval-ttl", "soon"], "soon"),
        (["--metrics-port", "70000"], "70000"),
        (["--state-dir", "relative/path"], "relative/path"),
        (["--public-ip", "300.1.1.1"], "300.1.1.1"),
        (["--store", "redis://x"], "redis"),
        (["--bridge", "a-name-that-is-too-long"], "a-name-that-is-too-long"),
        (["extra"], "extra"),
    ],
)
def test_a_flag_that_cannot_be_is_named(host: Host, flags: list[str], word: str) -> None:
    refused(host, USAGE, word, command=("agent", *flags))


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OVNET_BYPASS", "sideways"),
        ("OVNET_APPROVAL_TTL", "-1"),
        ("OVNET_BYPAS", "off"),
        ("OVNET_IFACE", "a/b"),
    ],
)
def test_a_variable_that_cannot_be_is_named(host: Host, variable: str, value: str) -> None:
    refused(host, USAGE, variable, env={variable: value})


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("bypass = ", "Invalid value"),
        ('bypas = "off"', "bypas"),
        ("metrics_port = '9475'", "metrics_port"),
        ("metrics_port = 0.5", "metrics_port"),
        ('bypass = "sideways"', "sideways"),
        ("[bypass]\nmode = 1", "bypass"),
        ("\xff", ""),
    ],
)
def test_what_is_wrong_in_the_settings_file_is_named_with_the_file(
    host: Host, tmp_path: Path, text: str, word: str
) -> None:
    file = tmp_path / "ovnet.toml"
    file.write_text(text, encoding="latin-1")
    refused(host, USAGE, str(file), word, command=("--config", str(file), "agent"))


def test_settings_file_that_is_not_there(host: Host) -> None:
    refused(host, USAGE, "/nowhere/ovnet.toml", command=("--config", "/nowhere/ovnet.toml", "agent"))


@pytest.mark.parametrize(
    "flags",
    [
        ["--network", "172.17.0.0/16", "--subnet-len", "15"],
        ["--network", "172.17.0.0/16", "--subnet-len", "16"],
        ["--network", "172.17.0.0/16", "--subnet-len", "31"],
        ["--network", "172.17.5.0/16"],
        ["--network", "172.17.0.0/33"],
        ["--network", "somewhere"],
        ["--network", "fd00::/48"],
        ["--network", "172.17.0.0/16", "--vni", "16777216"],
        ["--network", "172.17.0.0/16", "--port", "65536"],
        ["--network", "172.17.0.0/16", "--subnet-min", "10.0.0.0"],
    ],
)
def test_networks_that_cannot_be(host: Host, flags: list[str]) -> None:
    refused(host, USAGE, command=("network", "init", *flags))


def test_another_network_in_the_store_is_not_replaced(host: Host) -> None:
    refused(host, FAILED, "--force", command=("network", "init", "--network", "10.1.0.0/16"))
    assert host.json("network", "show")["network"] == "172.17.0.0/16"


def test_a_network_without_a_free_subnet_is_named(host: Host, tmp_path: Path) -> None:
    store = f"sqlite://{tmp_path}/small.sqlite"
    env = {"OVNET_STORE": store}
    host.ovctl("network", "init", "--network", "10.2.0.0/22", "--subnet-len", "24", env=env)
    for index in (1, 2, 3):
        host.ovctl("lease", "reserve", f"10.2.{index}.0/24", "--host", f"192.168.77.{100 + index}", env=env)
    refused(host, FAILED, "10.2.0.0/22", env=env)


@pytest.mark.parametrize("content", [b"not a database, but long enough to be read as one" * 20, b"\0" * 4096])
def test_store_that_is_not_sqlite(host: Host, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "store"
    file.write_bytes(content)
    refused(host, UNREACHABLE, str(file), env={"OVNET_STORE": f"sqlite://{file}"})
    assert file.read_bytes() == content


def test_store_that_is_not_there(host: Host) -> None:
    refused(host, UNREACHABLE, "/nowhere/store", env={"OVNET_STORE": "sqlite:///nowhere/store"})


def test_store_without_a_network_is_waited_for(lab: Lab) -> None:
    """As flannel does: the order in which a network and its nodes come up does not matter."""
    host = lab.host("a")
    lab.init_network()
    with closing(sqlite3.connect(lab.store)) as db, db:
        (table,) = db.execute("SELECT name FROM sqlite_master WHERE name LIKE '%network%'").fetchone()
        db.execute(f"DELETE FROM {table}")
    before = host.footprint()
    agent = host.agent(wait=False)
    wait_until(lambda: "network init" in agent.log(), 10, lambda: f"it says so\n{agent.log()}")
    assert host.footprint() == before
    assert not agent.ready()
    lab.init_network()
    agent.wait_ready()


def test_store_that_is_read_only(host: Host, tmp_path: Path) -> None:
    place = tmp_path / "read-only"
    place.mkdir()
    run(["mount", "-t", "tmpfs", "tmpfs", str(place)])
    try:
        env = {"OVNET_STORE": f"sqlite://{place}/store"}
        host.ovctl("network", "init", "--network", "10.4.0.0/16", env=env)
        run(["mount", "-o", "remount,ro", str(place)])
        refused(host, UNREACHABLE, "read-only", env=env)
    finally:
        run(["umount", str(place)])


def test_store_that_is_locked(host: Host) -> None:
    db = sqlite3.connect(host.lab.store, isolation_level=None)
    db.execute("BEGIN EXCLUSIVE")
    try:
        refused(host, UNREACHABLE, "locked")
    finally:
        db.execute("ROLLBACK")
        db.close()


def test_uplink_that_does_not_exist(host: Host) -> None:
    refused(host, FAILED, "nope0", env={"OVNET_IFACE": "nope0"})


def test_uplink_without_an_address(host: Host) -> None:
    host.ip("link", "add", "bare0", "type", "veth", "peer", "name", "bare1")
    host.ip("link", "set", "bare0", "up")
    refused(host, FAILED, "bare0", env={"OVNET_IFACE": "bare0"})
    host.ip("link", "del", "bare0")


def test_no_default_route_to_tell_the_uplink(host: Host) -> None:
    refused(host, FAILED, "--iface", env={"OVNET_IFACE": ""})


def test_an_uplink_whose_mtu_is_too_small_is_refused(host: Host) -> None:
    host.ip("link", "set", "eth0", "mtu", "600")
    try:
        refused(host, FAILED, "MTU", "600")
    finally:
        host.ip("link", "set", "eth0", "mtu", "1500")


@pytest.mark.parametrize("command", [("agent",), ("teardown",), ("hook", "list")], ids=" ".join)
def test_without_root(host: Host, tmp_path: Path, command: tuple[str, ...]) -> None:
    before = host.footprint()
    env = {**os.environ, **host.env, "OVNET_STATE_DIR": "/tmp/ovlab-none", "OVNET_CONFIG": "/dev/null"}
    done = run(
        host.argv("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *ovctl_argv(), *command),
        check=False, env=env, cwd=REPOSITORY,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (FAILED, "")
    assert done.stderr.splitlines() == [done.stderr.strip()]
    assert "root" in done.stderr
    assert host.footprint() == before


def test_second_agent_with_the_same_state_directory(lab: Lab) -> None:
    host = lab.host("a")
    lab.init_network()
    agent = host.agent()
    before = host.footprint()
    done = host.ovctl("agent", check=False)
    assert done.returncode == FAILED
    assert done.stderr.splitlines() == [done.stderr.strip()]
    assert str(host.state_dir) in done.stderr
    assert host.footprint() == before
    assert agent.ready()


@pytest.mark.parametrize("text", ["nonsense", "172.17.0.0/16", "300.1.1.1", ""])
def test_map_get_of_what_is_no_address(host: Host, text: str) -> None:
    refused(host, USAGE, "is not an IPv4 or IPv6 address", command=("map", "get", text))


@pytest.mark.parametrize("command", ["map dump", "map dump peers", "map get 172.17.1.1", "flow flush"])
def test_no_datapath_to_look_into(host: Host, command: str) -> None:
    refused(host, UNREACHABLE, str(host.bpffs), command=tuple(command.split()))


def test_status_without_an_agent(host: Host) -> None:
    assert host.ovctl("status", check=False).returncode == UNREACHABLE


def test_leases_that_are_not_there_or_cannot_be_are_refused(host: Host) -> None:
    refused(host, NOT_FOUND, command=("lease", "release", "172.17.9.0/24"))
    refused(host, USAGE, command=("lease", "reserve", "172.17.9.0/25", "--host", "192.168.77.9"))
    refused(host, USAGE, command=("lease", "reserve", "172.17.9.0/24", "--host", "nobody"))
