"""The vxlan backend's datapath in one family: the device, the ways to peers and containers, and eBPF over it.

A node has one for IPv4, and where it has IPv6 one for that. What hangs at the hooks is for both: the
programs for IPv4, which hand IPv6 on (ctl.backend.vxlan.beside).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final, Generic

from ctl.backend.site import Site
from ctl.backend.vxlan import losses
from ctl.backend.vxlan.device import device_name, wanted_device
from ctl.backend.vxlan.endpoints import Endpoints
from ctl.backend.vxlan.own_entry import OwnEntry
from ctl.backend.vxlan.peering import Peering, Shortcut
from ctl.backend.vxlan.silent import SilentPeers
from ctl.core.family import Family
from ctl.core.findings import Findings
from ctl.core.host import Change, Link, Uplink
from ctl.core.losing import Way
from ctl.core.model import A, HookMode, Lease, N, Network
from ctl.kernel import firewall
from ctl.kernel.bpf import bpffs, loader, maps
from ctl.kernel.bpf.child import Bcc
from ctl.kernel.bpf.source import XDP
from ctl.kernel.netlink.session import Netlink
from ctl.settings.config import Settings

log = logging.getLogger(__name__)


class Datapath(Generic[A, N]):
    """All that a node has of one family. One thread's, but for `peering.wants`."""

    def __init__(
        self, settings: Settings, netlink: Netlink, family: Family[A, N], findings: Findings
    ) -> None:
        self.device = 0
        """ifindex of the vxlan device; 0: not made yet."""
        self.maps: maps.Maps[A] | None = None
        """The maps that are open; None: there are none (yet)."""
        self.programs: loader.Programs | None = None
        """The programs that are loaded; None: none are."""
        self.root: Final = maps.family_root(settings.bpffs, family)
        """Where they are pinned."""
        self.peering: Final = Peering(netlink.rtnl, family, findings, settings.peers_max)
        self._settings, self._netlink, self._family, self._findings = settings, netlink, family, findings
        self._endpoints = Endpoints(settings, netlink, family, findings)
        self._own = OwnEntry(settings, family)
        self._losses = losses.Losses(netlink, settings.resync_interval)
        self._silent = SilentPeers(self.peering, settings.resync_interval)
        self._ahead: Bcc | None = None
        """The compiler's child, at work since `compile_ahead`; None: nothing to compile, or it was used."""

    def close(self) -> None:
        """Let go of maps and programs, which stay as long as they are pinned or run."""
        self.peering.close()
        self._silent.close()
        if self._ahead is not None:
            self._ahead.close()
        if self.programs is not None:
            self.programs.close()
        if self.maps is not None:
            self.maps.close()
        self._ahead = self.programs = self.maps = None

    def tunnel(self, network: Network, uplink: Uplink, own: A) -> firewall.Tunnel:
        """VXLAN is taken of peers, from the uplink and for our `own` address only."""
        name = device_name(network, self._family.version)
        return firewall.Tunnel(network.port, network.vni, uplink.link.name, own, name, self.peering.senders())

    def ensure_device(self, site: Site, links: dict[int, Link]) -> None:
        """The vxlan device. KernelError."""
        self.device = self._netlink.ensure_vxlan(wanted_device(site, self._family), links)

    # --- Maps and programs -------------------------------------------------------

    def compile_ahead(self) -> None:
        """Start to compile, if there is anything to compile."""
        self._ahead = loader.compile_ahead(self.root, self._family.version)

    def open_maps(self) -> bool:
        """Adopt the maps, make them, or pin them again. KernelError.

        True if pins that did not fit were removed: running programs keep those maps until new ones take
        their place.
        """
        settings, root = self._settings, self.root
        if self.maps is not None:
            if self.maps.repin(root):
                log.warning("pins of maps under %s were gone: pinned again", root)
            return False
        bpffs.ensure(str(root))
        version = self._family.version
        wanted = maps.specs(settings.peers_max, settings.endpoints_max, settings.flows_max, version)
        why = maps.mismatch(root, wanted)
        if why:
            log.warning("pinned maps do not fit (%s): making new ones", why)
            self._own.keep_seed(maps.pinned_seed(root, version))
            maps.unpin_all(root)
        self.maps = maps.create_or_adopt(root, wanted, self._family)
        return bool(why)

    def load_programs(self) -> None:
        """Adopt, or make, the programs on the open maps, or pin them again. KernelError."""
        assert self.maps is not None, "open_maps() comes first"
        if self.programs is not None:
            if self.programs.repin(self.root):
                log.warning("pins of programs under %s were gone: pinned again", self.root)
            return
        ahead, self._ahead = self._ahead, None
        self.programs = loader.load(self.maps, self.root, ahead)
        log.info("datapath %s of %s loaded", self.programs.digest, self._family)

    def announce(self, site: Site, *, first: bool) -> None:
        """Say in the maps, if there are any, what is true of this node now. KernelError.

        `first`: from_wire is before programs of others on the uplink.
        """
        opened, peering = self.maps, self.peering
        if opened is None:
            return
        xdp = self._findings.hook is HookMode.XDP
        self._own.write(
            opened,
            site,
            self.device,
            fits=peering.fits(),
            filled=peering.has_filled(opened),
            xdp=xdp and (self.programs is None or XDP in self.programs.by_name),
            first=first,
            marks=peering.marks(),
        )

    # --- Peers and containers ----------------------------------------------------

    def reconcile_peers(
        self, site: Site, leases: Sequence[Lease], changes: frozenset[Change], *, first: bool
    ) -> None:
        """The maps, FDB, neighbours and routes to the other nodes. KernelError. `first`: see `announce`."""
        opened, bypassing = self.maps, self.programs is not None
        announce = partial(self.announce, site, first=first)
        shortcut = None if opened is None else Shortcut(opened, bypassing, announce)
        self.peering.reconcile(site, self.device, leases, changes, shortcut)

    @property
    def is_filled(self) -> bool:
        """Whether programs are loaded whose maps hold the peers of now."""
        return self.maps is not None and self.programs is not None and self.peering.has_filled(self.maps)

    def find_containers(self, site: Site, bridge: Link, ports: Mapping[int, Link]) -> None:
        """Who is behind these ports of the bridge, in the maps if there are any. KernelError."""
        if self.maps is not None:
            self._endpoints.reconcile(site, bridge, ports, self.maps)

    # --- Its own work, looked at -------------------------------------------------

    @property
    def watched(self) -> maps.Maps[A] | None:
        """The maps in which the programs that are loaded count; None: none are."""
        return self.maps if self.programs is not None else None

    def losing(self, network: Network, uplink: Uplink) -> Mapping[Way, str]:
        """Where packets that programs leave to the kernel path are lost; none are counted without."""
        opened = self.watched
        if opened is None or not self.device:
            return {}
        lost = self._losses.look(self.device, opened)
        self._silent.look(opened)
        version = self._family.version
        return {way: losses.line(way, packets, network, uplink, version) for way, packets in lost.items()}

    @property
    def silent(self) -> Mapping[A, int]:
        """Hosts of the peers that do not answer, and how many packets went to each."""
        return self._silent.silent
