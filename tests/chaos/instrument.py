"""Traffic between two containers in which every packet counts: start, act, finish, read the figures."""

from __future__ import annotations

import json
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from tests.chaos import connections, datagrams, figures
from tests.chaos.figures import Figures
from tests.chaos.service import serve
from tests.dual import reaches
from tests.hooks import programs
from tests.host import Container, Host
from tests.process import Process, TimedOut, wait_until

RATE: Final = 20_000
"""Datagrams a second, each way."""


@dataclass(frozen=True, slots=True)
class End:
    """One container with its two programs."""

    place: Container
    datagrams: Process
    connections: Process


class Instrument:
    """All flows between two containers on two hosts, from `begin` to `finish`."""

    def __init__(
        self, first: Container, second: Container, rate: int = RATE, ipv6: tuple[str, str] | None = None
    ) -> None:
        """The programs are there; nothing is sent yet. `ipv6`: the containers' other addresses, if any."""
        self.rate, self._ipv6 = rate, ipv6
        self._streams = [name for name in datagrams.SHARE if name != datagrams.IPV6 or ipv6]
        serve(first, second)
        to_first, to_second = (("--ipv6", each) for each in ipv6) if ipv6 else ((), ())
        self.ends = (
            _end(first, second, rate, "--client", *to_second), _end(second, first, rate, *to_first)
        )  # fmt: skip
        self._hosts: tuple[Host, ...] = (first.host, second.host)

    def begin(self) -> None:
        """Send; returns when all streams arrive."""
        for place, peer in (self.ends, reversed(self.ends)):
            # Who has never spoken has to be asked for its MAC, and few packets wait for that.
            place.place.run("ping", "-c2", "-i0.05", "-W2", peer.place.address)
        if self._ipv6:
            reaches(self.ends[0].place, self._ipv6[1])
        for end in self.ends:
            wait_until(partial(_settled, end.place), 30, f"{end.place.name} is known to its node")
        self._before = [host.bypassed() for host in self._hosts]
        self._backlog = backlog_drops()
        self._tell(signal.SIGUSR2)
        wait_until(self._arrives, 10, lambda: f"all streams arrive: {self.progress()}")

    def _tell(self, number: signal.Signals) -> None:
        for end in self.ends:
            end.datagrams.kill(number)
            end.connections.kill(number)

    def flows(self, seconds: float = 20) -> None:
        """Return when of all streams arrives what is sent from now on; TimedOut if it does not."""
        now = time.time_ns()
        # What was printed before now may be of before the event that is asked about.
        wait_until(lambda: all(found["at"] >= now for found in self.progress()), seconds, "all is told", 0.01)
        sent = [found[stream]["sent"] for found in self.progress() for stream in self._streams]

        def arrive() -> bool:
            highest = [
                found[stream]["highest"] for found in reversed(self.progress()) for stream in self._streams
            ]
            return all(number >= count for number, count in zip(highest, sent, strict=True))

        wait_until(arrive, seconds, lambda: f"all streams arrive: {self.progress()}", 0.01)

    def _arrives(self) -> bool:
        return all(found[stream]["received"] > 0 for found in self.progress() for stream in self._streams)

    def progress(self) -> list[dict[str, Any]]:
        """What both ends have sent and received until 0.1 s ago."""
        return [_newest(end.datagrams) for end in self.ends]

    def advance(self, seconds: float) -> None:
        """Go on until that many seconds' worth of datagrams were sent from now on, each way."""
        targets = [found[datagrams.PLAIN]["sent"] + seconds * self.rate for found in self.progress()]

        def sent() -> bool:
            now = [found[datagrams.PLAIN]["sent"] for found in self.progress()]
            return all(count >= target for count, target in zip(now, targets, strict=True))

        wait_until(sent, seconds * 5 + 20, lambda: f"datagrams are sent: {self.progress()}")

    def finish(self) -> Figures:
        """End the sending, wait for what is under way, end the programs."""
        self._tell(signal.SIGUSR1)
        wait_until(lambda: all(found["ended"] for found in self.progress()), 10, "senders end")
        ended = time.time_ns()
        limit = connections.PATIENCE_S + 5
        for end in self.ends:
            wait_until(partial(_whole_line, end.connections), limit, end.connections.log)
        with suppress(TimedOut):  # lost: the figures say so
            wait_until(self._all_there, 1, "the last datagrams arrive")
        backlog = backlog_drops() - self._backlog
        carried, passed = (
            sum(
                after[path] - before[path]
                for before, after in zip(self._before, self._bypassed(), strict=True)
            )
            for path in (0, 1)
        )
        sides = tuple(figures.side(end.place.host.name, _newest(end.connections)) for end in self.ends)
        for end in self.ends:
            end.connections.stop()
            end.datagrams.kill(signal.SIGTERM)
            end.datagrams.wait(10)
        return Figures(self._ways(ended), sides, carried, passed, backlog)

    def _bypassed(self) -> list[tuple[int, int]]:
        return [host.bypassed() for host in self._hosts]

    def _all_there(self) -> bool:
        here, there = self.progress()
        return all(
            to[stream]["highest"] == by[stream]["sent"] - 1
            for by, to in ((here, there), (there, here))
            for stream in self._streams
        )

    def _ways(self, ended: int) -> tuple[figures.Way, ...]:
        here, there = self.progress()
        names = [end.place.host.name for end in self.ends]
        return tuple(
            figures.way(f"{stream} {'>'.join(names if by is here else reversed(names))}",
                        stream, self.rate * datagrams.SHARE[stream], by[stream]["sent"], to[stream], ended)
            for stream in self._streams
            for by, to in ((here, there), (there, here))
        )  # fmt: skip


def _settled(container: Container) -> bool:
    """Whether the port has its programs, and they know the container."""
    host = container.host
    known = {row["ip"] for row in host.json("map", "dump", "endpoints")}
    return len(programs(host, container.port)) == 2 and str(container.address) in known


def _end(place: Container, peer: Container, rate: int, *flags: str) -> End:
    module = (sys.executable, "-m")
    end = End(
        place,
        place.popen(*module, "tests.chaos.datagrams", peer.address, str(rate), *flags),
        place.popen(*module, "tests.chaos.connections", peer.address),
    )

    def bound() -> bool:
        for process in (end.datagrams, end.connections):
            assert process.poll() is None, process.log()
        return _whole_line(end.datagrams) and place.listens(connections.PORT)

    wait_until(bound, 20, "the programs of the instrument are ready")
    return end


def _whole_line(process: Process) -> bool:
    return "\n" in process.out()


def _newest(process: Process) -> dict[str, Any]:
    """The last whole line."""
    found: dict[str, Any] = json.loads(process.out().rpartition("\n")[0].rpartition("\n")[2])
    return found


def backlog_drops() -> int:
    """Packets that the CPUs of this machine had no time for, so far: second column of each line."""
    rows = Path("/proc/net/softnet_stat").read_text().splitlines()
    return sum(int(row.split()[1], 16) for row in rows)
