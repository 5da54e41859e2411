"""A node's own kernel: settings, tables, devices, programs, rules. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final

from ctl.core.compare import Difference, State
from ctl.core.diagnosis.finding import Finding, failure, ok, warning
from ctl.core.report import Fill, map_name, plain_name

RUNNING_FULL: Final = 0.9
"""From which share of a subnet's addresses on it is told that they run out."""

_SHARED_ROOM: Final = {"peer_stats": "peers"}
"""Maps that have an entry only for what has one in another."""


def with_room(differences: Iterable[Difference], full: Collection[str]) -> list[Difference]:
    """Without those that are missing because a map takes no new entry, which is told of the map."""
    return [each for each in differences if each.state is not State.MISSING or _room_of(each) not in full]


def _room_of(difference: Difference) -> str:
    """The map that such an entry takes room in; those of both families are one table, by their addresses."""
    name = _SHARED_ROOM.get(difference.table, difference.table)
    return map_name(name, 6 if ":" in difference.key else 4)


def of_entries(differences: Sequence[Difference], interval: float, alive: bool) -> Iterator[Finding]:
    """By `ovctl map diff`. `interval`: after how many seconds an agent mends, at the latest."""
    if not differences:
        yield ok("entries", "routes, neighbours, FDB and maps are as the leases ask")
        return
    mend = f"the agent mends it within {interval:g} s" if alive else "systemctl start ovnet"
    for (table, state), count in sorted(Counter((each.table, each.state) for each in differences).items()):
        first = next(each for each in differences if (each.table, each.state) == (table, state))
        more = f" and {count - 1} more" if count > 1 else ""
        yield failure(
            "entries",
            f"{table}: {first.key}{more} {state}",
            f"wanted {first.wanted or 'nothing'}, found {first.found or 'nothing'}",
            f"ovctl map diff shows all; {mend}; who changed it?",
        )


def of_settings(settings: Mapping[str, str | None], devices: Collection[str]) -> Iterator[Finding]:
    """By kernel settings (sysctl's names, with slashes). `devices`: of ours, that have to forward."""
    if settings.get("net/ipv4/ip_forward") == "0":  # which sets each interface's too
        yield failure(
            "forwarding",
            "net.ipv4.ip_forward is 0",
            "no packet of a container leaves this host, and none comes in",
            "sysctl -w net.ipv4.ip_forward=1, and look who sets it (grep -r ip_forward /etc/sysctl*)",
        )
        return
    wrong = settings.get("net/ipv6/conf/all/forwarding") == "0"
    if wrong:
        yield failure(
            "forwarding",
            "net.ipv6.conf.all.forwarding is 0",
            "no IPv6 packet of a container leaves this host, and none comes in",
            "systemctl restart ovnet, and look who sets it (grep -r forwarding /etc/sysctl*)",
        )
    for device in sorted(devices):
        if settings.get(f"net/ipv4/conf/{device}/forwarding") == "0":
            wrong = True
            yield failure(
                "forwarding",
                f"net.ipv4.conf.{device}.forwarding is 0",
                f"what comes in by {device} is not forwarded",
                f"sysctl -w net.ipv4.conf.{device}.forwarding=1",
            )
    if not wrong:
        yield ok("forwarding", "it is on")


def of_conntrack(count: int | None, limit: int | None) -> Iterator[Finding]:
    """By the size of conntrack's table; None: there is no conntrack here."""
    if count is None or not limit:
        return
    if count >= limit:
        yield failure(
            "conntrack",
            f"its table is full: {count} of {limit} entries",
            "new connections are dropped",
            f"sysctl -w net.netfilter.nf_conntrack_max={2 * limit}",
        )
    elif count > 0.9 * limit:
        yield warning(
            "conntrack",
            f"its table is nearly full: {count} of {limit} entries",
            "new connections will be dropped",
            f"sysctl -w net.netfilter.nf_conntrack_max={2 * limit}",
        )
    else:
        yield ok("conntrack", f"{count} of {limit} entries")


