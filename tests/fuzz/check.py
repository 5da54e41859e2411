"""What holds for every packet, whatever is in it."""

from __future__ import annotations

import struct
from collections import Counter
from random import Random
from typing import Self

from ctl.reasons import REASONS, Verdict
from tests import packets
from tests.datapath import ENDPOINT, LOCAL, NODE, PEER, REMOTE, Action, Datapath, Result, XdpAction
from tests.fuzz.mutator import PORTS, draw, furnish

VERDICTS = {row.label: row.verdict for row in REASONS.values()}
ACTIONS = {
    Verdict.BYPASS: Action.REDIRECT,
    Verdict.PASS: Action.UNSPEC,
    Verdict.DROP: Action.SHOT,
    Verdict.ABORT: Action.SHOT,
}
XDP = "from_wire_xdp"
XDP_ACTIONS = {
    Verdict.BYPASS: XdpAction.PASS,
    Verdict.PASS: XdpAction.PASS,
    Verdict.DROP: XdpAction.DROP,
    Verdict.ABORT: XdpAction.ABORTED,
}
FURNISH_EVERY = 1000
"""Packets after which approvals that RST and FIN have withdrawn are given again."""


class Campaign:
    """Random packets from one seed, through programs on one set of maps."""

    def __init__(self, seed: int) -> None:
        self.seed, self.done = seed, 0
        self.seen: Counter[tuple[str, str]] = Counter()
        self._rng = Random(seed)
        self._datapath = Datapath()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._datapath.__exit__()

    def run(self, number: int) -> None:
        """That many more; AssertionError with seed, number and packet of one that breaks a rule."""
        for _ in range(number):
            if self.done % FURNISH_EVERY == 0:
                furnish(self._datapath)
            program, frame, signature = draw(self._rng)
            try:
                if program == XDP:
                    result = self._datapath.xdp(frame)
                    check_xdp(self._datapath, frame, result)
                else:
                    result = self._datapath.run(program, frame, hash=signature)
                    check(program, frame, result)
            except (AssertionError, ValueError) as error:
                where = f"seed {self.seed}, packet {self.done}: {program}, hash {signature}, {frame.hex()}"
                raise AssertionError(f"{where}: {error}") from error
            self.done += 1
            self.seen[program, result.reason] += 1


def check(program: str, frame: bytes, result: Result) -> None:
    """The rules; that exactly one counter rises by one packet, Datapath.run has seen to."""
    assert result.action == ACTIONS[VERDICTS[result.reason]], f"{result.action} for {result.reason}"
    assert result.reason not in ("aborted", "no_room"), result.reason
    assert result.counted == (1, len(frame))
    if result.action != Action.REDIRECT:
        assert result.packet == frame, "changed and not redirected"
    elif program == "from_container":
        check_encap(frame, result)
    else:
        check_decap(frame, result)


def check_xdp(datapath: Datapath, frame: bytes, result: Result) -> None:
    """In the end it is for tc as if there were no XDP: the same verdict, the same packet."""
    at_tc = datapath.run("from_wire", frame)
    assert result.counted == (1, len(frame))
    assert result.action == XDP_ACTIONS[VERDICTS[result.reason]], f"{result.action} for {result.reason}"
    # A tag in the data would be one beside it by then.
    assert (result.reason, at_tc.reason) == ("vlan", "not_ipv4") or result.reason == at_tc.reason
    if result.reason != "decap":
        assert (result.packet, result.note) == (frame, b""), "changed and not decapsulated"
        return
    delivered = datapath.deliver(result.packet, result.note)
    assert (delivered.reason, delivered.packet) == ("delivered", at_tc.packet)
    check("from_wire", frame, at_tc)


def check_encap(frame: bytes, result: Result) -> None:
    tunnel, before = result.tunnel, packets.Ip.parse(frame[packets.ETH_LEN :])
    assert result.reason == "encap"
    assert tunnel.ip.valid
    assert (before.src, before.dst) == (LOCAL, REMOTE)
    assert approved(before, frame)
    assert (tunnel.ip.src, tunnel.ip.dst) == (NODE.host, PEER.host)
    assert tunnel.ip.total == len(result.packet) - packets.ETH_LEN == tunnel.udp_len + packets.IP_LEN
    assert (tunnel.dport, tunnel.vni, tunnel.flags) == (NODE.port, NODE.vni, packets.VXLAN_I)
    check_routed(before, tunnel.frame, frame)


def check_decap(frame: bytes, result: Result) -> None:
    tunnel = packets.Tunnel.parse(frame)
    before = packets.Ip.parse(tunnel.frame[packets.ETH_LEN :])
    assert result.reason == "decap"
    assert (tunnel.ip.src, tunnel.ip.dst) == (PEER.host, NODE.host)
    assert (before.src, before.dst) == (REMOTE, LOCAL)
    assert approved(before, tunnel.frame)
    assert (tunnel.flags, tunnel.vni) == (packets.VXLAN_I, NODE.vni)
    assert result.packet[:12] == ENDPOINT.mac.packed + ENDPOINT.bridge_mac.packed
    check_routed(before, result.packet, tunnel.frame)


def approved(ip: packets.Ip, frame: bytes) -> bool:
    """Whether `furnish` has approved the flow of the frame, and the packet is no fragment."""
    ports = struct.unpack_from("!HH", frame, packets.ETH_LEN + packets.IP_LEN)
    whole = not ip.fragment & 0x3FFF
    return whole and ip.proto in {packets.UDP, packets.TCP} and set(ports) <= set(PORTS)


def check_routed(before: packets.Ip, after: bytes, original: bytes) -> None:
    """The inner packet was whole and right; TTL one less, the rest untouched."""
    ip = packets.Ip.parse(after[packets.ETH_LEN :])
    assert ip.ttl == before.ttl - 1 > 0
    assert ip.valid
    assert before.valid
    assert before.total == len(original) - packets.ETH_LEN, "padding is the kernel's to trim"
    assert ip.tos & ~3 == before.tos & ~3
    assert (ip.src, ip.dst, ip.proto, ip.total, ip.ident, ip.fragment) == (
        before.src, before.dst, before.proto, before.total, before.ident, before.fragment,
    )  # fmt: skip
    start = packets.ETH_LEN + packets.IP_LEN
    assert after[start:] == original[start:]
