"""etcd's v3 API over its JSON gateway: several endpoints, authentication, errors in words.

A call goes to the endpoint that answered last, then to the others. Everything that the
store sends may be sent twice (it writes by compare-and-swap), so a call whose answer was
lost is simply made again elsewhere.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeVar

from ctl.core.errors import ConfigError, StoreAway, StoreDenied, StoreError
from ctl.settings.endpoint import ETCD_PREFIX, Endpoint
from ctl.store.connection.http import TRANSPORT_ERRORS, Channel, Json, Stream, is_refusal, post, reason
from ctl.store.connection.tls import Trust, trust_files
from ctl.store.etcd.login import Login

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EtcdOptions:
    """How to reach a cluster. Files are paths, "" where there is none."""

    endpoints: tuple[Endpoint, ...]
    prefix: str = ETCD_PREFIX
    keyfile: str = ""
    certfile: str = ""
    cafile: str = ""
    username: str = ""
    password: str = field(default="", repr=False)
    password_file: str = ""
    """Where the password is, if it is not given."""


class Compacted(StoreError):
    """The revision asked for is no longer kept."""


class GrantGone(StoreError):
    """The etcd lease has expired or was revoked."""


class _TokenInvalid(StoreError):
    """Log in again."""


_UNAVAILABLE: Final = 14

_KINDS: Final[tuple[tuple[type[StoreError], tuple[int, ...], tuple[str, ...]], ...]] = (
    (_TokenInvalid, (16,), ("invalid auth token", "auth store is old")),
    (StoreDenied, (7,), ("ermission denied", "authentication failed", "user name is empty")),
    (Compacted, (11,), ("compacted",)),
    (GrantGone, (), ("requested lease not found",)),
    (StoreAway, (4, _UNAVAILABLE), ("no leader",)),
)
"""Which of our errors stands for which of etcd's, by numbers of google.rpc.Code and by words. The first
row that fits holds."""


def classify(where: object, code: int, message: str) -> StoreError:
    """An error of etcd's as one of ours. Words count beside codes, which etcd gives loosely."""
    words = message.removeprefix("rpc error: ").strip()
    line = f"etcd {where}: {words}"
    if "database space exceeded" in words:
        line += " (alarm NOSPACE): compact and defragment etcd, then: etcdctl alarm disarm"
    elif "user name is empty" in words:
        line += ": it wants --etcd-username and --etcd-password-file"
    for kind, codes, texts in _KINDS:
        if code in codes or any(text in words for text in texts):
            return kind(line)
    return StoreError(line)


def parse_answer(where: object, status: int, data: bytes) -> Json:
    """A unary answer's object. StoreError if it is an error, or nothing that etcd would say."""
    try:
        answer = json.loads(data)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise StoreError(f"{where}: not etcd's v3 API (HTTP {status})")
    if status == 200 and "error" not in answer:
        return answer
    raise stream_error(where, answer, status)


def stream_error(where: object, answer: Json, status: int = 200) -> StoreError:
    """The error that an object tells of: unary answers and streams spell it differently."""
    nested = answer.get("error")
    told = nested if isinstance(nested, dict) else answer
    code = told.get("code", told.get("grpc_code", 0))
    if not code and status == 503:
        code = _UNAVAILABLE
    message = told.get("message") or told.get("error") or f"HTTP {status}"
    return classify(where, code if isinstance(code, int) else 0, str(message))


