"""Scenarios: other nodes reboot, move, end, come and go by the thousand; a follows."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import Final

from ctl.core.model import Lease, MacAddress
from ctl.kernel.bpf.maps import open_maps
from tests.chaos.scenario import ALL, Scenario, Sight
from tests.chaos.site import Site
from tests.chaos.stores import etcd_of, put_lease, well, with_etcd
from tests.etcd_load import Load, lease
from tests.lab import Lab, wait_until

GROUP: Final = "Peer"
PEERS: Final = "`ovnet_peers`"
GONE_LEASE_S: Final = 2
CROWD: Final = 1000
BATCH: Final = 100


def with_room(lab: Lab) -> Site:
    """A network that has subnets for a thousand nodes."""
    return with_etcd(lab, "10.0.0.0/8", 24, "--subnet-min", "10.200.0.0")


def rebooted(site: Site) -> None:
    """All that b had made is gone, and it comes back with another VTEP MAC, as a flanneld does."""
    b = site.b
    site.agent("b").stop()
    b.teardown()
    b.state_dir.mkdir(exist_ok=True)
    number = site.notes["reboots"] = site.notes.get("reboots", 0) + 1
    mac = str(MacAddress(b"\x02\x77\x00\x00\x00" + bytes([number])))
    (b.state_dir / "vtep_mac").write_text(f"{mac}\n")
    site.start("b")
    b.ip("link", "set", site.two.port, "master", b.bridge)
    wait_until(partial(follows_mac, site), 60, "a follows b's MAC")


def follows_mac(site: Site) -> bool:
    """Whether a sends to the MAC that b's device has."""
    (device,) = json.loads(site.b.run("ip", "-j", "link", "show", "ovnet.1").stdout)
    (peer,) = [row for row in site.a.json("map", "dump", "peers") if row["host"] == site.b.address]
    return bool(peer["vtep_mac"] == device["address"])


def moved(site: Site) -> None:
    """Another address on b's uplink; the old one goes. a follows by the lease."""
    b = site.b
    old = b.address
    new = "192.168.77.151" if old != "192.168.77.151" else "192.168.77.152"
    b.ip("addr", "del", f"{old}/24", "dev", "eth0")  # first: it would take the other along
    b.ip("addr", "add", f"{new}/24", "dev", "eth0")
    b.address = new
    wait_until(partial(reaches, site, new), 60, lambda: site.log("b"))


def reaches(site: Site, address: str) -> bool:
    """Whether a sends to b at that address."""
    return any(row["host"] == address for row in site.a.json("map", "dump", "peers"))


def gone_for_good(site: Site) -> None:
    """A peer whose lease ends: what a had for it goes, and nothing else."""
    etcd, a = etcd_of(site), site.a
    subnet = "10.201.7.0"
    before = footprint(site)
    grant = etcd.ctl("lease", "grant", str(GONE_LEASE_S)).split()[1]
    put_lease(etcd, f"{subnet}-24", "192.168.77.207", grant)
    wait_until(lambda: subnet in a.ip("route"), 60, "a knows the peer")
    wait_until(
        lambda: footprint(site) == before, 60, lambda: f"all of it is gone, and no more: {footprint(site)}"
    )


def footprint(site: Site) -> tuple[str, ...]:
    """What a has for its peers."""
    a = site.a
    shown = (a.ip("route"), a.ip("neigh", "show", "nud", "permanent"), a.run("bridge", "fdb", "show").stdout)
    return (*shown, str(a.json("map", "dump", "peers")))


def crowd(site: Site) -> None:
    """A thousand nodes join, a hundred at a time, each lot gets other MACs, and they leave."""
    leases = [lease(number) for number in range(CROWD)]
    lots = [leases[first : first + BATCH] for first in range(0, CROWD, BATCH)]

    def write() -> None:
        load = Load(etcd_of(site).url)
        try:
            for lot in lots:
                load.put(*lot)
                load.put(*map(other_mac, lot))
            filled(site, CROWD + 1)
            for number, lot in enumerate(lots, 1):
                load.delete(*lot)
                # Half of all at once would not be believed: see "etcd emptied".
                filled(site, CROWD + 1 - number * BATCH)
        finally:
            load.close()

    place = etcd_of(site).place
    assert place is not None
    place.call(write)


def other_mac(one: Lease) -> Lease:
    assert one.vtep_mac is not None
    return replace(one, vtep_mac=MacAddress(b"\x02\x01" + one.vtep_mac.packed[2:]))


def filled(site: Site, peers: int) -> None:
    """Until a has so many."""

    def count() -> int:
        with open_maps(site.a.bpffs) as maps:
            return maps.fill()["peers"][0]

    wait_until(lambda: count() == peers, 120, lambda: f"{count()} of {peers} peers\n{site.log()}")


SCENARIOS: Final = (
    Scenario(
        GROUP,
        "rebooted",
        "b comes back with nothing but its subnet, and another VTEP MAC",
        rebooted,
        well,
        Sight(metric=PEERS),
        ALL,
        "b is not there meanwhile",
        build=with_room,
        limit=120,
        times=3,
    ),
    Scenario(
        GROUP,
        "moved",
        "b gets another address, the old one goes",
        moved,
        well,
        Sight(metric=PEERS),
        ALL,
        "a sends to the old address until b has written its lease and a has read it",
        build=with_room,
        limit=120,
    ),
    Scenario(
        GROUP,
        "gone for good",
        "another node's lease ends",
        gone_for_good,
        well,
        Sight(metric=PEERS),
        build=with_room,
        limit=120,
        times=3,
    ),
    Scenario(
        GROUP,
        "a thousand",
        "1,000 nodes join, change their MACs and leave",
        crowd,
        well,
        Sight(metric=PEERS),
        build=with_room,
        limit=180,
        times=1,
    ),
)
