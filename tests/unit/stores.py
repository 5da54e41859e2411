"""What the tests of stores share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network

from ctl.core.model import Lease, MacAddress
from ctl.core.ports import LeaseStore

DEADLINE = 20.0
"""Seconds until something that should happen counts as not happening."""

MAC = MacAddress.parse("02:00:00:00:00:01")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def lease(third: int = 3, host: str = "10.0.0.1", expires_at: float | None = 1060.0) -> Lease:
    subnet = IPv4Network(f"172.17.{third}.0/24")
    return Lease(subnet, IPv4Address(host), MAC, 1, node=f"node-{host}", expires_at=expires_at)


def watching(store: LeaseStore, change: Callable[[], object]) -> bool:
    """Whether a watch of `store` fires on `change`. Its callback reads the store, as the agent's does."""
    fired = threading.Event()

    def changed() -> None:
        store.snapshot()
        fired.set()

    watch = store.watch(changed)
    try:
        change()
        return fired.wait(DEADLINE)
    finally:
        watch.close()
