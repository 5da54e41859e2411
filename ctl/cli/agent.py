"""`ovctl agent`: run the node agent in the foreground.

stdout: the leased subnet, one line. stderr: the log. SIGTERM and SIGINT end it and leave
everything forwarding (`ovctl teardown` removes it).
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import logging
import os
import resource
import signal
import sys
from typing import TYPE_CHECKING, Final

from ctl.cli.settings import load
from ctl.core.errors import AgentError
from ctl.core.model import Bypass
from ctl.process import capabilities
from ctl.settings.config import Settings, add_options, doubts

if TYPE_CHECKING:
    from ctl.agent.loop import Agent
    from ctl.node.node import Node
    from metrics.snapshot import NodeSnapshot

DESCRIPTORS: Final = 256
"""Fewer are not enough: 45 are open on a node without containers, and programs that it starts need some."""

_MALLOC: Final = {
    "M_ARENA_MAX": (-8, 1),
    "M_TRIM_THRESHOLD": (-1, 1 << 20),
    "M_MMAP_THRESHOLD": (-3, 1 << 20),
}
"""Options of mallopt(3), by their numbers in glibc's malloc.h, and what they are to be: thresholds
(bytes) above the buffers that netlink's answers come in, which would be mapped and unmapped each time,
and one heap for all threads, of which one runs at a time anyway."""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "agent",
        help="run the node agent",
        description=__doc__,
        epilog="example: ovctl agent --store etcd://192.0.2.1:2379 --iface eth0",
    )
    add_options(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Run until told to stop; returns 0."""
    settings = load(args)
    logging.basicConfig(
        level=settings.log_level.upper(), stream=sys.stderr, format="%(levelname)s %(message)s", force=True
    )
    for doubt in doubts(settings):
        logging.warning("%s", doubt)
    faulthandler.enable()  # the watchdog's SIGABRT then shows where each thread stands
    require_capabilities(settings.bypass, echoes=settings.probe_interval > 0)
    require_descriptors()
    from ctl.store import with_node_name

    return _run(with_node_name(settings))


def require_capabilities(bypass: Bypass = Bypass.LEARNED, *, echoes: bool = False) -> None:
    """AgentError if the kernel will not let us; checked first, before anything is changed.

    Without programs none is wanted for them; `echoes`: whether any are to be sent.
    """
    missing = []
    if echoes and not capabilities.effective() >> capabilities.NET_RAW & 1:
        missing.append("CAP_NET_RAW")
    if not capabilities.effective() >> capabilities.NET_ADMIN & 1:
        missing.append("CAP_NET_ADMIN")
    if bypass is not Bypass.OFF and not capabilities.may_bpf():
        missing.append("CAP_BPF")
    if missing:
        raise AgentError(f"needs root, or {' and '.join(missing)}")


def require_descriptors() -> None:
    """Allow this process as many open files as may be; AgentError if these are too few to begin with."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < DESCRIPTORS:
        raise AgentError(
            f"{most} open files are allowed, and {DESCRIPTORS} needed, with two more for each container: "
            "raise the limit (LimitNOFILE of the unit, ulimit -n)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _run(settings: Settings) -> int:
    # Heavy, so only where they are needed.
    from ctl.agent.loop import Agent
    from ctl.kernel.netlink.session import Netlink
    from ctl.node.cni import CniConf
    from ctl.node.node import Node
    from ctl.process import statedir
    from ctl.process.sole import hold_namespace
    from ctl.store import open_store

    _give_memory_back()
    gc.set_threshold(*_AT_START)
    # Nor among what was imported: as long as that counts, garbage may grow to a quarter of it.
    gc.freeze()
    with (
        statedir.Lock(settings.state_dir) as lock,
        Netlink() as netlink,
        contextlib.closing(open_store(settings, patient=True)) as store,
    ):
        node = Node(settings, netlink)
        agent = Agent(
            settings,
            store,
            node,
            node,
            hold=hold_namespace,
            say=_say,
            rest=_collect_cycles,
            runtimes=CniConf(settings, settings.cni_conf) if settings.cni_conf else None,
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: agent.mailbox.stop())
        with contextlib.ExitStack() as servers:
            _serve(settings, agent, node, servers)
            if agent.start():
                lock.keep()
                agent.run()
    return 0


def _give_memory_back() -> None:
    """Have malloc return to the kernel what is freed, all through the agent's life.

    Left alone, glibc keeps pieces as large as the largest that was ever freed, and gives each thread a
    heap of its own: a scrape of 10,000 peers, 2.4 MB of text, left 11 MB behind, and leaves 5 now.
    """
    import ctypes

    with contextlib.suppress(AttributeError):  # another libc than glibc
        for option, value in _MALLOC.values():
            ctypes.CDLL(None).mallopt(option, value)


_AT_START: Final = 200_000, 20, 20
_LATER: Final = 20_000, 20, 20
"""So many new objects the cycle collector waits for. Peers are tens of thousands of them, or millions at a
start, in no cycles: do not look for any after every few hundred."""


def _collect_cycles() -> None:
    """Of the young only: peers have grown old by now.

    A start leaves 20 MB in cycles, and each failure some (an exception and its frames), which by
    our thresholds would wait for hours.
    """
    gc.collect(1)
    if gc.get_threshold() == _AT_START:
        gc.set_threshold(*_LATER)
        gc.freeze()  # what is there now is there to stay


def _say(line: str) -> None:
    """On stdout; who does not read it any more has not stopped the node."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _serve(settings: Settings, agent: Agent, node: Node, servers: contextlib.ExitStack) -> None:
    """Start the servers that are asked for, and what fills them; `servers` closes them."""
    probe = None
    if settings.probe_interval:
        from ctl.agent.probing import BackgroundProbe

        probe = BackgroundProbe(settings.probe_interval, lambda: node.told).start()
        servers.callback(probe.close)
    if settings.metrics_port:
        from ctl.kernel.bpf.families import AllMaps
        from ctl.kernel.netlink import nft
        from metrics.server import serve
        from metrics.snapshot import take

        def source() -> NodeSnapshot:
            probed = probe.found if probe else {}
            maps = AllMaps(node.maps, node.ipv6_maps) if node.maps else None
            return take(agent.report, maps, settings.state_dir, nft.dropped, probed)

        server = serve(settings.metrics_addr, settings.metrics_port, source, lambda: agent.report)
        servers.callback(server.close)
    if settings.healthz_port:
        from metrics.server import serve_health

        health = serve_health(settings.healthz_ip, settings.healthz_port, lambda: agent.report)
        servers.callback(health.close)
