"""What is stored and written for others to read, as text: flannel's formats. Pure.

    network config     JSON, keys in any case as Go reads them
    lease attributes   JSON, byte for byte as Go writes it
    lease key          10.5.52.0-24
    subnet.env         shell variables, read by the CNI plugin and Docker's set-up

Parsers raise ValueError with a line that names the field; `parse_network`, whose text
a person wrote, raises ConfigError.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Final

from ctl.core.errors import ConfigError
from ctl.core.model import (
    BACKENDS,
    MIN_MTU,
    NO_HOSTS,
    VXLAN_OVERHEAD,
    Lease,
    MacAddress,
    Network,
    host_address,
)

MAX_VNI: Final = (1 << 24) - 1

SHOWN_CHARACTERS: Final = 64
"""How much of a wrong value an error's line shows; no right one is as long."""

Fields = Mapping[str, Any]


def _fold(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object as Go reads it: keys in any case, the last one wins, null sets nothing.

    Except for Backend, which flannel keeps as raw text: null is one, and no type.
    """
    return {key.lower(): value for key, value in pairs if value is not None or key.lower() == "backend"}


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_fold)
"""One for all: `json.loads` makes a new one for each text, which costs more than a lease's JSON."""


def _object(text: str) -> dict[str, Any]:
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:  # also of a number too long to be read
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _shown(value: object) -> str:
    """A value for an error's line: short, printable, whatever it is."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."


def _integer(fields: Fields, key: str, low: int, high: int, default: int) -> int:
    value = fields.get(key.lower(), default)
    if type(value) is not int:
        raise ValueError(f"{key} must be a whole number, not {_shown(value)}")
    if value != default and not low <= value <= high:
        raise ValueError(f"{key} {_shown(value)} is not between {low} and {high}")
    return value


def _string(fields: Fields, key: str, default: str = "") -> str:
    value = fields.get(key.lower(), default)
    if not isinstance(value, str):
        raise ValueError(f"{key} must be a string, not {_shown(value)}")
    if len(value) > SHOWN_CHARACTERS:
        raise ValueError(f"{key} is too long: {_shown(value)}")
    return value


def _word(fields: Fields, key: str) -> str:
    """A name of few characters that is printed as it stands; "" if absent."""
    value = _string(fields, key)
    if not (value.isascii() and value.isprintable()):
        raise ValueError(f"{key} {_shown(value)} is no name")
    return value


def _boolean(fields: Fields, key: str, default: bool) -> bool:
    value = fields.get(key.lower(), default)
    if not isinstance(value, bool):
        raise ValueError(f"{key} must be true or false, not {_shown(value)}")
    return value


def _cidr(text: str, key: str) -> IPv4Network:
    """`a.b.c.d/len`; host bits are cut off, as flannel does."""
    try:
        if not re.fullmatch(r"[0-9.]+/[0-9]{1,2}", text):
            raise ValueError
        return IPv4Network(text, strict=False)
    except ValueError:
        raise ValueError(f"{key} {text!r} is not an IPv4 network such as 10.77.0.0/16") from None


def _subnet_len(network: IPv4Network, given: int) -> int:
    """Flannel's rule: at least four subnets, and in each at least a /30."""
    if given:
        if not network.prefixlen + 2 <= given <= 30:
            raise ValueError(
                f"SubnetLen {given} does not fit {network}: it must be between"
                f" {network.prefixlen + 2} and 30, so that there are at least four subnets"
            )
        return given
    if network.prefixlen > 28:
        raise ValueError(f"Network {network} is too small: /28 is the smallest that holds four subnets")
    return 24 if network.prefixlen <= 22 else network.prefixlen + 2


def _bound(fields: Fields, key: str, network: IPv4Network, length: int, default: int) -> IPv4Network:
    """SubnetMin or SubnetMax: an address in the network, on a subnet's boundary."""
    text = _string(fields, key, "0.0.0.0")
    try:
        address = IPv4Address(text)
    except ValueError:
        raise ValueError(f"{key} {text!r} is not an IPv4 address") from None
    if not int(address):
        return IPv4Network((default, length))
    if address not in network:
        raise ValueError(f"{key} {address} is not in Network {network}")
    try:
        return IPv4Network((address, length))
    except ValueError:
        raise ValueError(f"{key} {address} is not on a /{length} boundary") from None


def _backend(fields: Fields) -> dict[str, Any]:
    """The Backend object as fields of Network. One that is absent means udp."""
    backend = fields.get("backend", {"type": "udp"})
    if not isinstance(backend, dict):
        raise ValueError("Backend must be an object")
    kind = _word(backend, "Type").lower()
    if not kind:
        raise ValueError("Backend has no Type")
    _boolean(backend, "Learning", False)  # flannel's device may learn, ours need not
    if _boolean(backend, "GBP", False):
        raise ValueError("GBP true is not supported: marks would ride in the VXLAN header")
    port = _integer(backend, "Port", 1, 65535, 0) or BACKENDS.get(kind, 0)
    mtu = _integer(backend, "MTU", MIN_MTU + VXLAN_OVERHEAD, 65535, 0) or None
    return {
        "backend": kind,
        "vni": _integer(backend, "VNI", 1, MAX_VNI, 1),
        "port": port,
        "mtu": mtu,
        "direct_routing": _boolean(backend, "DirectRouting", False),
    }


def _network(text: str, given: int | None) -> Network:
    fields = _object(text)
    if not _boolean(fields, "EnableIPv4", True) or _boolean(fields, "EnableIPv6", False):
        raise ValueError("only IPv4 is supported: EnableIPv4 must be true and EnableIPv6 false")
    if "network" not in fields:
        raise ValueError("Network is missing")
    network = _cidr(_string(fields, "Network"), "Network")
    if any(network.subnet_of(each) for each in NO_HOSTS):
        raise ValueError(f"Network {network} is no network of hosts")
    if given is not None:
        return _assigned(network, given, fields)
    length = _subnet_len(network, _integer(fields, "SubnetLen", 1, 30, 0))
    first, size = int(network.network_address), 1 << (32 - length)
    # The first subnet is left out: its base is the network's own address, which some
    # systems take for a broadcast.
    low = _bound(fields, "SubnetMin", network, length, first + size)
    high = _bound(fields, "SubnetMax", network, length, first + network.num_addresses - size)
    if low > high:
        raise ValueError(f"SubnetMin {low.network_address} is above SubnetMax {high.network_address}")
    return Network(network, length, low, high, **_backend(fields))


def _assigned(network: IPv4Network, length: int, fields: Fields) -> Network:
    """The network where others give out its subnets: any of them, the first and an only one too."""
    length = max(length, network.prefixlen)
    first, size = int(network.network_address), 1 << (32 - length)
    last = first + network.num_addresses - size
    return Network(
        network, length, IPv4Network((first, length)), IPv4Network((last, length)), **_backend(fields)
    )


def parse_network(text: str, source: str = "network config", *, subnet_len: int | None = None) -> Network:
    """The network config from its JSON, with flannel's defaults and checks.

    `subnet_len`: somebody else gives out the subnets, ours of that length; SubnetLen, SubnetMin and SubnetMax
    are not looked at then, as flannel does not on Kubernetes. Any backend type is taken as it stands: whether
    a node can run it, its agent says. ConfigError names `source` and the key.
    """
    try:
        return _network(text, subnet_len)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from error


def format_network(network: Network) -> str:
    """The JSON of a network config, everything spelt out; `parse_network` gives it back."""
    backend: dict[str, object] = {"Type": network.backend, "VNI": network.vni, "Port": network.port}
    if network.mtu is not None:
        backend["MTU"] = network.mtu
    if network.direct_routing:
        backend["DirectRouting"] = True
    config = {
        "Network": str(network.network),
        "SubnetLen": network.subnet_len,
        "SubnetMin": str(network.subnet_min.network_address),
        "SubnetMax": str(network.subnet_max.network_address),
        "Backend": backend,
    }
    return json.dumps(config, separators=(",", ":"))


def _untyped(backend: str) -> bool:
    """The udp backend publishes neither type nor data."""
    return backend == "udp"


def format_attributes(lease: Lease, *, with_node: bool = False) -> str:
    """The value stored for a lease: who holds it and how to reach it.

    `with_node` puts the node's name into BackendData as a field `Node`. Flannel reads
    over it there, and drops it when it writes the lease itself.
    """
    attributes: dict[str, object] = {"PublicIP": str(lease.host), "PublicIPv6": None}
    if not _untyped(lease.backend):
        attributes["BackendType"] = lease.backend
    data: dict[str, object] = {}
    if lease.vtep_mac is not None and lease.vni is not None:
        data = {"VNI": lease.vni, "VtepMAC": str(lease.vtep_mac)}
    # Only beside data that flannel knows: without a MAC it could not read a vxlan lease.
    if with_node and lease.node and (data or lease.backend != "vxlan"):
        data["Node"] = lease.node
    if data:
        attributes["BackendData"] = data
    return json.dumps(attributes, separators=(",", ":"))


def parse_attributes(
    subnet: IPv4Network, text: str, *, expires_at: float | None = None, revision: int = 0
) -> Lease:
    """The lease on `subnet` from its stored value.

    Unknown fields are ignored. A lease without BackendType is udp's; one without
    BackendData (a reservation that nobody uses yet) has no MAC. ValueError names the field.
    """
    fields = _object(text)
    host = _public_ip(fields)
    backend = _word(fields, "BackendType") or "udp"
    mac, vni = backend_data(fields.get("backenddata"), backend)
    return Lease(subnet, host, mac, vni, backend, _node(fields), expires_at, revision)


def _public_ip(fields: Fields) -> IPv4Address:
    try:
        return host_address(IPv4Address(_string(fields, "PublicIP")))
    except ValueError as error:
        raise ValueError(f"PublicIP: {error}") from error


def _node(fields: Fields) -> str:
    """The node's name, if `format_attributes` put one in; it is printed, so it must be printable."""
    data = fields.get("backenddata")
    name = data.get("node") if isinstance(data, dict) else None
    return name if isinstance(name, str) and name.isprintable() and len(name) <= 253 else ""


def decode(text: str) -> Any:
    """JSON as Go reads it: the names of fields are in lower case. ValueError."""
    try:
        return _DECODER.decode(text)
    except RecursionError as error:
        raise ValueError(f"not JSON: {error}") from error


def backend_data(data: Any, backend: str) -> tuple[MacAddress | None, int | None]:
    """(VTEP MAC, VNI) of decoded BackendData; a VNI that is missing is 0. ValueError.

    Only vxlan's has a meaning for us; others may be of any JSON type.
    """
    if backend != "vxlan" or data is None:
        return None, None
    if not isinstance(data, dict):
        raise ValueError("BackendData must be an object")
    mac = MacAddress.parse(_string(data, "VtepMAC"))
    if not mac.is_unicast:
        raise ValueError(f"VtepMAC {mac} is not a unicast address")
    return mac, _integer(data, "VNI", 0, MAX_VNI, 0)


def format_key(subnet: IPv4Network) -> str:
    """A lease's key, `10.5.52.0-24`."""
    return f"{subnet.network_address}-{subnet.prefixlen}"


def parse_key(text: str) -> IPv4Network:
    """The subnet of a lease's key. ValueError if it is none, or names an IPv6 subnet too."""
    match = re.fullmatch(r"([0-9]{1,3})\.([0-9]{1,3})\.([0-9]{1,3})\.([0-9]{1,3})-([0-9]{1,2})", text)
    if not match:
        raise ValueError(f"{text!r} is not a lease key such as 10.5.52.0-24")
    one, two, three, four, length = map(int, match.groups())
    if max(one, two, three, four) > 255:
        raise ValueError(f"{text!r} is not an IPv4 subnet")
    subnet = IPv4Network((one << 24 | two << 16 | three << 8 | four, length))
    if text != f"{one}.{two}.{three}.{four}-{length}":
        raise ValueError(f"{text!r} is {format_key(subnet)}, written in another way")
    return subnet


@dataclass(frozen=True, slots=True)
class SubnetEnv:
    """What a node tells the CNI plugin or Docker; `mtu` is the containers', in bytes."""

    network: IPv4Network
    subnet: IPv4Network
    mtu: int
    ip_masq: bool


def format_subnet_env(env: SubnetEnv) -> str:
    """The text of subnet.env. FLANNEL_SUBNET is the bridge's address and prefix length."""
    return (
        f"FLANNEL_NETWORK={env.network}\n"
        f"FLANNEL_SUBNET={env.subnet.network_address + 1}/{env.subnet.prefixlen}\n"
        f"FLANNEL_MTU={env.mtu}\n"
        f"FLANNEL_IPMASQ={str(env.ip_masq).lower()}\n"
    )


def docker_options(env: SubnetEnv) -> dict[str, str]:
    """Dockerd's options for a node, by flannel's names of them, in its order.

    Either we masquerade or Docker does: twice would hide containers from the overlay.
    """
    return {
        "DOCKER_OPT_BIP": f"--bip={env.subnet.network_address + 1}/{env.subnet.prefixlen}",
        "DOCKER_OPT_IPMASQ": f"--ip-masq={str(not env.ip_masq).lower()}",
        "DOCKER_OPT_MTU": f"--mtu={env.mtu}",
    }


def _decimal(text: str, key: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text):
        raise ValueError(f"{key} {text!r} is not a number")
    return int(text)


def parse_subnet_env(text: str) -> SubnetEnv:
    """subnet.env, ours or flannel's (whose IPv6 lines are left out). ValueError if incomplete."""
    pairs = (line.partition("=") for line in text.splitlines())
    values = {key.strip(): value.strip().strip("\"'") for key, _, value in pairs}
    try:
        return SubnetEnv(
            # A list where flannel has several networks: the first is ours to compare with.
            network=_cidr(values["FLANNEL_NETWORK"].partition(",")[0], "FLANNEL_NETWORK"),
            subnet=_cidr(values["FLANNEL_SUBNET"], "FLANNEL_SUBNET"),
            mtu=_decimal(values["FLANNEL_MTU"], "FLANNEL_MTU"),
            ip_masq=values["FLANNEL_IPMASQ"] == "true",
        )
    except KeyError as error:
        raise ValueError(f"{error.args[0]} is missing") from error
