"""What a tracer costs a packet: `python -m tests.bench.tracer`, as root, two minutes; a table.

The programs are run on packets (BPF_PROG_TEST_RUN) that they leave to the kernel path, which may be
repeated; the measure is the same text less its two calls of the tracer. Builds take turns, and each is
loaded several times: where a program lies in memory is worth a few ns, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from ipaddress import IPv4Network
from statistics import fmean, median, stdev
from typing import Final

from ctl.core.abi import Hook
from ctl.core.tracer import Selection
from ctl.kernel.bpf import syscall
from ctl.kernel.bpf.child import Bcc
from ctl.kernel.bpf.source import source
from ctl.kernel.bpf.tracing import Tracing
from tests.datapath import FOREIGN, Datapath, received, sent, wire

CALLS: Final = ("\ttrace(skb, hook, reason, bytes);\n", "\txdp_trace(xdp, reason, bytes);\n")
PACKETS: Final = {
    Hook.FROM_CONTAINER: sent(),
    Hook.FROM_WIRE: wire(received()),
    Hook.TO_CONTAINER: received(),
    Hook.FROM_WIRE_XDP: wire(received()),
}
LOADS: Final = 15
ROUNDS: Final = 11
REPEAT: Final = 40_000
FITS: Final = 4_000
"""Packets that the ring has room for."""

EVERYTHING: Final = Selection()
ELSEWHERE: Final = replace(EVERYTHING, ends=(IPv4Network(FOREIGN), None))


def main() -> None:
    """Measure, and print."""
    with Datapath() as datapath:
        datapath.furnish()
        builds = [Bcc(text) for text in (without(CALLS, source()), source())]
        print(
            "| hook | none compiled in | off | another flow asked for | told | told, ring full |\n|"
            + "---|" * 6
        )
        for hook, packet in PACKETS.items():
            loaded = [[load(bcc, datapath, hook) for bcc in builds] for _ in range(LOADS)]
            print(f"| `{hook.label}` | {' | '.join(map(cell, figures(datapath, loaded, packet)))} |")
        for bcc in builds:
            bcc.close()


def without(calls: Iterable[str], text: str) -> str:
    """The programs as they would be without these lines."""
    for call in calls:
        assert call in text
        text = text.replace(call, "")
    return text


def load(bcc: Bcc, datapath: Datapath, hook: Hook) -> int:
    return bcc.load((hook.label,), datapath.maps)[hook.label]


def figures(datapath: Datapath, loaded: list[list[int]], packet: bytes) -> Iterator[list[float]]:
    """Ns a packet of each load, in the order of the columns."""
    yield from compared(loaded, packet)
    fds = [fd for _, fd in loaded]
    for asked, repeat in ((ELSEWHERE, REPEAT), (EVERYTHING, FITS), (EVERYTHING, REPEAT)):
        yield [median(traced(datapath, asked, fd, packet, repeat)) for fd in fds]


def compared(loaded: list[list[int]], packet: bytes) -> Iterator[list[float]]:
    """Of each of two builds, ns a packet of each load. They take turns."""
    found: list[list[list[int]]] = [[[] for _ in loaded] for _ in range(2)]
    for turn in range(ROUNDS):
        for place, pair in enumerate(loaded):
            for build in (0, 1) if turn % 2 else (1, 0):
                found[build][place].append(ns(pair[build], packet, REPEAT))
    yield from ([median(each) for each in build] for build in found)


def traced(datapath: Datapath, asked: Selection, fd: int, packet: bytes, repeat: int) -> Iterator[int]:
    """While a tracer asks for that. What has come is read before each run: then there is room for FITS."""
    with Tracing([datapath.maps], asked) as tracing:
        for _ in range(ROUNDS):
            assert len(list(tracing.packets(0))) <= REPEAT
            yield ns(fd, packet, repeat)


def ns(fd: int, packet: bytes, repeat: int) -> int:
    """A run, by the kernel's own clock: around it, XDP waits for RCU."""
    return syscall.prog_test_run(fd, packet, repeat=repeat)[3]


def cell(found: list[float]) -> str:
    """Mean and standard deviation over the loads."""
    return f"{fmean(found):.1f} ± {stdev(found):.1f} ns, {1e3 / fmean(found):.2f} M/s"


if __name__ == "__main__":
    main()
