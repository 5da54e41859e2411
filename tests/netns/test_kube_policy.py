"""Network policies by engines of others, which judge the first packets of a connection and know the rest.

Their rules are written anew from what these projects load, as far as they concern one pod:

    kube-router             a chain for the pod: known connections pass, policies set a mark, and what has
                            none is rejected
    Calico                  the same; invalid packets are dropped first, and what has no mark is dropped
    kube-network-policies   behind routing, what has no label of conntrack's is judged in user space

A policy holds at once for what is new, and for what runs as soon as its engine forgets the connection: then
within the time of an approval.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from socket import IPPROTO_TCP

import pytest

from tests.host import Host
from tests.lab import CommandFailed
from tests.netns.conftest import APPROVAL_TTL, Pair
from tests.netns.test_netfilter import GRACE
from tests.nfqueue import queue
from tests.stream import TcpSink, UdpStream, tcp_send

PORT = 9100
QUEUE = LABEL = 100


@dataclass(frozen=True, slots=True)
class Engine:
    """Rules of one pod: what comes to it (`-d`) or what it sends (`-s`) is judged by FIREWALL."""

    name: str
    way: str
    table: str
    hook: str
    firewall: tuple[str, ...]
    in_user_space: bool = False

    def rules(self, pod: str) -> tuple[str, ...]:
        """In their order; POLICY is what changes when a policy does."""
        return (
            f"-I {self.hook} {self.way} {pod}/32 -j FIREWALL",
            *(f"-A FIREWALL {each}" for each in self.firewall),
            f"-A POLICY -p tcp --dport {PORT} -j MARK --set-xmark 0x10000/0x10000",
        )


KNOWN = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
ENGINES = (
    Engine("kube-router", "-s", "filter", "FORWARD", (
        KNOWN,
        "-j POLICY",
        "-m mark ! --mark 0x10000/0x10000 -j REJECT --reject-with icmp-port-unreachable",
        "-j MARK --set-xmark 0x0/0x10000",
        "-j MARK --set-xmark 0x20000/0x20000",
    )),
    Engine("Calico", "-d", "filter", "FORWARD", (
        KNOWN,
        "-m conntrack --ctstate INVALID -j DROP",
        "-j MARK --set-xmark 0x0/0x10000",
        "-j POLICY",
        "-m mark --mark 0x10000/0x10000 -j RETURN",
        "-j DROP",
    )),
    Engine("kube-network-policies", "-d", "mangle", "POSTROUTING", (
        f"-m connlabel --label {LABEL} {KNOWN}",
        f"-j NFQUEUE --queue-num {QUEUE}",
        f"-m connlabel --label {LABEL} --set",  # else connections have no room for labels
    ), in_user_space=True),
)  # fmt: skip


class Policies:
    """An engine at work for a pod."""

    def __init__(self, engine: Engine, host: Host, pod: str) -> None:
        self._engine, self._host, self._pod = engine, host, pod
        self._allowed = True

    def verdicts(self) -> AbstractContextManager[None]:
        """Its half in user space, if it has one."""
        return queue(self._host, QUEUE, LABEL, self._allows) if self._engine.in_user_space else nullcontext()

    def load(self) -> None:
        """Allow TCP to `PORT`, and nothing else."""
        self._restore(*self._engine.rules(self._pod))

    def forbid(self) -> None:
        """Allow nothing any more."""
        self._allowed = False
        self._host.run("iptables", "-t", self._engine.table, "-F", "POLICY")

    def forget(self, client: str) -> None:
        """Judge anew what runs."""
        self._host.run("conntrack", "-D", "--orig-src", client)

    def remove(self) -> None:
        self._restore(self._engine.rules(self._pod)[0].replace("-I", "-D"), "-F FIREWALL", "-F POLICY",
                      "-X FIREWALL", "-X POLICY")  # fmt: skip

    def _allows(self, packet: bytes) -> bool:
        to_pod = packet[16:20] == IPv4Address(self._pod).packed
        return not to_pod or (self._allowed and packet[9] == IPPROTO_TCP and _port(packet) == PORT)

    def _restore(self, *lines: str) -> None:
        chains = f"*{self._engine.table}\n:FIREWALL - [0:0]\n:POLICY - [0:0]\n"
        text = chains + "".join(f"{each}\n" for each in lines) + "COMMIT\n"
        self._host.run("iptables-restore", "--noflush", stdin=text)


def _port(packet: bytes) -> int:
    """The destination's, behind the IP header."""
    return int.from_bytes(packet[(packet[0] & 0xF) * 4 + 2 :][:2])


@contextmanager
def loaded(engine: Engine, host: Host, pod: str) -> Iterator[Policies]:
    policies = Policies(engine, host, pod)
    with policies.verdicts():
        policies.load()
        try:
            yield policies
        finally:
            policies.remove()


def carries(host: Host, stream: UdpStream, seconds: float) -> None:
    """For so long nothing is held up, and eBPF has its part in that."""
    before = host.bypassed()[0]
    stream.advance(seconds)
    assert host.bypassed()[0] > before + 200


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_a_policy_holds_for_what_is_new_and_for_what_runs_once_it_is_forgotten(
    pair: Pair, engine: Engine
) -> None:
    host, pod = (pair.a, pair.on_a) if engine.way == "-s" else (pair.b, pair.on_b)
    send = partial(tcp_send, pair.on_a, pair.on_b.address, port=PORT, timeout=0.5)
    server = TcpSink(pair.on_b, PORT)
    # An answer that comes first after its connection is forgotten would make it one of the other direction.
    stream = UdpStream(pair.on_a, pair.on_b, pair.on_b.address, rate=1000, echo=10)
    carries(host, stream, 0.5)
    with loaded(engine, host, pod.address) as policies:
        send()  # which it allows
        if not engine.in_user_space:
            carries(host, stream, APPROVAL_TTL + 0.5)  # known to conntrack, as without eBPF
        policies.forbid()
        with pytest.raises(CommandFailed):
            send()
        policies.forget(pair.on_a.address)
        stream.stall(APPROVAL_TTL + GRACE)
    stream.advance(0.5)
    stream.finish()
    server.stop()
