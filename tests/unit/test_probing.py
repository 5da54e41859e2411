"""What a probe of the peers says, and how it comes to know it."""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from ctl.cli.peers import SHORT, progress
from ctl.cli.probe import matrix, rows_of
from ctl.core.abi import PEER_F_KERNEL_PATH, PeerEntry, PeerStats
from ctl.core.probing import Carried, Carrier, Probed, State, carried, carriers, verdict
from ctl.kernel.echo import SMALL, checksum
from ctl.kernel.past_tc import header
from ctl.node.reach import AGAIN, Lane, answering, largest
from tests.unit.echoes import MAC, MTU, OTHER, OWN, PEER, Path1350

ENTRY = PeerEntry(PEER.host, MAC, 8472, 1, 2, PEER.host, 0, 64)


# --- Carriers and verdicts ---------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "entry", "gear", "found"),
    [
        ("vxlan", ENTRY, True, (Carrier.EBPF, Carrier.KERNEL)),
        ("vxlan", ENTRY, False, (Carrier.KERNEL,)),
        ("vxlan", replace(ENTRY, flags=PEER_F_KERNEL_PATH), True, (Carrier.KERNEL,)),
        ("vxlan", replace(ENTRY, next_hop=None), True, (Carrier.KERNEL,)),
        ("vxlan", None, True, (Carrier.KERNEL,)),
        ("host-gw", None, False, (Carrier.KERNEL,)),
        ("udp", None, False, (Carrier.UDP,)),
    ],
)
def test_what_carries_packets_to_a_peer_follows_from_backend_map_and_gear(
    backend: str, entry: PeerEntry | None, gear: bool, found: tuple[Carrier, ...]
) -> None:
    assert carriers(backend, entry, gear=gear) == found


@pytest.mark.parametrize(
    ("probed", "carrier", "state"),
    [
        (Probed(5, ()), Carrier.KERNEL, State.UNREACHABLE),
        (Probed(5, (), 84), Carrier.KERNEL, State.SMALL),
        (Probed(5, (0.1,) * 5, MTU), Carrier.KERNEL, State.OK),
        (Probed(5, (0.1,) * 4, MTU), Carrier.KERNEL, State.LOSSY),
        (Probed(5, (0.1,) * 4, 1350), Carrier.KERNEL, State.SMALL),
        (Probed(5, (0.1,) * 5), Carrier.KERNEL, State.OK),
        (Probed(5, (0.1,) * 5, MTU, Carried(0, 5)), Carrier.EBPF, State.ELSEWHERE),
        (Probed(5, (0.1,) * 5, MTU, Carried(0, 5)), Carrier.KERNEL, State.OK),
        (Probed(5, (), 0, Carried(0, 0)), Carrier.EBPF, State.UNREACHABLE),
        (Probed(5, (0.1,) * 5, MTU, Carried(5, 5)), Carrier.EBPF, State.OK),
    ],
)
def test_the_worst_that_was_seen_of_a_peer_is_its_state(
    probed: Probed, carrier: Carrier, state: State
) -> None:
    assert probed.state(carrier, MTU) is state


def test_the_exit_code_is_1_if_anybody_answers_nothing() -> None:
    assert verdict([State.OK, State.LOSSY, State.SMALL, State.ELSEWHERE]) == 0
    assert verdict([State.OK, State.UNREACHABLE]) == 1
    assert verdict([]) == 0


def test_times_are_of_what_was_answered() -> None:
    assert Probed(5, (0.4, 0.1, 0.2)).times == (0.1, 0.2, 0.4)
    assert Probed(5, (0.4, 0.1, 0.2)).loss == pytest.approx(0.4)
    assert (Probed(5, ()).times, Probed(5, ()).loss, Probed(0, ()).loss) == (None, 1, 0)


