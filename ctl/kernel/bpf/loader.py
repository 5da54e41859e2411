"""From C text to pinned programs.

Compiling is a child's work (ctl.kernel.bpf.compile); its output is cached in the state
directory under the digest of text, compiler and kernel, so a restart does not compile.
Loading is ours: the bytecode gets the file descriptors of our maps and goes to the
verifier. Programs are pinned in `<bpffs>/v<LAYOUT>/progs-<digest>/`; finding that
directory complete means that there is nothing to load at all.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Final

from ctl.core.errors import KernelError
from ctl.kernel.bpf import bpffs, syscall
from ctl.kernel.bpf.maps import Maps, layout_dir
from ctl.kernel.bpf.source import BUILT, PROGRAMS, XDP, XDP_FRAGS, digest, source
from ctl.kernel.bpf.table import refused
from ctl.process import statedir

log = logging.getLogger(__name__)

_COMPILER: Final = "/usr/bin/python3"
"""Debian's python3-bpfcc is for this interpreter only."""

_TIMEOUT_S: Final = 120
_OPTIONS: Final = (
    "-I",
    "-B",  # the installed tree is not ours to write to
    "-c",
    "import sys; sys.path.append(sys.argv.pop(1)); from ctl.kernel.bpf.compile import main; sys.exit(main())",
)
"""Where our package lies comes after the system's own: PyPI's `bcc`, installed beside us, is none."""


@dataclass(frozen=True, slots=True)
class Program:
    """A loaded program: an open file descriptor and the kernel's id."""

    name: str
    fd: int
    id: int


@dataclass(frozen=True, slots=True)
class Programs:
    """The programs of one build."""

    digest: str
    by_name: Mapping[str, Program]
    xdp_refused: str = ""
    """Why the one for XDP is not among them."""

    def close(self) -> None:
        for program in self.by_name.values():
            os.close(program.fd)

    def repin(self, root: str | Path) -> bool:
        """Pin again what is not pinned below `root` any more; True if something was. KernelError."""
        fds = {name: program.fd for name, program in self.by_name.items()}
        return bpffs.pin_missing(_home(root, self.digest), fds)


def compile_ahead(root: str | Path, cache_dir: Path) -> Compiler | None:
    """Start the compiler, if `load` will need it: 0.8 s, in which the rest of a start gets done.

    None if the programs are pinned or compiled already, or if it does not start: `load` tells.
    """
    text = source()
    build = digest(text, _compiler_version())
    if _home(root, build).exists() or _read_cache(_cache(cache_dir, build)) is not None:
        return None
    with suppress(KernelError):
        return Compiler(text)
    return None


def load(maps: Maps, root: str | Path, cache_dir: Path, ahead: Compiler | None = None) -> Programs:
    """Adopt the pinned programs of this very source on these maps, else build, load and pin them.

    `ahead`: of `compile_ahead`. KernelError with the compiler's or the verifier's own words. A
    kernel that refuses the program for XDP costs only that: it is tried again at the next start.
    """
    text = source()
    build = digest(text, _compiler_version())
    home = _home(root, build)
    adopted = _adopt(home, maps.ids())
    loaded = adopted or {}
    refused = ""
    with _closed_if_it_fails(loaded):
        if XDP in loaded:
            return Programs(build, loaded)
        objects = _compiled(text, _cache(cache_dir, build), ahead)["programs"]
        for name in _TC if adopted is None else ():
            loaded[name] = load_program(name, objects[name], maps)
        try:
            loaded[XDP] = load_xdp(objects, maps)
        except KernelError as error:
            refused = str(error)
        _pin(home, loaded, anew=adopted is None)
    return Programs(build, loaded, refused)


@contextmanager
def _closed_if_it_fails(programs: Mapping[str, Program]) -> Iterator[None]:
    """What the block has put into `programs` stays open only if it succeeds: it is tried again for ever."""
    try:
        yield
    except BaseException:
        for program in programs.values():
            os.close(program.fd)
        raise


