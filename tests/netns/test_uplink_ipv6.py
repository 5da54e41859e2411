"""What an uplink can have of IPv6: asked of the kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import IPv6Address

import pytest

from ctl.core.candidates import UplinkChoice
from ctl.core.errors import AgentError
from ctl.core.uplink import decide_first
from ctl.core.uplink_ipv6 import Fault
from ctl.kernel.netlink.session import Netlink
from ctl.kernel.netlink.uplink import survey
from tests.dual import init_network, underlay, with_ipv6
from tests.host import Host
from tests.lab import Lab
from tests.process import wait_until

OURS, THEIRS = "fd77::11", "fd77::12"


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    with Lab() as lab:
        yield with_ipv6(lab.host("a")), with_ipv6(lab.host("b"))


@pytest.fixture
def host(hosts: tuple[Host, Host]) -> Iterator[Host]:
    """Its addresses are its own again afterwards."""
    host, _ = hosts
    yield host
    host.ip("-6", "address", "flush", "dev", "eth0", "scope", "global")
    for name, value in (("disable_ipv6", "0"), ("dad_transmits", "1"), ("use_tempaddr", "0")):
        host.sysctl(f"net.ipv6.conf.eth0.{name}", value)
    host.ip("address", "add", f"{underlay(host)}/64", "dev", "eth0", "nodad")


def faults(host: Host) -> dict[IPv6Address, Fault | None]:
    """What is wrong with each address of the uplink."""

    def ask() -> dict[IPv6Address, Fault | None]:
        with Netlink() as netlink:
            (uplink,) = (each for each in netlink.links().values() if each.name == "eth0")
            return {each.ip: each.fault for each in netlink.uplink_ipv6(uplink.ifindex)}

    return host.call(ask)


def chosen(host: Host, choice: UplinkChoice) -> tuple[str, str]:
    """The uplink and its IPv4 address by this request."""

    def ask() -> tuple[str, str]:
        with Netlink() as netlink:
            found = decide_first(choice, survey(netlink, choice))
            if found.memory is None:
                raise AgentError(found.error)
            return found.memory.uplink.link.name, str(found.memory.uplink.address)

    return host.call(ask)


def test_the_kernels_flags_tell_which_addresses_pass(hosts: tuple[Host, Host], host: Host) -> None:
    assert faults(host)[IPv6Address(underlay(host))] is None
    host.ip("address", "add", "fd77::de/64", "dev", "eth0", "nodad", "preferred_lft", "0")
    host.ip("address", "add", f"{underlay(hosts[1])}/64", "dev", "eth0")  # b's
    host.sysctl("net.ipv6.conf.eth0.use_tempaddr", "2")
    host.ip("address", "add", "fd77::aa/64", "dev", "eth0", "nodad", "mngtmpaddr")
    wait_until(lambda: faults(host)[IPv6Address(underlay(hosts[1]))] is Fault.DUPLICATE, 20, "DAD has failed")
    wait_until(lambda: Fault.TEMPORARY in faults(host).values(), 20, "a temporary address")
    host.sysctl("net.ipv6.conf.eth0.dad_transmits", "200")
    host.ip("address", "add", "fd77::7e/64", "dev", "eth0")
    found = faults(host)
    assert found[IPv6Address("fd77::de")] is Fault.DEPRECATED
    assert found[IPv6Address("fd77::7e")] is Fault.TENTATIVE
    assert found[IPv6Address("fd77::aa")] is None
    assert {fault for ip, fault in found.items() if ip.is_link_local} == {Fault.LINK_LOCAL}


def test_an_uplink_is_named_by_an_ipv6_address_of_it_and_by_a_host_that_it_leads_to(
    hosts: tuple[Host, Host], host: Host
) -> None:
    by_address, by_way = UplinkChoice(underlay(host)), UplinkChoice(can_reach=IPv6Address(underlay(hosts[1])))
    for choice in (by_address, by_way):
        assert chosen(host, choice) == ("eth0", host.address)
    with pytest.raises(AgentError, match="no interface has address fd77::999: see --iface"):
        chosen(host, UplinkChoice("fd77::999"))
    with pytest.raises(AgentError, match=r"2001:db8::1.*: see --iface-can-reach"):
        chosen(host, UplinkChoice(can_reach=IPv6Address("2001:db8::1")))


def test_an_agent_waits_for_an_address_that_is_tentative_and_publishes_the_one_that_was_asked_for(
    host: Host,
) -> None:
    init_network(host)
    host.sysctl("net.ipv6.conf.eth0.dad_transmits", "3")  # a second each
    host.ip("address", "add", "fd77::7e/64", "dev", "eth0")
    agent = host.agent("--bypass", "off", wait=False, env={"OVNET_IFACE": "fd77::7e"})
    agent.wait_ready()
    (lease,) = host.json("lease", "list")
    assert lease["host"] == host.address
    device = host.ip("-d", "link", "show", "ovnet-v6.1")
    assert "local fd77::7e " in device
    assert agent.stop() == 0


def deprecated(host: Host) -> None:
    host.ip("address", "add", "fd77::de/64", "dev", "eth0", "nodad", "preferred_lft", "0")


def link_local(_: Host) -> None:
    """As it is without others."""


def switched_off(host: Host) -> None:
    host.sysctl("net.ipv6.conf.eth0.disable_ipv6", "1")


@pytest.mark.parametrize(
    ("become", "said"),
    [
        (deprecated, "fd77::de is deprecated"),
        (link_local, "is link-local"),
        (switched_off, "sysctl -w net.ipv6.conf.eth0.disable_ipv6=0"),
    ],
)
def test_an_agent_on_an_uplink_without_a_lasting_address_ends_with_one_line(
    host: Host, become: Callable[[Host], None], said: str
) -> None:
    init_network(host)
    host.ip("-6", "address", "flush", "dev", "eth0", "scope", "global")
    become(host)
    agent = host.agent(wait=False)
    assert agent.wait(20) == 1
    last = agent.log().strip().splitlines()[-1]
    assert last.startswith("ovctl: error: the network has IPv6, and uplink eth0 no") and said in last
