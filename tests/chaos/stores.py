"""Scenarios: the store goes away, is slow, forgets, lies. Both stores: etcd and SQLite."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Final

from tests.chaos.scenario import ALL, Scenario, Sight
from tests.chaos.site import Site, complaints, pair, said
from tests.etcd import Etcd, free_ports
from tests.lab import Lab, wait_until

GROUP: Final = "Store"
AWAY: Final = Sight(log="going on with the leases known", metric="`ovnet_store_up` 0")
SLOW_S: Final = 2.5
"""Of each reply: less than what the client waits for."""
THIEF: Final = "192.168.77.99"
JUMP_S: Final = 2 * 86_400
"""Longer than any lease lives."""

CLOCK: Final = """
import sys, time
from pathlib import Path
real, offset = time.time, Path(sys.argv.pop(1))
time.time = lambda: real() + float(offset.read_text())
from ctl.cli.main import main
sys.exit(main())
"""


def with_etcd(lab: Lab, *network: Any) -> Site:
    """The agents' store is an etcd; a reaches it through a proxy, and reads the time of a file.

    `network`: what Lab.init_network is to be called with.
    """
    etcd = lab.etcd()
    clock, delay = lab.dir / "clock-offset", lab.dir / "reply-delay"
    tell(clock, 0)
    tell(delay, 0)
    # Doubts last for one interval: a minute would be long for a test.
    site = pair(lab, "--resync-interval", "10", network=network)
    (port,) = free_ports(1)
    (member,) = etcd.members
    site.a.popen(
        sys.executable,
        str(Path(__file__).with_name("slow.py")),
        str(port),
        etcd.address,
        str(member.port),
        str(delay),
    )
    wait_until(partial(site.a.listens, port), 60, "the proxy listens")
    site.flags = {**site.flags, "a": (*site.flags["a"], "--store", f"etcd://127.0.0.1:{port}")}
    site.notes |= {"etcd": etcd, "clock": clock, "delay": delay, "network": network}
    site.agent().stop()
    site.start(program=(sys.executable, "-c", CLOCK, str(clock)))
    return site


def tell(file: Path, seconds: float) -> None:
    """Write what others read all the time: whole or not at all."""
    new = file.with_name(f"{file.name}.new")
    new.write_text(str(seconds))
    new.rename(file)


def etcd_of(site: Site) -> Etcd:
    found: Etcd = site.notes["etcd"]
    return found


def until_complaint(site: Site, text: str, seconds: float = 60) -> None:
    """Until a's report says so."""

    def named() -> bool:
        error = str(site.a.status()["store"]["error"])
        return text in error or any(text in line for line in complaints(site.a))

    wait_until(named, seconds, lambda: f"the report says: {text}\n{site.a.status()}\n{site.log()}")


def well(site: Site) -> bool:
    """Both agents, each with the other and with the store: what the last event did to it is over."""
    return all(
        site.healthy(name) and not complaints(site.host(name)) and site.host(name).status()["store"]["up"]
        for name in "ab"
    )


# --- etcd ------------------------------------------------------------------------


def stopped(site: Site) -> None:
    """Killed, noticed, started again with its data."""
    (member,) = etcd_of(site).members
    member.kill()
    until_complaint(site, "etcd")
    member.start()
    wait_until(member.healthy, 60, "etcd answers again")


def cut_off(site: Site) -> None:
    """No answer, no reset: only the silence tells."""
    wire = site.lab.wire
    wire.ip("link", "set", "etcd", "down")
    until_complaint(site, "etcd")
    wire.ip("link", "set", "etcd", "up")


def slow(site: Site) -> None:
    """Each reply is late while a peer's lease comes, is followed, and goes."""
    etcd, delay = etcd_of(site), Path(site.notes["delay"])
    tell(delay, SLOW_S)
    put_lease(etcd, "172.17.201.0-24", "192.168.77.201")
    wait_until(lambda: "172.17.201.0/24" in site.a.ip("route"), 60, "a slow store is followed")
    etcd.ctl("del", key("172.17.201.0-24"))
    wait_until(lambda: "172.17.201.0/24" not in site.a.ip("route"), 60, "a slow store is followed")
    tell(delay, 0)


def emptied(site: Site) -> None:
    """Started again without its data; once the agents have said so, somebody writes the network again."""
    etcd = etcd_of(site)
    (member,) = etcd.members
    member.kill()
    shutil.rmtree(member.data)
    etcd.token += "-again"
    member.start()
    wait_until(member.healthy, 60, "etcd answers again")
    until_complaint(site, "network is gone from the store")
    site.lab.init_network(*site.notes["network"])


def compacted(site: Site) -> None:
    """What happened while a was cut off is no longer in etcd's history."""
    etcd, wire = etcd_of(site), site.lab.wire
    # Only a's cable: b is cut off from a by that, so it is the proxy that breaks.
    wire.ip("link", "set", "etcd", "down")
    put_lease(etcd, "172.17.202.0-24", "192.168.77.202")
    for number in range(20):
        etcd.ctl("put", "/elsewhere", str(number))
    etcd.ctl("compact", str(etcd.revision()))
    until_complaint(site, "etcd")
    wire.ip("link", "set", "etcd", "up")
    wait_until(lambda: "172.17.202.0/24" in site.a.ip("route"), 60, "what a has missed")
    etcd.ctl("del", key("172.17.202.0-24"))
    wait_until(lambda: "172.17.202.0/24" not in site.a.ip("route"), 60, "what a has missed")


