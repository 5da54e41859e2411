from __future__ import annotations

from tests.fuzz.check import Campaign

PACKETS = 60_000
REACHED = {
    ("from_container", "encap"),
    ("from_container", "tcp_control"),
    ("from_wire", "decap"),
    ("from_wire", "spoofed_source"),
    ("from_wire", "unknown_vtep"),
    ("from_wire", "truncated"),
    ("from_wire_xdp", "decap"),
    ("from_wire_xdp", "spoofed_source"),
    ("from_wire_xdp", "unknown_vtep"),
    ("from_wire_xdp", "tcp_control"),
    ("to_overlay", "learned"),
    ("to_overlay", "changed"),
    ("to_container", "learned"),
    ("to_container", "changed"),
}


def test_no_packet_breaks_a_rule() -> None:
    with Campaign(seed=20240607) as campaign:
        campaign.run(PACKETS)
        few = {place for place in REACHED if campaign.seen[place] < 50}
        assert not few, f"hardly reached: {few}"
