"""Others' nftables chains that drop what we forward: found, and named. Nothing of them is changed."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network

from ctl.core import forward_chains
from ctl.core.base_chains import Chain
from ctl.kernel.command import run


def refusing(chains: Iterable[Chain], network: IPv4Network | IPv6Network, bridge: str) -> tuple[str, ...]:
    """Of the host's base chains those that refuse forwarded packets, and have no rule for ours: a line each.

    One listing of each at that hook, another of its table if it refuses anything. KernelError.
    """
    seeing = (chain for chain in chains if forward_chains.sees_forwarded(chain, network.version))
    return tuple(_line(chain, network, bridge) for chain in seeing if _is_in_the_way(chain, network, bridge))


def dropping(chains: Iterable[Chain], network: IPv4Network, bridge: str) -> tuple[str, ...]:
    """Rules of the host's base chains that drop all forwarded IPv4 packets of ours, each with its chain.

    One listing of each at that hook. KernelError.
    """
    return tuple(
        f"{chain}: {rule}"
        for chain in chains
        if forward_chains.sees_forwarded(chain, network.version)
        for rule in forward_chains.drops_all(
            run("nft", "-s", "list", "chain", chain.family, chain.table, chain.name, check=False),
            bridge,
            network,
        )
    )


def _is_in_the_way(chain: Chain, network: IPv4Network | IPv6Network, bridge: str) -> bool:
    # One that has just gone lists nothing.
    own = run("nft", "-s", "list", "chain", chain.family, chain.table, chain.name, check=False)
    if not forward_chains.refuses(own):
        return False
    table = run("nft", "-s", "list", "table", chain.family, chain.table, check=False)
    return not forward_chains.names(table, bridge, network)


def _line(chain: Chain, network: IPv4Network | IPv6Network, bridge: str) -> str:
    ip = "ip" if network.version == 4 else "ip6"
    remedy = f"nft insert rule {chain} {ip} saddr {network} accept, and the same with daddr"
    if chain.table == "firewalld":
        remedy = f"firewall-cmd --permanent --zone=trusted --add-source={network}, then --reload"
    return (
        f"the nftables chain {chain} drops what is forwarded and has no rule about {bridge} or {network}: "
        f"containers may reach no other node: {remedy}"
    )
