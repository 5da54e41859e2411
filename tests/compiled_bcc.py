"""Stands in for BCC's `__init__.py` in the compiler's child of an agent that a test has started.

`tests.compiled` puts it there, with two lines more at its end: ORIGINAL, BCC's own text, and MEMORY, a
directory. What BCC has made of a text is kept there, and whoever comes with the same text is given
that: bytecode, in which only the descriptors of the maps are other ones. What is new is BCC's to compile.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

ORIGINAL = MEMORY = Path()

_INSTRUCTION: Final = struct.Struct("=BBhi")
"""struct bpf_insn: operation, registers, offset, immediate."""
_LOAD_64: Final = 0x18
"""BPF_LD | BPF_IMM | BPF_DW: two instructions long."""
_MAP_FD: Final = 1
"""BPF_PSEUDO_MAP_FD, as source register."""


class _Table:
    def __init__(self, fd: int) -> None:
        self.map_fd = fd


class _Function:
    def __init__(self, fd: int) -> None:
        self.fd = fd


class Remembered:
    """What `ctl.kernel.bpf.compile` asks of a bcc.BPF."""

    def __init__(self, made: dict[str, Any]) -> None:
        self.funcs: dict[bytes, _Function] = {}
        # Any descriptor keeps the number until a map is put in its place.
        self._tables = {name: _Table(os.open("/dev/null", os.O_RDONLY)) for name in made["maps"]}
        fds = {number: self._tables[name].map_fd for name, number in made["maps"].items()}
        self._code = {name: moved(bytes.fromhex(code), fds) for name, code in made["code"].items()}

    def __getitem__(self, name: str) -> _Table:
        return self._tables[name]

    def dump_func(self, name: str) -> bytes:
        return self._code[name]

    def load_func(self, name: str, kind: int) -> _Function:
        from ctl.kernel.bpf import syscall

        self.funcs[name.encode()] = _Function(syscall.prog_load(self._code[name], name, kind))
        return self.funcs[name.encode()]


def moved(code: bytes, fds: dict[int, int]) -> bytes:
    """Bytecode with these descriptors in place of those that it was made with."""
    moved, wide = [], False
    for operation, registers, offset, immediate in _INSTRUCTION.iter_unpack(code):
        is_map = not wide and operation == _LOAD_64 and registers >> 4 == _MAP_FD
        moved.append(_INSTRUCTION.pack(operation, registers, offset, fds[immediate] if is_map else immediate))
        wide = not wide and operation == _LOAD_64  # then the next one is its second half
    return b"".join(moved)


def _made(unit: Any, lib: Any) -> dict[str, Any]:
    """Bytecode of each function, and descriptor of each map, by name."""
    for function, arguments, result in (
        (lib.bpf_num_tables, [ctypes.c_void_p], ctypes.c_size_t),
        (lib.bpf_table_name, [ctypes.c_void_p, ctypes.c_size_t], ctypes.c_char_p),
    ):
        function.argtypes, function.restype = arguments, result
    module = unit.module
    functions = [lib.bpf_function_name(module, each) for each in range(lib.bpf_num_functions(module))]
    tables = [lib.bpf_table_name(module, each) for each in range(lib.bpf_num_tables(module))]
    return {
        "maps": {name.decode(): lib.bpf_table_fd(module, name) for name in tables},
        "code": {name.decode(): unit.dump_func(name).hex() for name in functions},
    }


def BPF(text: str, cflags: Sequence[str]) -> Any:
    """As bcc.BPF, from memory if it has been compiled before."""
    path = MEMORY / hashlib.sha256("\0".join((*cflags, text)).encode()).hexdigest()
    if path.exists():
        return Remembered(json.loads(path.read_text()))
    scope: dict[str, Any] = {"__name__": __name__, "__package__": __package__, "__file__": __file__}
    exec(compile(ORIGINAL.read_text(), __file__, "exec"), scope)
    unit = scope["BPF"](text=text, cflags=cflags)
    made = _made(unit, scope["lib"])
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(made))
    draft.rename(path)
    return unit
