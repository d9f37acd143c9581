"""The system calls that confined code may not make, as a program for the kernel's filter (seccomp, mode 2).

A denylist: what a Python program with numpy, threads and processes of its own needs stays as it is. Denied is what
leads out of a sandbox, what makes memory that no limit counts, and what has no use there but a record of holes. Each
call is answered as a kernel does that lacks or refuses it, so that libraries fall back. `bwrap --seccomp` takes the
bytes as they are, and so does seccomp(2).

Sources: seccomp(2); Documentation/userspace-api/seccomp_filter.rst, with its warning of x32; linux/filter.h, audit.h,
seccomp.h; the kernel's tables of system calls (arch/x86/entry/syscalls/syscall_64.tbl, scripts/syscall.tbl).
"""

import errno
import platform
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

#: What a filter answers.
ALLOW = 0x7FFF0000
KILL = 0x80000000
_ERRNO = 0x00050000

#: The newest system call of this table's time (file_setattr, Linux 6.17). What came later is nothing that anything
#: depends on, and may be anything: it is answered as if the kernel were of that time.
NEWEST = 469

#: AUDIT_ARCH_X86_64 and AUDIT_ARCH_AARCH64; the columns of `_NUMBERS`, in that order.
_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

#: x86_64's other numbers, with 32-bit pointers, have this bit; rules that know one set of numbers miss the other.
_X32_BIT = 0x40000000

_NUMBERS: Mapping[str, tuple[int | None, int | None]] = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chmod": (90, None),
    "chown": (92, None),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "clone": (56, 220),
    "clone3": (435, 435),
    "connect": (42, 203),
    "create_module": (174, None),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "fchmod": (91, 52),
    "fchown": (93, 55),
    "fcntl": (72, 25),
    "fchownat": (260, 54),
    "fremovexattr": (199, 16),
    "fsetxattr": (190, 7),
    "file_setattr": (469, 469),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "futimesat": (261, None),
    "init_module": (175, 105),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioctl": (16, 29),
    "ioperm": (173, None),
    "iopl": (172, None),
    "ioprio_set": (251, 30),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lchown": (94, None),
    "lremovexattr": (198, 15),
    "lsetxattr": (189, 6),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "modify_ldt": (154, None),
    "mmap": (9, 222),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "msgctl": (71, 187),
    "msgget": (68, 186),
    "msgrcv": (70, 188),
    "msgsnd": (69, 189),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "prlimit64": (302, 261),
    "process_madvise": (440, 440),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "query_module": (178, None),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "removexattr": (197, 14),
    "removexattrat": (466, 466),
    "request_key": (249, 218),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "semctl": (66, 191),
    "semget": (64, 190),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "setns": (308, 268),
    "setpriority": (141, 140),
    "setsockopt": (54, 208),
    "settimeofday": (164, 170),
    "setxattr": (188, 5),
    "setxattrat": (463, 463),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "shmdt": (67, 197),
    "shmget": (29, 194),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "timer_create": (222, 107),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "utime": (132, None),
    "utimensat": (280, 88),
    "utimes": (235, None),
}

_CLONE_FS, _CLONE_FILES, _CLONE_SYSVSEM = 0x200, 0x400, 0x40000
#: CLONE_NEWNS, -CGROUP, -UTS, -IPC, -USER, -PID and -NET. CLONE_NEWTIME (0x80) is not for clone(2): there the low byte
#: is the signal at the child's end.
_NEW_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000

_PER_LINUX, _PERSONALITY_ASKED = 0, 0xFFFFFFFF
_SHARED_AND_ANONYMOUS = 0x01 | 0x20
_F_SETSIG = 10
_SOL_SOCKET = 1
#: SO_SNDBUF, SO_RCVBUF, and both with FORCE.
_BUFFER_SIZES = (7, 8, 32, 33)
#: They type into the terminal that they are run from, change how it is read, or load a line discipline into the kernel.
_TIOCSTI, _TIOCLINUX, _TIOCSETD = 0x5412, 0x541C, 0x5423

_AF_UNIX = 1
#: A socket's type has SOCK_NONBLOCK and SOCK_CLOEXEC in it; of types there are fewer than 16.
_TYPE_MASK, _SOCK_DGRAM, _SOCK_RAW = 0xF, 2, 3


@dataclass(frozen=True, slots=True)
class _Argument:
    """A test of an argument's low half: that it is one of `within`, none of `outside`, or has one of `bits`.

    The kernel takes each argument that is tested here as 32 bits, or refuses a value that has more.
    """

    index: int
    within: tuple[int, ...] = ()
    outside: tuple[int, ...] = ()
    bits: int = 0
    mask: int = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class _Rule:
    """A call with one of the `names` is answered `answer` if all tests of `when` hold; else further rules decide."""

    answer: int
    names: tuple[str, ...]
    when: tuple[_Argument, ...] = ()


