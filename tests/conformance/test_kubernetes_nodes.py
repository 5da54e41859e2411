"""Nodes in network namespaces whose store is the twin of the Kubernetes API, over TLS, with a kubeconfig."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.host import Agent, Container, Host
from tests.kube.nodes import PREFIX, node, published
from tests.kube.state import merge, strategic
from tests.kube.twin import Twin, User
from tests.lab import Lab
from tests.pki import Certificates
from tests.process import wait_until
from tests.stream import UdpStream

SECONDS = 60.0
API = "192.168.77.252"
NET_CONF = '{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}'


@dataclass
class Cluster:
    """A lab with an API server on a host of its own."""

    lab: Lab
    twin: Twin
    hosts: dict[str, Host] = field(default_factory=dict)
    containers: dict[str, Container] = field(default_factory=dict)
    agents: dict[str, Agent] = field(default_factory=dict)
    """The newest of each host."""

    @property
    def token(self) -> Path:
        return self.lab.dir / "token"

    def host(self, name: str) -> Host:
        if name not in self.hosts:
            self.hosts[name] = self.lab.host(name)
        return self.hosts[name]

    def agent(self, name: str, *, wait: bool = True, **more: str) -> Agent:
        self.conflist(name).parent.mkdir(parents=True, exist_ok=True)
        env = {**self.env, "OVNET_RESYNC_INTERVAL": "5", "OVNET_CNI_CONF": str(self.conflist(name)), **more}
        self.agents[name] = self.host(name).agent(wait=wait, env=env)
        return self.agents[name]

    @property
    def env(self) -> dict[str, str]:
        """What commands need besides a host's own."""
        return {"OVNET_NET_CONFIG_PATH": str(self.lab.dir / "net-conf.json")}

    def conflist(self, name: str) -> Path:
        """What a node tells its container runtime."""
        return self.lab.dir / "net.d" / name / "10-flannel.conflist"

    def stands(self, name: str) -> dict[str, str]:
        """Flannel's annotations of a Node."""
        found: dict[str, str] = self.twin.state.object(name)["metadata"]["annotations"]
        return {key.removeprefix(PREFIX): value for key, value in found.items() if key.startswith(PREFIX)}

    def peers(self, name: str) -> set[str]:
        """The peers' subnets that a node has routes to."""
        lines = self.host(name).ip("route", "show", "proto", "147").splitlines()
        return {line.split()[0] for line in lines}

    def knows(self, name: str, *subnets: str) -> None:
        wait_until(
            lambda: self.peers(name) == set(subnets),
            SECONDS,
            lambda: f"{name} has routes to {self.peers(name)}",
        )


def made(lab: Lab) -> Cluster:
    """An API server with TLS, what a node needs to reach it, and the Nodes a and b."""
    place = lab.host("api", API)
    certificates = Certificates(lab.dir / "pki", [API])
    twin = Twin(address=API, certificates=certificates, inside=place.call)
    lab.at_close(twin.stop)
    twin.start()
    cluster = Cluster(lab, twin)
    cluster.token.write_text("node")
    (lab.dir / "net-conf.json").write_text(NET_CONF)
    kubeconfig = lab.dir / "kubeconfig"
    kubeconfig.write_text(
        f"current-context: lab\n"
        f"contexts: [{{name: lab, context: {{cluster: lab, user: node}}}}]\n"
        f"clusters: [{{name: lab, cluster: {{server: '{twin.url}', certificate-authority: pki/ca.pem}}}}]\n"
        f"users: [{{name: node, user: {{tokenFile: {cluster.token}}}}}]\n"
    )
    lab.store_url = f"kubernetes://{kubeconfig}"
    return cluster


@pytest.fixture(scope="module")
def shared() -> Iterator[Cluster]:
    with Lab() as lab:
        cluster = made(lab)
        for third, name in enumerate("ab", start=1):
            cluster.twin.state.create(node(name, f"10.244.{third}.0/24"))
        agents = [cluster.agent(name, wait=False) for name in "ab"]
        for agent in agents:
            agent.wait_ready()
        cluster.knows("a", "10.244.2.0/24")
        cluster.knows("b", "10.244.1.0/24")
        cluster.containers = {name: cluster.host(name).container("one") for name in "ab"}
        yield cluster


@pytest.fixture
def cluster(shared: Cluster) -> Iterator[Cluster]:
    """The module's: its API is up, and has the two Nodes with their agents, and no other."""
    yield shared
    for container in shared.containers.values():
        container.stop_processes()
    if not shared.twin.running:
        shared.twin.start()
    for name in shared.twin.state.names() - {"a", "b"}:
        shared.twin.state.delete(name)
    shared.knows("a", "10.244.2.0/24")
    shared.knows("b", "10.244.1.0/24")


def runtime_subnet(cluster: Cluster, name: str) -> str:
    """From which subnet a container runtime takes addresses; empty: it takes no containers."""
    try:
        plugins = json.loads(cluster.conflist(name).read_text())["plugins"]
    except FileNotFoundError:
        return ""
    return str(plugins[0]["ipam"]["ranges"][0][0]["subnet"])


