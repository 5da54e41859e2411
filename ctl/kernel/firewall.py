"""Masquerade and forwarding: one nftables table of ours, and a chain beside Docker's.

Masquerade has the semantics of flannel's iptables rules. It is one transaction, so
there is never a moment without it. An accept in a table of ours cannot undo a drop in
another, so where the host has iptables, a chain of it accepts what is forwarded from
and to the overlay (Docker sets FORWARD's policy to DROP).
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from ipaddress import IPv4Network
from typing import Final

from ctl.errors import KernelError

TABLE: Final = "ovnet"
CHAIN: Final = "OVNET-FWD"

_MASQUERADE: Final = """\
	chain postrouting {{
		type nat hook postrouting priority srcnat; policy accept;
		meta mark & 0x4000 == 0x4000 return comment "masqueraded elsewhere"
		ip saddr {own} ip daddr {network} return
		ip saddr {network} ip daddr {own} return
		ip saddr != {network} ip daddr {own} return comment "from outside, routed to us"
		ip saddr {network} ip daddr != 224.0.0.0/4 masquerade fully-random
		ip saddr != {network} ip daddr {network} masquerade fully-random
	}}
"""


def ruleset(network: IPv4Network, own: IPv4Network, *, masquerade: bool) -> str:
    """Our table as nft text; its comment is a digest of the rest."""
    body = _MASQUERADE.format(network=network, own=own) if masquerade else ""
    return f'table ip {TABLE} {{\n\tcomment "{_digest(body)}"\n{body}}}\n'


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def ensure(network: IPv4Network, own: IPv4Network, *, masquerade: bool) -> bool:
    """Make the rules what they have to be; True if something was changed. KernelError."""
    wanted = ruleset(network, own, masquerade=masquerade)
    changed = False
    if _digest_line(wanted) not in _run("nft", "list", "table", "ip", TABLE, check=False):
        # Declared, deleted, made anew: all in one transaction, whether it was there or not.
        _run("nft", "-f", "-", text=f"table ip {TABLE}\ndelete table ip {TABLE}\n{wanted}")
        changed = True
    return _ensure_forwarding(network) or changed


def _digest_line(text: str) -> str:
    return text.splitlines()[1].strip()


def _ensure_forwarding(network: IPv4Network) -> bool:
    if not shutil.which("iptables"):
        return False
    rules = [f"-A {CHAIN} -{side} {network} -j ACCEPT" for side in "sd"]
    present = _run("iptables", "-w", "-S", CHAIN, check=False).splitlines()
    jump = _run("iptables", "-w", "-S", "FORWARD").splitlines()
    if present == [f"-N {CHAIN}", *rules] and f"-A FORWARD -j {CHAIN}" in jump:
        return False
    text = "\n".join(["*filter", f":{CHAIN} - [0:0]", *rules, "COMMIT", ""])
    _run("iptables-restore", "-w", "--noflush", text=text)
    if f"-A FORWARD -j {CHAIN}" not in jump:
        # Appended: Docker's isolation chains keep their say.
        _run("iptables", "-w", "-A", "FORWARD", "-j", CHAIN)
    return True


def remove() -> bool:
    """Take our table and chain away; False if there was no table."""
    there = _succeeds("nft", "list", "table", "ip", TABLE)
    if there:
        _run("nft", "delete", "table", "ip", TABLE)
    if shutil.which("iptables"):
        while _succeeds("iptables", "-w", "-D", "FORWARD", "-j", CHAIN):
            pass
        _succeeds("iptables", "-w", "-F", CHAIN)
        _succeeds("iptables", "-w", "-X", CHAIN)
        _remove_empty_filter_table()
    return there


def _remove_empty_filter_table() -> None:
    """The table that iptables-nft makes when it is first asked for anything, if it is bare again.

    Bare: no rule, no chain but built-in ones, and these accept. Without it all packets
    fare the same.
    """
    listing = _run("nft", "list", "table", "ip", "filter", check=False)
    lines = [line.strip() for line in listing.splitlines()]
    frame = ("table ip filter {", "chain INPUT {", "chain FORWARD {", "chain OUTPUT {", "}", "")
    if lines and all(
        line in frame or (line.startswith("type filter") and "accept" in line) for line in lines
    ):
        _succeeds("nft", "delete", "table", "ip", "filter")


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _run(*command: str, text: str = "", check: bool = True) -> str:
    """Stdout of a command; KernelError with its own words if it fails."""
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=30)
    except FileNotFoundError as error:
        raise KernelError(f"{command[0]} is not installed: install nftables") from error
    except subprocess.TimeoutExpired as error:
        raise KernelError(f"{command[0]} did not answer within 30 s") from error
    if check and done.returncode:
        words = (done.stderr.strip().splitlines() or ["no message"])[0]
        raise KernelError(f"{' '.join(command)}: {words}")
    return done.stdout
