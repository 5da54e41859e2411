"""What packages carry and nobody writes by hand: manual pages, completions, the commented settings file.

    python -m deploy.generated DIRECTORY

All of it is made of the parser and of the table of settings, so it cannot be older than they are.
Completions are static text (shtab), so a TAB starts no Python. The date in the pages is
$SOURCE_DATE_EPOCH's.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import shtab
from argparse_manpage.manpage import Manpage

from ctl import __version__
from ctl.cli.main import build_parser
from ctl.settings.config import DEFAULT_FILE, SETTINGS, Setting

SHELLS: Final = {
    "bash": "completions/ovctl.bash",
    "zsh": "completions/_ovctl",
    "fish": "completions/ovctl.fish",
}
"""Where each shell's completion goes, as its package calls the file."""

_COMPLETED: Final = {"FILE": shtab.FILE, "DIR": shtab.DIRECTORY}
"""By metavar: what a value is completed with, beside the choices that argparse knows."""


def parser() -> argparse.ArgumentParser:
    """`ovctl`'s, with what completions need beside it."""
    whole = build_parser()
    for each in parsers(whole).values():
        for action in each._actions:
            if isinstance(action.metavar, str) and action.metavar in _COMPLETED:
                action.complete = _COMPLETED[action.metavar]  # type: ignore[attr-defined]
    return whole


def parsers(top: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """`top` and the parsers of all commands below it, by what one types: `ovctl map dump`."""
    found = {top.prog: top}
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                found |= parsers(below)
    return found


def flags(of: argparse.ArgumentParser) -> Iterator[str]:
    """The flags of one command, as one types them."""
    for action in of._actions:
        yield from action.option_strings


def command_page() -> str:
    """ovctl(1)."""
    page = Manpage(parser())
    page.description = "run, set up and look into a container overlay network"
    page.manual, page.source = "ovnet", f"ovnet {__version__}"
    page.add_section("files", ">", f".I {DEFAULT_FILE}\nis described in ovnet.toml(5).")
    page.add_section("see also", ">", "ovnet.toml(5), the documents in /usr/share/doc/ovnet")
    return re.sub(r"^usage: .*?(?=\n\n)", r".nf\n\g<0>\n.fi", str(page), flags=re.MULTILINE | re.DOTALL)


def settings_page() -> str:
    """ovnet.toml(5)."""
    date = re.search(r'^\.TH \S+ "1" ("[^"]*")', command_page(), re.MULTILINE)
    assert date, "argparse-manpage writes a title line"
    return "\n".join(
        [
            f'.TH OVNET.TOML "5" {date[1]} "ovnet {__version__}" "ovnet"',
            ".SH NAME",
            "ovnet.toml \\- settings of an ovnet node",
            ".SH SYNOPSIS",
            f".I {DEFAULT_FILE}",
            ".SH DESCRIPTION",
            "TOML, a key for each setting. A flag of ovctl(1) is stronger than the variable, and that than",
            "the file. A key that is no setting stops the command, with exit code 2.",
            ".SH SETTINGS",
            *(line for setting in SETTINGS for line in _described(setting)),
            ".SH SEE ALSO",
            "ovctl(1)\n",
        ]
    )


def _described(setting: Setting) -> Iterator[str]:
    default = f" (default: {_roff(_toml(setting))})" if setting.default else ""
    yield ".TP"
    yield f"\\fB{setting.name}\\fR = \\fI{_roff(setting.metavar)}\\fR"
    yield f"{_roff(setting.help)}{default}. Flag: {_roff(setting.flag)}; variable: {setting.variable}."


def _roff(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")


def settings_file() -> str:
    """ovnet.toml with every setting at its default, all of them commented out."""
    head = (
        "# Settings of this ovnet node, each with its default: ovnet.toml(5).",
        "# `ovctl agent` reads them when it starts: systemctl restart ovnet",
    )
    rows = (f"\n# {setting.help}\n#{setting.name} = {_toml(setting)}" for setting in SETTINGS)
    return "\n".join([*head, *rows]) + "\n"


def _toml(setting: Setting) -> str:
    return f'"{setting.default}"' if setting.toml == (str,) else setting.default


def completion(shell: str) -> str:
    """The completion of `ovctl` for one of SHELLS."""
    return shtab.complete(parser(), shell)


FILES: Final[Mapping[str, Callable[[], str]]] = {
    "man/ovctl.1": command_page,
    "man/ovnet.toml.5": settings_page,
    "ovnet.toml": settings_file,
    **{name: lambda shell=shell: completion(shell) for shell, name in SHELLS.items()},  # type: ignore[misc]
}


def main(directory: Path) -> None:
    """Write all of FILES below `directory`."""
    for name, text in FILES.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
