"""Who may ask the Kubernetes API, and what ovctl says when it may not or cannot: one line, one exit code."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctl.core.errors import ConfigError, StoreDenied, StoreError
from ctl.settings.endpoint import Endpoint
from ctl.store.connection.files import Followed
from ctl.store.kubernetes.access import Access
from ctl.store.kubernetes.client import ApiClient
from ctl.store.kubernetes.whoami import node_name
from tests.conformance.test_etcd_access import ovctl, refused
from tests.etcd import free_ports
from tests.kube.nodes import node, published
from tests.kube.twin import FLANNEL, Twin, User
from tests.pki import Certificates


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("ovlab-kube") / "pki")


@pytest.fixture
def twin(certificates: Certificates) -> Iterator[Twin]:
    with Twin(certificates=certificates) as made:
        made.state.create(node("n2", "10.244.2.0/24", annotations=published("10.0.0.2")))
        yield made


def kubeconfig(directory: Path, server: str, ca: str, **user: object) -> str:
    """The URL of a store."""
    content = {
        "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": server, "certificate-authority": ca}}],
        "users": [{"name": "u", "user": user}],
    }  # fmt: skip
    (directory / "kubeconfig").write_text(json.dumps(content))
    return f"kubernetes://{directory / 'kubeconfig'}"


def listed(url: str) -> str:
    done = ovctl("lease", "list", "--store", url)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_token_a_client_certificate_and_a_plugin_are_let_in(
    twin: Twin, certificates: Certificates, tmp_path: Path
) -> None:
    ca = certificates.path("ca.pem")
    assert "10.244.2.0/24" in listed(kubeconfig(tmp_path, twin.url, ca, token="node"))
    pair = {
        "client-certificate": certificates.path("client.pem"),
        "client-key": certificates.path("client.key"),
    }
    assert "10.244.2.0/24" in listed(kubeconfig(tmp_path, twin.url, ca, **pair))
    version = "client.authentication.k8s.io/v1"
    printed = json.dumps({"kind": "ExecCredential", "apiVersion": version, "status": {"token": "node"}})
    plugin = {"apiVersion": version, "command": "/bin/echo", "args": [printed], "interactiveMode": "Never"}
    assert "10.244.2.0/24" in listed(kubeconfig(tmp_path, twin.url, ca, exec=plugin))


def test_nobody_there_is_exit_4(certificates: Certificates, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    url = kubeconfig(tmp_path, f"https://127.0.0.1:{port}", certificates.path("ca.pem"), token="t")
    line = refused(4, "lease", "list", "--store", url)
    assert line == (f"ovctl: error: kubernetes unreachable: https://127.0.0.1:{port}: connection refused\n")


def test_a_wrong_ca_a_wrong_token_and_a_missing_rule_are_exit_2(
    twin: Twin, certificates: Certificates, tmp_path: Path
) -> None:
    other = Certificates(tmp_path / "other")
    line = refused(
        2, "lease", "list", "--store", kubeconfig(tmp_path, twin.url, other.path("ca.pem"), token="node")
    )
    assert "its certificate is not trusted" in line and f"see kubeconfig {tmp_path}" in line
    ca = certificates.path("ca.pem")
    line = refused(2, "lease", "list", "--store", kubeconfig(tmp_path, twin.url, ca, token="old"))
    assert (
        "Unauthorized (credentials of the kubeconfig " in line
        and "old" not in line.partition("kubeconfig")[0]
    )
    twin.users["node"] = User("system:serviceaccount:kube-flannel:flannel", FLANNEL - {"list nodes"})
    line = refused(2, "lease", "list", "--store", kubeconfig(tmp_path, twin.url, ca, token="node"))
    assert 'User "system:serviceaccount:kube-flannel:flannel" cannot list resource "nodes"' in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("lease", "list", "--store", "kubernetes:"), "this is no pod"),
        (
            ("lease", "list", "--store", "kubernetes:///nonexistent/x"),
            "kubeconfig /nonexistent/x: No such file",
        ),
        (("lease", "list", "--store", "kubernetes://host"), "kubernetes:///PATH of a kubeconfig"),
        (("network", "show", "--net-config-path", "/nonexistent/y"), "/nonexistent/y: No such file"),
        (("network", "init", "--network", "10.244.0.0/16"), "net-conf.json of flannel's ConfigMap"),
    ],
)
def test_mistakes_of_the_settings_are_exit_2(
    twin: Twin, certificates: Certificates, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    config = tmp_path / "net-conf.json"
    config.write_text('{"Network":"10.99.0.0/16","Backend":{"Type":"vxlan"}}')
    url = kubeconfig(tmp_path, twin.url, certificates.path("ca.pem"), token="node")
    more: tuple[str, ...] = () if "--store" in arguments else ("--store", url)
    more += () if "--net-config-path" in arguments else ("--net-config-path", str(config))
    assert said in refused(2, *arguments, *more)


def test_the_network_is_shown_as_the_file_has_it(
    twin: Twin, certificates: Certificates, tmp_path: Path
) -> None:
    config = tmp_path / "net-conf.json"
    config.write_text('{"Network":"10.99.0.0/16","Backend":{"Type":"host-gw"}}')
    url = kubeconfig(tmp_path, twin.url, certificates.path("ca.pem"), token="node")
    shown = ovctl("network", "show", "--store", url, "--net-config-path", str(config), "-o", "json")
    found = json.loads(shown.stdout)
    assert (found["network"], found["backend"]) == ("10.99.0.0/16", "host-gw")


# --- Which Node this is --------------------------------------------------------------


def plain(twin: Twin, tokenfile: Path) -> Access:
    return Access("test", Endpoint("127.0.0.1", twin.port), tokenfile=str(tokenfile))


def asked(access: Access, *, patient: bool = True, **environ: str) -> str:
    """The Node's name, found without a pause."""
    return node_name(
        access, lambda: ApiClient(Followed(lambda: access, ()), "", patient=patient), environ, lambda _: None
    )