def test_what_ebpf_has_carried_is_the_difference_of_two_looks() -> None:
    before, after = {PEER.host: PeerStats(1, 10, 2, 20)}, {PEER.host: PeerStats(4, 40, 9, 90)}
    assert carried(before, after, PEER.host) == Carried(7, 3)
    assert carried({}, after, PEER.host) == Carried(9, 4)
    assert carried(before, after, OTHER.host) == Carried(0, 0)
    assert carried(None, None, PEER.host) is None
    assert carried(before, after, IPv6Address("fd77::2")) is None


# --- What is shown -----------------------------------------------------------------


def rows(lane: Lane[IPv4Address], probed: Probed) -> list[dict[str, Any]]:
    return [dict(row) for row in rows_of(lane, dict.fromkeys(lane.members, probed), MTU)]


def test_a_matrix_has_a_line_for_each_peer_and_a_column_for_each_carrier() -> None:
    members = {lease.vtep_ip: lease for lease in (PEER, OTHER)}
    ebpf = Lane(Carrier.EBPF, 4, OWN.vtep_ip, members)
    kernel = Lane(Carrier.KERNEL, 4, OWN.vtep_ip, {PEER.vtep_ip: PEER}, "ovnet.1")
    well, bad = Probed(4, (0.001,) * 4, MTU, Carried(4, 4)), Probed(4, (0.001, 0.003), 1350)
    columns, lines = matrix([*rows(ebpf, well), *rows(kernel, bad)])
    assert columns == ["ebpf", "kernel"]
    assert lines == [
        {"node": "two", "host": "10.0.0.2", "ebpf": "1.00 ms, 1450 bytes",
         "kernel": "small, 2.00 ms, 50% lost, 1350 bytes"},
        {"node": "three", "host": "10.0.0.3", "ebpf": "1.00 ms, 1450 bytes"},
    ]  # fmt: skip
    (row,) = rows(kernel, Probed(4, ()))
    assert matrix([row])[1] == [{"node": "two", "host": "10.0.0.2", "kernel": "unreachable"}]
    assert (row["median"], row["mtu"], row["ebpf_out"]) == (None, None, None)


@pytest.mark.parametrize(("terminal", "steps"), [(True, SHORT), (True, SHORT - 1), (False, SHORT)])
def test_a_bar_is_shown_on_a_terminal_where_it_takes_long_and_ends_its_line(
    terminal: bool, steps: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    with progress(steps) as step:
        for _ in range(steps // 2):
            step()
    shown = capsys.readouterr().err
    assert bool(shown) == (terminal and steps >= SHORT)
    assert not shown or shown.endswith(" 50%\n")


# --- Asking ------------------------------------------------------------------------


def test_who_does_not_answer_is_asked_again_and_no_other() -> None:
    echo, targets = Path1350(), [PEER.vtep_ip, OTHER.vtep_ip]
    echo.lost = 1
    assert answering(echo, targets, SMALL) == dict.fromkeys(targets, 0.001)
    assert echo.asked == [(targets, SMALL, 1), ([PEER.vtep_ip], SMALL, AGAIN)]


def test_the_largest_packet_is_looked_for_only_where_the_overlays_does_not_pass() -> None:
    target = PEER.vtep_ip
    assert largest(Path1350(), [target], 1350) == {target: 1350}
    assert largest(Path1350(), [target], MTU) == {target: 1350}
    assert largest(Path1350(), [target], MTU, lambda: True) == {}


def test_more_peers_with_a_small_path_are_asked_than_there_are_sequence_numbers() -> None:
    targets = [IPv4Address(number) for number in range(1, 5000)]
    assert set(Path1350().largest(targets, SMALL, MTU, 1).values()) == {1350}


def test_the_header_of_a_packet_past_tc_is_what_ip_asks_for() -> None:
    made = header(OWN.vtep_ip, PEER.vtep_ip, 64)
    assert checksum(made) == 0
    assert struct.unpack("!BBHHHBB", made[:10]) == (0x45, 0, 84, 0, 0x4000, 64, 1)
    assert made[12:] == OWN.vtep_ip.packed + PEER.vtep_ip.packed
