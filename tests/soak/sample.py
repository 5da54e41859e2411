"""What a node holds at one moment: of its process, of the kernel, of its files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ctl.kernel.bpf.maps import open_maps
from tests.hooks import programs
from tests.host import Agent, Host
from tests.namespace import alive

TICKS = os.sysconf("SC_CLK_TCK")


def process(pid: int) -> dict[str, float]:
    """RSS in MB, file descriptors, threads, netlink sockets, CPU seconds used."""
    status = Path(f"/proc/{pid}/status").read_text()
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    links = _descriptors(pid)
    netlink = {line.split()[9] for line in Path(f"/proc/{pid}/net/netlink").read_text().splitlines()[1:]}
    return {
        "rss_mb": round(int(status.split("VmRSS:")[1].split()[0]) / 1024, 3),
        "threads": float(status.split("Threads:")[1].split()[0]),
        "fds": float(len(links)),
        "netlink_sockets": float(
            sum(link.startswith("socket:[") and link[8:-1] in netlink for link in links)
        ),
        "cpu_s": (int(fields[11]) + int(fields[12])) / TICKS,
    }


def _descriptors(pid: int) -> list[str]:
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(str(entry.readlink()))
        except FileNotFoundError:
            continue  # closed meanwhile
    return found


def fill(host: Host) -> dict[str, float]:
    """Entries of each map that can fill up."""
    with open_maps(host.bpffs) as maps:
        return {f"map_{name}": float(count) for name, (count, _) in maps.fill().items()}


def kernel(host: Host) -> dict[str, float]:
    """What is ours in the kernel and in the file system."""
    device = "ovnet.1"
    rules = _json(host, "nft", "-j", "list", "ruleset")["nftables"]
    neighbours = _json(host, "ip", "-j", "neigh", "show", "nud", "permanent", "dev", device)
    fdb = _json(host, "bridge", "-j", "fdb", "show", "dev", device)
    return {
        "routes": float(len(_json(host, "ip", "-j", "route", "show", "proto", "147"))),
        "neighbours": float(len(neighbours)),
        "fdb": float(len([each for each in fdb if "dst" in each])),
        "filters": float(len(programs(host))),
        "nft_rules": float(sum("rule" in each for each in rules)),
        "nft_objects": float(len(rules)),
        "pins": float(sum(path.is_file() for path in host.bpffs.rglob("*"))),
        "state_files": float(sum(not _being_written(path) for path in host.state_dir.iterdir())),
    }


def _being_written(path: Path) -> bool:
    """A temporary file of a process that lives (ctl.process.statedir.write_atomically)."""
    pid = path.name.rpartition(".")[2]
    return path.name.startswith(".") and pid.isdigit() and alive(int(pid))


def _json(host: Host, *command: str) -> Any:
    return json.loads(host.run(*command).stdout or "[]")


def node(host: Host, agent: Agent | None) -> dict[str, float]:
    """All of it, each named `host.what`; without the process if `agent` is None."""
    found = {**fill(host), **kernel(host), **(process(agent.pid) if agent else {})}
    return {f"{host.name}.{name}": value for name, value in found.items()}
