"""The Kubernetes API over HTTP: requests, endless answers, and its errors in words.

Of the clients for Python that there are, none is right about a watch by itself: what was deleted while
the history was gone (410) is lost, a 410 is asked for again for ever, silence is waited on without an end,
Retry-After is not heard, a rotated token or CA is not read. And each costs an agent 16 to 57 MB. What is
needed of them, GET, PATCH and a stream, is little more than the connections that etcd's store has.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.client import HTTPMessage
from typing import Any, Final, TypeVar

from ctl import __version__
from ctl.core.errors import ConfigError, LeaseConflict, StoreAway, StoreDenied, StoreError
from ctl.store.connection.files import Followed
from ctl.store.connection.http import TRANSPORT_ERRORS, Answer, Channel, Request, Stream, is_refusal, reason
from ctl.store.kubernetes.access import Access
from ctl.store.kubernetes.credentials import Credentials

T = TypeVar("T")
Json = dict[str, Any]

STRATEGIC_MERGE: Final = "application/strategic-merge-patch+json"
"""Annotations merge by name, conditions by type: flannel's way to patch, for Kubernetes' own types only."""
CLOSE_S: Final = 1.0
"""How long a call of another thread is waited for at the end, seconds."""
REFUSAL_S: Final = 30.0
"""For how long a refusal is taken for an API server that has only just started: it refuses everybody then,
until it has read who may do what."""


class Gone(StoreError):
    """The history that was asked for is no longer kept (410)."""


class Missing(StoreError):
    """There is no such object (404)."""


class Busy(StoreAway):
    """The server asks to be left alone for a while (429, 503), or cannot answer now (5xx)."""

    def __init__(self, line: str, wait: float) -> None:
        super().__init__(line)
        self.wait = wait
        """How many seconds it asks for; 0: it does not say."""


class Unauthorized(StoreError):
    """Our token or certificate is not accepted (401)."""


def failure(where: str, status: int, body: bytes, headers: HTTPMessage) -> StoreError:
    """An error of the API's as one of ours; its body is a Status object, or what a proxy has to say."""
    try:
        told = json.loads(body)
    except ValueError:
        told = None
    told = told if isinstance(told, dict) else {}
    return status_error(where, told, status, headers)


def status_error(where: str, told: Json, status: int, headers: HTTPMessage | None = None) -> StoreError:
    """The same of a Status object; `status` counts where it names no code."""
    code = told.get("code") if isinstance(told.get("code"), int) else status
    words = " ".join(str(told.get("message") or f"HTTP {status}").split())[:300]
    line = f"kubernetes {where}: {words}"
    given = told.get("details")
    details: Json = given if isinstance(given, dict) else {}
    # A watch that ends with an error without a number has lost its place, whatever the reason.
    if code == 410 or told.get("reason") in ("Expired", "Gone") or not code:
        return Gone(line)
    if code == 429 or code >= 500:
        asked = details.get("retryAfterSeconds")
        text = str(asked or (headers["Retry-After"] if headers else ""))
        return Busy(line, float(text) if text.isdigit() else 0.0)
    # Whatever else is invalid (an admission policy's no, an annotation that is none) is not another's claim.
    invalid = LeaseConflict if _is_another(details) else StoreDenied
    kinds: dict[int, type[StoreError]] = {
        401: Unauthorized, 403: StoreDenied, 404: Missing, 409: LeaseConflict, 422: invalid,
    }  # fmt: skip
    return kinds.get(code, StoreError)(line)


def _is_another(details: Json) -> bool:
    """Whether a patch is invalid because the object has another uid: it was created anew."""
    causes = details.get("causes")
    named = causes if isinstance(causes, list) else []
    return any(isinstance(each, dict) and each.get("field") == "metadata.uid" for each in named)


def _right(verb: str, path: str) -> str:
    """What a request takes, however its question is put."""
    return f"{verb} {path.partition('?')[0]}"


