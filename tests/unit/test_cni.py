"""The CNI configuration: what a runtime is told, where, and what becomes of others'."""

from __future__ import annotations

import argparse
import errno
import json
import os
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctl.agent.schedule import TICK_S
from ctl.agent.steps import Part
from ctl.core import cni
from ctl.core.errors import AgentError, ConfigError, KernelError
from ctl.core.findings import Concern
from ctl.core.wire import SubnetEnv, format_subnet_env
from ctl.node.cni import CniConf, restore
from ctl.settings.config import resolve
from tests.cni import KUBE_FLANNEL, delegate, load_subnet_env
from tests.unit.test_agent_fencing import steal
from tests.unit.world import World

ENV = SubnetEnv(IPv4Network("10.244.0.0/16"), IPv4Network("10.244.1.0/24"), 1450, ip_masq=True)
ANOTHERS = json.dumps({"name": "cbr0", "plugins": [{"type": "flannel"}]})


def conf_at(path: Path) -> CniConf:
    return CniConf(resolve(argparse.Namespace(bridge="cni0"), {}, None), path)


def test_the_bridge_plugin_is_told_what_flannels_plugin_would_tell_it(tmp_path: Path) -> None:
    """By the twin of that plugin, from our subnet.env: so addresses and pods of before stay valid."""
    (tmp_path / "subnet.env").write_text(format_subnet_env(ENV))
    theirs = delegate(KUBE_FLANNEL, load_subnet_env(tmp_path / "subnet.env"))
    whole = json.loads(cni.conflist(ENV, "cni0", ()))
    ours = whole["plugins"][0] | {"name": whole["name"], "cniVersion": whole["cniVersion"]}
    assert ours.pop("bridge") == "cni0"  # the plugin's default
    assert ours == theirs


def test_plugins_are_chained_by_name_or_as_they_are_written() -> None:
    assert cni.parse_plugins("") == ()
    assert cni.parse_plugins("portmap, bandwidth,sbr") == (
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
        {"type": "sbr"},
    )
    assert cni.parse_plugins('[{"type":"tuning","sysctl":{"a":"1"}}]') == (
        {"type": "tuning", "sysctl": {"a": "1"}},
    )


@pytest.mark.parametrize("text", ["portmap,,sbr", "a/b", "[{}]", "[1]", '[{"type":""}]', "[", '["portmap"]'])
def test_a_list_of_plugins_that_is_none_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        resolve(argparse.Namespace(cni_plugins=text), {}, None)
    assert "\n" not in str(refused.value) and "--cni-plugins" in str(refused.value)


NAMES = st.sampled_from(["00-multus.conf", "10-flannel.conflist", "20-x.json", "87-podman.conf", "0"])


@given(st.sets(NAMES))
def test_a_runtime_takes_the_first_file_that_it_can_read(names: set[str]) -> None:
    line = cni.shadowed(Path("/etc/cni/net.d/10-flannel.conflist"), names)
    assert line.startswith("/etc/cni/net.d/00-multus.conf sorts before") == ("00-multus.conf" in names)
    assert bool(line) == ("00-multus.conf" in names)


def test_what_was_there_is_set_aside_and_put_back(tmp_path: Path) -> None:
    path = tmp_path / "10-flannel.conflist"
    path.write_text(ANOTHERS)
    conf = conf_at(path)
    conf.admit(ENV)
    assert cni.is_ours(path.read_text())
    inode = path.stat().st_ino
    conf.admit(ENV)
    assert path.stat().st_ino == inode, "nothing has changed, so nothing is written"
    assert path.stat().st_mode & 0o777 == 0o644
    conf.refuse()
    assert [each.name for each in tmp_path.iterdir()] == ["10-flannel.conflist.before-ovnet"]
    conf.refuse()
    conf.admit(ENV)
    assert restore(path) == [f"CNI configuration {path} as it was before"]
    assert [(each, each.read_text()) for each in tmp_path.iterdir()] == [(path, ANOTHERS)]
    conf.refuse()
    assert restore(path) == []
    assert path.read_text() == ANOTHERS, "it is not ours to take away"


def test_nothing_is_put_back_where_nothing_was(tmp_path: Path) -> None:
    path = tmp_path / "10-flannel.conflist"
    assert restore(path) == []
    conf_at(path).admit(ENV)
    assert restore(path) == [f"CNI configuration {path}"]
    assert list(tmp_path.iterdir()) == []


