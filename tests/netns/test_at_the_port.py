"""What others put at a container's port, or at the uplink: it has to see what eBPF would carry past it."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import pytest

from ctl.kernel.bpf import syscall
from tests.hooks import programs
from tests.host import Container, Host
from tests.lab import Lab, wait_until
from tests.netns.conftest import Pair, build
from tests.netns.test_foreign_programs import XDP_PROGRAM_TYPE
from tests.netns.test_resilience import SOON
from tests.netns.test_tcx import someone_at_tcx
from tests.stream import UdpStream

Put = Callable[[Host, str], AbstractContextManager[None]]
"""Has something at the egress of a host's interface for as long as the block lasts."""


def qdisc(kind: str, *options: str) -> Put:
    @contextmanager
    def put(host: Host, device: str) -> Iterator[None]:
        host.run("tc", "qdisc", "add", "dev", device, "root", "handle", "77:", kind, *options)
        yield
        host.run("tc", "qdisc", "del", "dev", device, "root")

    return put


@contextmanager
def mirror(host: Host, device: str) -> Iterator[None]:
    """A copy of all to someone else's interface, before ours or not: classification goes on."""
    host.ip("link", "add", "ids0", "type", "ifb")
    host.ip("link", "set", "ids0", "up")
    host.run("tc", "qdisc", "add", "dev", device, "clsact")
    host.run("tc", "filter", "add", "dev", device, "egress", "prio", "10", "protocol", "ip", "u32",
             "match", "u32", "0", "0",
             "action", "mirred", "egress", "mirror", "dev", "ids0", "continue")  # fmt: skip
    yield
    host.run("tc", "qdisc", "del", "dev", device, "clsact")
    host.ip("link", "del", "ids0")


@contextmanager
def shared_block(host: Host, device: str) -> Iterator[None]:
    """A filter that was there before, on a block that the port is given: no filter comes."""
    host.ip("link", "add", "block0", "type", "ifb")
    host.run("tc", "qdisc", "add", "dev", "block0", "egress_block", "10", "clsact")
    host.run("tc", "filter", "add", "block", "10", "protocol", "ip", "u32", "match", "u32", "0", "0",
             "classid", "1:1")  # fmt: skip
    host.run("tc", "qdisc", "add", "dev", device, "egress_block", "10", "clsact")
    yield
    host.run("tc", "qdisc", "del", "dev", device, "clsact")
    host.ip("link", "del", "block0")


@contextmanager
def agent_at_tcx(host: Host, device: str) -> Iterator[None]:
    with someone_at_tcx(host, device, syscall.TCX_EGRESS):
        yield


@contextmanager
def xdp_in_the_container(host: Host, device: str) -> Iterator[None]:
    """A program that passes all, in the driver of the container's end."""
    (container,) = [each for each in host.containers if each.port == device]
    fd = syscall.prog_load(struct.pack("=BBhi BBhi", 0xB7, 0, 0, 2, 0x95, 0, 0, 0), "own", XDP_PROGRAM_TYPE)
    pin = host.bpffs / "own"
    syscall.obj_pin(fd, str(pin))
    os.close(fd)
    container.run("ip", "link", "set", "dev", "eth0", "xdpdrv", "pinned", str(pin))
    pin.unlink()
    yield
    container.run("ip", "link", "set", "dev", "eth0", "xdpdrv", "off")


TBF = ("rate", "200mbit", "burst", "256kb", "latency", "50ms")
OTHERS = {
    "a token bucket": (qdisc("tbf", *TBF), "its qdisc tbf"),
    "classes": (qdisc("htb", "default", "1"), "its qdisc htb"),
    "a mirror": (mirror, "u32 filter of someone else"),
    "filters shared by ports": (shared_block, "u32 filter of someone else"),
    "a policy agent's program": (agent_at_tcx, "at tcx egress"),
    "a program of the container's own": (xdp_in_the_container, "the container's own XDP program"),
}
"""What comes to the port, and what the status says of it."""


def why(host: Host, port: Container) -> str:
    """Why a container's port is left to the kernel path; empty if it is not."""
    return next((each["why"] for each in host.status()["kernel_ports"] if each["name"] == port.port), "")


def delivered(host: Host) -> int:
    """Packets that eBPF has put into containers."""
    counters = host.counters()
    return counters.get(("from_wire", "decap"), 0) + counters.get(("from_wire", "delivered"), 0)


