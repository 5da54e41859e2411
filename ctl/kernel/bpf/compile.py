"""The compiler child: C text on stdin, bytecode as JSON on stdout.

    /usr/bin/python3 -m ctl.kernel.bpf.compile [PROGRAM...] < overlay.c > object.json

The only module that imports bcc, and the reason why it is a process of its own:
bcc and LLVM cost 120 MB that are never given back, change directory while they work
and are not thread-safe. The output needs neither to be loaded: for each program its
instructions, and which of them refer to which map.

    {"programs": {name: {"insns": base64, "maps": [[index of instruction, map], ...]}}}

Exit: 0, or 1 with the compiler's words on stderr.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ctl.kernel.bpf.source import BUILT, MAPS, write_header_tree

_INSN = 8
_LD_IMM64 = 0x18
_PSEUDO_MAP_FD = 1


def main() -> int:
    """Compile stdin to stdout; returns 0, or exits with a message."""
    text = sys.stdin.read()
    with tempfile.TemporaryDirectory(prefix="ovnet-headers-") as tree:
        write_header_tree(Path(tree))
        os.environ["BCC_KERNEL_SOURCE"] = tree
        output = compile_text(text, sys.argv[1:] or BUILT)
    json.dump(output, sys.stdout)
    return 0


def compile_text(text: str, programs: Sequence[str]) -> dict[str, Any]:
    """Compile with bcc and take `programs` apart. Exits with bcc's message if it refuses."""
    import bcc

    if not hasattr(bcc, "BPF"):
        sys.exit(f"{bcc.__file__} is another `bcc` than BCC's: remove it, and install python3-bpfcc")
    try:
        unit = bcc.BPF(
            text=text, cflags=["-Wall", "-Werror", "-Wno-unused-function", "-Wno-address-of-packed-member"]
        )
    except Exception as error:  # noqa: BLE001  bcc raises bare Exception; its words went to stderr
        sys.exit(f"the datapath does not compile: {error}")
    names = {unit[name].map_fd: name for name in MAPS}
    return {"programs": {name: _program(unit.dump_func(name), names) for name in programs}}


def _program(insns: bytes, map_names: dict[int, str]) -> dict[str, Any]:
    """Note where maps are used: bcc wrote file descriptors of this process there."""
    maps = []
    for index in range(len(insns) // _INSN):
        insn = insns[index * _INSN : (index + 1) * _INSN]
        if insn[0] == _LD_IMM64 and insn[1] >> 4 == _PSEUDO_MAP_FD:
            maps.append([index, map_names[int.from_bytes(insn[4:8], sys.byteorder)]])
    return {"insns": base64.b64encode(insns).decode(), "maps": maps}


if __name__ == "__main__":
    sys.exit(main())
