"""The bridge of the containers: made, or adopted, and kept as containers need it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from ipaddress import IPv4Interface, IPv6Interface
from typing import Final

from ctl.backend.told import told
from ctl.core import bridge
from ctl.core.errors import ConfigError, KernelError
from ctl.core.family import IPV6
from ctl.core.findings import Concern, Findings
from ctl.core.host import OWNER, BridgeDevice, Devices, Link
from ctl.core.model import Lease, MacAddress
from ctl.kernel import sysctl
from ctl.kernel.netlink.session import Netlink, by_name, names
from ctl.node import forwarding
from ctl.process import statedir
from ctl.settings.config import Settings


class ContainerBridge:
    """The interface `--bridge`. One thread's, like its Netlink."""

    def __init__(self, settings: Settings, netlink: Netlink, findings: Findings) -> None:
        self.ifindex = 0
        """0: it is not made yet."""
        self.adopted = False
        """Whether it is somebody else's, as it was found last."""
        self._plugged: int | None = None
        """How many ports one that is somebody else's had then; None: it is ours."""
        self._settings, self._name = settings, settings.bridge
        self._saved: Final = settings.state_dir / statedir.SYSCTLS
        self._netlink, self._findings = netlink, findings
        self._wrong = ""
        """What is wrong with one that is not ours; empty if nothing is."""

    def check(self, uplink: Link) -> None:
        """ConfigError if the interface of its name cannot be the containers'. KernelError."""
        if why := bridge.why_not(self._name, uplink, self._netlink.links()):
            raise ConfigError(why)

    def ensure(self, lease: Lease, mtu: int, links: dict[int, Link], *, lowers: bool) -> None:
        """Have it carry our address. KernelError. `lowers`: the overlay has a smaller MTU than the uplink."""
        wanted, found = device(self._settings, lease, mtu), by_name(links, self._name)
        self.adopted = found is not None and found.alias != OWNER
        self._plugged = len(bridge.ports(found.ifindex, links)) if found and self.adopted else None
        self.ifindex, self._wrong = self._netlink.ensure_bridge(wanted, links, self._plugged)
        self._note_lowered(mtu, links if lowers else {})
        if found:
            self._guard_mac(found, wanted.mac)

    def ensure_ipv6(self, lease: Lease, mtu: int) -> None:
        """Have the one that `ensure` has made or found carry our IPv6 address, too. KernelError."""
        settings = {sysctl.disable_ipv6(self._name): "0"}
        # Containers are no routers to us.
        own = {} if self.adopted else {sysctl.accept_ra(self._name): "0"}
        sysctl.ensure(settings | own, self._saved)
        wanted = device(self._settings, lease, mtu)
        wrong = self._netlink.ensure_ipv6_on_bridge(self.ifindex, wanted, self._plugged)
        self._wrong = self._wrong or wrong

    def ensure_forwarding(self, devices: Devices) -> None:
        """Of our devices; of others' that do not it is said. What keeps the node from being ready, too."""
        ours = [*names({devices.tunnel}), *([] if self.adopted else [self._name])]
        forwarding.ensure(ours, self._saved)
        told(self._findings, Concern.FORWARDING, *forwarding.lacking(names({devices.uplink, *devices.hops})))
        silent = forwarding.lacking([self._name] if self.adopted else [])
        self._findings.problems[Concern.BRIDGE] = (self._wrong,) if self._wrong else silent

    def _guard_mac(self, found: Link, chosen: MacAddress) -> None:
        """Whoever gives the bridge another MAC takes the containers' gateway away.

        Ours gets back the one that was chosen for it, and containers are told, for some may know
        the other one by now. Of a bridge that is not ours they are told by the kernel, at once.
        """
        notify = sysctl.arp_notify(found.name)
        if self.adopted:
            with suppress(KernelError):  # where /proc/sys is read-only they find out by themselves
                sysctl.ensure({notify: "1"}, self._saved)
        elif found.mac != chosen:
            with sysctl.meanwhile(notify, "1"):
                self._netlink.put_back_mac(found, chosen)

    def _note_lowered(self, mtu: int, links: Mapping[int, Link]) -> None:
        """Say what else is on an adopted bridge, and has to do with the MTU that we give it."""
        found = links.get(self.ifindex)
        told(self._findings, Concern.BRIDGE_MTU, bridge.lowered(found, mtu, links) if found else "")


def device(settings: Settings, lease: Lease, mtu: int) -> BridgeDevice:
    """The bridge as a node with this lease needs it. `mtu`: of containers, bytes."""
    own = IPV6.member(lease)
    return BridgeDevice(
        name=settings.bridge,
        # Docker's rule for MACs, so that a restart keeps the gateway's.
        mac=MacAddress(b"\x02\x42" + lease.gateway.packed),
        mtu=mtu,
        address=IPv4Interface((lease.gateway, lease.subnet.prefixlen)),
        ipv6=IPv6Interface((own.gateway, own.subnet.prefixlen)) if own else None,
        by_cni=settings.cni_conf is not None,
    )
