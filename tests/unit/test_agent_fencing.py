"""What an agent does whose subnet another host holds."""

from __future__ import annotations

import logging
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from ctl.agent.steps import Part
from ctl.core.model import Lease, Subnets
from ctl.core.report import health, readiness
from tests.unit.world import HOST, KERNEL_PARTS, LEASE_TTL, NETWORK, RESYNC, Claims, MemoryKernel, World, made


def steal(world: World, host: str = "10.9.9.9") -> Lease:
    """Another host's lease where ours was."""
    held = world.stored()
    return world.store.put(replace(held, host=IPv4Address(host), node="thief", expires_at=None), held)


def test_a_lost_lease_is_told_and_the_rest_goes_on(world: World) -> None:
    world.full()
    world.peers(10)
    steal(world)
    world.full()
    assert "10.9.9.9" in world.report.lease.conflict
    assert len(world.kernel.routed[-1]) == 2
    before = world.store.snapshot()
    world.run(2 * LEASE_TTL)
    assert world.store.snapshot() == before, "it is not kept any more, and nothing is written"


def test_a_node_whose_subnet_another_holds_is_fenced(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.full()
    stolen = steal(world)
    world.kernel.calls.clear()
    world.read_store()
    assert world.kernel.fenced
    assert set(world.kernel.calls) == set(KERNEL_PARTS) - {Part.UPLINK}, "all of the kernel is told"
    assert world.store.snapshot().leases == (stolen,), "nothing is written"
    now = world.clock()
    assert not world.report.ready
    assert readiness(world.report, now).count("10.9.9.9") == 1
    healthy, why = health(world.report, now)
    assert not healthy
    assert [line for line in why if "10.9.9.9" in line] == [f"lease conflict: {world.report.lease.conflict}"]
    world.run(LEASE_TTL + RESYNC)
    assert world.store.snapshot().leases == (stolen,)
    assert not any("expired" in line for line in health(world.report, world.clock())[1])
    critical = [record.getMessage() for record in caplog.records if record.levelno == logging.CRITICAL]
    assert len(critical) == 1, critical
    assert "fenced" in critical[0]


def test_a_fenced_node_claims_its_subnet_when_it_is_free_again(world: World) -> None:
    world.full()
    subnet = world.lease.subnet
    stolen = steal(world)
    world.read_store()
    world.store.delete(stolen)
    world.kernel.calls.clear()
    world.read_store()
    assert not world.kernel.fenced
    assert set(world.kernel.calls) == set(KERNEL_PARTS) - {Part.UPLINK}
    (lease,) = world.store.snapshot().leases
    assert (lease.subnet, lease.host, lease.node) == (subnet, HOST, "a")
    assert world.report.ready
    assert health(world.report, world.clock()) == (True, [])


def test_a_fenced_node_stays_so_while_the_store_is_away(world: World) -> None:
    world.full()
    steal(world)
    world.read_store()
    world.store.away = "store is away"
    world.run(3 * RESYNC)
    assert world.kernel.fenced
    assert not world.report.ready


def test_a_node_that_another_has_the_address_of_is_fenced(world: World) -> None:
    world.full()
    twin = steal(world, str(HOST))
    world.read_store()
    assert world.kernel.fenced
    assert "thief and a both have host address" in world.report.lease.conflict
    assert world.store.snapshot().leases == (twin,)


def test_a_conflict_does_not_spin(world: World) -> None:
    world.run(RESYNC)
    held = world.stored()
    world.store.put(replace(held, host=IPv4Address("10.9.9.9"), node="thief", expires_at=None), held)
    before = world.passes()
    world.run(LEASE_TTL)
    assert world.passes() - before <= LEASE_TTL / RESYNC + 3
    assert "10.9.9.9" in world.report.lease.conflict


def test_a_node_does_not_start_on_a_subnet_that_another_holds(world: World) -> None:
    """What it had before, it asks for; what is taken, it does not take."""
    world.full()
    stolen = steal(world)
    wide = replace(NETWORK, subnet_max=IPv4Network("172.17.2.0/24"))
    world.store.write_network(wide, replace=True)
    kernel = MemoryKernel(world.kernel.identity, world.clock, previous=Subnets(stolen.subnet))
    assert made(world.settings, world.store, kernel, Claims()).start()
    assert world.stored().subnet == IPv4Network("172.17.2.0/24")
    assert stolen in world.store.snapshot().leases