def of_programs(wanted: Iterable[tuple[str, str]], present: Collection[tuple[str, str]]) -> Iterator[Finding]:
    """By `ovctl hook list`: (interface, hook) where a program of ours has to be, and where one is."""
    missing = [each for each in wanted if each not in present]
    for device, hook in missing:
        yield failure(
            "programs",
            f"none of ours at {hook} of {device}",
            "eBPF carries nothing there, and the senders of VXLAN are not checked at the uplink",
            "ovctl hook list; systemctl restart ovnet",
        )
    if not missing:
        yield ok("programs", "they are where they have to be")


def may_push_out(entries: int, capacity: int, cpus: int) -> bool:
    """Whether an LRU map may make room for an entry by another one, though it is not full.

    Each of the `cpus` keeps so many free entries for itself (LOCAL_FREE_TARGET), of a small map, since Linux
    6.16, half of them at most together (kernel/bpf/bpf_lru_list.c).
    """
    return entries > 0 and entries >= capacity - min(_KEPT_FREE * cpus, capacity // 2)


_KEPT_FREE: Final = 128
_CLOSING: Final = 0.01
"""The share of flows that may lose their entry and get it again with nothing wrong: as a connection closes,
its FIN takes the entry away, and the acknowledgement of that makes one."""


def learned_again(looks: Sequence[Collection[bytes]]) -> int:
    """How many flows had an entry, had none later, and then had one again, by the keys of each look.

    Flows in use that were pushed out are among them, which have ended are not.
    """
    seen, gone, back = set[bytes](), set[bytes](), set[bytes]()
    for keys in map(set, looks):
        back |= keys & gone
        gone |= seen - keys
        seen |= keys
    return len(back)


def of_maps(fill: Fill, again: Mapping[str, int]) -> Iterator[Finding]:
    """How full they are; `again`: by map of flows, how many have just lost an entry and got one."""
    full = {name: size for name, (entries, size) in fill.items() if size and entries >= size}
    for name, size in sorted(full.items()):
        plain = plain_name(name)
        if plain != "flows":
            yield failure(
                "maps",
                f"map {name} is full: {fill[name][0]} of {size} entries",
                "what has no room in it goes by the kernel path",
                f"restart the agent with --{_SHARED_ROOM.get(plain, plain)}-max {2 * size}",
            )
    for name, count in again.items():
        entries, size = fill.get(name, (0, 0))
        if count > entries * _CLOSING:
            yield warning(
                "maps",
                f"map {name} thrashes: {count} flows lost their entry and got it again while the doctor"
                f" looked, {entries} of {size} are there",
                "flows in use push each other out, and their packets take the kernel path",
                f"restart the agent with --flows-max {2 * size}",
            )


def of_hidden_maps(bpffs: str, why: str) -> Finding:
    """The agent has programs, and no maps are found here; `why`: one line."""
    return failure(
        "maps",
        why,
        "the agent's bpffs is another one: in a container, and private to it, the datapath ends with that",
        f"run the agent with --volume /sys/fs/bpf:/sys/fs/bpf; or name the directory (--bpffs, now {bpffs})",
    )


def of_forward(refusing: Sequence[str], dropping: Sequence[str]) -> Iterator[Finding]:
    """Others' chains that refuse what they have no rule for, and rules that drop all that is ours.

    Of the first a line each, with its remedy behind the last colon; the others as nft takes them.
    """
    for line in refusing:
        seen, _, remedy = line.rpartition(": ")
        yield failure("forward", seen, "an accept in our table undoes no drop in another", remedy)
    for rule in dropping:
        yield failure(
            "forward",
            f"somebody's rule drops what is forwarded for containers: {rule}",
            "an accept in our table undoes no drop in another",
            "nft -a list ruleset shows its handle: nft delete rule TABLE CHAIN handle N; who made it?",
        )


def of_bridge(misplaced: Sequence[str]) -> Iterator[Finding]:
    """Lines about addresses that an adopted bridge has in place of ours.

    Of each the remedy is behind the first colon.
    """
    for line in misplaced:
        seen, _, remedy = line.partition(": ")
        yield failure("bridge", seen, "no container is added: runtimes and Docker go by ours", remedy)


def of_runtimes(path: str, shadowed: str, *, there: bool) -> Iterator[Finding]:
    """By the CNI configuration `path`. `there`: it is one of ours, or has not to be there now.

    `shadowed`: which file is taken instead, with the remedy behind the last colon; "" if none is.
    """
    if shadowed:
        seen, _, remedy = shadowed.rpartition(": ")
        yield failure("runtimes", seen, "new containers come to another network, or do not start", remedy)
    elif not there:
        yield failure(
            "runtimes",
            f"{path} is not there, or not of ours",
            "kubelet says NotReady, and no container is added",
            "the agent writes it within seconds: ovctl status says why it cannot; who took it away?",
        )
    else:
        yield ok("runtimes", f"{path} is the first by name")


def of_addresses(count: int, most: int, leaked: int) -> Iterator[Finding]:
    """By host-local's files: `count` of the subnet's `most` addresses are given out.

    `leaked`: so many of them no container has any more; that is looked for only where the subnet runs full.
    """
    seen = f"{count} of {most} addresses are given out"
    if count < RUNNING_FULL * most:
        yield ok("addresses", seen)
        return
    remedy = "ovctl ipam release" if leaked else "fewer containers here (maxPods), or a larger subnet"
    seen += f", {leaked} of them to no container that is there" if leaked else ""
    if count >= most:
        yield failure("addresses", seen, "no container can be added", remedy)
    else:
        yield warning("addresses", seen, "soon no container can be added", remedy)


def of_ipsec(present: bool) -> Iterator[Finding]:
    """Whether there are IPsec policies."""
    if present:
        yield warning(
            "ipsec",
            "this host has IPsec policies",
            "all peers are reached by the kernel path, which meets them; one may stop the tunnel's UDP",
            "ip xfrm policy; ip xfrm state",
        )


def of_others(tunnels: Mapping[str, int], port: int, managers: Mapping[str, str]) -> Iterator[Finding]:
    """Who else has to do with what is ours.

    `tunnels`: VNI by name of other vxlan devices on our UDP port; `managers`: who manages devices of
    ours, by the device's name.
    """
    for name, vni in sorted(tunnels.items()):
        yield warning(
            "tunnel",
            f"{name} (VNI {vni}) has UDP {port}, too",
            "a second overlay, or a flanneld: the kernel gives it what has its VNI",
            f"ip -d link show {name}; ip link del {name} if nobody needs it",
        )
    for device, manager in sorted(managers.items()):
        yield failure(
            "managed",
            f"{manager} manages {device}",
            "it takes away addresses, routes and MACs that it has not set",
            _UNMANAGED[manager].format(device=device),
        )


_UNMANAGED: Final = {
    "systemd-networkd": "a .network file in /etc/systemd/network with [Match] Name={device} and"
    " [Link] Unmanaged=yes, then networkctl reload",
    "NetworkManager": "unmanaged-devices=interface-name:{device} below [keyfile] in"
    " /etc/NetworkManager/conf.d/ovnet.conf, then nmcli general reload",
}
"""What keeps each of them away from a device."""


def of_mtu(mtu: int, device: int | None, ports: Mapping[str, int]) -> Iterator[Finding]:
    """`mtu`: largest inner packet; `device`: the tunnel's, None if there is none; `ports`: each port's."""
    wrong = False
    if device is not None and device < mtu:
        wrong = True
        yield failure(
            "mtu",
            f"the tunnel device takes {device} bytes, {mtu} are wanted",
            "larger packets of containers are refused",
            "systemctl restart ovnet; who set it? (NetworkManager, systemd-networkd)",
        )
    larger = sorted(name for name, size in ports.items() if size > mtu)
    if larger:
        wrong = True
        more = f" and {len(larger) - 1} more" if len(larger) > 1 else ""
        yield failure(
            "mtu",
            f"port {larger[0]}{more}: MTU {ports[larger[0]]}, the overlay carries {mtu}",
            "its container sends packets that do not fit, and waits where ICMP is filtered",
            f"start it anew with MTU {mtu}, or ip link set dev {larger[0]} mtu {mtu}, there and inside",
        )
    if not wrong:
        yield ok("mtu", f"{mtu} bytes inside, and no port has more")
