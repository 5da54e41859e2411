"""What `trace --live`, `monitor` and `capture` have in common: which packets, and how they are heard of."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_network
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Final, Self

from ctl.cli.arguments import address, number, parsed
from ctl.cli.output import say
from ctl.core.errors import AgentError, ConfigError
from ctl.core.sighting import Flow, Sighting, parse_flow, sighting
from ctl.core.tracer import Selection

if TYPE_CHECKING:
    from ctl.kernel.bpf.tracing import Tracing

LOCK: Final = "tracer.lock"
"""In the state directory: there is one filter, so one tracer at a time."""


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the flags that say which packets; several must all hold."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--flow",
        type=parsed(parse_flow),
        metavar="A[:PORT],B[:PORT],PROTO",
        help="between these addresses inside the tunnel, either way; a subnet or 'any' will do",
    )
    which.add_argument("--container", type=address, metavar="IP", help="of this container")
    parser.add_argument("--peer", type=address, metavar="HOST", help="to and from this host, by its address")


def add_end(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the flags that say when it is enough; until Ctrl-C without them."""
    parser.add_argument("--count", type=number(1, 2**31 - 1), metavar="N", help="end after N packets")
    parser.add_argument("--seconds", type=number(1, 2**31 - 1), metavar="S", help="end after S seconds")


def selection(args: argparse.Namespace) -> Selection:
    """What the flags of `add_selection` ask for; all verdicts, and as many bytes as a line needs.

    ConfigError for addresses that no packet has all of.
    """
    flow = args.flow or Flow((None, None), (0, 0), 0)
    if args.container:
        flow = Flow((ip_network(args.container), None), (0, 0), 0)
    try:
        return flow.selected(args.peer)
    except ValueError as error:
        raise ConfigError(f"--peer {args.peer}: {error}") from None


class Listener:
    """Hears of packets until it is enough, or it is interrupted."""

    def __init__(
        self,
        tracing: Tracing,
        port: int,
        unwanted: Callable[[Sighting], bool],
        count: int | None = None,
        seconds: int | None = None,
    ) -> None:
        """`port`: VXLAN's; `unwanted`: which packets are passed over; `count`, `seconds`: what is enough."""
        from ctl.cli.map import device_name

        self.heard = 0
        self._ended = False
        self._tracing, self._port, self._unwanted, self._count = tracing, port, unwanted, count
        self._dev: Callable[[int], str] = device_name
        self._end = None if seconds is None else time.monotonic() + seconds
        self._offset_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_MONOTONIC)

    def __iter__(self) -> Iterator[Sighting]:
        return (seen for seen in self.rounds() if seen)

    def rounds(self) -> Iterator[Sighting | None]:
        """Packets, and None after those that were there; at least that every half second."""
        while not self._enough():
            for trace in self._tracing.packets(self._left()):
                seen = sighting(trace, self._offset_ns, self._dev, self._port)
                if not self._unwanted(seen):
                    self.heard += 1
                    yield seen
                if self._enough():  # also while more comes than can be shown
                    return
            sys.stdout.flush()
            yield None

    @contextmanager
    def until_interrupted(self) -> Iterator[Self]:
        """Meanwhile SIGINT and SIGTERM are no failure: the packet in hand is dealt with, and no more come."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.end) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def end(self, *_: object) -> None:
        """No more come after the packet in hand, and after half a second at the most."""
        self._ended = True

    def end_with(self, fd: int) -> None:
        """End where what is read from `fd` does; a thread sees to it."""

        def read() -> None:
            with suppress(OSError):  # it may be closed already
                while os.read(fd, 4096):
                    pass
            self.end()

        Thread(target=read, daemon=True).start()

    def _enough(self) -> bool:
        return self._ended or self.heard == self._count or self._left() <= 0

    def _left(self) -> float:
        """Seconds, and no more than a while."""
        return 60.0 if self._end is None else max(0.0, self._end - time.monotonic())

    def summary(self) -> str:
        """How many there were, and how many were missed."""
        return f"{self.heard} packets, {self._tracing.skipped} more skipped for want of room"


@contextmanager
def listening(
    args: argparse.Namespace, asked: Selection, unwanted: Callable[[Sighting], bool] = lambda seen: False
) -> Iterator[Listener]:
    """The packets of this node that are asked for, less those `unwanted`; needs no agent.

    AgentUnreachable before an agent has run here; AgentError beside another tracer; NotFound where eBPF
    does not carry the family of what is asked for.
    """
    from ctl.cli.agent import require_capabilities
    from ctl.cli.settings import load
    from ctl.kernel.bpf.families import open_all
    from ctl.kernel.bpf.tracing import Tracing

    settings = load(args)
    require_capabilities()
    with open_all(str(settings.bpffs)) as maps, _alone(settings.state_dir):
        port = maps.ipv4.configured().port
        with Tracing(maps.of_any(asked.versions), asked) as tracing:
            listener = Listener(tracing, port, unwanted, args.count, args.seconds)
            with listener.until_interrupted():
                say("listening; Ctrl-C ends it")
                yield listener


@contextmanager
def _alone(state_dir: Path) -> Iterator[None]:
    from ctl.process import lockfile

    path = state_dir / LOCK
    try:
        fd = lockfile.take(path, f"pid {os.getpid()}", 0)
    except lockfile.Held as error:
        raise AgentError(f"another tracer is at work ({error}): one at a time") from error
    except OSError as error:
        raise AgentError(f"{path}: {error.strerror}: run as root, or name --state-dir") from error
    try:
        yield
    finally:
        os.close(fd)
