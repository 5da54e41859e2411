"""`ovctl report`: all that helps with a bug report, in one archive without secrets.

Exit 0: it is written, 1: it cannot be. It changes nothing and needs no agent; what cannot be collected says
why in its place.
"""

from __future__ import annotations

import argparse
import io
import os
import time
import traceback
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, Final

from ctl import __version__
from ctl.core.errors import OvnetError
from ctl.settings.config import SETTINGS, STORE_SETTINGS, Settings, add_options

COMMANDS: Final = (
    "status -o wide",
    "status -o json",
    "doctor -o wide --no-probe",
    "map diff -o wide",
    "hook list -o wide",
    "ipam check --all -o wide",
    "network show -o json",
    "lease list -o wide",
    "map dump -o json",
)
"""Of ovctl's own, whose output goes in."""


def register(subparsers: Any) -> None:
    """Add `ovctl report`."""
    parser = subparsers.add_parser(
        "report",
        help="collect what helps with a bug report, in one archive without secrets",
        description="Write one archive for a bug report: status, what the doctor says, maps, routes, rules,"
        " links, programs, settings, versions and the agent's log. Passwords, tokens, keys and flow_seed are"
        " left out; addresses and names are not. Nothing is changed, nothing is sent.",
        epilog="example: ovctl report --write /tmp/node7.tar.zst",
    )
    parser.add_argument(
        "-w",
        "--write",
        type=Path,
        metavar="FILE",
        help="default: ovnet-report-NODE-TIME.tar.zst here; .tar.gz where zstd is not installed",
    )
    parser.set_defaults(func=run)
    add_options(
        parser, ["state_dir", "bpffs", "bypass", "peers_max", "cni_conf", "cni_data_dir", *STORE_SETTINGS]
    )


def run(args: argparse.Namespace) -> int:
    """Write the archive and print its name. AgentError if it cannot be written, or without capabilities."""
    from ctl.cli.agent import require_capabilities
    from ctl.cli.settings import load
    from ctl.core.redaction import redacted
    from ctl.kernel.command import find
    from ctl.process.archive import compressed, new_file, tar

    settings = load(args)
    require_capabilities()
    now, zstd = time.time(), find("zstd")
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    name = f"ovnet-report-{os.uname().nodename}-{stamp}"
    path = args.write or Path(f"{name}.tar.{'zst' if zstd else 'gz'}")
    secrets = _secrets(settings)
    with new_file(path) as made:  # collecting takes seconds
        files = {file: redacted(text, secrets) for file, text in _files(settings, args)}
        made.write(compressed(tar(files, name, now), zstd))
    print(path)
    return 0


def _files(settings: Settings, args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """(name, text) of each."""
    from ctl.kernel.shown import host_files

    yield "version.txt", f"ovctl {__version__}\n"
    yield "settings.txt", "".join(_settings(settings))
    for command in COMMANDS:
        yield f"ovctl/{command.replace(' ', '_')}.txt", _said(command.split(), args)
    yield from host_files()


def _settings(settings: Settings) -> Iterator[str]:
    for setting in SETTINGS:
        value = getattr(settings, setting.name)
        yield f"{setting.name} = {'(secret)' if setting.secret and value else value}\n"


def _said(command: list[str], args: argparse.Namespace) -> str:
    """What a command of ours prints with the settings of `args`, and its exit code, or the bug in it."""
    from ctl.cli.main import build_parser

    out = io.StringIO()
    parsed = build_parser(command[:1]).parse_args(command)
    given = {each.name: vars(args).get(each.name) for each in SETTINGS} | {"config": args.config}
    vars(parsed).update({name: value for name, value in given.items() if value is not None})
    with redirect_stdout(out), redirect_stderr(out):
        try:
            code = parsed.func(parsed)
        except OvnetError as error:
            code = f"{error.exit_code}: {error}"
        except Exception:  # noqa: BLE001 - a report of a bug must not end by that bug
            code = f"a bug\n{traceback.format_exc()}"
    return f"{out.getvalue()}exit {code}\n"


def _secrets(settings: Settings) -> list[str]:
    """Those that this node has, as they would stand in a text."""
    from ctl.core.family import of_version
    from ctl.kernel.bpf.maps import family_root, pinned_seed

    found: list[str] = []
    for version in (4, 6):
        with suppress(OvnetError):
            seed = pinned_seed(family_root(settings.bpffs, of_version(version)), version)
            found += [str(seed), f"{seed:x}", f"{seed:016x}"] if seed else []
    found += [value for each in SETTINGS if each.secret and (value := getattr(settings, each.name))]
    found += _first_line(settings.etcd_password_file)
    return found


def _first_line(file: str) -> list[str]:
    with suppress(OSError):
        return Path(file).read_text(errors="replace").splitlines()[:1] if file else []
    return []
