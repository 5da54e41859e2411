"""What rtnetlink answers, and what is made of answers that are none."""

from __future__ import annotations

import errno
import socket
import struct
from collections import deque
from contextlib import closing

import pytest

from ctl.core.errors import KernelError
from ctl.core.host import Route, RouteKey
from ctl.core.model import IPv4Network
from ctl.core.plan import Delta
from ctl.kernel.netlink import session as netlink
from ctl.kernel.netlink import socket as rtnl
from ctl.kernel.netlink import xfrm
from ctl.kernel.netlink.tables import Routes

ERROR, DONE, NEWROUTE, NEWPOLICY = 2, 3, 24, 0x13
DUMP_INTR = 0x10


def message(kind: int, flags: int, body: bytes) -> bytes:
    """With a sequence number that `Kernel` fills in."""
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 0, 0) + body


def error(code: int) -> bytes:
    return struct.pack("=i", -code)


class Kernel:
    """A netlink socket whose other end answers as it is told: one list of messages for each request."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = deque(answers)
        self.sequence = 0
        self.closed = False
        self.refuses = False

    def setsockopt(self, *_: object) -> None:
        if self.refuses:
            raise PermissionError(errno.EPERM, "Operation not permitted")

    def bind(self, _: object) -> None: ...

    def send(self, data: bytes) -> None:
        offset = 0
        while offset < len(data):
            length, _, _, self.sequence, _ = struct.unpack_from("=IHHII", data, offset)
            offset += length

    def recv(self, _: int) -> bytes:
        answer = bytearray(self.answers.popleft())
        offset = 0
        while offset < len(answer):
            struct.pack_into("=I", answer, offset + 8, self.sequence)
            offset += (int(struct.unpack_from("=I", answer, offset)[0]) + 3) & ~3
        return bytes(answer)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(socket, "socket", lambda *_: made)
    return made


WHOLE, PART = message(DONE, 2, error(0)), message(DONE, 2 | DUMP_INTR, error(0))
ONE = message(NEWROUTE, 2, bytes(12))


def test_a_dump_that_was_interrupted_is_made_again(kernel: Kernel) -> None:
    kernel.answers += [ONE + PART, ONE, ONE + WHOLE]
    with closing(rtnl.Rtnl()) as asked:
        assert asked.dump(rtnl.RTM_GETROUTE, b"") == [bytes(12), bytes(12)]


def test_a_dump_that_is_always_interrupted_is_no_answer(kernel: Kernel) -> None:
    kernel.answers += [ONE + PART] * 100
    with closing(rtnl.Rtnl()) as asked, pytest.raises(KernelError, match="changed 10 times meanwhile"):
        asked.dump(rtnl.RTM_GETROUTE, b"")


@pytest.mark.parametrize("end", [DONE, ERROR])
def test_a_dump_that_broke_off_is_no_answer(kernel: Kernel, end: int) -> None:
    kernel.answers += [ONE, message(end, 2, error(errno.ENOMEM) + bytes(16))]
    with closing(rtnl.Rtnl()) as asked, pytest.raises(rtnl.Refused, match="Cannot allocate memory"):
        asked.dump(rtnl.RTM_GETROUTE, b"")


def test_a_socket_that_cannot_be_set_up_is_closed(kernel: Kernel) -> None:
    kernel.refuses = True
    with pytest.raises(PermissionError):
        rtnl.Rtnl()
    assert kernel.closed


@pytest.mark.usefixtures("kernel")
def test_a_mistake_of_ours_is_not_taken_for_something_that_vanished() -> None:
    with netlink.Netlink() as session, pytest.raises(KeyError), session.doing("look"):
        dict[str, str]()["nothing"]


@pytest.mark.parametrize(
    ("code", "missing"), [(errno.ENOENT, True), (errno.ESRCH, True), (errno.EINVAL, False)]
)
def test_what_is_gone_and_what_is_refused(kernel: Kernel, code: int, missing: bool) -> None:
    kernel.answers.append(message(ERROR, 0, error(code) + bytes(16)))
    removal: Delta[RouteKey, Route] = Delta(removals=(RouteKey(IPv4Network("10.1.0.0/24"), 1),))
    with closing(rtnl.Rtnl()) as asked:
        if missing:
            Routes(asked).apply(removal)
            return
        with pytest.raises(KernelError, match="1 entries not applied: Invalid argument"):
            Routes(asked).apply(removal)


def test_policies_of_ipsec_that_cannot_be_listed_are_not_none(kernel: Kernel) -> None:
    """Else eBPF would carry, past all policies, what they are to encrypt."""
    for ends in (ERROR, DONE):
        kernel.answers.append(message(ends, 2, error(errno.ENOMEM) + bytes(16)))
        with pytest.raises(KernelError, match="IPsec policies: Cannot allocate memory"):
            xfrm.Policies().any()
    kernel.answers += [WHOLE, message(NEWPOLICY, 2, bytes(64))]
    assert xfrm.Policies().any() is False
    assert xfrm.Policies().any() is True