def takes_containers(cluster: Cluster, name: str, subnet: str) -> None:
    """Returns when the node does, with addresses of this subnet."""
    wait_until(lambda: runtime_subnet(cluster, name) == subnet, SECONDS, f"{name} takes containers")


def ping(cluster: Cluster) -> None:
    one, other = cluster.containers["a"], cluster.containers["b"]
    one.run("ping", "-c3", "-i0.05", "-W2", other.address)


def test_containers_reach_each_other_and_the_nodes_are_as_flannel_has_them(cluster: Cluster) -> None:
    ping(cluster)
    for third, name in enumerate("ab", start=1):
        host = cluster.host(name)
        mac = json.loads(host.ip("-j", "link", "show", "ovnet.1"))[0]["address"]
        assert cluster.stands(name) == {
            "backend-data": f'{{"VNI":1,"VtepMAC":"{mac}"}}',
            "backend-type": "vxlan", "kube-subnet-manager": "true", "public-ip": host.address,
        }  # fmt: skip
        assert f"FLANNEL_SUBNET=10.244.{third}.1/24\n" in (host.state_dir / "subnet.env").read_text()
        takes_containers(cluster, name, f"10.244.{third}.0/24")
        conditions = cluster.twin.state.object(name)["status"]["conditions"]
        assert [each["reason"] for each in conditions if each["type"] == "NetworkUnavailable"] == [
            "FlannelIsUp"
        ]


def test_a_node_that_somebody_calls_unavailable_is_called_available_again(cluster: Cluster) -> None:
    told = {"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"}
    cluster.twin.state.patch("a", strategic, {"status": {"conditions": [told]}}, status=True)

    def reasons() -> list[str]:
        conditions = cluster.twin.state.object("a")["status"]["conditions"]
        return [each["reason"] for each in conditions if each["type"] == "NetworkUnavailable"]

    wait_until(lambda: reasons() == ["FlannelIsUp"], SECONDS, lambda: f"{reasons()}")


def test_a_node_of_flannels_becomes_a_peer_and_goes_with_its_node(cluster: Cluster) -> None:
    cluster.twin.state.create(node("f", "10.244.9.0/24", annotations=published("192.168.77.99")))
    cluster.knows("a", "10.244.2.0/24", "10.244.9.0/24")
    fdb = cluster.host("a").run("bridge", "fdb", "show", "dev", "ovnet.1").stdout
    assert "02:00:00:00:00:02 dst 192.168.77.99" in fdb
    cluster.twin.state.delete("f")
    cluster.knows("a", "10.244.2.0/24")


def test_nothing_is_lost_while_the_api_is_away_and_what_changed_is_followed_afterwards(
    cluster: Cluster,
) -> None:
    one, other = cluster.containers["a"], cluster.containers["b"]
    stream = UdpStream(one, other, other.address, rate=500)
    stream.advance(0.5)
    cluster.twin.stop()
    wait_until(lambda: not store_is_up(cluster.host("a")), SECONDS, "a has noticed")
    cluster.twin.state.create(node("f", "10.244.9.0/24", annotations=published("192.168.77.99")))
    cluster.twin.state.forget()
    cluster.twin.start()
    cluster.knows("a", "10.244.2.0/24", "10.244.9.0/24")
    wait_until(lambda: store_is_up(cluster.host("a")), SECONDS, "a says that it is back")
    stream.advance(0.5)
    sent, tally = stream.finish()
    assert (tally.received, tally.duplicates) == (sent, 0)


def test_an_agent_that_starts_while_the_api_is_away_waits_and_the_node_goes_on(cluster: Cluster) -> None:
    a = cluster.host("a")
    env = (a.state_dir / "subnet.env").read_text()
    cluster.agents["a"].stop()
    cluster.twin.stop()
    agent = cluster.agent("a", wait=False)
    wait_until(lambda: "kubernetes unreachable" in agent.log(), SECONDS, agent.log)
    assert agent.poll() is None and not agent.ready()
    ping(cluster)
    assert (a.state_dir / "subnet.env").read_text() == env
    assert runtime_subnet(cluster, "a") == "10.244.1.0/24"
    cluster.twin.restart()
    agent.wait_ready()
    ping(cluster)


def store_is_up(host: Host) -> bool:
    return "\novnet_store_up 1" in host.http("http://127.0.0.1:9475/metrics")[1]


def test_a_token_that_is_rotated_is_used_without_a_restart(cluster: Cluster) -> None:
    users = cluster.twin.users
    users["next"] = User(users["node"].name)
    cluster.token.write_text("next")
    del users["node"]
    cluster.twin.hang_up()
    cluster.twin.state.create(node("f", "10.244.9.0/24", annotations=published("192.168.77.99")))
    cluster.knows("a", "10.244.2.0/24", "10.244.9.0/24")


