"""What may be taken over from flanneld, and what is refused."""

from __future__ import annotations

import os
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path

import pytest

from ctl.core.errors import AgentError, ConfigError
from ctl.core.host import Link
from ctl.core.model import MacAddress
from ctl.kernel import flannel
from ctl.node.takeover import Leftovers, read_macs, refusal, write_macs
from tests.unit.strategies import NETWORK

LINK = Link(7, "flannel.1", "vxlan", MacAddress(b"\2abcde"), 1450, True, 0, False, "", 0)
TUNNEL = flannel.TunnelDevice(LINK, (IPv4Interface("172.17.9.0/32"),), 8472)
GATEWAY = IPv4Interface("172.17.9.1/24")
LEFT: Leftovers[IPv4Address, IPv4Network] = Leftovers(
    NETWORK, TUNNEL, {}, ("chain FLANNEL-FWD",), (("cni0", GATEWAY),)
)


def test_what_flanneld_left_of_our_network_is_taken_over() -> None:
    assert refusal(LEFT, NETWORK, None, "cni0") is None
    assert LEFT.subnet("cni0") == IPv4Network("172.17.9.0/24")


def test_nothing_is_taken_from_a_flanneld_that_runs() -> None:
    why = refusal(LEFT, NETWORK, 4711, "cni0")
    assert isinstance(why, AgentError)
    assert str(why) == (
        "flanneld (pid 4711) runs on this host (flannel.1, chain FLANNEL-FWD): "
        "stop it first (systemctl disable --now flanneld)"
    )


def test_a_device_with_an_address_of_another_network_is_refused() -> None:
    other = replace(TUNNEL, addresses=(IPv4Interface("10.9.0.0/32"),))
    why = refusal(replace(LEFT, tunnel=other), NETWORK, None, "cni0")
    assert isinstance(why, AgentError)
    assert "flannel.1 has VNI 1 on port 8472" in str(why)
    assert "10.9.0.0 is not in 172.17.0.0/16" in str(why)


def test_a_device_that_flanneld_had_no_time_to_configure_is_taken() -> None:
    bare = replace(LEFT, tunnel=replace(TUNNEL, addresses=()))
    assert refusal(bare, NETWORK, None, "cni0") is None
    assert bare.subnet("cni0") == IPv4Network("172.17.9.0/24"), "the bridge tells"
    assert bare.subnet("ovnet0") is None


def test_the_bridge_of_the_containers_has_to_be_named() -> None:
    why = refusal(LEFT, NETWORK, None, "ovnet0")
    assert isinstance(why, ConfigError)
    assert str(why) == ("bridge cni0 has the containers' gateway 172.17.9.1/24: run with --bridge=cni0")
    elsewhere = replace(LEFT, bridges=(("docker0", IPv4Interface("172.17.8.1/24")),))
    assert refusal(elsewhere, NETWORK, None, "ovnet0") is None, "not the subnet of this host"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc in which process 100 is in our network namespace and 200 in another."""
    for name, inode in (("thread-self", "ours"), ("100", "ours"), ("200", "theirs")):
        (tmp_path / name / "net").mkdir(parents=True)
        (tmp_path / inode).touch()
        os.link(tmp_path / inode, tmp_path / name / "net" / "dev")
        (tmp_path / name / "comm").write_text("bash\n")
    (tmp_path / "300").mkdir()  # one that ends just now
    return tmp_path


@pytest.mark.parametrize("name", ["flanneld", "flanneld-amd64"])
def test_a_flanneld_is_seen_in_its_own_network_namespace_only(proc: Path, name: str) -> None:
    assert flannel.running(proc) is None
    (proc / "200" / "comm").write_text(f"{name}\n")
    assert flannel.running(proc) is None
    (proc / "100" / "comm").write_text(f"{name}\n")
    assert flannel.running(proc) == 100
    (proc / "100" / "comm").write_text("flannelctl\n")
    assert flannel.running(proc) is None


def test_the_vteps_macs_are_kept_with_the_state(tmp_path: Path) -> None:
    mac, other = MacAddress(b"\2abcde"), MacAddress(b"\2fghij")
    assert read_macs(tmp_path) == {}
    for macs in ({4: mac}, {4: mac, 6: other}, {6: other}):
        write_macs(tmp_path, macs)
        assert read_macs(tmp_path) == macs
    for spoilt in ("", "no MAC", "01:00:5e:00:00:01", f"{mac}\nno MAC"):
        (tmp_path / "vtep_mac").write_text(spoilt)
        assert read_macs(tmp_path) == {}


def test_the_mac_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    (tmp_path / "vtep_mac").write_text("02:61:62:63:64:65\n")
    assert read_macs(tmp_path) == {4: MacAddress(b"\2abcde")}
