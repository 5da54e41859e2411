"""Who may ask the Kubernetes API, and what ovctl says when it may not or cannot: one line, one exit code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

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
