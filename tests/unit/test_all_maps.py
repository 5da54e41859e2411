"""The maps of both families as one: what whoever shows them is given."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ctl.core.abi import Counter, Hook, PeerStats
from ctl.core.errors import AgentUnreachable, KernelError, NotFound, OvnetError
from ctl.core.family import IPV4, IPV6, Family
from ctl.kernel.bpf import families
from ctl.kernel.bpf.families import AllMaps, open_all
from tests.datapath import INET, INET6

ENCAP, DROPPED = (Hook.FROM_CONTAINER, 1), (Hook.FROM_WIRE, 40)


class Fake(SimpleNamespace):
    """The maps of one family, and whether they are open."""

    def __init__(self, family: Family[Any, Any], **answers: Any) -> None:
        super().__init__(
            family=family, open=True, **{name: lambda each=each: each for name, each in answers.items()}
        )

    def close(self) -> None:
        self.open = False


def ipv4(**answers: Any) -> Any:
    return Fake(IPV4, **answers)


def ipv6(**answers: Any) -> Any:
    return Fake(IPV6, **answers)


def test_what_is_counted_by_place_is_added_up() -> None:
    maps = AllMaps(
        ipv4(counters={ENCAP: Counter(3, 300)}),
        ipv6(counters={ENCAP: Counter(4, 400), DROPPED: Counter(1, 60)}),
    )
    assert maps.counters() == {ENCAP: Counter(7, 700), DROPPED: Counter(1, 60)}


def test_peers_and_rooms_are_told_apart_by_address_and_name() -> None:
    one, other = PeerStats(1), PeerStats(2)
    maps = AllMaps(
        ipv4(peer_stats={INET.peer.host: one}, fill={"peers": (1, 4)}),
        ipv6(peer_stats={INET6.peer.host: other}, fill={"peers": (2, 4)}),
    )
    assert maps.peer_stats() == {INET.peer.host: one, INET6.peer.host: other}
    assert maps.fill() == {"peers": (1, 4), "ipv6_peers": (2, 4)}


def test_a_node_without_ipv6_has_what_ipv4_has() -> None:
    maps = AllMaps(ipv4(counters={ENCAP: Counter(3, 300)}, fill={"peers": (1, 4)}))
    assert (maps.counters(), maps.fill()) == ({ENCAP: Counter(3, 300)}, {"peers": (1, 4)})
    assert maps.of_any({4, 6}) == [maps.ipv4] and not maps.both
    for asked in (lambda: maps.of(6), lambda: maps.of_any({6})):
        with pytest.raises(NotFound, match="ip -6 route get"):
            asked()


def test_of_ipv6_only_what_packets_are_handed_to_runs() -> None:
    maps = AllMaps(ipv4(handed_over={Hook.FROM_WIRE: 7}), ipv6())
    assert maps.running(4) == frozenset(Hook)
    assert maps.running(6) == {Hook.FROM_WIRE}


def only_ipv4(monkeypatch: pytest.MonkeyPatch, refusal: OvnetError) -> Any:
    """IPv4's maps open, and those of IPv6 are refused so."""

    def opened(_: object, family: Family[Any, Any] = IPV4) -> Any:
        if family is IPV6:
            raise refusal
        return own

    own = ipv4()
    monkeypatch.setattr(families, "open_maps", opened)
    return own


def test_where_ipv6_has_no_pins_ipv4_is_all(monkeypatch: pytest.MonkeyPatch) -> None:
    own = only_ipv4(monkeypatch, AgentUnreachable("no maps"))
    with open_all("/") as maps:
        assert list(maps) == [own] and own.open
    assert not own.open


def test_where_those_of_ipv6_may_not_be_opened_none_stay_open(monkeypatch: pytest.MonkeyPatch) -> None:
    own = only_ipv4(monkeypatch, KernelError("not yours"))
    with pytest.raises(KernelError, match="not yours"):
        open_all("/")
    assert not own.open
