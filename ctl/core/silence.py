"""Peers that packets go to and nothing comes back from, told by what eBPF has carried. Pure.

    silence = Silence()
    suspects = silence.looked(stats)     every LOOK_S seconds, with what is counted then, where anything is
    silence.heard(answered)              those of them that answered when they were asked

Traffic that goes one way alone is somebody's protocol (syslog, metrics by UDP), so who says
nothing is suspected, no more, and has to be asked. What comes by the kernel path alone is not
counted: the answer to the question is, by who has asked.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, Generic

from ctl.core.abi import PeerStats
from ctl.core.model import A

PACKETS: Final = 3
"""Fewer of them between two looks say nothing."""
LOOKS: Final = 2
"""How many looks in a row a peer has to be sent packets and say nothing to be asked."""


class Silence(Generic[A]):
    """Remembers the look before, and for how many looks each peer has said nothing."""

    def __init__(self) -> None:
        self._before: Mapping[A, PeerStats] | None = None
        """What was counted at the look before; None: there was none."""
        self._gone: Collection[A] = ()
        """Hosts that had none then, and one at the look before that."""
        self._looks: dict[A, int] = {}
        self._sent: dict[A, int] = {}

    def looked(self, now: Mapping[A, PeerStats]) -> Mapping[A, int]:
        """Hosts of the peers to be asked, and how many packets went to each since it is silent.

        A peer that is sent nothing more stays suspected until it is heard of, or is no peer any more.
        `now`: by host, of those for which anything is counted.
        """
        for host, stats in now.items():
            before = self._earlier(host, stats)
            sent = stats.tx_packets - before.tx_packets
            if stats.rx_packets != before.rx_packets:
                self._forget(host)
            elif sent >= PACKETS:
                self._looks[host] = self._looks.get(host, 0) + 1
                self._sent[host] = self._sent.get(host, 0) + sent
        for host in self._looks.keys() - now.keys():
            self._forget(host)
        self._gone = () if self._before is None else self._before.keys() - now.keys()
        self._before = now
        return {host: self._sent[host] for host, looks in self._looks.items() if looks >= LOOKS}

    def _earlier(self, host: A, now: PeerStats) -> PeerStats:
        """What was counted at the look before. As much as now, where that cannot be known."""
        if self._before is None or host in self._gone:
            return now
        return self._before.get(host, PeerStats())

    def heard(self, hosts: Collection[A]) -> None:
        """These have answered: what follows is judged from here on."""
        for host in hosts:
            self._forget(host)

    def _forget(self, host: A) -> None:
        self._looks.pop(host, None)
        self._sent.pop(host, None)
