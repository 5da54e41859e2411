"""What a manifest is made of, as an API server keeps it for kubectl: stored as it came, by its path."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Final

from tests.kube.nodes import Json
from tests.kube.state import ApiError

KINDS: Final = {
    "v1": {"namespaces": "Namespace", "serviceaccounts": "ServiceAccount", "configmaps": "ConfigMap",
           "services": "Service"},
    "apps/v1": {"daemonsets": "DaemonSet"},
    "rbac.authorization.k8s.io/v1": {"clusterroles": "ClusterRole",
                                     "clusterrolebindings": "ClusterRoleBinding"},
}  # fmt: skip
"""Kinds by group and version, and by the name that paths have of them."""
CLUSTER_WIDE: Final = frozenset({"Namespace", "ClusterRole", "ClusterRoleBinding"})


def root(version: str) -> str:
    """The path of a group's version."""
    return f"/apis/{version}" if "/" in version else f"/api/{version}"


def resources(version: str) -> list[Json]:
    """What discovery says of it."""
    return [
        {"name": name, "singularName": kind.lower(), "namespaced": kind not in CLUSTER_WIDE, "kind": kind,
         "verbs": ["create", "get", "patch"]}
        for name, kind in KINDS[version].items()
    ]  # fmt: skip


def groups() -> Json:
    """The answer at `/apis`."""
    found = []
    for each in KINDS:
        group, slash, version = each.partition("/")
        if slash:
            preferred = {"groupVersion": each, "version": version}
            found.append({"name": group, "versions": [preferred], "preferredVersion": preferred})
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": found}


@dataclass
class Objects:
    """Whatever was created, by its path."""

    kept: dict[str, Json] = field(default_factory=dict)

    def knows(self, path: str) -> bool:
        """Whether a path is of one of these kinds."""
        for version, names in KINDS.items():
            if path.startswith(f"{root(version)}/"):
                return path.removeprefix(root(version)).split("/")[1] in {"namespaces", *names}
        return False

    def answer(self, method: str, path: str, given: Json | None) -> tuple[int, bytes]:
        """Status and body. ApiError on what is not there, there already, or beyond this."""
        if method == "POST" and given is not None:
            path = f"{path}/{given['metadata']['name']}"
            if path in self.kept:
                raise ApiError(409, "AlreadyExists", f"{path} already exists")
            self.kept[path] = given
            return 201, json.dumps(given).encode()
        if method != "GET":
            raise ApiError(405, "MethodNotAllowed", f"{method} {path}")
        if path not in self.kept:
            raise ApiError(404, "NotFound", f"{path} not found")
        return 200, json.dumps(self.kept[path]).encode()