def _error(number: int) -> int:
    return _ERRNO | number


_EPERM, _ENOSYS = _error(errno.EPERM), _error(errno.ENOSYS)
_EAFNOSUPPORT, _EOPNOTSUPP = _error(errno.EAFNOSUPPORT), _error(errno.EOPNOTSUPP)

_RULES = (
    # Mounts and roots: another tree of files.
    _Rule(_EPERM, ("mount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "open_tree_attr")),
    _Rule(_EPERM, ("fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr")),
    # Files by number, past all paths.
    _Rule(_EPERM, ("name_to_handle_at", "open_by_handle_at", "fanotify_init")),
    # Other processes' memory and files.
    _Rule(_EPERM, ("ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "kcmp", "pidfd_getfd")),
    # New namespaces: all of the kernel that only its root reaches otherwise.
    _Rule(_EPERM, ("setns",)),
    _Rule(_EPERM, ("unshare",), (_Argument(0, bits=0xFFFFFFFF & ~(_CLONE_FS | _CLONE_FILES | _CLONE_SYSVSEM)),)),
    _Rule(_EPERM, ("clone",), (_Argument(0, bits=_NEW_NAMESPACES),)),
    # Its flags lie in memory, where no filter sees them; glibc then uses clone.
    _Rule(_ENOSYS, ("clone3",)),
    # What has been the way out of many a sandbox.
    _Rule(_EPERM, ("bpf", "perf_event_open", "userfaultfd", "keyctl", "add_key", "request_key")),
    _Rule(_ENOSYS, ("io_uring_setup", "io_uring_enter", "io_uring_register")),
    _Rule(_EPERM, ("personality",), (_Argument(0, outside=(_PER_LINUX, _PERSONALITY_ASKED)),)),
    _Rule(_EPERM, ("ioctl",), (_Argument(1, within=(_TIOCSTI, _TIOCLINUX, _TIOCSETD)),)),
    # The machine itself.
    _Rule(_EPERM, ("create_module", "init_module", "finit_module", "delete_module", "query_module")),
    _Rule(_EPERM, ("kexec_load", "kexec_file_load", "reboot", "swapon", "swapoff", "acct", "quotactl", "quotactl_fd")),
    _Rule(_EPERM, ("syslog", "settimeofday", "clock_settime", "adjtimex", "clock_adjtime")),
    _Rule(_EPERM, ("iopl", "ioperm", "modify_ldt")),
    # Memory that is nobody's: it outlives processes, or is seen in none.
    _Rule(_ENOSYS, ("memfd_create", "memfd_secret")),
    _Rule(_EPERM, ("shmget", "shmat", "shmctl", "shmdt", "semget", "semop", "semctl", "semtimedop")),
    _Rule(_EPERM, ("msgget", "msgsnd", "msgrcv", "msgctl")),
    # Shared memory without a file stays whole while one page of it is mapped, and only that page is counted.
    _Rule(_EPERM, ("mmap",), (_Argument(3, within=(_SHARED_AND_ANONYMOUS,), mask=_SHARED_AND_ANONYMOUS),)),
    # Attributes of files in memory are memory, too, and buffers of sockets.
    _Rule(_EOPNOTSUPP, ("setxattr", "lsetxattr", "fsetxattr", "setxattrat", "file_setattr")),
    _Rule(_EOPNOTSUPP, ("removexattr", "lremovexattr", "fremovexattr", "removexattrat")),
    _Rule(_EPERM, ("setsockopt",), (_Argument(1, within=(_SOL_SOCKET,)), _Argument(2, within=_BUFFER_SIZES))),
    # A user has 128 of them on all the machine; and they tell the names of files in directories that cannot be read.
    _Rule(_ENOSYS, ("inotify_init", "inotify_init1")),
    # By these a process that has been stopped would send itself the signal to go on.
    _Rule(_EPERM, ("timer_create",)),
    _Rule(_EPERM, ("fcntl",), (_Argument(1, within=(_F_SETSIG,)),)),
    # No network, which a namespace of its own alone would not mean: AF_VSOCK and AF_ALG pass it by, and what is sent to
    # oneself through TCP waits in memory that nobody counts.
    _Rule(_EAFNOSUPPORT, ("socket", "socketpair"), (_Argument(0, outside=(_AF_UNIX,)),)),
)

#: For code that lives among the processes and files of others, held by Landlock only. That has nothing to say (up to
#: version 8) about connecting to sockets with a path, about modes and owners, and about other processes' limits.
_WITHOUT_NAMESPACES = (
    # A datagram finds its way without connect. (SOCK_RAW is another word for it among AF_UNIX.)
    _Rule(_EPERM, ("socket", "socketpair"), (_Argument(1, within=(_SOCK_DGRAM, _SOCK_RAW), mask=_TYPE_MASK),)),
    _Rule(_EPERM, ("connect",)),
    # Files of others may belong to the same user, who could lock them up, or open them to everybody. Said to have been
    # done, as shutil.copy fails otherwise; through descriptors, too, as what is only to be read can be opened.
    _Rule(_error(0), ("chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat")),
    _Rule(_error(0), ("utime", "utimes", "futimesat", "utimensat")),
    # Other processes may belong to the same user, too: only 0, oneself, is left.
    _Rule(_EPERM, ("prlimit64", "sched_setaffinity", "sched_setattr", "sched_setparam"), (_Argument(0, outside=(0,)),)),
    # Said to have been done: libzmq does it to each thread that it starts, by its number, and aborts if it cannot.
    _Rule(_error(0), ("sched_setscheduler",), (_Argument(0, outside=(0,)),)),
    # Of one process (0, or IOPRIO_WHO_PROCESS), and that oneself.
    _Rule(_EPERM, ("setpriority",), (_Argument(0, outside=(0,)),)),
    _Rule(_EPERM, ("ioprio_set",), (_Argument(0, outside=(1,)),)),
    _Rule(_EPERM, ("setpriority", "ioprio_set"), (_Argument(1, outside=(0,)),)),
)


def program(*, apart: bool, machine: str = platform.machine()) -> bytes:
    """The filter for a machine of this kind, as struct sock_filter[].

    `apart`: for code with namespaces of its own. Other code connects to nothing, and neither touches other processes
    nor modes, owners and times of files. ValueError for machines other than x86_64 and aarch64.
    """
    if machine not in _ARCHITECTURES:
        raise ValueError(f"no system call filter for {machine}: there is one for {' and '.join(_ARCHITECTURES)}")
    architecture, column = _ARCHITECTURES[machine]
    code = [_load(_ARCHITECTURE), *_unless_equal(architecture, KILL), _load(_NUMBER)]
    if machine == "x86_64":
        code += [_jump(_AT_LEAST, _X32_BIT, 0, 1), _return(KILL)]
    code += [_jump(_ABOVE, NEWEST, 0, 1), _return(_ENOSYS)]
    for rule in _RULES if apart else (*_RULES, *_WITHOUT_NAMESPACES):
        code += _block(rule, _numbers(rule.names, column))
    return b"".join([*code, _return(ALLOW)])


def _numbers(names: Iterable[str], column: int) -> list[int]:
    return [number for name in names if (number := _NUMBERS[name][column]) is not None]


# The assembler. An instruction is a code, two distances to jump (if true, if false) that count from the next one, and a
# constant; there is one register. Each rule is a block that ends where the next begins, so no jump is longer than it.

_LOAD, _AND, _EQUAL, _ABOVE, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x25, 0x35, 0x45, 0x06
#: Where struct seccomp_data has what is filtered; the arguments have 64 bits each, the low half first on both machines.
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16


def _jump(code: int, constant: int, if_true: int, if_false: int) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, constant)


def _load(offset: int) -> bytes:
    return _jump(_LOAD, offset, 0, 0)


def _return(answer: int) -> bytes:
    return _jump(_RETURN, answer, 0, 0)


def _unless_equal(constant: int, answer: int) -> list[bytes]:
    return [_jump(_EQUAL, constant, 1, 0), _return(answer)]


def _block(rule: _Rule, numbers: Sequence[int]) -> list[bytes]:
    body = [_return(rule.answer)]
    for argument in reversed(rule.when):
        body = _test(argument, len(body)) + body
    if not numbers:
        return []
    return [_load(_NUMBER), *_one_of(numbers, len(body)), *body]


def _test(argument: _Argument, beyond: int) -> list[bytes]:
    """Goes on with the next instruction if the test holds, else after `beyond` of them."""
    code = [_load(_ARGUMENTS + 8 * argument.index)]
    if argument.mask != 0xFFFFFFFF:
        code.append(_jump(_AND, argument.mask, 0, 0))
    if argument.within:
        return [*code, *_one_of(argument.within, beyond)]
    if argument.outside:
        last = len(argument.outside) - 1
        return [*code, *(_jump(_EQUAL, value, last - at + beyond, 0) for at, value in enumerate(argument.outside))]
    return [*code, _jump(_ANY_BIT, argument.bits, 0, beyond)]


def _one_of(values: Sequence[int], beyond: int) -> list[bytes]:
    """Goes on behind itself if the register is one of the values, else after `beyond` more instructions."""
    last = len(values) - 1
    return [_jump(_EQUAL, value, last - at, beyond if at == last else 0) for at, value in enumerate(values)]
