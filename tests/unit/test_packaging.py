"""What packages carry is complete: pages, completions, settings file, wheels, changelog."""

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import ctl
from ctl.settings.config import SETTINGS, resolve
from deploy import changelog, generated

ROOT = Path(__file__).parents[2]
DEBIAN = ROOT / "deploy" / "debian"
COMMANDS = generated.parsers(generated.parser())


def plain(page: str) -> str:
    """A manual page's text as it is read."""
    return re.sub(r"\\f[A-Z]|\\[,/]", "", page).replace("\\-", "-").replace("\\(aq", "'")


def section(page: str, command: str) -> str:
    """What ovctl(1) says of one command's flags."""
    if command == "ovctl":
        return page.partition("\n.SH COMMAND")[0]
    return "".join(re.findall(rf"^\.SH \S+ '{command}'\n.*?(?=\n\.SH )", page + "\n.SH ", re.M | re.S))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_flag_is_in_the_manual(command: str) -> None:
    said = section(plain(generated.command_page()), command)
    wanted = [flag for flag in generated.flags(COMMANDS[command]) if flag != "--help"]  # -h is there
    assert [flag for flag in wanted if not re.search(rf"{flag}\b", said)] == []
    assert said, f"{command} has no section"


def test_every_setting_is_in_the_manual() -> None:
    page = plain(generated.settings_page())
    assert [each.name for each in SETTINGS if f"\n{each.name} = {each.metavar}\n" not in page] == []
    assert [each.flag for each in SETTINGS if f"Flag: {each.flag};" not in page] == []


@pytest.mark.parametrize("shell", generated.SHELLS)
def test_every_command_and_flag_is_in_each_shells_completion(shell: str) -> None:
    text = generated.completion(shell)
    words = {word for command in COMMANDS for word in command.split()}
    assert [word for word in sorted(words) if not re.search(rf"\b{word}\b", text)] == []
    given = sorted({flag.lstrip("-") for each in COMMANDS.values() for flag in generated.flags(each)})
    assert [flag for flag in given if not re.search(rf"(-|-l |-s ){flag}\b", text)] == []


def test_the_settings_file_sets_nothing_until_a_line_is_uncommented() -> None:
    assert tomllib.loads(generated.settings_file()) == {}


def test_the_settings_file_shows_every_default() -> None:
    text = re.sub(r"^#(?=\w+ = )", "", generated.settings_file(), flags=re.MULTILINE)
    assert set(tomllib.loads(text)) == {each.name for each in SETTINGS}
    nothing = argparse.Namespace()
    assert resolve(nothing, {}, text) == resolve(nothing, {}, None)


def requirements() -> dict[str, Requirement]:
    """What pyproject.toml says the agent needs of PyPI."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {each.name: each for each in map(Requirement, project["dependencies"])}


def test_the_wheels_of_the_package_are_what_the_project_depends_on() -> None:
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)", (DEBIAN / "wheels.txt").read_text(), re.MULTILINE))
    for name, wanted in requirements().items():
        assert pinned[name] in wanted.specifier, name


def test_the_package_depends_on_what_a_checkout_installs() -> None:
    (listed,) = re.findall(r"^run_packages=\((.*?)\)", (ROOT / "scripts/setup.sh").read_text(), re.M | re.S)
    control = (DEBIAN / "control").read_text()
    assert [each for each in listed.split() if each != "python3-venv" and f" {each}" not in control] == []


def test_the_newest_entry_of_the_changelog_is_this_version() -> None:
    assert changelog.releases(changelog.CHANGELOG.read_text())[0].version == ctl.__version__


def test_a_changelog_entry_becomes_debians() -> None:
    text = "# Changelog\n\n## 1.1\n\n- New: a thing.\n- Mended: another.\n\n## 1.0\n\n- First.\n"
    assert changelog.debian(changelog.releases(text), 0) == (
        "ovnet (1.1) unstable; urgency=medium\n\n  * New: a thing.\n  * Mended: another.\n\n"
        f" -- {changelog.MAINTAINER}  Thu, 01 Jan 1970 00:00:00 -0000\n\n"
        "ovnet (1.0) unstable; urgency=medium\n\n  * First.\n\n"
        f" -- {changelog.MAINTAINER}  Thu, 01 Jan 1970 00:00:00 -0000\n"
    )


def test_an_entry_that_says_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing of 1.1"):
        changelog.releases("## 1.1\n\n## 1.0\n\n- First.\n")


def test_the_maintainer_is_said_once() -> None:
    assert f"Maintainer: {changelog.MAINTAINER}\n" in (DEBIAN / "control").read_text()
