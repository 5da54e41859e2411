"""Errors of the Kubernetes API as ones of ours: what waiting helps against, and for how long."""

from __future__ import annotations

import json
from http.client import HTTPMessage
from typing import Any

import pytest

from ctl.core.errors import LeaseConflict, StoreAway, StoreDenied, StoreError
from ctl.store.kubernetes.client import Busy, Gone, Missing, Unauthorized, failure, status_error


def told(code: int, body: bytes = b"", **headers: str) -> StoreError:
    message = HTTPMessage()
    for name, value in headers.items():
        message[name.replace("_", "-")] = value
    return failure("https://api", code, body, message)


def status(**fields: Any) -> bytes:
    return json.dumps({"kind": "Status", **fields}).encode()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (400, StoreError), (401, Unauthorized), (403, StoreDenied), (404, Missing), (409, LeaseConflict),
        (410, Gone), (415, StoreError), (422, StoreDenied), (429, Busy), (500, Busy), (502, Busy),
        (503, Busy), (504, Busy),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "body", [b"", b"<html>no</html>", b"[]", b"7", status(), status(message="a\nb", code="x")]
)
def test_a_status_is_one_kind_of_error_whatever_its_body(
    code: int, kind: type[StoreError], body: bytes
) -> None:
    error = told(code, body)
    assert type(error) is kind
    assert str(error).startswith("kubernetes https://api: ") and "\n" not in str(error)


@pytest.mark.parametrize(
    ("details", "kind"),
    [
        ({"causes": [{"field": "metadata.uid"}]}, LeaseConflict),
        ({"causes": [{"field": "metadata.annotations"}, {"field": "metadata.uid"}]}, LeaseConflict),
        ({"causes": [{"field": "metadata.annotations"}]}, StoreDenied),
        ({"causes": [{"message": "denied by a policy"}]}, StoreDenied),
        ({"causes": ["metadata.uid"]}, StoreDenied),
        ({"causes": 7}, StoreDenied),
        (None, StoreDenied),
    ],
)
def test_only_a_patch_for_another_uid_is_a_conflict_of_those_that_are_invalid(
    details: Any, kind: type[StoreError]
) -> None:
    assert type(told(422, status(code=422, details=details))) is kind


@pytest.mark.parametrize(
    ("body", "headers", "wait"),
    [
        (b"", {}, 0.0),
        (b"", {"Retry_After": "7"}, 7.0),
        (b"", {"Retry_After": "Fri, 27 Nov 2026 06:00:00 GMT"}, 0.0),
        (status(details={"retryAfterSeconds": 3}), {}, 3.0),
        (status(details={"retryAfterSeconds": 3}), {"Retry_After": "7"}, 3.0),
        (status(details="x"), {"Retry_After": "7"}, 7.0),
    ],
)
def test_how_long_to_wait_is_heard(body: bytes, headers: dict[str, str], wait: float) -> None:
    error = told(429, body, **headers)
    assert isinstance(error, Busy) and isinstance(error, StoreAway)
    assert error.wait == wait


@pytest.mark.parametrize(
    "told_",
    [
        {"code": 410, "reason": "Expired", "message": "too old resource version: 1 (2)"},
        {"reason": "Expired"},
        {"reason": "Gone", "code": 200},
        {"message": "an error without a number"},
        {},
    ],
)
def test_a_watch_that_has_lost_its_place_says_so_in_several_ways(told_: dict[str, Any]) -> None:
    assert type(status_error("https://api", told_, 0)) is Gone


def test_the_servers_own_words_are_given() -> None:
    words = 'nodes is forbidden: User "u" cannot list resource "nodes"'
    assert str(told(403, status(message=words))) == f"kubernetes https://api: {words}"
    assert str(told(502)) == "kubernetes https://api: HTTP 502"
