"""What holds for every packet, whatever is in it."""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from ctl.core.abi import Direction, Ip, Translation
from ctl.core.model import Bypass
from ctl.core.reasons import REASONS, Verdict
from tests import packets
from tests.datapath import ENDPOINT, Action, Cast, Datapath, Result, XdpAction, flow_hash
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
USUAL = World()
IMPOSSIBLE = ("aborted", "no_room", "unreadable")


def check(datapath: Datapath, trial: Trial, result: Result) -> None:
    """All rules for a packet that has just been through its program."""
    assert result.counted == (trial.segments, len(trial.frame))
    if trial.program == "to_container":
        check_claimed(datapath, trial)
    if trial.program == "from_wire_xdp":
        check_xdp(datapath, trial.frame, result, trial.world)
        return
    final = result.gear or result.reason
    assert result.action == ACTIONS[VERDICTS[final]], f"{result.action} for {final}"
    # A test run makes no super-packets that adjust_room would take.
    assert final not in IMPOSSIBLE or trial.gso_size or kernel.is_hidden(trial.frame), final
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
    cast, tunnel = trial.world.cast, result.tunnel
    assert tunnel.frame == trial.frame
    assert trial.frame[:12] == cast.peer.vtep_mac.packed + cast.node.vtep_mac.packed
    assert kernel.is_of(cast, trial.frame)
    assert target_of(cast, trial.frame) in cast.peer_subnet, "the other peer has no next hop"
    assert not trial.world.kernel_path
    assert not trial.gso_size
    assert len(trial.frame) - packets.ETH_LEN <= cast.node.mtu
    assert tunnel.ip.dst == cast.peer.host
    check_outer(cast, result, tos_of(cast, trial.frame))


def check_outer(cast: Cast, result: Result, tos: int) -> None:
    """The tunnel's headers are as the vxlan device writes them around a packet with that TOS."""
    tunnel = result.tunnel
    assert tunnel.ip.valid
    assert tunnel.ip.src == cast.node.host
    assert tunnel.ip.total == len(result.packet) - packets.ETH_LEN == tunnel.udp_len + cast.ip_len
    assert (tunnel.dport, tunnel.vni, tunnel.flags) == (cast.node.port, cast.node.vni, packets.VXLAN_I)
    assert tunnel.ip.tos == (2 if tos & 3 == 3 else tos & 3)
    if cast.version == 4:
        assert not tunnel.udp_check
    else:
        assert tunnel.ip.ident == 0, "a flow label"
        check_sums(cast, result.packet)


def check_sums(cast: Cast, frame: bytes) -> None:
    """Where an outer checksum has to be there: what the container takes for right, its host does, too. Each
    of them may be computed, or taken for verified, by the other.
    """
    if cast.version == 6 and kernel.is_summed(packets.Tunnel.parse(frame).frame):
        assert kernel.is_summed(frame), "the inner checksum is right, the outer one is not"


def check_let_in(trial: Trial, result: Result) -> None:
    """The frame as its peer sent it, congestion marks aside, to an address of this node's."""
    cast, tunnel, after = trial.world.cast, packets.Tunnel.parse(trial.frame), result.packet
    before = tunnel.frame
    assert kernel.comes_in(cast, trial.frame), "the kernel's device would not have taken it so"
    check_sums(cast, trial.frame)
    assert not (trial.world.kernel_path and tunnel.ip.src == cast.peer.host)
    assert not (trial.vlan or trial.gso_size)
    holder = holder_of(cast, source_of(cast, before))
    assert tunnel.ip.src == holder, "the check of sources would not have let it in"
    assert target_of(cast, before) in cast.node.subnet
    assert tos_of(cast, after) & ~3 == tos_of(cast, before) & ~3
    assert not (tunnel.ip.tos & 3 == 3 and tos_of(cast, after) & 3 != 3)
    assert masked(cast, after) == masked(cast, before)
    if before[14] == 0x45:  # what it was, right or wrong, its checksum is
        assert bool(packets.checksum(after[14:34])) == bool(packets.checksum(before[14:34]))


