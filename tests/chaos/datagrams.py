"""Numbered datagrams both ways, for use in a container: `python -m tests.chaos.datagrams PEER RATE`.

Streams to the container at PEER, and the same ones from it:

    plain      RATE a second, port PORT: eBPF may carry it
    options    a quarter of that, port PORT + 1: with an IP option, so always by the kernel path
    service    a tenth, port PORT + 2: a conversation with a service, so eBPF may carry it. With `--client`
               to the service's address, which the host translates to PEER; else what is sent are its replies
    ipv6       a quarter, port PORT + 3: with `--ipv6 ADDRESS`, the same container's

SIGUSR2 begins the sending, SIGUSR1 ends it, SIGTERM ends the program. Each 0.1 s a JSON line: per stream
how many were sent and have arrived until `at` (ns); the last has `final` and everything that was counted.
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Final

from tests.chaos import service
from tests.chaos.mmsg import SLOTS, Slots, udp_socket
from tests.chaos.tally import Tally

PORT: Final = 9400
PLAIN, OPTIONS, SERVICE, IPV6 = "plain", "options", "service", "ipv6"
SHARE: Final = {PLAIN: 1.0, OPTIONS: 0.25, SERVICE: 0.1, IPV6: 0.25}
"""Of the rate."""
TICK_S: Final = 0.002
LATE_S: Final = 0.01
"""A sender that was not run for longer does not make up for it: a burst would be a loss of its own."""
NOTHING: Final = b"\1\1\1\1"
"""Four times the option that does nothing (RFC 791)."""


class Stream:
    """Numbers out, numbers in."""

    def __init__(self, name: str, peer: str, rate: float, *, asked: bool) -> None:
        """`rate` in datagrams a second; `asked`: only once something has come."""
        port = PORT + list(SHARE).index(name)
        family = socket.AF_INET6 if name == IPV6 else socket.AF_INET
        self.sock = udp_socket(port, family)
        if name == OPTIONS:
            self.sock.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, NOTHING)
        self.name, self.rate, self._asked = name, rate, asked
        self.sent = 0
        self.refused = 0
        """Times that the kernel did not take what we sent; it was sent again."""
        self.tally = Tally()
        self._out, self._in = Slots(self.sock, (peer, port)), Slots(self.sock)
        self._start = 0.0

    def send(self, now: float) -> None:
        """What is due."""
        if self._asked and not self.tally.received:
            return
        self._start = max(self._start, now - (self.sent + LATE_S * self.rate) / self.rate)
        due = int((now - self._start) * self.rate) - self.sent
        while due > 0:
            try:
                taken = self._out.send(self.sent, min(due, SLOTS), time.time_ns())
            except OSError:
                self.refused += 1
                return
            self.sent += taken
            due -= taken

    def receive(self) -> None:
        """What is there."""
        while True:
            numbers, sent, arrived = self._in.receive()
            self.tally.add(numbers, sent, arrived)
            if len(numbers) < SLOTS:
                return

    def dropped(self) -> int:
        """Datagrams that came, and for which the socket had no room: nobody ran to read it."""
        inode = str(Path(f"/proc/self/fd/{self.sock.fileno()}").readlink()).strip("socket:[]")
        table = "udp6" if self.sock.family == socket.AF_INET6 else "udp"
        rows = [line.split() for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]]
        return next(int(row[-1]) for row in rows if row[9] == inode)

    def brief(self) -> dict[str, object]:
        return {"sent": self.sent, "received": self.tally.received, "highest": self.tally.highest}

    def full(self) -> dict[str, object]:
        tally = self.tally
        return {**self.brief(), "duplicates": tally.duplicates, "late": tally.late, "refused": self.refused,
                "dropped": self.dropped(), "longest_gap_ms": tally.longest_gap / 1e6,
                "last_sent": tally.last_sent,
                "holes": [asdict(loss) for loss in tally.losses(tally.highest + 1, 0)],
                }  # fmt: skip


def say(facts: object) -> None:
    """A JSON line, out at once."""
    print(json.dumps(facts), flush=True)


def _stream(name: str, args: argparse.Namespace) -> Stream:
    client = name == SERVICE and args.client
    peer = service.ADDRESS if client else args.ipv6 if name == IPV6 else args.peer
    return Stream(name, peer, args.rate * SHARE[name], asked=name == SERVICE and not client)


def main() -> int:
    """Run until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peer")
    parser.add_argument("rate", type=float)
    parser.add_argument("--client", action="store_true")
    parser.add_argument("--ipv6")
    args = parser.parse_args()
    told: set[int] = set()
    for number in (signal.SIGUSR2, signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, lambda number, _: told.add(number))
    streams = [_stream(name, args) for name in SHARE if name != IPV6 or args.ipv6]
    spoke = 0.0
    while signal.SIGTERM not in told:
        now = time.monotonic()
        for stream in streams:
            if told == {signal.SIGUSR2}:
                stream.send(now)
            stream.receive()
        if now - spoke > 0.1:
            state = {"ended": signal.SIGUSR1 in told, "at": time.time_ns()}
            say({stream.name: stream.brief() for stream in streams} | state)
            spoke = now
        time.sleep(max(0.0, now + TICK_S - time.monotonic()))
    for stream in streams:
        stream.receive()
    say({stream.name: stream.full() for stream in streams} | {"final": True})
    return 0


if __name__ == "__main__":
    sys.exit(main())