class EtcdClient:
    """Calls and streams. Any thread may call; calls take turns.

    `timeout`: seconds of one attempt; `deadline`: seconds of a call with all its attempts.
    StoreError if no endpoint answers, StoreDenied if etcd refuses us, ConfigError on unusable files.
    """

    def __init__(self, options: EtcdOptions, *, timeout: float = 5.0, deadline: float = 10.0) -> None:
        if bool(options.certfile) != bool(options.keyfile):
            raise ConfigError("etcd: a client certificate needs both --etcd-certfile and --etcd-keyfile")
        self._login = Login(options.username, options.password, options.password_file)
        self._timeout, self._deadline = timeout, deadline
        self._token = ""
        self._lock = threading.Lock()
        self._trust: Trust | None = None
        """How members that speak TLS are known; None: there are none."""
        if any(endpoint.tls for endpoint in options.endpoints):
            self._trust = trust_files("etcd", options.cafile, options.certfile, options.keyfile)
        self._channels = [
            Channel(endpoint, self._trust if endpoint.tls else None) for endpoint in options.endpoints
        ]

    def call(self, path: str, body: Json) -> Json:
        """The answer to a unary call, from whichever endpoint gives one."""
        with self._lock:
            until = time.monotonic() + self._deadline
            return self._anywhere(lambda channel: self._ask(channel, path, body, until), until)

    def probe(self, endpoint: Endpoint, path: str, body: Json) -> Json:
        """The same, from this endpoint and no other."""
        with self._lock:
            until = time.monotonic() + self._timeout
            channel = next(each for each in self._channels if each.endpoint == endpoint)
            try:
                return self._ask(channel, path, body, until)
            except TRANSPORT_ERRORS as error:
                raise StoreAway(f"etcd {endpoint}: {self._reason(error)}") from error

    def stream(self, path: str, body: Json) -> Stream:
        """An endless answer, from the first endpoint that begins one."""
        with self._lock:
            until = time.monotonic() + self._deadline
            return self._anywhere(lambda channel: self._open(channel, path, body, until), until)

    def avoid(self, endpoint: Endpoint) -> None:
        """Try this endpoint last from now on: it has just left us."""
        with self._lock:
            self._channels.sort(key=lambda channel: channel.endpoint == endpoint)

    def close(self) -> None:
        with self._lock:
            for channel in self._channels:
                channel.close()

    # --- Endpoints -------------------------------------------------------------

    def _anywhere(self, attempt: Callable[[Channel], T], until: float) -> T:
        """`attempt` on one channel after the other; the one that worked comes first next time."""
        failures: list[str] = []
        tls_only = True
        for channel in tuple(self._channels):
            if failures and time.monotonic() >= until:
                break
            try:
                result = attempt(channel)
            except StoreAway as error:
                failures.append(str(error).removeprefix("etcd "))
                tls_only = False
            except TRANSPORT_ERRORS as error:
                failures.append(f"{channel.endpoint}: {self._reason(error)}")
                tls_only &= is_refusal(error)
            else:
                self._channels.remove(channel)
                self._channels.insert(0, channel)
                return result
        raise (StoreDenied if tls_only else StoreAway)(f"etcd unreachable: {'; '.join(failures)}")

    def _reason(self, error: BaseException) -> str:
        """A transport failure in a few words; with what is wrong with our own files, if it is about TLS."""
        words = reason(error, ca="--etcd-cafile", certificate="--etcd-certfile")
        trouble = self._trust.trouble if self._trust and is_refusal(error) else ""
        return f"{words}; {trouble}" if trouble else words

    # --- One endpoint ----------------------------------------------------------

    def _ask(self, channel: Channel, path: str, body: Json, until: float) -> Json:
        for _ in self._logins():
            answer = channel.ask(post(path, body, self._headers(channel, until)), self._left(until))
            try:
                return parse_answer(channel.endpoint, answer.status, answer.body)
            except _TokenInvalid as error:
                refused = error
                self._token = ""
        raise StoreDenied(str(refused)) from refused

    def _open(self, channel: Channel, path: str, body: Json, until: float) -> Stream:
        for _ in self._logins():
            # Without this header a member that lost its leader stays silent for ever.
            headers = {**self._headers(channel, until), "Grpc-Metadata-hasleader": "true"}
            stream = channel.open(post(path, body, headers), self._left(until))
            if stream.status == 200:
                return stream
            try:
                parse_answer(channel.endpoint, stream.status, stream.body())
            except _TokenInvalid as error:
                refused = error
                self._token = ""
            finally:
                stream.close()
        raise StoreDenied(str(refused)) from refused

    def _logins(self) -> Iterator[int]:
        """A token may have gone with its member, or with its time: once more with a new one."""
        return iter(range(2 if self._login.username else 1))

    def _left(self, until: float) -> float:
        return max(min(self._timeout, until - time.monotonic()), 0.1)

    def _headers(self, channel: Channel, until: float) -> dict[str, str]:
        if self._login.username and not self._token:
            self._token = self._log_in(channel, until)
        return {"Authorization": self._token} if self._token else {}

    def _log_in(self, channel: Channel, until: float) -> str:
        """A token; "" where the cluster does without (authentication is off)."""
        body = {"name": self._login.username, "password": self._login.password()}
        answer = channel.ask(post("/v3/auth/authenticate", body, {}), self._left(until))
        try:
            return str(parse_answer(channel.endpoint, answer.status, answer.body).get("token", ""))
        except StoreError as error:
            if "authentication is not enabled" in str(error):
                return ""
            if isinstance(error, (StoreDenied, StoreAway)):
                raise
            raise StoreError(f"log in as {self._login.username}: {error}") from error
