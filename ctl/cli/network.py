"""ovctl network: the config that all nodes share."""

from __future__ import annotations

import argparse
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

from ctl.cli.output import add_output_option, emit_one, say
from ctl.core.errors import ConfigError, LeaseConflict, NotFound, OvnetError, StoreError
from ctl.core.model import BACKENDS
from ctl.settings.config import STORE_SETTINGS, add_options

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network

    from ctl.core.model import IPv6Range, Network
    from ctl.core.ports import LeaseStore
    from ctl.settings.config import Settings

COLUMNS = (
    "network",
    "subnet_len",
    "subnet_min",
    "subnet_max",
    "backend",
    "vni",
    "port",
    "mtu",
    "direct_routing",
)
IPV6_COLUMNS = ("ipv6_network", "ipv6_subnet_len", "ipv6_subnet_min", "ipv6_subnet_max")
"""Beside them, where the network has IPv6."""


def register(subparsers: Any) -> None:
    """Add `network init` and `network show`."""
    network = subparsers.add_parser("network", help="the network that all nodes share")
    verbs = network.add_subparsers(metavar="VERB", required=True)

    init = verbs.add_parser(
        "init",
        help="create the store if need be, and the network in it",
        epilog="example: ovctl network init --network 10.77.0.0/16 --store etcd://192.0.2.1:2379",
    )
    init.add_argument("--network", required=True, metavar="CIDR", help="such as 10.77.0.0/16")
    init.add_argument(
        "--subnet-len", type=int, metavar="N", help="prefix length of a node's subnet (default: 24)"
    )
    init.add_argument("--subnet-min", metavar="IP", help="first subnet to hand out (default: the second)")
    init.add_argument("--subnet-max", metavar="IP", help="last subnet to hand out (default: the last)")
    init.add_argument("--ipv6-network", metavar="CIDR", help="IPv6 as well, such as fd00:10:77::/48")
    init.add_argument("--ipv6-subnet-len", type=int, metavar="N", help="of a node's in that (default: 64)")
    init.add_argument("--ipv6-subnet-min", metavar="IP", help="first of these (default: the second)")
    init.add_argument("--ipv6-subnet-max", metavar="IP", help="last of these (default: the last)")
    init.add_argument("--backend", choices=BACKENDS, default="vxlan", help="default: vxlan")
    init.add_argument("--vni", type=int, metavar="N", help="VXLAN network identifier (default: 1)")
    init.add_argument("--port", type=int, metavar="N", help="UDP port (default: 8472)")
    init.add_argument("--mtu", type=int, metavar="BYTES", help="MTU of the underlay (default: each uplink's)")
    init.add_argument(
        "--direct-routing", action="store_true", help="vxlan: plain routes to hosts on the same link"
    )
    init.add_argument(
        "--force", action="store_true", help="replace a different network; also one over this host's own link"
    )
    add_options(init, STORE_SETTINGS)
    init.set_defaults(func=run_init)

    show = verbs.add_parser("show", help="show the network", epilog="example: ovctl network show -o json")
    add_output_option(show)
    add_options(show, STORE_SETTINGS)
    show.set_defaults(func=run_show)


def _wanted(args: argparse.Namespace) -> Network:
    """The network of the flags, by the same rules as one that is read from a store."""
    import json

    from ctl.core.family import lacks_ipv6
    from ctl.core.wire import parse_network

    backend = {
        "Type": args.backend,
        "VNI": args.vni,
        "Port": args.port,
        "MTU": args.mtu,
        "DirectRouting": args.direct_routing,
    }
    config = {
        "Network": args.network,
        "SubnetLen": args.subnet_len,
        "SubnetMin": args.subnet_min,
        "SubnetMax": args.subnet_max,
        **_wanted_ipv6(args),
        "Backend": backend,
    }
    network = parse_network(json.dumps(config), "network init")
    if why := lacks_ipv6(network):
        raise ConfigError(why)
    _refuse_host_bits("--network", args.network, network.network)
    if network.ipv6:
        _refuse_host_bits("--ipv6-network", args.ipv6_network, network.ipv6.network)
    return network


