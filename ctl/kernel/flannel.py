"""What flanneld leaves in a host's kernel, and whether it still runs.

All of it outlives flanneld's process, and has no mark but its form: the vxlan device
`flannel.<VNI>`, routes of protocol boot, iptables chains of these names (0.20 and newer)
or one nftables table. So each is held against the network that we are to serve: what
belongs to another flannel network is not ours to touch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from pathlib import Path
from typing import Final

from ctl.core.family import Family
from ctl.core.host import Link, Route
from ctl.core.lease import inside, span
from ctl.core.model import A, N
from ctl.kernel import iptables
from ctl.kernel.command import find, run, succeeds
from ctl.kernel.netlink import link as links
from ctl.kernel.netlink.session import Netlink, by_name
from ctl.kernel.netlink.socket import suppress_missing
from ctl.kernel.netlink.tables import (
    BLACKHOLE,
    UNICAST,
    main_routes,
    parse_route,
    prefix_length,
    put_route,
    remove_route,
    route_type,
)

PROCESS: Final = re.compile(r"flanneld(-.*)?")
"""As it is installed, or as it is downloaded: flanneld-amd64."""
TABLES: Final = {4: ("ip", "flannel-ipv4"), 6: ("ip6", "flannel-ipv6")}
"""The nftables table that flanneld makes if it is told to (EnableNFTables), by IP version."""
CHAINS: Final = (("nat", "POSTROUTING", "FLANNEL-POSTRTG"), ("filter", "FORWARD", "FLANNEL-FWD"))
"""Table, built-in chain, flannel's chain."""

RTPROT_BOOT: Final = 3
"""rtm_protocol of flannel's routes: what its netlink library takes when told nothing."""


_DEFAULT_METRICS: Final = (0, 1024)
"""Of a route whose maker named none: IPv4's, and IPv6's (IP6_RT_PRIO_USER)."""


def device_name(vni: int, version: int = 4) -> str:
    """What flanneld calls its vxlan device of that IP version."""
    return f"flannel.{vni}" if version == 4 else f"flannel-v6.{vni}"


@dataclass(frozen=True, slots=True)
class TunnelDevice:
    """A vxlan device of flannel's name, or flannel0, the TUN device of its udp backend."""

    link: Link
    addresses: tuple[IPv4Interface | IPv6Interface, ...]
    port: int = 0
    learning: bool = False


def running(proc: Path = Path("/proc")) -> int | None:
    """The pid of a flanneld in this network namespace; None if there is none.

    A flanneld of another namespace is another host's. One in a container with the host's
    network is seen, if the agent sees the host's processes.
    """
    with suppress(OSError):
        # Each namespace has its own. ns/net would say the same, but not to an agent whose
        # capabilities are fewer than flanneld's (ptrace(2), PTRACE_MODE_READ_FSCREDS).
        here = os.stat(proc / "thread-self/net/dev")
        for each in proc.glob("[0-9]*"):
            with suppress(OSError):  # ended meanwhile
                if PROCESS.fullmatch((each / "comm").read_text().strip()) and os.path.samestat(
                    os.stat(each / "net/dev"), here
                ):
                    return int(each.name)
    return None


def vxlan_tunnel(netlink: Netlink, vni: int, version: int) -> TunnelDevice | None:
    """The device `flannel.<VNI>`, or that of IPv6, if it is a vxlan device with that VNI."""
    link = by_name(netlink.links(), device_name(vni, version))
    if link is None or link.kind != "vxlan":
        return None
    with netlink.doing(f"look at {link.name}"):
        found = links.tunnel(netlink.rtnl, link.ifindex)
    if found.vni != vni:
        return None
    addresses = netlink.addresses if version == 4 else netlink.ipv6_addresses
    return TunnelDevice(link, tuple(addresses(link.ifindex)), found.port, found.learning)


def name_for(netlink: Netlink, link: Link) -> str:
    """What flanneld would call a vxlan device, whatever its name is now. KernelError."""
    with netlink.doing(f"look at {link.name}"):
        found = links.tunnel(netlink.rtnl, link.ifindex)
    return device_name(found.vni, found.local.version)


def stop_learning(netlink: Netlink, tunnel: TunnelDevice) -> None:
    """As ours is; flannel's `Learning` can be changed while the device is up."""
    with netlink.doing(f"stop {tunnel.link.name} learning"):
        links.stop_learning(netlink.rtnl, tunnel.link.ifindex)


def tun(netlink: Netlink) -> TunnelDevice | None:
    """The udp backend's device, which is there only while flanneld runs."""
    link = by_name(netlink.links(), "flannel0")
    if link is None or link.kind != "tun":
        return None
    return TunnelDevice(link, tuple(netlink.addresses(link.ifindex)))


def _leftover_routes(netlink: Netlink, family: Family[A, N], network: N) -> Iterator[tuple[N, int, Route[A]]]:
    """Routes of the main table that flanneld may have made: into the network, protocol boot, no metric.

    Subnet, type (RTN_*), and where it leads to.
    """
    with netlink.doing("list routes"):
        for body in main_routes(netlink.rtnl, family, RTPROT_BOOT):
            if not prefix_length(body):
                continue
            key, route = parse_route(body, family)
            if (
                key.metric in _DEFAULT_METRICS
                and key.subnet != network
                and inside(span(key.subnet), span(network))
            ):
                yield key.subnet, route_type(body), route


