"""`ovctl map`: the pinned maps, read from the kernel; no agent is asked."""

from __future__ import annotations

import argparse
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import cache
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any, Final

from ctl.cli import rows
from ctl.cli.arguments import address, seconds
from ctl.cli.output import Column, Row, add_output_option, dumps, emit, say, table
from ctl.core.errors import ConfigError, NotFound
from ctl.settings.config import STORE_SETTINGS, add_options

if TYPE_CHECKING:
    from ctl.core.abi import Ip
    from ctl.core.compare import DeviceName, Difference
    from ctl.core.model import Network, Snapshot
    from ctl.kernel.bpf.families import AllMaps
    from ctl.kernel.bpf.maps import Maps
    from ctl.settings.config import Settings

Found = Mapping[str, list[Row]]
"""What was read: rows by the name of their map."""
Columns = Sequence[Column | str]


def register(subparsers: Any) -> None:
    """Add `ovctl map dump` and `ovctl map get`."""
    parser = subparsers.add_parser("map", help="look into the datapath's maps")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    dump = verbs.add_parser(
        "dump",
        help="print a map, or all of them",
        epilog="example: ovctl map dump peers --where host=192.0.2.7",
    )
    names = tuple(READERS)
    dump.add_argument(
        "map", nargs="?", metavar="MAP", choices=names, help=f"{', '.join(names)}; default: all of them"
    )
    dump.add_argument(
        "--where",
        action="append",
        default=[],
        type=_condition,
        metavar="COLUMN=VALUE",
        help="only entries that have this value, such as host=192.0.2.7; several must all hold",
    )
    dump.add_argument(
        "--watch",
        nargs="?",
        const=2.0,
        type=seconds,
        metavar="S",
        help="print it again every S seconds (default: 2) until interrupted",
    )
    dump.set_defaults(func=run_dump)
    get = verbs.add_parser(
        "get", help="print where a container address leads", epilog="example: ovctl map get 10.77.2.3"
    )
    get.add_argument("ip", type=address, metavar="IP")
    get.set_defaults(func=run_get)
    diff = verbs.add_parser(
        "diff",
        help="compare the store's leases with the kernel and the maps",
        description="Compare what the store's leases ask for with routes, neighbours, FDB and maps of this"
        " node. No agent is asked, and nothing is changed. Exit code 1 if anything differs.",
        epilog="example: ovctl map diff -o wide",
    )
    diff.set_defaults(func=run_diff)
    add_output_option(dump, "csv")
    add_output_option(get)
    add_output_option(diff)
    for verb in (dump, get):
        add_options(verb, ["bpffs"])
    add_options(diff, ["bpffs", "state_dir", "bypass", "peers_max", *STORE_SETTINGS])


def run_dump(args: argparse.Namespace) -> int:
    """Print one map's entries, or every map under its name. ConfigError for a column that it has not."""
    if not args.map and (args.where or args.output == "csv"):
        raise ConfigError("--where and -o csv are about one map: name it, such as map dump peers")
    while True:
        _dump(args)
        if args.watch is None:
            return 0
        sys.stdout.flush()
        time.sleep(args.watch)
        sys.stdout.write(CLEAR if sys.stdout.isatty() else "\n")


CLEAR: Final = "\x1b[H\x1b[2J"
"""Cursor home, erase the display (ECMA-48)."""


def _dump(args: argparse.Namespace) -> None:
    with open_all(args) as maps:
        found = {name: _read(maps, name, args.output) for name in ([args.map] if args.map else READERS)}
    columns = {name: rows.columns(name, both=maps.both) for name in found}
    if args.map:
        for column, value in args.where:
            found[args.map] = _having(found[args.map], args.map, columns[args.map], column, value)
        emit(found[args.map], columns[args.map], args.output)
    elif args.output == "json":
        sys.stdout.write(dumps(found))
    else:
        sys.stdout.write(_headed(found, columns, args.output))


def _read(maps: AllMaps, name: str, fmt: str) -> list[Row]:
    """The rows of a map, IPv4's first."""
    found = [(each.family.version, row) for each in maps for row in READERS[name](each, fmt)]
    named = maps.both and name in rows.IN_BOTH
    return [rows.of_family(row, version) if named else row for version, row in found]


def _having(entries: list[Row], name: str, columns: Columns, column: str, value: str) -> list[Row]:
    """Those whose `column` is `value`, or has it in a list. ConfigError if the map has no such column."""
    known = [each if isinstance(each, str) else each.key for each in columns]
    if column not in known:
        raise ConfigError(f"map {name} has no column {column}: it has {', '.join(known)}")
    return [row for row in entries if value in _words(row.get(column))]


def _words(value: object) -> list[str]:
    return [str(each) for each in value] if isinstance(value, (list, tuple)) else [str(value)]


def _condition(text: str) -> tuple[str, str]:
    column, equals, value = text.partition("=")
    if not column or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is no condition such as host=192.0.2.7")
    return column, value


