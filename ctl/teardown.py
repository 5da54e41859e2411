"""Removing a node's datapath: everything of ours on this host, and only that."""

from __future__ import annotations

import logging
from pathlib import Path

from ctl import statedir
from ctl.config import Settings
from ctl.host import OWNER, Link
from ctl.kernel import firewall, maps, sysctl
from ctl.kernel.netlink import Netlink
from ctl.kernel.tables import Filters, Routes
from ctl.plan import diff

log = logging.getLogger(__name__)


def teardown(settings: Settings, netlink: Netlink) -> list[str]:
    """Take everything away; returns what was removed, a line each. KernelError.

    Programs first: from then on the kernel path carries alone, until its devices go.
    """
    done = [*_filters(netlink), *_routes(netlink)]
    if maps.unpin_all(settings.bpffs):
        done.append(f"pins under {settings.bpffs}")
    done += _devices(settings, netlink)
    if firewall.remove():
        done.append("masquerade and forwarding rules")
    sysctl.restore(settings.state_dir / statedir.SYSCTLS)
    return done + _files(settings)


def _filters(netlink: Netlink) -> list[str]:
    filters = Filters(netlink)
    links = netlink.links()
    found = filters.read_on(links)
    filters.apply(diff({}, found))
    names = sorted({links[key.ifindex].name for key in found})
    return [f"programs on {', '.join(names)}"] if names else []


def _routes(netlink: Netlink) -> list[str]:
    routes = Routes(netlink)
    delta = diff({}, routes.read())
    routes.apply(delta)
    return [f"{len(delta)} routes"] if delta else []


def _devices(settings: Settings, netlink: Netlink) -> list[str]:
    """Devices that carry our mark; a bridge only when nothing is plugged in any more."""
    links = netlink.links()
    busy = {link.master for link in links.values()}
    done = []
    for link in links.values():
        if link.alias != OWNER or not _ours(link, settings):
            continue
        if link.ifindex in busy:
            done.append(f"kept bridge {link.name}: it still has ports")
            continue
        netlink.remove(link)
        done.append(f"{link.kind} {link.name}")
    return done


def _ours(link: Link, settings: Settings) -> bool:
    return link.kind == "vxlan" or (link.kind == "bridge" and link.name == settings.bridge)


def _files(settings: Settings) -> list[str]:
    paths: list[Path] = [
        settings.state_dir / statedir.REPORT,
        settings.subnet_file,
        *settings.state_dir.glob("programs-*.json"),
    ]
    removed = [path for path in paths if path.exists()]
    for path in removed:
        path.unlink()
    return [f"files {', '.join(str(path) for path in removed)}"] if removed else []
