"""Netlink's sockets: pyroute2's IPRoute for what is asked and told one by one, batches for the rest.

What there are thousands of (routes, neighbours, FDB entries, look-ups) is sent as bytes, 128
messages a call: one by one it takes IPRoute 400 to 900 us each, 17 s for a first sync of 10,000
leases. So is every dump, because of what pyroute2 0.9.7 does with them:

* NLM_F_DUMP_INTR is ignored: a part of the links, say, looks like all of them.
* An errno in NLMSG_DONE is, unless words go with it: a dump that broke off looks like a whole one.
* `IPRoute.nlm_request` raises KeyError: 'nlm_generator'.
* `nlm_request_batch` waits for ever for the answer to a message with NLM_F_REPLACE or NLM_F_EXCL
  and no NLM_F_ACK: it takes the flags for NLM_F_DUMP.

And of IPRoute itself:

* A "get" asks for an acknowledgement, which nobody reads: 0.2 to 1.8 kB of each stay in memory for
  ever. The command (RTM_GETLINK, NLM_F_REQUEST) asks for none.
* After one ENOBUFS, which it meets as an OSError, every call raises that again: a new one is opened.
* Used in another thread than the one that opened it, it opens a socket of that thread's, perhaps in
  another network namespace. So one thread has it, and that is checked.

tests/unit/test_pyroute2.py fails when a newer pyroute2 has mended one of these.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import struct
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from typing import Any, Final, NamedTuple

from pyroute2 import IPRoute, IPRSocket
from pyroute2.netlink import (
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    nlmsgerr,
)
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nlsocket import NetlinkSocket
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ifinfmsg.plugins.vxlan import vxlan
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from ctl.core.errors import KernelError
from ctl.kernel.netlink.message import HEADER, check, split, unpack, words

for _name in ("pyroute2", "asyncio"):
    # Each message would be logged, and each event loop.
    logging.getLogger(_name).setLevel(logging.WARNING)

SO_RCVBUFFORCE: Final = 33
"""include/uapi/asm-generic/socket.h; Python does not have it."""

_ERROR: Final = struct.Struct("=i")
_BATCH: Final = 128
"""Messages a call: their answers, should all of them fail, fit the receive buffer."""
_RECEIVE_BUFFER: Final = 1 << 21
_RECEIVE: Final = 1 << 18
_DUMP_ATTEMPTS: Final = 10
"""Links that come and go ten a second interrupt every third dump of a thousand."""

_WORDS: Final[Mapping[str, frozenset[str]]] = {
    "link": words(ifinfmsg) | words(vxlan) | {"kind", "state"},
    "addr": words(ifaddrmsg),
    "neigh": words(ndmsg),
    "route": words(rtmsg),
    "tc": words(tcmsg) | {"prio", "protocol", "fd", "name", "direct_action"},
}
"""Keywords by the call of IPRoute's; those of tc's are its bpf filter's and its clsact's."""

Command = str | tuple[int, int]
"""pyroute2's word ("add", "replace"), or message type and flags."""


class Refused(KernelError):
    """The kernel's answer to a request that it did not fulfil: its errno, and its words."""

    def __init__(self, code: int, words_: str = "") -> None:
        super().__init__(words_ or os.strerror(code))
        self.code = code


GONE: Final = (errno.ENOENT, errno.ENODEV, errno.ESRCH)
"""How the kernel answers who names something that is not there."""


@contextmanager
def suppress_missing(*, also: int = 0) -> Iterator[None]:
    """What is to be removed, or asked for, may be gone already. `also`: an errno that says so too."""
    try:
        yield
    except Refused as error:
        if error.code not in (*GONE, also):
            raise


class Message(NamedTuple):
    """A request: type, flags beside NLM_F_REQUEST, and the packed rest."""

    kind: int
    flags: int
    body: bytes


Reply = tuple[int, int, int, bytes]
"""(sequence number, type, flags, body) of a message from the kernel."""


_LAST: Final = (NLMSG_DONE, NLMSG_ERROR)
"""Types of what ends an answer."""


def _code(kind: int, content: bytes) -> int:
    """The errno that a message brings; 0: none, or it is not one that ends an answer."""
    # An NLMSG_ERROR begins with it, and so does an NLMSG_DONE.
    return -int(_ERROR.unpack_from(content)[0]) if kind in _LAST else 0


def _check(kind: int, content: bytes) -> None:
    """Refused, if a message says so."""
    if code := _code(kind, content):
        raise Refused(code, unpack(nlmsgerr, content).get_attr("NLMSGERR_ATTR_MSG") or "")


def _batches(messages: Iterable[Message]) -> Iterator[list[Message]]:
    """As many as one call takes at a time: there are never tens of thousands at once in memory."""
    rest = iter(messages)
    while batch := list(islice(rest, _BATCH)):
        yield batch


