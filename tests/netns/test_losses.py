"""Packets that somebody drops on the kernel path: the agent sees it by its own counters, and says it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.host import Host
from tests.lab import Lab, wait_until
from tests.netns.conftest import Pair, build

NOTICED = 30.0
"""Seconds: four looks, one with each resync, and the time that a look waits for the loop to turn."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Pair]:
    with Lab() as made:
        yield build(made, "--resync-interval", "1")


def hook(name: str, priority: str, rule: str) -> str:
    return f"table inet theirs {{ chain c {{ type filter hook {name} priority {priority};\n{rule}\n}}\n}}"


CASES = {
    "out": ("a", hook("forward", "-300", 'iifname "ovnet0" drop'), "none came as far as ovnet.1"),
    "in": ("b", hook("forward", "-300", 'iifname "ovnet.1" drop'), "none reached a container"),
    "answers": (
        "wire",
        "table bridge theirs { chain c { type filter hook forward priority 0; udp dport 8472 drop; }; }",
        "is UDP port 8472 let through",
    ),
}
"""Where someone drops what, and what node a says, or b of what comes in."""


def losing(host: Host) -> dict[str, str]:
    found: dict[str, str] = host.status()["losing"]
    return found


@pytest.mark.parametrize("way", CASES)
def test_what_is_lost_is_said_until_it_is_not(pair: Pair, way: str) -> None:
    where, rules, words = CASES[way]
    host, place = {"a": (pair.a, pair.a), "b": (pair.b, pair.b), "wire": (pair.a, pair.lab.wire)}[where]
    place.nft(rules)
    # Connections, one after the other: each is a SYN that nobody answers.
    knock = "import socket, sys\nwhile True:\n s = socket.socket(); s.settimeout(0.1)\n" + (
        " try: s.connect((sys.argv[1], 9))\n except OSError: pass\n s.close()"
    )
    pair.on_a.popen("python3", "-c", knock, pair.on_b.address)
    wait_until(lambda: way in losing(host), NOTICED, lambda: f"it is said: {host.status()}")
    assert words in losing(host)[way]
    done = host.ovctl("status", check=False)
    assert done.returncode == 1 and words in done.stderr
    assert f'ovnet_losing_packets{{way="{way}"}} 1.0' in host.http("http://127.0.0.1:9475/metrics")[1]
    place.nft(f"delete table {rules.split()[1]} theirs")
    wait_until(lambda: not losing(host), NOTICED, lambda: f"it is over: {host.status()}")
    assert host.ovctl("status").returncode == 0


def silent(host: Host) -> list[str]:
    return [line for line in host.status()["problems"] if line.startswith("nothing comes back from")]


def test_a_peer_that_does_not_answer_is_named_while_another_one_does(pair: Pair) -> None:
    third = pair.lab.host("c")
    third.agent("--resync-interval", "1")
    far = third.container("far")
    pair.on_a.run("ping", "-c1", "-W5", far.address)
    pair.lab.wire.nft(
        "table bridge theirs { chain c { type filter hook forward priority 0;\n"
        f"ip daddr {third.address} udp dport 8472 drop; }}; }}"
    )
    pair.on_a.popen("ping", "-q", "-i0.1", far.address)
    pair.on_a.popen("ping", "-q", "-i0.1", pair.on_b.address)
    wait_until(lambda: silent(pair.a), NOTICED, lambda: f"it is named: {pair.a.status()}")
    assert [third.address in line for line in silent(pair.a)] == [True]
    assert pair.a.ovctl("status").returncode == 0, "a node is well whose peer is not"
    assert "ovnet_silent_peers 1.0" in pair.a.http("http://127.0.0.1:9475/metrics")[1]
    pair.lab.wire.nft("delete table bridge theirs")
    wait_until(lambda: not silent(pair.a), NOTICED, lambda: f"it is back: {pair.a.status()}")