def token(directory: Path, claims: object) -> Path:
    """A file with a token that the twin takes for a node's, if it has no claims."""
    file = directory / "token"
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    file.write_text(f"head.{payload}.signature" if claims else "node")
    return file


def test_a_pods_token_tells_its_node_and_nobody_is_asked(tmp_path: Path) -> None:
    claims = {"kubernetes.io": {"namespace": "kube-flannel", "node": {"name": "n7", "uid": "u"}}}
    with Twin() as twin:
        assert asked(plain(twin, token(tmp_path, claims))) == "n7"
        assert twin.asked == []


@pytest.mark.parametrize(
    "claims", [None, {}, [], {"kubernetes.io": {"pod": {"name": "p"}}}, {"kubernetes.io": 7}]
)
def test_where_the_token_does_not_tell_the_pod_does(tmp_path: Path, claims: object) -> None:
    with Twin() as twin:
        file = token(tmp_path, claims)
        twin.users[file.read_text()] = User("system:serviceaccount:kube-flannel:flannel")
        twin.state.pods[("kube-flannel", "ds-1")] = {"spec": {"nodeName": "n7"}}
        twin.faults.answers = []
        assert asked(plain(twin, file), POD_NAME="ds-1", POD_NAMESPACE="kube-flannel") == "n7"


def test_an_api_that_is_away_is_waited_for_and_a_pod_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    twin = Twin()
    twin.start()
    access = plain(twin, token(tmp_path, None))
    twin.stop()
    twin.state.pods[("ns", "p")] = {"spec": {"nodeName": "n7"}}
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            twin.start()

    def client() -> ApiClient:
        return ApiClient(Followed(lambda: access, ()), "", patient=True)

    try:
        assert node_name(access, client, {"POD_NAME": "p", "POD_NAMESPACE": "ns"}, sleep) == "n7"
        assert len(waits) == 3
        with pytest.raises(StoreError, match='pods "q" not found'):
            asked(access, POD_NAME="q", POD_NAMESPACE="ns")
        twin.users["node"] = User("flannel", FLANNEL - {"get pods"})
        with pytest.raises(StoreDenied, match='cannot get resource "pods"'):
            asked(access, patient=False, POD_NAME="p", POD_NAMESPACE="ns")
        with pytest.raises(ConfigError, match="set NODE_NAME"):
            asked(access, POD_NAME="p")
    finally:
        twin.stop()
