"""A kept connection to the store, when the host's address changes under it."""

from __future__ import annotations

import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from ctl.settings.endpoint import Endpoint
from ctl.store.connection.http import Channel, Request
from tests.lab import Lab

PORT = 2379


class Member(BaseHTTPRequestHandler):
    """Answers everything, with the address that asks."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = self.client_address[0].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


def test_a_request_does_not_wait_on_a_connection_from_an_address_that_is_gone(lab: Lab) -> None:
    a, b = lab.pair()
    server = b.call(lambda: ThreadingHTTPServer((b.address, PORT), Member))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    channel = Channel(Endpoint(b.address, PORT, tls=False), None)
    ask = partial(a.call, lambda: channel.ask(Request("/", "POST", body=b"{}"), 5.0).body)
    try:
        assert ask() == ask() == a.address.encode()
        kept = channel._connection
        assert kept is not None
        a.ip("addr", "del", f"{a.address}/24", "dev", "eth0")
        a.ip("addr", "add", "192.168.77.99/24", "dev", "eth0")
        assert ask() == b"192.168.77.99"
        assert channel._connection is not kept
    finally:
        channel.close()
        server.shutdown()
        thread.join()
        server.server_close()
