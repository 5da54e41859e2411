"""The file system that keeps pins, and pins in it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from ctl.core.errors import ConfigError, KernelError
from ctl.kernel.bpf import syscall

MAGIC: Final = 0xCAFE4A11
"""BPF_FS_MAGIC in include/uapi/linux/magic.h."""

_ROOT: Final = Path("/sys/fs/bpf")
_FIRST_PIDS: Final = "pid:[4026531836]"
"""The PID namespace that is no container's: PROC_PID_INIT_INO in include/linux/proc_ns.h."""
_libc = ctypes.CDLL(None, use_errno=True)


def ensure(directory: str) -> None:
    """Make `directory` exist in a bpffs; mounts one on /sys/fs/bpf if it has none.

    ConfigError if it is somewhere else than in a bpffs, KernelError if mounting failed.
    """
    check(directory)
    path = Path(directory)
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise KernelError(f"cannot create {directory}: {error.strerror}") from error


def check(directory: str) -> None:
    """Refuse what `ensure` would, but for mounting change nothing. Errors as `ensure`."""
    path = Path(directory)
    if not holds(_nearest(path)) and _below(path, _ROOT):
        _mount()
    if not holds(_nearest(path)):
        raise ConfigError(f"--bpffs {directory} is not in a bpffs: choose one below {_ROOT}")
    if not os.access(_nearest(path), os.W_OK):
        raise KernelError(f"the bpffs on {_nearest(path)} is read-only here: mount it writable")


def make_private(directory: Path) -> None:
    """A directory of pins, and what is missing above it, for root alone whatever the umask. OSError."""
    for each in (*reversed(directory.parents), directory):
        each.mkdir(exist_ok=True, mode=0o700)


def _below(path: Path, root: Path) -> bool:
    return path == root or root in path.parents


def _nearest(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def holds(path: Path) -> bool:
    """Whether `path`, which exists, is in a bpffs."""
    # statfs(2): f_type is the first word. Python's os.statvfs does not have it.
    buffer = ctypes.create_string_buffer(256)
    if _libc.statfs(os.fsencode(path), buffer):
        return False
    return ctypes.c_ulong.from_buffer(buffer).value == MAGIC


def _mount() -> None:
    if _libc.mount(b"bpf", os.fsencode(_ROOT), b"bpf", 0, b"mode=0700"):
        code = ctypes.get_errno()
        raise KernelError(
            f"no bpffs on {_ROOT}, and mounting one failed: {os.strerror(code)} "
            f"(try, on the host: mount -t bpf bpf {_ROOT})"
        )
    if os.readlink("/proc/self/ns/pid") != _FIRST_PIDS:
        import logging  # `ovctl map dump` has nothing to log

        logging.getLogger(__name__).warning(
            "%s had no bpffs in this container: one was mounted that ends with it, and so does the datapath; "
            "hand it the host's (docker run --volume %s:%s)",
            *(_ROOT,) * 3,
        )


def pin_missing(directory: Path, fds: Mapping[str, int]) -> bool:
    """Pin those of `fds` (by name) that `directory` lacks; True if there were any. Cheap if not.

    ConfigError and KernelError as `ensure`.
    """
    missing = {name: fd for name, fd in fds.items() if not (directory / name).exists()}
    if not missing:
        return False
    ensure(str(directory))
    for name, fd in missing.items():
        try:
            syscall.obj_pin(fd, str(directory / name))
        except OSError as error:
            raise KernelError(f"cannot pin {directory / name}: {error.strerror}") from error
    return True


def unpin(directory: Path, names: Collection[str] | None = None) -> bool:
    """Remove pins from `directory` (None: all), and it if it is empty then.

    True if something was removed. OSError.
    """
    removed = False
    for path in list(directory.iterdir()):
        if (names is None or path.name in names) and (path.is_symlink() or not path.is_dir()):
            path.unlink(missing_ok=True)
            removed = True
    return remove_empty(directory) or removed


def remove_empty(directory: Path) -> bool:
    """Remove a directory if nothing is in it or mounted on it; True if it went."""
    with suppress(OSError):
        directory.rmdir()
        return True
    return False
