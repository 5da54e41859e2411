"""`ovctl doctor` on a healthy node that has much to do: it reports nothing, however often it is asked.

By hand, with more rounds: DOCTOR_ROUNDS=1000.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count

from tests.host import Container, Host, meet, served
from tests.lab import Lab
from tests.netns.faults import Ward, findings
from tests.stream import TRAFFIC, TcpSink, traffic

ROUNDS = int(os.environ.get("DOCTOR_ROUNDS", "3"))
SERVICE = "10.96.0.1"


@contextmanager
def connections(source: Container, address: str) -> Iterator[None]:
    """One after the other, by new processes, as long as the block lasts."""
    command = (*TRAFFIC, "tcp-send", address, "9100", "100000")
    process = source.popen("sh", "-c", f"while {' '.join(command)}; do :; done")
    try:
        yield
        assert process.poll() is None, f"connections go on: {process.out()[-200:]}"
    finally:
        process.stop()


def service(place: Host, to: str) -> None:
    """A virtual address that is translated, as kube-proxy does it."""
    place.nft(
        "table ip theirs { chain translate { type nat hook prerouting priority dstnat;"
        f" ip daddr {SERVICE} dnat to {to}; }}; }}"
    )


def come_and_go(host: Host) -> Generator[None]:
    """At each step a container is made, and the one before it removed."""
    with ExitStack() as last:
        for number in count():
            made = host.container(f"guest{number % 2}", str(host.gateway.ip + 100 + number % 100))
            last.close()
            last.callback(made.remove)
            yield


def test_a_healthy_node_under_load_reports_nothing() -> None:
    with Lab() as lab:
        a, b = lab.host("a"), lab.host("b")
        lab.init_network()
        for host in (a, b):
            host.agent()
        meet(a, b)
        on_a, on_b = a.container("one"), b.container("one")
        served(on_a, on_b)
        service(a, on_b.address)
        sink = TcpSink(on_b)
        guests = come_and_go(a)
        ward = Ward(a, b, on_a, on_a, on_b)
        with traffic(on_a, on_b), connections(on_a, on_b.address), connections(on_a, SERVICE):
            for number in range(ROUNDS):
                next(guests)
                assert findings(ward) == [], f"round {number}"
        guests.close()
        sink.stop()
