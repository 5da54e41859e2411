from __future__ import annotations

import pytest

from ctl.core.model import Bypass
from tests.datapath import INET, INET6, Cast
from tests.fuzz.campaign import Campaign, replay, rows
from tests.fuzz.trial import Trial, World

PACKETS = 20_000
ENOUGH = PACKETS // 1000
"""Packets for each of the places that have to be reached."""
COMMON = {
    ("from_container", "encap"),
    ("from_container", "tcp_control"),
    ("from_wire", "decap"),
    ("from_wire", "spoofed_source"),
    ("from_wire", "unknown_vtep"),
    ("from_wire", "tagged"),
    ("from_wire", "truncated"),
    ("from_wire_xdp", "decap"),
    ("from_wire_xdp", "spoofed_source"),
    ("from_wire_xdp", "unknown_vtep"),
    ("from_wire_xdp", "tcp_control"),
    ("to_overlay", "learned"),
    ("to_overlay", "changed"),
    ("to_container", "learned"),
    ("to_container", "changed"),
    ("tunnel_out", "tunnel_encap"),
    ("tunnel_out", "inner_mac"),
    ("tunnel_in", "tunnel_decap"),
    ("tunnel_in", "not_local"),
}
REACHED = {
    INET: COMMON,
    INET6: COMMON
    | {
        ("from_container", "ip_options"),
        ("from_container", "fragment"),
        ("from_wire", "outer_checksum"),
        ("from_wire", "outer_fragment"),
        ("from_wire", "outer_options"),
        ("from_wire_xdp", "outer_checksum"),
        ("tunnel_out", "outer_checksum"),
    },
}


# Some 5 s on a machine of its own; one that is starved has taken more than the usual limit.
@pytest.mark.timeout(600)
@pytest.mark.parametrize("cast", REACHED, ids=str)
def test_no_packet_breaks_a_rule(cast: Cast) -> None:
    with Campaign(seed=20240607, cast=cast) as campaign:
        campaign.run(PACKETS)
        few = {place for place in REACHED[cast] if campaign.seen[place] < ENOUGH}
        assert not few, f"hardly reached: {few}"


@pytest.mark.parametrize("trial", rows(), ids=lambda trial: f"{trial.program}-{trial.frame[:48].hex()}")
def test_what_has_broken_a_rule_once_does_so_no_more(trial: Trial) -> None:
    replay(trial)


def test_a_seed_gives_the_same_packets() -> None:
    seen = []
    for _ in range(2):
        with Campaign(seed=7) as campaign:
            campaign.run(3000)
            seen.append(campaign.seen)
    assert seen[0] == seen[1]


def test_a_trial_is_read_as_it_is_written() -> None:
    trial = Trial(
        "from_wire",
        b"\1\2\3",
        World(Bypass.OFF, 1, 0, 1, version=6),
        vlan=7,
        gso_size=9,
        gso_segs=2,
        note=b"\4",
    )
    assert Trial.parse(str(trial)) == trial
    with pytest.raises(ValueError, match="unknown: speed"):
        Trial.parse(f"{trial} speed=3")
    with pytest.raises(ValueError, match="no 'frame'"):
        Trial.parse(str(trial).split(" frame=", 1)[0])