class Bulk:
    """A socket of pyroute2's for requests as bytes. One thread's. Failures of its own are KernelError."""

    def __init__(self, opened: NetlinkSocket) -> None:
        self._opened = opened
        self._receive_once = opened.recv
        self._sequence = 0
        self._readable = select.poll()
        self._readable.register(opened.fileno(), select.POLLIN)

    def close(self) -> None:
        self._opened.close()

    def change(self, messages: Iterable[Message]) -> list[int]:
        """Have the kernel do these in their order; an errno for each, 0 where it did.

        A failing one does not keep the others from being done.
        """
        results: list[int] = []
        for batch in _batches(messages):
            base = self._send(batch, ack_last=True)
            last = base + len(batch) - 1
            failed = {sequence: _code(kind, content) for sequence, kind, _, content in self._until(last)}
            results.extend(failed.get(sequence, 0) for sequence in range(base, last + 1))
        return results

    def ask(self, messages: Iterable[Message]) -> list[tuple[int, bytes]]:
        """An (errno, answer) for each of these requests, which have one answer each."""
        results: list[tuple[int, bytes]] = []
        for batch in _batches(messages):
            base = self._send(batch)
            last = base + len(batch) - 1
            answers = {seq: (_code(kind, content), content) for seq, kind, _, content in self._until(last)}
            results.extend(answers[sequence] for sequence in range(base, last + 1))
        return results

    def dump(self, kind: int, request: bytes) -> list[bytes]:
        """All that the kernel has, as the bodies of its messages. Refused if it does not tell.

        A dump that a change interrupted is made again. KernelError if each one was: what may be
        a part is no answer, for whatever is missing in it would be taken for gone.
        """
        for _ in range(_DUMP_ATTEMPTS):
            found, interrupted = [], 0
            for _, _, flags, content in self.dumping(kind, request):
                found.append(content)
                interrupted |= flags & NLM_F_DUMP_INTR
            if not interrupted:
                return found[:-1]
        raise KernelError(f"netlink: what was to be listed changed {_DUMP_ATTEMPTS} times meanwhile")

    def dumping(self, kind: int, request: bytes) -> Generator[Reply, None, None]:
        """Each message of a dump, the one that ends it as well. Refused."""
        sequence = self._send([Message(kind, NLM_F_DUMP, request)])
        while True:
            for reply in self._receive():
                answered, told, _, content = reply
                if answered != sequence:
                    continue
                if told not in _LAST:
                    yield reply
                    continue
                _check(told, content)
                yield reply
                return

    def _send(self, messages: Sequence[Message], *, ack_last: bool = False) -> int:
        """Send them in one call; returns the first one's sequence number."""
        base = self._sequence + 1
        last = self._sequence = self._sequence + len(messages)
        parts = []
        for sequence, each in enumerate(messages, base):
            flags = each.flags | NLM_F_REQUEST | (NLM_F_ACK if ack_last and sequence == last else 0)
            head = HEADER.pack(HEADER.size + len(each.body), each.kind, flags, sequence, 0)
            parts.append(head + each.body)
        try:
            self._opened.send(b"".join(parts))
        except OSError as error:
            raise KernelError(f"netlink: {error.strerror}") from error
        return base

    def _until(self, last: int) -> Iterator[Reply]:
        """Each reply up to that of `last`."""
        while True:
            for reply in self._receive():
                yield reply
                if reply[0] == last:
                    return

    def _receive(self) -> Iterator[Reply]:
        """Each message that one call brings."""
        data = b""
        while not data:
            try:
                data = self._receive_once(_RECEIVE)
            except BlockingIOError:  # those of pyroute2's sockets that have an event loop do not wait
                self._readable.poll()
            except OSError as error:
                raise KernelError(f"netlink: {error.strerror}") from error
        yield from split(data)


class Rtnl:
    """rtnetlink: IPRoute's calls, and batches. One thread's. Failures of a socket are KernelError."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        with ExitStack() as failing:
            opened = failing.enter_context(IPRSocket(ext_ack=True, strict_check=True))
            # Only with this it has a socket.
            opened.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _RECEIVE_BUFFER)
            self.bulk: Final = Bulk(opened)
            """The socket for batches and dumps."""
            self._iproute: IPRoute | None = self._open()
            failing.pop_all()

    def close(self) -> None:
        self.bulk.close()
        if self._iproute is not None:
            self._iproute.close()

    @staticmethod
    def _open() -> IPRoute:
        # ext_ack: drivers say why they refuse XDP.
        return IPRoute(ext_ack=True, strict_check=True)

    def link(self, command: Command, **spec: object) -> list[Any]:
        """As IPRoute.link. Refused."""
        return self._call("link", command, spec)

    def addr(self, command: Command, **spec: object) -> list[Any]:
        """As IPRoute.addr. Refused."""
        return self._call("addr", command, spec)

    def neigh(self, command: Command, **spec: object) -> list[Any]:
        """As IPRoute.neigh. Refused."""
        return self._call("neigh", command, spec)

    def route(self, command: Command, **spec: object) -> list[Any]:
        """As IPRoute.route. Refused."""
        return self._call("route", command, spec)

    def tc(self, command: Command, kind: str, **spec: object) -> list[Any]:
        """As IPRoute.tc. Refused."""
        return self._call("tc", command, {"kind": kind, **spec})

    def _call(self, name: str, command: Command, spec: Mapping[str, object]) -> list[Any]:
        assert threading.get_ident() == self._thread, "an IPRoute belongs to the thread that opened it"
        check(_WORDS[name], spec)
        try:
            if self._iproute is None:
                self._iproute = self._open()
            return list(getattr(self._iproute, name)(command, **spec))
        except NetlinkError as error:
            raise Refused(error.code, error.args[1]) from error
        except OSError as error:
            self._drop()
            raise KernelError(f"netlink: {error.strerror}") from error

    def _drop(self) -> None:
        """Close an IPRoute that is of no more use."""
        dropped, self._iproute = self._iproute, None
        with suppress(OSError):  # the one that it is dropped for
            if dropped is not None:
                dropped.close()
