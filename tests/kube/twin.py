"""The API server of `tests.kube.state`, over HTTP(S), and what happens to such servers."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import parse_qs, urlsplit

from tests.kube import nodes, objects
from tests.kube.nodes import Json
from tests.kube.objects import Objects
from tests.kube.state import ApiError, State, merge, strategic
from tests.pki import Certificates

FLANNEL: Final = frozenset({"get nodes", "list nodes", "watch nodes", "patch nodes/status", "get pods"})
"""The rules of flannel's ClusterRole."""
ADMIN: Final = frozenset({"*"})
PATCHES: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "application/strategic-merge-patch+json": strategic,
    "application/merge-patch+json": merge,
}
BOOKMARK_S: Final = 1.0
"""A real server sends one a minute; some never do."""
NODES: Final = (
    {"name": "nodes", "singularName": "node", "namespaced": False, "kind": "Node", "shortNames": ["no"],
     "verbs": ["create", "delete", "get", "list", "patch", "watch"]},
    {"name": "nodes/status", "singularName": "", "namespaced": False, "kind": "Node",
     "verbs": ["get", "patch"]},
)  # fmt: skip
"""What discovery says of them."""


@dataclass
class User:
    """Who has a token."""

    name: str
    rights: frozenset[str] = FLANNEL


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that came, as an audit log has it."""

    verb: str
    path: str
    user: str
    body: Json | None
    content: str = ""
    """The content type of the body."""


@dataclass
class Faults:
    """What the server does wrong, from now on."""

    answers: list[tuple[int, dict[str, str], bytes]] = field(default_factory=list)
    """What the next requests for Nodes get, in turn, whatever they ask for."""
    silent: bool = False
    """Watches stay open, and say nothing."""
    busy: bool = False
    """Whatever is asked gets 503."""
    silent_before: int = 0
    """The same of those that began before this one."""
    bookmarks: bool = True
    cut_after: int | None = None
    """The next event is sent up to so many bytes, and the connection ends."""
    delay: float = 0.0
    """Seconds that each answer takes longer."""


class Twin:
    """A running API server on `address`. `secure`: with TLS, by certificates of its own."""

    def __init__(
        self,
        *,
        address: str = "127.0.0.1",
        certificates: Certificates | None = None,
        inside: Callable[[Callable[[], ThreadingHTTPServer]], ThreadingHTTPServer] = lambda make: make(),
    ) -> None:
        """`certificates`: of TLS. `inside`: where sockets are made (a namespace's `call`)."""
        self.state = State()
        self.objects = Objects()
        self.faults = Faults()
        self.users = {
            "admin": User("admin", ADMIN),
            "node": User("system:serviceaccount:kube-flannel:flannel"),
        }
        """By token."""
        self.asked: list[Asked] = []
        self.watches = 0
        """How many have begun so far."""
        self.epoch = 0
        """A watch of an earlier one ends."""
        self.running = False
        self._certificates, self._inside = certificates, inside
        self._address, self.port = address, 0
        self._server: ThreadingHTTPServer | None = None
        self.connections: set[socket.socket] = set()

    @property
    def url(self) -> str:
        return f"{'https' if self._certificates else 'http'}://{self._address}:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """On the port that it had before, if it had one."""
        handler = type("Handler", (_Handler,), {"twin": self})
        server = self._inside(lambda: _Server((self._address, self.port), handler))
        self.port = server.server_address[1]
        if self._certificates is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(
                self._certificates.path("server.pem"), self._certificates.path("server.key")
            )
            context.load_verify_locations(self._certificates.path("ca.pem"))
            context.verify_mode = ssl.CERT_OPTIONAL
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._server, self.running = server, True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Gone, with all connections; what it knows stays, as etcd has it."""
        if self._server is None:
            return
        server, self._server, self.running = self._server, None, False
        server.shutdown()
        server.server_close()
        self.hang_up()

    def hang_up(self) -> None:
        """End all connections."""
        self.epoch += 1
        with self.state.changed:
            self.state.changed.notify_all()
        for connection in tuple(self.connections):
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def restart(self) -> None:
        """As a real one restarts: its history begins anew."""
        self.stop()
        self.state.forget()
        self.start()

    def silence_running(self) -> None:
        """The watches that run now say nothing any more."""
        with self.state.changed:
            self.faults.silent_before = self.watches + 1

    def expire_watches(self) -> None:
        """Close all watches in order, as at their time."""
        self.epoch += 1
        with self.state.changed:
            self.state.changed.notify_all()

    def of(self, verb: str, path: str = "") -> list[Asked]:
        """What was asked with this verb."""
        return [each for each in tuple(self.asked) if each.verb == verb and path in each.path]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    twin: Twin

    def setup(self) -> None:
        super().setup()
        self.twin.connections.add(self.connection)

    def finish(self) -> None:
        self.twin.connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PATCH(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def _serve(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else b""
        if self.twin.faults.delay:
            time.sleep(self.twin.faults.delay)
        try:
            self._route(url.path, query, body)
        except ApiError as error:
            self._answer(error.code, json.dumps(error.status).encode())

    # --- Answers ---------------------------------------------------------------

    def _answer(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def _route(self, path: str, query: dict[str, str], body: bytes) -> None:
        known: dict[str, Json] = {
            "/version": {"major": "1", "minor": "36", "gitVersion": "v1.36.2"},
            "/readyz": {}, "/healthz": {}, "/livez": {},
            "/api": {"kind": "APIVersions", "versions": ["v1"]},
            "/apis": objects.groups(),
            **{objects.root(version): {"kind": "APIResourceList", "groupVersion": version,
                                       "resources": [*(NODES if version == "v1" else []),
                                                     *objects.resources(version)]}
               for version in objects.KINDS},
        }  # fmt: skip
        if self.twin.faults.busy:
            self.twin.asked.append(Asked("get", path, "", None))
            self._answer(503, b"busy", {"Retry-After": "1"})
            return
        if path in known:
            self.twin.asked.append(Asked("get", path, "", None))
            self._answer(200, json.dumps(known[path]).encode())
            return
        if "/pods/" in path:
            self._pod(path)
            return
        if self.twin.objects.knows(path):
            self._allow(self._user(), self.command.lower(), path, "")
            self._answer(*self.twin.objects.answer(self.command, path, json.loads(body) if body else None))
            return
        parts = path.removeprefix("/api/v1/nodes").strip("/").split("/")
        if not path.startswith("/api/v1/nodes") or len(parts) > 2 or parts[1:] not in ([], ["status"]):
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
        if self.twin.faults.answers:
            code, headers, said = self.twin.faults.answers.pop(0)
            self._answer(code, said, headers)
            return
        self._nodes(parts[0], parts[1:] == ["status"], query, body)

    # --- Nodes -----------------------------------------------------------------

    def _nodes(self, name: str, status: bool, query: dict[str, str], body: bytes) -> None:
        watch = query.get("watch") in ("1", "true")
        verb = {"GET": "get" if name else "watch" if watch else "list", "POST": "create", "PATCH": "patch",
                "DELETE": "delete"}[self.command]  # fmt: skip
        content = self.headers.get("Content-Type", "") if body else ""
        try:
            given = json.loads(body) if body else None
        except ValueError:
            raise ApiError(400, "BadRequest", "unexpected end of JSON input") from None
        user = self._user()
        self.twin.asked.append(Asked(verb, self.path, user.name, given, content))
        self._allow(user, verb, "nodes/status" if status else "nodes", name)
        state = self.twin.state
        if verb == "watch":
            self._watch(query)
        elif verb == "list":
            limit = 0 if query.get("resourceVersion") == "0" else int(query.get("limit", "0"))
            self._answer(200, state.page(limit, query.get("continue", ""), _selected(query)))
        elif verb == "get":
            self._answer(200, nodes.alone(state.get(name)))
        elif verb == "create":
            assert given is not None
            self._answer(201, nodes.alone(state.create(given)))
        elif verb == "delete":
            uid = json.loads(state.delete(name))["metadata"]["uid"]
            details = {"name": name, "kind": "nodes", "uid": uid}
            gone = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
            self._answer(200, json.dumps({**gone, "details": details}).encode())
        else:
            if not isinstance(given, dict):
                raise ApiError(400, "BadRequest", "json: cannot unmarshal array into Go value of type map")
            if content not in PATCHES:
                raise ApiError(
                    415,
                    "UnsupportedMediaType",
                    f"the body of the request was in an unknown format: {content}",
                )
            self._answer(200, nodes.alone(state.patch(name, PATCHES[content], given, status=status)))

    def _pod(self, path: str) -> None:
        namespace, _, name = path.removeprefix("/api/v1/namespaces/").partition("/pods/")
        user = self._user()
        self.twin.asked.append(Asked("get", path, user.name, None))
        self._allow(user, "get", "pods", name)
        pod = self.twin.state.pods.get((namespace, name))
        if pod is None:
            raise ApiError(404, "NotFound", f'pods "{name}" not found')
        self._answer(200, json.dumps(pod).encode())

    def _user(self) -> User:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token in self.twin.users:
            return self.twin.users[token]
        if isinstance(self.connection, ssl.SSLSocket) and (certificate := self.connection.getpeercert()):
            subject = dict(pair[0] for pair in certificate["subject"])  # type: ignore[misc]
            return User(str(subject["commonName"]))
        if "Authorization" not in self.headers:
            return User("system:anonymous", frozenset())
        raise ApiError(401, "Unauthorized", "Unauthorized")

    def _allow(self, user: User, verb: str, resource: str, name: str) -> None:
        if not user.rights & {"*", f"{verb} {resource}"}:
            which = resource.partition("/")[0] + (f' "{name}"' if name else "")
            raise ApiError(
                403, "Forbidden", f'{which} is forbidden: User "{user.name}" cannot {verb} resource'
                f' "{resource}" in API group "" at the cluster scope',
            )  # fmt: skip

    # --- Watches ---------------------------------------------------------------

    def _watch(self, query: dict[str, str]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in self._events(query):
            self._chunk(line + b"\n")
        self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        faults = self.twin.faults
        if data and faults.cut_after is not None and not data.startswith(b'{"type":"BOOKMARK"'):
            cut, faults.cut_after = faults.cut_after, None
            self.wfile.write(f"{len(data):x}\r\n".encode() + data[:cut])
            self.wfile.flush()
            socket.socket.shutdown(self.connection, socket.SHUT_RDWR)
            raise ConnectionAbortedError
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _events(self, query: dict[str, str]) -> Iterator[bytes]:
        """Until its time is over, or the server's."""
        twin, state, selected = self.twin, self.twin.state, _selected(query)
        epoch, until = twin.epoch, time.monotonic() + float(query.get("timeoutSeconds", "1800"))
        position = int(query.get("resourceVersion") or state.version)
        with state.changed:
            twin.watches += 1
            serial = twin.watches
        bookmark = time.monotonic() + BOOKMARK_S
        while epoch == twin.epoch and (left := until - time.monotonic()) > 0:
            silent = twin.faults.silent or serial < twin.faults.silent_before
            try:
                events = list(state.since(position)) if not silent else []
            except ApiError as error:
                yield json.dumps({"type": "ERROR", "object": error.status}).encode()
                return
            for event in events:
                position = event.version
                if selected(event.name):
                    yield f'{{"type":"{event.kind}","object":'.encode() + nodes.alone(event.item) + b"}"
            wanted = query.get("allowWatchBookmarks") in ("1", "true") and twin.faults.bookmarks
            if wanted and not silent and time.monotonic() >= bookmark:
                with state.changed:
                    told = not state.history or state.history[-1].version <= position
                    position = max(position, state.version) if told else position
                bookmark = time.monotonic() + BOOKMARK_S
                yield _bookmark(position)
            with state.changed:
                if epoch == twin.epoch and (silent or state.version <= position):
                    state.changed.wait(min(left, 0.2))


def _bookmark(version: int) -> bytes:
    metadata = {"resourceVersion": str(version), "creationTimestamp": None}
    told = {"kind": "Node", "apiVersion": "v1", "metadata": metadata, "spec": {}, "status": {}}
    return json.dumps({"type": "BOOKMARK", "object": told}, separators=(",", ":")).encode()


def _selected(query: dict[str, str]) -> Callable[[str], bool]:
    key, _, name = query.get("fieldSelector", "").partition("=")
    return (lambda each: each == name) if key == "metadata.name" else lambda _: True
