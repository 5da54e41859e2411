"""What holds for every packet, whatever is in it."""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import IPv4Address

from ctl.core.abi import Direction, Translation
from ctl.core.model import Bypass
from ctl.core.reasons import REASONS, Verdict
from tests import packets
from tests.datapath import (
    ENDPOINT,
    LOCAL,
    NODE,
    PEER,
    PEER_SUBNET,
    THIRD,
    THIRD_SUBNET,
    Action,
    Datapath,
    Result,
    XdpAction,
    flow_hash,
)
from tests.fuzz import kernel
from tests.fuzz.trial import Trial, World, flow_of, signature

VERDICTS = {row.label: row.verdict for row in REASONS.values()}
ACTIONS = {
    Verdict.BYPASS: Action.REDIRECT,
    Verdict.TUNNEL: Action.REDIRECT,
    Verdict.PASS: Action.UNSPEC,
    Verdict.DROP: Action.SHOT,
    Verdict.ABORT: Action.SHOT,
}
XDP_ACTIONS = {
    Verdict.BYPASS: XdpAction.PASS,
    Verdict.PASS: XdpAction.PASS,
    Verdict.DROP: XdpAction.DROP,
    Verdict.ABORT: XdpAction.ABORTED,
}
KNOWN = {PEER.host: PEER_SUBNET, THIRD.host: THIRD_SUBNET}
USUAL = World()
IMPOSSIBLE = ("aborted", "no_room", "unreadable")


def check(datapath: Datapath, trial: Trial, result: Result) -> None:
    """All rules for a packet that has just been through its program."""
    assert result.counted == (trial.segments, len(trial.frame))
    if trial.program == "from_wire_xdp":
        check_xdp(datapath, trial.frame, result, trial.world)
        return
    final = result.gear or result.reason
    assert result.action == ACTIONS[VERDICTS[final]], f"{result.action} for {final}"
    # A test run makes no super-packets that adjust_room would take.
    assert final not in IMPOSSIBLE or trial.gso_size, final
    check_source(trial, result.action == Action.SHOT)
    check_gear(trial, result)
    if result.gear == "tunnel_encap":
        check_leaving(trial, result)
    elif result.gear == "tunnel_decap":
        check_let_in(trial, result)
    elif result.action != Action.REDIRECT:
        assert result.packet == trial.frame, "changed and not redirected"
        assert result.mark == 0, "marked before netfilter has seen it"
    elif trial.program == "from_container":
        check_encap(datapath, trial, result)
    else:
        check_decap(datapath, trial, result)
    if result.reason == "learned":
        check_learned(trial)
    if result.reason == "learned_translated":
        check_learned_translated(datapath, trial)


def check_gear(trial: Trial, result: Result) -> None:
    """The tunnel gear, if there is one, is asked about what has been left to the kernel path alone."""
    asked = VERDICTS[result.reason] is Verdict.PASS and trial.world.tunnel
    if trial.program == "to_overlay":
        assert bool(result.gear) == bool(asked)
    else:
        assert not result.gear or (asked and trial.program == "from_wire")


def check_leaving(trial: Trial, result: Result) -> None:
    """The frame as netfilter let it go, in a right header to the peer that its address and its MAC say."""
    tunnel, tos = result.tunnel, trial.frame[15]
    assert tunnel.frame == trial.frame
    assert trial.frame[:14] == PEER.vtep_mac.packed + NODE.vtep_mac.packed + b"\x08\0"
    assert address(trial.frame, 30) in PEER_SUBNET, "the other peer has no next hop"
    assert not trial.world.kernel_path
    assert not trial.gso_size
    assert len(trial.frame) - packets.ETH_LEN <= NODE.mtu
    assert tunnel.ip.valid
    assert (tunnel.ip.src, tunnel.ip.dst) == (NODE.host, PEER.host)
    assert tunnel.ip.total == len(result.packet) - packets.ETH_LEN == tunnel.udp_len + packets.IP_LEN
    assert (tunnel.dport, tunnel.vni, tunnel.flags) == (NODE.port, NODE.vni, packets.VXLAN_I)
    assert tunnel.ip.tos == (2 if tos & 3 == 3 else tos & 3)


