"""What becomes of the peers when the kernel fails half way."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ctl.backend import hostgw
from ctl.backend.site import Site
from ctl.backend.vxlan import kernel_path, peering
from ctl.core.errors import KernelError
from ctl.core.family import IPV4
from ctl.core.findings import Concern, Findings
from ctl.core.host import EVERYTHING, Change, Hop, Link, Sender, Uplink
from ctl.core.model import Network
from ctl.core.plan import Delta
from ctl.core.policy import Rule
from ctl.kernel.netlink import fib, rules, xfrm
from ctl.settings.config import resolve
from tests.unit.strategies import NETWORK
from tests.unit.test_roster import OTHER, OWN, PEER

LEASES = frozenset({Change.LEASES})
ETH0 = Link(2, "eth0", "", None, 1500, True, 0, False, "", 0)


def site(network: Network = NETWORK, mtu: int = 1500) -> Site:
    uplink = Uplink(replace(ETH0, mtu=mtu), OWN.host)
    return Site(network, OWN, uplink, 1450, 3, Path("/nowhere"))


class Rows:
    """A table in memory."""

    def __init__(self, *_: Any) -> None:
        self.rows: dict[Any, Any] = {}

    def read(self) -> Mapping[Any, Any]:
        return dict(self.rows)

    def apply(self, delta: Delta[Any, Any]) -> None:
        for key in delta.removals:
            self.rows.pop(key, None)
        self.rows.update(delta.puts)


class Fib:
    """Every host is on the link, unless the kernel does not answer."""

    answers = True
    rules: Sequence[Rule] = ()
    asked: Sequence[tuple[int, int]] = ()
    """Ports that were asked for at last."""

    def hops(
        self,
        _rtnl: object,
        hosts: Iterable[IPv4Address],
        _uplink: object,
        _mtu: int,
        ports: Sequence[tuple[int, int]] = (),
        *,
        ttl: int = 64,
    ) -> dict[IPv4Address, Hop[IPv4Address] | None]:
        self.asked = ports
        if not self.answers:
            raise KernelError("rtnetlink: No buffer space available")
        return {host: Hop(2, host, ttl=ttl) for host in hosts}


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Fib:
    made = Fib()
    monkeypatch.setattr(fib, "hops", made.hops)
    monkeypatch.setattr(xfrm.Policies, "any", lambda _: False)
    monkeypatch.setattr(rules, "listing", lambda *_: made.rules)
    return made


def shortcut(maps: Any, announce: Callable[[], None] = lambda: None) -> peering.Shortcut[IPv4Address]:
    return peering.Shortcut(maps, True, announce)


def test_a_plan_that_fails_leaves_the_maps_as_they_are(kernel: Fib) -> None:
    """An uplink that has changed asks for a new plan; an empty one would refuse every peer."""
    plan = peering.Peering(SimpleNamespace(), IPV4, Findings(), 10)  # type: ignore[arg-type]
    maps: Any = SimpleNamespace(vtep_table=Rows(), peer_table=Rows())
    plan.reconcile(site(), 0, [PEER], EVERYTHING, shortcut(maps))
    assert list(maps.vtep_table.rows) == [PEER.host]
    before = maps.peer_table.read()

    kernel.answers = False
    with pytest.raises(KernelError):
        plan.reconcile(site(mtu=1400), 0, [PEER, OTHER], EVERYTHING, shortcut(maps))
    assert (list(maps.vtep_table.rows), maps.peer_table.rows) == ([PEER.host], before)

    kernel.answers = True
    plan.reconcile(site(mtu=1400), 0, [PEER, OTHER], LEASES, shortcut(maps))
    assert set(maps.vtep_table.rows) == {PEER.host, OTHER.host}


def test_a_peer_that_is_routed_to_may_answer(kernel: Fib, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer to the first packet that the route carries must find it in the maps."""
    maps: Any = SimpleNamespace(vtep_table=Rows(), peer_table=Rows())
    strangers: list[object] = []

    class Routed(Rows):
        def apply(self, delta: Delta[Any, Any]) -> None:
            strangers.extend(via for _, via in delta.puts if via.ifindex and not maps.vtep_table.rows)

    monkeypatch.setattr(kernel_path, "Routes", Routed)
    for other in ("Fdb", "VtepNeighbours", "Senders"):
        monkeypatch.setattr(kernel_path, other, Rows)
    plan = peering.Peering(SimpleNamespace(), IPV4, Findings(), 10)  # type: ignore[arg-type]
    plan.reconcile(site(), 7, [], EVERYTHING, shortcut(maps))
    plan.reconcile(site(), 7, [PEER], LEASES, shortcut(maps))
    assert maps.vtep_table.rows
    assert not strangers