def taken_over(site: Site) -> None:
    """Its lease ends while it is cut off, and another host takes the subnet. Then somebody decides for a."""
    etcd, wire = etcd_of(site), site.lab.wire
    subnet = str(site.a.gateway.network)
    lease = key(subnet.replace("/", "-"))
    wire.ip("link", "set", "etcd", "down")
    etcd.ctl("del", lease)
    put_lease(etcd, lease.rpartition("/")[2], THIEF)
    until_complaint(site, "etcd")
    wire.ip("link", "set", "etcd", "up")
    until_complaint(site, "lease conflict")
    passes = site.passes()
    site.a.ip("link", "add", "wakes", "type", "bridge")  # it looks again, and still keeps its hands off
    site.a.ip("link", "del", "wakes")
    wait_until(lambda: site.passes() > passes, 60, "another pass")
    holder = json.loads(etcd.value(lease))["PublicIP"]
    assert holder == THIEF, f"the subnet was taken back from {holder}"
    site.a.ovctl("lease", "release", subnet)


def key(lease: str) -> str:
    return f"/coreos.com/network/subnets/{lease}"


def put_lease(etcd: Etcd, lease: str, host: str, grant: str = "0") -> None:
    """As flanneld writes it, without an end, or on an etcd lease."""
    mac = "02:00:" + ":".join(f"{int(part):02x}" for part in host.split("."))
    value = {"PublicIP": host, "BackendType": "vxlan", "BackendData": {"VNI": 1, "VtepMAC": mac}}
    etcd.ctl("put", key(lease), json.dumps(value), f"--lease={grant}")


def clock_jumps(site: Site) -> None:
    """Two days ahead and back, each noticed."""
    for offset, sign in ((JUMP_S, r"\+"), (0, "-")):
        before = len(site.log())
        tell(Path(site.notes["clock"]), offset)
        wait_until(partial(_set, site, sign, before), 60, site.log)


def _set(site: Site, sign: str, since: int) -> bool:
    return said(f"clock was set by {sign}", site.log()[since:])


# --- SQLite ----------------------------------------------------------------------


def locked(site: Site) -> None:
    """Somebody holds the file's lock; a tries to write its lease, and cannot."""
    db = sqlite3.connect(site.lab.store, isolation_level=None)
    site.agent().kill(signal.SIGSTOP)  # else it could be quicker than the lock
    try:
        # It has to be renewed at once.
        db.execute("UPDATE lease SET expires_at = ? WHERE node = 'a'", (time.time() + 600,))
        db.execute("BEGIN EXCLUSIVE")
        site.agent().kill(signal.SIGCONT)
        until_complaint(site, "locked")
    finally:
        site.agent().kill(signal.SIGCONT)
        db.close()  # and with it the lock


def deleted(site: Site) -> None:
    """The file is moved away and comes back."""
    aside = site.lab.store.with_name("aside")
    site.lab.store.rename(aside)
    until_complaint(site, "does not exist")
    aside.rename(site.lab.store)


def corrupted(site: Site) -> None:
    """The file is overwritten with what is none, and put back from a copy."""
    store = site.lab.store
    good = store.with_name("good")
    with closing(sqlite3.connect(store)) as source, closing(sqlite3.connect(good)) as target:
        source.backup(target)
    bad = store.with_name("bad")
    bad.write_bytes(b"no database" * 4096)
    bad.rename(store)
    until_complaint(site, "leases.sqlite")
    for side in ("-wal", "-shm"):
        store.with_name(store.name + side).unlink(missing_ok=True)
    good.rename(store)


SCENARIOS: Final = (
    Scenario(
        GROUP,
        "etcd stopped",
        "etcd is killed, and started when a has noticed",
        stopped,
        well,
        sight=AWAY,
        build=with_etcd,
        limit=120,
    ),
    Scenario(
        GROUP,
        "etcd cut off",
        "nothing passes to etcd and back, until a has noticed",
        cut_off,
        well,
        sight=AWAY,
        build=with_etcd,
        limit=120,
        times=2,
    ),
    Scenario(
        GROUP,
        "etcd slow",
        f"each of its replies takes {SLOW_S} s, while a peer comes and goes",
        slow,
        well,
        build=with_etcd,
        limit=120,
        times=2,
    ),
    Scenario(
        GROUP,
        "etcd emptied",
        "etcd is started again without its data; later the network is written again",
        emptied,
        well,
        sight=Sight(log="had gone from the store: claimed again", status="network is gone"),
        build=with_etcd,
        limit=120,
        times=3,
    ),
    Scenario(
        GROUP,
        "etcd compacted",
        "a is cut off while a peer joins and the history is compacted",
        compacted,
        well,
        sight=AWAY,
        build=with_etcd,
        limit=120,
        times=2,
    ),
    Scenario(
        GROUP,
        "clock jumps",
        "the clock of a goes two days ahead, and back",
        clock_jumps,
        well,
        sight=Sight(log="the wall clock was set by"),
        build=with_etcd,
        limit=120,
    ),
    Scenario(
        GROUP,
        "lease taken",
        "a's lease ends while it is cut off, another host takes it, and gives it back",
        taken_over,
        well,
        sight=Sight(log="fenced: no new containers here", status="lease conflict"),
        lossy=ALL,
        why="a's subnet is another host's meanwhile: peers take nothing from it and send it nothing",
        build=with_etcd,
        limit=120,
        times=2,
    ),
    Scenario(
        GROUP,
        "SQLite locked",
        "somebody holds the file's lock while a has to write",
        locked,
        well,
        sight=AWAY,
        limit=120,
        times=3,
    ),
    Scenario(
        GROUP,
        "SQLite deleted",
        "the file is moved away, and comes back",
        deleted,
        well,
        sight=AWAY,
        limit=120,
    ),
    Scenario(
        GROUP,
        "SQLite corrupted",
        "the file is overwritten, and put back from a copy",
        corrupted,
        well,
        sight=AWAY,
        limit=120,
    ),
)
