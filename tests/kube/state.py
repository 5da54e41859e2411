"""What an API server knows: Nodes, their history, and what may be done with them."""

from __future__ import annotations

import copy
import json
import re
import threading
import uuid
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any, Final

from tests.kube.nodes import Json, now, text

HISTORY = 100_000
NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
"""A Node's; the real expression is a little narrower about dots."""
QUALIFIED: Final = re.compile(r"([a-z0-9][-a-z0-9.]*/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
"""The name of an annotation."""
NOT_READY: Final = {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}
"""The taint of every Node that is created; a controller takes it away when kubelet says Ready."""


class ApiError(Exception):
    """An answer that is a Status."""

    def __init__(self, code: int, reason: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.status: Json = {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "details": details, "code": code,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Event:
    """A change of the history; `item` as in a list."""

    version: int
    kind: str
    name: str
    item: bytes


class State:
    """Any thread may call. `changed` is notified of every change, and when watches are to end."""

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.version = 100
        self.floor = 100
        """The oldest version that a watch may begin at."""
        self.history: list[Event] = []
        self._nodes: dict[str, Json] = {}
        self._items: dict[str, bytes] = {}
        self.pods: dict[tuple[str, str], Json] = {}
        """Pods by namespace and name."""
        self._lists: dict[str, tuple[int, list[str], dict[str, bytes]]] = {}
        """Snapshots that lists go on with, by token."""

    # --- Reading ---------------------------------------------------------------

    def get(self, name: str) -> bytes:
        with self.changed:
            try:
                return self._items[name]
            except KeyError:
                raise missing(name) from None

    def names(self) -> set[str]:
        """Of all Nodes."""
        with self.changed:
            return set(self._nodes)

    def object(self, name: str) -> Json:
        """A copy of a Node."""
        with self.changed:
            if name not in self._nodes:
                raise missing(name)
            return copy.deepcopy(self._nodes[name])

    def page(self, limit: int = 0, token: str = "", names: Callable[[str], bool] = lambda _: True) -> bytes:
        """A page, with what comes after it where there is more."""
        with self.changed:
            version, rest, items = self._snapshot(token, names)
            page, rest = (rest[:limit], rest[limit:]) if limit else (rest, [])
            metadata: Json = {"resourceVersion": str(version)}
            if rest:
                key = b64encode(json.dumps([version, rest[0]]).encode()).decode()
                self._lists[key] = (version, rest, items)
                metadata |= {"continue": key, "remainingItemCount": len(rest)}
            head = json.dumps(
                {"kind": "NodeList", "apiVersion": "v1", "metadata": metadata}, separators=(",", ":")
            )
            return head[:-1].encode() + b',"items":[' + b",".join(items[name] for name in page) + b"]}\n"

    def _snapshot(self, token: str, names: Callable[[str], bool]) -> tuple[int, list[str], dict[str, bytes]]:
        if not token:
            return self.version, sorted(filter(names, self._items)), dict(self._items)
        try:
            version, _ = json.loads(b64decode(token))
        except ValueError:
            raise ApiError(400, "BadRequest", "continue key is not valid") from None
        if token not in self._lists or version < self.floor:
            raise ApiError(
                410,
                "Expired",
                "The provided continue parameter is too old to display a consistent list result.",
            )
        return self._lists[token]

    def since(self, version: int) -> Iterable[Event]:
        """The events after it, for as long as they are kept. ApiError 410."""
        with self.changed:
            if version < self.floor:
                raise too_old(version, self.floor)
            low, high = 0, len(self.history)
            while low < high:
                middle = (low + high) // 2
                low, high = (middle + 1, high) if self.history[middle].version <= version else (low, middle)
            return self.history[low:]

    # --- Writing ---------------------------------------------------------------

    def create(self, given: Json) -> bytes:
        with self.changed:
            made = copy.deepcopy(given)
            name = made["metadata"]["name"]
            if not NAME.fullmatch(name):
                raise invalid(
                    name, "metadata.name", f'Invalid value: "{name}": a lowercase RFC 1123 subdomain'
                )
            if name in self._nodes:
                raise ApiError(
                    409, "AlreadyExists", f'nodes "{name}" already exists', name=name, kind="nodes"
                )
            made["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": now()}
            made.setdefault("spec", {})
            made.setdefault("status", {})
            made["spec"].setdefault("taints", [dict(NOT_READY)])
            complete_cidrs(made["spec"], {}, name)
            check_annotations(made)
            return self._keep(made, "ADDED")

    def delete(self, name: str) -> bytes:
        with self.changed:
            gone = self.object(name)
            del self._nodes[name], self._items[name]
            self._record(gone, "DELETED")
            return self.history[-1].item

    def patch(self, name: str, merge: Callable[[Json, Json], Json], change: Json, *, status: bool) -> bytes:
        """The Node after a patch; one that changes nothing is no change."""
        with self.changed:
            before = self.object(name)
            metadata = change.get("metadata") or {}
            if metadata.get("name", name) != name:
                raise ApiError(
                    400, "BadRequest", f"the name of the object ({metadata['name']}) does not match the"
                    f" name on the URL ({name})",
                )  # fmt: skip
            after = merge(copy.deepcopy(before), change)
            if (
                metadata.get("resourceVersion", before["metadata"]["resourceVersion"])
                != before["metadata"]["resourceVersion"]
            ):
                raise ApiError(
                    409, "Conflict", f'Operation cannot be fulfilled on nodes "{name}": the object has been'
                    " modified; please apply your changes to the latest version and try again",
                )  # fmt: skip
            if after["metadata"].get("uid") != before["metadata"]["uid"]:
                raise invalid(
                    name, "metadata.uid", f'Invalid value: "{metadata.get("uid")}": field is immutable'
                )
            check_annotations(after)
            after["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"]
            if status:
                after["spec"] = before["spec"]
            else:
                after["status"] = before["status"]
                complete_cidrs(after["spec"], before["spec"], name)
            return self._items[name] if after == before else self._keep(after, "MODIFIED")

    def _keep(self, found: Json, kind: str) -> bytes:
        name = found["metadata"]["name"]
        self._nodes[name] = found
        self._record(found, kind)
        self._items[name] = self.history[-1].item
        return self._items[name]

    def _record(self, found: Json, kind: str) -> None:
        self.version += 1
        found["metadata"]["resourceVersion"] = str(self.version)
        self.history.append(Event(self.version, kind, found["metadata"]["name"], text(found)))
        if len(self.history) > HISTORY:
            self.floor = self.history[0].version
            del self.history[0]
        self.changed.notify_all()

    # --- What happens to servers -----------------------------------------------

    def forget(self) -> None:
        """The history up to now is gone, as after a compaction or a restart."""
        with self.changed:
            self.history.clear()
            self.floor = self.version
            self._lists.clear()
            self.changed.notify_all()

    def restore(self, saved: tuple[int, dict[str, Json]]) -> None:
        """Etcd is restored from a backup: what `save` gave."""
        with self.changed:
            self.version, nodes = saved[0], copy.deepcopy(saved[1])
            self._nodes = nodes
            self._items = {name: text(each) for name, each in nodes.items()}
            self.forget()

    def save(self) -> tuple[int, dict[str, Json]]:
        with self.changed:
            return self.version, copy.deepcopy(self._nodes)


def missing(name: str) -> ApiError:
    return ApiError(404, "NotFound", f'nodes "{name}" not found', name=name, kind="nodes")


def too_old(version: int, floor: int) -> ApiError:
    return ApiError(410, "Expired", f"too old resource version: {version} ({floor})")


def invalid(name: str, field: str, message: str) -> ApiError:
    cause = {"reason": "FieldValueInvalid", "message": message, "field": field}
    return ApiError(
        422,
        "Invalid",
        f'Node "{name}" is invalid: {field}: {message}',
        name=name,
        kind="Node",
        causes=[cause],
    )


def complete_cidrs(spec: Json, before: Json, name: str = "") -> None:
    """PodCIDR is podCIDRs' first, and wins where it is not; neither changes once it is there."""
    listed, first = spec.get("podCIDRs") or [], spec.get("podCIDR")
    if first and listed[:1] != [first]:
        listed = [first]
    if before.get("podCIDRs") and listed != before["podCIDRs"]:
        raise invalid(
            name, "spec.podCIDRs", 'Forbidden: node updates may not change podCIDR except from "" to valid'
        )
    for number, each in enumerate(listed):
        try:
            ip_network(each)
        except ValueError:
            raise invalid(name, f"spec.podCIDRs[{number}]", f'Invalid value: "{each}"') from None
    families = [":" in each for each in listed]
    if len(set(families)) != len(families):
        raise invalid(name, "spec.podCIDRs", "may specify no more than one CIDR for each IP family")
    if listed:
        spec |= {"podCIDR": listed[0], "podCIDRs": listed}


def check_annotations(found: Json) -> None:
    """Names are qualified, values are strings."""
    for name, value in (found["metadata"].get("annotations") or {}).items():
        if not isinstance(value, str):
            raise invalid("", "patch", f"Invalid value: {value}: cannot convert to string")
        if not QUALIFIED.fullmatch(name):
            raise invalid(found["metadata"]["name"], "metadata.annotations", f'Invalid value: "{name}"')


def merge(target: Any, change: Any) -> Any:
    """RFC 7396."""
    if not isinstance(change, dict):
        return change
    found = dict(target) if isinstance(target, dict) else {}
    for key, value in change.items():
        if value is None:
            found.pop(key, None)
        else:
            found[key] = merge(found.get(key), value)
    return found


KEYS = {"conditions": "type", "addresses": "type", "taints": "key"}
"""By which of an item's fields a strategic merge tells a list's items apart; other lists are replaced."""


def strategic(target: Any, change: Any) -> Any:
    """Strategic merge patch, without its directives."""
    if not isinstance(change, dict):
        return change
    found = dict(target) if isinstance(target, dict) else {}
    for key, value in change.items():
        if value is None:
            found.pop(key, None)
        elif key in KEYS and isinstance(value, list):
            listed = {each[KEYS[key]]: each for each in found.get(key, [])}
            for each in value:
                listed[each[KEYS[key]]] = strategic(listed.get(each[KEYS[key]]), each)
            found[key] = list(listed.values())
        elif key == "podCIDRs" and isinstance(value, list):  # a set
            found[key] = value + [each for each in found.get(key, []) if each not in value]
        else:
            found[key] = strategic(found.get(key), value)
    return found