class ApiClient:
    """Calls and streams. Any thread may call; calls take turns.

    `follow` gives the access as it is written now. `timeout`: seconds of one call. `patient`: a refusal is
    passing at first. StoreError; StoreAway if nobody answers; ConfigError on files that cannot be used.
    """

    def __init__(
        self, follow: Followed[Access], agent: str, *, timeout: float = 5.0, patient: bool = False
    ) -> None:
        self._follow, self._timeout = follow, timeout
        self._agent = f"ovnet/{__version__}" + (f" ({agent})" if agent else "")
        self._lock = threading.Lock()
        self._patience = REFUSAL_S if patient else 0.0
        self._refused: dict[str, float] = {}
        """Since when we are refused what, by `_right`, seconds of the steady clock."""
        self._access = follow.now()
        self._credentials, self._channel = self._connect(self._access)

    @property
    def where(self) -> str:
        """The server, for people."""
        return f"{self._access.endpoint}{self._access.path}"

    def get(self, path: str, timeout: float = 0.0) -> bytes:
        """The body of an answer; `timeout`: seconds that it may take, if it is a long one."""
        return self._call("GET", path, {}, None, timeout or self._timeout).body

    def patch(self, path: str, body: Json) -> bytes:
        """A strategic merge patch; the object as it is then."""
        data = json.dumps(body, separators=(",", ":")).encode()
        return self._call("PATCH", path, {"Content-Type": STRATEGIC_MERGE}, data, self._timeout).body

    def stream(self, path: str) -> Stream:
        """An answer of lines, which has begun."""
        with self._lock:
            return self._with_credentials(lambda: self._open(path), _right("WATCH", path))

    def close(self) -> None:
        """A call that waits for a server that hangs is left alone: the process is about to end."""
        if self._lock.acquire(timeout=CLOSE_S):
            try:
                self._channel.close()
            finally:
                self._lock.release()

    # --- One attempt -----------------------------------------------------------

    def _call(
        self, method: str, path: str, headers: dict[str, str], body: bytes | None, timeout: float
    ) -> Answer:
        def attempt() -> Answer:
            return self._ask(Request(path, method, {**self._headers(), **headers}, body), timeout)

        with self._lock:
            return self._with_credentials(attempt, _right(method, path))

    def _ask(self, request: Request, timeout: float) -> Answer:
        answer = self._channel.ask(self._below(request), timeout)
        if answer.status not in (200, 201):
            raise failure(self.where, answer.status, answer.body, answer.headers)
        return answer

    def _open(self, path: str) -> Stream:
        request = self._below(Request(path, "GET", self._headers()))
        stream = self._channel.open(request, self._timeout)
        if stream.status == 200:
            return stream
        try:
            raise failure(self.where, stream.status, stream.body(), stream.headers)
        finally:
            stream.close()

    def _below(self, request: Request) -> Request:
        return Request(self._access.path + request.path, request.method, request.headers, request.body)

    def _headers(self) -> dict[str, str]:
        """What the credentials need; TLS may be another one for what a plugin has printed."""
        trust = self._credentials.trust
        headers = self._credentials.headers()
        if self._credentials.trust is not trust:
            self._channel.close()
            self._channel = self._open_channel(self._access, self._credentials)
        return {"Accept": "application/json", "User-Agent": self._agent, **headers}

    # --- Who we are ------------------------------------------------------------

    def _with_credentials(self, attempt: Callable[[], T], right: str) -> T:
        """`attempt`, once more if the API refuses credentials of which there are newer ones.

        `right`: what it takes, see `_right`.
        """
        self._renew()
        try:
            try:
                result = attempt()
            except Unauthorized:
                if not self._credentials.refused():
                    raise
                result = attempt()
        except (Unauthorized, StoreDenied) as error:
            raise self._judge(error, right) from error
        except StoreError:
            self._refused.pop(right, None)  # it knows us, whatever else is wrong
            raise
        except TRANSPORT_ERRORS as error:
            raise self._away(error) from error
        self._refused.pop(right, None)
        return result

    def _renew(self) -> None:
        """Go by what is written now, if that is something else, and can be used."""
        access = self._follow.now()
        if access is self._access:
            return
        try:
            renewed = self._connect(access)
        except ConfigError:
            return  # half of it is written: the next call looks again
        self._channel.close()
        self._access = access
        self._credentials, self._channel = renewed

    def _connect(self, access: Access) -> tuple[Credentials, Channel]:
        credentials = Credentials(access)
        return credentials, self._open_channel(access, credentials)

    def _open_channel(self, access: Access, credentials: Credentials) -> Channel:
        return Channel(access.endpoint, credentials.trust, access.server_name)

    def _judge(self, error: StoreError, right: str) -> StoreError:
        """A refusal: passing for a while, then one that waiting does not mend."""
        now = time.monotonic()
        since = self._refused.setdefault(right, now)
        kind = StoreAway if now - since < self._patience else StoreDenied
        line = str(error)
        if isinstance(error, Unauthorized):
            line += f" (credentials of the {self._access.source})"
        return kind(line)

    def _away(self, error: BaseException) -> StoreError:
        words = reason(error, ca=self._access.source, certificate=self._access.source)
        trust = self._credentials.trust
        if is_refusal(error) and trust is not None and trust.trouble:
            words += f"; {trust.trouble}"
        if self._follow.trouble:
            words += f"; {self._follow.trouble}"
        kind = StoreDenied if is_refusal(error) else StoreAway
        return kind(f"kubernetes unreachable: {self.where}: {words}")
