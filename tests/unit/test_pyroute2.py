"""What of pyroute2 is worked around in ctl.kernel.netlink: each test fails when a release has mended it.

Then what it is worked around with can go. All of it was seen with 0.9.7.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import AsyncIterator, Iterator

import pytest
from pyroute2 import IPRoute
from pyroute2.netlink import (
    NLM_F_CREATE,
    NLM_F_DUMP_INTR,
    NLM_F_MULTI,
    NLM_F_REPLACE,
    NLM_F_REQUEST,
    NLMSG_DONE,
)
from pyroute2.netlink.nlsocket import NetlinkRequest
from pyroute2.netlink.rtnl import RTM_GETLINK, RTM_NEWADDR, RTM_NEWNEIGH
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.tcmsg import sched_bpf

LOOPBACK = 1


@pytest.fixture
def iproute() -> Iterator[IPRoute]:
    with IPRoute(ext_ack=True, strict_check=True) as made:
        yield made


def unread(iproute: IPRoute) -> int:
    """Messages that nobody will ever ask for."""
    return int(iproute.asyncore.msg_queue.queues[0].qsize())


def test_the_acknowledgement_of_a_get_is_left_in_memory(iproute: IPRoute) -> None:
    for _ in range(3):
        iproute.link("get", index=LOOPBACK)
    assert unread(iproute) == 3
    iproute.link((RTM_GETLINK, NLM_F_REQUEST), index=LOOPBACK)
    assert unread(iproute) == 3, "without one: that is how ctl.kernel.netlink asks"


class Scripted:
    """In place of an IPRoute's kernel: answers to the next request."""

    def __init__(self, iproute: IPRoute, *answers: tuple[int, int, bytes]) -> None:
        self._core = iproute.asyncore
        self._answers = answers
        self._core.request_proxy = self

    def handle(self, message: ndmsg) -> bytes:
        sequence = message["header"]["sequence_number"]
        return b"".join(
            struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body
            for kind, flags, body in self._answers
        )


def address() -> bytes:
    packed = ifaddrmsg()
    packed.update(family=2, index=LOOPBACK, prefixlen=8, attrs=[("IFA_LOCAL", "127.0.0.1")])
    packed.encode()
    return bytes(packed.data[16:])


def test_a_dump_that_was_interrupted_looks_whole(iproute: IPRoute) -> None:
    Scripted(
        iproute,
        (RTM_NEWADDR, NLM_F_MULTI | NLM_F_DUMP_INTR, address()),
        (NLMSG_DONE, NLM_F_MULTI | NLM_F_DUMP_INTR, bytes(4)),
    )
    assert len(list(iproute.addr("dump", family=2))) == 1


def test_a_dump_that_broke_off_without_words_looks_whole(iproute: IPRoute) -> None:
    Scripted(
        iproute,
        (RTM_NEWADDR, NLM_F_MULTI, address()),
        (NLMSG_DONE, NLM_F_MULTI, struct.pack("=i", -errno.ENOMEM)),
    )
    assert len(list(iproute.addr("dump", family=2))) == 1


def test_nlm_request_of_an_iproute_fails(iproute: IPRoute) -> None:
    with pytest.raises(KeyError, match="nlm_generator"):
        list(iproute.nlm_request(ndmsg(), RTM_NEWNEIGH))


def test_a_batch_takes_replace_for_a_dump(iproute: IPRoute) -> None:
    """And waits for an answer to a message that asks for none."""
    waits: list[bool] = []

    class Request(NetlinkRequest):  # type: ignore[misc]
        def cleanup(self) -> None:
            waits.append(False)
            super().cleanup()

        async def response(self) -> AsyncIterator[object]:
            waits.append(True)
            super().cleanup()
            for each in list[object]():
                yield each

    message = ndmsg()
    message["header"].update(type=RTM_NEWNEIGH, flags=NLM_F_REQUEST | NLM_F_CREATE | NLM_F_REPLACE)

    async def batch() -> None:
        async for _ in iproute.asyncore.nlm_request_batch([message]):
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyroute2.netlink.nlsocket.NetlinkRequest", Request)
        patch.setattr(iproute.asyncore, "send", lambda _: None, raising=False)
        iproute.asyncore.event_loop.run_until_complete(batch())
    assert waits == [True]


def test_a_socket_that_has_lost_a_message_is_dead(iproute: IPRoute) -> None:
    lost = OSError(errno.ENOBUFS, "No buffer space available")
    iproute.asyncore.protocol.error_received(lost)
    for call in (lambda: iproute.link("get", index=LOOPBACK), iproute.close):
        with pytest.raises(OSError, match="No buffer space"):
            call()
    iproute.asyncore._error_event.clear()  # else it could never be closed


def test_names_that_are_unknown_are_passed_over(iproute: IPRoute) -> None:
    found = iproute.link((RTM_GETLINK, NLM_F_REQUEST), index=LOOPBACK, no_such_name=1)
    assert found[0].get("ifname") == "lo"


def test_the_id_of_a_filters_program_is_not_known() -> None:
    assert "TCA_BPF_ID" not in {name for name, _ in sched_bpf.options.nla_map}