def test_who_is_routed_to_is_let_in_by_the_rules_too_and_each_change_is_one_element(
    kernel: Fib, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also without programs: --bypass=off."""
    let_in: dict[IPv4Address, bool] = {}
    told: list[Delta[Any, Any]] = []
    early: list[object] = []

    class Set(Rows):
        def __init__(self, *_: object) -> None:
            self.rows = let_in

        def apply(self, delta: Delta[Any, Any]) -> None:
            told.append(delta)
            super().apply(delta)

    class Routed(Rows):
        def apply(self, delta: Delta[Any, Any]) -> None:
            early.extend(route for key, route in delta.puts if not let_in.keys() >= {PEER.host})

    monkeypatch.setattr(kernel_path, "Senders", Set)
    monkeypatch.setattr(kernel_path, "Routes", Routed)
    for other in ("Fdb", "VtepNeighbours"):
        monkeypatch.setattr(kernel_path, other, Rows)
    plan = peering.Peering(SimpleNamespace(), IPV4, Findings(), 10)  # type: ignore[arg-type]
    assert plan.senders() is None, "nobody knows who they are"
    moved = replace(OTHER, host=OTHER.host + 100)
    for leases in ([PEER], [PEER, OTHER], [PEER, moved], [PEER]):
        plan.reconcile(site(), 7, leases, LEASES, None)
    assert not early
    assert told == [
        Delta(((PEER.host, True),)),
        Delta(((OTHER.host, True),)),
        Delta(((moved.host, True),)),
        Delta(removals=(OTHER.host,)),
        Delta(removals=(moved.host,)),
    ]
    assert plan.wants(Sender(PEER.host)) and not plan.wants(Sender(OTHER.host))
    let_in[OTHER.host] = True  # someone's doing
    plan.reconcile(site(), 7, [PEER], frozenset({Change.PEERS}), None)
    assert list(let_in) == [PEER.host]


def test_strangers_are_refused_only_as_long_as_all_peers_are_in(
    kernel: Fib,
) -> None:
    """The node's own entry says whether who is not in the maps is a stranger."""
    plan = peering.Peering(SimpleNamespace(), IPV4, Findings(), 1)  # type: ignore[arg-type]
    maps: Any = SimpleNamespace(vtep_table=Rows(), peer_table=Rows())
    told: list[tuple[bool, set[object]]] = []

    def announce() -> None:
        told.append((plan.fits(), set(maps.vtep_table.rows)))

    for leases in ([PEER], [PEER, OTHER], [OTHER]):
        plan.reconcile(site(), 0, leases, LEASES, shortcut(maps, announce))
    assert told == [(True, {PEER.host}), (False, {PEER.host}), (True, {OTHER.host})]


def test_an_entry_that_is_refused_does_not_keep_the_nodes_own_from_being_written(kernel: Fib) -> None:
    class Refusing(Rows):
        def apply(self, delta: Delta[Any, Any]) -> None:
            raise KernelError("map peers: 1 entries not stored: no memory")

    plan = peering.Peering(SimpleNamespace(), IPV4, Findings(), 10)  # type: ignore[arg-type]
    maps: Any = SimpleNamespace(vtep_table=Rows(), peer_table=Refusing())
    told: list[bool] = []
    with pytest.raises(KernelError, match="map peers"):
        plan.reconcile(site(), 0, [PEER], LEASES, shortcut(maps, lambda: told.append(plan.fits())))
    assert told == [True]
    assert plan.reached == (0, 1)


def test_nobody_is_refused_before_it_is_known_who_the_peers_are(kernel: Fib) -> None:
    """What an earlier life left in the maps may be a part of them only."""
    plan = peering.Peering(SimpleNamespace(), IPV4, Findings(), 1)  # type: ignore[arg-type]
    assert not plan.fits()
    kernel.answers = False
    with pytest.raises(KernelError):
        plan.reconcile(site(), 0, [PEER], EVERYTHING, None)
    assert not plan.fits()
    kernel.answers = True
    plan.reconcile(site(), 0, [PEER], EVERYTHING, None)
    assert plan.fits()
    plan.reconcile(site(), 0, [PEER, OTHER], LEASES, None)
    assert not plan.fits()


def test_host_gw_begins_anew_after_a_failure(kernel: Fib, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever came in the pass that failed is asked for in the next one, whatever that is about."""
    table = Rows()
    monkeypatch.setattr(hostgw, "Routes", lambda *_: table)
    netlink: Any = SimpleNamespace(rtnl=None)
    backend = hostgw.HostGwBackend(resolve(argparse.Namespace(), {}, None), netlink, Findings())
    network = replace(NETWORK, backend="host-gw")
    peer, other = (replace(each, backend="host-gw") for each in (PEER, OTHER))
    backend.reconcile_peers(site(network), [peer], EVERYTHING)

    kernel.answers = False
    with pytest.raises(KernelError):
        backend.reconcile_peers(site(network), [peer, other], LEASES)
    kernel.answers = True
    backend.reconcile_peers(site(network), [peer, other], LEASES)
    assert {route.via for route in table.rows.values()} == {peer.host, other.host}


@pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
def test_plain_routes_that_went_without_a_word_are_set_again(
    kernel: Fib, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """As when an interface of the underlay was down: afterwards all hosts are reached as before."""
    table, netlink = Rows(), SimpleNamespace(rtnl=None)
    for module in (hostgw, kernel_path):
        monkeypatch.setattr(module, "Routes", lambda *_: table)
    for other in ("Fdb", "VtepNeighbours", "Senders"):
        monkeypatch.setattr(kernel_path, other, Rows)
    network = replace(NETWORK, backend=backend, direct_routing=backend == "vxlan")
    lease = replace(PEER, backend=backend)

    vxlan = peering.Peering(SimpleNamespace(), IPV4, Findings(), 10)  # type: ignore[arg-type]
    plain = hostgw.HostGwBackend(resolve(argparse.Namespace(), {}, None), netlink, Findings())  # type: ignore[arg-type]

    def reconcile(changes: frozenset[Change]) -> None:
        if backend == "vxlan":
            vxlan.reconcile(site(network), 7, [lease], changes, None)
        else:
            plain.reconcile_peers(site(network), [lease], changes)

    reconcile(EVERYTHING)
    before = table.read()
    assert [route.via for route in before.values()] == [PEER.host]
    table.rows.clear()
    reconcile(frozenset({Change.HOPS}))
    assert table.rows == before


def test_a_host_that_left_holds_no_interface(kernel: Fib, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else events of an interface through which nobody is reached any more would be looked into."""
    monkeypatch.setattr(hostgw, "Routes", Rows)
    backend = hostgw.HostGwBackend(
        resolve(argparse.Namespace(), {}, None),
        SimpleNamespace(rtnl=None),  # type: ignore[arg-type]
        Findings(),
    )
    network = replace(NETWORK, backend="host-gw")
    backend.reconcile_peers(site(network), [replace(PEER, backend="host-gw")], EVERYTHING)
    assert backend.devices().hops
    backend.reconcile_peers(site(network), [], LEASES)
    assert not backend.devices().hops


def test_the_way_of_a_new_peer_is_asked_for_as_rules_had_it_at_the_last_look(kernel: Fib) -> None:
    """And rules that come are looked at when the ways of all are."""
    plan = peering.Peering(SimpleNamespace(), IPV4, findings := Findings(), 10)  # type: ignore[arg-type]
    maps: Any = SimpleNamespace(vtep_table=Rows(), peer_table=Rows())
    plan.reconcile(site(), 0, [PEER], EVERYTHING, shortcut(maps))
    (pair,) = kernel.asked
    assert (pair[1], plan.marks()) == (NETWORK.port, 0)
    kernel.rules = (Rule(mask=0x80), Rule(sports=(pair[0] + 10, pair[0] + 20)))
    plan.reconcile(site(), 0, [PEER, OTHER], LEASES, shortcut(maps))
    assert (kernel.asked, plan.marks()) == ([pair], 0)
    plan.reconcile(site(), 0, [PEER, OTHER], frozenset({Change.HOPS}), shortcut(maps))
    assert (len(kernel.asked), plan.marks()) == (3, 0x80)
    assert "marks (0x80)" in str(findings.problems[Concern.POLICY])


def test_peers_that_cannot_be_asked_for_take_the_kernel_path(kernel: Fib) -> None:
    kernel.rules = [Rule(sports=(1, 1), sport_bits=True)]
    plan = peering.Peering(SimpleNamespace(), IPV4, Findings(), 10)  # type: ignore[arg-type]
    maps: Any = SimpleNamespace(vtep_table=Rows(), peer_table=Rows())
    plan.reconcile(site(), 0, [PEER], EVERYTHING, shortcut(maps))
    assert plan.reached == (0, 1)
