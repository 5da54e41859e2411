"""ovctl lease: who holds which subnet."""

from __future__ import annotations

import argparse
import math
from contextlib import closing
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, Any

from ctl.cli.output import Column, Row, add_output_option, duration, emit, say
from ctl.core.errors import ConfigError, LeaseConflict, NotFound
from ctl.settings.config import STORE_SETTINGS, add_options

if TYPE_CHECKING:
    from ctl.core.model import Lease
    from ctl.core.ports import LeaseStore


def _left(seconds: float | None) -> str:
    """Time left, for people; None is a reservation, infinity what only the store knows."""
    if seconds is None:
        return "never"
    if math.isinf(seconds):
        return "unknown"
    return duration(seconds)


COLUMNS = (
    Column("subnet"),
    Column("host"),
    Column("node"),
    Column("expires_in", "EXPIRES", show=_left),
    Column("vtep_mac", "VTEP-MAC", wide=True),
    Column("vni", wide=True),
    Column("backend", wide=True),
    Column("ipv6_subnet", "IPV6-SUBNET", wide=True),
    Column("ipv6_host", "IPV6-HOST", wide=True),
    Column("revision", wide=True),
)


def register(subparsers: Any) -> None:
    """Add `lease list`, `lease reserve` and `lease release`."""
    lease = subparsers.add_parser("lease", help="who holds which subnet")
    verbs = lease.add_subparsers(metavar="VERB", required=True)

    listing = verbs.add_parser("list", help="list the leases", epilog="example: ovctl lease list -o wide")
    add_output_option(listing)
    listing.set_defaults(func=run_list)

    reserve = verbs.add_parser(
        "reserve",
        help="give a host a subnet that does not expire",
        epilog="example: ovctl lease reserve 10.77.9.0/24 --host 192.0.2.7",
    )
    reserve.add_argument("subnet", metavar="SUBNET", help="such as 10.77.9.0/24")
    reserve.add_argument("--host", required=True, metavar="IP", help="underlay address of the host")
    reserve.set_defaults(func=run_reserve)

    release = verbs.add_parser(
        "release", help="remove a lease or reservation", epilog="example: ovctl lease release 10.77.9.0/24"
    )
    release.add_argument("subnet", metavar="SUBNET", help="such as 10.77.9.0/24")
    release.set_defaults(func=run_release)

    for parser in (listing, reserve, release):
        add_options(parser, STORE_SETTINGS)


def _open(args: argparse.Namespace) -> LeaseStore:
    from ctl.cli.settings import load
    from ctl.store import open_store

    return open_store(load(args))


def _row(lease: Lease, now: float) -> Row:
    """A line of the list; times in seconds, None for a reservation, infinite for an end that is unknown."""
    return {
        "subnet": lease.subnet,
        "host": lease.host,
        "node": lease.node,
        "vtep_mac": lease.vtep_mac,
        "vni": lease.vni,
        "backend": lease.backend,
        "ipv6_subnet": lease.ipv6 and lease.ipv6.subnet,
        "ipv6_host": lease.ipv6 and lease.ipv6.host,
        "expires_at": lease.expires_at,
        "expires_in": None if lease.expires_at is None else round(lease.expires_at - now, 1),
        "reserved": lease.expires_at is None,
        "revision": lease.revision,
    }


def _plain(row: Row) -> Row:
    """What programs get: JSON has no infinity. Of two nulls, `reserved` tells which it is."""
    return {key: None if value == math.inf else value for key, value in row.items()}


def run_list(args: argparse.Namespace) -> int:
    """List the live leases by subnet; what is wrong with them goes to stderr."""
    import time

    from ctl.core.lease import conflicts

    with closing(_open(args)) as store:
        snapshot = store.snapshot()
    now = time.time()
    rows = [_row(lease, now) for lease in snapshot.leases]
    emit(map(_plain, rows) if args.output == "json" else rows, COLUMNS, args.output)
    for problem in (*snapshot.problems, *conflicts(snapshot.leases)):
        say(f"warning: {problem}")
    return 0


def _subnet(text: str) -> IPv4Network:
    try:
        return IPv4Network(text)
    except ValueError:
        raise ConfigError(f"{text!r} is not a subnet such as 10.77.9.0/24") from None


def _host(text: str) -> IPv4Address:
    from ctl.settings.values import ipv4

    try:
        return ipv4(text)
    except ValueError as error:
        raise ConfigError(f"--host: {error}") from error


def _find(store: LeaseStore, subnet: IPv4Network) -> Lease | None:
    return next((lease for lease in store.snapshot().leases if lease.subnet == subnet), None)


def run_reserve(args: argparse.Namespace) -> int:
    """Reserve a free subnet, or turn the host's own lease on it into a reservation."""
    from dataclasses import replace

    from ctl.cli.network import require_network
    from ctl.core.lease import fits, in_words
    from ctl.core.model import Lease

    subnet, host = _subnet(args.subnet), _host(args.host)
    with closing(_open(args)) as store:
        network = require_network(store)
        if not fits(network, subnet):
            raise ConfigError(
                f"{subnet} is no subnet of the network: it hands out /{network.subnet_len}s"
                f" from {network.subnet_min} to {network.subnet_max}"
            )
        if host in subnet:
            raise ConfigError(f"{subnet} covers {host} itself, and nobody would reach it: reserve another")
        held = _find(store, subnet)
        if held is not None and held.host != host:
            raise LeaseConflict(f"{subnet} is taken: {in_words(held)}")
        store.put(replace(held or Lease(subnet, host, backend=network.backend), expires_at=None), held)
    say(f"{subnet} is reserved for {host}")
    return 0


def run_release(args: argparse.Namespace) -> int:
    """Remove the lease on a subnet. A running agent will claim its own again."""
    from ctl.core.lease import in_words

    subnet = _subnet(args.subnet)
    with closing(_open(args)) as store:
        held = _find(store, subnet)
        if held is None:
            raise NotFound(f"no lease on {subnet}")
        store.delete(held)
    say(f"released {in_words(held)}")
    return 0
