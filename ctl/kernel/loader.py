"""From C text to pinned programs.

Compiling is a child's work (ctl.kernel.compile); its output is cached in the state
directory under the digest of text, compiler and kernel, so a restart does not compile.
Loading is ours: the bytecode gets the file descriptors of our maps and goes to the
verifier. Programs are pinned in `<bpffs>/v<LAYOUT>/progs-<digest>/`; finding that
directory complete means that there is nothing to load at all.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import shutil
import struct
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from ctl.errors import KernelError
from ctl.kernel import bpf
from ctl.kernel.maps import Maps, layout_dir
from ctl.kernel.source import PROGRAMS, digest, source

log = logging.getLogger(__name__)

_COMPILER: Final = "/usr/bin/python3"
"""Debian's python3-bpfcc is for this interpreter only."""

_TIMEOUT_S: Final = 120


@dataclass(frozen=True, slots=True)
class Program:
    """A loaded program: an open file descriptor and the kernel's id."""

    name: str
    fd: int
    id: int


@dataclass(frozen=True, slots=True)
class Programs:
    """The four programs of one build."""

    digest: str
    by_name: Mapping[str, Program]

    def close(self) -> None:
        for program in self.by_name.values():
            os.close(program.fd)


def load(maps: Maps, bpffs: str | Path, cache_dir: Path) -> Programs:
    """Adopt the pinned programs of this very source, else build, load and pin them.

    KernelError with the compiler's or the verifier's own words.
    """
    text = source()
    build = digest(text, _compiler_version())
    home = layout_dir(bpffs) / f"progs-{build}"
    if adopted := _adopt(home):
        return Programs(build, adopted)
    objects = _compiled(text, cache_dir / f"programs-{build}.json")
    loaded = {name: load_program(name, objects["programs"][name], maps) for name in PROGRAMS}
    _pin(home, loaded)
    return Programs(build, loaded)


def drop_others(bpffs: str | Path, keep: str) -> None:
    """Unpin the programs of other builds than `keep`: last, when no filter uses them any more."""
    for home in layout_dir(bpffs).glob("progs-*"):
        if home.name != f"progs-{keep}":
            _remove(home)


def _compiler_version() -> str:
    """Stands for bcc's version, which importing bcc would tell for 70 MB: its file's date and size."""
    stamps = []
    for library in sorted(Path("/usr/lib").glob("*/libbcc.so.0")):
        stat = library.stat()
        stamps.append(f"{stat.st_size}-{stat.st_mtime_ns}")
    return " ".join(stamps)


def _adopt(home: Path) -> dict[str, Program] | None:
    found: dict[str, Program] = {}
    try:
        for name in PROGRAMS:
            fd = bpf.obj_get(str(home / name))
            found[name] = Program(name, fd, bpf.prog_info(fd).id)
    except OSError:
        for program in found.values():
            os.close(program.fd)
        return None
    return found


def _compiled(text: str, cache: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        cached: dict[str, Any] = json.loads(cache.read_text())
        return cached
    output = compile_text(text)
    temporary = cache.with_suffix(f".{os.getpid()}")
    temporary.write_text(output)
    temporary.rename(cache)
    for old in cache.parent.glob("programs-*.json"):
        if old != cache:
            old.unlink()
    result: dict[str, Any] = json.loads(output)
    return result


def compile_text(text: str, programs: Sequence[str] = PROGRAMS) -> str:
    """The compiler child's JSON (ctl.kernel.compile) for the named functions of a C text.

    KernelError with the last line that the compiler wrote; all of them are logged.
    """
    if not shutil.which(_COMPILER):
        raise KernelError(f"{_COMPILER} is missing: install python3 and python3-bpfcc")
    spec = find_spec("ctl")
    assert spec is not None and spec.submodule_search_locations
    root = str(Path(next(iter(spec.submodule_search_locations))).parent)
    child = subprocess.run(
        [_COMPILER, "-m", "ctl.kernel.compile", *programs],
        input=text,
        text=True,
        capture_output=True,
        timeout=_TIMEOUT_S,
        cwd="/",
        env={"PATH": os.environ.get("PATH", ""), "PYTHONPATH": root, "PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
    )
    if child.returncode:
        for line in child.stderr.splitlines():
            log.error("compiler: %s", line)
        last = child.stderr.strip().splitlines()[-1:] or ["no message"]
        raise KernelError(f"compiling the datapath failed: {last[0]}")
    return child.stdout


def load_program(name: str, program: Mapping[str, Any], maps: Maps) -> Program:
    """Put the maps' file descriptors into a compiled program and hand it to the verifier.

    KernelError if that refuses; the end of its log is logged.
    """
    code = bytearray(base64.b64decode(program["insns"]))
    for index, map_name in program["maps"]:
        # The immediate of BPF_LD_IMM64 with BPF_PSEUDO_MAP_FD.
        struct.pack_into("=i", code, index * 8 + 4, maps.fd(map_name))
    try:
        fd = bpf.prog_load(bytes(code), name)
    except bpf.VerifierError as error:
        for line in error.log.splitlines()[-40:]:
            log.error("verifier: %s", line)
        raise KernelError(f"the kernel refused program {name}: {error.strerror}; its log is above") from error
    except PermissionError as error:
        raise KernelError(f"may not load program {name}: needs root, or CAP_BPF and CAP_NET_ADMIN") from error
    return Program(name, fd, bpf.prog_info(fd).id)


def _pin(home: Path, programs: Mapping[str, Program]) -> None:
    """All or nothing: a half-filled directory of a killed agent is made anew."""
    try:
        if home.exists():
            _remove(home)
        home.mkdir(parents=True, mode=0o700)
        for name, program in programs.items():
            bpf.obj_pin(program.fd, str(home / name))
    except OSError as error:
        raise KernelError(f"cannot pin the programs under {home}: {error.strerror}") from error


def _remove(home: Path) -> None:
    for pin in home.iterdir():
        pin.unlink()
    home.rmdir()
