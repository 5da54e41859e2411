"""The file system that keeps pins."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final

from ctl.errors import ConfigError, KernelError

MAGIC: Final = 0xCAFE4A11
"""BPF_FS_MAGIC in include/uapi/linux/magic.h."""

_ROOT: Final = Path("/sys/fs/bpf")
_libc = ctypes.CDLL(None, use_errno=True)


def ensure(directory: str) -> None:
    """Make `directory` exist in a bpffs; mounts one on /sys/fs/bpf if it has none.

    ConfigError if it is somewhere else than in a bpffs, KernelError if mounting failed.
    """
    path = Path(directory)
    if not _is_bpffs(_nearest(path)) and _below(path, _ROOT):
        _mount()
    if not _is_bpffs(_nearest(path)):
        raise ConfigError(f"--bpffs {directory} is not in a bpffs: choose one below {_ROOT}")
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise KernelError(f"cannot create {directory}: {error.strerror}") from error


def _below(path: Path, root: Path) -> bool:
    return path == root or root in path.parents


def _nearest(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _is_bpffs(path: Path) -> bool:
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
            f"(try: mount -t bpf bpf {_ROOT})"
        )