def run_get(args: argparse.Namespace) -> int:
    """Print the peer and the endpoint of an address. NotFound if it has neither, or eBPF not its family."""
    with open_all(args) as maps:
        found = _look_up(maps.of(args.ip.version), args.ip)
    if not found:
        raise NotFound(f"{args.ip} is in no peer's subnet and is no container of this node")
    if args.output == "json":
        one = {name: entries[0] for name, entries in found.items()}
        result = {"ip": str(args.ip), "peer": one.get("peers"), "endpoint": one.get("endpoints")}
        sys.stdout.write(dumps(result))
    else:
        sys.stdout.write(_headed(found, rows.COLUMNS, args.output))
    return 0


DIFFERENCES: Final = ("table", "key", "state", Column("wanted"), Column("found"))
SETTLING_S: Final = 0.5
"""How long an agent has to mend what a first look has found to differ."""


Looked = tuple["list[Difference]", tuple[str, ...]]
"""What differs, and a line for each lease that is not used."""


def run_diff(args: argparse.Namespace) -> int:
    """Print what differs, by table and key; 1 if anything does. What is wrong with leases goes to stderr.

    AgentUnreachable where no agent has ever run; NotFound without a lease of ours; StoreError.
    """
    from ctl.cli.agent import require_capabilities
    from ctl.cli.settings import load
    from ctl.cli.status import last_report
    from ctl.kernel.netlink.session import Netlink
    from ctl.node.compare import differences, stand

    settings = load(args)
    require_capabilities()
    report = last_report(settings.state_dir)

    def look() -> Looked:
        network, snapshot = stored(settings)
        with Netlink() as netlink:
            site = stand(settings, netlink, report, network, snapshot.leases)
            found, problems = differences(settings, netlink, site, snapshot.leases, device_name)
        return found, (*snapshot.problems, *problems)

    found, problems = settled(look)
    emit(map(asdict, found), DIFFERENCES, args.output)
    for problem in problems:
        say(f"warning: {problem}")
    return 1 if found else 0


def settled(look: Callable[[], Looked]) -> Looked:
    """What two looks have in common, if the first finds anything: the store is read before the kernel."""
    from ctl.core.compare import lasting

    found, problems = look()
    if found:
        time.sleep(SETTLING_S)
        again, problems = look()
        found = lasting(found, again)
    return found, problems


def stored(settings: Settings) -> tuple[Network, Snapshot]:
    """What the store has now. StoreError; NotFound without a network."""
    from ctl.store import open_store

    with closing(open_store(settings)) as store:
        network, snapshot = store.read_network(), store.snapshot(fresh=True)
    if network is None:
        raise NotFound(f"no network in {settings.store}: run ovctl network init")
    return network, snapshot


def open_all(args: argparse.Namespace) -> AllMaps:
    """The maps that the settings name. AgentUnreachable if there are none."""
    from ctl.cli.settings import load
    from ctl.kernel.bpf.families import open_all as pinned

    return pinned(str(load(args).bpffs))


def device_name(ifindex: int) -> str:
    """The interface's name in this network namespace; `if7` for one that is not here."""
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return f"if{ifindex}"


def device_names() -> DeviceName:
    """`device_name` for one listing: the kernel is asked once for each interface, not for each entry."""
    return cache(device_name)


READERS: Final[Mapping[str, Callable[[Maps[Any], str], list[Row]]]] = {
    "peers": lambda maps, _: rows.peers(maps.raw_peers(), maps.node(), device_names(), maps.family.version),
    "endpoints": lambda maps, _: rows.endpoints(maps.endpoints(), device_names()),
    "flows": lambda maps, _: rows.flows(maps.flows(), maps.node(), _monotonic_ns(), device_names()),
    "notes": lambda maps, _: rows.notes(maps.notes(), _monotonic_ns(), device_names()),
    "translations": lambda maps, _: rows.translations(maps.translations(), device_names()),
    "services": lambda maps, _: rows.services(maps.services(), _monotonic_ns()),
    "node": lambda maps, _: rows.node_rows(maps.node(), device_names()),
    "counters": lambda maps, fmt: rows.counters(maps.counters(), every=fmt == "wide"),
    "peer_stats": lambda maps, _: rows.peer_stats(maps.peer_stats()),
}
"""The maps that can be dumped, each with the function that reads its rows of one family. Not among them:
events and traces, which are streams, and tracer."""


def _monotonic_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)  # the programs' clock


def _look_up(maps: Maps[Any], address: Ip) -> Found:
    length = rows.prefixlen(maps.node(), address.version)
    subnet = ip_network((address, length), strict=False)
    peer, endpoint = maps.lookup_peer(subnet.network_address), maps.lookup_endpoint(address)
    found: dict[str, list[Row]] = {}
    if peer:
        found["peers"] = [rows.peer(subnet.network_address.packed, peer.pack(), length, device_name)]
    if endpoint:
        found["endpoints"] = [rows.endpoint(address, endpoint, device_name)]
    return found


def _headed(found: Found, columns: Mapping[str, Columns], fmt: str) -> str:
    """A table per map, each under the map's name."""
    return "\n".join(
        f"{name}:\n{table(entries, _shown(columns[name], fmt))}" for name, entries in found.items()
    )


def _shown(columns: Columns, fmt: str) -> list[Column]:
    whole = [Column(column) if isinstance(column, str) else column for column in columns]
    return [column for column in whole if fmt == "wide" or not column.wide]
