"""Where a node stands on the underlay: its uplink, and what is remembered of it from look to look.

What becomes of it is decided in ctl.core.uplink.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import astuple
from ipaddress import IPv4Address
from typing import Final

from ctl.backend.told import told
from ctl.core.candidates import Host, UplinkChoice, rivals, standing_at
from ctl.core.errors import AgentError
from ctl.core.findings import Concern, Findings
from ctl.core.host import Link, Uplink
from ctl.core.model import FOUND_OUT, Addresses
from ctl.core.uplink import Decision, Memory, Row, decide, decide_first
from ctl.kernel import sysctl
from ctl.kernel.netlink.session import Netlink
from ctl.kernel.netlink.uplink import survey
from ctl.process import statedir
from ctl.settings.config import Settings

log = logging.getLogger(__name__)


class Standing:
    """The uplink in `findings`, kept as the request has it. One thread's.

    `steady`: seconds that only go up.
    """

    def __init__(
        self,
        settings: Settings,
        netlink: Netlink,
        findings: Findings,
        *,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._asked = UplinkChoice(
            settings.iface, settings.iface_regex, settings.iface_can_reach, settings.public_ip
        )
        self._file: Final = settings.state_dir / statedir.UPLINK
        self._netlink, self._findings, self._steady = netlink, findings, steady
        self._memory: Memory | None = None
        """Of the last look; None: there has been none."""
        self._kept = ""
        """What is in the file; empty: that is not known."""
        self._failed = False
        """Whether it could not be written the last time, and that was said."""

    @property
    def uplink(self) -> Uplink:
        """As it was at the last look."""
        assert self._memory is not None, "find() comes first"
        return self._memory.uplink

    def find(self, addresses: Addresses = FOUND_OUT) -> None:
        """Look which interface is the uplink, and which address is ours. AgentError if there is none.

        `addresses` are ours in any case, and where no interface is asked for it is the one that has them.
        """
        self._asked = standing_at(self._asked, addresses)
        host = survey(self._netlink, self._asked)
        self._take(decide_first(self._asked, host, self._earlier()), host)

    def follow(self) -> None:
        """Look again. AgentError if nothing can be done about it now: then it is as it was."""
        assert self._memory is not None, "find() comes first"
        before = self._memory.uplink
        host = survey(self._netlink, self._asked)
        found = decide(self._asked, host, self._memory, self._steady())
        self._take(found, host)
        after = self.uplink
        if known_as(after) != known_as(before):
            log.warning("uplink is now %s with %s: %s", after.link.name, after.address, _why(found, before))

    def keep(self) -> None:
        """Have the next life of the agent begin with the same address. A disk that is full stops nothing."""
        assert self._memory is not None, "find() comes first"
        text = json.dumps({"asked": self._request(), "address": str(self._memory.own)}) + "\n"
        if text != self._kept:
            try:
                statedir.write_atomically(self._file, text)
            except OSError as error:
                if not self._failed:
                    log.error("cannot write %s: %s", self._file, error.strerror)
                self._failed = True
            else:
                self._kept, self._failed = text, False

    def _take(self, found: Decision, host: Host) -> None:
        self._memory = found.memory
        if found.error:
            raise AgentError(found.error)
        self._findings.uplink = self.uplink
        told(self._findings, Concern.UPLINK, found.wrong)
        told(self._findings, Concern.NEWCOMER, found.newcomer)
        told(self._findings, Concern.ARP, _arp(self.uplink, rivals(host, self.uplink)))

    def _request(self) -> list[str]:
        return ["" if each is None else str(each) for each in astuple(self._asked)]

    def _earlier(self) -> IPv4Address | None:
        """The own address of an earlier life with the same request. What is damaged tells nothing."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(self._file.read_text())
            if found["asked"] == self._request():
                return IPv4Address(found["address"])
        return None


def _why(found: Decision, before: Uplink) -> str:
    if found.row in (Row.SUCCESSOR, Row.SUBSTITUTE):
        return f"{before.address} on {before.link.name} is gone, or that is down"
    return "renamed" if found.row is Row.STAYS else found.row.value


def known_as(uplink: Uplink) -> tuple[IPv4Address, int, str]:
    """What peers send to, what programs hang on, what rules name."""
    return uplink.address, uplink.link.ifindex, uplink.link.name


def _arp(uplink: Uplink, others: Iterable[Link]) -> str:
    """One line on interfaces that take packets for our address, where our rules refuse VXLAN."""
    names = [link.name for link in others if not any(map(_ignores, ("all", link.name)))]
    if not names:
        return ""
    settings = " ".join(f"net.ipv4.conf.{name}.arp_ignore=1" for name in names)
    return (
        f"{', '.join(names)}: in one network with uplink {uplink.link.name}, and may answer ARP for "
        f"{uplink.address}; peers' packets that come in there are refused: set {settings}, or bond them"
    )


def _ignores(name: str) -> bool:
    """Whether ARP is answered only by the interface that has the address."""
    return (sysctl.read(f"net/ipv4/conf/{name}/arp_ignore") or "0") != "0"
