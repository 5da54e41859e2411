"""The rules of kube-proxy's mode `nftables`, chain for chain, written anew from what they do.

    nat     services -> @service-ips, @service-nodeports -> service-x, external-x -> endpoint-y (dnat)
            masquerading: what mark-for-masquerade has marked
    filter  before translation: @no-endpoint-services, @no-endpoint-nodeports, @firewall-ips
            behind it: cluster-ips-check, what is no service's port

Sets of affinity stay from one load to the next; all else is replaced. Nothing drops invalid packets here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from tests.kube.services import MARK, Endpoint, Proxy, Service, digest

TABLE: Final = "ip kube-proxy"
OF_IPV6: Final = (
    (TABLE, "ip6 kube-proxy"), ("ipv4_addr", "ipv6_addr"),
    ("ip daddr", "ip6 daddr"), ("ip saddr", "ip6 saddr"),
)  # fmt: skip
"""Words of the rules, and what IPv6 has instead."""
HOOKS: Final = {
    "filter-prerouting": "filter hook prerouting priority dstnat - 10",
    "filter-input": "filter hook input priority -110",
    "filter-forward": "filter hook forward priority -110",
    "filter-output": "filter hook output priority -110",
    "filter-output-post-dnat": "filter hook output priority -90",
    "nat-prerouting": "nat hook prerouting priority dstnat",
    "nat-output": "nat hook output priority -100",
    "nat-postrouting": "nat hook postrouting priority srcnat",
}
SERVED: Final = "ipv4_addr . inet_proto . inet_service : verdict"
SERVED_AT_NODES: Final = "inet_proto . inet_service : verdict"
MAPS: Final = {
    "service-ips": SERVED,
    "no-endpoint-services": SERVED,
    "firewall-ips": SERVED,
    "service-nodeports": SERVED_AT_NODES,
    "no-endpoint-nodeports": SERVED_AT_NODES,
}
SETS: Final = ("cluster-ips", "nodeport-ips")
TO_SERVED: Final = "ip daddr . meta l4proto . th dport vmap"
AT_NODE: Final = "ip daddr @nodeport-ips meta l4proto . th dport vmap"
FIXED: Final = (
    ("filter-input", "ct state new jump nodeport-endpoints-check"),
    ("filter-input", "ct state new jump service-endpoints-check"),
    ("filter-forward", "ct state new jump service-endpoints-check"),
    ("filter-output", "ct state new jump service-endpoints-check"),
    ("filter-prerouting", "ct state new jump firewall-check"),
    ("filter-output", "ct state new jump firewall-check"),
    ("nat-output", "jump services"),
    ("nat-prerouting", "jump services"),
    ("nat-postrouting", "jump masquerading"),
    ("filter-forward", "ct state new jump cluster-ips-check"),
    ("filter-output-post-dnat", "ct state new jump cluster-ips-check"),
    ("mark-for-masquerade", f"meta mark set meta mark or {MARK}"),
    ("masquerading", f"meta mark and {MARK} == 0 return"),
    ("masquerading", f"meta mark set meta mark xor {MARK}"),
    ("masquerading", "masquerade fully-random"),
    ("cluster-ips-check", "ip daddr @cluster-ips reject"),
    ("reject-chain", "reject"),
    ("service-endpoints-check", f"{TO_SERVED} @no-endpoint-services"),
    ("nodeport-endpoints-check", f"{AT_NODE} @no-endpoint-nodeports"),
    ("firewall-check", f"{TO_SERVED} @firewall-ips"),
    ("services", f"{TO_SERVED} @service-ips"),
    ("services", f"{AT_NODE} @service-nodeports"),
)
"""Chain and rule, whatever the services."""
Rule = tuple[str, str]


def rules(proxy: Proxy, services: Iterable[Service]) -> str:
    """For `nft -f`, which replaces what stood there in one transaction."""
    served = [each for each in services if each.cluster_ip]
    ours = [*FIXED, *(rule for each in served for rule in _service(proxy, each))]
    lines = (*_frame(ours, served), *_rules(ours), *_elements(proxy, served))
    return _of_family(proxy, "".join(f"{line}\n" for line in lines))


def removal(proxy: Proxy) -> str:
    """For `nft -f`, of what `rules` makes."""
    return _of_family(proxy, f"delete table {TABLE}\n")


def _of_family(proxy: Proxy, text: str) -> str:
    for word, instead in OF_IPV6 if proxy.version == 6 else ():
        text = text.replace(word, instead)
    return text


def _frame(ours: Sequence[Rule], services: Sequence[Service]) -> Iterator[str]:
    """All that rules and elements name: there afterwards, and empty."""
    yield f"add table {TABLE}"
    for name, place in HOOKS.items():
        yield f"add chain {TABLE} {name} {{ type {place}; }}"
    for name in dict.fromkeys(chain for chain, _ in ours if chain not in HOOKS):
        yield f"add chain {TABLE} {name}"
    for name in dict.fromkeys(chain for chain, _ in ours):
        yield f"flush chain {TABLE} {name}"
    for name, kind in MAPS.items():
        yield f"add map {TABLE} {name} {{ type {kind}; }}"
        yield f"flush map {TABLE} {name}"
    for name in SETS:
        yield f"add set {TABLE} {name} {{ type ipv4_addr; }}"
        yield f"flush set {TABLE} {name}"
    for service in services:
        for endpoint in service.endpoints if service.affinity else ():
            remembered = f"type ipv4_addr; flags dynamic,timeout; timeout {service.affinity}s;"
            yield f"add set {TABLE} {_name('affinity', service, endpoint)} {{ {remembered} }}"


def _rules(ours: Sequence[Rule]) -> Iterator[str]:
    return (f"add rule {TABLE} {chain} {rule}" for chain, rule in ours)


def _elements(proxy: Proxy, services: Sequence[Service]) -> Iterator[str]:
    yield from (f"add element {TABLE} nodeport-ips {{ {each} }}" for each in proxy.addresses)
    for service in services:
        yield f"add element {TABLE} cluster-ips {{ {service.cluster_ip} }}"
        for name, key, verdict in _verdicts(proxy, service):
            yield f"add element {TABLE} {name} {{ {key} : {verdict} }}"


def _verdicts(proxy: Proxy, service: Service) -> Iterator[tuple[str, str, str]]:
    """What its addresses and ports lead to: map, key, verdict."""
    on_cluster = f"{service.cluster_ip} . {service.protocol} . {service.port}"
    on_balancer = f"{service.load_balancer} . {service.protocol} . {service.port}"
    on_node = f"{service.protocol} . {service.node_port}"
    local = service.local(proxy.node)
    nobody = "drop" if service.endpoints else "goto reject-chain"
    if service.internal_local and local:
        yield "service-ips", on_cluster, f"goto {_name('local', service)}"
    elif service.endpoints and not service.internal_local:
        yield "service-ips", on_cluster, f"goto {_name('service', service)}"
    else:
        yield "no-endpoint-services", on_cluster, nobody
    for name, key, wanted in (("services", on_balancer, service.load_balancer),
                              ("nodeports", on_node, service.node_port)):  # fmt: skip
        served = "service-ips" if name == "services" else "service-nodeports"
        if wanted and service.endpoints:
            yield served, key, f"goto {_name('external', service)}"
        if wanted and not (local if service.external_local else service.endpoints):
            yield f"no-endpoint-{name}", key, nobody
    if service.load_balancer and service.source_ranges:
        yield "firewall-ips", on_balancer, f"goto {_name('firewall', service)}"


def _service(proxy: Proxy, service: Service) -> Iterator[Rule]:
    if service.load_balancer and service.source_ranges:
        allowed = ", ".join(service.source_ranges)
        yield _name("firewall", service), f"ip saddr != {{ {allowed} }} drop"
    if not service.endpoints:
        return
    inner = _name("local" if service.internal_local else "service", service)
    if not service.internal_local or service.local(proxy.node):
        cluster = f"ip daddr {service.cluster_ip} {service.protocol} dport {service.port}"
        yield inner, f"{cluster} ip saddr != {proxy.cluster_cidr} jump mark-for-masquerade"
    if service.is_external:
        yield from _from_outside(proxy, service)
    yield from _choice(proxy, service, _name("service", service), service.endpoints)
    if (service.internal_local or service.external_local) and service.local(proxy.node):
        yield from _choice(proxy, service, _name("local", service), service.local(proxy.node))
    for endpoint in service.endpoints:
        yield from _endpoint(service, endpoint)


def _from_outside(proxy: Proxy, service: Service) -> Iterator[Rule]:
    outer, inner = _name("external", service), _name("service", service)
    if not service.external_local:
        yield outer, "jump mark-for-masquerade"
        yield outer, f"goto {inner}"
        return
    # Pods and the node itself are not outside: for them it is as the cluster address.
    yield outer, f"ip saddr {proxy.cluster_cidr} goto {inner}"
    yield outer, "fib saddr type local jump mark-for-masquerade"
    yield outer, f"fib saddr type local goto {inner}"
    if service.local(proxy.node):
        yield outer, f"goto {_name('local', service)}"


def _choice(proxy: Proxy, service: Service, chain: str, endpoints: Sequence[Endpoint]) -> Iterator[Rule]:
    """One of them for each new connection; the one of last time, where that is remembered."""
    if service.affinity:
        for each in endpoints:
            yield (
                chain,
                f"ip saddr @{_name('affinity', service, each)} goto {_name('endpoint', service, each)}",
            )
    order = "inc" if proxy.in_turn else "random"
    targets = ", ".join(f"{n} : goto {_name('endpoint', service, each)}" for n, each in enumerate(endpoints))
    yield chain, f"numgen {order} mod {len(endpoints)} vmap {{ {targets} }}"


def _endpoint(service: Service, endpoint: Endpoint) -> Iterator[Rule]:
    chain = _name("endpoint", service, endpoint)
    # Who is its own endpoint would else get answers from itself, and drop them.
    yield chain, f"ip saddr {endpoint.address} jump mark-for-masquerade"
    if service.affinity:
        yield chain, f"update @{_name('affinity', service, endpoint)} {{ ip saddr }}"
    yield chain, f"meta l4proto {service.protocol} dnat to {endpoint}"


def _name(kind: str, service: Service, endpoint: Endpoint | None = None) -> str:
    """As kube-proxy's: a digest, then for people what it is a digest of."""
    name = f"default/{service.name}/{service.protocol}/p{service.port}"
    if endpoint:
        name += f"__{endpoint.address.replace(':', '.')}/{endpoint.port}"
    return f"{kind}-{digest(name, length=8)}-{name}"
