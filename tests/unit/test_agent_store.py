"""What an agent believes of its store, and what it makes of the leases there."""

from __future__ import annotations

import logging
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from ctl.agent.steps import Part
from ctl.cluster.membership import HOLD_S
from ctl.core.errors import AgentError
from ctl.core.findings import Concern
from ctl.core.model import Snapshot
from tests.unit.world import DAY, HOST, NETWORK, RESYNC, World


def test_a_mass_removal_is_believed_no_sooner_by_a_clock_set_forward(world: World) -> None:
    leases = world.peers(*range(10, 30))
    world.full()
    for lease in leases:
        world.store.delete(lease)
    world.read_store()
    world.clock.ahead += DAY
    world.read_store()
    assert len(world.kernel.routed[-1]) >= 20


def test_peers_appear_and_disappear_with_their_leases(world: World) -> None:
    world.full()
    leases = world.peers(10, 20)
    world.read_store()
    assert set(world.kernel.routed[-1]) == {world.lease.subnet, *(lease.subnet for lease in leases)}
    world.store.delete(leases[0])
    world.read_store()
    world.run(HOLD_S + 1)
    assert set(world.kernel.routed[-1]) == {world.lease.subnet, leases[1].subnet}
    assert world.problem(Concern.MASS_REMOVAL) == ()


def test_a_lease_that_is_gone_for_a_moment_was_never_gone(world: World) -> None:
    """Its node lives, and claims again what a store has lost."""
    leases = world.peers(10, 20)
    world.full()
    everyone = set(world.kernel.routed[-1])
    world.store.delete(leases[0])
    before = world.passes()
    for _ in range(5):
        world.read_store()
        assert set(world.kernel.routed[-1]) == everyone
        world.clock.now += HOLD_S / 6
    world.peers(10)
    world.run(2 * HOLD_S)
    assert set(world.kernel.routed[-1]) == everyone
    assert world.passes() - before <= 7, "nothing is left to wait for"


@pytest.mark.parametrize("same", ["subnet", "host"])
def test_a_lease_that_another_takes_the_place_of_is_gone_at_once(world: World, same: str) -> None:
    (old,) = world.peers(10)
    world.full()
    world.store.delete(old)
    if same == "subnet":
        new = replace(old, host=IPv4Address("10.0.1.99"), node="n99")
    else:
        new = replace(old, subnet=IPv4Network("172.17.99.0/24"))
    new = world.store.put(new, None)
    world.read_store()
    assert set(world.kernel.routed[-1]) == {world.lease.subnet, new.subnet}