def routes(netlink: Netlink, family: Family[A, N], network: N) -> Mapping[N, Route[A]]:
    """Routes of that form to other hosts' subnets, through whichever device."""
    return {
        subnet: replace(route, mtu=0)
        for subnet, kind, route in _leftover_routes(netlink, family, network)
        if kind == UNICAST and int(route.via) and route.ifindex
    }


def remove_blackhole(netlink: Netlink, family: Family[A, N], network: N) -> bool:
    """Take away what `--ip-blackhole-route` has set; True if there was any."""
    found = [subnet for subnet, kind, _ in _leftover_routes(netlink, family, network) if kind == BLACKHOLE]
    with netlink.doing("remove flannel's blackhole route"):
        for subnet in found:
            remove_route(netlink.rtnl, subnet, RTPROT_BOOT, BLACKHOLE)
    return bool(found)


def remove_routes(netlink: Netlink, subnets: Iterable[N]) -> None:
    """Take its routes to these away, where ours have not replaced them."""
    with netlink.doing("remove flannel's routes"):
        for subnet in subnets:
            with suppress_missing():
                remove_route(netlink.rtnl, subnet, RTPROT_BOOT)


def give_route(netlink: Netlink, subnet: N, route: Route[A]) -> None:
    """A route as flanneld makes it; it goes before ours to the same subnet."""
    with netlink.doing(f"route {subnet}"):
        put_route(netlink.rtnl, subnet, route, RTPROT_BOOT)


# --- Rules -----------------------------------------------------------------------


def remove_rules(network: IPv4Network | IPv6Network) -> list[str]:
    """Remove flannel's masquerade and forwarding rules for `network`; their chains' and tables' names.

    Chains of another network stay. nftables in one transaction, legacy iptables one for
    each table. KernelError.
    """
    commands, names = _nft_commands(network)
    if commands:
        run("nft", "-f", "-", text="\n".join(commands) + "\n")
    return names + _remove_legacy(network)


def rules(network: IPv4Network | IPv6Network) -> list[str]:
    """The names of its chains and tables that speak of `network`."""
    legacy = [chain for table, _, chain in CHAINS if _legacy_chain(table, chain, network)]
    return _nft_commands(network)[1] + legacy


def _speaks_of(text: str, network: IPv4Network | IPv6Network) -> bool:
    return re.search(rf"(?<![\da-f.:]){re.escape(str(network))}(?!\d)", text) is not None


def _nft_commands(network: IPv4Network | IPv6Network) -> tuple[list[str], list[str]]:
    """Nft's commands that remove the rules, and what they remove.

    iptables-nft's chains are nftables' own, and need no iptables to be seen or removed.
    """
    commands: list[str] = []
    names: list[str] = []
    ip, own = TABLES[network.version]
    there = run("nft", "list", "chains", ip)
    if f"table {ip} {own} " in there and _speaks_of(run("nft", "list", "table", ip, own), network):
        commands.append(f"delete table {ip} {own}")
        names.append(f"table {own}")
        commands += _empty_sibling(network.version)
    for table, base, chain in CHAINS:
        if f"chain {chain} " not in there:
            continue
        if not _speaks_of(run("nft", "list", "chain", ip, table, chain, check=False), network):
            continue
        listing = run("nft", "-a", "list", "chain", ip, table, base, check=False)
        handles = re.findall(rf"jump {chain} .*# handle (\d+)", listing)
        commands += [f"delete rule {ip} {table} {base} handle {handle}" for handle in handles]
        commands += [f"flush chain {ip} {table} {chain}", f"delete chain {ip} {table} {chain}"]
        names.append(f"chain {chain}" if ip == "ip" else f"chain {chain} (IPv6)")
    return commands, names


def _empty_sibling(version: int) -> list[str]:
    """The command that removes the other family's table, which comes along with the first, empty."""
    ip, table = TABLES[10 - version]
    empty = "chain" not in run("nft", "list", "table", ip, table, check=False)
    there = succeeds("nft", "list", "table", ip, table)
    return [f"delete table {ip} {table}"] if there and empty else []


def _legacy(network: IPv4Network | IPv6Network) -> str:
    """The command of legacy iptables for that network."""
    return f"{iptables.command(network.version)}-legacy"


def _legacy_chain(table: str, chain: str, network: IPv4Network | IPv6Network) -> bool:
    """Whether legacy iptables has the chain; asked only where it is in use, for asking makes its tables."""
    if not iptables.legacy_in_use(table, version=network.version) or not find(_legacy(network)):
        return False
    return _speaks_of(run(_legacy(network), "-w", "-t", table, "-S", chain, check=False), network)


def _remove_legacy(network: IPv4Network | IPv6Network) -> list[str]:
    names, tool = [], _legacy(network)
    for table, base, chain in CHAINS:
        if not _legacy_chain(table, chain, network):
            continue
        present = run(tool, "-w", "-t", table, "-S", base).splitlines()
        jumps = [line.replace("-A ", "-D ", 1) for line in present if line.endswith(f"-j {chain}")]
        text = "\n".join([f"*{table}", *jumps, f"-F {chain}", f"-X {chain}", "COMMIT", ""])
        run(f"{tool}-restore", "-w", "--noflush", text=text)
        names.append(f"chain {chain} (legacy {iptables.command(network.version)})")
    return names
