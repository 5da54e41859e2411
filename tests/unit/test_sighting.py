from __future__ import annotations

import io
from ipaddress import IPv4Network
from pathlib import Path

import pytest
import scapy.utils

from ctl.cli.capture import write
from ctl.core.abi import Hook
from ctl.core.dissect import dissect
from ctl.core.reasons import labelled
from ctl.core.sighting import Flow, Sighting, parse_flow, sighting
from ctl.core.tracer import Trace
from tests.datapath import received, sent, wire

PORT = 8472


def seen(hook: Hook, label: str, data: bytes) -> Sighting:
    trace = Trace(5, 7, len(data), len(data), labelled(label).number, 0, hook, data)
    return sighting(trace, 10**18, lambda _: "eth0", PORT)


def test_a_packet_is_one_line() -> None:
    assert str(dissect(sent(), PORT)) == "10.1.1.5.1000 > 10.1.2.9.2000: UDP length 36"
    assert str(dissect(wire(received()), PORT)).startswith(
        "192.168.50.2.40000 > 192.168.50.1.8472: UDP length 86: VXLAN vni 1193046: "
        "10.1.2.9.2000 > 10.1.1.5.1000"
    )


@pytest.mark.parametrize("size", range(0, 100, 3))
def test_a_packet_cut_anywhere_is_told_as_far_as_it_goes(size: int) -> None:
    assert str(dissect(wire(received())[:size], PORT))


def test_a_flow_is_read() -> None:
    expected = Flow((IPv4Network("10.77.1.2/32"), IPv4Network("10.77.2.0/24")), (0, 80), 6)
    assert parse_flow("10.77.1.2,10.77.2.0/24:80,tcp") == expected


@pytest.mark.parametrize("text", ["", "x", "10.77.1.2:99999", "10.77.1.2,any,quic", "any,any,tcp,more"])
def test_a_flow_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_flow(text)


def test_a_capture_is_read_by_another_program(tmp_path: Path) -> None:
    file = io.BytesIO()
    packets = [
        seen(Hook.FROM_CONTAINER, "encap", sent()),
        seen(Hook.FROM_WIRE, "unknown_vtep", wire(received())),
    ]
    write(file, packets, 256)
    (tmp_path / "it.pcapng").write_bytes(file.getvalue())
    with scapy.utils.RawPcapNgReader(str(tmp_path / "it.pcapng")) as reader:
        read = [next(reader) for _ in packets]
    assert [data for data, _ in read] == [each.trace.data for each in packets]
    assert b"from_wire: drop: unknown_vtep" in file.getvalue()
