"""Removing a node's datapath: everything of ours on this host, and only that."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from ctl.backend.programless import remove_tunnels
from ctl.core.errors import AgentError
from ctl.core.family import IPV4, IPV6, Family
from ctl.core.host import OWNER, Link
from ctl.core.model import A, N
from ctl.core.plan import diff
from ctl.core.wire import parse_subnet_env
from ctl.kernel import firewall, flannel, sysctl
from ctl.kernel.bpf import maps
from ctl.kernel.hooks import xdp
from ctl.kernel.hooks.filters import Filters
from ctl.kernel.netlink.session import Netlink
from ctl.kernel.netlink.tables import Routes
from ctl.node import cni
from ctl.node.takeover import hand_over
from ctl.process import statedir
from ctl.settings.config import Settings


def teardown(settings: Settings, netlink: Netlink) -> list[str]:
    """Take everything away; returns what was removed, a line each. KernelError, AgentError.

    No more containers first. Then programs: from then on the kernel path carries alone, until its devices go.
    """
    done = [*_runtimes(settings), *_programs(settings, netlink), *_routes(netlink)]
    if maps.unpin_all(settings.bpffs):
        done.append(f"pins under {settings.bpffs}")
    done += _devices(settings, netlink)
    if firewall.remove():
        done.append("masquerade and forwarding rules")
    sysctl.restore(settings.state_dir / statedir.SYSCTLS)
    return done + _files(settings, keep_env=_is_flannels(settings.subnet_file))


def give_to_flannel(settings: Settings, netlink: Netlink) -> list[str]:
    """Leave a datapath that flanneld adopts; returns what was done, a line each. KernelError, AgentError.

    What flanneld replaces only once it runs stays until then: rules, kernel settings, and
    subnet.env. An ordinary teardown takes these away afterwards. Who is a peer is flanneld's to
    say from now on, so our rules refuse nobody.
    """
    done = [*_runtimes(settings), *_programs(settings, netlink, keep_clsact=True)]
    if maps.unpin_all(settings.bpffs):
        done.append(f"pins under {settings.bpffs}")
    firewall.let_in()
    done += hand_over(settings, netlink)
    return done + _files(settings, keep_env=True)


def _is_flannels(env: Path) -> bool:
    """Whether a flanneld has written subnet.env anew, where both are told the same place. KernelError.

    From a pod no process of others is seen. But an agent takes flannel's rules away, so those that are
    there are a newer flanneld's.
    """
    if flannel.running() is not None:
        return True
    try:
        network = parse_subnet_env(env.read_text()).network
    except (OSError, ValueError):
        return False
    return bool(flannel.rules(network))


def _runtimes(settings: Settings) -> list[str]:
    """What container runtimes were told before us, they are told again."""
    path = settings.cni_conf
    try:
        return cni.restore(path) if path else []
    except OSError as error:
        raise AgentError(f"cannot restore {path}: {error.strerror}") from error


def _programs(settings: Settings, netlink: Netlink, *, keep_clsact: bool = False) -> list[str]:
    links = netlink.links()
    # First: what it has decapsulated is for from_wire to deliver.
    ahead = xdp.remove_all(netlink, links, settings.bpffs)
    with closing(Filters(netlink.rtnl, settings.bpffs)) as filters:
        found = filters.read_on(links)
        filters.apply(diff({}, found))
        if not keep_clsact:
            filters.remove_clsact()
    names = sorted({*ahead, *(links[key.ifindex].name for key in found)})
    return [f"programs on {', '.join(names)}"] if names else []


def _routes(netlink: Netlink) -> list[str]:
    count = _remove_routes(netlink, IPV4) + _remove_routes(netlink, IPV6)
    return [f"{count} routes"] if count else []


def clear_ipv6(netlink: Netlink, links: Mapping[int, Link]) -> None:
    """Take away what an earlier life has left of IPv6 beside devices. KernelError. `links`: by ifindex."""
    _remove_routes(netlink, IPV6)
    firewall.remove_of(IPV6.version)
    for link in links.values():
        if link.kind == "bridge" and link.alias == OWNER:
            netlink.remove_own_ipv6(link)


def _remove_routes(netlink: Netlink, family: Family[A, N]) -> int:
    """How many there were."""
    routes = Routes(netlink.rtnl, family)
    delta = diff({}, routes.read())
    routes.apply(delta)
    return len(delta)


def _devices(settings: Settings, netlink: Netlink) -> list[str]:
    """Devices that carry our mark, by whatever name; a bridge only when nothing is plugged in any more."""
    links = netlink.links()
    gone = remove_tunnels(netlink, links.values(), settings.state_dir)
    done = [f"tunnel {name}" for name in gone]
    busy = {link.master for link in links.values() if link.name not in gone}
    for link in links.values():
        if link.alias != OWNER or link.kind != "bridge":
            continue
        if link.ifindex in busy:
            done.append(f"kept bridge {link.name}: it still has ports")
            continue
        netlink.remove(link)
        done.append(f"bridge {link.name}")
    return done


def _files(settings: Settings, *, keep_env: bool = False) -> list[str]:
    state, env = settings.state_dir, settings.subnet_file
    ours = (state / name for name in (statedir.REPORT, statedir.VTEP_MAC, statedir.FENCED, statedir.UPLINK))
    named = [*ours, *(() if keep_env else (env,))]
    try:
        paths = sorted(
            {
                *(path for path in named if path.exists()),
                *state.glob("programs-*.json"),  # compiled, of a version that kept them
                *statedir.leftovers(state),
                *statedir.leftovers(env.parent, env.name),
            }
        )
        for path in paths:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise AgentError(f"cannot remove {error.filename}: {error.strerror}") from error
    return [f"files {', '.join(map(str, paths))}"] if paths else []
