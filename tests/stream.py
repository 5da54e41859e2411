"""Traffic between two containers, seen as one thing: start, look, finish, judge."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from tests.host import Container
from tests.namespace import Netns
from tests.process import Process, TimedOut, wait_until

TRAFFIC = ("python3", "tests/traffic.py")


@dataclass(frozen=True, slots=True)
class Tally:
    """What the receiver of a numbered stream has counted."""

    received: int
    lost: int
    duplicates: int
    late: int
    highest: int
    longest_gap_ms: float
    sources: tuple[str, ...]

    @classmethod
    def parse(cls, out: str) -> Self:
        """From the newest whole line that a sink printed."""
        facts = json.loads(out.rpartition("\n")[0].rpartition("\n")[2])
        facts["sources"] = tuple(facts["sources"])
        return cls(**facts)


def _ipv6(address: str) -> tuple[str, ...]:
    return ("--ipv6",) if ":" in address else ()


class UdpStream:
    """Numbered datagrams at a steady rate from one namespace to another."""

    def __init__(
        self,
        source: Netns,
        sink: Netns,
        address: str,
        *,
        port: int = 9000,
        rate: int = 1000,
        echo: int = 0,
    ) -> None:
        """Start both ends; `address` is the sink's, `rate` in datagrams per second.

        `echo`: so many of the first are sent back, so that conntrack takes it for a conversation.
        """
        self.rate = rate
        flags = (*_ipv6(address), "--echo", str(echo))
        self.sink = sink.serve(*TRAFFIC, "udp-sink", str(port), *flags, port=port, protocol="udp")
        wait_until(self.sink.out, 60, "the sink's first line")
        self.command = (*TRAFFIC, "udp-send", address, str(port), str(rate))
        self.source = source.popen(*self.command)

    def tally(self) -> Tally:
        """What has arrived until 0.1 s ago."""
        return Tally.parse(self.sink.out())

    def advance(self, seconds: float) -> Tally:
        """Wait until that many seconds' worth of datagrams has arrived; TimedOut if it does not."""
        target = self.tally().received + seconds * self.rate
        wait_until(
            lambda: self.tally().received >= target, seconds * 2 + 10, lambda: f"flows: {self.tally()}"
        )
        return self.tally()

    def stall(self, seconds: float) -> None:
        """Wait, at most `seconds`, until nothing arrives for half a second."""
        last = [-1]

        def still() -> bool:
            before, last[0] = last[0], self.tally().received
            return before == last[0]

        wait_until(still, seconds, lambda: f"stream stops: {self.tally()}", every=0.5)

    def finish(self) -> tuple[int, Tally]:
        """Stop sending, wait for the last datagram, stop; how many were sent and the tally."""
        self.source.kill(signal.SIGTERM)
        self.source.wait(60)
        sent = json.loads(self.source.out())["sent"]
        with contextlib.suppress(TimedOut):  # then it was lost: the tally says so
            wait_until(lambda: self.tally().highest == sent - 1, 10, "the last datagram arrives")
        tally = self.tally()
        self.sink.stop()
        return sent, tally


class TcpSink:
    """Takes any number of connections and tells how each went."""

    def __init__(self, place: Netns, port: int = 9100, *, address: str = "") -> None:
        """`address`: one that will be sent to; empty: of IPv4."""
        self.port = port
        self.process: Process = place.serve(*TRAFFIC, "tcp-sink", str(port), *_ipv6(address), port=port)

    def ends(self) -> list[dict[str, Any]]:
        """Finished connections: source, bytes, end (`fin` or `rst`)."""
        lines = [json.loads(line) for line in self.process.out().splitlines()]
        return [line for line in lines if "end" in line]

    def wait_for(self, count: int, seconds: float = 10) -> list[dict[str, Any]]:
        """Wait until that many have finished."""
        wait_until(
            lambda: len(self.ends()) >= count, seconds, lambda: f"{count} connections end: {self.ends()}"
        )
        return self.ends()

    def stop(self) -> None:
        self.process.stop()


def tcp_send(
    source: Netns,
    address: str,
    size: int = 1000,
    *,
    port: int = 9100,
    reset: bool = False,
    timeout: float = 10,
) -> dict[str, Any]:
    """One connection with `size` bytes; how it went. CommandFailed if any phase takes over `timeout` s."""
    flags = ["--timeout", str(timeout), *(["--reset"] if reset else [])]
    done = source.run(*TRAFFIC, "tcp-send", address, str(port), str(size), *flags, seconds=timeout + 60)
    parsed: dict[str, Any] = json.loads(done.stdout)
    return parsed


@dataclass(slots=True)
class Count:
    """Of streams together; filled in when they have ended."""

    sent: int = 0
    lost: int = 0


@contextlib.contextmanager
def traffic(one: Container, two: Container) -> Iterator[Count]:
    """Numbered datagrams both ways between two containers, meanwhile."""
    streams = [UdpStream(one, two, two.address, port=9001), UdpStream(two, one, one.address, port=9002)]
    count = Count()
    for stream in streams:
        stream.advance(1)
    yield count
    for stream in streams:
        stream.advance(1)
        sent, tally = stream.finish()
        count.sent += sent
        count.lost += sent - tally.received
