"""A Kubernetes API, the twin's or a real one, by its HTTP: what tests do to a cluster as administrators."""

from __future__ import annotations

import json
import os
import ssl
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError

from ctl.settings.endpoint import Endpoint
from ctl.store.connection.files import Followed
from ctl.store.kubernetes.access import Access, server
from ctl.store.kubernetes.store import KubernetesOptions, KubernetesStore
from ctl.store.kubernetes.watch import Pace
from tests.kube.nodes import PREFIX, Json

VARIABLE = "OVNET_KUBE_API"
"""URL of a real API server; with _CA (a file), _TOKEN (a file, an administrator's), _NODE_TOKEN (a file, of
a service account with flannel's ClusterRole)."""


@dataclass(frozen=True)
class Api:
    """Where it is and who may ask it."""

    url: str
    admin: str
    """A token that may do everything."""
    tokenfile: str
    """A file with a token that has flannel's rights."""
    cafile: str = ""

    @classmethod
    def real(cls) -> Api:
        """The one that the environment names."""
        given = {name: os.environ.get(f"{VARIABLE}_{name}", "") for name in ("CA", "TOKEN", "NODE_TOKEN")}
        return cls(
            os.environ[VARIABLE], Path(given["TOKEN"]).read_text().strip(), given["NODE_TOKEN"], given["CA"]
        )

    def ask(
        self, method: str, path: str, body: Json | None = None, kind: str = "application/json"
    ) -> tuple[int, Json]:
        """Status and object of an answer."""
        request = urllib.request.Request(
            self.url + path, None if body is None else json.dumps(body).encode(), method=method,
            headers={"Authorization": f"Bearer {self.admin}", "Content-Type": kind},
        )  # fmt: skip
        context = ssl.create_default_context(cafile=self.cafile) if self.cafile else None
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}),
            *([urllib.request.HTTPSHandler(context=context)] if context else []),
        )
        try:
            with opener.open(request, timeout=20) as response:
                return response.status, json.loads(response.read())
        except HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def create(self, node: Json) -> Json:
        code, made = self.ask("POST", "/api/v1/nodes", {"kind": "Node", "apiVersion": "v1", **node})
        assert code == 201, made
        if node.get("status"):  # a creation leaves it out
            self.ask("PATCH", f"/api/v1/nodes/{made['metadata']['name']}/status", {"status": node["status"]},
                     "application/strategic-merge-patch+json")  # fmt: skip
        return made

    def delete(self, name: str) -> None:
        self.ask("DELETE", f"/api/v1/nodes/{name}")

    def annotations(self, name: str) -> dict[str, str]:
        """Flannel's, without their prefix."""
        found = self.ask("GET", f"/api/v1/nodes/{name}")[1]["metadata"].get("annotations", {})
        return {key.removeprefix(PREFIX): value for key, value in found.items() if key.startswith(PREFIX)}

    @contextmanager
    def store(
        self, node: str, net_config: Path, pace: Pace, prefix: str = PREFIX
    ) -> Iterator[KubernetesStore]:
        endpoint, path = server(self.url, VARIABLE)
        assert isinstance(endpoint, Endpoint)
        access = Access("test", endpoint, path, cafile=self.cafile, tokenfile=self.tokenfile)
        store = KubernetesStore(
            Followed(lambda: access, ()), KubernetesOptions(prefix, net_config, node), pace=pace
        )
        try:
            yield store
        finally:
            store.close()
