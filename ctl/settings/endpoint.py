"""Addresses of servers, and the store URLs that name them. Pure.

http://10.0.0.1:2379,https://etcd.example:2379    a list of endpoints, as flannel's flag takes it
etcd://10.0.0.1:2379,10.0.0.2                     the same as a store's URL, without TLS
etcds://10.0.0.1:2379                             with TLS
kubernetes:                                       the cluster in which this process is a pod
kubernetes:///etc/ovnet/kubeconfig                the cluster that a kubeconfig names
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

DEFAULT_PORT: Final = 2379

ETCD_ENDPOINTS: Final = "http://127.0.0.1:4001,http://127.0.0.1:2379"
"""Where flannel looks for etcd if it is not told."""
ETCD_PREFIX: Final = "/coreos.com/network"
"""Where in etcd flannel keeps its keys if it is not told."""
ANNOTATION_PREFIX: Final = "flannel.alpha.coreos.com"
"""What flannel's annotations of a Node begin with if it is not told, before a slash."""
NET_CONFIG: Final = "/etc/kube-flannel/net-conf.json"
"""Where flannel looks for the network's config on Kubernetes if it is not told."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server answers HTTP."""

    host: str
    port: int = DEFAULT_PORT
    tls: bool = False

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """From `http://HOST[:PORT]` or `https://...`. ValueError with a line that names it."""
        if "@" in text:
            # Not repeated: there is a password in it.
            raise ValueError("an etcd endpoint carries no user: use --etcd-username and --etcd-password-file")
        parts = urlsplit(text)
        plain = parts.path in ("", "/") and not parts.query and not parts.fragment
        if parts.scheme not in ("http", "https") or not plain or not _is_host(parts.hostname):
            raise ValueError(f"{text!r} is not an etcd endpoint such as http://10.0.0.1:2379")
        try:
            port = DEFAULT_PORT if parts.port is None else parts.port
        except ValueError:
            port = 0
        if not port:
            raise ValueError(f"{text!r}: its port is not between 1 and 65535")
        return cls(str(parts.hostname), port, parts.scheme == "https")

    @property
    def authority(self) -> str:
        """`host:port`, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.authority}"


def _is_host(host: str | None) -> bool:
    return host is not None and re.fullmatch(r"[\w.:%-]+", host, re.ASCII) is not None


def parse_endpoints(text: str) -> tuple[Endpoint, ...]:
    """From a list with commas. ValueError if it is empty or one is wrong."""
    found = tuple(Endpoint.parse(part.strip()) for part in text.split(",") if part.strip())
    if not found:
        raise ValueError("no etcd endpoint, such as http://10.0.0.1:2379")
    return tuple(dict.fromkeys(found))


def is_etcd(url: str) -> bool:
    """Whether a store's URL means etcd."""
    return url.partition(":")[0] in ("etcd", "etcds")


def parse_store_url(url: str) -> tuple[Endpoint, ...]:
    """The endpoints of `etcd://...` or `etcds://...`; none of `etcd:`. ValueError if it is wrong."""
    scheme, _, rest = url.partition(":")
    if not rest.strip("/"):
        return ()
    if not rest.startswith("//"):
        return parse_endpoints(rest)
    http = "https://" if scheme == "etcds" else "http://"
    return parse_endpoints(",".join(http + part.strip() for part in rest[2:].rstrip("/").split(",") if part))


def format_store_url(endpoints: tuple[Endpoint, ...]) -> str:
    """The URL of a store on `endpoints`; `parse_store_url` gives them back."""
    kinds = {endpoint.tls for endpoint in endpoints}
    if len(kinds) > 1:
        return "etcd:" + ",".join(map(str, endpoints))
    return ("etcds://" if True in kinds else "etcd://") + ",".join(each.authority for each in endpoints)


def is_kubernetes(url: str) -> bool:
    """Whether a store's URL means Kubernetes."""
    return url.partition(":")[0] == "kubernetes"


def kubeconfig_path(url: str) -> str:
    """The kubeconfig that a URL of Kubernetes names; "": this process is a pod. ValueError if it is wrong."""
    rest = url.partition(":")[2]
    if not rest.strip("/"):
        return ""
    path = "/" + rest.removeprefix("//").lstrip("/")
    if not rest.startswith("///") or "\0" in path:
        raise ValueError(f"{url!r} is neither kubernetes: (in a pod) nor kubernetes:///PATH of a kubeconfig")
    return path