def test_a_mass_removal_is_believed_only_when_it_lasts(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    leases = world.peers(*range(10, 30))
    world.full()
    everyone = set(world.kernel.routed[-1])
    for lease in leases:
        world.store.delete(lease)
    for _ in range(5):  # however often the store is read meanwhile
        world.read_store()
        assert set(world.kernel.routed[-1]) == everyone
        assert "20 of 21 leases are gone" in world.problem(Concern.MASS_REMOVAL)[0]
        world.clock.now += RESYNC / 6
    assert sum(record.levelno == logging.CRITICAL for record in caplog.records) == 1
    world.clock.now += RESYNC
    world.read_store()
    assert world.kernel.routed[-1] == (world.lease.subnet,)
    assert world.problem(Concern.MASS_REMOVAL) == ()


@pytest.mark.parametrize("count", [1, 3])
def test_a_store_that_lost_our_lease_is_not_believed_about_the_others(
    world: World, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Restarted with its data lost, say: few leases are no mass, and each node claims its own again."""
    peers = world.peers(*range(10, 10 + count))
    world.full()
    for lease in (*peers, world.stored()):
        world.store.delete(lease)
    world.read_store()
    assert set(world.kernel.routed[-1]) >= {lease.subnet for lease in peers}
    assert "gone from the store at once: kept for now" in world.problem(Concern.MASS_REMOVAL)[0]
    assert [record.levelno for record in caplog.records if "not believed yet" in record.message] == [
        logging.CRITICAL
    ]
    assert world.lease.subnet in {lease.subnet for lease in world.store.snapshot().leases}
    world.peers(*range(10, 10 + count))
    world.read_store()
    assert world.problem(Concern.MASS_REMOVAL) == ()


def test_peers_that_a_store_without_our_lease_lacks_for_long_are_gone(world: World) -> None:
    peers = world.peers(10)
    world.full()
    for lease in (*peers, world.stored()):
        world.store.delete(lease)
    world.read_store()
    world.run(2 * RESYNC)
    assert peers[0].subnet not in world.kernel.routed[-1]


def test_a_network_that_is_gone_from_the_store_is_named(world: World) -> None:
    world.full()
    world.store.gone = True
    world.full()
    assert "gone from the store" in world.problem(Concern.NETWORK)[0]
    world.store.gone = False
    world.full()
    assert world.problem(Concern.NETWORK) == ()


def test_before_a_mass_removal_is_believed_the_store_itself_is_asked(world: World) -> None:
    world.peers(*range(10, 30))
    world.full()
    everyone = set(world.kernel.routed[-1])
    world.store.stale = Snapshot((world.stored(),), 1)
    world.read_store()
    world.clock.now += RESYNC
    world.read_store()
    assert set(world.kernel.routed[-1]) == everyone


def test_a_mass_removal_that_is_taken_back_was_none(world: World) -> None:
    leases = world.peers(*range(10, 30))
    world.full()
    everyone = set(world.kernel.routed[-1])
    for lease in leases:
        world.store.delete(lease)
    world.read_store()
    world.peers(*range(10, 30))
    world.read_store()
    assert set(world.kernel.routed[-1]) == everyone
    assert world.problem(Concern.MASS_REMOVAL) == ()
    # The time of the first scare does not count towards a second one.
    world.clock.now += 2 * RESYNC
    for lease in world.store.snapshot().leases:
        if lease.host != HOST:
            world.store.delete(lease)
    world.read_store()
    assert set(world.kernel.routed[-1]) == everyone


def test_what_changes_during_a_mass_removal_is_followed(world: World) -> None:
    leases = world.peers(*range(10, 30))
    world.full()
    for lease in leases:
        world.store.delete(lease)
    world.read_store()
    (new,) = world.peers(99)
    world.read_store()
    assert {new.subnet, *(lease.subnet for lease in leases)} < set(world.kernel.routed[-1])


def test_an_unread_store_is_not_an_empty_one(world: World) -> None:
    world.peers(10, 20)
    world.store.away = "store is away"
    world.full()
    assert world.kernel.routed == [], "routes of an earlier life stay"
    assert world.kernel.calls == [Part.UPLINK, Part.DEVICES, Part.FIREWALL, Part.PROGRAMS, Part.PORTS]
    world.store.away = ""
    world.full()
    assert len(world.kernel.routed[-1]) == 3


def test_a_store_that_goes_away_leaves_the_peers(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.peers(10, 20)
    world.full()
    world.store.away = "store is away"
    for _ in range(4):
        world.full()
    assert len(world.kernel.routed[-1]) == 3
    assert not world.report.store.up
    assert world.report.store.error == "store is away"
    assert sum("store is away" in record.getMessage() for record in caplog.records) == 1


def test_a_bad_network_in_the_store_is_a_problem_and_no_more(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.full()
    world.store.bad_network = "network config: no JSON"
    world.peers(10)
    for _ in range(3):
        world.read_store()
    assert len(world.kernel.routed[-1]) == 2, "a new peer is let in"
    assert "network config: no JSON" in world.problem(Concern.NETWORK)[0]
    assert world.report.store.up
    assert world.report.reconcile.error == ""
    assert sum("no JSON" in record.getMessage() for record in caplog.records) == 1
    world.store.bad_network = ""
    world.read_store()
    assert world.problem(Concern.NETWORK) == ()


def test_another_network_in_the_store_is_a_problem(world: World) -> None:
    world.full()
    world.store.write_network(replace(NETWORK, port=4789), replace=True)
    world.read_store()
    assert "has changed: restart this agent" in world.problem(Concern.NETWORK)[0]
    assert world.report.problems == world.problem(Concern.NETWORK)


def test_what_a_running_node_can_follow_of_a_network_it_follows_at_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.full()
    changed = replace(NETWORK, mtu=1400, direct_routing=True)
    world.store.write_network(changed, replace=True)
    world.kernel.calls.clear()
    world.read_store()
    assert world.kernel.networks == [changed]
    assert {Part.DEVICES, Part.PEERS, Part.FIREWALL, Part.PROGRAMS} <= set(world.kernel.calls)
    assert world.problem(Concern.NETWORK) == ()
    world.read_store()
    world.full()
    assert world.kernel.networks == [changed], "once"
    (line,) = (record.getMessage() for record in caplog.records if "is followed" in record.getMessage())
    assert line.endswith("Backend.MTU - -> 1400, Backend.DirectRouting false -> true")


def test_of_a_network_that_takes_a_restart_what_does_not_is_followed_all_the_same(world: World) -> None:
    world.full()
    world.store.write_network(replace(NETWORK, port=4789, mtu=1400), replace=True)
    world.read_store()
    assert world.kernel.networks == [replace(NETWORK, mtu=1400)]
    assert world.problem(Concern.NETWORK)[0].endswith("follow it (Backend.Port 8472 -> 4789)")
    world.store.write_network(NETWORK, replace=True)
    world.read_store()
    assert world.kernel.networks[-1] == NETWORK and world.problem(Concern.NETWORK) == ()


def test_a_network_that_this_host_cannot_follow_changes_nothing_and_is_tried_again(world: World) -> None:
    world.full()
    world.kernel.failing["follow_network"] = AgentError("MTU 600 of uplink eth0 leaves 550 bytes")
    world.store.write_network(replace(NETWORK, mtu=600), replace=True)
    world.read_store()
    assert "leaves 550 bytes" in world.report.reconcile.error
    del world.kernel.failing["follow_network"]
    world.full()
    assert world.kernel.networks == [replace(NETWORK, mtu=600)] and not world.report.reconcile.error


def test_a_lease_of_ours_that_is_deleted_is_claimed_again(world: World) -> None:
    world.full()
    held = world.stored()
    world.store.delete(held)
    world.read_store()
    assert world.lease.subnet == held.subnet
    assert world.stored().subnet == held.subnet
    assert not world.kernel.fenced
    assert world.report.ready