def check_let_in(trial: Trial, result: Result) -> None:
    """The frame as its peer sent it, congestion marks aside, to an address of this node's."""
    tunnel, after = packets.Tunnel.parse(trial.frame), result.packet
    before = tunnel.frame
    assert kernel.comes_in(trial.frame), "the kernel's device would not have taken it so"
    assert not (trial.world.kernel_path and tunnel.ip.src == PEER.host)
    assert not (trial.vlan or trial.gso_size)
    assert tunnel.ip.src == holder_of(address(before, 26)), "the check of sources would not have let it in"
    assert address(before, 30) in NODE.subnet
    assert after[15] & ~3 == before[15] & ~3
    assert not (tunnel.ip.tos & 3 == 3 and after[15] & 3 != 3)
    assert masked(after) == masked(before)
    if before[14] == 0x45:  # what it was, right or wrong, its checksum is
        assert bool(packets.checksum(after[14:34])) == bool(packets.checksum(before[14:34]))


def address(frame: bytes, at: int) -> IPv4Address:
    """Where an IPv4 header would have it, whatever else is wrong with that."""
    return IPv4Address(frame[at : at + 4])


def masked(frame: bytes) -> bytes:
    """Without what a congestion mark changes."""
    at = packets.ETH_LEN
    return frame[: at + 1] + b"\0" + frame[at + 2 : at + 10] + b"\0\0" + frame[at + 12 :]


def check_source(trial: Trial, dropped: bool) -> None:
    """Dropped is what the kernel would have let in with a source that nobody may have, and no stranger's."""
    if trial.program != "from_wire" or trial.vlan & 0xFFF:
        assert not dropped, "dropped where nothing is refused"
        return
    frame = kernel.untagged(trial.frame) if trial.vlan else trial.frame
    if kernel.let_in(frame) and (frame != trial.frame or forbidden(frame, trial.world)):
        assert dropped, "the kernel would let it in"
    if dropped:
        assert kernel.ours(frame) or kernel.is_tagged(frame), "dropped, and none of the overlay's"


def forbidden(frame: bytes, world: World) -> bool:
    """Whether a packet that the vxlan device would take is of nobody who may send it."""
    tunnel = packets.Tunnel.parse(kernel.without_options(frame))
    unknown = not world.incomplete
    if tunnel.ip.src not in KNOWN:
        return unknown
    if tunnel.frame[12:14] != b"\x08\0":
        return tunnel.frame[12:14] in (b"\x81\0", b"\x88\xa8")
    source = packets.Ip.parse(tunnel.frame[packets.ETH_LEN :]).src
    holders = [host for host, subnet in KNOWN.items() if source in subnet]
    if holders:
        return holders != [tunnel.ip.src]
    if source in NODE.subnet:
        return True
    first, last = NODE.pool
    return int(first) <= int(source) <= int(last) and source != tunnel.ip.src and unknown


def check_xdp(datapath: Datapath, frame: bytes, result: Result, world: World = USUAL) -> None:
    """In the end it is for tc as if there were no XDP: the same verdict, the same packet."""
    at_tc = datapath.run("from_wire", frame)
    assert result.counted == (1, len(frame))
    assert result.action == XDP_ACTIONS[VERDICTS[result.reason]], f"{result.action} for {result.reason}"
    # A tag in the data would be one beside it by then. What is translated, tc does.
    others = ("vlan", "not_ipv4"), ("translated", "decap")
    assert (result.reason, at_tc.reason) in others or result.reason == at_tc.reason
    check(datapath, Trial("from_wire", frame, world), at_tc)
    if result.reason != "decap":
        assert (result.packet, result.note) == (frame, b""), "changed and not decapsulated"
        return
    delivered = datapath.deliver(result.packet, result.note)
    assert (delivered.reason, delivered.packet) == ("delivered", at_tc.packet)


def check_encap(datapath: Datapath, trial: Trial, result: Result) -> None:
    tunnel, before = result.tunnel, packets.Ip.parse(trial.frame[packets.ETH_LEN :])
    assert result.reason == "encap"
    assert tunnel.ip.valid
    assert before.src == LOCAL
    to = translation(datapath, trial, trial.frame)
    assert (tunnel.ip.src, tunnel.ip.dst) == (NODE.host, holder_of(to.address if to else before.dst))
    assert not (trial.world.kernel_path and tunnel.ip.dst == PEER.host)
    assert tunnel.ip.total == len(result.packet) - packets.ETH_LEN == tunnel.udp_len + packets.IP_LEN
    assert (tunnel.dport, tunnel.vni, tunnel.flags) == (NODE.port, NODE.vni, packets.VXLAN_I)
    check_admitted(datapath, trial, before, trial.frame)
    check_routed(trial, replace(before, dst=to.address) if to else before, tunnel.frame, trial.frame, to)


def holder_of(address: object) -> object:
    return next(host for host, subnet in KNOWN.items() if address in subnet)


