"""System calls for which Python has no function, and one number that it has under another name.

Source: openat2(2), setfsuid(2), setfsgid(2), statvfs(3); linux/openat2.h for the numbers.
"""

import ctypes
import errno
import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: The same on every architecture that Python runs on, as of all calls since Linux 5.0.
_OPENAT2 = 437

#: What no path may do: cross a mount, pass a link of /proc, pass any link, lead out of the directory.
_RESOLVE = 0x01 | 0x02 | 0x04 | 0x08

#: Nobody has this id: to ask for it changes nothing, and tells the one that is in force.
_NO_ID = 0xFFFF_FFFF


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    for call in (libc.setfsuid, libc.setfsgid):
        call.argtypes, call.restype = [ctypes.c_uint32], ctypes.c_uint32
    return libc


def open_beneath(directory: int, path: str, flags: int, *, mode: int = 0) -> int:
    """A descriptor of what is at `path` below the directory, on the same mount, with no link on the way or at its end.

    It is not inherited, waits for nobody, and becomes nobody's terminal. OSError as of `os.open`: ELOOP where there is
    a link, EXDEV for what leads out. RuntimeError if the system does not offer the call.
    """
    always = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    how = _OpenHow(flags | always, mode, _RESOLVE)
    descriptor: int = _libc().syscall(
        ctypes.c_long(_OPENAT2),
        ctypes.c_long(directory),
        ctypes.c_char_p(os.fsencode(path)),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )
    if descriptor < 0:
        number = ctypes.get_errno()
        # Never for a file: a kernel does not know the call, or a filter around the server forbids it.
        if number in (errno.ENOSYS, errno.EPERM):
            raise RuntimeError("openat2 cannot be used: it needs Linux 5.6, and a seccomp filter that lets it pass")
        raise OSError(number, os.strerror(number), path)
    return descriptor


@contextmanager
def making_files_as(owner: int | None) -> Iterator[None]:
    """What this thread does with files meanwhile, it does as the user and group of that number; None: as it is.

    Other threads are not concerned: the kernel keeps both ids for each thread, and the C library leaves it at that.
    RuntimeError if the ids cannot be taken on.
    """
    if owner is None:
        yield
        return
    # The group first, and put back last: who is not root may not choose one.
    with _as(_libc().setfsgid, owner), _as(_libc().setfsuid, owner):
        yield


@contextmanager
def _as(call: Callable[[int], int], wanted: int) -> Iterator[None]:
    before = call(wanted)
    try:
        # It tells of no failure.
        if call(_NO_ID) != wanted:
            raise RuntimeError(f"files cannot be made as the user and group {wanted}")
        yield
    finally:
        call(before)


def used_inodes(descriptor: int) -> int:
    """So many files, directories and links are on the file system that the descriptor is of."""
    found = os.fstatvfs(descriptor)
    return found.f_files - found.f_ffree
