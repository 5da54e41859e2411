"""The manifest's containers on two nodes, confined as it says, with the twin as their cluster's API."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.host import METRICS_PORT, Host
from tests.kube.nodes import node
from tests.kube.pod import Pod
from tests.kube.twin import Twin
from tests.lab import Lab
from tests.namespace import REPOSITORY
from tests.pki import Certificates
from tests.process import Process, wait_until

API = "192.168.77.252"
SECONDS = 60
PLUGINS = {"bridge", "host-local", "loopback", "portmap", "bandwidth", "tuning"}


class Node:
    """A host with its pod of the DaemonSet."""

    def __init__(self, host: Host, objects: list[dict[str, Any]], port: int) -> None:
        self.host = host
        by_kind = {each["kind"]: each for each in objects}
        self.spec = by_kind["DaemonSet"]["spec"]["template"]["spec"]
        self.place = host.lab.dir / f"volumes-{host.name}"
        names = ("net-conf", "flannel", "cni-conf", "cni-bin", "cni-addresses")
        volumes = {name: self.place / name for name in names}
        for each in volumes.values():
            each.mkdir(parents=True)
        for name, text in by_kind["ConfigMap"]["data"].items():
            (volumes["net-conf"] / name).write_text(text)
        host.state_dir.mkdir()
        host.bpffs.mkdir()
        volumes |= {"state": host.state_dir, "bpffs": host.bpffs, "sysctl-net": Path("/proc/sys/net")}
        fields = {"spec.nodeName": host.name, "status.hostIP": host.address}
        api = {"KUBERNETES_SERVICE_HOST": API, "KUBERNETES_SERVICE_PORT": str(port)}
        self.pod = Pod(host, self.spec, volumes, fields, {**api, "OVNET_IFACE": "eth0"})

    def start(self) -> Process:
        """As kubelet does it: one container after the other until the last, which stays."""
        for each in self.spec["initContainers"]:
            assert self.pod.start(each).wait(SECONDS) == 0
        return self.pod.start(self.spec["containers"][0])

    def probe(self, name: str) -> bool:
        """Whether a probe of the agent's is content."""
        wanted = self.spec["containers"][0][name]["httpGet"]
        try:
            return self.host.http(f"http://{wanted['host']}:{wanted['port']}{wanted['path']}")[0] == 200
        except OSError:
            return False

    def ovctl(self, *arguments: str) -> str:
        """As `kubectl exec ds/ovnet -- ovctl`."""
        return self.pod.execute("ovnet", "ovctl", *arguments)


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[Node]]:
    objects = list(yaml.safe_load_all((REPOSITORY / "deploy/kubernetes/ovnet.yml").read_text()))
    with Lab() as lab:
        place = lab.host("api", API)
        certificates = Certificates(lab.dir / "pki", [API])
        twin = Twin(address=API, certificates=certificates, inside=place.call)
        lab.at_close(twin.stop)
        twin.start()
        account = lab.dir / "serviceaccount"
        account.mkdir()
        (account / "token").write_text("node")
        shutil.copy(certificates.path("ca.pem"), account / "ca.crt")
        made = []
        for third, name in enumerate("ab"):
            twin.state.create(node(name, f"10.244.{third}.0/24"))
            made.append(Node(lab.host(name), objects, twin.port))
            made[-1].host.ip("link", "set", "lo", "up")
        agents = [each.start() for each in made]
        for each, agent in zip(made, agents, strict=True):
            wait_until(lambda each=each: each.probe("readinessProbe"), SECONDS, agent.log)  # type: ignore[misc]
            wait_until(each.host.knows_a_peer, SECONDS, f"{each.host.name} knows its peer")
        yield made


def test_the_agent_has_the_rights_and_places_that_it_needs(nodes: list[Node]) -> None:
    for each in nodes:
        assert each.probe("livenessProbe")
        assert "in place and forwards" in each.ovctl("status")
        doctor = json.loads(each.ovctl("doctor", "-o", "json"))
        assert {check["level"] for check in doctor} == {"ok"}, doctor
        assert json.loads(each.ovctl("map", "dump", "peers", "-o", "json"))
        assert each.host.http(f"http://{each.host.address}:{METRICS_PORT}/metrics")[0] == 200


def test_an_address_that_a_pod_has_left_reserved_is_freed_from_there(nodes: list[Node]) -> None:
    for third, each in enumerate(nodes):
        left = each.place / "cni-addresses" / "cbr0" / f"10.244.{third}.99"
        left.parent.mkdir()
        left.write_text("gone\r\neth0")
        os.utime(left, (0, 0))
        assert left.name in each.ovctl("ipam", "release")
        assert not left.exists()


def test_the_node_has_what_a_container_runtime_and_flannels_plugin_read(nodes: list[Node]) -> None:
    for each in nodes:
        assert {path.name for path in (each.place / "cni-bin").iterdir()} == PLUGINS
        conflist = json.loads((each.place / "cni-conf" / "10-flannel.conflist").read_text())
        assert (conflist["name"], conflist["plugins"][0]["bridge"]) == ("cbr0", "cni0")
        assert "FLANNEL_NETWORK=10.244.0.0/16" in (each.place / "flannel" / "subnet.env").read_text()
