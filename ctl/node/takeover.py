"""Taking a host over from flanneld, and giving it back, while containers talk.

flanneld leaves its datapath behind when it stops, and that datapath works. So it is adopted
as it stands, in steps each of which leaves it working; nothing is removed before its
replacement is there:

    routes     ours are set, then flannel's go
    device     is renamed: neighbours, FDB and address stay, and so does the VTEP's MAC, so
               that no peer has anything to learn
    the rest   what no lease asks for goes with the ordinary reconcile
    rules      removed once ours are in place

A second vxlan device with the same VNI and port cannot exist beside the first one, and
to delete and create costs some 30 ms of everybody's packets. A new MAC would cost what
lies between our change and each peer's.

After the renaming a flanneld that is started by mistake finds VNI and port taken by a
device of another name, and ends with an error.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from pathlib import Path
from typing import Any, Final, Generic

from ctl.backend.programless import remove_tunnels
from ctl.backend.vxlan.device import device_name
from ctl.core.errors import AgentError, ConfigError
from ctl.core.family import IPV4, IPV6, Family, Space
from ctl.core.host import OWNER, Route, RouteKey, Uplink
from ctl.core.model import A, MacAddress, N, Network
from ctl.core.plan import Delta
from ctl.kernel import flannel
from ctl.kernel.netlink import headroom
from ctl.kernel.netlink.rename import rename
from ctl.kernel.netlink.session import Netlink
from ctl.kernel.netlink.tables import Routes
from ctl.process import statedir
from ctl.settings.config import Settings

log = logging.getLogger(__name__)

STOP_IT: Final = "stop it first (systemctl disable --now flanneld)"


@dataclass(frozen=True, slots=True)
class Leftovers(Generic[A, N]):
    """What flanneld left of the network that we are to serve, of one family."""

    space: Space[N]
    tunnel: flannel.TunnelDevice | None
    routes: Mapping[N, Route[A]]
    """Through the tunnel, and over the uplink where the network's backend has such."""
    rules: tuple[str, ...]
    bridges: tuple[tuple[str, IPv4Interface | IPv6Interface], ...]
    """Bridges with an address of the network."""

    @property
    def carrying(self) -> str:
        """What carries packets, for people."""
        found = [self.tunnel.link.name] if self.tunnel else []
        if count := len(self.routes):
            found.append(f"{count} route{'s' if count > 1 else ''}")
        return ", ".join(found)

    @property
    def names(self) -> str:
        """All of it, for people; empty if there is nothing."""
        return ", ".join((*((self.carrying,) if self.carrying else ()), *self.rules))

    def subnet(self, bridge: str) -> N | None:
        """The subnet that the host's containers have: by the tunnel's address, or by that of `bridge`."""
        found = [address.ip for address in self.tunnel.addresses] if self.tunnel else []
        found += [address.ip for name, address in self.bridges if name == bridge]
        kind = type(self.space.network)
        return kind((found[0], self.space.subnet_len), strict=False) if found else None


def refusal(
    left: Leftovers[Any, Any], network: Network, pid: int | None, bridge: str
) -> AgentError | ConfigError | None:
    """Why these leftovers must not be taken over now, in one line with a remedy; None if they may.

    ConfigError where a setting is the remedy.
    """
    if left.tunnel:
        for address in left.tunnel.addresses:
            if address.ip not in left.space.network:
                return AgentError(
                    f"{left.tunnel.link.name} has VNI {network.vni} on port {network.port}, and its address "
                    f"{address.ip} is not in {left.space.network}: another flannel network has it; remove "
                    "it, or choose another VNI"
                )
    if pid is not None:
        return AgentError(f"flanneld (pid {pid}) runs on this host ({left.names}): {STOP_IT}")
    subnet = left.subnet(bridge)
    for name, address in left.bridges:
        if subnet and address.network == subnet and name != bridge:
            return ConfigError(
                f"bridge {name} has the containers' gateway {address}: run with --bridge={name}"
            )
    return None


