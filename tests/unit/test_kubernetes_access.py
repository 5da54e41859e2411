"""How a cluster's API is reached: kubeconfigs, service accounts, and credentials that are renewed."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ctl.core.errors import ConfigError, StoreDenied
from ctl.settings.endpoint import Endpoint, kubeconfig_path
from ctl.store.kubernetes.access import Access, ExecPlugin, in_cluster, server
from ctl.store.kubernetes.credentials import Credentials
from ctl.store.kubernetes.kubeconfig import read_kubeconfig
from tests.pki import Certificates
from tests.unit.stores import Clock

YAML = """\
apiVersion: v1
kind: Config
current-context: node@lab
contexts:
- name: node@lab
  context: {cluster: lab, user: node}
clusters:
- name: lab
  cluster:
    server: https://api.example:6443/k8s/clusters/c-1
    certificate-authority: pki/ca.pem
    tls-server-name: kubernetes
users:
- name: node
  user:
    tokenFile: /run/token
"""


def written(directory: Path, text: str) -> str:
    path = directory / "kubeconfig"
    path.write_text(text)
    return str(path)


def config(**user: Any) -> dict[str, Any]:
    return {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "lab", "user": "node"}}],
        "clusters": [{"name": "lab", "cluster": {"server": "http://127.0.0.1:8001"}}],
        "users": [{"name": "node", "user": user}],
    }


def test_a_kubeconfig_in_yaml_is_read_and_its_paths_are_its_directorys(tmp_path: Path) -> None:
    access = read_kubeconfig(written(tmp_path, YAML))
    assert (access.endpoint, access.path) == (Endpoint("api.example", 6443, tls=True), "/k8s/clusters/c-1")
    assert (access.server_name, access.tokenfile) == ("kubernetes", "/run/token")
    assert access.cafile == str(tmp_path / "pki/ca.pem")


def test_a_kubeconfig_in_json_needs_no_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert read_kubeconfig(written(tmp_path, json.dumps(config(token="t")))).token == "t"
    with pytest.raises(ConfigError, match="python3-yaml"):
        read_kubeconfig(written(tmp_path, YAML))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"current-context": None}, "current-context is missing"),
        ({"current-context": "other"}, "there is no context 'other' in contexts"),
        ({"clusters": []}, "there is no cluster 'lab' in clusters"),
        ({"clusters": [{"name": "lab", "cluster": {}}]}, "cluster lab.server is missing"),
        ({"clusters": [{"name": "lab", "cluster": {"server": "api"}}]}, "is no URL such as https://"),
        ({"clusters": "lab"}, "clusters is no list"),
        ({"users": [{"name": "node", "user": {"username": "u", "password": "p"}}]}, "not supported"),
        ({"users": [{"name": "node", "user": {"auth-provider": {"name": "gcp"}}}]}, "use exec"),
        ({"users": [{"name": "node", "user": {"client-certificate": "c"}}]}, "go together"),
        ({"users": [{"name": "node", "user": {"token": 7}}]}, "user node.token is no text"),
        ({"users": [{"name": "node", "user": {"client-key-data": "a"}}]}, "is not base64"),
        ({"users": [{"name": "node", "user": {"exec": {"apiVersion": "v1", "command": "x"}}}]}, "apiVersion"),
        (
            {"users": [{"name": "node", "user": {"exec": {"command": "x", "interactiveMode": "Always",
             "apiVersion": "client.authentication.k8s.io/v1"}}}]},
            "no terminal",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_kubeconfig_is_one_line_with_its_key(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    path = written(tmp_path, json.dumps({**config(), **change}))
    with pytest.raises(ConfigError, match="^kubeconfig ") as caught:
        read_kubeconfig(path)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "- a\n", "a: [", "\t:", "just words"])
def test_what_is_no_kubeconfig_is_said(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="the file is no mapping|not YAML"):
        read_kubeconfig(written(tmp_path, text))


def test_a_kubeconfig_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="kubeconfig /nonexistent/x: No such file"):
        read_kubeconfig("/nonexistent/x")


@pytest.mark.parametrize(
    ("url", "path"), [("kubernetes:", ""), ("kubernetes://", ""), ("kubernetes:///a/b", "/a/b")]
)
def test_a_url_names_a_kubeconfig_or_none(url: str, path: str) -> None:
    assert kubeconfig_path(url) == path


@pytest.mark.parametrize("url", ["kubernetes://host", "kubernetes:a", "kubernetes:/a"])
def test_a_url_that_names_something_else_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="kubeconfig"):
        kubeconfig_path(url)


# --- In a pod ------------------------------------------------------------------


def test_a_pod_has_what_kubelet_mounts(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t\n")
    (tmp_path / "ca.crt").write_text("")
    environ = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
    access = in_cluster(environ, tmp_path)
    assert access.endpoint == Endpoint("fd00::1", 443, tls=True)
    assert (access.cafile, access.tokenfile) == (str(tmp_path / "ca.crt"), str(tmp_path / "token"))


def test_no_pod_and_no_service_account_are_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"this is no pod .*kubernetes:///PATH"):
        in_cluster({}, tmp_path)
    environ = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}
    with pytest.raises(ConfigError, match="no service account is mounted"):
        in_cluster(environ, tmp_path)


@pytest.mark.parametrize("url", ["https://", "ftp://a", "https://u:p@a", "https://a?b", "https://a:x"])
def test_a_server_that_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="is no URL"):
        server(url, "kubeconfig")


# --- Credentials ---------------------------------------------------------------

PLAIN = Endpoint("127.0.0.1", 1)


def bearer(credentials: Credentials) -> str:
    return credentials.headers().get("Authorization", "")


def test_a_token_is_read_again_when_its_link_is_swapped(tmp_path: Path) -> None:
    for name in ("..one", "..two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "token").write_text(name)
    data = tmp_path / "..data"
    data.symlink_to("..one")
    (tmp_path / "token").symlink_to("..data/token")
    credentials = Credentials(Access("test", PLAIN, tokenfile=str(tmp_path / "token")))
    assert bearer(credentials) == "Bearer ..one"
    (tmp_path / "..tmp").symlink_to("..two")
    (tmp_path / "..tmp").rename(data)
    assert bearer(credentials) == "Bearer ..two"


def test_a_token_that_is_missing_or_empty_for_a_moment_is_the_one_before(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("one\n")
    credentials = Credentials(Access("test", PLAIN, tokenfile=str(file)))
    file.write_text("")
    assert bearer(credentials) == "Bearer one"
    file.unlink()
    assert bearer(credentials) == "Bearer one"


def test_a_token_that_is_refused_is_read_again_whatever_its_file_looks_like(tmp_path: Path) -> None:
    """Its size and times may be the same, where the clock of the file system is coarse."""
    file = tmp_path / "token"
    file.write_text("one")
    credentials = Credentials(Access("test", PLAIN, tokenfile=str(file)))
    assert bearer(credentials) == "Bearer one" and not credentials.refused()
    file.write_text("two")
    assert credentials.refused() and bearer(credentials) == "Bearer two"
    file.unlink()
    assert not credentials.refused() and bearer(credentials) == "Bearer two"


def test_a_token_that_is_none_is_an_error_at_the_start(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("\n")
    with pytest.raises(ConfigError, match=f"{file}: empty"):
        Credentials(Access("test", PLAIN, tokenfile=str(file)))


def test_the_file_of_a_token_counts_before_the_token(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("file")
    assert bearer(Credentials(Access("test", PLAIN, token="text", tokenfile=str(file)))) == "Bearer file"


def plugin(directory: Path, body: str) -> ExecPlugin:
    script = directory / "plugin"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    return ExecPlugin("client.authentication.k8s.io/v1", (str(script),), {"WORD": "w"})


def credential(**status: str) -> str:
    return json.dumps(
        {"kind": "ExecCredential", "apiVersion": "client.authentication.k8s.io/v1", "status": status}
    )


def test_what_a_plugin_prints_is_good_until_its_end(tmp_path: Path) -> None:
    clock = Clock()
    body = f'echo x >> {tmp_path}/runs; echo "$KUBERNETES_EXEC_INFO" > {tmp_path}/info\n'
    printed = credential(token="$WORD", expirationTimestamp="1970-01-01T01:00:00Z").replace('"', '\\"')
    credentials = Credentials(
        Access("test", PLAIN, plugin=plugin(tmp_path, f'{body}echo "{printed}"')), clock
    )
    runs = tmp_path / "runs"
    assert bearer(credentials) == bearer(credentials) == "Bearer w"
    assert runs.read_text() == "x\n"
    assert json.loads((tmp_path / "info").read_text())["spec"] == {"interactive": False}
    clock.now = 3595.0
    bearer(credentials)
    assert runs.read_text() == "x\nx\n"
    assert credentials.refused()
    clock.now = 1000.0
    bearer(credentials)
    assert runs.read_text() == "x\nx\nx\n"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("echo no; echo why >&2; exit 3", "exit 3: why"),
        ("echo nothing", "printed no ExecCredential"),
        ('echo "{}"', "printed no ExecCredential"),
        (f"echo '{credential()}'", "gave no token and no certificate"),
    ],
)
def test_a_plugin_that_fails_is_one_line(tmp_path: Path, body: str, said: str) -> None:
    credentials = Credentials(Access("test", PLAIN, plugin=plugin(tmp_path, body)))
    with pytest.raises(StoreDenied, match=said) as caught:
        credentials.headers()
    assert "\n" not in str(caught.value)


def test_a_plugin_that_is_not_there_is_one_line() -> None:
    missing = ExecPlugin("client.authentication.k8s.io/v1", ("/nonexistent/x",))
    with pytest.raises(StoreDenied, match="exec /nonexistent/x: No such file"):
        Credentials(Access("test", PLAIN, plugin=missing)).headers()


def test_certificates_in_the_kubeconfig_itself_are_used(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path / "pki")

    def data(name: str) -> str:
        return base64.b64encode(Path(certificates.path(name)).read_bytes()).decode()

    made = config(**{"client-certificate-data": data("client.pem"), "client-key-data": data("client.key")})
    made["clusters"][0]["cluster"] = {"server": "https://a", "certificate-authority-data": data("ca.pem")}
    access = read_kubeconfig(written(tmp_path, json.dumps(made)))
    trust = Credentials(access).trust
    assert trust is not None and len(trust.now().get_ca_certs()) == 1
    mixed = config(**{"client-certificate-data": data("client.pem"), "client-key-data": data("ca.key")})
    mixed["clusters"][0]["cluster"] = {"server": "https://a"}
    with pytest.raises(ConfigError, match="client certificate"):
        Credentials(read_kubeconfig(written(tmp_path, json.dumps(mixed))))


def test_a_certificate_of_a_plugin_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    printed = credential(clientCertificateData="c", clientKeyData="k")
    secure = Endpoint("127.0.0.1", 1, tls=True)
    credentials = Credentials(Access("test", secure, plugin=plugin(tmp_path, f"echo '{printed}'")))
    with pytest.raises(StoreDenied, match=r"client certificate: .*\(of exec ") as caught:
        credentials.headers()
    assert "\n" not in str(caught.value)