def test_a_node_waits_for_its_podcidr_and_is_not_ready_until_then(cluster: Cluster) -> None:
    cluster.twin.state.create(node("c"))
    # Told as by flannel's own manifest: which pod it is, and not which Node.
    cluster.twin.state.pods[("kube-flannel", "ds-c")] = {"spec": {"nodeName": "c"}}
    names = {"OVNET_NODE_NAME": "", "POD_NAME": "ds-c", "POD_NAMESPACE": "kube-flannel"}
    agent = cluster.agent("c", wait=False, **names)
    wait_until(lambda: "node c has no podCIDR for IPv4" in agent.log(), SECONDS, agent.log)
    assert agent.poll() is None and not agent.ready()
    cluster.twin.state.patch("c", merge, {"spec": {"podCIDR": "10.244.3.64/26"}}, status=False)
    agent.wait_ready()
    cluster.knows("a", "10.244.2.0/24", "10.244.3.64/26")
    cluster.knows("c", "10.244.1.0/24", "10.244.2.0/24")
    # Its subnet is of another length than the others', and they reach each other all the same.
    container = cluster.host("c").container("one")
    for other in cluster.containers.values():
        container.run("ping", "-c3", "-i0.05", "-W2", other.address)
        other.run("ping", "-c3", "-i0.05", "-W2", container.address)
    assert agent.stop() == 0


def test_our_node_deleted_and_created_again_is_published_again(cluster: Cluster) -> None:
    b = cluster.host("b")
    published_before = cluster.stands("b")
    cluster.twin.state.delete("b")
    cluster.knows("a")
    wait_until(lambda: "there is no node b" in b.ovctl("status", check=False).stderr, SECONDS, "b says so")
    assert runtime_subnet(cluster, "b") == ""
    cluster.twin.state.create(node("b", "10.244.2.0/24"))
    wait_until(lambda: published_before == cluster.stands("b"), SECONDS, "published again")
    cluster.knows("a", "10.244.2.0/24")
    takes_containers(cluster, "b", "10.244.2.0/24")
    assert (b.state_dir / "subnet.env").exists()
    ping(cluster)


def test_a_node_is_reached_by_the_address_of_its_own_that_an_administrator_has_chosen(
    cluster: Cluster,
) -> None:
    """And by its interface, though the default route is on another one."""
    host = cluster.host("e")
    host.ip("route", "add", "default", "dev", "eth0")
    host.ip("link", "add", "second", "type", "bridge")
    host.ip("address", "add", "192.0.2.5/24", "dev", "second")
    host.ip("link", "set", "second", "up")
    chosen = {f"{PREFIX}node-public-ip": "192.0.2.5"}
    cluster.twin.state.create(node("e", "10.244.5.0/24", annotations=chosen))
    agent = cluster.agent("e", OVNET_IFACE="", OVNET_BYPASS="off")
    assert cluster.stands("e")["public-ip"] == "192.0.2.5"
    assert (host.status()["uplink"], host.status()["host"]) == ("second", "192.0.2.5")
    assert agent.stop() == 0
    for wrong, code in (("192.0.2.99", 1), ("second", 2)):
        change = {"metadata": {"annotations": {f"{PREFIX}node-public-ip": wrong}}}
        cluster.twin.state.patch("e", merge, change, status=False)
        done = host.ovctl("agent", check=False, env=cluster.env)
        assert done.returncode == code and wrong in done.stderr.splitlines()[-1]


def test_an_agent_that_is_not_told_its_node_ends_with_one_line(cluster: Cluster) -> None:
    done = cluster.host("d").ovctl("agent", check=False, env={**cluster.env, "OVNET_NODE_NAME": ""})
    errors = [line for line in done.stderr.splitlines() if not line.startswith(("INFO", "WARNING"))]
    assert done.returncode == 2 and len(errors) == 1 and "set NODE_NAME" in errors[0], done.stderr
    assert "ovnet" not in cluster.host("d").ip("link")


def test_ovctl_lists_the_nodes_and_reserves_nothing(cluster: Cluster) -> None:
    a = cluster.host("a")
    env = cluster.env
    leases = a.json("lease", "list")
    assert [(each["node"], each["subnet"], each["reserved"]) for each in leases] == [
        ("a", "10.244.1.0/24", True), ("b", "10.244.2.0/24", True),
    ]  # fmt: skip
    refused = a.ovctl("lease", "reserve", "10.244.7.0/24", "--host", "10.0.0.1", check=False, env=env)
    assert (refused.returncode, refused.stderr.count("\n")) == (
        2,
        1,
    ) and "nothing to reserve" in refused.stderr
    refused = a.ovctl("lease", "release", "10.244.2.0/24", check=False)
    assert refused.returncode == 2 and "kubectl delete node b" in refused.stderr


def test_what_compares_store_and_kernel_finds_them_alike(cluster: Cluster) -> None:
    a = cluster.host("a")
    assert a.ovctl("map", "diff", env=cluster.env, check=False).returncode == 0
    assert "answers, 2 leases" in a.ovctl("doctor", "--no-probe", env=cluster.env, check=False).stdout
