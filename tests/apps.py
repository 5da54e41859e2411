"""Three small applications that know nothing of overlays: `python3 apps.py COMMAND ...`.

    registry PORT                      PUT and GET /NAME: where an application can be found
    serve NAME PORT REGISTRY           register this machine's own address, answer over HTTP
    call NAME REGISTRY                 ask the registry, call what it names, print the answer

`serve` registers what the operating system says its address is. That is the point of
the network they run on: inside a container it is the container's own, and it is one
that others can reach. Standard library only.
"""

from __future__ import annotations

import argparse
import socket
import sys
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar


class Registry(BaseHTTPRequestHandler):
    """Names to `address:port`, kept in memory."""

    entries: ClassVar[dict[str, str]] = {}

    def do_PUT(self) -> None:
        """Store the body under the path."""
        length = int(self.headers.get("Content-Length", 0))
        self.entries[self.path] = self.rfile.read(length).decode()
        answer(self, 204, "")

    def do_GET(self) -> None:
        """Return what was stored under the path."""
        entry = self.entries.get(self.path)
        answer(self, 200 if entry else 404, entry or "not registered\n")

    def log_message(self, format: str, *args: object) -> None:
        """Say what was asked, and from where."""
        sys.stderr.write(f"{self.client_address[0]} {format % args}\n")


class Greeter(Registry):
    """Says who it is and whom it sees."""

    name = ""
    local = ""

    def do_GET(self) -> None:
        """One line: both addresses of this connection, as this side sees them."""
        answer(self, 200, f"{self.name} at {self.local} sees you as {self.client_address[0]}\n")


def answer(handler: BaseHTTPRequestHandler, status: int, text: str) -> None:
    """Send a whole response."""
    body = text.encode()
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def own_address(registry: str) -> str:
    """The address that this machine uses to talk to others."""
    host, port = registry.split(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((host, int(port)))
        address: str = sock.getsockname()[0]
        return address


def listen(port: int, handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    """A server that is bound, and says so on stdout by the caller."""
    return ThreadingHTTPServer(("", port), handler)


def registry(args: argparse.Namespace) -> None:
    server = listen(args.port, Registry)
    print(f"registry listens on port {args.port}", flush=True)
    server.serve_forever()


def serve(args: argparse.Namespace) -> None:
    Greeter.name, Greeter.local = args.name, f"{own_address(args.registry)}:{args.port}"
    server = listen(args.port, Greeter)
    request = urllib.request.Request(
        f"http://{args.registry}/{args.name}", data=Greeter.local.encode(), method="PUT"
    )
    urllib.request.urlopen(request, timeout=10).close()
    print(f"{args.name} registered itself as {Greeter.local}", flush=True)
    server.serve_forever()


def call(args: argparse.Namespace) -> None:
    with urllib.request.urlopen(f"http://{args.registry}/{args.name}", timeout=10) as response:
        where = response.read().decode()
    print(f"the registry says: {args.name} is at {where}")
    with urllib.request.urlopen(f"http://{where}/", timeout=10) as response:
        print(response.read().decode(), end="")


def main() -> None:
    """Run one command of the table above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("registry")
    command.add_argument("port", type=int)
    command.set_defaults(func=registry)
    command = commands.add_parser("serve")
    command.add_argument("name")
    command.add_argument("port", type=int)
    command.add_argument("registry", help="address:port")
    command.set_defaults(func=serve)
    command = commands.add_parser("call")
    command.add_argument("name")
    command.add_argument("registry", help="address:port")
    command.set_defaults(func=call)
    args = parser.parse_args()
    args.func(args)


if __name__ == "__main__":
    main()
