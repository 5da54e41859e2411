"""Masquerade, forwarding and the VTEP's door: an nftables table of ours, and a chain beside Docker's.

Of each IP version one. Masquerade has the semantics of flannel's iptables rules. The table is put in place in
one transaction, so there is never a moment without it. An accept in a table of ours
cannot undo a drop in another, so where the host has iptables, a chain of it accepts
what is forwarded from and to the overlay (Docker sets FORWARD's policy to DROP).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from ctl.core.errors import KernelError
from ctl.core.model import A
from ctl.kernel import iptables
from ctl.kernel.command import find, run, succeeds

TABLE: Final = "ovnet"
SENDERS: Final = "senders"
"""The set in it of who may send us VXLAN (ctl.kernel.senders)."""

_MASQUERADE: Final = """\
	chain postrouting {{
		type nat hook postrouting priority srcnat; policy accept;
		meta mark & 0x4000 == 0x4000 return comment "masqueraded elsewhere"
		{ip} saddr {own} {ip} daddr {network} return
		{ip} saddr {network} {ip} daddr {own} return
		{ip} saddr != {network} {ip} daddr {own} return comment "from outside, routed to us"
		{ip} saddr {network} {ip} daddr != {multicast} masquerade fully-random
		{ip} saddr != {network} {ip} daddr {network} masquerade fully-random
	}}
"""

# The vxlan device asks neither where a packet came in nor whom it was for. The bits:
# behind UDP's 64 and VXLAN's flags, 24 of VNI (RFC 7348, section 5). Whom a packet out of
# the tunnel was sent to is asked before a service may translate it. `disguise`: someone
# else's masquerade, Docker's for its other bridges, would make their VXLAN look like ours.
# {strangers}: who is no peer is refused here too, for there may be no program that does:
# with --bypass=off, or where someone else's ends what runs on the uplink before ours.
_VTEP: Final = """\
	chain vtep {{
		type filter hook input priority raw; policy accept;
		{vxlan} iifname != "{uplink}" counter drop comment "VXLAN not from the underlay"
		{vxlan} {ip} daddr != {host} counter drop comment "VXLAN not for the VTEP's address"
{strangers}	}}
	chain relay {{
		type filter hook prerouting priority raw; policy accept;
		iifname "{device}" {ip} daddr {network} {ip} daddr != {own} counter drop comment "no relaying"
	}}
	chain disguise {{
		type filter hook postrouting priority srcnat + 1; policy accept;
		{vxlan} {ip} saddr {host} ct direction original ct original {ip} saddr != {host} \\
			counter drop comment "VXLAN masqueraded as ours"
	}}
"""

_STRANGERS: Final = """\
		{vxlan} {ip} saddr != @{senders} counter drop comment "VXLAN of no peer"
"""

# Masqueraded, it would have our address and be believed by every peer. VXLAN inside the
# network is an overlay of the containers' own.
_CONTAINERS: Final = """\
	chain containers {{
		type filter hook forward priority raw; policy accept;
		{vxlan} iifname "{bridge}" {ip} daddr != {network} counter drop comment "VXLAN of a container"
	}}
"""


@dataclass(frozen=True, slots=True)
class _Words:
    """How nftables speaks of a family."""

    ip: str
    """Its table's family, and the header of its packets."""
    address: str
    """The type of a set's elements."""
    multicast: str


_WORDS: Final = {4: _Words("ip", "ipv4_addr", "224.0.0.0/4"), 6: _Words("ip6", "ipv6_addr", "ff00::/8")}
"""By IP version."""


def table_of(version: int) -> str:
    """Our table of that IP version, as nft names it."""
    return f"{_WORDS[version].ip} {TABLE}"


@dataclass(frozen=True, slots=True)
class Tunnel:
    """Whose packets the vxlan device takes: those to `host` that come in by `uplink`."""

    port: int
    vni: int
    uplink: str
    """An interface's name."""
    host: IPv4Address | IPv6Address
    device: str
    """The vxlan device's name."""
    senders: Collection[IPv4Address | IPv6Address] | None = field(default=None, compare=False)
    """Hosts that may send; None: it is not known who they are, and nobody is refused for it."""


def ruleset(
    network: IPv4Network | IPv6Network,
    own: IPv4Network | IPv6Network,
    *,
    masquerade: bool,
    tunnel: Tunnel | None = None,
    bridge: str = "",
) -> str:
    """Our table as nft text, without what is in its set."""
    words = _WORDS[network.version]
    spaces = {"ip": words.ip, "network": network, "own": own, "multicast": words.multicast}
    body = _MASQUERADE.format(**spaces) if masquerade else ""
    if tunnel:
        vxlan = f"udp dport {tunnel.port} @th,96,24 {tunnel.vni}"
        names = {**spaces, "vxlan": vxlan, "bridge": bridge}
        if tunnel.senders is not None:
            body += declared(network.version)
            names["strangers"] = _STRANGERS.format(ip=words.ip, vxlan=vxlan, senders=SENDERS)
        else:
            names["strangers"] = ""
        body += _VTEP.format(uplink=tunnel.uplink, host=tunnel.host, device=tunnel.device, **names)
        if bridge:
            body += _CONTAINERS.format(**names)
    return f"table {table_of(network.version)} {{\n{body}}}\n"