_TC: Final = tuple(name for name in PROGRAMS if name != XDP)


def drop_others(root: str | Path, keep: str) -> None:
    """Unpin the programs of other builds than `keep`: last, when no filter uses them any more."""
    with refused(f"cannot unpin programs under {root}"):
        for home in list(layout_dir(root).glob("progs-*")):
            if home.name != f"progs-{keep}":
                bpffs.unpin(home)


def _home(root: str | Path, build: str) -> Path:
    return layout_dir(root) / f"progs-{build}"


def _cache(directory: Path, build: str) -> Path:
    return directory / f"programs-{build}.json"


def _compiler_version() -> str:
    """Stands for bcc's version, which importing bcc would tell for 70 MB: its file's date and size."""
    stamps = []
    for library in sorted(Path("/usr/lib").glob("*/libbcc.so.0")):
        stat = library.stat()
        stamps.append(f"{stat.st_size}-{stat.st_mtime_ns}")
    return " ".join(stamps)


def _adopt(home: Path, maps: frozenset[int]) -> dict[str, Program] | None:
    """What is pinned, if it uses no maps but those with these ids, and lacks none but XDP's."""
    found: dict[str, Program] = {}
    with suppress(OSError, _Misfit), _closed_if_it_fails(found):
        for name in PROGRAMS:
            if name == XDP and not (home / name).exists():
                continue
            found[name], used = _described(name, syscall.obj_get(str(home / name)))
            if not used <= maps:
                raise _Misfit
        return found
    return None


class _Misfit(Exception):
    """A pinned program uses other maps than the node's."""


def _described(name: str, fd: int) -> tuple[Program, frozenset[int]]:
    """An open program, and the ids of its maps. OSError, and `fd` closed, if the kernel does not tell."""
    with syscall.passed_on(fd):
        info = syscall.prog_info(fd)
    return Program(name, fd, info.id), info.map_ids


def _compiled(text: str, cache: Path, ahead: Compiler | None) -> dict[str, Any]:
    if cached := _read_cache(cache):
        return cached
    result: dict[str, Any] = json.loads(ahead.result() if ahead else compile_text(text))
    _write_cache(cache, result)
    return result


def _read_cache(cache: Path) -> dict[str, Any] | None:
    """What `_write_cache` wrote, if nothing of it has changed since."""
    with suppress(OSError, ValueError):
        check, _, text = cache.read_text().partition("\n")
        if check == _check(text):
            result: dict[str, Any] = json.loads(text)
            return result
    return None


def _write_cache(cache: Path, compiled: Mapping[str, Any]) -> None:
    """For the next start; without it that compiles again, so a failure is no more than a warning."""
    text = json.dumps(compiled)
    try:
        statedir.write_atomically(cache, f"{_check(text)}\n{text}")
        for old in cache.parent.glob("programs-*.json"):
            if old != cache:
                old.unlink()
    except OSError as error:
        log.warning("cannot keep the compiled programs in %s: %s", cache, error.strerror)


