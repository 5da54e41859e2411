"""What teardown takes: by our mark and our files' names, and what it says when it may not."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ctl.core.errors import AgentError
from ctl.core.host import OWNER, Link
from ctl.node import teardown
from ctl.settings.config import Settings, resolve

BRIDGE = Link(3, "br7", "bridge", None, 1450, True, 0, False, OWNER, 0)
VXLAN = replace(BRIDGE, ifindex=4, name="ovnet.7", kind="vxlan")
PORT = replace(BRIDGE, ifindex=5, name="veth1", kind="veth", alias="", master=3)
OTHERS = replace(BRIDGE, ifindex=6, name="ovnet0", alias="")


class Links:
    """The part of Netlink that devices are removed with."""

    def __init__(self, links: Sequence[Link]) -> None:
        self.left = {link.ifindex: link for link in links}

    def links(self) -> dict[int, Link]:
        return dict(self.left)

    def remove(self, link: Link) -> None:
        del self.left[link.ifindex]


def removed(*links: Link) -> tuple[list[str], set[str]]:
    """What is said of removing the devices of a host, and the names of those left."""
    host: Any = Links(links)
    nowhere = settings(Path("/nowhere"), Path("/nowhere/subnet.env"))
    return teardown._devices(nowhere, host), {link.name for link in host.left.values()}


def test_a_bridge_of_ours_goes_whatever_its_name() -> None:
    assert removed(BRIDGE, VXLAN, OTHERS) == (["tunnel ovnet.7", "bridge br7"], {"ovnet0"})


def test_a_bridge_with_ports_stays() -> None:
    said, left = removed(BRIDGE, PORT, OTHERS)
    assert said == ["kept bridge br7: it still has ports"]
    assert left == {"br7", "veth1", "ovnet0"}


def settings(state: Path, env: Path) -> Settings:
    given = argparse.Namespace(state_dir=str(state), subnet_file=str(env))
    return resolve(given, {}, None)


def test_files_of_ours_go_and_what_killed_agents_left_of_them(tmp_path: Path) -> None:
    state, run = tmp_path / "state", tmp_path / "run"
    ours = [
        *(state / name for name in ("status.json", "programs-feed.json")),
        *(state / f".{name}.4711" for name in ("status.json", "sysctls.json", "programs-feed.json")),
        *(run / name for name in ("[subnet].env", ".[subnet].env.4711")),
    ]
    theirs = [state / "agent.lock", state / ".status.json.swp", run / "s.env", run / ".other.4711"]
    for path in (*ours, *theirs):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    said = teardown._files(settings(state, run / "[subnet].env"))
    assert said == [f"files {', '.join(map(str, sorted(ours)))}"]
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(theirs)
    assert teardown._files(settings(state, run / "[subnet].env")) == []


def test_a_file_that_cannot_be_removed_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "subnet.env").mkdir()
    with pytest.raises(AgentError, match=rf"^cannot remove {tmp_path}/subnet.env: "):
        teardown._files(settings(tmp_path, tmp_path / "subnet.env"))
