"""The rules of kube-proxy's mode `iptables`, chain for chain, written anew from what they do.

    nat     KUBE-SERVICES -> KUBE-SVC-x -> KUBE-SEP-y (DNAT)
                          -> KUBE-NODEPORTS -> KUBE-EXT-x -> KUBE-SVC-x, KUBE-SVL-x
                          -> KUBE-FW-x -> KUBE-EXT-x
            KUBE-POSTROUTING masquerades what KUBE-MARK-MASQ has marked
    filter  KUBE-SERVICES, KUBE-EXTERNAL-SERVICES: what has no endpoints
            KUBE-FORWARD: invalid packets, marked ones, those of known connections
            KUBE-PROXY-FIREWALL: what KUBE-FW-x has let through

Not here: the port of health checks, kubelet's own chains, and nfacct's counter of invalid packets.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from tests.kube.services import MARK, Endpoint, Proxy, Service, digest

NEW: Final = "-m conntrack --ctstate NEW"
JUMPS: Final = f"""\
*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
-I PREROUTING -j KUBE-SERVICES
-I OUTPUT -j KUBE-SERVICES
-I POSTROUTING -j KUBE-POSTROUTING
COMMIT
*filter
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-I INPUT {NEW} -j KUBE-EXTERNAL-SERVICES
-I INPUT {NEW} -j KUBE-PROXY-FIREWALL
-I FORWARD {NEW} -j KUBE-SERVICES
-I FORWARD {NEW} -j KUBE-EXTERNAL-SERVICES
-I FORWARD -j KUBE-FORWARD
-I FORWARD {NEW} -j KUBE-PROXY-FIREWALL
-I OUTPUT {NEW} -j KUBE-SERVICES
-I OUTPUT {NEW} -j KUBE-PROXY-FIREWALL
COMMIT
"""
"""For `iptables-restore --noflush`, once."""

MASQUERADE: Final = (
    f"KUBE-MARK-MASQ -j MARK --or-mark {MARK}",
    f"KUBE-POSTROUTING -m mark ! --mark {MARK}/{MARK} -j RETURN",
    f"KUBE-POSTROUTING -j MARK --xor-mark {MARK}",
    "KUBE-POSTROUTING -j MASQUERADE --random-fully",
)
FORWARD: Final = (
    "KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP",
    f"KUBE-FORWARD -m mark --mark {MARK}/{MARK} -j ACCEPT",
    "KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
)


def rules(proxy: Proxy, services: Iterable[Service]) -> str:
    """What stands in the chains, for `iptables-restore --noflush`, which replaces what stood there."""
    served = [each for each in services if each.cluster_ip]
    return _table("filter", _filter(proxy, served)) + _table("nat", _nat(proxy, served))


def removal(loaded: str) -> str:
    """What takes away everything of a text that was loaded: the jumps first, then the chains they led to."""
    jumps: dict[str, list[str]] = {}
    chains: dict[str, list[str]] = {}
    table = ""
    for line in loaded.splitlines():
        if line.startswith("*"):
            table = line
        elif line.startswith(":"):
            chains.setdefault(table, []).append(line[1:].split()[0])
        elif line.startswith("-I"):
            jumps.setdefault(table, []).append(line.replace("-I", "-D", 1))
    undo = []
    for table, found in chains.items():
        names = dict.fromkeys(found)
        undo += [table, *jumps[table], *(f"-F {each}" for each in names), *(f"-X {each}" for each in names)]
        undo.append("COMMIT")
    return "".join(f"{line}\n" for line in undo)


def _table(name: str, lines: Iterable[str]) -> str:
    appended = [f"-A {line}\n" for line in lines]
    chains = dict.fromkeys(re.findall(r"-[Aj] (KUBE-\S+)", "".join(appended)))
    return f"*{name}\n" + "".join(f":{each} - [0:0]\n" for each in chains) + "".join(appended) + "COMMIT\n"


def _filter(proxy: Proxy, services: Sequence[Service]) -> Iterator[str]:
    yield from FORWARD
    for service in services:
        to = f"-d {service.cluster_ip}/32 {_port(service, service.port)}"
        if not service.endpoints:
            yield f"KUBE-SERVICES {to} -j REJECT"
        elif service.internal_local and not service.local(proxy.node):
            yield f"KUBE-SERVICES {to} -j DROP"
        if not service.endpoints or (service.external_local and not service.local(proxy.node)):
            verdict = "DROP" if service.endpoints else "REJECT"
            yield from (f"KUBE-EXTERNAL-SERVICES {each} -j {verdict}" for each in _external(service))
        if service.load_balancer and service.source_ranges:
            balanced = f"-d {service.load_balancer}/32 {_port(service, service.port)}"
            yield f"KUBE-PROXY-FIREWALL {balanced} -j DROP"


def _external(service: Service) -> Iterator[str]:
    """Matches of what comes to it from outside."""
    if service.load_balancer:
        yield f"-d {service.load_balancer}/32 {_port(service, service.port)}"
    if service.node_port:
        yield f"-m addrtype --dst-type LOCAL {_port(service, service.node_port)}"


def _nat(proxy: Proxy, services: Sequence[Service]) -> Iterator[str]:
    yield from MASQUERADE
    for service in services:
        if service.endpoints:
            yield from _service(proxy, service)
    # The last one: a node's address may be a service's, too.
    yield "KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS"


def _service(proxy: Proxy, service: Service) -> Iterator[str]:
    inner = _chain("SVL" if service.internal_local else "SVC", service)
    cluster = f"-d {service.cluster_ip}/32 {_port(service, service.port)}"
    if not service.internal_local or service.local(proxy.node):
        yield f"KUBE-SERVICES {cluster} -j {inner}"
        yield f"{inner} {cluster} ! -s {proxy.cluster_cidr} -j KUBE-MARK-MASQ"
    if service.is_external:
        yield from _from_outside(proxy, service)
    yield from _choice(proxy, service, _chain("SVC", service), service.endpoints)
    if service.internal_local or service.external_local:
        yield from _choice(proxy, service, _chain("SVL", service), service.local(proxy.node))
    for endpoint in service.endpoints:
        yield from _endpoint(service, endpoint)


def _from_outside(proxy: Proxy, service: Service) -> Iterator[str]:
    outer, inner = _chain("EXT", service), _chain("SVC", service)
    if service.load_balancer:
        balanced = f"-d {service.load_balancer}/32 {_port(service, service.port)}"
        firewall = _chain("FW", service)
        yield f"KUBE-SERVICES {balanced} -j {firewall if service.source_ranges else outer}"
        yield from (f"{firewall} -s {each} -j {outer}" for each in service.source_ranges)
    if service.node_port:
        yield f"KUBE-NODEPORTS {_port(service, service.node_port)} -j {outer}"
    if not service.external_local:
        yield f"{outer} -j KUBE-MARK-MASQ"
        yield f"{outer} -j {inner}"
        return
    # Pods and the node itself are not outside: for them it is as the cluster address.
    yield f"{outer} -s {proxy.cluster_cidr} -j {inner}"
    yield f"{outer} -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ"
    yield f"{outer} -m addrtype --src-type LOCAL -j {inner}"
    if service.local(proxy.node):
        yield f"{outer} -j {_chain('SVL', service)}"


def _choice(proxy: Proxy, service: Service, chain: str, endpoints: Sequence[Endpoint]) -> Iterator[str]:
    """One of them for each new connection; the one of last time, where that is remembered."""
    targets = [_chain("SEP", service, str(each)) for each in endpoints]
    if service.affinity:
        for each in targets:
            yield f"{chain} -m recent --name {each} --rcheck --seconds {service.affinity} --reap -j {each}"
    for left, each in zip(range(len(targets), 0, -1), targets, strict=True):
        mode = f"nth --every {left} --packet 0" if proxy.in_turn else f"random --probability {1 / left:.10f}"
        lots = f"-m statistic --mode {mode} " if left > 1 else ""
        yield f"{chain} {lots}-j {each}"


def _endpoint(service: Service, endpoint: Endpoint) -> Iterator[str]:
    chain = _chain("SEP", service, str(endpoint))
    # Who is its own endpoint would else get answers from itself, and drop them.
    yield f"{chain} -s {endpoint.address}/32 -j KUBE-MARK-MASQ"
    remember = f"-m recent --name {chain} --set " if service.affinity else ""
    yield f"{chain} {remember}-p {service.protocol} -j DNAT --to-destination {endpoint}"


def _port(service: Service, number: int) -> str:
    return f"-p {service.protocol} --dport {number}"


def _chain(kind: str, service: Service, endpoint: str = "") -> str:
    return f"KUBE-{kind}-{digest(service.title, service.protocol, endpoint, length=16)}"
