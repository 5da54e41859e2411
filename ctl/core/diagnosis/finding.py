"""A line of the doctor's: how bad something is, what was seen, what it means, what mends it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class Finding:
    """A line of the doctor's."""

    check: str
    """What was looked at, one word."""
    level: Level
    seen: str
    means: str = ""
    remedy: str = ""
    """A command, or what to do; empty where nothing has to be done."""


def ok(check: str, seen: str) -> Finding:
    """Something that is well."""
    return Finding(check, Level.OK, seen)


def failure(check: str, seen: str, means: str, remedy: str) -> Finding:
    """Something for which packets are lost, or will be."""
    return Finding(check, Level.FAILURE, seen, means, remedy)


def warning(check: str, seen: str, means: str, remedy: str) -> Finding:
    """Something that is worth knowing."""
    return Finding(check, Level.WARNING, seen, means, remedy)


def verdict(findings: Sequence[Finding]) -> int:
    """The exit code: 1 if anything fails."""
    return int(any(each.level is Level.FAILURE for each in findings))
