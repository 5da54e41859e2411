"""What the agent answers over HTTP: /metrics for Prometheus, /healthz and /readyz for probes.

Twice: on the metrics port in our words, and, if asked for, on the health port in flannel's,
for probes that were written for flanneld. Both tell the same.
"""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable

from prometheus_client.exposition import choose_encoder

from ctl.core.report import AgentReport, readiness
from metrics.collector import Source, registry
from metrics.http import Answer, HttpServer, Request, listen

Reports = Callable[[], AgentReport | None]
"""Gives the agent's last report; None before the first."""


def serve(
    addr: str, port: int, source: Source, report: Reports, *, clock: Callable[[], float] = time.time
) -> HttpServer:
    """Serve metrics and health on `addr`:`port` (0: any free port) until closed.

    `source` is called from the server's threads, one at a time, for scrapes only: probes
    are content with `report`, the agent's last one. ConfigError if the address cannot be bound.
    """
    pages = _Pages(source, report, clock)
    return listen("metrics", addr, port, pages.answer, "--metrics-addr and --metrics-port")


def serve_health(
    addr: str, port: int, report: Reports, *, clock: Callable[[], float] = time.time
) -> HttpServer:
    """Serve flanneld's two paths on `addr`:`port` until closed, byte for byte in its words.

    `report` gives the agent's last one. ConfigError if the address cannot be bound.
    """

    def answer(request: Request) -> Answer:
        # Its texts end without a newline.
        if request.path == "/healthz":
            return Answer(200, b"flanneld is running")
        if request.path == "/readyz":
            ready = not readiness(report(), clock())
            return Answer(200, b"flanneld is ready") if ready else Answer(503, b"flanneld is not ready yet")
        return Answer(404, b"not found: there are /healthz and /readyz\n")

    return listen("health", addr, port, answer, "--healthz-ip and --healthz-port")


class _Pages:
    """What there is on the metrics port. A scrape that cannot read the maps still answers."""

    def __init__(self, source: Source, report: Reports, clock: Callable[[], float]) -> None:
        self._report, self._clock = report, clock
        self._one_at_a_time = threading.Lock()
        self._registry = registry(source)

    def answer(self, request: Request) -> Answer:
        """What a GET gets."""
        if request.path == "/metrics":
            with self._one_at_a_time:
                return self._exposition(request)
        if request.path == "/healthz":
            return Answer(200, b"ovnet agent is running\n")
        if request.path == "/readyz":
            why = readiness(self._report(), self._clock())
            if why:
                return Answer(503, f"ovnet agent is not ready: {why}\n".encode())
            return Answer(200, b"ovnet agent is ready\n")
        return Answer(404, b"not found: there are /metrics, /healthz and /readyz\n")

    def _exposition(self, request: Request) -> Answer:
        encode, content_type = choose_encoder(request.accept)
        body = encode(self._registry)
        if request.compress:
            return Answer(200, gzip.compress(body), content_type, "gzip")
        return Answer(200, body, content_type)
