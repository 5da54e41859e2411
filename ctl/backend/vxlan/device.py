"""The vxlan device as it has to be: what it is called, which MAC it has."""

from __future__ import annotations

import hashlib
from ipaddress import IPv4Interface

from ctl.backend.site import Site
from ctl.core.host import VxlanDevice
from ctl.core.model import IPv4Address, MacAddress, Network


def device_name(network: Network) -> str:
    """What the device is called."""
    return f"ovnet.{network.vni}"


def vtep_mac(host: IPv4Address, vni: int) -> MacAddress:
    """The VTEP MAC of a node: a function of what is unique, so that it survives reboots."""
    return MacAddress.local(hashlib.sha256(f"ovnet vtep {host} {vni}".encode()).digest()[:6])


def published_mac(site: Site) -> MacAddress:
    """The MAC that the lease says the device has: peers send to nothing else."""
    return site.lease.vtep_mac or vtep_mac(site.uplink.address, site.network.vni)


def wanted_device(site: Site) -> VxlanDevice:
    """The device of a node that stands there."""
    network, uplink = site.network, site.uplink
    return VxlanDevice(
        name=device_name(network),
        vni=network.vni,
        port=network.port,
        local=uplink.address,
        uplink=uplink.link.ifindex,
        mac=published_mac(site),
        mtu=site.mtu,
        address=IPv4Interface((site.lease.vtep_ip, 32)),
    )
