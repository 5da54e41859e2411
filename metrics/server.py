"""The HTTP side: /metrics for Prometheus, /healthz and /readyz for probes.

Runs in daemon threads of the agent, which it must never harm: few requests at once, each
with a time limit, no name look-ups, and a scrape that cannot read the maps still answers.
"""

from __future__ import annotations

import gzip
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import CollectorRegistry

from ctl.errors import ConfigError, OvnetError
from ctl.report import readiness
from metrics.collector import Source, registry

MAX_REQUESTS: Final = 8
"""Connections served at once; more are closed unread."""

REQUEST_TIMEOUT: Final = 10.0
"""Seconds that a silent client may hold a connection."""

_TEXT: Final = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes
    content_type: str = _TEXT
    encoding: str = ""


class MetricsServer:
    """A running server; `address` and `port` are what it is bound to."""

    def __init__(self, http: _Server) -> None:
        self._http = http
        self._thread = threading.Thread(target=http.serve_forever, name="metrics", daemon=True)
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


def serve(addr: str, port: int, source: Source, *, clock: Callable[[], float] = time.time) -> MetricsServer:
    """Serve on `addr`:`port` (0: any free port) until closed.

    `source` is called from the server's threads, one at a time. ConfigError if the
    address cannot be bound.
    """
    try:
        return MetricsServer(_Server((addr, port), source, clock))
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"cannot serve metrics on {addr} port {port}: {why}; see --metrics-addr and --metrics-port"
        ) from error


class _Server(ThreadingHTTPServer):
    """Bounded, and deaf to what clients do wrong."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], source: Source, clock: Callable[[], float]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._source = source
        self._clock = clock
        self._one_at_a_time = threading.Lock()
        self._slots = threading.BoundedSemaphore(MAX_REQUESTS)
        self._registry = registry(source)
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

    def answer(self, path: str, accept: str, compress: bool) -> _Answer:
        """What a GET of `path` gets."""
        if path == "/metrics":
            with self._one_at_a_time:
                return _exposition(self._registry, accept, compress)
        if path == "/healthz":
            return _Answer(200, b"ovnet agent is running\n")
        if path == "/readyz":
            return self._readiness()
        return _Answer(404, b"not found: there are /metrics, /healthz and /readyz\n")

    def _readiness(self) -> _Answer:
        try:
            with self._one_at_a_time:
                why = readiness(self._source().report, self._clock())
        except OvnetError as error:
            why = str(error)
        if why:
            return _Answer(503, f"ovnet agent is not ready: {why}\n".encode())
        return _Answer(200, b"ovnet agent is ready\n")


def _exposition(metrics: CollectorRegistry, accept: str, compress: bool) -> _Answer:
    encode, content_type = choose_encoder(accept)
    body = encode(metrics)
    if compress:
        return _Answer(200, gzip.compress(body), content_type, "gzip")
    return _Answer(200, body, content_type)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = REQUEST_TIMEOUT
    server_version = "ovnet"
    sys_version = ""

    def do_GET(self) -> None:
        answer = self._answer()
        self._head(answer)
        self.wfile.write(answer.body)

    def do_HEAD(self) -> None:
        self._head(self._answer())

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a scrape every few seconds is no news."""

    def _answer(self) -> _Answer:
        path = self.path.partition("?")[0]
        compress = "gzip" in self.headers.get("Accept-Encoding", "")
        return self.server.answer(path, self.headers.get("Accept", ""), compress)

    def _head(self, answer: _Answer) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        if answer.encoding:
            self.send_header("Content-Encoding", answer.encoding)
        self.end_headers()