class Takeover:
    """What an agent found of flanneld's when it started, until all of it is taken over."""

    def __init__(self, settings: Settings, netlink: Netlink) -> None:
        self._settings, self._netlink = settings, netlink
        self._done = True
        """Whether nothing is left to take."""
        self.subnet: IPv4Network | None = None
        """The subnet that flanneld had; None: there are no leftovers, or they do not tell."""
        self.ipv6_subnet: IPv6Network | None = None
        """The same of IPv6."""
        self.macs: dict[int, MacAddress] = read_macs(settings.state_dir)
        """The VTEPs', which flanneld has published and we go on with, by IP version; none: choose one."""

    def look(self, network: Network, uplink: Uplink) -> None:
        """Find what there is. AgentError or ConfigError if it must not be taken over; nothing is changed."""
        self.subnet = self._look(IPV4, network, uplink)
        if network.ipv6 is not None:
            self.ipv6_subnet = self._look(IPV6, network, uplink)

    def _look(self, family: Family[A, N], network: Network, uplink: Uplink) -> N | None:
        left = find(self._netlink, family, network, uplink)
        if not left.names:
            return None
        if why := refusal(left, network, flannel.running(), self._settings.bridge):
            raise why
        log.info("taking over from flanneld: %s", left.names)
        self._done = False
        if left.tunnel and left.tunnel.link.mac and network.backend == "vxlan":
            self.macs[family.version] = left.tunnel.link.mac
        return left.subnet(self._settings.bridge)

    def take_devices(self, network: Network, uplink: Uplink) -> None:
        """Once: routes and tunnel device become ours, and there is a way all the time. KernelError."""
        if self._done:
            return
        if (pid := flannel.running()) is not None:
            raise AgentError(f"flanneld (pid {pid}) was started meanwhile: {STOP_IT}")
        self._take(IPV4, network, uplink)
        if network.ipv6 is not None:
            self._take(IPV6, network, uplink)
        self._done = True

    def _take(self, family: Family[A, N], network: Network, uplink: Uplink) -> None:
        left = find(self._netlink, family, network, uplink)
        self._take_routes(family, left.routes)
        flannel.remove_blackhole(self._netlink, family, left.space.network)
        if left.tunnel and family.version in self.macs and network.backend == "vxlan":
            self._take_tunnel(left.tunnel, device_name(network, family.version))
        log.info("took over %s", left.carrying or f"no device and no routes of {family}")

    def _take_routes(self, family: Family[A, N], routes: Mapping[N, Route[A]]) -> None:
        """Ours first, then away with flannel's."""
        puts = tuple((RouteKey.of(subnet), route) for subnet, route in routes.items())
        Routes(self._netlink.rtnl, family).apply(Delta(puts=puts))
        flannel.remove_routes(self._netlink, routes)

    def _take_tunnel(self, tunnel: flannel.TunnelDevice, name: str) -> None:
        write_macs(self._settings.state_dir, self.macs)
        if tunnel.learning:
            flannel.stop_learning(self._netlink, tunnel)
        rename(self._netlink, tunnel.link, name, ours=True)

    def remove_rules(self, network: Network) -> tuple[str, ...]:
        """Flannel's rules go, now that ours are there; a line if a flanneld would bring them back."""
        spaces: list[IPv4Network | IPv6Network] = [network.network]
        spaces += [network.ipv6.network] if network.ipv6 else []
        left = [space for space in spaces if flannel.rules(space)]
        if left and (pid := flannel.running()) is not None:
            return (f"flanneld (pid {pid}) runs beside this agent on the same network: stop one of them",)
        for space in left:
            for name in flannel.remove_rules(space):
                log.info("removed flannel's %s", name)
        return ()


def find(netlink: Netlink, family: Family[A, N], network: Network, uplink: Uplink) -> Leftovers[A, N]:
    """What is left of flanneld's for this network, which has that family."""
    space = family.space(network)
    assert space is not None, f"the network has no {family}"
    tunnel = _tunnel(netlink, network, family.version)
    through = {tunnel.link.ifindex} if tunnel else set()
    if network.backend == "host-gw" or network.direct_routing:
        through.add(uplink.link.ifindex)
    routes = {
        subnet: route
        for subnet, route in flannel.routes(netlink, family, space.network).items()
        if route.ifindex in through and subnet.prefixlen == space.subnet_len
    }
    addresses = netlink.addresses if family.version == 4 else netlink.ipv6_addresses
    bridges = tuple(
        (link.name, address)
        for link in netlink.links().values()
        if link.kind == "bridge"
        for address in addresses(link.ifindex)
        if address.ip in space.network
    )
    return Leftovers(space, tunnel, routes, tuple(flannel.rules(space.network)), bridges)


def _tunnel(netlink: Netlink, network: Network, version: int) -> flannel.TunnelDevice | None:
    if network.backend == "vxlan":
        found = flannel.vxlan_tunnel(netlink, network.vni, version)
        # On another port it is of another network, and not in our way.
        return found if found and found.port == network.port else None
    return flannel.tun(netlink) if network.backend == "udp" else None


def hand_over(settings: Settings, netlink: Netlink) -> list[str]:
    """Make tunnel device and routes what flanneld would have made; what was done, a line each. KernelError.

    Packets flow on meanwhile. flanneld then adopts the device with its MAC, and its lease by
    the host's address. A forwarder of the udp backend ends: flanneld needs its port.
    """
    links = netlink.links().values()
    ours = [link for link in links if link.kind == "vxlan" and link.alias == OWNER]
    kept = {link.name for link in ours} - {headroom.DEVICE}
    done = [f"tunnel {name}" for name in remove_tunnels(netlink, links, settings.state_dir, kept)]
    for link in ours:
        if link.name in kept:
            name = flannel.name_for(netlink, link)
            rename(netlink, link, name, ours=False)
            done.append(f"{link.name} is {name} now")
    given = _give_routes(netlink, IPV4) + _give_routes(netlink, IPV6)
    return [*done, f"{given} routes are flannel's now"] if given else done


def _give_routes(netlink: Netlink, family: Family[A, N]) -> int:
    """How many there were."""
    table = Routes(netlink.rtnl, family)
    routes = table.read()
    for key, route in routes.items():
        if int(route.via):
            flannel.give_route(netlink, key.subnet, route)
    table.apply(Delta(removals=tuple(routes)))
    return len(routes)


# --- The VTEPs' MACs, while the devices live ---------------------------------------


def read_macs(state_dir: Path) -> dict[int, MacAddress]:
    """The MACs that an earlier agent took over, by IP version: a line each, IPv4's first; empty: none."""
    try:
        lines = enumerate((state_dir / statedir.VTEP_MAC).read_text().splitlines()[:2])
        found = {(4, 6)[place]: MacAddress.parse(line.strip()) for place, line in lines if line}
    except (OSError, ValueError):
        return {}
    return {version: mac for version, mac in found.items() if mac.is_unicast}


def write_macs(state_dir: Path, macs: Mapping[int, MacAddress]) -> None:
    """Note them where they live as long as the devices do: until teardown or reboot."""
    path = state_dir / statedir.VTEP_MAC
    lines = [str(macs.get(4, "")), *([str(macs[6])] if 6 in macs else [])]
    try:
        statedir.write_atomically(path, "\n".join(lines) + "\n")
    except OSError as error:
        raise AgentError(f"cannot write {path}: {error.strerror}") from error
