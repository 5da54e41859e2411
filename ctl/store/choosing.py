"""What stores have in common in which nodes choose their subnets themselves."""

from __future__ import annotations

from ctl.core.model import IPv4Address, Subnets


class Choosing:
    """A part of a LeaseStore."""

    def assigned(self, _node: str) -> Subnets | None:
        """None: each chooses."""
        return None

    def address_of(self, _node: str) -> IPv4Address | None:
        """None: each finds out."""
        return None

    def in_service(self) -> None:
        """Nobody waits for it."""