def check_decap(datapath: Datapath, trial: Trial, result: Result) -> None:
    tunnel = packets.Tunnel.parse(trial.frame)
    before = packets.Ip.parse(tunnel.frame[packets.ETH_LEN :])
    assert result.reason == "decap"
    assert kernel.let_in(trial.frame), "the kernel would have refused it"
    assert tunnel.frame[:6] == NODE.vtep_mac.packed
    assert tunnel.ip.src == holder_of(before.src)
    assert result.packet[:6] == ENDPOINT.mac.packed
    assert result.packet[6:14] == ENDPOINT.bridge_mac.packed + b"\x08\0"
    check_admitted(datapath, trial, before, tunnel.frame)
    to = translation(datapath, trial, tunnel.frame)
    check_routed(trial, replace(before, src=to.address) if to else before, result.packet, tunnel.frame, to)


def check_admitted(datapath: Datapath, trial: Trial, ip: packets.Ip, frame: bytes) -> None:
    """The mode lets it bypass: its flow is approved, if that is asked for."""
    assert not ip.fragment & 0x3FFF
    assert len(ip.head) == packets.IP_LEN
    if trial.world.bypass is Bypass.LEARNED:
        assert datapath.approved(flow_of(trial.program, frame)), "of no approved flow"
    else:
        assert trial.world.bypass is Bypass.ALWAYS
        assert ip.proto in (packets.TCP, packets.UDP, packets.ICMP)
    if ip.proto == packets.TCP:
        flags = frame[packets.ETH_LEN + packets.IP_LEN + 13]
        assert flags & packets.ACK
        assert not flags & (packets.SYN | packets.FIN | packets.RST)


def check_learned(trial: Trial) -> None:
    """Approved is only what carries its own signature."""
    assert trial.world.bypass is Bypass.LEARNED
    assert trial.hash == signature(trial.program, trial.frame)


def translation(datapath: Datapath, trial: Trial, frame: bytes) -> Translation | None:
    """What netfilter has made of the flow that this inner frame is of; None: nothing, or nobody asks."""
    if trial.world.bypass is not Bypass.LEARNED:
        return None
    return datapath.translation(flow_of(trial.program, frame))


def check_learned_translated(datapath: Datapath, trial: Trial) -> None:
    """Approved is a flow with the signature that the packet carries, as translated to what it says."""
    assert trial.world.bypass is Bypass.LEARNED
    now = flow_of(trial.program, trial.frame)
    out = now.direction is Direction.OUT
    to = Translation(now.daddr if out else now.saddr, now.sport, now.dport)
    assert [
        key
        for key, entry in datapath.maps.flows().items()
        if entry.to == to
        and flow_hash(replace(key, dscp=entry.dscp)) == trial.hash
        and (key.saddr if out else key.daddr) == (now.saddr if out else now.daddr)
        and (key.proto, key.ifindex, entry.dscp) == (now.proto, now.ifindex, now.dscp)
    ]


def check_routed(
    trial: Trial, before: packets.Ip, after: bytes, original: bytes, to: Translation | None
) -> None:
    """The inner packet was whole and right; TTL one less, what is translated is, the rest untouched."""
    ip = packets.Ip.parse(after[packets.ETH_LEN :])
    assert ip.ttl == before.ttl - 1 > 0
    assert ip.valid
    assert before.valid
    assert before.total == len(original) - packets.ETH_LEN, "padding is the kernel's to trim"
    assert before.total <= NODE.mtu or trial.gso_size, "larger than the MTU"
    assert ip.tos & ~3 == before.tos & ~3
    assert (ip.src, ip.dst, ip.proto, ip.total, ip.ident, ip.fragment) == (
        before.src, before.dst, before.proto, before.total, before.ident, before.fragment,
    )  # fmt: skip
    start = packets.ETH_LEN + packets.IP_LEN
    if to is None:
        assert after[start:] == original[start:]
        return
    at = start + (16 if ip.proto == packets.TCP else 6)
    assert after[start : start + 4] == struct.pack("!HH", to.sport, to.dport)
    assert after[start + 4 : at] == original[start + 4 : at]
    assert after[at + 2 :] == original[at + 2 :]
    if ip.proto == packets.UDP and original[at : at + 2] == bytes(2):
        assert after[at : at + 2] == bytes(2), "there was no checksum"
    else:  # as right or wrong as it was
        assert summed(after) == summed(original)


def summed(frame: bytes) -> int:
    """What checksum, addresses, ports and data come to."""
    return packets.checksum(frame[packets.ETH_LEN + 12 :]) % 0xFFFF
