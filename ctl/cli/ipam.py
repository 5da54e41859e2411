"""`ovctl ipam`: addresses that the CNI plugin host-local keeps for containers that are not there any more."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from ctl.cli.output import Column, Row, add_output_option, duration, emit, say
from ctl.core.errors import AgentError, ConfigError, NotFound
from ctl.settings.config import add_options

if TYPE_CHECKING:
    from ctl.core.ipam import Address, Verdict
    from ctl.settings.config import Settings

COLUMNS = (
    Column("address"),
    Column("state"),
    Column("age", show=duration),
    Column("container", show=lambda text: text[:13] or "-"),
    Column("ifname", wide=True),
    Column("why", wide=True),
)


def register(subparsers: Any) -> None:
    """Add `ipam check` and `ipam release`."""
    parser = subparsers.add_parser("ipam", help="addresses that containers have left reserved")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    check = verbs.add_parser(
        "check",
        help="list the addresses that no container has any more",
        description="List the addresses that the CNI plugin host-local has given out and no container has any"
        " more, with those of which that is unclear. Runtimes, namespaces, maps, neighbours are looked at,"
        " and the bridge's containers are asked by ARP; nothing is changed. Exit code 1 if any are leaked.",
        epilog="example: ovctl ipam check --all -o wide",
    )
    check.add_argument("--all", action="store_true", help="also those that are in use")
    check.set_defaults(func=run_check)
    release = verbs.add_parser(
        "release",
        help="free addresses that are leaked",
        description="Free addresses that `ovctl ipam check` shows as leaked, and print them. What is in use,"
        " unclear or younger than ten minutes is never freed.",
        epilog="example: ovctl ipam release 10.77.1.23",
    )
    release.add_argument("address", nargs="*", type=_address, metavar="ADDRESS", help="default: all of them")
    release.set_defaults(func=run_release)
    for verb in (check, release):
        add_output_option(verb)
        add_options(verb, ["state_dir", "bpffs", "cni_conf", "cni_data_dir"])


def _address(text: str) -> Address:
    from ipaddress import ip_address

    try:
        return ip_address(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no address") from None


def run_check(args: argparse.Namespace) -> int:
    """Print what is not in use; 1 if any is leaked. NotFound where no address was ever given out."""
    from ctl.core.ipam import State

    now = time.time()
    verdicts = _judged(_settings(args), now)
    shown = [each for each in verdicts if args.all or each.state is not State.USED]
    emit([_row(each, now) for each in shown], COLUMNS, args.output)
    count = Counter(each.state for each in verdicts)
    told = ", ".join(f"{count[state]} {state}" for state in State if count[state])
    say(f"{len(verdicts)} addresses are reserved{': ' if told else ''}{told}")
    return 1 if count[State.LEAKED] else 0


def run_release(args: argparse.Namespace) -> int:
    """Free what is leaked. NotFound for an address that is not reserved, AgentError for one that is used."""
    from ctl.node.alive import directory
    from ctl.node.host_local import release

    now, settings = time.time(), _settings(args)
    verdicts = _judged(settings, now)
    chosen = _leaked(verdicts, args.address)
    freed = release(directory(settings), [each.reservation for each in chosen])
    emit([_row(each, now) for each in chosen if each.reservation in freed], COLUMNS, args.output)
    say(f"{len(freed)} of {len(verdicts)} addresses are freed")
    return 0


def _judged(settings: Settings, now: float) -> list[Verdict]:
    """What each address that is given out is. AgentUnreachable where no agent has ever run."""
    from ctl.cli.status import last_report
    from ctl.kernel.netlink.session import Netlink
    from ctl.node.alive import judged

    bridge = last_report(settings.state_dir).bridge  # the settings here may be of another node
    with Netlink() as netlink:
        return judged(settings, netlink, bridge, now)


def _settings(args: argparse.Namespace) -> Settings:
    from ctl.cli.settings import load

    settings = load(args)
    if settings.cni_conf is None:
        raise ConfigError("no --cni-conf: addresses are given out by a configuration of someone else's")
    return settings


def _leaked(verdicts: list[Verdict], named: list[Address]) -> list[Verdict]:
    """Those that are leaked: of these, if any are named, and then each has to be."""
    from ctl.core.ipam import State

    by_address = {each.reservation.address: each for each in verdicts}
    for address in named:
        if address not in by_address:
            raise NotFound(f"{address} is not reserved")
        if by_address[address].state is not State.LEAKED:
            raise AgentError(f"{address} is {by_address[address].state}: {by_address[address].why}")
    return [
        each
        for each in verdicts
        if each.state is State.LEAKED and (not named or each.reservation.address in named)
    ]


def _row(verdict: Verdict, now: float) -> Row:
    """A line; `age` in seconds."""
    found = verdict.reservation
    return {
        "address": found.address,
        "state": verdict.state,
        "age": round(now - found.since, 1),
        "container": found.container,
        "ifname": found.ifname,
        "why": verdict.why,
    }
