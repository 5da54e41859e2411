"""HTTP to one member of etcd: requests with a deadline, and endless responses.

etcd's JSON gateway over the standard library's http.client. An agent imports that module
already (for its metrics server), so it costs no memory; `requests` would cost every agent
10 MB and etcd3gw 15 MB, and both start slower. What a client library would add, failover,
authentication and a watch that notices being cut off, they do not have either.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import socket
import ssl
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ctl.endpoint import Endpoint
from ctl.errors import ConfigError

Json = dict[str, Any]

KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 3), (socket.TCP_KEEPCNT, 3))
"""TCP's own probes, seconds and count: a host that vanished is noticed within 14 s."""

READ_BYTES: Final = 1 << 16

TRANSPORT_ERRORS: Final = (OSError, http.client.HTTPException)
"""What a member that is away, or is no etcd, looks like from here."""


class HandshakeClosed(ConnectionError):
    """The other end took the connection, and closed it instead of speaking TLS.

    A server without TLS does so, or one that is just going down: which of the two cannot be told.
    """


def tls_context(cafile: str, certfile: str, keyfile: str) -> ssl.SSLContext:
    """Verifying context; "" means the system's CAs, and no client certificate. ConfigError names the file."""
    context = ssl.create_default_context()
    for what, files in (("CA", (cafile,)), ("client certificate", (certfile, keyfile))):
        if not files[0]:
            continue
        try:
            if what == "CA":
                # Ours alone: whoever names a CA means that one and not the public ones.
                context = ssl.create_default_context(cafile=cafile)
            else:
                # A key with a passphrase would make OpenSSL ask the terminal.
                context.load_cert_chain(certfile, keyfile, password="")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise ConfigError(f"etcd {what} {' and '.join(files)}: {reason}") from error
    return context


class Channel:
    """One endpoint, and a connection to it that is kept open between requests.

    Not for several threads at once. `timeout`: seconds of silence that are a failure.
    Raises TRANSPORT_ERRORS.
    """

    def __init__(self, endpoint: Endpoint, context: ssl.SSLContext | None, timeout: float) -> None:
        self.endpoint = endpoint
        self._context = context
        self._timeout = timeout
        self._connection: http.client.HTTPConnection | None = None

    def post(self, path: str, body: Json, headers: Mapping[str, str], timeout: float) -> tuple[int, bytes]:
        """Status and body of the answer. Sent twice if an idle connection turns out to be closed."""
        if self._connection is not None and not _is_ours(self._connection.sock):
            self.close()  # it would take a whole timeout to find out
        if self._connection is not None:
            with contextlib.suppress(ConnectionError, ssl.SSLEOFError):
                return self._post(self._connection, path, body, headers, timeout)
        self._connection = self._connect(timeout)
        return self._post(self._connection, path, body, headers, timeout)

    def _post(
        self,
        connection: http.client.HTTPConnection,
        path: str,
        body: Json,
        headers: Mapping[str, str],
        timeout: float,
    ) -> tuple[int, bytes]:
        done = False
        try:
            connection.timeout = timeout
            if connection.sock is not None:
                connection.sock.settimeout(timeout)
            _send(connection, path, body, headers)
            response = connection.getresponse()
            data = response.read()
            done = True
            return response.status, data
        finally:
            if not done:
                self.close()

    def open(self, path: str, body: Json, headers: Mapping[str, str]) -> Stream:
        """A request whose answer goes on: on a connection of its own."""
        connection = self._connect(self._timeout)
        try:
            _send(connection, path, body, headers)
            sock = connection.sock
            return Stream(self.endpoint, connection, sock, connection.getresponse())
        except BaseException:
            connection.close()
            raise

    def _connect(self, timeout: float) -> http.client.HTTPConnection:
        host, port = self.endpoint.host, self.endpoint.port
        if self.endpoint.tls:
            return http.client.HTTPSConnection(host, port, timeout=timeout, context=self._context)
        return http.client.HTTPConnection(host, port, timeout=timeout)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _is_ours(sock: socket.socket | None) -> bool:
    """Whether the address at our end of a connection is still one of this host. True if it is not known."""
    if sock is None:
        return True
    try:
        address = sock.getsockname()[0]
        with socket.socket(sock.family, socket.SOCK_DGRAM) as other:
            other.bind((address, 0))
    except OSError as error:
        return error.errno != errno.EADDRNOTAVAIL
    return True


def _send(connection: http.client.HTTPConnection, path: str, body: Json, headers: Mapping[str, str]) -> None:
    data = json.dumps(body, separators=(",", ":")).encode()
    try:
        connection.request("POST", path, data, {"Content-Type": "application/json", **headers})
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError):
        # In TLS 1.3 a client's certificate is refused after the handshake: the alert that
        # says so may lie unread in front of the end that the write ran into.
        if isinstance(connection.sock, ssl.SSLSocket):
            connection.sock.recv(1)
        elif isinstance(connection, http.client.HTTPSConnection) and connection.sock is not None:
            raise HandshakeClosed("TLS: closed in the handshake; a server without TLS?") from None
        raise


class Stream:
    """An answer of one JSON object per line, that never ends by itself."""

    def __init__(
        self,
        endpoint: Endpoint,
        connection: http.client.HTTPConnection,
        sock: socket.socket,
        response: http.client.HTTPResponse,
    ) -> None:
        self.endpoint = endpoint
        self.status = response.status
        self._connection, self._sock, self._response = connection, sock, response
        for option, value in KEEPALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def body(self) -> bytes:
        """The whole of an answer that is an error, and so does end."""
        return self._response.read()

    def patient(self) -> None:
        """From now on silence is no failure."""
        self._sock.settimeout(None)

    def __iter__(self) -> Iterator[Json]:
        """The objects as they come. ValueError on what is no JSON object; ends when the member closes."""
        rest = b""
        while data := self._response.read1(READ_BYTES):
            *lines, rest = (rest + data).split(b"\n") if b"\n" in data else (rest + data,)
            for line in lines:
                if line.strip():
                    value = json.loads(line)
                    if not isinstance(value, dict):
                        raise ValueError("not a JSON object")
                    yield value

    def abort(self) -> None:
        """End it, from any thread: whoever reads it sees its end."""
        with contextlib.suppress(OSError):
            # Not SSLSocket.shutdown, which takes the TLS state from under a reader.
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """By the reading thread, when it is done."""
        self._response.close()
        self._connection.close()
