"""Addresses that the plugin host-local keeps for containers whose DEL never came, found and freed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cni import ConflistContainer
from tests.host import Host, ovctl_argv
from tests.lab import Lab, wait_until
from tests.process import CommandFailed, run


@dataclass
class Node:
    """A host whose runtime goes by our configuration."""

    host: Host
    conflist: Path
    data_dir: Path

    @property
    def store(self) -> Path:
        return self.data_dir / "cbr0"

    @property
    def flags(self) -> tuple[str, ...]:
        return "--cni-conf", str(self.conflist), "--cni-data-dir", str(self.data_dir)

    def container(self, name: str) -> ConflistContainer:
        return ConflistContainer(self.host, name, self.conflist, [])

    def leak(self, number: int, age: float = 3600.0) -> str:
        """An address that was given out, `age` seconds ago, to what is not there any more."""
        address = str(self.host.gateway.network[number])
        (self.store / address).write_text(f"gone-{number}\r\neth0")
        self.older(address, age)
        return address

    def older(self, address: str, age: float = 3600.0) -> None:
        os.utime(self.store / address, (time.time() - age,) * 2)

    def check(self, *flags: str, inside: bool = True) -> tuple[int, dict[str, dict[str, Any]]]:
        """Exit code, and what is shown, by address. Not `inside`: no namespace is seen, as from a pod."""
        hidden = (
            () if inside else ("unshare", "-m", "sh", "-c", 'mount -t tmpfs - /run/netns; exec "$@"', "sh")
        )
        check = ("ipam", "check", "-o", "json", *flags, *self.flags)
        done = self.host.run(*hidden, *ovctl_argv(), *check, check=False, env=self.host.environment())
        return done.returncode, {each["address"]: each for each in json.loads(done.stdout)}

    def addresses(self) -> list[dict[str, str]]:
        """What the doctor says of them."""
        found = self.host.ovctl("doctor", "--no-probe", "-o", "json", *self.flags, check=False)
        return [each for each in json.loads(found.stdout) if each["check"] == "addresses"]


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Lab() as lab:
        a = lab.host("a")
        # None that another lab on this machine has: any namespace with an address is a sign of life.
        lab.init_network("172.29.128.0/17")
        a.bridge = "cni0"
        found = Node(a, lab.dir / "10-flannel.conflist", lab.dir / "cni")
        a.agent(*found.flags)
        wait_until(found.conflist.exists, 30, "its runtime is told")
        yield found


def test_a_report_has_what_is_leaked(node: Node, tmp_path: Path) -> None:
    node.store.mkdir(parents=True, exist_ok=True)
    leaked, path = node.leak(199), tmp_path / "report"
    try:
        node.host.ovctl("report", "--write", str(path), *node.flags)
        said = run(["tar", "-xOf", str(path), "--wildcards", "*/ovctl/ipam_check_*"]).stdout
        assert [line.split()[:2] for line in said.splitlines() if "gone-199" in line] == [[leaked, "leaked"]]
        assert said.endswith("exit 1\n")
    finally:
        node.host.ovctl("ipam", "release", leaked, *node.flags)


def test_what_is_in_use_is_never_leaked_and_what_is_leaked_is_freed_when_asked_for(node: Node) -> None:
    running, quiet, dead = (node.container(name) for name in ("running", "quiet", "dead"))
    for each in (running, quiet, dead):
        node.older(each.address)
    quiet.run("sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=8")  # it answers nobody
    node.host.ip("neigh", "flush", "dev", "cni0")
    dead.remove()  # with no DEL
    young, old = node.leak(240, age=30), node.leak(241)
    wait_until(lambda: len(node.host.status()["ports"]) == 2, 30, "its port is gone")
    code, shown = node.check()
    assert (code, {address: each["state"] for address, each in shown.items()}) == (
        1, {dead.address: "leaked", old: "leaked", young: "young"},
    )  # fmt: skip
    _, everything = node.check("--all")
    assert {each["why"] for each in everything.values() if each["state"] == "used"} <= {
        "answers ARP", "a network namespace has it", "an endpoint of eBPF",
    }  # fmt: skip
    for named, code, words in ((young, 1, "is young"), ("172.29.200.9", 3, "is not reserved")):
        refused = node.host.ovctl("ipam", "release", old, named, *node.flags, check=False)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (code, 1)
        assert words in refused.stderr and (node.store / old).exists(), "all of them, or none"
    assert old in node.host.ovctl("ipam", "release", old, *node.flags).stdout
    assert not (node.store / old).exists() and (node.store / dead.address).exists()
    freed = json.loads(node.host.ovctl("ipam", "release", "-o", "json", *node.flags).stdout)
    assert [each["address"] for each in freed] == [dead.address]
    assert {each.name for each in node.store.iterdir()} >= {running.address, quiet.address, young}
    assert node.check()[0] == 0
    for each in (running, quiet):
        each.unplug()
    (node.store / young).unlink()


def test_from_a_pod_a_container_that_answers_nobody_is_seen_by_its_port(node: Node) -> None:
    quiet = node.container("hushed")
    node.older(quiet.address)
    quiet.run("sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=8")
    old = node.leak(243)
    node.host.ip("neigh", "flush", "dev", "cni0")
    _, shown = node.check(inside=False)
    assert {each["state"] for each in shown.values()} == {"unclear"}, "which of the two it has is not known"
    quiet.run("ping", "-c1", "-W5", str(node.host.gateway.ip))
    code, shown = node.check("--all", inside=False)
    assert (code, shown[quiet.address]["state"], shown[old]["state"]) == (1, "used", "leaked")
    quiet.unplug()
    (node.store / old).unlink()


def test_a_container_of_which_nothing_is_known_keeps_every_address(node: Node) -> None:
    mute = node.container("mute")
    node.older(mute.address)
    mute.ip("address", "flush", "dev", "eth0")
    node.host.ip("neigh", "flush", "dev", "cni0")
    old = node.leak(242)
    code, shown = node.check()
    assert (code, {each["state"] for each in shown.values()}) == (0, {"unclear"})
    assert "says nothing" in shown[old]["why"]
    assert node.host.ovctl("ipam", "release", *node.flags).stdout.splitlines()[1:] == []
    assert (node.store / old).exists()
    mute.unplug()
    (node.store / old).unlink()


def test_a_subnet_that_is_full_of_them_is_told_and_takes_containers_again(node: Node) -> None:
    for number in range(2, 255):
        node.leak(number)
    with pytest.raises(CommandFailed, match="no IP addresses available"):
        node.container("refused")
    for port in node.host.ip("-br", "link", "show", "master", "cni0", "type", "veth").split()[::4]:
        node.host.ip("link", "del", port.partition("@")[0])  # as the runtime's DEL does
    (line,) = node.addresses()
    assert line["level"] == "failure" and line["remedy"] == "ovctl ipam release"
    assert line["seen"].startswith("253 of 253 addresses are given out, 253 of them to no container")
    node.host.ovctl("ipam", "release", str(node.host.gateway.network[77]), *node.flags)
    one = node.container("one")
    assert one.address == str(node.host.gateway.network[77])
    node.host.ovctl("ipam", "release", *node.flags)
    assert [each["level"] for each in node.addresses()] == ["ok"]
    assert {each.name for each in node.store.iterdir()} == {one.address, "lock", "last_reserved_ip.0"}