def source_of(cast: Cast, frame: bytes) -> Ip:
    """Where an IP header would have it, whatever else is wrong with that."""
    return _address(frame[packets.ETH_LEN :][cast.addresses[0]])


def target_of(cast: Cast, frame: bytes) -> Ip:
    return _address(frame[packets.ETH_LEN :][cast.addresses[1]])


def _address(raw: bytes) -> Ip:
    return IPv4Address(raw) if len(raw) == 4 else IPv6Address(raw)


def tos_of(cast: Cast, frame: bytes) -> int:
    """TOS or traffic class, wherever the family has it."""
    return frame[15] if cast.version == 4 else int.from_bytes(frame[14:16], "big") >> 4 & 0xFF


def masked(cast: Cast, frame: bytes) -> bytes:
    """Without what a congestion mark changes."""
    at = packets.ETH_LEN
    if cast.version == 6:
        return frame[:at] + bytes([frame[at] & 0xF0, frame[at + 1] & 0xF]) + frame[at + 2 :]
    return frame[: at + 1] + b"\0" + frame[at + 2 : at + 10] + b"\0\0" + frame[at + 12 :]


def check_claimed(datapath: Datapath, trial: Trial) -> None:
    """The container is known as before, unless its address is claimed behind another port, as those are that
    a test run says nothing of. Then it is told to the programs anew.
    """
    cast, claim = trial.world.cast, trial.frame[packets.ETH_LEN :]
    if datapath.maps.lookup_endpoint(cast.local) is not None:
        return
    assert cast.local.packed in claim, "nobody has named it"
    assert trial.frame[12:14] == b"\x08\x06" if cast.version == 4 else claim[6:8] == b"\x3a\xff"
    datapath.endpoint(cast.local, ENDPOINT)


def check_source(trial: Trial, dropped: bool) -> None:
    """Dropped is what the kernel would have let in with a source that nobody may have, and no stranger's."""
    if trial.program != "from_wire" or trial.vlan & 0xFFF:
        assert not dropped, "dropped where nothing is refused"
        return
    cast = trial.world.cast
    frame = kernel.untagged(trial.frame) if trial.vlan else trial.frame
    if kernel.let_in(cast, frame) and (frame != trial.frame or forbidden(frame, trial.world)):
        assert dropped, "the kernel would let it in"
    if dropped:
        assert kernel.ours(cast, frame) or kernel.is_tagged(frame), "dropped, and none of the overlay's"


def forbidden(frame: bytes, world: World) -> bool:
    """Whether a packet that the vxlan device would take is of nobody who may send it."""
    cast = world.cast
    tunnel = packets.Tunnel.parse(kernel.without_options(cast, frame))
    unknown = not world.incomplete
    if tunnel.ip.src not in (cast.peer.host, cast.third.host):
        return unknown
    if not kernel.is_of(cast, tunnel.frame):
        return kernel.is_tagged(tunnel.frame)
    source = packets.Ip.parse(tunnel.frame[packets.ETH_LEN :]).src
    holder = holder_of(cast, source)
    if holder:
        return holder != tunnel.ip.src
    if source in cast.node.subnet:
        return True
    first, last = cast.node.pool
    return int(first) <= int(source) <= int(last) and source != tunnel.ip.src and unknown


def check_xdp(datapath: Datapath, frame: bytes, result: Result, world: World = USUAL) -> None:
    """In the end it is for tc as if there were no XDP: the same verdict, the same packet."""
    at_tc = datapath.run("from_wire", frame)
    assert result.counted == (1, len(frame))
    assert result.action == XDP_ACTIONS[VERDICTS[result.reason]], f"{result.action} for {result.reason}"
    # A tag in the data would be one beside it by then. What is translated, tc does, and what is behind
    # extension headers, it finds.
    others = [("vlan", f"not_ipv{world.version}"), ("translated", "decap")]
    others += [("not_overlay", found) for found in ("outer_options", "outer_fragment", "unreadable")]
    assert (result.reason, at_tc.reason) in others or result.reason == at_tc.reason
    check(datapath, Trial("from_wire", frame, world), at_tc)
    if result.reason != "decap":
        assert (result.packet, result.note) == (frame, b""), "changed and not decapsulated"
        return
    delivered = datapath.deliver(result.packet, result.note)
    assert (delivered.reason, delivered.packet) == ("delivered", at_tc.packet)