def _check(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Compiler:
    """The compiler child (ctl.kernel.bpf.compile) at work on the named functions of a C text.

    It writes into files, so it ends though nobody asks for its result.
    """

    def __init__(self, text: str, programs: Sequence[str] = BUILT) -> None:
        """KernelError if it cannot be started."""
        if not shutil.which(_COMPILER):
            raise KernelError(f"{_COMPILER} is missing: install python3 and python3-bpfcc")
        spec = find_spec("ctl")
        assert spec is not None and spec.submodule_search_locations
        root = str(Path(next(iter(spec.submodule_search_locations))).parent)
        try:
            with tempfile.TemporaryFile("w+") as handed:  # a pipe would hold us up until it is read
                handed.write(text)
                handed.seek(0)
                self._out = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  closed in `result`
                self._err = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
                self._child = subprocess.Popen(
                    [_COMPILER, *_OPTIONS, root, *programs],
                    stdin=handed,
                    stdout=self._out,
                    stderr=self._err,
                    cwd="/",
                    env={key: os.environ[key] for key in ("PATH", "TMPDIR") if key in os.environ},
                )
        except OSError as error:
            raise KernelError(f"cannot run {_COMPILER}: {error.strerror}") from error

    def result(self) -> str:
        """Its JSON, once. KernelError with the last line that the compiler wrote; all of them are logged."""
        with self._out, self._err:
            try:
                self._child.wait(_TIMEOUT_S)
            except subprocess.TimeoutExpired as error:
                self._child.kill()
                self._child.wait()
                raise KernelError(f"compiling the datapath took more than {_TIMEOUT_S:g} s") from error
            out, err = (_content(file) for file in (self._out, self._err))
        if self._child.returncode:
            for line in err.splitlines():
                log.error("compiler: %s", line)
            last = err.strip().splitlines()[-1:] or ["no message"]
            raise KernelError(f"compiling the datapath failed: {last[0]}")
        return out


def _content(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def compile_text(text: str, programs: Sequence[str] = BUILT) -> str:
    """The compiler child's JSON for the named functions of a C text. KernelError."""
    return Compiler(text, programs).result()


def load_program(name: str, program: Mapping[str, Any], maps: Maps) -> Program:
    """Put the maps' file descriptors into a compiled program and hand it to the verifier.

    KernelError if that refuses; the end of its log is logged.
    """
    kind = syscall.PROG_TYPE_XDP if name.startswith(XDP) else syscall.PROG_TYPE_SCHED_CLS
    try:
        return _described(name, syscall.prog_load(_with_maps(program, maps), name, kind))[0]
    except syscall.VerifierError as error:
        for line in error.log.splitlines()[-40:]:
            log.error("verifier: %s", line)
        raise KernelError(f"the kernel refused program {name}: {error.strerror}; its log is above") from error
    except PermissionError as error:
        raise KernelError(f"may not load program {name}: needs root, or CAP_BPF and CAP_NET_ADMIN") from error
    except OSError as error:
        raise KernelError(f"cannot load program {name}: {error.strerror}") from error


def load_xdp(objects: Mapping[str, Any], maps: Maps) -> Program:
    """The program for XDP, for frames in several pieces if the kernel has them. KernelError."""
    pieces, whole = (_with_maps(objects[name], maps) for name in (XDP_FRAGS, XDP))
    try:
        try:
            fd = syscall.prog_load(pieces, XDP, syscall.PROG_TYPE_XDP, syscall.XDP_HAS_FRAGS)
        except OSError:
            fd = syscall.prog_load(whole, XDP, syscall.PROG_TYPE_XDP)
        return _described(XDP, fd)[0]
    except OSError as error:
        raise KernelError(f"the kernel refused program {XDP}: {_last_words(error)}") from error


def _last_words(error: OSError) -> str:
    """The verifier's last line that is no statistics, after the error."""
    lines = error.log.splitlines() if isinstance(error, syscall.VerifierError) else []
    said = [line for line in lines if line and not line.startswith(("processed ", "verification time"))]
    return f"{error.strerror} ({said[-1].strip()})" if said else str(error.strerror)


def _with_maps(program: Mapping[str, Any], maps: Maps) -> bytes:
    code = bytearray(base64.b64decode(program["insns"]))
    for index, map_name in program["maps"]:
        # The immediate of BPF_LD_IMM64 with BPF_PSEUDO_MAP_FD.
        struct.pack_into("=i", code, index * 8 + 4, maps.fd(map_name))
    return bytes(code)


def _pin(home: Path, programs: Mapping[str, Program], *, anew: bool) -> None:
    """All but XDP's or nothing: a half-filled directory of a killed agent is made `anew`."""
    with refused(f"cannot pin the programs under {home}"):
        if not anew:
            bpffs.pin_missing(home, {name: program.fd for name, program in programs.items()})
            return
        if home.exists():
            bpffs.unpin(home)
        bpffs.make_private(home)
        for name, program in programs.items():
            syscall.obj_pin(program.fd, str(home / name))
