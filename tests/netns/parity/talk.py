"""A conversation of a client with whoever answers: over UDP, then over TCP, and how it went.

Everything is in this process: sockets are opened in the namespaces and worked from here, so
that nothing is waited for but packets.
"""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from typing import Final

from tests.namespace import Netns

PORT: Final = 9100
ROUNDS: Final = 8
CHUNK: Final = 40_000
IP_MTU_DISCOVER, IP_RECVERR = 10, 11
IP_PMTUDISC_PROBE: Final = 3
"""linux/in.h"""
LOST: Final = 0.8
"""Seconds after which what has not come is lost. It comes in microseconds."""


@dataclass(frozen=True, slots=True)
class Told:
    """How a conversation went; two that went alike are equal."""

    udp: tuple[str, ...]
    """For each datagram: who got it, as whom it saw the client, who answered; or its fate."""
    tcp: tuple[str, ...]
    """The same of the connection, bytes each way, and how it ended."""


class Server:
    """UDP and TCP on one port of a namespace."""

    def __init__(self, place: Netns) -> None:
        self.udp = place.call(partial(_bound, socket.SOCK_DGRAM))
        self.tcp = place.call(partial(_bound, socket.SOCK_STREAM))
        self.tcp.listen(16)

    def close(self) -> None:
        self.udp.close()
        self.tcp.close()


def _bound(kind: socket.SocketKind) -> socket.socket:
    made = socket.socket(socket.AF_INET, kind)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("", PORT))
    return made


@contextmanager
def servers(places: Mapping[str, Netns]) -> Iterator[dict[str, Server]]:
    """A server in each place, by its name."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(closing(Server(place))) for name, place in places.items()}


def talk(
    client: Netns, to: tuple[str, int], answering: Mapping[str, Server], *, rounds: int = ROUNDS
) -> Told:
    """From a new socket of each kind to `to`, which leads to one of those answering."""
    return Told(
        _attempt(partial(_udp, client, to, answering, rounds)),
        _attempt(partial(_tcp, client, to, answering, rounds)),
    )


def probe(client: Netns, to: tuple[str, int], size: int, answering: Mapping[str, Server]) -> str:
    """What becomes of a datagram that makes an IP packet of `size` bytes with DF set.

    Small ones of the same flow go first, so that it is approved.
    """
    with client.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE)
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        sinks = {name: each.udp for name, each in answering.items()}
        for _ in range(3):
            sock.sendto(b"small", to)
            _first(sinks, sock)[1].recv(100)
        sock.sendto(bytes(size - 28), to)
        try:
            name, server = _first(sinks, sock)
        except TimeoutError:
            return "lost"
        except OSError:
            return _error_of(sock)
        return f"{name} got {len(server.recv(1 << 16)) + 28}"


def _error_of(sock: socket.socket) -> str:
    """The ICMP error in a socket's queue."""
    _, ancillary, _, _ = sock.recvmsg(0, 200, socket.MSG_ERRQUEUE)
    (data,) = (data for level, kind, data in ancillary if (level, kind) == (socket.IPPROTO_IP, IP_RECVERR))
    _, _, kind, code, info, family_port, offender = struct.unpack_from("=IBBBxI4xI4s", data)
    return f"ICMP {kind}.{code} of {IPv4Address(offender)}" + (f", MTU {info}" if info else "")


def _attempt(conversation: Callable[[], Iterator[str]]) -> tuple[str, ...]:
    told = []
    try:
        for word in conversation():
            told.append(word)  # noqa: PERF402 what was told before a failure is kept
    except TimeoutError:
        told.append("lost")
    except OSError as error:
        told.append(error.strerror or type(error).__name__)
    return tuple(told)


def _udp(client: Netns, to: tuple[str, int], answering: Mapping[str, Server], rounds: int) -> Iterator[str]:
    with client.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.settimeout(LOST)
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        for turn in range(rounds):
            sock.sendto(b"question %d" % turn, to)
            name, server = _first({name: each.udp for name, each in answering.items()}, sock)
            data, seen = server.recvfrom(100)
            server.sendto(b"answer to " + data, seen)
            answer, who = sock.recvfrom(100)
            assert answer == b"answer to question %d" % turn
            yield f"{name} saw {seen[0]}, {who[0]}:{who[1]} answered"


def _tcp(client: Netns, to: tuple[str, int], answering: Mapping[str, Server], rounds: int) -> Iterator[str]:
    with client.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as sock:
        sock.settimeout(LOST)
        sock.connect(to)
        name, listener = _first({name: each.tcp for name, each in answering.items()}, sock, errors=False)
        conn, seen = listener.accept()
        with conn:
            conn.settimeout(25 * LOST)  # what is under way may be sent again
            sock.settimeout(25 * LOST)
            yield f"{name} saw {seen[0]}"
            for turn in range(rounds):
                for sender, receiver in ((sock, conn), (conn, sock)):
                    data = bytes([turn]) * CHUNK
                    sender.sendall(data)
                    assert _exactly(receiver, CHUNK) == data
            yield f"{rounds * CHUNK} bytes each way"
            sock.shutdown(socket.SHUT_WR)
            assert conn.recv(1) == b""
        assert sock.recv(1) == b""
        yield "closed"


def _first(
    sockets: Mapping[str, socket.socket], client: socket.socket, *, errors: bool = True
) -> tuple[str, socket.socket]:
    """The one with something to read. TimeoutError; the client's OSError if that comes first."""
    ready, _, _ = select.select([*sockets.values(), *([client] if errors else [])], [], [], LOST)
    for name, sock in sockets.items():
        if sock in ready:
            return name, sock
    if client in ready:
        client.recv(1)
    raise TimeoutError


def _exactly(sock: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        chunk = sock.recv(size - len(found))
        if not chunk:
            raise ConnectionResetError
        found += chunk
    return found
