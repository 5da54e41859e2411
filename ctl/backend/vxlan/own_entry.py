"""What the programs know of their own node: the one entry of the map `node`."""

from __future__ import annotations

import secrets
from typing import Generic

from ctl.backend.site import Site
from ctl.backend.vxlan.device import published_mac
from ctl.core.abi import (
    NO_MAC,
    NODE_F_NO_ETHERNET,
    NODE_F_OTHERS_BEHIND,
    NODE_F_PEERS_INCOMPLETE,
    NODE_F_XDP,
    NodeEntry,
)
from ctl.core.family import Family
from ctl.core.host import Link
from ctl.core.model import A, Bypass, N
from ctl.kernel import sysctl
from ctl.kernel.bpf.maps import Maps
from ctl.settings.config import Settings


class OwnEntry(Generic[A, N]):
    """Writes the entry of one family where it differs. One thread's."""

    def __init__(self, settings: Settings, family: Family[A, N]) -> None:
        self._settings, self._family = settings, family
        self._seed = 0
        """The flow_seed of maps that are gone, with which packets on their way are signed; 0: of none."""

    def keep_seed(self, seed: int) -> None:
        """Maps that this one was read from are given up; new ones go on with it. 0: it is not known."""
        self._seed = seed or self._seed

    def write(
        self,
        opened: Maps[A],
        site: Site,
        device: int,
        *,
        fits: bool,
        filled: bool,
        xdp: bool,
        first: bool,
        marks: int,
    ) -> None:
        """Say what is true of the node now. KernelError.

        `device`: ifindex of the vxlan device, 0 if it is not made yet. `fits`: the maps have room for all
        peers, so that whoever is not in them is none. That is said of maps that this process has
        `filled`; of those that it has adopted, if it was said before: what they lacked then they lack
        still. `xdp`: XDP is what packets of the uplink meet first; `first`: from_wire is before programs
        of others there. `marks`: bits of a packet's mark by which rules may
        lead it elsewhere.
        """
        family, network, uplink = self._family, site.network, site.uplink.link
        space, own, before = family.space(network), family.member(site.lease), opened.node()
        assert space is not None and own is not None, f"network or lease without {family}"
        complete = fits and (filled or (before is not None and not before.flags & NODE_F_PEERS_INCOMPLETE))
        entry = NodeEntry(
            host=family.source(site.uplink, site.lease),
            network=space.network,
            subnet=own.subnet,
            pool=space.pool,
            vni=network.vni,
            uplink_ifindex=uplink.ifindex,
            mtu=site.mtu,
            vtep_mac=published_mac(site, family),
            port=network.port,
            source_ports=sysctl.source_ports(),
            bypass=self._settings.bypass,
            approval_ttl_ns=int(self._settings.approval_ttl * 1e9),
            flow_seed=before.flow_seed if before else self._seed or secrets.randbits(64) | 1,
            flags=(0 if complete else NODE_F_PEERS_INCOMPLETE)
            | (NODE_F_XDP if xdp else 0)
            | (0 if uplink.has_ethernet else NODE_F_NO_ETHERNET)
            | (NODE_F_OTHERS_BEHIND if first else 0),
            uplink_mac=uplink.mac or NO_MAC,
            routing_marks=marks,
            tunnel_ifindex=self._tunnel(uplink, device),
            overlay_ifindex=device,
        )
        if entry != before:
            opened.write_node(entry)

    def _tunnel(self, uplink: Link, device: int) -> int:
        """The device that the tunnel gear is in place of; 0: none, then it is off.

        What comes without an Ethernet header the device takes, as it sends what leaves so.
        """
        return device if self._settings.bypass is not Bypass.OFF and uplink.has_ethernet else 0
