"""HTTP to one server: requests with a deadline, and endless responses.

Over the standard library's http.client. An agent imports that module already (for its metrics
server), so it costs no memory; `requests` would cost every agent 10 MB, and clients of etcd or
Kubernetes 15 to 60 MB, and all start slower. What a client library would add, failover,
authentication and a watch that notices being cut off, they do not have either.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import socket
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ctl.process.timed import TimedSocket
from ctl.settings.endpoint import Endpoint
from ctl.store.connection.names import Address, Name
from ctl.store.connection.tls import Trust

Json = dict[str, Any]

KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 3), (socket.TCP_KEEPCNT, 3))
"""The options of TCP's own probes (seconds, seconds, count): a host that vanished is noticed within 14 s."""

READ_BYTES: Final = 1 << 16

TRANSPORT_ERRORS: Final = (OSError, http.client.HTTPException)
"""The exceptions by which a server shows that it is away, or no server of that kind."""


class HandshakeClosed(ConnectionError):
    """The other end took the connection, and closed it instead of speaking TLS.

    A server without TLS does so, or one that is just going down: which of the two cannot be told.
    """


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a server."""

    path: str
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The whole of what it answered."""

    status: int
    body: bytes
    headers: http.client.HTTPMessage


def post(path: str, body: Json, headers: Mapping[str, str]) -> Request:
    """A request that carries a JSON object."""
    data = json.dumps(body, separators=(",", ":")).encode()
    return Request(path, "POST", {"Content-Type": "application/json", **headers}, data)


class _Connection(http.client.HTTPConnection):
    """An open connection. It never connects by itself, which would take any time."""

    auto_open = 0
    sock: Any
    """The TimedSocket that http.client sends and reads by; None once the connection is closed."""

    def __init__(self, endpoint: Endpoint, sock: socket.socket, seconds: float) -> None:
        super().__init__(endpoint.host, endpoint.port)
        self.sock = self.timed = TimedSocket(sock, seconds)

    def usable(self) -> bool:
        """Whether another request can be sent, as far as this end knows."""
        return self.sock is not None and _is_ours(self.timed.socket)

    def send_request(self, request: Request) -> None:
        try:
            self.request(request.method, request.path, request.body, dict(request.headers))
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError):
            # In TLS 1.3 a client's certificate is refused after the handshake: the alert that
            # says so may lie unread in front of the end that the write ran into.
            if isinstance(self.timed.socket, ssl.SSLSocket):
                self.timed.socket.recv(1)
            raise


class Channel:
    """One endpoint, and a connection to it that is kept open between requests.

    Not for several threads at once. A `timeout` is of seconds in which all is done: the
    name's look-up, the connection, the request and its answer. Raises TRANSPORT_ERRORS.
    """

    def __init__(self, endpoint: Endpoint, trust: Trust | None, server_name: str = "") -> None:
        """`trust` None: no TLS. `server_name`: whose certificate it has to show; "": its host's."""
        self.endpoint = endpoint
        self._name = Name(endpoint.host, endpoint.port)
        self._trust, self._server_name = trust, server_name or endpoint.host
        self._connection: _Connection | None = None

    def ask(self, request: Request, timeout: float) -> Answer:
        """The answer. Sent twice if an idle connection turns out to be closed."""
        until = time.monotonic() + timeout
        if self._connection is not None and not self._connection.usable():
            self.close()  # it would take a whole timeout to find out
        if self._connection is not None:
            self._connection.timed.allow(timeout)
            with contextlib.suppress(ConnectionError, ssl.SSLEOFError):
                return self._ask(self._connection, request)
        self._connection = self._connect(until)
        return self._ask(self._connection, request)

    def _ask(self, connection: _Connection, request: Request) -> Answer:
        done = False
        try:
            connection.send_request(request)
            response = connection.getresponse()
            data = response.read()
            done = True
            return Answer(response.status, data, response.headers)
        finally:
            if not done:
                self.close()

    def open(self, request: Request, timeout: float) -> Stream:
        """A request whose answer goes on: on a connection of its own.

        The answer has `timeout` to begin, and to say something as long again.
        """
        connection = self._connect(time.monotonic() + timeout)
        try:
            connection.send_request(request)
            response = connection.getresponse()
            connection.timed.allow(timeout)
            return Stream(self.endpoint, connection, connection.timed, response)
        except BaseException:
            connection.close()
            raise

    def _connect(self, until: float) -> _Connection:
        sock = connect(self._name.addresses(_left(until)), until)
        try:
            if self._trust is not None:
                sock = self._shake_hands(sock, self._trust.now(), until)
            return _Connection(self.endpoint, sock, _left(until))
        except BaseException:
            sock.close()
            raise

    def _shake_hands(self, sock: socket.socket, context: ssl.SSLContext, until: float) -> ssl.SSLSocket:
        sock.settimeout(_left(until))
        try:
            return context.wrap_socket(sock, server_hostname=self._server_name)
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError):
            raise HandshakeClosed("TLS: closed in the handshake; a server without TLS?") from None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def is_refusal(error: BaseException) -> bool:
    """Whether TLS failed over certificates or settings, which waiting does not mend."""
    return isinstance(error, ssl.SSLError) and not isinstance(
        error, (ssl.SSLEOFError, ssl.SSLZeroReturnError, TimeoutError)
    )


