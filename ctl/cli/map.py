"""`ovctl map`: the pinned maps, read from the kernel; no agent is asked."""

from __future__ import annotations

import argparse
import socket
import sys
import time
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, Any, Final

from ctl.cli import rows
from ctl.cli.output import Column, Row, add_output_option, dumps, emit, table
from ctl.core.errors import NotFound
from ctl.settings.config import add_options

if TYPE_CHECKING:
    from ctl.kernel.bpf.maps import Maps

Found = Mapping[str, list[Row]]
"""What was read: rows by the name of their map."""


def register(subparsers: Any) -> None:
    """Add `ovctl map dump` and `ovctl map get`."""
    parser = subparsers.add_parser("map", help="look into the datapath's maps")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    dump = verbs.add_parser("dump", help="print a map, or all of them")
    dump.add_argument("map", nargs="?", choices=tuple(READERS), help="default: all")
    dump.set_defaults(func=run_dump)
    get = verbs.add_parser("get", help="print where a container address leads")
    get.add_argument("ip", type=_address, metavar="IP")
    get.set_defaults(func=run_get)
    for verb in (dump, get):
        add_output_option(verb)
        add_options(verb, ["bpffs"])


def run_dump(args: argparse.Namespace) -> int:
    """Print one map's entries, or every map under its name."""
    with open_maps(args) as maps:
        found = {name: READERS[name](maps, args.output) for name in ([args.map] if args.map else READERS)}
    if args.map:
        emit(found[args.map], rows.COLUMNS[args.map], args.output)
    elif args.output == "json":
        sys.stdout.write(dumps(found))
    else:
        sys.stdout.write(_headed(found, args.output))
    return 0


def run_get(args: argparse.Namespace) -> int:
    """Print the peer and the endpoint of an address. NotFound if it has neither."""
    with open_maps(args) as maps:
        found = _look_up(maps, args.ip)
    if not found:
        raise NotFound(f"{args.ip} is in no peer's subnet and is no container of this node")
    if args.output == "json":
        one = {name: entries[0] for name, entries in found.items()}
        result = {"ip": str(args.ip), "peer": one.get("peers"), "endpoint": one.get("endpoints")}
        sys.stdout.write(dumps(result))
    else:
        sys.stdout.write(_headed(found, args.output))
    return 0


def open_maps(args: argparse.Namespace) -> Maps:
    """The maps that the settings name. AgentUnreachable if there are none."""
    from ctl.cli.settings import load
    from ctl.kernel.bpf.maps import open_maps as pinned

    return pinned(str(load(args).bpffs))


def device_name(ifindex: int) -> str:
    """The interface's name in this network namespace; `if7` for one that is not here."""
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return f"if{ifindex}"


READERS: Final[Mapping[str, Callable[[Maps, str], list[Row]]]] = {
    "peers": lambda maps, _: rows.peers(maps.peers(), maps.node(), device_name),
    "endpoints": lambda maps, _: rows.endpoints(maps.endpoints(), device_name),
    "flows": lambda maps, _: rows.flows(maps.flows(), maps.node(), _monotonic_ns(), device_name),
    "node": lambda maps, _: rows.node_rows(maps.node(), device_name),
    "counters": lambda maps, fmt: rows.counters(maps.counters(), every=fmt == "wide"),
    "peer_stats": lambda maps, _: rows.peer_stats(maps.peer_stats()),
}
"""The maps that can be dumped, each with the function that reads its rows. The map of events is a
stream, and not among them."""


def _monotonic_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)  # the programs' clock


def _look_up(maps: Maps, address: IPv4Address) -> Found:
    length = rows.prefixlen(maps.node())
    subnet = IPv4Network((address, length), strict=False)
    peer, endpoint = maps.lookup_peer(subnet.network_address), maps.lookup_endpoint(address)
    found: dict[str, list[Row]] = {}
    if peer:
        found["peers"] = [rows.peer(address, peer, length, device_name)]
    if endpoint:
        found["endpoints"] = [rows.endpoint(address, endpoint, device_name)]
    return found


def _headed(found: Found, fmt: str) -> str:
    """A table per map, each under the map's name."""
    return "\n".join(f"{name}:\n{table(entries, _shown(name, fmt))}" for name, entries in found.items())


def _shown(name: str, fmt: str) -> list[Column]:
    columns = [Column(column) if isinstance(column, str) else column for column in rows.COLUMNS[name]]
    return [column for column in columns if fmt == "wide" or not column.wide]


def _address(text: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an IPv4 address") from None
