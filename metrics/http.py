"""A small HTTP server for probes and scrapes: bounded, and deaf to what clients do wrong.

Runs in daemon threads of the agent, which it must never harm: few requests at once, each
with a time limit, no name look-ups.
"""

from __future__ import annotations

import errno
import socket
import socketserver
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from ctl.core.errors import ConfigError
from ctl.process import holder
from ctl.process.timed import TimedSocket

MAX_REQUESTS: Final = 8
"""How many connections are served at once; more are closed unread."""

REQUEST_TIMEOUT: Final = 10.0
"""How many seconds a client has to say what it wants, and as many again to take the answer."""

_TEXT: Final = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request gets."""

    status: int
    body: bytes
    content_type: str = _TEXT
    encoding: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """What counts of a GET or HEAD."""

    path: str
    """What was asked for, without its query."""
    accept: str
    """The formats that the client takes (the header Accept)."""
    compress: bool
    """Whether the client takes gzip."""


Answering = Callable[[Request], Answer]
"""Makes the answer to a request; called from the server's threads, several at once."""


class HttpServer:
    """A running server; `address` and `port` are what it is bound to."""

    def __init__(self, http: _Server, name: str) -> None:
        self._http = http
        self._thread = threading.Thread(target=http.serve_forever, name=name, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return str(self._http.server_address[0])

    @property
    def port(self) -> int:
        return int(self._http.server_address[1])

    def close(self) -> None:
        """Stop listening; requests under way end by themselves."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def listen(
    name: str,
    addr: str,
    port: int,
    answer: Answering,
    flags: str,
    *,
    request_timeout: float = REQUEST_TIMEOUT,
) -> HttpServer:
    """Serve on `addr`:`port` (0: any free port) until closed.

    ConfigError if the address cannot be bound; `name` says what is served, `flags` where it is set.
    """
    try:
        return HttpServer(_Server((addr, port), answer, request_timeout), name)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        taken = getattr(error, "errno", 0) == errno.EADDRINUSE
        whose = f" ({holder.of_port('tcp', port)} has it)" if taken else ""
        raise ConfigError(f"cannot serve {name} on {addr} port {port}: {why}; see {flags}{whose}") from error


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], answer: Answering, request_timeout: float) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.answer, self.request_timeout = answer, request_timeout
        self._slots = threading.BoundedSemaphore(MAX_REQUESTS)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # HTTPServer's own would look its host name up, which can hang without DNS.
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread to be had
            self._slots.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that went away is no news; anything else is a bug: with traceback.
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "ovnet"
    sys_version = ""

    def setup(self) -> None:
        self._timed = self.request = TimedSocket(self.request, self.server.request_timeout)
        super().setup()

    def do_GET(self) -> None:
        answer = self._answer()
        self._head(answer)
        self.wfile.write(answer.body)

    def do_HEAD(self) -> None:
        self._head(self._answer())

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a scrape every few seconds is no news."""

    def _answer(self) -> Answer:
        compress = "gzip" in self.headers.get("Accept-Encoding", "")
        path = self.path.partition("?")[0]
        answer = self.server.answer(Request(path, self.headers.get("Accept", ""), compress))
        self._timed.allow(self.server.request_timeout)
        return answer

    def _head(self, answer: Answer) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        if answer.encoding:
            self.send_header("Content-Encoding", answer.encoding)
        self.end_headers()