def reason(error: BaseException, *, ca: str, certificate: str) -> str:
    """A transport failure in a few words, on one line; `ca` and `certificate`: where those are set."""
    if isinstance(error, ssl.SSLCertVerificationError):
        where = "this host's clock" if "not yet valid" in error.verify_message else ca
        return f"its certificate is not trusted ({error.verify_message}); see {where}"
    if isinstance(error, ssl.SSLError):
        words = (error.reason or str(error)).lower().replace("_", " ")
        return f"TLS: {words}" + (f"; see {certificate}" if "alert" in words else "")
    if isinstance(error, HandshakeClosed):
        return str(error)
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def connect(addresses: Sequence[Address], until: float) -> socket.socket:
    """To the first that answers; each may take its share of the time up to `until`. OSError of the first."""
    failures = []
    for number, (family, address) in enumerate(addresses):
        try:
            return _connect_to(family, address, _left(until) / (len(addresses) - number))
        except OSError as error:
            failures.append(error)
    raise failures[0]


def _connect_to(family: socket.AddressFamily, address: Any, seconds: float) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(seconds)
        sock.connect(address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError:
        sock.close()
        raise
    return sock


def _left(until: float) -> float:
    """Seconds until then. TimeoutError if there are none."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


def _is_ours(sock: socket.socket) -> bool:
    """Whether the address at our end of a connection is still one of this host. True if it is not known."""
    try:
        address = sock.getsockname()[0]
        with socket.socket(sock.family, socket.SOCK_DGRAM) as other:
            other.bind((address, 0))
    except OSError as error:
        return error.errno != errno.EADDRNOTAVAIL
    return True


class Stream:
    """An answer of lines, that need not end by itself."""

    def __init__(
        self,
        endpoint: Endpoint,
        connection: http.client.HTTPConnection,
        timed: TimedSocket,
        response: http.client.HTTPResponse,
    ) -> None:
        self.endpoint = endpoint
        self.status, self.headers = response.status, response.headers
        self._connection, self._timed, self._response = connection, timed, response
        for option, value in KEEPALIVE:
            timed.socket.setsockopt(socket.IPPROTO_TCP, option, value)
        timed.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def body(self) -> bytes:
        """The whole of an answer that is an error, and so does end."""
        return self._response.read()

    def patient(self, seconds: float | None = None) -> None:
        """From now on silence is no failure, for so long; None: however long."""
        self._timed.allow(seconds)

    def lines(self) -> Iterator[bytes]:
        """The lines as they come, whole and not empty; ends when the server closes."""
        rest = b""
        while data := self._response.read1(READ_BYTES):
            *lines, rest = (rest + data).split(b"\n") if b"\n" in data else (rest + data,)
            yield from filter(bytes.strip, lines)

    def __iter__(self) -> Iterator[Json]:
        """The lines as JSON objects. ValueError on what is none."""
        for line in self.lines():
            value = json.loads(line)
            if not isinstance(value, dict):
                raise ValueError("not a JSON object")
            yield value

    def abort(self) -> None:
        """End it, from any thread: whoever reads it sees its end."""
        with contextlib.suppress(OSError):
            # Not SSLSocket.shutdown, which takes the TLS state from under a reader.
            socket.socket.shutdown(self._timed.socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """By the reading thread, when it is done."""
        self._response.close()
        self._connection.close()
