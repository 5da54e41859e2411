"""The backends side by side on one etcd, by what is on the wire: the story of `make demo STORY=1`."""

from __future__ import annotations

from tests.lab import Lab
from tests.story import Story


def test_udp_then_vxlan_then_ebpf_then_host_gw() -> None:
    with Lab() as lab:
        for step in Story(lab).steps():
            print(f"\n{step.__doc__}")
            step()
