"""Which IPv6 address of the uplink a node publishes, and what is said where none will do."""

from __future__ import annotations

from argparse import Namespace
from ipaddress import IPv6Address
from typing import Any

import pytest

from ctl.core.errors import AgentError, KernelError
from ctl.core.uplink_ipv6 import Fault, UplinkIPv6, is_settling, own_ipv6
from ctl.core.wire import parse_network
from ctl.kernel import sysctl
from ctl.node.dual_stack import DualStack
from ctl.settings.config import resolve

ONE, OTHER = IPv6Address("2001:db8::7"), IPv6Address("fd77::7")
GONE = IPv6Address("fd77::9")
LASTING = [UplinkIPv6(ONE), UplinkIPv6(OTHER)]
LINK = UplinkIPv6(IPv6Address("fe80::7"), Fault.LINK_LOCAL)


@pytest.mark.parametrize(
    ("asked", "before", "found"),
    [(None, None, ONE), (None, OTHER, OTHER), (None, GONE, ONE), (OTHER, ONE, OTHER)],
    ids=["the first", "that of before stays", "that of before is gone", "the one that was asked for"],
)
def test_which_of_the_uplinks_addresses_is_published(
    asked: IPv6Address | None, before: IPv6Address | None, found: IPv6Address
) -> None:
    assert own_ipv6([LINK, *LASTING], "eth0", asked, before) == found


@pytest.mark.parametrize("fault", Fault)
def test_an_address_that_passes_is_published_by_no_node_and_the_one_behind_it_is(fault: Fault) -> None:
    found = [UplinkIPv6(ONE, fault), UplinkIPv6(OTHER)]
    assert own_ipv6(found, "eth0", None, before=ONE) == OTHER


@pytest.mark.parametrize(
    ("found", "disabled", "said"),
    [
        ([], False, "for good: give it one, or see --iface"),
        (
            [],
            True,
            "it is switched off there: sysctl -w net.ipv6.conf.eth0/7.disable_ipv6=0, and give it one",
        ),
        ([LINK], False, "fe80::7 is link-local: hosts on other links do not reach it: give the uplink one"),
        (
            [LINK, UplinkIPv6(ONE, Fault.TEMPORARY)],
            False,
            f"{ONE} is temporary: .* give the uplink a lasting",
        ),
        ([LINK, UplinkIPv6(ONE, Fault.DEPRECATED)], False, f"{ONE} is deprecated: it runs out.*: renew it"),
        ([LINK, UplinkIPv6(ONE, Fault.TENTATIVE)], False, f"{ONE} is tentative: .* start the agent again"),
        ([LINK, UplinkIPv6(ONE, Fault.DUPLICATE)], False, f"{ONE} is another host's too: .* another address"),
    ],
    ids=[
        "none",
        "switched off",
        *map(str, ("link-local", "temporary", "deprecated", "tentative", "duplicate")),
    ],
)
def test_an_uplink_without_an_address_for_good_is_named_with_the_remedy(
    found: list[UplinkIPv6], disabled: bool, said: str
) -> None:
    with pytest.raises(
        AgentError, match=f"the network has IPv6, and uplink eth0.7 no address.*{said}"
    ) as error:
        own_ipv6(found, "eth0.7", None, OTHER, disabled=disabled)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (LASTING, "does not have fd77::9 for good: see --public-ipv6 and --iface"),
        (
            [*LASTING, UplinkIPv6(GONE, Fault.DEPRECATED)],
            "does not have fd77::9 for good: fd77::9 is deprecated: it",
        ),
    ],
)
def test_an_address_that_was_asked_for_and_will_not_do_is_named(found: list[UplinkIPv6], said: str) -> None:
    with pytest.raises(AgentError, match=f"uplink eth0 {said}"):
        own_ipv6(found, "eth0", GONE, None)


def test_only_what_is_tentative_is_waited_for_and_only_if_nothing_else_will_do() -> None:
    tentative = UplinkIPv6(GONE, Fault.TENTATIVE)
    assert is_settling([LINK, tentative], None)
    assert is_settling([*LASTING, tentative], GONE)
    assert not is_settling([*LASTING, tentative], None)
    assert not is_settling([tentative], ONE)
    assert not is_settling([LINK, UplinkIPv6(GONE, Fault.DUPLICATE)], None)
    assert not is_settling([], None)


def test_a_kernel_without_ipv6_is_named_with_its_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysctl, "has_ipv6", lambda: False)
    nothing: Any = None
    dual = DualStack(resolve(Namespace(), {}, None), nothing, nothing)
    text = (
        '{"Network":"172.17.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48","Backend":{"Type":"vxlan"}}'
    )
    with pytest.raises(KernelError, match=r"no IPv6, .* boot it without ipv6.disable=1"):
        dual.preflight(parse_network(text), None)
