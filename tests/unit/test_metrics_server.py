from __future__ import annotations

import gzip
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing

import pytest

from ctl.core.errors import ConfigError, KernelError
from ctl.core.report import AgentReport
from metrics.http import MAX_REQUESTS, Answer, HttpServer, listen
from metrics.server import serve, serve_health
from metrics.snapshot import NodeSnapshot
from tests.process import wait_until
from tests.samples import EARLY, NOW, SNAPSHOT, report

Reply = tuple[int, dict[str, str], bytes]


class Node:
    """What the server is told; tests change it while it runs."""

    def __init__(self) -> None:
        self.snapshot = SNAPSHOT
        self.fail = False
        self.scrapes = 0

    def report(self) -> AgentReport | None:
        return self.snapshot.report

    def __call__(self) -> NodeSnapshot:
        self.scrapes += 1
        if self.fail:
            raise KernelError("maps are gone")
        return self.snapshot


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
def server(node: Node) -> Iterator[HttpServer]:
    with closing(serve("127.0.0.1", 0, node, node.report, clock=lambda: NOW)) as running:
        yield running


def get(server: HttpServer, path: str, method: str = "GET", **headers: str) -> Reply:
    url = f"http://127.0.0.1:{server.port}{path}"
    request = urllib.request.Request(url, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return reply.status, dict(reply.headers), reply.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def test_metrics_are_served_as_text(server: HttpServer) -> None:
    status, headers, body = get(server, "/metrics?debug=1")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=")
    assert b'ovnet_packets_total{hook="from_wire",reason="decap",verdict="bypass"} 22.0' in body
    assert headers["Server"].strip() == "ovnet"


def test_metrics_are_compressed_for_who_asks(server: HttpServer) -> None:
    _, headers, body = get(server, "/metrics", **{"Accept-Encoding": "gzip"})
    assert headers["Content-Encoding"] == "gzip"
    assert b"ovnet_build_info" in gzip.decompress(body)


def test_openmetrics_is_served_to_who_asks(server: HttpServer) -> None:
    _, headers, body = get(server, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_health_is_200_as_long_as_we_answer(server: HttpServer, node: Node) -> None:
    node.fail = True
    assert get(server, "/healthz")[::2] == (200, b"ovnet agent is running\n")


def test_readiness_follows_the_report(server: HttpServer, node: Node) -> None:
    assert get(server, "/readyz")[::2] == (200, b"ovnet agent is ready\n")
    node.snapshot = NodeSnapshot(report(ready=False, not_ready=("no lease yet",)))
    assert get(server, "/readyz")[::2] == (503, b"ovnet agent is not ready: no lease yet\n")
    node.snapshot = NodeSnapshot(EARLY)
    assert get(server, "/readyz")[0] == 503
    node.snapshot = NodeSnapshot()
    assert get(server, "/readyz")[::2] == (503, b"ovnet agent is not ready: no reconcile has finished yet\n")


def test_a_failing_source_answers_and_is_counted(server: HttpServer, node: Node) -> None:
    node.fail = True
    status, _, body = get(server, "/metrics")
    assert status == 200
    assert b"ovnet_scrape_errors_total 1.0" in body
    assert get(server, "/readyz")[::2] == (200, b"ovnet agent is ready\n")


def test_probes_take_no_snapshot(server: HttpServer, node: Node) -> None:
    """One reads every map, and at 100,000 peers takes longer than a probe waits."""
    assert [get(server, path)[0] for path in ("/healthz", "/readyz", "/metrics")] == [200, 200, 200]
    assert node.scrapes == 1


def test_flannels_probes_get_flannels_words() -> None:
    """As flanneld 0.28.9 has them: no newline at their end."""
    last = [None, report(ready=False, not_ready=("no lease yet",)), report()]
    with closing(serve_health("127.0.0.1", 0, lambda: last[0], clock=lambda: NOW)) as server:
        assert get(server, "/healthz")[::2] == (200, b"flanneld is running")
        for _ in range(2):
            assert get(server, "/readyz")[::2] == (503, b"flanneld is not ready yet")
            del last[0]
        assert get(server, "/readyz")[::2] == (200, b"flanneld is ready")
        assert get(server, "/metrics")[0] == 404


def test_a_taken_health_port_names_its_flags(server: HttpServer) -> None:
    with pytest.raises(ConfigError, match="cannot serve health .* see --healthz-ip and --healthz-port"):
        serve_health("127.0.0.1", server.port, lambda: None)


@pytest.mark.parametrize("path", ["/", "/metricsx", "/healthz/", "/%6detrics"])
def test_anything_else_is_404(server: HttpServer, path: str) -> None:
    assert get(server, path)[0] == 404


def test_head_has_no_body_and_other_methods_are_refused(server: HttpServer) -> None:
    status, headers, body = get(server, "/healthz", "HEAD")
    assert (status, headers["Content-Length"], body) == (200, "23", b"")
    assert get(server, "/metrics", "POST")[0] == 501


def test_a_taken_port_is_the_users_mistake(server: HttpServer, node: Node) -> None:
    with pytest.raises(ConfigError, match=rf"port {server.port}: Address already in use; see --metrics-addr"):
        serve("127.0.0.1", server.port, node, node.report)


def test_an_address_that_is_not_ours_is_the_users_mistake(node: Node) -> None:
    with pytest.raises(ConfigError, match="192.0.2.1 port 1234: Cannot assign"):
        serve("192.0.2.1", 1234, node, node.report)


def test_ipv6_is_an_address_too(node: Node) -> None:
    try:
        running = serve("::1", 0, node, node.report)
    except ConfigError as error:
        pytest.skip(f"no IPv6 loopback here: {error}")
    with closing(running), socket.create_connection(("::1", running.port), 5):
        assert running.address == "::1"


def test_closing_frees_the_port_and_the_thread(node: Node) -> None:
    before = set(threading.enumerate())
    running = serve("127.0.0.1", 0, node, node.report)
    port = running.port
    running.close()
    assert set(threading.enumerate()) <= before
    serve("127.0.0.1", port, node, node.report).close()


def test_silent_clients_cannot_pile_up(server: HttpServer) -> None:
    silent = [socket.create_connection(("127.0.0.1", server.port), 5) for _ in range(MAX_REQUESTS)]
    try:
        with socket.create_connection(("127.0.0.1", server.port), 5) as late:
            late.settimeout(10)
            assert late.recv(1) == b"", "the one too many is closed unread"
    finally:
        for client in silent:
            client.close()
    wait_until(lambda: answers(server), 10, "the server answers again")


def test_a_client_that_sends_a_byte_now_and_then_is_sent_away() -> None:
    """Eight of them would keep every probe out, and a liveness probe that is kept out kills the agent."""
    ask = listen("words", "127.0.0.1", 0, lambda _: Answer(200, b""), "", request_timeout=0.3)
    with closing(ask) as server, socket.create_connection(("127.0.0.1", server.port), 5) as client:
        client.sendall(b"GET /")
        client.setblocking(False)
        wait_until(lambda: hung_up(client), 10, "the server hangs up")


def hung_up(client: socket.socket) -> bool:
    """Whether the server has closed the connection; it gets one more byte."""
    try:
        client.send(b"x")
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def answers(server: HttpServer) -> bool:
    try:
        return get(server, "/healthz")[0] == 200
    except OSError:
        return False


def test_a_client_that_leaves_is_no_news(server: HttpServer, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", server.port), 5) as client:
            # Reset instead of a clean close: the answer finds nobody.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
    wait_until(lambda: answers(server), 10, "the server answers")
    assert capfd.readouterr().err == ""
