"""The CNI configuration that a node gives its container runtime. Pure.

A list of plugins (CNI specification 1.0.0, "Configuration format"): `bridge` on our bridge, with addresses
by `host-local` from the leased subnet, and what is chained behind it. It is what flannel's plugin
makes of subnet.env and hands to the same two (flannel-io/cni-plugin, flannel_linux.go), so that
addresses which they have given out stay theirs: `host-local` keeps them under the network's name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from ctl.core.wire import SubnetEnv

NETWORK_NAME: Final = "cbr0"
"""The name that kube-flannel's manifest gives it, and `host-local` its directory of addresses."""

HOST_LOCAL_DIR: Final = "/var/lib/cni/networks"
"""`host-local`'s own default for its `dataDir`."""

CNI_VERSION: Final = "0.3.1"
"""That of kube-flannel's manifest: each plugin since 0.6 speaks it."""

ENDINGS: Final = (".conf", ".conflist", ".json")
"""Of the files that a runtime reads (libcni, conf.go: ConfFiles)."""

_WRITER: Final = "writtenBy"
"""Runtimes pass over keys that they do not know; by this one we tell our file from others'."""

CAPABILITIES: Final[Mapping[str, str]] = {
    "portmap": "portMappings",
    "bandwidth": "bandwidth",
    "tuning": "mac",
}
"""What plugins are told by the runtime, each by its conventional name (CNI's CONVENTIONS.md)."""

Plugin = Mapping[str, Any]
"""The configuration of one plugin, with its `type`."""


def parse_plugins(text: str) -> tuple[Plugin, ...]:
    """Plugins to be chained: names, with commas between, or a JSON list of their configurations.

    ValueError, in one line that needs no context.
    """
    if text.lstrip().startswith("["):
        return _configurations(text)
    names = [name.strip() for name in text.split(",")] if text.strip() else []
    return tuple(_by_name(name) for name in names)


def _by_name(name: str) -> Plugin:
    if not name or not all(each.isalnum() or each in "-_." for each in name):
        raise ValueError(f"{name!r} is no name of a CNI plugin such as portmap")
    capability = CAPABILITIES.get(name)
    return {"type": name, "capabilities": {capability: True}} if capability else {"type": name}


def _configurations(text: str) -> tuple[Plugin, ...]:
    import json  # every command reads the settings, and few need it

    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"the list of CNI plugins is not JSON: {error}") from None
    for each in found:
        if not isinstance(each, dict) or not isinstance(each.get("type"), str) or not each["type"]:
            raise ValueError(f"{json.dumps(each)} is no CNI plugin: an object with its type is wanted")
    return tuple(found)


def conflist(env: SubnetEnv, bridge: str, chained: Sequence[Plugin], data_dir: str = HOST_LOCAL_DIR) -> str:
    """The text of the configuration. `bridge`: the name of ours; `data_dir`: where addresses are kept."""
    import json

    spaces = [(env.network, env.subnet), *([env.ipv6] if env.ipv6 else [])]
    first = {
        "type": "bridge",
        "bridge": bridge,
        "mtu": env.mtu,
        "isGateway": True,
        "isDefaultGateway": True,
        "hairpinMode": True,
        "ipMasq": not env.ip_masq,  # either we masquerade or the plugin does
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": str(subnet)}] for _, subnet in spaces],
            "routes": [{"dst": str(network)} for network, _ in spaces],
            **({"dataDir": data_dir} if data_dir != HOST_LOCAL_DIR else {}),
        },
    }
    whole = {
        "cniVersion": CNI_VERSION,
        "name": NETWORK_NAME,
        _WRITER: "ovnet",
        "plugins": [first, *chained],
    }
    return json.dumps(whole, indent=2) + "\n"


def is_ours(text: str) -> bool:
    """Whether a configuration is one that we wrote."""
    import json

    try:
        found = json.loads(text)
    except ValueError:
        return False
    return isinstance(found, dict) and found.get(_WRITER) == "ovnet"


def shadowed(path: PurePath, others: Iterable[str]) -> str:
    """Which file a runtime takes instead of `path`, and what to do, a line; "" if it takes that one.

    `others`: names of the files in its directory. Of all that it reads, a runtime takes the first by name.
    """
    first = min((other for other in others if other.endswith(ENDINGS)), default=path.name)
    if first >= path.name:
        return ""
    return (
        f"{path.parent / first} sorts before {path.name}, and container runtimes take the first: remove it,"
        " or choose a --cni-conf that sorts before it"
    )