def declared(version: int) -> str:
    """The set of senders, for the inside of our table. Whether it is there already makes no difference."""
    return f"\tset {SENDERS} {{\n\t\ttype {_WORDS[version].address}\n\t}}\n"


def elements(verb: str, version: int, hosts: Collection[A]) -> str:
    """These hosts put into the set ("add") or taken out of it ("delete"), as nft text; empty for nobody."""
    named = ", ".join(map(str, hosts))
    return f"{verb} element {table_of(version)} {SENDERS} {{ {named} }}\n" if hosts else ""


def _replacing(version: int, table: str) -> str:
    """Declared, deleted, made anew: all in one transaction, whether it was there or not."""
    name = table_of(version)
    return f"table {name}\ndelete table {name}\n{table}"


def check(
    network: IPv4Network | IPv6Network, *, masquerade: bool, tunnel: Tunnel | None, bridge: str
) -> None:
    """KernelError if this kernel does not take a table like ours. Changes nothing."""
    table = ruleset(network, network, masquerade=masquerade, tunnel=tunnel, bridge=bridge)
    if not find("nft"):
        raise KernelError("nft is not installed: install nftables")
    try:
        run("nft", "--check", "--file", "-", text=_replacing(network.version, table))
    except KernelError as error:
        raise KernelError(f"{error}: the kernel needs nftables with NAT, masquerade and counters") from error


class Firewall:
    """Our rules of one IP version in this network namespace, and how the kernel last showed them."""

    def __init__(self, version: int = 4) -> None:
        self._version: Final = version
        self._applied = self._shown = ""
        self.unseen: tuple[str, ...] = ()
        """Others' rules that we could not look at, and that may drop what is ours: a line each."""

    def ensure(
        self,
        network: IPv4Network | IPv6Network,
        own: IPv4Network | IPv6Network,
        *,
        masquerade: bool,
        tunnel: Tunnel | None = None,
        bridge: str = "",
    ) -> bool:
        """Make the rules what they have to be; True if something was changed. KernelError.

        The first call always puts the table in place: what an earlier life left may have
        been changed since.
        """
        wanted = ruleset(network, own, masquerade=masquerade, tunnel=tunnel, bridge=bridge)
        changed = wanted != self._applied or self._show() != self._shown
        if changed:
            # What is in the set goes in with it: no packet of a peer meets the rule without.
            inside = elements("add", self._version, tunnel.senders or ()) if tunnel else ""
            run("nft", "-f", "-", text=_replacing(self._version, wanted) + inside)
            self._applied, self._shown = wanted, self._show()
        accepted = iptables.ensure(network, bridge)
        self.unseen = accepted.wrong
        return accepted.changed or changed

    def _show(self) -> str:
        """Our table by nft, without the counters' values and what is in the set; empty if it is gone."""
        return run("nft", "-s", "-t", "list", "table", *table_of(self._version).split(), check=False)


def let_in() -> None:
    """Refuse no VXLAN any more: from now on someone else says who is a peer. KernelError."""
    for version in _WORDS:
        chain = (*table_of(version).split(), "vtep")
        if succeeds("nft", "-t", "list", "chain", *chain):
            run("nft", "flush", "chain", *chain)


def remove() -> bool:
    """Take our tables and chains away; False if there was no table."""
    return True in [remove_of(version) for version in _WORDS]


def remove_of(version: int) -> bool:
    """The same of one IP version."""
    table = table_of(version).split()
    there = succeeds("nft", "-t", "list", "table", *table)
    if there:
        run("nft", "delete", "table", *table)
    elif version == 6:
        return False  # nor is there anything else: most nodes have no IPv6, and are not to get its tables
    iptables.remove(version)
    if find(iptables.command(version)) and find("nft"):
        _remove_empty_filter_table(version)
    return there


def _remove_empty_filter_table(version: int) -> None:
    """The table that iptables-nft makes when it is first asked for anything, if it is bare again.

    Bare: no rule, no chain but built-in ones, and these accept. Without it all packets
    fare the same.
    """
    table = (_WORDS[version].ip, "filter")
    listing = run("nft", "list", "table", *table, check=False)
    lines = [line.strip() for line in listing.splitlines()]
    frame = (f"table {' '.join(table)} {{", "chain INPUT {", "chain FORWARD {", "chain OUTPUT {", "}", "")
    if lines and all(
        line in frame or (line.startswith("type filter") and "accept" in line) for line in lines
    ):
        succeeds("nft", "delete", "table", *table)
