"""Commands are found where distributions have them, whatever PATH says."""

from __future__ import annotations

import os
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from ctl.core.errors import KernelError
from ctl.kernel import command, iptables


def script(place: Path, name: str, text: str) -> None:
    place.mkdir(exist_ok=True)
    (place / name).write_text(f"#!/bin/sh\n{text}\n")
    (place / name).chmod(0o755)


@pytest.fixture
def sbin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The only directory for root's commands, which is not in PATH."""
    monkeypatch.setattr(command, "_SBIN", (str(tmp_path / "sbin"),))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return tmp_path / "sbin"


@pytest.mark.parametrize(
    ("environ", "path"),
    [
        ({"PATH": "/usr/bin:/bin"}, "/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"),
        ({"PATH": "/a:/usr/sbin"}, "/a:/usr/sbin:/usr/local/sbin:/sbin"),
        ({"PATH": ""}, f"{os.defpath}:/usr/local/sbin:/usr/sbin:/sbin"),
        ({}, f"{os.defpath}:/usr/local/sbin:/usr/sbin:/sbin"),
    ],
)
def test_a_path_has_the_places_of_roots_commands_behind_its_own(environ: dict[str, str], path: str) -> None:
    assert command.search_path(environ) == path


def test_a_command_beside_the_path_is_found_and_finds_others(sbin: Path) -> None:
    script(sbin, "other", "echo found")
    script(sbin, "first", "other")
    assert command.find("first") == str(sbin / "first")
    assert command.run("first") == "found\n"
    assert command.succeeds("first")


def test_without_any_path_it_is_found_too(sbin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(sbin, "first", "echo found")
    monkeypatch.delenv("PATH")
    assert command.run("first") == "found\n"


def test_the_path_that_is_given_comes_first(sbin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(sbin, "first", "echo theirs")
    script(sbin.parent / "own", "first", "echo own")
    monkeypatch.setenv("PATH", str(sbin.parent / "own"))
    assert command.run("first") == "own\n"


def test_what_is_nowhere_is_named(sbin: Path) -> None:
    assert command.find("nft-of-nobody") is None
    assert not command.succeeds("nft-of-nobody")
    with pytest.raises(KernelError, match="nft-of-nobody is not installed"):
        command.run("nft-of-nobody")


def test_a_failure_names_the_command_as_it_was_given(sbin: Path) -> None:
    script(sbin, "first", "echo no >&2; exit 1")
    with pytest.raises(KernelError, match="^first -x: no$"):
        command.run("first", "-x")


def test_iptables_beside_the_path_is_used(sbin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it was not found, Docker's FORWARD policy dropped what is forwarded."""
    asked: list[tuple[str, ...]] = []

    def run(*words: str, **_: object) -> str:
        asked.append(words)
        return ""

    monkeypatch.setattr(iptables, "run", run)
    monkeypatch.setenv("PATH", "/nowhere")
    script(sbin, "iptables", "")
    iptables.ensure(IPv4Network("10.77.0.0/16"), "ovnet0")
    assert ("iptables", "-w", "-A", "FORWARD", "-j", iptables.CHAIN) in asked
