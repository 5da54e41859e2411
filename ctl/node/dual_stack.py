"""What a node has of IPv6 beside IPv4, where its network and its lease have it. One thread's."""

from __future__ import annotations

import time
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from typing import Final

from ctl.backend.protocol import Backend
from ctl.backend.site import Site
from ctl.core.candidates import UplinkChoice
from ctl.core.errors import AgentError, KernelError
from ctl.core.family import IPV6
from ctl.core.host import Link, Uplink
from ctl.core.model import Network
from ctl.core.uplink_ipv6 import is_settling, own_ipv6
from ctl.kernel import firewall, sysctl
from ctl.kernel.netlink.session import Netlink
from ctl.node import forwarding
from ctl.node.bridge import ContainerBridge
from ctl.node.teardown import clear_ipv6
from ctl.settings.config import Settings

SETTLING_S: Final = 5.0
"""How long a start waits for an address that is tentative; the kernel asks for a second, by default."""
SETTLING_POLL_S: Final = 0.1


class DualStack:
    """Settings, devices, addresses and rules of IPv6."""

    def __init__(self, settings: Settings, netlink: Netlink, bridge: ContainerBridge) -> None:
        self._settings, self._netlink, self._bridge = settings, netlink, bridge
        self._asked = settings.public_ipv6 or UplinkChoice(settings.iface).ipv6
        """The address that is to be ours; None: whichever can be."""
        self._stored: IPv6Address | None = None
        """The one that the store has for us; None: it has none."""
        self.address: IPv6Address | None = None
        """Ours on the underlay; None: not looked for, or the network has no IPv6."""
        self._rules: firewall.Firewall | None = None
        """None: there are none of ours, or only those of an earlier life."""
        self._clean = False
        """Whether nothing is left of IPv6, which an earlier life may have had."""

    @property
    def unseen(self) -> tuple[str, ...]:
        """Others' rules that we could not look at, a line each."""
        return self._rules.unseen if self._rules else ()

    def stand_at(self, address: IPv6Address | None) -> None:
        """Have this one, which the store has for us, whatever the settings say; None: what they say."""
        self._stored, self._asked = address, address or self._asked

    def find_address(self, network: Network, uplink: Uplink) -> None:
        """Look which of the uplink's is ours. AgentError if none can be."""
        if network.ipv6 is None:
            return
        link, found = uplink.link, self._netlink.uplink_ipv6(uplink.link.ifindex)
        disabled = sysctl.read(sysctl.disable_ipv6(link.name)) == "1"
        try:
            self.address = own_ipv6(found, link.name, self._asked, self.address, disabled=disabled)
        except AgentError as error:
            if self._stored is None:
                raise
            raise AgentError(f"the store has {self._stored} for this node, and {error}") from error

    def await_address(self, network: Network, uplink: Uplink) -> None:
        """As `find_address`; waits where a host that boots is still asking whether its address is its own."""
        deadline = time.monotonic() + SETTLING_S
        while network.ipv6 is not None and time.monotonic() < deadline:
            if not is_settling(self._netlink.uplink_ipv6(uplink.link.ifindex), self._asked):
                break
            time.sleep(SETTLING_POLL_S)
        self.find_address(network, uplink)

    def follow_address(self, network: Network, uplink: Uplink) -> str:
        """Look again; one line if there is none now: then it is as it was, for IPv4 goes on."""
        try:
            self.find_address(network, uplink)
        except AgentError as error:
            return str(error)
        return ""

    def preflight(self, network: Network, tunnel: firewall.Tunnel | None) -> None:
        """Refuse what this kernel cannot. KernelError. `tunnel`: that of IPv4."""
        if network.ipv6 is None:
            return
        if not sysctl.has_ipv6():
            raise KernelError(
                "this kernel has no IPv6, which the network has: boot it without ipv6.disable=1,"
                " or set EnableIPv6 to false"
            )
        sysctl.check(sysctl.IPV6_FORWARDING)
        like = tunnel and replace(tunnel, host=IPv6Address(0))  # ours is not known yet
        masquerade, bridge = self._settings.ip_masq, self._settings.bridge
        firewall.check(network.ipv6.network, tunnel=like, masquerade=masquerade, bridge=bridge)

    def ensure(self, site: Site, backend: Backend, links: dict[int, Link]) -> None:
        """Forwarding, devices, addresses; without IPv6, what an earlier life had goes. KernelError."""
        if not site.has_ipv6:
            if not self._clean:
                clear_ipv6(self._netlink, links)
                self._clean, self._rules = True, None
            return
        self._clean = False
        forwarding.ensure_ipv6(self._netlink, site.uplink.link.name, site.sysctls)
        backend.ensure_ipv6_device(site, links)
        self._bridge.ensure_ipv6(site.lease, site.mtu)

    def ensure_rules(self, site: Site, backend: Backend) -> bool:
        """Whether something had to be changed. KernelError."""
        own, space = IPV6.member(site.lease), IPV6.space(site.network)
        if not site.has_ipv6 or own is None or space is None:
            return False
        self._rules = self._rules or firewall.Firewall(IPV6.version)
        return self._rules.ensure(
            space.network,
            own.subnet,
            tunnel=backend.ipv6_tunnel(site),
            masquerade=self._settings.ip_masq,
            bridge=self._settings.bridge,
        )


def networks(site: Site) -> list[IPv4Network | IPv6Network]:
    """Those of the containers, of each family that the node has."""
    ipv6 = site.network.ipv6
    return [site.network.network, *([ipv6.network] if ipv6 and site.has_ipv6 else [])]
