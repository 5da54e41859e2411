"""ovctl: entry point, exit codes, and how failures are shown.

Exit: 0 ok, 1 failed or unhealthy, 2 usage or bad config, 3 not found, 4 agent or store
unreachable, 130 interrupted. An expected failure is one line on stderr; a bug is a
traceback and exit 1.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import threading
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from ctl import __version__
from ctl.core.errors import OvnetError

NOUNS = (
    "agent", "network", "lease", "ipam", "map", "flow", "hook", "status", "doctor", "probe", "report",
    "trace", "monitor", "top", "capture", "docker-opts", "teardown",
)  # fmt: skip
"""The commands, each a module of this package (with `_` for `-`) that has `register(subparsers)`."""


class Parser(argparse.ArgumentParser):
    """argparse, without abbreviations (they break when a flag is added) and in one line."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"ovctl: error: {message} (see {self.prog} --help)\n")


def _wanted(argv: Sequence[str]) -> Sequence[str]:
    """The nouns whose modules this command line needs: start-up time is felt at a prompt."""
    words = iter(argv)
    for word in words:
        if word == "--config":
            next(words, None)
        elif word in NOUNS:
            return (word,)
        elif not word.startswith("--config="):
            break
    return NOUNS


def build_parser(nouns: Sequence[str] = NOUNS) -> argparse.ArgumentParser:
    """The parser, with the subcommands of `nouns`."""
    parser = Parser(prog="ovctl", description="Run, set up and look into ovnet, a container overlay network.")
    parser.add_argument("--version", action="version", version=f"ovctl {__version__}")
    parser.add_argument(
        "--config", metavar="FILE", help="settings file (default: /etc/ovnet/ovnet.toml if there is one)"
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for noun in nouns:
        import_module(f"ctl.cli.{noun.replace('-', '_')}").register(subparsers)
    return parser


def _thread_died(failure: threading.ExceptHookArgs) -> None:
    """A bug in a thread must not leave a process that only looks alive."""
    traceback.print_exception(failure.exc_type, failure.exc_value, failure.exc_traceback)
    sys.stderr.flush()
    os._exit(1)


def _run(argv: Sequence[str]) -> int:
    # Entries of maps are objects by the hundred thousand, in no cycles. The agent has its own measure.
    gc.set_threshold(100_000)
    args = build_parser(_wanted(argv)).parse_args(argv)
    code: int = args.func(args)
    sys.stdout.flush()
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Run ovctl with `argv` (None: the process's own); returns the exit code."""
    threading.excepthook = _thread_died
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except OvnetError as error:
        print(f"ovctl: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Our reader has seen enough. Python flushes stdout once more at exit: to nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0


if __name__ == "__main__":
    sys.exit(main())
