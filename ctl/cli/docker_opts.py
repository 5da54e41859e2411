"""`ovctl docker-opts`: the options that put dockerd on this node's subnet, from subnet.env.

As flannel's mk-docker-opts.sh makes them. `-o line` (the default) is for a command line,
`-o env` for systemd's EnvironmentFile=, `-o json` for programs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ctl.cli.output import dumps
from ctl.core.errors import AgentError, NotFound
from ctl.core.wire import SubnetEnv, docker_options, parse_subnet_env
from ctl.settings.config import add_options

FORMATS = ("line", "env", "json")


def register(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "docker-opts",
        help="options for dockerd on this node's subnet",
        description=__doc__,
        epilog="example: ovctl docker-opts",
    )
    parser.add_argument("-o", "--output", choices=FORMATS, default="line", help="default: line")
    add_options(parser, ["state_dir", "subnet_file"])
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Print the options. NotFound without subnet.env, AgentError if it is damaged."""
    from ctl.cli.settings import load

    options = docker_options(_read(load(args).subnet_file))
    sys.stdout.write(_format(options, args.output))
    return 0


def _read(path: Path) -> SubnetEnv:
    try:
        return parse_subnet_env(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(
            f"{path}: no such file: a ready agent writes it (ovctl status says what is in the way)"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise AgentError(f"{path}: {reason}") from error
    except ValueError as error:
        raise AgentError(f"{path}: {error}: restart the agent, which writes it anew") from error


def _format(options: dict[str, str], fmt: str) -> str:
    line = " ".join(options.values())
    if fmt == "line":
        return f"{line}\n"
    variables = {**options, "DOCKER_OPTS": line}
    if fmt == "json":
        return dumps(variables)
    return "".join(f'{name}="{text}"\n' for name, text in variables.items())
