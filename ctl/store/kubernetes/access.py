"""Where a cluster's API is and who we are to it: from inside of a pod, or from a kubeconfig.

Nothing here is read once for all: kubelet renews a pod's token every hour, client certificates have an
end, and so have kubeconfigs. `Access` is what was said when it was read; see `Credentials` for the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from ctl.core.errors import ConfigError
from ctl.settings.endpoint import Endpoint

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where kubelet mounts a pod's token and the cluster's CA."""


@dataclass(frozen=True, slots=True)
class ExecPlugin:
    """A program that prints credentials, by client.authentication.k8s.io."""

    version: str
    """Its apiVersion."""
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    """What its environment has besides ours."""
    provide_cluster: bool = False


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach a cluster. Files are paths, data is PEM; "" where there is none."""

    source: str
    """Where all this is said, for people."""
    endpoint: Endpoint
    path: str = ""
    """What all paths of the API begin with, behind some proxies."""
    server_name: str = ""
    """Whose certificate the server has to show; "": its host's."""
    insecure: bool = False
    """Whether any certificate will do, because somebody has said so."""
    cafile: str = ""
    cadata: bytes = b""
    certfile: str = ""
    keyfile: str = ""
    certdata: bytes = field(default=b"", repr=False)
    keydata: bytes = field(default=b"", repr=False)
    token: str = field(default="", repr=False)
    tokenfile: str = ""
    plugin: ExecPlugin | None = None


def server(url: str, source: str) -> tuple[Endpoint, str]:
    """An endpoint and the path below which its API is. ConfigError names `source`."""
    parts = urlsplit(url)
    try:
        port = parts.port or {"https": 443, "http": 80}[parts.scheme]
    except (KeyError, ValueError):
        port = 0
    if not port or not parts.hostname or parts.username or parts.query:
        raise ConfigError(f"{source}: server {url!r} is no URL such as https://10.0.0.1:6443")
    return Endpoint(parts.hostname, port, parts.scheme == "https"), parts.path.rstrip("/")


def in_cluster(environ: Mapping[str, str], directory: Path = SERVICE_ACCOUNT) -> Access:
    """Of this pod. ConfigError if this is none, or one without a service account."""
    host, port = environ.get("KUBERNETES_SERVICE_HOST", ""), environ.get("KUBERNETES_SERVICE_PORT", "")
    if not host or not port.isdigit():
        raise ConfigError(
            "kubernetes: this is no pod (KUBERNETES_SERVICE_HOST and _PORT are not set): elsewhere,"
            " name a kubeconfig: kubernetes:///PATH"
        )
    if not (directory / "token").exists():
        raise ConfigError(
            f"kubernetes: no service account is mounted ({directory}/token is missing): the pod needs"
            " serviceAccountName, and automountServiceAccountToken"
        )
    cafile = directory / "ca.crt"
    return Access(
        f"service account in {directory}",
        Endpoint(host, int(port), tls=True),
        cafile=str(cafile) if cafile.exists() else "",
        tokenfile=str(directory / "token"),
    )