def test_a_runtime_that_cannot_be_told_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="no directory .*: make it"):
        conf_at(tmp_path / "net.d" / "10-flannel.conflist").admit(ENV)
    (tmp_path / "00-multus.conf").write_text("{}")
    with pytest.raises(AgentError, match=r"00-multus\.conf sorts before 10-flannel\.conflist"):
        conf_at(tmp_path / "10-flannel.conflist").admit(ENV)
    (tmp_path / "20-x").mkdir()
    with pytest.raises(AgentError, match="cannot write"):
        conf_at(tmp_path / "20-x").admit(ENV)


def test_a_directory_is_no_configuration_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "00-multus.conf").mkdir()
    conf_at(tmp_path / "10-flannel.conflist").admit(ENV)


def test_what_somebody_does_to_our_file_is_said_and_put_right(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "10-flannel.conflist"
    conf = conf_at(path)
    conf.admit(ENV)
    conf.admit(replace(ENV, mtu=1400))
    assert caplog.messages == [], "that was us"
    ours = path.read_text()
    path.unlink()
    conf.admit(replace(ENV, mtu=1400))
    path.write_text(ours.replace("1400", "9000"))
    conf.admit(replace(ENV, mtu=1400))
    path.write_text("half a fi")
    conf.admit(replace(ENV, mtu=1400))
    assert path.read_text() == ours
    assert [message.removeprefix(f"{path} was ") for message in caplog.messages] == [
        "removed by someone: written again",
        "changed by someone: written again",
        "another's: kept as 10-flannel.conflist.before-ovnet",
    ]


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (errno.EROFS, "Read-only file system: mount its file system read-write"),
        (errno.EACCES, "Permission denied: the directory has to be root's"),
        (errno.EIO, "Input/output error: container runtimes are not told"),
    ],
)
def test_a_directory_that_refuses_is_one_line_with_the_remedy_until_it_takes_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, line: str
) -> None:
    path = tmp_path / "10-flannel.conflist"
    conf = conf_at(path)

    def refused(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr("ctl.process.statedir.write_atomically", refused)
        with pytest.raises(AgentError, match=f"^cannot write {path}: {line}"):
            conf.admit(ENV)
    conf.admit(ENV)
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(Path, "unlink", refused)
        with pytest.raises(AgentError, match=f"^cannot remove {path}: {line}"):
            conf.refuse()
    conf.refuse()
    assert not path.exists()


def test_runtimes_are_looked_after_though_nothing_happens(world: World) -> None:
    """A file has no events here: what became of it is seen at each turn of the loop."""
    world.runtimes.failure = AgentError("read-only")
    world.run(1)
    assert world.problem(Concern.CNI) == ("read-only",)
    passes = world.passes()
    world.runtimes.failure = None
    world.run(2 * TICK_S)
    assert world.problem(Concern.CNI) == () and "read-only" not in world.report.problems
    assert world.passes() == passes


def test_containers_may_come_when_a_start_is_whole(world: World) -> None:
    """Until then what an earlier life told the runtimes stays."""
    world.kernel.failing[Part.FIREWALL] = KernelError("no nft")
    world.full()
    assert world.runtimes.told == []
    del world.kernel.failing[Part.FIREWALL]
    world.full()
    assert world.runtimes.told == [f"{world.lease.subnet} 1450"]


def test_no_more_may_come_while_another_host_holds_the_subnet(world: World) -> None:
    world.full()
    stolen = steal(world)
    world.read_store()
    assert world.runtimes.told[-1] == "no more"
    world.store.delete(stolen)
    world.read_store()
    assert world.runtimes.told[-1] == f"{world.lease.subnet} 1450"


def test_none_may_come_to_a_bridge_that_is_not_as_they_need_it(world: World) -> None:
    world.kernel.findings.problems[Concern.BRIDGE] = ("another address",)
    world.full()
    assert set(world.runtimes.told) == {"no more"}


def test_runtimes_that_cannot_be_told_are_a_problem_and_stop_nothing(world: World) -> None:
    world.runtimes.failure = AgentError("no directory")
    world.full()
    assert world.problem(Concern.CNI) == ("no directory",)
    assert "no directory" in world.report.problems
    assert world.report.ready
    world.runtimes.failure = None
    world.full()
    assert world.problem(Concern.CNI) == ()
