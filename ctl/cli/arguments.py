"""What argparse makes of words: types that several commands share. A wrong word is one line, exit code 2."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from ipaddress import ip_address
from typing import TypeVar

from ctl.core.abi import Ip

T = TypeVar("T")


def address(text: str) -> Ip:
    """An address of either family."""
    try:
        return ip_address(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an IPv4 or IPv6 address") from None


def number(low: int, high: int) -> Callable[[str], int]:
    """A type: whole numbers from `low` to `high`."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
            raise argparse.ArgumentTypeError(f"{text!r} is no number from {low} to {high}")
        return int(text)

    return read


def seconds(text: str) -> float:
    """How often something is shown."""
    try:
        found = float(text)
    except ValueError:
        found = 0
    if not 0.1 <= found <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is no time between 0.1 and 86400 seconds")
    return found


def parsed(parse: Callable[[str], T]) -> Callable[[str], T]:
    """A type of what `parse` reads; the words of its ValueError are shown."""

    def read(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read
