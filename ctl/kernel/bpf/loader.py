"""From C text to pinned programs.

BCC does it, in a child (ctl.kernel.bpf.child): it compiles, and loads the programs on our maps, whose
descriptors it is handed; it hands back those of the programs, and ends. They are pinned here, by
bpf(2), in `<bpffs>/v<LAYOUT>/progs-<digest>/`: a child that outlives an agent that was killed could
not do harm to what the next one pins. The digest is that of text, compiler and kernel; finding that
directory complete means that there is nothing to compile and to load at all.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final

from ctl.core.abi import Hook
from ctl.core.errors import KernelError
from ctl.kernel.bpf import bpffs, syscall
from ctl.kernel.bpf.child import Bcc
from ctl.kernel.bpf.maps import Maps, layout_dir
from ctl.kernel.bpf.source import PROGRAMS, XDP, XDP_FRAGS, digest, source
from ctl.kernel.bpf.table import refused

log = logging.getLogger(__name__)


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


def compile_ahead(root: str | Path, version: int = 4) -> Bcc | None:
    """Start to compile, if `load` will need it: 0.8 s, in which the rest of a start gets done.

    `version`: of IP. None if all programs are pinned already, or if it does not start: `load` tells.
    """
    text = source(version)
    home = _home(root, digest(text, _compiler_version()))
    if all((home / name).exists() for name in PROGRAMS):
        return None
    with suppress(KernelError):
        return Bcc(text)
    return None


def load(maps: Maps[Any], root: str | Path, ahead: Bcc | None = None) -> Programs:
    """Adopt the pinned programs of this very source on these maps, else build, load and pin them.

    `ahead`: of `compile_ahead`. KernelError with the compiler's or the verifier's own words. A
    kernel that refuses the program for XDP costs only that: it is tried again at the next start.
    """
    text = source(maps.family.version)
    build = digest(text, _compiler_version())
    home = _home(root, build)
    adopted = _adopt(home, maps.ids())
    loaded = adopted or {}
    if XDP in loaded:
        return Programs(build, loaded)
    xdp_refused = ""
    with _closed_if_it_fails(loaded), _at_hand(ahead, text) as bcc:
        if adopted is None:
            loaded |= load_tc(bcc, maps)
        try:
            loaded[XDP] = load_xdp(bcc, maps)
        except syscall.VerifierError as error:
            xdp_refused = f"the kernel refused program {XDP}: {_last_words(error)}"
        _pin(home, loaded, anew=adopted is None)
    return Programs(build, loaded, xdp_refused)


def _at_hand(ahead: Bcc | None, text: str) -> Bcc:
    """The child that was started ahead if it still waits, else another."""
    if ahead is not None and ahead.gave_up():
        ahead.close()
        ahead = None
    return ahead or Bcc(text)


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


def hand_over(maps: Maps[IPv4Address], programs: Mapping[str, Program] | None) -> str:
    """Have the programs on `maps` hand packets of IPv6 to these, made for IPv6, each at its hook.

    None: packets of IPv6 are the kernel path's, from the next one on. What is in place already is not
    touched. KernelError, and the answer: why that for XDP is not in place, if it was to be. It does
    not go with that for IPv4 where only one of them takes frames in several pieces; from_wire does
    without it.
    """
    fds = {name: program.fd for name, program in (programs or {}).items()}
    xdp_refused = ""
    # What XDP has taken the tunnel off is from_wire's to deliver: XDP comes last, and goes first.
    if XDP not in fds:
        maps.hand_over(Hook.FROM_WIRE_XDP, None)
    for name in _TC:
        maps.hand_over(Hook[name.upper()], fds.get(name))
    if XDP in fds:
        try:
            maps.hand_over(Hook.FROM_WIRE_XDP, fds[XDP])
        except KernelError as error:
            xdp_refused = f"program {XDP} for IPv6 does not go with that for IPv4: {error}"
    return xdp_refused


def drop_others(root: str | Path, keep: str) -> None:
    """Unpin the programs of other builds than `keep`: last, when no filter uses them any more."""
    with refused(f"cannot unpin programs under {root}"):
        for home in list(layout_dir(root).glob("progs-*")):
            if home.name != f"progs-{keep}":
                bpffs.unpin(home)


def _home(root: str | Path, build: str) -> Path:
    return layout_dir(root) / f"progs-{build}"


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
            with syscall.passed_on(syscall.obj_get(str(home / name))) as fd:
                info = syscall.prog_info(fd)
                if not info.map_ids <= maps:
                    raise _Misfit
            found[name] = Program(name, fd, info.id)
        return found
    return None


class _Misfit(Exception):
    """A pinned program uses other maps than the node's."""


def _programs(fds: Mapping[str, int]) -> dict[str, Program]:
    try:
        return {name: Program(name, fd, syscall.prog_info(fd).id) for name, fd in fds.items()}
    except OSError as error:
        for fd in fds.values():
            os.close(fd)
        raise KernelError(f"cannot load programs: {error.strerror}") from error


def load_tc(bcc: Bcc, maps: Maps[Any]) -> dict[str, Program]:
    """The programs for tc. KernelError if the kernel refuses one; the end of the verifier's log is logged."""
    try:
        return _programs(bcc.load(_TC, maps))
    except syscall.VerifierError as error:
        name = error.filename
        if error.errno == errno.EPERM:
            raise KernelError(
                f"may not load program {name}: needs root, or CAP_BPF and CAP_NET_ADMIN"
            ) from error
        for line in error.log.splitlines():
            log.error("verifier: %s", line)
        raise KernelError(f"the kernel refused program {name}: {error.strerror}; its log is above") from error


def load_xdp(bcc: Bcc, maps: Maps[Any]) -> Program:
    """The program for XDP, for frames in several pieces if the kernel has them. VerifierError."""
    try:
        fd = bcc.load((XDP_FRAGS,), maps)[XDP_FRAGS]
    except syscall.VerifierError:
        fd = bcc.load((XDP,), maps)[XDP]
    return _programs({XDP: fd})[XDP]


def _last_words(error: OSError) -> str:
    """The verifier's last line that is no statistics, after the error."""
    lines = error.log.splitlines() if isinstance(error, syscall.VerifierError) else []
    said = [line for line in lines if line and not line.startswith(("processed ", "verification time"))]
    return f"{error.strerror} ({said[-1].strip()})" if said else str(error.strerror)


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