def _wanted_ipv6(args: argparse.Namespace) -> dict[str, Any]:
    """What the flags say of IPv6, as a config has it; empty if there is to be none."""
    if args.ipv6_network:
        return {
            "EnableIPv6": True,
            "IPv6Network": args.ipv6_network,
            "IPv6SubnetLen": args.ipv6_subnet_len,
            "IPv6SubnetMin": args.ipv6_subnet_min,
            "IPv6SubnetMax": args.ipv6_subnet_max,
        }
    for name in ("len", "min", "max"):
        if getattr(args, f"ipv6_subnet_{name}") is not None:
            raise ConfigError(f"--ipv6-subnet-{name}: say the network too, by --ipv6-network")
    return {}


def _refuse_host_bits(flag: str, asked: str, meant: IPv4Network | IPv6Network) -> None:
    """ConfigError if the flag's network has any; it was parsed already."""
    from ipaddress import ip_interface

    if ip_interface(asked).ip != meant.network_address:
        raise ConfigError(f"{flag} {asked}: has host bits set; did you mean {meant}?")


def _in_words(network: Network) -> str:
    return f"{network.network} and {network.ipv6.network}" if network.ipv6 else str(network.network)


def run_init(args: argparse.Namespace) -> int:
    """Store the network. The same again is fine; another needs --force."""
    from ctl.cli.settings import load
    from ctl.store import open_store

    network = _wanted(args)
    settings = load(args)
    if not args.force and (why := _clash(settings, network)) and not _is_stored(settings, network):
        raise ConfigError(f"{why} (--force stores it all the same)")
    with closing(open_store(settings, create=True)) as store:
        if store.read_network() == network:
            say(f"network {_in_words(network)} is in {settings.store} already, unchanged")
            return 0
        try:
            store.write_network(network, replace=args.force)
        except LeaseConflict as error:
            raise LeaseConflict(f"{error}; --force replaces it") from error
        say(f"network {_in_words(network)} stored in {settings.store}")
        _warn_misfits(store, network)
    return 0


def _clash(settings: Settings, network: Network) -> str:
    """Why this host, as a node, would lose its link by that network; "" if it would not, or is to be none."""
    from ctl.core.clash import over_the_underlay
    from ctl.kernel.netlink.session import Netlink
    from ctl.node.node import Node

    with suppress(OvnetError, OSError), Netlink() as netlink:
        node = Node(settings, netlink)
        node.find_uplink()
        return over_the_underlay(network, node.surroundings(network).underlay)
    return ""


def _is_stored(settings: Settings, network: Network) -> bool:
    """Whether the store has it already: then nothing is to be refused any more."""
    from ctl.store import open_store

    try:
        with closing(open_store(settings)) as store:
            return store.read_network() == network
    except StoreError:
        return False


def _warn_misfits(store: LeaseStore, network: Network) -> None:
    """A config that was replaced leaves leases behind; their nodes move when they restart."""
    from ctl.core.lease import fits, in_words

    for lease in store.snapshot().leases:
        if not fits(network, lease.subnet):
            say(f"warning: {in_words(lease)} fits the new network no longer: restart its agent")


def run_show(args: argparse.Namespace) -> int:
    """Show the network; NotFound if there is none."""
    from ctl.cli.settings import load
    from ctl.store import open_store

    with closing(open_store(load(args))) as store:
        network = require_network(store)
    row = {column: getattr(network, column) for column in COLUMNS}
    row |= zip(COLUMNS, _cut(network), strict=False)
    if network.ipv6:
        row |= zip(IPV6_COLUMNS, _cut(network.ipv6), strict=True)
    emit_one(row, tuple(row), args.output)
    return 0


def _cut(space: Network | IPv6Range) -> tuple[object, ...]:
    """How it is cut, in the order of the columns."""
    return space.network, space.subnet_len, space.subnet_min.network_address, space.subnet_max.network_address


def require_network(store: LeaseStore) -> Network:
    """The store's network; NotFound, with the remedy, if there is none."""
    network = store.read_network()
    if network is None:
        raise NotFound("the store has no network yet: run: ovctl network init --network CIDR")
    return network