def check_encap(datapath: Datapath, trial: Trial, result: Result) -> None:
    cast, tunnel = trial.world.cast, result.tunnel
    before = packets.Ip.parse(trial.frame[packets.ETH_LEN :])
    assert result.reason == "encap"
    assert before.src == cast.local
    to = translation(datapath, trial, trial.frame)
    assert tunnel.ip.dst == holder_of(cast, to.address if to else before.dst) is not None
    assert not (trial.world.kernel_path and tunnel.ip.dst == cast.peer.host)
    check_outer(cast, result, before.tos)
    check_admitted(datapath, trial, before, trial.frame)
    check_routed(trial, replace(before, dst=to.address) if to else before, tunnel.frame, trial.frame, to)


def holder_of(cast: Cast, address: Ip) -> Ip | None:
    """The peer's host that leases it."""
    known = (cast.peer_subnet, cast.peer.host), (cast.third_subnet, cast.third.host)
    return next((host for subnet, host in known if address in subnet), None)


def check_decap(datapath: Datapath, trial: Trial, result: Result) -> None:
    cast, tunnel = trial.world.cast, packets.Tunnel.parse(trial.frame)
    before = packets.Ip.parse(tunnel.frame[packets.ETH_LEN :])
    assert result.reason == "decap"
    assert kernel.let_in(cast, kernel.resummed(cast, trial.frame)), "the kernel would have refused it"
    check_sums(cast, trial.frame)
    assert tunnel.frame[:6] == cast.node.vtep_mac.packed
    assert tunnel.ip.src == holder_of(cast, before.src)
    assert result.packet[:12] == ENDPOINT.mac.packed + ENDPOINT.bridge_mac.packed
    assert kernel.is_of(cast, result.packet)
    check_admitted(datapath, trial, before, tunnel.frame)
    to = translation(datapath, trial, tunnel.frame)
    check_routed(trial, replace(before, src=to.address) if to else before, result.packet, tunnel.frame, to)


def check_admitted(datapath: Datapath, trial: Trial, ip: packets.Ip, frame: bytes) -> None:
    """The mode lets it bypass: its flow is approved, if that is asked for."""
    cast = trial.world.cast
    proto, *echo = cast.ping
    l4 = frame[packets.ETH_LEN + cast.ip_len :]
    assert not ip.fragment & 0x3FFF
    assert len(ip.head) == cast.ip_len
    assert ip.proto in (packets.TCP, packets.UDP, proto)
    if trial.world.bypass is Bypass.LEARNED:
        assert datapath.approved(flow_of(trial.program, frame)), "of no approved flow"
    else:
        assert trial.world.bypass is Bypass.ALWAYS
    if ip.proto == packets.TCP:
        assert l4[13] & packets.ACK
        assert not l4[13] & (packets.SYN | packets.FIN | packets.RST)
    elif ip.proto == proto:
        assert l4[0] in echo


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
    cast, ip = trial.world.cast, packets.Ip.parse(after[packets.ETH_LEN :])
    assert ip.ttl == before.ttl - 1 > 0
    assert ip.valid
    assert before.valid
    assert before.total == len(original) - packets.ETH_LEN, "padding is the kernel's to trim"
    assert before.total <= cast.node.mtu or trial.gso_size, "larger than the MTU"
    assert ip.tos & ~3 == before.tos & ~3
    assert (ip.src, ip.dst, ip.proto, ip.total, ip.ident, ip.fragment) == (
        before.src, before.dst, before.proto, before.total, before.ident, before.fragment,
    )  # fmt: skip
    start = packets.ETH_LEN + cast.ip_len
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
        assert summed(cast, after) == summed(cast, original)


def summed(cast: Cast, frame: bytes) -> int:
    """What checksum, addresses, ports and data come to."""
    return packets.checksum(frame[packets.ETH_LEN :][cast.addresses[0].start :]) % 0xFFFF
