"""Node objects as the API writes them: fields in its order, of its size."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

Json = dict[str, Any]

PREFIX = "flannel.alpha.coreos.com/"
METADATA = ("name", "uid", "resourceVersion", "creationTimestamp", "deletionTimestamp", "labels",
            "annotations", "finalizers", "managedFields")  # fmt: skip
"""In the order of Go's struct."""


def now() -> str:
    """RFC 3339, seconds, in UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def node(
    name: str, *cidrs: str, annotations: Mapping[str, str] | None = None, images: int = 3, labels: int = 6
) -> Json:
    """A Node as kubelet registers it; `images` of them make its size."""
    spec: Json = {"podCIDR": cidrs[0], "podCIDRs": list(cidrs)} if cidrs else {}
    return {
        "metadata": {
            "name": name,
            "labels": {f"beta.kubernetes.io/label-{n}": f"value-{n}" for n in range(labels)},
            "annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true",
                            **(annotations or {})},
            "managedFields": [
                {"manager": "kubelet", "operation": "Update", "apiVersion": "v1", "time": now(),
                 "fieldsType": "FieldsV1", "subresource": "status",
                 "fieldsV1": {"f:status": {"f:conditions": {'k:{"type":"Ready"}': {"f:status": {}}}}}},
            ],
        },
        "spec": spec,
        "status": {
            "capacity": {"cpu": "4", "memory": "16Gi", "pods": "110"},
            "conditions": [
                {"type": "Ready", "status": "True", "lastHeartbeatTime": now(), "reason": "KubeletReady"},
            ],
            "addresses": [{"type": "Hostname", "address": name}],
            "nodeInfo": {"machineID": uuid.uuid4().hex, "kubeletVersion": "v1.36.2", "architecture": "amd64"},
            "images": [
                {"names": [f"registry.example/team/image-{n}@sha256:{n:064x}",
                           f"registry.example/team/image-{n}:v1"],
                 "sizeBytes": 1_000_000 + n}
                for n in range(images)
            ],
        },
    }  # fmt: skip


def published(
    public_ip: str, mac: str = "02:00:00:00:00:02", *, vni: int = 1, prefix: str = PREFIX
) -> dict[str, str]:
    """What flanneld with vxlan writes."""
    return {
        f"{prefix}backend-data": f'{{"VNI":{vni},"VtepMAC":"{mac}"}}',
        f"{prefix}backend-type": "vxlan",
        f"{prefix}kube-subnet-manager": "true",
        f"{prefix}public-ip": public_ip,
    }


def ordered(found: Json) -> Json:
    """An object with its fields in the order in which the API writes them."""
    metadata = dict(found["metadata"])
    for key in ("labels", "annotations"):
        if key in metadata:
            metadata[key] = dict(sorted(metadata[key].items()))
    rest = [key for key in metadata if key not in METADATA]
    return {
        "metadata": {key: metadata[key] for key in (*METADATA, *rest) if metadata.get(key)},
        "spec": found.get("spec", {}),
        "status": found.get("status", {}),
    }


def text(found: Json) -> bytes:
    """As it stands in a list: without kind and apiVersion."""
    written = json.dumps(ordered(found), separators=(",", ":"), ensure_ascii=False)
    for char in "<>&":
        written = written.replace(char, f"\\u{ord(char):04x}")  # as Go does
    return written.encode()


def alone(item: bytes) -> bytes:
    """A list's item as it stands by itself and in events."""
    return b'{"kind":"Node","apiVersion":"v1",' + item[1:]
