"""An agent and a real etcd that is late, wrong, or has our subnet under another host's name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.etcd import Etcd
from tests.host import METRICS_PORT, Agent, Host
from tests.lab import Lab, wait_until

SOON = 10.0
PREFIX = "/coreos.com/network"
CONFIG = (
    '{"Network":"172.17.0.0/16","SubnetMin":"172.17.3.0","SubnetMax":"172.17.3.0","Backend":{"Type":"vxlan"}}'
)
KEY = f"{PREFIX}/subnets/172.17.3.0-24"
FLANNELD = (
    '{"PublicIP":"192.168.77.99","PublicIPv6":null,"BackendType":"vxlan",'
    '"BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}'
)


@dataclass
class Place:
    """A host with an etcd of its own, which is not running yet."""

    a: Host
    etcd: Etcd

    def start_etcd(self) -> None:
        self.a.spawn(self.a.argv(*self.etcd.members[0].argv()))
        wait_until(lambda: self.ctl("put", "x", "y") == 0, 20, "etcd answers")

    def ctl(self, *arguments: str) -> int:
        return self.a.run(*self.etcd.ctl_argv(*arguments), check=False).returncode

    def value(self, key: str) -> str:
        return self.a.run(*self.etcd.ctl_argv("get", key, "--print-value-only")).stdout.strip()

    def agent(self) -> Agent:
        return self.a.agent("--store", self.etcd.url, "--bypass", "off", wait=False)


def unready(host: Host) -> str:
    """What /readyz complains of; empty if it does not."""
    code, body = host.http(f"http://127.0.0.1:{METRICS_PORT}/readyz")
    return body if code == 503 else ""


@pytest.fixture
def place() -> Iterator[Place]:
    with Lab() as lab:
        a = lab.host("a")
        a.ip("link", "set", "lo", "up")
        yield Place(a, Etcd("3.4", lab.dir / "etcd"))


def test_an_agent_waits_for_etcd_and_for_a_network_and_gives_way_to_another_holder(place: Place) -> None:
    a, agent = place.a, place.agent()
    wait_until(lambda: "waiting for it" in agent.log(), SOON, agent.log)
    assert a.http(f"http://127.0.0.1:{METRICS_PORT}/healthz")[0] == 200
    assert a.http(f"http://127.0.0.1:{METRICS_PORT}/readyz")[0] == 503
    done = a.ovctl("status", check=False)
    assert (done.returncode, "starting" in done.stderr) == (1, True)
    place.start_etcd()
    wait_until(lambda: "run ovctl network init" in agent.log(), 30, agent.log)
    place.ctl("put", f"{PREFIX}/config", CONFIG)
    agent.wait_ready()
    assert agent.log().count("waiting for it") == 1
    env = (a.state_dir / "subnet.env").read_text()
    assert "FLANNEL_SUBNET=172.17.3.1/24\n" in env

    # A flanneld with another address writes itself into our key.
    place.ctl("put", KEY, FLANNELD)
    wait_until(lambda: not (a.state_dir / "subnet.env").exists(), SOON, "fenced")
    wait_until(lambda: "192.168.77.99" in unready(a), SOON, lambda: unready(a))
    assert a.ovctl("status", check=False).returncode == 1
    assert place.value(KEY) == FLANNELD
    # It goes.
    place.ctl("del", KEY)
    wait_until((a.state_dir / "subnet.env").exists, SOON, "not fenced any more")
    assert (a.state_dir / "subnet.env").read_text() == env
    assert json.loads(place.value(KEY))["PublicIP"] == a.address
    wait_until(lambda: a.ovctl("status", check=False).returncode == 0, SOON, "healthy")

    # What cannot be read in place of ours: nobody can tell whose it is.
    place.ctl("put", KEY, "garbage")
    wait_until(lambda: not (a.state_dir / "subnet.env").exists(), SOON, "fenced again")
    wait_until(lambda: "not JSON" in unready(a), SOON, lambda: unready(a))
    assert place.value(KEY) == "garbage"
    place.ctl("del", KEY)
    wait_until((a.state_dir / "subnet.env").exists, SOON, "and back")
    assert agent.poll() is None


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ('{"Network":"172.17.0.0/16","SubnetMin":"10.0.0.0"}', "SubnetMin 10.0.0.0 is not in Network"),
        ('{"Network":"172.17.0.0/16","Backend":{"Type":"wireguard"}}', "the network's backend is wireguard"),
    ],
)
def test_a_config_that_no_agent_can_run_ends_it_at_once(place: Place, config: str, complaint: str) -> None:
    place.start_etcd()
    place.ctl("put", f"{PREFIX}/config", config)
    before = place.a.footprint()
    agent = place.agent()
    wait_until(lambda: agent.poll() is not None, SOON, agent.log)
    assert agent.poll() == 2
    (line,) = [line for line in agent.log().splitlines() if "error" in line]
    assert line.startswith("ovctl: error: ") and complaint in line
    assert place.a.footprint() == before
    assert place.value(f"{PREFIX}/subnets") == "", "no lease was taken"
