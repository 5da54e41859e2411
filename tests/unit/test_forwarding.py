"""Which devices forward: ours are set, others' named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ctl.kernel import sysctl
from ctl.node import forwarding


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for /proc/sys, with four devices that do not forward."""
    root = tmp_path / "proc"
    for device in ("ovnet0", "ovnet.1", "eth0", "docker0"):
        (root / "net/ipv4/conf" / device).mkdir(parents=True)
        (root / sysctl.forwarding(device)).write_text("0\n")
    monkeypatch.setattr(sysctl, "_ROOT", root)
    return root


def test_ours_are_set_and_noted_and_others_named(proc: Path, tmp_path: Path) -> None:
    saved = tmp_path / "sysctls.json"
    forwarding.ensure(["ovnet0", "ovnet.1"], saved)
    lines = forwarding.lacking(["eth0", "docker0"])
    assert {sysctl.read(sysctl.forwarding(name)) for name in ("ovnet0", "ovnet.1")} == {"1"}
    assert {sysctl.read(sysctl.forwarding(name)) for name in ("eth0", "docker0")} == {"0"}
    assert json.loads(saved.read_text()) == {
        "net/ipv4/conf/ovnet.1/forwarding": "0",
        "net/ipv4/conf/ovnet0/forwarding": "0",
    }
    assert [line.split()[0] for line in lines] == ["docker0", "eth0"]
    assert "sysctl -w net.ipv4.conf.eth0.forwarding=1" in lines[1]


def test_others_that_forward_or_are_gone_are_not_named(proc: Path) -> None:
    (proc / sysctl.forwarding("eth0")).write_text("1\n")
    assert forwarding.lacking(["eth0", "gone0"]) == ()


def test_a_setting_for_a_while_is_as_before_afterwards(proc: Path) -> None:
    name = sysctl.forwarding("eth0")
    with pytest.raises(ZeroDivisionError), sysctl.meanwhile(name, "1"):
        assert sysctl.read(name) == "1"
        raise ZeroDivisionError
    assert sysctl.read(name) == "0"
    with sysctl.meanwhile(sysctl.forwarding("gone0"), "1"):
        assert sysctl.read(sysctl.forwarding("gone0")) is None


def test_a_dot_in_a_devices_name_is_told_as_sysctl_takes_it() -> None:
    assert sysctl.dotted(sysctl.forwarding("ovnet.1")) == "net.ipv4.conf.ovnet/1.forwarding"
    assert sysctl.dotted("net/ipv4/ip_forward") == "net.ipv4.ip_forward"
