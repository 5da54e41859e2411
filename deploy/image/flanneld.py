#!/usr/bin/python3 -IS
"""flanneld as kube-flannel's manifest starts it: its flags and defaults in, `ovctl agent` with ours out.

A flag that means nothing here is passed over, one that asks for what we do not have is refused. Without
CAP_BPF, which that manifest does not give, the kernel path carries everything.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final

DEFAULTS: Final = {
    "bridge": "cni0",
    "healthz-ip": "0.0.0.0",
    "ip-masq": "false",
    "subnet-file": "/run/flannel/subnet.env",
}
"""Flanneld's, where ours are others; and the bridge of its CNI configuration."""
BOOLEANS: Final = frozenset({"ip-masq", "kube-subnet-mgr", "set-node-network-unavailable"})
TEXTS: Final = frozenset(
    {"healthz-ip", "healthz-port", "iface", "iface-can-reach", "iface-regex", "kube-annotation-prefix",
     "kubeconfig-file", "net-config-path", "public-ip", "subnet-file", "subnet-lease-renew-margin"}
    | {f"etcd-{name}" for name in ("endpoints", "prefix", "keyfile", "certfile", "cafile", "username",
                                   "password")}
)  # fmt: skip
"""What `ovctl agent` takes as flanneld does."""
PASSED_OVER: Final = {
    "alsologtostderr": True, "ip-masq-fully-random-disable": True, "ip-blackhole-route": True,
    "iptables-forward-rules": True, "iptables-resync": False, "log_backtrace_at": False, "log_dir": False,
    "logtostderr": True, "stderrthreshold": False, "v": False, "vmodule": False,
}  # fmt: skip
"""Whether it is a switch, which takes no word of its own."""
CAP_BPF, CAP_SYS_ADMIN = 39, 21
"""linux/capability.h"""


class Refused(Exception):
    """A line for people."""


def translated(argv: Sequence[str], effective: int) -> list[str]:
    """The words after `ovctl`, for flanneld's `argv` (without its name) and our capabilities, as bits."""
    found = dict(DEFAULTS)
    words = iter(argv)
    for word in words:
        name, equals, value = word.lstrip("-").partition("=")
        if not word.startswith("-") or not name:
            raise Refused(f"{word!r}: flags only")
        switch = name in BOOLEANS or PASSED_OVER.get(name, False)
        if name not in BOOLEANS | TEXTS | PASSED_OVER.keys():
            raise Refused(f"--{name} is no flag that this flanneld, which is ovnet's, has")
        text = value if equals else "true" if switch else next(words, None)
        if text is None:
            raise Refused(f"--{name} wants a value")
        if name == "iface" and found.get(name, text) != text:
            raise Refused("--iface may be given once: write --iface-regex '^(eth1|eth0)$'")
        found[name] = text
    if not (effective >> CAP_BPF & 1 or effective >> CAP_SYS_ADMIN & 1):
        print("WARNING no CAP_BPF: the kernel carries everything, and eBPF nothing", file=sys.stderr)
        found["bypass"] = "off"
    return ["agent", *(f"--{name}={text}" for name, text in found.items() if name not in PASSED_OVER)]


def capabilities() -> int:
    """Those of this process, as bits."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))


def main() -> None:
    """Become `ovctl agent`."""
    if sys.argv[1:] in (["--version"], ["-version"]):
        os.execv("/usr/bin/ovctl", ["ovctl", "--version"])
    try:
        words = translated(sys.argv[1:], capabilities())
    except Refused as error:
        sys.exit(f"flanneld: error: {error}")
    os.execv("/usr/bin/ovctl", ["ovctl", *words])


if __name__ == "__main__":
    main()
