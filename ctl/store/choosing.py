"""What stores have in common in which nodes choose their subnets themselves."""

from __future__ import annotations

from ctl.core.model import FOUND_OUT, Addresses, Subnets


class Choosing:
    """A part of a LeaseStore."""

    def assigned(self, _node: str) -> Subnets | None:
        """None: each chooses."""
        return None

    def addresses_of(self, _node: str) -> Addresses:
        """None: each finds out."""
        return FOUND_OUT

    def in_service(self) -> None:
        """Nobody waits for it."""
