"""Addresses that no container has any more: what counts as leaked, and how one is freed."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctl.core.errors import AgentError, NotFound
from ctl.core.ipam import YOUNG_S, Address, Reservation, Signs, State, capacity, judge, parse
from ctl.core.model import MacAddress
from ctl.kernel import arp
from ctl.node import host_local
from ctl.node.alive import sandboxes
from ctl.node.host_local import release, reservations

NOW = 1_000_000.0
OLD = NOW - 2 * YOUNG_S


def reserved(address: str, container: str = "one", since: float = OLD) -> Reservation:
    return Reservation(ip_address(address), container, "eth0", since)


NOTHING = Signs()


def states(*those: Reservation, signs: Signs = NOTHING) -> Mapping[str, str]:
    return {str(each.reservation.address): each.state.value for each in judge(those, signs, NOW)}


def alive(*addresses: str) -> Signs:
    found: dict[Address, str] = {ip_address(each): "answers ARP" for each in addresses}
    return Signs(found)


def test_an_address_that_nobody_has_is_leaked() -> None:
    assert states(reserved("10.244.1.5")) == {"10.244.1.5": "leaked"}


def test_each_sign_of_life_speaks_against_it() -> None:
    five = reserved("10.244.1.5")
    assert states(five, signs=alive("10.244.1.5")) == {"10.244.1.5": "used"}
    assert states(five, signs=Signs(sandboxes=frozenset({"one"}))) == {"10.244.1.5": "used"}
    assert states(five, signs=Signs(strangers=["veth7"])) == {"10.244.1.5": "unclear"}


def test_a_container_is_there_with_all_of_its_addresses_or_with_none() -> None:
    pair = reserved("10.244.1.5"), reserved("fd00::5")
    assert set(states(*pair).values()) == {"leaked"}
    assert set(states(*pair, signs=alive("10.244.1.5")).values()) == {"used"}
    assert set(states(*pair, signs=alive("fd00::5")).values()) == {"used"}
    assert states(pair[1]) == {"fd00::5": "unclear"}, "only IPv4 is asked for"


@pytest.mark.parametrize("since", [NOW, NOW - YOUNG_S + 1, NOW + 3600])
def test_a_container_that_may_still_be_made_is_spared(since: float) -> None:
    """Or a clock that was set: what is from the future is young."""
    assert states(reserved("10.244.1.5", since=since)) == {"10.244.1.5": "young"}
    older = reserved("10.244.1.4")
    assert set(states(older, reserved("fd00::5", since=since)).values()) == {"young"}


def test_files_that_were_cut_short_are_no_container_together() -> None:
    empty = reserved("10.244.1.5", ""), reserved("10.244.1.6", "")
    assert states(*empty, signs=alive("10.244.1.5")) == {"10.244.1.5": "used", "10.244.1.6": "leaked"}


RESERVATIONS = st.builds(
    Reservation,
    st.integers(2, 20).map(lambda number: IPv4Address(f"10.244.1.{number}")),
    st.sampled_from(["one", "two", "three", ""]),
    st.just("eth0"),
    st.sampled_from([OLD, NOW - 1.0]),
)


@given(
    st.lists(RESERVATIONS, unique_by=lambda each: each.address),
    st.sets(st.integers(2, 20)),
    st.sets(st.sampled_from(["one", "two"])),
    st.booleans(),
)
def test_what_is_leaked_has_no_sign_of_life(
    those: list[Reservation], numbers: set[int], sandboxes: set[str], stranger: bool
) -> None:
    signs = alive(*(f"10.244.1.{number}" for number in numbers))
    signs = replace(signs, sandboxes=frozenset(sandboxes), strangers=["veth1"] if stranger else [])
    verdicts = judge(those, signs, NOW)
    assert sorted(each.reservation.address for each in verdicts) == sorted(each.address for each in those)
    for leaked in (each.reservation for each in verdicts if each.state is State.LEAKED):
        assert not stranger and leaked.since == OLD and leaked.container not in sandboxes
        assert leaked.address not in signs.addresses


def test_a_file_is_read_as_each_host_local_writes_it() -> None:
    assert parse("10.244.1.5", "abc\r\neth0", OLD) == reserved("10.244.1.5", "abc")
    assert parse("fd00::5", "abc\r\neth0", OLD) == reserved("fd00::5", "abc")
    assert parse("10.244.1.5", "abc\n", OLD) == replace(reserved("10.244.1.5", "abc"), ifname="")
    assert parse("10.244.1.5", "", OLD) == Reservation(ip_address("10.244.1.5"), "", "", OLD)
    assert parse("lock", "", OLD) is None and parse("last_reserved_ip.0", "10.244.1.5", OLD) is None


def test_a_subnet_has_all_addresses_but_three() -> None:
    assert capacity(IPv4Network("10.244.1.0/24")) == 253
    assert capacity(IPv4Network("10.244.1.0/31")) == 0


def kept(directory: Path, *names: str) -> None:
    directory.mkdir(exist_ok=True)
    for name in names:
        (directory / name).write_text(f"c-{name}\r\neth0")
        os.utime(directory / name, (OLD, OLD))


def test_only_what_is_as_it_was_seen_is_freed(tmp_path: Path) -> None:
    """The container's DEL, and another one's ADD, may have come meanwhile."""
    kept(tmp_path, "10.244.1.5", "10.244.1.6", "10.244.1.7", "10.244.1.8")
    (tmp_path / "last_reserved_ip.0").write_text("10.244.1.8")
    (tmp_path / "10.244.1.99").mkdir()
    seen = sorted(reservations(tmp_path), key=lambda each: str(each.address))
    (tmp_path / "10.244.1.6").unlink()
    (tmp_path / "10.244.1.7").write_text("another\r\neth0")
    os.utime(tmp_path / "10.244.1.7", (OLD, OLD))
    os.utime(tmp_path / "10.244.1.8", (NOW, NOW))
    assert [str(each.address) for each in release(tmp_path, seen)] == ["10.244.1.5"]
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "10.244.1.7", "10.244.1.8", "10.244.1.99", "last_reserved_ip.0", "lock",
    ]  # fmt: skip


def test_an_address_is_freed_under_the_plugins_own_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(tmp_path, "10.244.1.5")
    seen = reservations(tmp_path)
    fd = os.open(tmp_path / "lock", os.O_RDONLY | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    monkeypatch.setattr(host_local, "_PATIENCE_S", 0.05)
    with pytest.raises(AgentError, match="lock is held"):
        release(tmp_path, seen)
    assert (tmp_path / "10.244.1.5").exists()
    monkeypatch.setattr(host_local, "_PATIENCE_S", 60.0)
    freed: list[Reservation] = []
    waits = threading.Thread(target=lambda: freed.extend(release(tmp_path, seen)))
    waits.start()
    os.close(fd)
    waits.join()
    assert freed == seen and not (tmp_path / "10.244.1.5").exists()


def test_a_sandbox_is_known_by_its_directory(tmp_path: Path) -> None:
    for path in (
        "run/containerd/io.containerd.runtime.v2.task/k8s.io/one",
        "run/containers/storage/overlay-containers/two",
        "run/docker/runtime-runc/moby/three",
    ):
        (tmp_path / path).mkdir(parents=True)
    assert sandboxes(tmp_path) == {"one", "two", "three"}
    assert sandboxes(tmp_path / "none") == set()


def test_where_no_address_was_given_out_one_line_says_where_that_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="--cni-data-dir"):
        reservations(tmp_path / "cbr0")
    (tmp_path / "file").write_text("")
    with pytest.raises(AgentError, match="cannot read"):
        reservations(tmp_path / "file")


def test_who_answers_arp_is_read_off_the_frame() -> None:
    mac, other = MacAddress.parse("02:00:00:00:00:01"), MacAddress.parse("02:00:00:00:00:02")
    asked = arp.request(mac, IPv4Address(0), IPv4Address("10.244.1.5"))
    assert (len(asked), arp.answer(asked)) == (42, None)
    said = arp.request(other, IPv4Address("10.244.1.5"), IPv4Address("10.244.1.1"))
    reply = said[:20] + b"\x00\x02" + said[22:] + bytes(18)
    assert arp.answer(reply) == (IPv4Address("10.244.1.5"), other)
    assert arp.answer(reply[:41]) is None
