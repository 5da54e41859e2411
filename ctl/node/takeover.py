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
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from typing import Final

from ctl.backend.programless import remove_tunnels
from ctl.backend.vxlan.device import device_name
from ctl.core.errors import AgentError, ConfigError
from ctl.core.host import OWNER, Route, RouteKey, Uplink
from ctl.core.model import MacAddress, Network
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
class Leftovers:
    """What flanneld left of the network that we are to serve."""

    tunnel: flannel.TunnelDevice | None
    routes: Mapping[IPv4Network, Route]
    """Through the tunnel, and over the uplink where the network's backend has such."""
    rules: tuple[str, ...]
    bridges: tuple[tuple[str, IPv4Interface], ...]
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

    def subnet(self, network: Network, bridge: str) -> IPv4Network | None:
        """The subnet that the host's containers have: by the tunnel's address, or by that of `bridge`."""
        found = [address.ip for address in self.tunnel.addresses] if self.tunnel else []
        found += [address.ip for name, address in self.bridges if name == bridge]
        return IPv4Network((found[0], network.subnet_len), strict=False) if found else None


def refusal(
    left: Leftovers, network: Network, pid: int | None, bridge: str
) -> AgentError | ConfigError | None:
    """Why these leftovers must not be taken over now, in one line with a remedy; None if they may.

    ConfigError where a setting is the remedy.
    """
    if left.tunnel:
        for address in left.tunnel.addresses:
            if address.ip not in network.network:
                return AgentError(
                    f"{left.tunnel.link.name} has VNI {network.vni} on port {network.port}, and its address "
                    f"{address.ip} is not in {network.network}: another flannel network has it; remove it, "
                    "or choose another VNI"
                )
    if pid is not None:
        return AgentError(f"flanneld (pid {pid}) runs on this host ({left.names}): {STOP_IT}")
    subnet = left.subnet(network, bridge)
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
        self.mac: MacAddress | None = read_mac(settings.state_dir)
        """The VTEP's, which flanneld has published and we go on with; None: choose one."""

    def look(self, network: Network, uplink: Uplink) -> None:
        """Find what there is. AgentError or ConfigError if it must not be taken over; nothing is changed."""
        left = find(self._netlink, network, uplink)
        if not left.names:
            return
        if why := refusal(left, network, flannel.running(), self._settings.bridge):
            raise why
        log.info("taking over from flanneld: %s", left.names)
        self._done = False
        self.subnet = left.subnet(network, self._settings.bridge)
        if left.tunnel and network.backend == "vxlan":
            self.mac = left.tunnel.link.mac

    def take_devices(self, network: Network, uplink: Uplink) -> None:
        """Once: routes and tunnel device become ours, and there is a way all the time. KernelError."""
        if self._done:
            return
        if (pid := flannel.running()) is not None:
            raise AgentError(f"flanneld (pid {pid}) was started meanwhile: {STOP_IT}")
        left = find(self._netlink, network, uplink)
        self._take_routes(left.routes)
        flannel.remove_blackhole(self._netlink, network.network)
        if left.tunnel and self.mac and network.backend == "vxlan":
            self._take_tunnel(left.tunnel, device_name(network), self.mac)
        log.info("took over %s", left.carrying or "no device and no routes")
        self._done = True

    def _take_routes(self, routes: Mapping[IPv4Network, Route]) -> None:
        """Ours first, then away with flannel's."""
        puts = tuple((RouteKey.of(subnet), route) for subnet, route in routes.items())
        Routes(self._netlink.rtnl).apply(Delta(puts=puts))
        flannel.remove_routes(self._netlink, routes)

    def _take_tunnel(self, tunnel: flannel.TunnelDevice, name: str, mac: MacAddress) -> None:
        write_mac(self._settings.state_dir, mac)
        if tunnel.learning:
            flannel.stop_learning(self._netlink, tunnel)
        rename(self._netlink, tunnel.link, name, ours=True)

    def remove_rules(self, network: Network) -> tuple[str, ...]:
        """Flannel's rules go, now that ours are there; a line if a flanneld would bring them back."""
        if not flannel.rules(network.network):
            return ()
        if (pid := flannel.running()) is not None:
            return (f"flanneld (pid {pid}) runs beside this agent on the same network: stop one of them",)
        for name in flannel.remove_rules(network.network):
            log.info("removed flannel's %s", name)
        return ()


def find(netlink: Netlink, network: Network, uplink: Uplink) -> Leftovers:
    """What is left of flanneld's for this network."""
    tunnel = _tunnel(netlink, network)
    through = {tunnel.link.ifindex} if tunnel else set()
    if network.backend == "host-gw" or network.direct_routing:
        through.add(uplink.link.ifindex)
    routes = {
        subnet: route
        for subnet, route in flannel.routes(netlink, network.network).items()
        if route.ifindex in through and subnet.prefixlen == network.subnet_len
    }
    bridges = tuple(
        (link.name, address)
        for link in netlink.links().values()
        if link.kind == "bridge"
        for address in netlink.addresses(link.ifindex)
        if address.ip in network.network
    )
    return Leftovers(tunnel, routes, tuple(flannel.rules(network.network)), bridges)


def _tunnel(netlink: Netlink, network: Network) -> flannel.TunnelDevice | None:
    if network.backend == "vxlan":
        found = flannel.vxlan_tunnel(netlink, network.vni)
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
            name = flannel.device_name(flannel.vni_of(netlink, link))
            rename(netlink, link, name, ours=False)
            done.append(f"{link.name} is {name} now")
    table = Routes(netlink.rtnl)
    routes = table.read()
    for key, route in routes.items():
        if int(route.via):
            flannel.give_route(netlink, key.subnet, route)
    table.apply(Delta(removals=tuple(routes)))
    return [*done, f"{len(routes)} routes are flannel's now"] if routes else done


# --- The VTEP's MAC, while the device lives ----------------------------------------


def read_mac(state_dir: Path) -> MacAddress | None:
    """The MAC that an earlier agent took over; None if it took none."""
    try:
        mac = MacAddress.parse((state_dir / statedir.VTEP_MAC).read_text().strip())
    except (OSError, ValueError):
        return None
    return mac if mac.is_unicast else None


def write_mac(state_dir: Path, mac: MacAddress) -> None:
    """Note it where it lives as long as the device does: until teardown or reboot."""
    path = state_dir / statedir.VTEP_MAC
    try:
        statedir.write_atomically(path, f"{mac}\n")
    except OSError as error:
        raise AgentError(f"cannot write {path}: {error.strerror}") from error
