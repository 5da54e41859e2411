"""How long a server may keep whoever asks it, names included."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest

from ctl.settings.endpoint import Endpoint
from ctl.store.connection import names
from ctl.store.connection.http import Channel, Request, reason
from ctl.store.connection.names import Name
from ctl.store.connection.tls import trust_files

NAME = "etcd.example"
PACE_S = 0.01
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


class Member:
    """Answers on loopback: at once, or a byte now and then that does not become an answer."""

    def __init__(self) -> None:
        self.trickles = False
        self._closing = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = Endpoint("127.0.0.1", self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._closing.is_set():
            connection, _ = self._listener.accept()
            with connection, suppress(OSError):
                if connection.recv(65536):
                    self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        if not self.trickles:
            connection.sendall(ANSWER)
            return
        connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        for _ in range(300):
            connection.sendall(b"x")
            if self._closing.wait(PACE_S):
                return

    def close(self) -> None:
        self._closing.set()
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.endpoint.port), 5):
            pass
        self._thread.join()
        self._listener.close()


class Resolver:
    """What a name stands for; told to hang, it does until it is let go."""

    def __init__(self) -> None:
        self.host = "127.0.0.1"
        self.error: socket.gaierror | None = None
        self.asked = 0
        self.answers = threading.Event()
        self.answers.set()
        self._real = socket.getaddrinfo

    def __call__(self, host: str, port: int, *args: int, **more: int) -> object:
        if host != NAME:
            return self._real(host, port, *args, **more)
        if more.get("flags"):
            raise socket.gaierror(socket.EAI_NONAME, "not numeric")
        self.asked += 1
        self.answers.wait()
        if self.error is not None:
            raise self.error
        return self._real(self.host, port, *args, **more)


@pytest.fixture
def member() -> Iterator[Member]:
    with closing(Member()) as made:
        yield made


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    made = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", made)
    yield made
    made.answers.set()


def ask(channel: Channel, timeout: float) -> tuple[int, bytes]:
    answer = channel.ask(Request("/v3/kv/range", "POST", body=b"{}"), timeout)
    return answer.status, answer.body


def test_an_answer_that_comes_a_byte_now_and_then_is_late(member: Member) -> None:
    member.trickles = True
    with closing(Channel(member.endpoint, None)) as channel, pytest.raises(TimeoutError):
        ask(channel, 20 * PACE_S)


def test_a_stream_that_begins_a_byte_now_and_then_is_late(member: Member) -> None:
    member.trickles = True
    with closing(Channel(member.endpoint, None)) as channel, pytest.raises(TimeoutError):
        channel.open(Request("/v3/watch"), 20 * PACE_S)


def test_a_name_that_nobody_resolves_takes_no_longer_than_the_call_may(resolver: Resolver) -> None:
    resolver.answers.clear()
    with (
        closing(Channel(Endpoint(NAME), None)) as channel,
        pytest.raises(socket.gaierror, match="name resolution timed out"),
    ):
        ask(channel, 0.05)


def test_an_answer_that_comes_as_the_wait_for_it_ends_is_heard(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(threading.Thread):
        """Has done nothing when the wait for it is over, and everything a moment later."""

        def start(self) -> None:
            pass

        def join(self, timeout: float | None = None) -> None:
            pass

        def is_alive(self) -> bool:
            self.run()
            return False

    resolver.error = socket.gaierror(socket.EAI_NONAME, "no such name")
    monkeypatch.setattr(threading, "Thread", Late)
    with pytest.raises(socket.gaierror, match="no such name"):
        Name(NAME, 2379).addresses(5)


def test_a_member_is_found_again_while_names_are_not_resolved(
    member: Member, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "PATIENCE_S", 0.0)
    with closing(Channel(Endpoint(NAME, member.endpoint.port), None)) as channel:
        assert ask(channel, 5) == (200, b"{}")
        channel.close()
        resolver.answers.clear()
        assert ask(channel, 5) == (200, b"{}")


def test_tls_asks_for_the_name_whatever_its_address(
    member: Member, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def refuse(_context: ssl.SSLContext, _sock: socket.socket, *, server_hostname: str) -> None:
        asked.append(server_hostname)
        raise ssl.SSLCertVerificationError

    monkeypatch.setattr(ssl.SSLContext, "wrap_socket", refuse)
    with (
        closing(
            Channel(Endpoint(NAME, member.endpoint.port, tls=True), trust_files("etcd", "", "", ""))
        ) as channel,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        ask(channel, 5)
    assert asked == [NAME]


@pytest.mark.parametrize(
    ("why", "where"),
    [
        ("unable to get local issuer certificate", "--etcd-cafile"),
        ("certificate has expired", "--etcd-cafile"),
        ("certificate is not yet valid", "this host's clock"),
    ],
)
def test_a_certificate_that_is_not_trusted_is_said_with_where_to_look(why: str, where: str) -> None:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = why
    said = reason(error, ca="--etcd-cafile", certificate="--etcd-certfile")
    assert said == f"its certificate is not trusted ({why}); see {where}"


def test_a_name_that_does_not_answer_is_asked_for_once(resolver: Resolver) -> None:
    resolver.answers.clear()
    name = Name(NAME, 1)
    for _ in range(3):
        with pytest.raises(socket.gaierror):
            name.addresses(0)
    assert resolver.asked == 1


def test_an_answer_that_came_too_late_serves_the_next_call(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "PATIENCE_S", 0.0)
    resolver.answers.clear()
    name = Name(NAME, 1)
    with pytest.raises(socket.gaierror):
        name.addresses(0)
    resolver.answers.set()
    assert name._asking is not None
    name._asking.join()
    resolver.answers.clear()
    assert [address for _, address in name.addresses(5)] == [("127.0.0.1", 1)]


@pytest.mark.parametrize(("code", "kept"), [(socket.EAI_AGAIN, True), (socket.EAI_NONAME, False)])
def test_only_a_name_that_is_no_more_loses_its_addresses(resolver: Resolver, code: int, kept: bool) -> None:
    name = Name(NAME, 1)
    before = name.addresses(5)
    resolver.error = socket.gaierror(code, "why")
    if kept:
        assert name.addresses(5) == before
        return
    with pytest.raises(socket.gaierror, match="why"):
        name.addresses(5)


def test_a_name_that_moves_is_followed(resolver: Resolver) -> None:
    name = Name(NAME, 1)
    name.addresses(5)
    resolver.host = "127.0.0.2"
    assert [address for _, address in name.addresses(5)] == [("127.0.0.2", 1)]


def test_addresses_need_no_resolver(resolver: Resolver) -> None:
    assert Name("10.0.0.1", 2379).addresses(0) == [(socket.AF_INET, ("10.0.0.1", 2379))]
    assert Name("fd00::1", 2379).addresses(0) == [(socket.AF_INET6, ("fd00::1", 2379, 0, 0))]
    assert resolver.asked == 0


def test_what_is_no_host_name_is_said_in_words() -> None:
    with pytest.raises(socket.gaierror, match="not a host name"):
        Name("etcd..example", 1).addresses(5)
