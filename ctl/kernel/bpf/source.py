"""The datapath's source as one text, and the header tree that bcc compiles it with.

bcc loses map methods in `#include`d files, so our own headers are put in place, once
each, with `#line` marks so that the compiler's messages name the right file. And bcc
insists on a kernel tree; ours is made of the UAPI headers that the system has for user
space, so a kernel without headers will do.
"""

from __future__ import annotations

import hashlib
import platform
import re
from importlib import resources
from pathlib import Path
from typing import Final

from ctl.core.errors import KernelError

PROGRAMS: Final = ("from_container", "to_overlay", "from_wire", "to_container", "from_wire_xdp")
XDP: Final = "from_wire_xdp"
"""The one program of type XDP; the others are tc classifiers, and do without it."""
XDP_FRAGS: Final = f"{XDP}_frags"
"""What is loaded in its place where the kernel gives XDP frames in several pieces (Linux 5.18)."""
CALLS: Final = "ipv6_programs"
CALLS_XDP: Final = "ipv6_xdp"
"""The maps of what the programs for IPv4 hand packets of IPv6 to, by hook: of each type its own."""
_MAPS: Final = (
    "peers", "endpoints", "flows", "notes", "translations", "services", "node", "counters", "peer_stats",
    "events", "tracer", "traces",
)  # fmt: skip

_INCLUDE = re.compile(r'^#include "([^"]+)"')

_ARCH_DIRS: Final = {"x86_64": "x86", "aarch64": "arm64", "ppc64le": "powerpc", "s390x": "s390"}

# What kernel headers would have given bcc's preamble and our sources.
_KCONFIG = """
#pragma once
#define CONFIG_BPF_SYSCALL 1
typedef unsigned char u8; typedef unsigned short u16;
typedef unsigned int u32; typedef unsigned long long u64;
typedef signed char s8; typedef signed short s16;
typedef signed int s32; typedef signed long long s64;
typedef _Bool bool;
typedef __SIZE_TYPE__ size_t; typedef __UINTPTR_TYPE__ uintptr_t;
"""
_STUBS: Final = {
    "include/linux/kconfig.h": _KCONFIG,
    "include/linux/version.h": (
        "#pragma once\n#define KERNEL_VERSION(a,b,c) (((a) << 16) + ((b) << 8) + (c))\n"
        "#define LINUX_VERSION_CODE KERNEL_VERSION(5, 15, 0)\n"
    ),
    "include/linux/log2.h": "#pragma once\n#define ilog2(n) (63 - __builtin_clzll(n))\n",
    "include/asm/page.h": "#pragma once\n#define PAGE_SIZE 4096UL\n",
    # linux/icmp.h asks for it, and it for libc's headers.
    "include/linux/if.h": "#pragma once\n#define IFNAMSIZ 16\n",
    # bcc brings its own copy, which the installed one would redefine.
    "include/uapi/linux/bpf.h": "",
    "include/linux/bpf.h": "",
}


def maps_of(version: int) -> tuple[str, ...]:
    """The names of the maps that the programs for this IP version use."""
    return (*_MAPS, CALLS, CALLS_XDP) if version == 4 else _MAPS


def source(version: int = 4) -> str:
    """The whole datapath as one C text, for addresses of this IP version."""
    return f"#define FAMILY {version}\n" + _flatten("overlay.c", set())


def digest(text: str, compiler: str) -> str:
    """Names a build: same text, compiler and kernel give the same programs."""
    identity = "\0".join((text, compiler, platform.release(), platform.machine()))
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def _flatten(name: str, seen: set[str]) -> str:
    seen.add(name)
    lines = [f'#line 1 "bpf/{name}"']
    text = (resources.files("bpf") / name).read_text()
    for number, line in enumerate(text.splitlines(), start=1):
        match = _INCLUDE.match(line)
        if not match:
            lines.append(line)
        elif match[1] in seen:
            lines.append("")  # keeps the lines below on their numbers
        else:
            lines += [_flatten(match[1], seen), f'#line {number + 1} "bpf/{name}"']
    return "\n".join(lines)


def write_header_tree(root: Path) -> None:
    """Fill `root` with what bcc takes for a kernel tree ($BCC_KERNEL_SOURCE).

    KernelError if the UAPI headers for user space are not installed.
    """
    machine = platform.machine()
    system = Path("/usr/include")
    asm = next((p for p in (system / f"{machine}-linux-gnu/asm", system / "asm") if p.is_dir()), None)
    if asm is None or not (system / "linux/if_ether.h").exists():
        raise KernelError("no Linux UAPI headers in /usr/include: install the package linux-libc-dev")
    for name, text in _STUBS.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "arch" / _ARCH_DIRS.get(machine, machine) / "include").mkdir(parents=True)
    _link(system / "linux", root / "include/linux")
    _link(system / "linux", root / "include/uapi/linux")
    _link(system / "asm-generic", root / "include/asm-generic")
    _link(asm, root / "include/asm")


def _link(origin: Path, target: Path) -> None:
    """Link every header that the tree does not have a version of its own of."""
    target.mkdir(parents=True, exist_ok=True)
    for entry in origin.iterdir():
        link = target / entry.name
        if not link.exists() and (entry.suffix == ".h" or entry.name == "byteorder"):
            link.symlink_to(entry)
