"""How a process confines itself, and all that it starts, before it runs what it must not trust.

It stands alone, with nothing but Python's standard library, as it runs inside. What is done here cannot be undone.

Sources: Documentation/userspace-api/landlock.rst; linux/landlock.h; seccomp(2); prctl(2); getrlimit(2).
"""

import ctypes
import errno
import os
import platform
import resource
import signal
import stat
import struct
from collections.abc import Sequence

_LIBC = ctypes.CDLL(None, use_errno=True)

# prctl(2)
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38

# System calls that libc has no function for; those of Landlock have the same numbers everywhere.
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446

_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_FILTER_FLAG_TSYNC = 1
_FILTER_INSTRUCTION_BYTES = 8

#: zmq and numpy lock no memory; 64 KiB is what Linux has granted everybody for decades, and no harm.
_LOCKED_BYTES = 64 << 10

#: Address space costs nothing, and numpy alone maps 800 MB of it; the bound is for what maps and maps.
_ADDRESS_SPACE_PER_MEMORY = 4


def limit(memory_bytes: int, processes: int, file_bytes: int, open_files: int) -> None:
    """Bounds what each process of this one uses; a limit that is narrower already stays.

    `processes` counts, with their threads, those of the user in this user namespace, and does not hold for root.
    """
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_MSGQUEUE, 0)
    _lower(resource.RLIMIT_MEMLOCK, _LOCKED_BYTES)
    _lower(resource.RLIMIT_FSIZE, file_bytes)
    _lower(resource.RLIMIT_NOFILE, open_files)
    _lower(resource.RLIMIT_NPROC, processes)
    # Last, as from here on there may be no memory left to go on with.
    _lower(resource.RLIMIT_AS, _ADDRESS_SPACE_PER_MEMORY * memory_bytes)
    _lower(resource.RLIMIT_DATA, memory_bytes)


def _lower(kind: int, most: int) -> None:
    hard = resource.getrlimit(kind)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))


def filter_system_calls(program: bytes) -> None:
    """Has the kernel run each system call of all threads, and of what they start, past a program of sock_filter.

    OSError if it does not take it.
    """
    if not program or len(program) % _FILTER_INSTRUCTION_BYTES:
        raise OSError(errno.EINVAL, "not a system call filter")
    machine = platform.machine()
    if machine not in _SECCOMP:
        raise OSError(errno.ENOSYS, f"the number of seccomp(2) on {machine} is not known")
    _gain_no_privileges()
    instructions = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: a count of 16 bits, and after padding the pointer.
    told = struct.pack("@HP", len(program) // _FILTER_INSTRUCTION_BYTES, ctypes.addressof(instructions))
    asked = (_SECCOMP[machine], _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC, told)
    if thread := _system_call("the system call filter", *asked):
        raise OSError(errno.EBUSY, f"the system call filter: thread {thread} has one of its own")


def landlock_version() -> int:
    """Landlock's version in this kernel; 0 if it has none, or it is switched off."""
    try:
        # LANDLOCK_CREATE_RULESET_VERSION: asked with nothing, it makes nothing.
        return _system_call("Landlock", _LANDLOCK_CREATE_RULESET, 0, 0, 1)
    except OSError:
        return 0


#: The first that keeps signals and abstract sockets in (Linux 6.12).
_SUFFICIENT = 6

#: LANDLOCK_ACCESS_FS_*: all 16 of version 6, from EXECUTE (bit 0) to IOCTL_DEV (bit 15).
_EVERYTHING = 0xFFFF
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE, _IOCTL_DEV = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14, 1 << 15
_READ = _EXECUTE | _READ_FILE | _READ_DIR
#: What can be done to a file; the rest is done to directories, and not taken in a rule for a file.
_ON_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV

#: LANDLOCK_ACCESS_NET_BIND_TCP and _CONNECT_TCP, LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET and _SIGNAL.
_TCP = 1 << 0 | 1 << 1
_SCOPE = 1 << 0 | 1 << 1

_RULE_PATH_BENEATH = 1


def restrict(readable: Sequence[str], writable: Sequence[str]) -> None:
    """Leaves of all files those at and below `readable`, to be read and run, and `writable`, for anything.

    There is no TCP either, and neither signals nor abstract sockets reach a process that is not confined with this one.
    Sockets with a path, modes, owners and other processes' limits are for the system call filter. OSError if a path is
    missing, if there are other threads (they would not be held), or if the kernel's Landlock cannot do all of this.
    """
    version = landlock_version()
    if version < _SUFFICIENT:
        has = f"Landlock in version {version}" if version else "no Landlock"
        raise OSError(errno.ENOSYS, f"this kernel has {has}: version {_SUFFICIENT} (Linux 6.12) is needed")
    if len(os.listdir("/proc/self/task")) > 1:  # noqa: PTH208 - pathlib would be imported inside each sandbox for this
        raise OSError(errno.EBUSY, "Landlock holds for the thread that asks for it: it must be the only one")
    _gain_no_privileges()
    told = struct.pack("=QQQ", _EVERYTHING, _TCP, _SCOPE)
    rules = _system_call("Landlock", _LANDLOCK_CREATE_RULESET, told, len(told), 0)
    try:
        for path in readable:
            _permit(rules, path, _READ)
        for path in writable:
            _permit(rules, path, _EVERYTHING)
        _system_call("Landlock", _LANDLOCK_RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)


def _permit(rules: int, path: str, rights: int) -> None:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            rights &= _ON_FILES
        # struct landlock_path_beneath_attr, which is packed.
        told = struct.pack("=Qi", rights, place)
        _system_call(f"Landlock for {path}", _LANDLOCK_ADD_RULE, rules, _RULE_PATH_BENEATH, told, 0)
    finally:
        os.close(place)


def die_with_parent(parent_pid: int) -> None:
    """Has this process killed when the thread that started it ends; it ends at once if `parent_pid` is not its parent.

    It holds for this process alone, not for those that it starts.
    """
    _control(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Only now: the parent may have ended just before.
    if os.getppid() != parent_pid:
        os._exit(1)


def _gain_no_privileges() -> None:
    # Without it only root may confine itself, as a program of another user could be misled by it.
    _control(_PR_SET_NO_NEW_PRIVS, 1)


def _control(option: int, value: int) -> None:
    if _LIBC.prctl(option, *map(ctypes.c_ulong, (value, 0, 0, 0))):
        raise _refused(f"prctl({option})")


def _system_call(what: str, number: int, *arguments: int | bytes) -> int:
    # An int of Python's would be handed over as 32 bits, with the upper half of the register as it was.
    handed = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result = int(_LIBC.syscall(ctypes.c_long(number), *handed))
    if result < 0:
        raise _refused(what)
    return result


def _refused(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")
