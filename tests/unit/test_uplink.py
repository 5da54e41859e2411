"""Which interface and which address: a test for each row, and laws that hold for all hosts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ctl.core.candidates import Address, Host, UplinkChoice, rivals
from ctl.core.host import OWNER, Link, Uplink
from ctl.core.uplink import HOLD_S, Decision, Memory, Row, decide, decide_first

DEFAULT = UplinkChoice()
ETH0, VPN0, BR0 = 2, 3, 4


def link(ifindex: int, name: str, **changes: object) -> Link:
    made = Link(ifindex, name, "", None, 1500, True, 0, False, "", 0)
    return replace(made, **changes)  # type: ignore[arg-type]


LINKS = {ETH0: link(ETH0, "eth0"), VPN0: link(VPN0, "vpn0")}


def address(text: str, **changes: bool) -> Address:
    ip, _, length = text.partition("/")
    return replace(Address(IPv4Address(ip), int(length or 24)), **changes)  # type: ignore[arg-type]


OURS, VPN, VIP = "10.0.0.11/24", "10.99.0.2/24", "10.0.0.100/32"


def host(
    addresses: Mapping[int, Sequence[str | Address]],
    *,
    links: Mapping[int, Link] = LINKS,
    defaults: tuple[int, ...] = (ETH0,),
    reached: tuple[int, str] | None = None,
) -> Host:
    made = {
        ifindex: tuple(address(each) if isinstance(each, str) else each for each in found)
        for ifindex, found in addresses.items()
    }
    way = None if reached is None else (reached[0], IPv4Address(reached[1]))
    return Host(links, made, defaults, way)


def memory(ifindex: int = ETH0, ip: str = "10.0.0.11", own: str = "", **changes: object) -> Memory:
    uplink = Uplink(LINKS[ifindex], IPv4Address(ip))
    return replace(Memory(uplink, IPv4Address(own or ip)), **changes)  # type: ignore[arg-type]


def chosen(found: Decision) -> tuple[str, str]:
    assert found.memory is not None
    return found.memory.uplink.link.name, str(found.memory.uplink.address)


BOTH: dict[int, Sequence[str | Address]] = {ETH0: [OURS], VPN0: [VPN]}
FADING = address("10.0.0.9/24", fading=True)
SECONDARY = address("10.0.0.12/24", secondary=True)
NARROW = address("10.8.0.1/24", narrow=True)

# --- The best address of an interface ----------------------------------------------


@pytest.mark.parametrize(
    ("addresses", "best"),
    [
        (["169.254.7.7/16", OURS], "10.0.0.11"),
        ([NARROW, OURS], "10.0.0.11"),
        ([FADING, OURS], "10.0.0.11"),
        ([VIP, OURS], "10.0.0.11"),
        ([OURS, "10.1.0.1/24"], "10.0.0.11"),
        ([SECONDARY, FADING], "10.0.0.12"),
        ([VIP, SECONDARY], "10.0.0.100"),
        ([FADING, "169.254.7.7/16"], "10.0.0.9"),
        (["169.254.7.7/16"], "169.254.7.7"),
        ([VIP], "10.0.0.100"),
        (["127.0.0.5/8", OURS], "10.0.0.11"),
    ],
    ids=str,
)
@pytest.mark.parametrize("asked", [DEFAULT, UplinkChoice("eth0"), UplinkChoice(pattern="^eth")], ids=str)
def test_the_best_address_of_the_interface_is_published(
    asked: UplinkChoice, addresses: list[str | Address], best: str
) -> None:
    found = decide_first(asked, host({ETH0: addresses}))
    assert (found.row, chosen(found)) == (Row.FIRST, ("eth0", best))


# --- The start ---------------------------------------------------------------------


def test_the_default_route_with_the_least_metric_that_has_an_address_is_followed() -> None:
    assert chosen(decide_first(DEFAULT, host(BOTH, defaults=(VPN0, ETH0)))) == ("vpn0", "10.99.0.2")
    assert chosen(decide_first(DEFAULT, host({ETH0: [OURS]}, defaults=(VPN0, ETH0)))) == ("eth0", "10.0.0.11")


def test_an_interface_that_is_down_is_found_only_if_no_other_is() -> None:
    down = {**LINKS, ETH0: link(ETH0, "eth0", up=False)}
    assert chosen(decide_first(DEFAULT, host(BOTH, links=down, defaults=(ETH0, VPN0)))) == (
        "vpn0",
        "10.99.0.2",
    )
    assert chosen(decide_first(DEFAULT, host(BOTH, links=down))) == ("eth0", "10.0.0.11")


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        (DEFAULT, "no default route to find the uplink by: name it with --iface"),
        (UplinkChoice("eth9"), "uplink eth9 does not exist: see --iface"),
        (UplinkChoice("vpn0"), "uplink vpn0 has no IPv4 address: give it one, or choose another --iface"),
        (UplinkChoice("10.0.0.9"), "no interface has address 10.0.0.9: see --iface"),
        (UplinkChoice("fd77::9"), "no interface has address fd77::9: see --iface"),
        (
            UplinkChoice(pattern="wan"),
            "no interface matches 'wan': there are eth0 10.0.0.11, vpn0; see --iface-regex",
        ),
        (
            UplinkChoice(can_reach=IPv4Address("1.1.1.1")),
            "no interface leads to 1.1.1.1: see --iface-can-reach",
        ),
        (
            UplinkChoice("eth0", public_ip=IPv4Address("10.0.0.9")),
            "uplink eth0 does not have 10.0.0.9: see --public-ip and --iface",
        ),
    ],
    ids=str,
)
def test_an_agent_without_an_uplink_says_why(asked: UplinkChoice, complaint: str) -> None:
    found = decide_first(asked, host({ETH0: [OURS]}, defaults=()))
    assert (found.row, found.memory, found.error) == (Row.NOTHING, None, complaint)


def test_an_agent_that_is_started_again_keeps_its_address() -> None:
    """Also while another default route is there, and while a virtual address comes first."""
    kept = IPv4Address("10.0.0.11")
    found = decide_first(DEFAULT, host(BOTH, defaults=(VPN0, ETH0)), kept)
    assert (found.row, chosen(found)) == (Row.KEPT, ("eth0", "10.0.0.11"))
    assert "vpn0 with 10.99.0.2 would be found now" in found.newcomer
    found = decide_first(UplinkChoice("eth0"), host({ETH0: ["10.0.0.9/24", OURS]}), kept)
    assert (found.row, chosen(found)) == (Row.KEPT, ("eth0", "10.0.0.11"))


def test_an_earlier_address_that_is_gone_is_forgotten_at_the_start() -> None:
    found = decide_first(DEFAULT, host({ETH0: [OURS]}), IPv4Address("10.0.0.7"))
    assert (found.row, found.memory) == (Row.FIRST, memory())


def test_an_earlier_address_on_an_interface_that_is_down_is_ours_when_it_is_up_again() -> None:
    down = {**LINKS, ETH0: link(ETH0, "eth0", up=False)}
    found = decide_first(DEFAULT, host(BOTH, links=down, defaults=(VPN0,)), IPv4Address("10.0.0.11"))
    assert (found.row, chosen(found)) == (Row.FIRST, ("vpn0", "10.99.0.2"))
    assert found.memory
    found = decide(DEFAULT, host(BOTH, defaults=(VPN0,)), found.memory, 1.0)
    assert (found.row, chosen(found)) == (Row.BACK, ("eth0", "10.0.0.11"))


# --- Newcomers ---------------------------------------------------------------------

FIRST = link(1, "eth1")
EARLIER = {1: FIRST, **LINKS}


@pytest.mark.parametrize(
    ("asked", "now"),
    [
        (DEFAULT, host(BOTH, defaults=(VPN0, ETH0))),
        (DEFAULT, host(BOTH, defaults=(VPN0,))),
        (DEFAULT, host(BOTH, defaults=())),
        (DEFAULT, host({ETH0: [VIP, "10.0.0.1/24", OURS]})),
        (UplinkChoice("eth0"), host({ETH0: ["10.0.0.1/24", OURS]})),
        (UplinkChoice(pattern="^eth"), host({1: ["10.0.0.1/24"], **BOTH}, links=EARLIER)),
        (UplinkChoice(pattern=r"^10\."), host({1: ["10.0.0.1/24"], **BOTH}, links=EARLIER)),
        (UplinkChoice(pattern="^lan"), host(BOTH)),
        (UplinkChoice(can_reach=IPv4Address("1.1.1.1")), host(BOTH, reached=(VPN0, "10.99.0.2"))),
        (UplinkChoice(can_reach=IPv4Address("1.1.1.1")), host(BOTH)),
        (DEFAULT, host({ETH0: [replace(address(OURS), fading=True), "10.0.0.1/24"]})),
        (DEFAULT, host({ETH0: ["10.0.0.1/24", replace(address(OURS), secondary=True)]})),
    ],
    ids=[
        "a better default route",
        "the default route goes elsewhere",
        "no default route",
        "virtual addresses come first",
        "another address comes first",
        "an earlier interface has such a name",
        "an earlier interface has such an address",
        "none has such a name any more",
        "another way to the host",
        "no way to the host",
        "our address is deprecated",
        "our address is a secondary one now",
    ],
)
def test_nothing_takes_over_from_what_is_as_it_was(asked: UplinkChoice, now: Host) -> None:
    found = decide(asked, now, memory(), 0.0)
    assert (found.row, chosen(found), found.error, found.wrong) == (Row.STAYS, ("eth0", "10.0.0.11"), "", "")


def test_a_newcomer_on_another_interface_is_named() -> None:
    found = decide(DEFAULT, host(BOTH, defaults=(VPN0, ETH0)), memory(), 0.0)
    assert found.newcomer == "uplink stays eth0 with 10.0.0.11: vpn0 with 10.99.0.2 would be found now"
    assert decide(DEFAULT, host({ETH0: [VIP, OURS]}), memory(), 0.0).newcomer == ""
    found = decide(DEFAULT, host(BOTH, defaults=()), memory(), 0.0)
    assert "no default route" in found.newcomer


# --- Gone --------------------------------------------------------------------------


def test_another_plain_address_takes_the_place_of_one_that_is_gone_at_once() -> None:
    found = decide(UplinkChoice("eth0"), host({ETH0: ["10.0.0.12/24"]}), memory(), 0.0)
    assert (found.row, found.memory, found.wrong) == (Row.SUCCESSOR, memory(ip="10.0.0.12"), "")


def test_a_renumbered_uplink_is_not_given_up_for_a_better_default_route() -> None:
    renumbered = host({ETH0: ["10.0.0.12/24"], VPN0: [VPN]}, defaults=(VPN0, ETH0))
    found = decide(DEFAULT, renumbered, memory(), 0.0)
    assert (found.row, chosen(found)) == (Row.SUCCESSOR, ("eth0", "10.0.0.12"))


@pytest.mark.parametrize(
    ("beside", "left"),
    [
        (VIP, VIP),
        (SECONDARY, replace(SECONDARY, secondary=False)),  # promoted when the primary one went
        ("169.254.7.7/16", "169.254.7.7/16"),
        (FADING, FADING),
    ],
    ids=["a /32", "a secondary one", "link-local", "deprecated"],
)
def test_a_guest_beside_our_address_does_not_replace_it_in_a_moment(
    beside: str | Address, left: str | Address
) -> None:
    """A DHCP client that takes it away and puts it back within seconds moves no lease."""
    asked = UplinkChoice("eth0")
    before = decide(asked, host({ETH0: [OURS, beside]}), memory(), 0.0).memory
    assert before
    gone = decide(asked, host({ETH0: [left]}), before, 100.0)
    assert (gone.row, chosen(gone)) == (Row.WAITS, ("eth0", "10.0.0.11"))
    assert "10.0.0.11 is gone" in gone.error
    assert gone.memory
    back = decide(asked, host({ETH0: [left, OURS]}), gone.memory, 100.0 + HOLD_S - 1)
    assert (back.row, chosen(back), back.error) == (Row.STAYS, ("eth0", "10.0.0.11"), "")


def test_a_guest_is_used_until_our_own_address_is_back() -> None:
    """As keepalived's and kube-vip's come and go: the lease follows, and returns."""
    asked, left = UplinkChoice("eth0"), host({ETH0: [VIP]})
    waiting = decide(asked, left, memory(), 100.0).memory
    assert waiting
    used = decide(asked, left, waiting, 100.0 + HOLD_S)
    assert (used.row, chosen(used)) == (Row.SUBSTITUTE, ("eth0", "10.0.0.100"))
    assert "our own address 10.0.0.11 is gone" in used.wrong
    assert used.memory
    later = decide(asked, left, used.memory, 1000.0)
    assert (later.row, later.wrong) == (Row.STAYS, used.wrong), "said as long as it is so"
    assert later.memory
    back = decide(asked, host({ETH0: [VIP, OURS]}), later.memory, 2000.0)
    assert (back.row, chosen(back), back.wrong) == (Row.BACK, ("eth0", "10.0.0.11"), "")


def test_an_interface_that_is_gone_is_replaced_and_taken_back() -> None:
    left = host({VPN0: [VPN]}, links={VPN0: LINKS[VPN0]}, defaults=(VPN0,))
    waiting = decide(DEFAULT, left, memory(), 0.0)
    assert waiting.row is Row.WAITS
    assert waiting.memory
    used = decide(DEFAULT, left, waiting.memory, HOLD_S)
    assert (used.row, chosen(used)) == (Row.SUBSTITUTE, ("vpn0", "10.99.0.2"))
    again = host({7: [OURS], VPN0: [VPN]}, links={VPN0: LINKS[VPN0], 7: link(7, "eth0")}, defaults=(VPN0,))
    assert used.memory
    back = decide(DEFAULT, again, used.memory, 100.0)
    assert (back.row, chosen(back)) == (Row.BACK, ("eth0", "10.0.0.11"))


def test_an_interface_that_is_down_counts_as_gone_only_if_another_would_do() -> None:
    down = {**LINKS, ETH0: link(ETH0, "eth0", up=False)}
    for asked, defaults in ((DEFAULT, (ETH0,)), (DEFAULT, ()), (UplinkChoice("eth0"), (VPN0,))):
        found = decide(asked, host(BOTH, links=down, defaults=defaults), memory(), 0.0)
        assert (found.row, chosen(found)) == (Row.STAYS, ("eth0", "10.0.0.11"))
    two = {**BOTH, ETH0: [OURS, "10.0.1.12/24"]}
    assert decide(DEFAULT, host(two, links=down, defaults=(ETH0, VPN0)), memory(), 0.0).row is Row.WAITS
    waiting = decide(DEFAULT, host(BOTH, links=down, defaults=(VPN0,)), memory(), 0.0)
    assert waiting.row is Row.WAITS
    assert waiting.memory
    used = decide(DEFAULT, host(BOTH, links=down, defaults=(VPN0,)), waiting.memory, HOLD_S)
    assert (used.row, chosen(used)) == (Row.SUBSTITUTE, ("vpn0", "10.99.0.2"))


def test_an_uplink_that_has_lost_its_only_address_is_waited_for() -> None:
    found = decide(UplinkChoice("eth0"), host({VPN0: [VPN]}), memory(), 7.0)
    assert (found.row, chosen(found)) == (Row.NOTHING, ("eth0", "10.0.0.11"))
    assert found.error == "uplink eth0 has no IPv4 address: give it one, or choose another --iface"


def test_the_wait_begins_once() -> None:
    left, now = host({ETH0: [VIP]}), 0.0
    state = memory()
    for now in (0.0, HOLD_S / 2, HOLD_S * 0.9):
        found = decide(DEFAULT, left, state, now)
        assert found.row is Row.WAITS
        assert found.memory
        state = found.memory
    assert decide(DEFAULT, left, state, HOLD_S).row is Row.SUBSTITUTE


# --- Moved -------------------------------------------------------------------------

TAKEN_IN = {ETH0: link(ETH0, "eth0", master=BR0), VPN0: LINKS[VPN0], BR0: link(BR0, "br0", kind="bridge")}


@pytest.mark.parametrize(
    "asked",
    [DEFAULT, UplinkChoice("eth0"), UplinkChoice(pattern="^eth0$"), UplinkChoice("10.0.0.11")],
    ids=str,
)
def test_an_address_that_its_interfaces_master_has_now_is_followed(asked: UplinkChoice) -> None:
    """A bridge or a bond takes the interface in, and its address."""
    found = decide(asked, host({BR0: [OURS]}, links=TAKEN_IN, defaults=(BR0,)), memory(), 0.0)
    assert (found.row, chosen(found), found.error) == (Row.MOVED, ("br0", "10.0.0.11"), "")
    assert ("br0 has 10.0.0.11, and is used until a restart" in found.wrong) == (asked.iface == "eth0")


def test_an_address_is_followed_to_any_interface_unless_one_was_named() -> None:
    now = host({VPN0: [OURS]})
    assert chosen(decide(DEFAULT, now, memory(), 0.0)) == ("vpn0", "10.0.0.11")
    assert decide(UplinkChoice("eth0"), now, memory(), 0.0).row is Row.NOTHING


def test_an_address_is_not_followed_to_a_device_of_ours_or_to_loopback() -> None:
    for name, alias in (("ovnet0", OWNER), ("lo", "")):
        links = {ETH0: LINKS[ETH0], 9: link(9, name, alias=alias)}
        assert decide(DEFAULT, host({9: [OURS]}, links=links), memory(), 0.0).row is Row.NOTHING


def test_an_interface_that_was_renamed_is_the_same_one_and_named() -> None:
    links = {ETH0: link(ETH0, "wan9")}
    found = decide(UplinkChoice("eth0"), host({ETH0: [OURS]}, links=links), memory(), 0.0)
    assert (found.row, chosen(found)) == (Row.STAYS, ("wan9", "10.0.0.11"))
    assert found.wrong.startswith("uplink eth0 does not exist: see --iface; wan9 has 10.0.0.11")
    links = {ETH0: link(ETH0, "wan9"), VPN0: link(VPN0, "eth0")}
    found = decide(UplinkChoice("eth0"), host(BOTH, links=links), memory(), 0.0)
    assert (found.row, chosen(found)) == (Row.STAYS, ("wan9", "10.0.0.11")), "not who has its name now"
    assert "uplink eth0 is another interface now" in found.wrong


# --- --public-ip -------------------------------------------------------------------


def test_the_address_to_publish_is_that_one_or_none() -> None:
    asked = UplinkChoice("eth0", public_ip=IPv4Address("10.0.0.100"))
    assert chosen(decide_first(asked, host({ETH0: [OURS, VIP]}))) == ("eth0", "10.0.0.100")
    found = decide(asked, host({ETH0: [OURS]}), memory(ip="10.0.0.100"), 1000.0)
    assert (found.row, chosen(found)) == (Row.NOTHING, ("eth0", "10.0.0.100"))
    assert "does not have 10.0.0.100" in found.error


# --- Several in one network --------------------------------------------------------


def test_interfaces_in_one_network_with_the_uplink_are_its_rivals_in_arp() -> None:
    uplink = Uplink(LINKS[ETH0], IPv4Address("10.0.0.11"))
    assert rivals(host(BOTH), uplink) == []
    assert rivals(host({ETH0: [OURS], VPN0: ["10.0.0.12/24"]}), uplink) == [LINKS[VPN0]]
    down = {ETH0: LINKS[ETH0], VPN0: link(VPN0, "vpn0", up=False)}
    assert rivals(host({ETH0: [OURS], VPN0: ["10.0.0.12/24"]}, links=down), uplink) == []
    port = {ETH0: LINKS[ETH0], VPN0: link(VPN0, "vpn0", master=ETH0)}
    assert rivals(host({ETH0: [OURS], VPN0: ["10.0.0.12/24"]}, links=port), uplink) == []
    assert rivals(host({ETH0: ["10.0.0.11/32"], VPN0: ["10.0.0.12/32"]}), uplink) == []


# --- Laws --------------------------------------------------------------------------

IPS = ["10.0.0.1", "10.0.0.2", "10.0.1.1", "169.254.1.1", "127.0.0.9"]
addresses = st.builds(
    Address,
    st.sampled_from([IPv4Address(each) for each in IPS]),
    st.sampled_from([8, 24, 32]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
links = st.builds(
    Link,
    ifindex=st.just(0),
    name=st.just(""),
    kind=st.just(""),
    mac=st.none(),
    mtu=st.just(1500),
    up=st.booleans(),
    master=st.integers(0, 4),
    peer_elsewhere=st.just(False),
    alias=st.sampled_from(["", "", OWNER]),
    xdp=st.just(0),
)
NAMES = {1: "lo", 2: "eth0", 3: "eth1", 4: "br0"}


@st.composite
def hosts(draw: st.DrawFn) -> Host:
    there = draw(st.sets(st.sampled_from(sorted(NAMES)), min_size=1))
    found = {each: replace(draw(links), ifindex=each, name=NAMES[each]) for each in sorted(there)}
    have = {each: tuple(draw(st.lists(addresses, max_size=3, unique_by=lambda a: a.ip))) for each in found}
    defaults = tuple(draw(st.lists(st.integers(1, 4), max_size=3)))
    way = st.tuples(st.integers(1, 4), st.sampled_from([IPv4Address(each) for each in IPS[:3]]))
    return Host(found, have, defaults, draw(st.none() | way))


choices = st.one_of(
    st.just(UplinkChoice()),
    st.builds(UplinkChoice, st.sampled_from(["eth0", "br0", "eth9", IPS[0]])),
    st.builds(UplinkChoice, st.just("eth0"), public_ip=st.just(IPv4Address(IPS[0]))),
    st.builds(UplinkChoice, pattern=st.sampled_from(["^eth", r"^10\.", "none"])),
    st.just(UplinkChoice(can_reach=IPv4Address("1.1.1.1"))),
)


@st.composite
def hosts_with_ours(draw: st.DrawFn) -> Host:
    """eth0 is up, has our address among others, and the default route."""
    made = draw(hosts())
    eth0 = Link(2, "eth0", "", None, 1500, True, draw(st.sampled_from([0, 4])), False, "", 0)
    ours = Address(IPv4Address("10.7.0.1"), 24, *draw(st.tuples(st.booleans(), st.booleans(), st.booleans())))
    beside = list(made.addresses.get(2, ()))
    beside.insert(draw(st.integers(0, len(beside))), ours)
    links = {each: made.links[each] for each in made.links if each != 2} | {2: eth0}
    addresses = {**made.addresses, 2: tuple(beside)}
    return replace(made, links=dict(sorted(links.items())), addresses=addresses)


OURS_ON_ETH0 = Memory(Uplink(link(2, "eth0"), IPv4Address("10.7.0.1")), IPv4Address("10.7.0.1"))
fitting = st.sampled_from(
    [
        UplinkChoice(),
        UplinkChoice("eth0"),
        UplinkChoice("10.7.0.1"),
        UplinkChoice(pattern="^eth"),
        UplinkChoice(pattern=r"^10\."),
        UplinkChoice(can_reach=IPv4Address("1.1.1.1")),
        UplinkChoice("eth0", public_ip=IPv4Address("10.7.0.1")),
    ]
)


def has(now: Host, uplink: Uplink) -> bool:
    there = now.addresses.get(uplink.link.ifindex, ())
    return any(address.ip == uplink.address for address in there)


@given(fitting, hosts_with_ours(), st.floats(0, 100))
def test_a_choice_that_is_still_there_is_never_given_up_for_a_newcomer(
    asked: UplinkChoice, now: Host, at: float
) -> None:
    found = decide(asked, now, OURS_ON_ETH0, at)
    assert found.memory
    after = found.memory.uplink
    assert (found.row, after.link.name, str(after.address)) == (Row.STAYS, "eth0", "10.7.0.1")


@given(fitting, st.lists(hosts(), max_size=2), hosts_with_ours())
def test_our_own_address_comes_back_to_us(asked: UplinkChoice, between: list[Host], then: Host) -> None:
    """Whatever has been in the meantime, unless another has become our own in its place."""
    state, now = OURS_ON_ETH0, 0.0
    for each in between:
        now += HOLD_S
        found = decide(asked, each, state, now)
        assert found.memory
        assume(found.row is not Row.SUCCESSOR)
        state = found.memory
    found = decide(asked, then, state, now)
    assert found.memory
    assert (str(found.memory.uplink.address), found.error) == ("10.7.0.1", "")


@given(choices, hosts(), st.lists(hosts(), min_size=1, max_size=2))
def test_a_second_look_at_the_same_host_changes_nothing(
    asked: UplinkChoice, then: Host, later: list[Host]
) -> None:
    first = decide_first(asked, then)
    if first.memory is None:  # as often as not: too many to be assumed away
        return
    state, now = first.memory, 0.0
    for each in later:
        now += HOLD_S
        found = decide(asked, each, state, now)
        again = decide(asked, each, found.memory or state, now)
        assert again.memory == found.memory
        assert found.memory
        state = found.memory


@given(choices, hosts(), st.lists(hosts(), max_size=4))
def test_what_is_used_is_there_and_as_it_was_asked_for(
    asked: UplinkChoice, then: Host, later: list[Host]
) -> None:
    found, now, last = decide_first(asked, then), 0.0, then
    for each in later:
        if found.memory is None:
            return
        now += HOLD_S
        found, last = decide(asked, each, found.memory, now), each
    if found.error or found.memory is None:
        return
    uplink = found.memory.uplink
    assert uplink.link == last.links[uplink.link.ifindex]
    assert asked.public_ip in (None, uplink.address)
    assert asked.address in (None, uplink.address)
    if asked.can_reach is None:  # that may name a source that another interface has
        assert has(last, uplink) or asked.iface


# --- By an IPv6 address -------------------------------------------------------------

BY_IPV6 = UplinkChoice("fd77::11")


def test_an_interface_is_named_by_an_ipv6_address_of_it_and_gives_its_best_ipv4_one() -> None:
    there = replace(host({ETH0: [FADING, OURS], VPN0: [VPN]}, defaults=(VPN0,)), holder=ETH0)
    found = decide_first(BY_IPV6, there)
    assert (chosen(found), found.newcomer) == (("eth0", "10.0.0.11"), "")
    with_none = replace(host({VPN0: [VPN]}), holder=ETH0)
    assert "uplink eth0 has no IPv4 address" in decide_first(BY_IPV6, with_none).error


def test_an_ipv4_address_is_not_followed_away_from_the_interface_with_the_ipv6_address() -> None:
    moved = replace(host({VPN0: [OURS]}), holder=ETH0)
    assert decide(BY_IPV6, moved, memory(), 0.0).row is Row.NOTHING


def test_what_leads_to_a_host_by_ipv6_gives_its_best_ipv4_address() -> None:
    there = Host(LINKS, host({ETH0: [FADING, OURS]}).addresses, (), (ETH0, IPv6Address("fd77::11")))
    assert chosen(decide_first(UplinkChoice(can_reach=IPv6Address("fd77::12")), there)) == (
        "eth0",
        "10.0.0.11",
    )
