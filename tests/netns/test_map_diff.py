"""`ovctl map diff`, and what `map dump` selects, on a node that has a peer and whose agent is gone."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host import Host, ovctl_argv
from tests.lab import Lab, run, wait_until


@pytest.fixture(scope="module", params=["vxlan", "host-gw"])
def node(request: pytest.FixtureRequest) -> Iterator[Host]:
    """Nobody mends what a test does to it: each puts it back as it was."""
    with Lab() as lab:
        yield lonely(lab, request.param)


@pytest.fixture(scope="module")
def vxlan() -> Iterator[Host]:
    """The same, with maps."""
    with Lab() as lab:
        yield lonely(lab, "vxlan")


def lonely(lab: Lab, backend: str) -> Host:
    a, b = lab.pair()
    lab.init_network("172.17.0.0/16", 24, "--backend", backend)
    for host in (a, b):
        host.agent()
    wait_until(a.knows_a_peer, 10, "a knows b")
    a.stop_processes()
    return a


def differing(host: Host) -> list[tuple[str, str]]:
    """(table, state) of each difference; exit code 1 if there are any, and 0 if not."""
    done = host.ovctl("map", "diff", "-o", "json", check=False)
    rows = json.loads(done.stdout)
    assert done.returncode == bool(rows), done.stderr
    return [(row["table"], row["state"]) for row in rows]


def test_a_node_that_is_as_its_leases_ask_shows_nothing(node: Host) -> None:
    assert differing(node) == []
    assert node.ovctl("map", "diff").stdout.split() == ["TABLE", "KEY", "STATE", "WANTED", "FOUND"]


def test_routes_that_are_gone_added_or_led_elsewhere_are_named(node: Host) -> None:
    (route,) = node.ip("route", "show", "proto", "147").splitlines()
    words = [*route.split(), "proto", "147"]  # by which it is shown, so it is not said again
    node.ip("route", "del", *words)
    assert differing(node) == [("routes", "missing")]
    node.ip("route", "add", words[0], "dev", "lo", "metric", words[words.index("metric") + 1], "proto", "147")
    assert differing(node) == [("routes", "different")]
    node.ip("route", "replace", *words)
    node.ip("route", "add", "172.17.99.0/24", "dev", "eth0", "metric", "7", "proto", "147")
    assert differing(node) == [("routes", "stale")]
    node.ip("route", "del", "172.17.99.0/24", "metric", "7", "proto", "147")
    assert differing(node) == []


def test_neighbours_and_fdb_entries_that_others_have_changed_are_named(vxlan: Host) -> None:
    (peer,) = vxlan.json("map", "dump", "peers")
    device, vtep, mac = "ovnet.1", peer["subnet"].split("/")[0], peer["vtep_mac"]
    vxlan.ip("neigh", "replace", vtep, "lladdr", "02:00:00:00:00:99", "dev", device, "nud", "permanent")
    assert differing(vxlan) == [("neighbours", "different")]
    vxlan.ip("neigh", "replace", vtep, "lladdr", mac, "dev", device, "nud", "permanent")
    vxlan.run("bridge", "fdb", "del", mac, "dev", device, "dst", peer["host"])
    assert differing(vxlan) == [("fdb", "missing")]
    vxlan.run("bridge", "fdb", "add", mac, "dev", device, "dst", "192.0.2.9", "self", "permanent")
    assert differing(vxlan) == [("fdb", "different")]
    vxlan.run("bridge", "fdb", "replace", mac, "dev", device, "dst", peer["host"], "self", "permanent")
    assert differing(vxlan) == []


def test_a_map_that_lacks_a_peer_is_named(vxlan: Host) -> None:
    (peer,) = vxlan.json("map", "dump", "peers")
    (pin,) = vxlan.bpffs.rglob("peers")
    key = [str(each) for each in bytes(map(int, peer["subnet"].split("/")[0].split(".")))]
    value = dump(pin)[0]["value"]
    vxlan.run("bpftool", "map", "delete", "pinned", str(pin), "key", *key)
    assert differing(vxlan) == [("peers", "missing")]
    vxlan.run("bpftool", "map", "update", "pinned", str(pin), "key", *key, "value", *value)
    assert differing(vxlan) == []


def dump(pin: Path) -> list[dict[str, list[str]]]:
    """A map's entries as bpftool shows them."""
    found: list[dict[str, list[str]]] = json.loads(
        run(["bpftool", "-j", "map", "dump", "pinned", str(pin)]).stdout
    )
    return found


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--state-dir", "/nonexistent"), 4, "no agent has reported"),
        (("--store", "sqlite:////nonexistent/store.db"), 4, "/nonexistent/store.db"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(
    vxlan: Host, arguments: tuple[str, ...], code: int, words: str
) -> None:
    done = vxlan.ovctl("map", "diff", *arguments, check=False)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (code, "", 1)
    assert words in done.stderr


def test_a_dump_shows_the_entries_that_are_asked_for(vxlan: Host) -> None:
    (peer,) = vxlan.json("map", "dump", "peers")
    assert vxlan.json("map", "dump", "peers", "--where", f"host={peer['host']}") == [peer]
    assert vxlan.json("map", "dump", "peers", "--where", "host=192.0.2.9") == []
    both = ("--where", f"host={peer['host']}", "--where", "vni=2")
    assert vxlan.json("map", "dump", "peers", *both) == []
    text = vxlan.ovctl("map", "dump", "peers", "-o", "csv").stdout
    (row,) = csv.DictReader(io.StringIO(text))
    assert (row["subnet"], row["vtep_mac"], row["flags"]) == (peer["subnet"], peer["vtep_mac"], "")
    done = vxlan.ovctl("map", "dump", "peers", "--where", "hots=192.0.2.9", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no column hots: it has subnet, host" in done.stderr
    for about_all in (("-o", "csv"), ("--where", "host=1")):
        assert vxlan.ovctl("map", "dump", *about_all, check=False).returncode == 2


def test_a_dump_goes_on_until_it_is_interrupted(vxlan: Host) -> None:
    command = (*ovctl_argv(), "map", "dump", "peers", "--watch", "0.1")
    watching = vxlan.popen(*command, env=vxlan.environment())
    wait_until(lambda: watching.out().count("SUBNET") > 2, 15, "it is printed again")
    watching.stop()
