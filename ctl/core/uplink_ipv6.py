"""Which IPv6 address of the uplink is ours, and why none can be. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv6Address
from typing import Final

from ctl.core.errors import AgentError


class Fault(StrEnum):
    """Why others cannot reach a host at an address for good. Those that pass soonest go first."""

    TENTATIVE = "is tentative"
    DUPLICATE = "is another host's too"
    DEPRECATED = "is deprecated"
    TEMPORARY = "is temporary"
    LINK_LOCAL = "is link-local"


_REMEDIES: Final[Mapping[Fault, str]] = {
    Fault.TENTATIVE: "whether another host has it is being asked still: start the agent again in a moment",
    Fault.DUPLICATE: "duplicate address detection has failed: give one of the two another address",
    Fault.DEPRECATED: "it runs out: renew it, or give the uplink another",
    Fault.TEMPORARY: "it is replaced every day (RFC 8981): give the uplink a lasting one beside it",
    Fault.LINK_LOCAL: "hosts on other links do not reach it: give the uplink one besides, or see --iface",
}


@dataclass(frozen=True, slots=True)
class UplinkIPv6:
    """An address that the uplink has."""

    ip: IPv6Address
    fault: Fault | None = None
    """None: others can reach it for good."""

    def __str__(self) -> str:
        return f"{self.ip} {self.fault}: {_REMEDIES[self.fault]}" if self.fault else str(self.ip)


def is_settling(found: Sequence[UplinkIPv6], asked: IPv6Address | None) -> bool:
    """Whether `own_ipv6` may find one in a moment: all that it could take is tentative."""
    fitting = [each.fault for each in found if asked in (None, each.ip)]
    return None not in fitting and Fault.TENTATIVE in fitting


def own_ipv6(
    found: Sequence[UplinkIPv6],
    uplink: str,
    asked: IPv6Address | None,
    before: IPv6Address | None,
    *,
    disabled: bool = False,
) -> IPv6Address:
    """The address that a node publishes of IPv6. AgentError if there is none.

    `found`: those of the uplink, in the kernel's order; `asked`: by --public-ipv6 or --iface; `before`: what
    was published until now, which stays as long as it is there; `disabled`: the uplink has IPv6 switched off.
    """
    lasting = [each.ip for each in found if each.fault is None]
    if asked is not None and asked not in lasting:
        why = next((str(each) for each in found if each.ip == asked), "see --public-ipv6 and --iface")
        raise AgentError(f"uplink {uplink} does not have {asked} for good: {why}")
    if asked is not None:
        return asked
    if not lasting:
        raise AgentError(
            f"the network has IPv6, and uplink {uplink} no address of it that others can reach for good:"
            f" {_lacking(found, uplink, disabled)}"
        )
    return before if before is not None and before in lasting else lasting[0]


def _lacking(found: Sequence[UplinkIPv6], uplink: str, disabled: bool) -> str:
    """What is to be done about it."""
    if disabled:
        name = uplink.replace(".", "/")  # as sysctl(8) takes it
        return f"it is switched off there: sysctl -w net.ipv6.conf.{name}.disable_ipv6=0, and give it one"
    order = list(Fault)
    nearest = min(found, key=lambda each: order.index(each.fault or order[-1]), default=None)
    return "give it one, or see --iface" if nearest is None else str(nearest)