def bypasses(stream: UdpStream, host: Host) -> bool:
    before = delivered(host)
    stream.advance(0.2)
    return delivered(host) - before > 0.1 * stream.rate


@pytest.mark.parametrize("case", OTHERS)
def test_what_comes_to_a_port_is_not_passed_by_and_its_going_is_noticed(pair: Pair, case: str) -> None:
    judged(pair, *OTHERS[case])


def test_nor_does_xdp_pass_it_by(lab: Lab) -> None:
    judged(build(lab, "--hook", "xdp"), *OTHERS["a token bucket"])


def judged(pair: Pair, put: Put, said: str) -> None:
    """With that at b's port eBPF delivers nothing there, before and after it does."""
    b, port = pair.b, pair.on_b
    stream = UdpStream(pair.on_a, port, port.address, port=9300)
    wait_until(lambda: bypasses(stream, b), SOON, "eBPF delivers")
    with put(b, port.port):
        wait_until(lambda: why(b, port), SOON, "the port is the kernel path's")
        assert said in why(b, port)
        assert "would not see what our" in why(b, port)
        assert programs(b, port.port) == []
        before = delivered(b)
        stream.advance(0.3)
        assert delivered(b) == before
        text = b.http("http://127.0.0.1:9475/metrics")[1]
        assert 'ovnet_ports{state="kernel_path"} 1.0' in text
    wait_until(lambda: not why(b, port), SOON, "the port has its programs again")
    wait_until(lambda: bypasses(stream, b), SOON, "eBPF delivers again")
    stream.finish()


def test_a_token_bucket_at_the_port_sees_every_datagram(pair: Pair) -> None:
    b, port = pair.b, pair.on_b
    with qdisc("tbf", *TBF)(b, port.port):
        wait_until(lambda: why(b, port), SOON, "the port is the kernel path's")
        stream = UdpStream(pair.on_a, port, port.address, port=9301)
        stream.advance(0.5)
        sent, tally = stream.finish()
        assert tally.received == sent
        assert sent_by(b, port.port) >= sent


def sent_by(host: Host, device: str) -> int:
    """Packets that the root qdisc of an interface has let go."""
    (root,) = [each for each in json.loads(host.run("tc", "-s", "-j", "qdisc", "show", "dev", device).stdout)
               if each.get("root")]  # fmt: skip
    return int(root["packets"])


def matched(host: Host, device: str) -> int:
    """Packets that someone's filter at the egress of an interface has seen."""
    text = host.run("tc", "-s", "filter", "show", "dev", device, "egress").stdout
    return sum(int(number) for number in re.findall(r"Sent \d+ bytes (\d+) pkt", text))


def test_what_hangs_at_the_uplinks_egress_sees_all_that_ebpf_sends(pair: Pair) -> None:
    """redirect_neigh hands packets to the uplink as the stack does."""
    a, b = pair.a, pair.on_b
    with qdisc("htb", "default", "1")(a, "eth0"), mirror(a, "eth0"):
        stream = UdpStream(pair.on_a, b, b.address, port=9302)
        encapsulated = ("from_container", "encap")
        stream.advance(0.2)
        before = a.counters()[encapsulated], sent_by(a, "eth0"), matched(a, "eth0")
        stream.advance(0.5)
        after = a.counters()[encapsulated], sent_by(a, "eth0"), matched(a, "eth0")
        sent, tally = stream.finish()
    assert tally.received == sent
    by_ebpf, by_qdisc, by_filter = (late - early for early, late in zip(before, after, strict=True))
    assert by_ebpf > 0.3 * stream.rate
    assert by_qdisc >= by_ebpf - stream.rate * 0.1, "counted a moment before"
    assert by_filter >= by_ebpf - stream.rate * 0.1


def test_who_comes_behind_ours_at_a_ports_ingress_is_let_ahead(pair: Pair) -> None:
    """Ours would redirect what they are to see. At tcx nothing is told: it is noticed at the next look."""
    a, port = pair.a, pair.on_a.port
    wait_until(lambda: len(programs(a, port)) == 2, SOON, "the port has its programs")
    with someone_at_tcx(a, port, syscall.TCX_INGRESS) as theirs:
        wait_until(partial(last_but_ours, a, port, theirs), SOON, "ours is last")


def last_but_ours(host: Host, device: str, theirs: int) -> bool:
    rows = [(each.id, each.ours) for each in host.hooks() if (each.dev, each.hook) == (device, "ingress")]
    return [ours for _, ours in rows] == [False, True] and rows[0][0] == theirs
