"""The filter in the kernel, and in a small interpreter that knows both architectures and needs no privileges.

Source of the numbers: the kernel's headers asm/unistd_64.h (x86_64) and asm-generic/unistd.h (aarch64).
"""

import errno
import json
import os
import platform
import re
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tools.sandbox.seccomp import ALLOW, KILL, NEWEST, program

CONFINEMENT = Path(__file__).parent.parent / "tools/sandbox/confinement.py"
MACHINES = ("x86_64", "aarch64")
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
KERNEL = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in MACHINES, reason="there is no filter for this machine"
)
BWRAP = shutil.which("bwrap")

#: Long enough for any machine; what takes so long hangs.
PATIENCE_S = 120.0

# ------------------------------------------------------------------------------------------- the filter, interpreted

PROGRAMS = {(machine, net): program(apart=net, machine=machine) for machine in MACHINES for net in (True, False)}
BOTH = pytest.mark.parametrize("machine", MACHINES)

WORDS = st.integers(0, 2**64 - 1)
ARGUMENTS = st.tuples(*[WORDS] * 6)
HIGH_HALVES = st.integers(0, 2**32 - 1).map(lambda half: half << 32)

EPERM, ENOSYS, EAFNOSUPPORT, EOPNOTSUPP = (
    0x50000 | number for number in (errno.EPERM, errno.ENOSYS, errno.EAFNOSUPPORT, errno.EOPNOTSUPP)
)
DONE = 0x50000  # refused with error 0: said to have been done

#: A few calls of each group, by their numbers on x86_64 and aarch64, that are refused whatever their arguments.
REFUSED = {
    **dict.fromkeys([(165, 40), (166, 39), (155, 41), (161, 51), (429, 429), (428, 428), (467, 467)], EPERM),
    **dict.fromkeys([(304, 265), (300, 262), (101, 117), (310, 270), (311, 271), (440, 440), (438, 438)], EPERM),
    **dict.fromkeys([(308, 268), (321, 280), (298, 241), (323, 282), (250, 219), (248, 217)], EPERM),
    **dict.fromkeys([(246, 104), (320, 294), (313, 273), (169, 142), (103, 116), (227, 112), (305, 266)], EPERM),
    **dict.fromkeys([(29, 194), (30, 196), (64, 190), (68, 186), (71, 187), (222, 107)], EPERM),
    **dict.fromkeys([(188, 5), (189, 6), (190, 7), (197, 14), (463, 463), (466, 466), (469, 469)], EOPNOTSUPP),
    **dict.fromkeys([(435, 435), (425, 425), (426, 426), (427, 427), (319, 279), (447, 447), (294, 26)], ENOSYS),
}
#: The same for code without namespaces of its own.
REFUSED_TOO = {
    (42, 203): EPERM,
    **dict.fromkeys([(268, 53), (452, 452), (91, 52), (260, 54), (280, 88)], DONE),
}
#: read, write, munmap, futex, execve, openat, kill, epoll_pwait, accept4, eventfd2; pipe2, getrandom, seccomp,
#: Landlock; getsockopt, timerfd_create, setitimer, getxattr, listxattr.
HONEST = [
    *[(0, 63), (1, 64), (11, 215), (202, 98), (59, 221), (257, 56), (62, 129), (281, 22), (288, 242), (290, 19)],
    *[(293, 59), (318, 278), (317, 277), (444, 444), (445, 445), (446, 446)],
    *[(55, 209), (283, 85), (38, 103), (191, 8), (194, 11)],
]


def verdict(machine: str, number: int, *arguments: int, network: bool = True, architecture: int | None = None) -> int:
    """What the kernel would make of a call: the program is run as linux/filter.h says."""
    code = list(struct.iter_unpack("<HBBI", PROGRAMS[machine, network]))
    arch = ARCHITECTURES[machine] if architecture is None else architecture
    data = struct.pack("<IIQ6Q", number, arch, 0x7F0000001000, *(*arguments, *[0] * 6)[:6])
    register, at = 0, 0
    while True:
        instruction, if_true, if_false, constant = code[at]
        at += 1
        if instruction == 0x06:
            return int(constant)
        if instruction == 0x20:
            assert constant % 4 == 0
            register = struct.unpack_from("<I", data, constant)[0]
        elif instruction == 0x54:
            register &= constant
        else:
            jumps = {
                0x15: register == constant,
                0x25: register > constant,
                0x35: register >= constant,
                0x45: register & constant,
            }
            at += if_true if jumps[instruction] else if_false


@BOTH
@given(architecture=st.integers(0, 2**32 - 1), number=st.integers(0, 2**32 - 1), network=st.booleans())
def test_a_call_of_another_architecture_kills(machine: str, architecture: int, number: int, network: bool) -> None:
    assume(architecture != ARCHITECTURES[machine])
    assert verdict(machine, number, network=network, architecture=architecture) == KILL


@pytest.mark.parametrize("architecture", [0x40000003, 0x40000028])
def test_so_do_the_32_bits_of_the_same_processor(architecture: int) -> None:
    for machine in MACHINES:
        assert verdict(machine, 1, architecture=architecture) == KILL


@given(number=st.integers(0x40000000, 2**32 - 1), arguments=ARGUMENTS, network=st.booleans())
def test_the_second_set_of_numbers_of_x86_64_kills(number: int, arguments: tuple[int, ...], network: bool) -> None:
    assert verdict("x86_64", number, *arguments, network=network) == KILL


@BOTH
@given(number=st.integers(NEWEST + 1, 0x3FFFFFFF), arguments=ARGUMENTS, network=st.booleans())
def test_a_call_newer_than_the_filter_is_missing(
    machine: str, number: int, arguments: tuple[int, ...], network: bool
) -> None:
    assert verdict(machine, number, *arguments, network=network) == ENOSYS


@BOTH
@given(call=st.sampled_from(sorted(REFUSED)), arguments=ARGUMENTS, network=st.booleans())
def test_what_is_refused_is_refused_whatever_its_arguments(
    machine: str, call: tuple[int, int], arguments: tuple[int, ...], network: bool
) -> None:
    assert verdict(machine, call[MACHINES.index(machine)], *arguments, network=network) == REFUSED[call]


@BOTH
@given(call=st.sampled_from(sorted(REFUSED_TOO)), arguments=ARGUMENTS)
def test_without_namespaces_more_is_refused(machine: str, call: tuple[int, int], arguments: tuple[int, ...]) -> None:
    number = call[MACHINES.index(machine)]
    assert verdict(machine, number, *arguments, network=False) == REFUSED_TOO[call]
    assert verdict(machine, number, *arguments) == ALLOW


@BOTH
@given(call=st.sampled_from(HONEST), arguments=ARGUMENTS, network=st.booleans())
def test_what_is_honest_is_let_through_whatever_its_arguments(
    machine: str, call: tuple[int, int], arguments: tuple[int, ...], network: bool
) -> None:
    assert verdict(machine, call[MACHINES.index(machine)], *arguments, network=network) == ALLOW


#: Every call that is refused, if only with some arguments, by its name.
NAMES = set(
    re.findall(
        r"\w+",
        """
mount umount2 pivot_root chroot move_mount open_tree open_tree_attr fsopen fsconfig fsmount fspick mount_setattr
name_to_handle_at open_by_handle_at fanotify_init ptrace process_vm_readv process_vm_writev process_madvise kcmp
pidfd_getfd setns unshare clone clone3 bpf perf_event_open userfaultfd keyctl add_key request_key
io_uring_setup io_uring_enter io_uring_register
create_module init_module finit_module delete_module query_module kexec_load kexec_file_load reboot swapon swapoff acct
quotactl quotactl_fd syslog settimeofday clock_settime adjtimex clock_adjtime iopl ioperm modify_ldt
memfd_create memfd_secret shmget shmat shmctl shmdt semget semop semctl semtimedop msgget msgsnd msgrcv msgctl
mmap setxattr lsetxattr fsetxattr setxattrat file_setattr removexattr lremovexattr fremovexattr removexattrat
timer_create socket socketpair
inotify_init inotify_init1
""",
    )
)
NAMES_TOO = set(
    re.findall(
        r"\w+",
        """
connect chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat utime utimes futimesat utimensat
prlimit64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler
setpriority ioprio_set
""",
    )
)
HEADERS = {
    "x86_64": next(Path("/usr/include").glob("**/asm/unistd_64.h"), None),
    "aarch64": next(Path("/usr/include").glob("asm-generic/unistd.h"), None),
}


@BOTH
@pytest.mark.parametrize("network", [True, False])
def test_these_and_no_others_are_refused(machine: str, network: bool) -> None:
    header = HEADERS[machine]
    if header is None:
        pytest.skip(f"the numbers of {machine} are not checked: the headers of the kernel (linux-libc-dev) are missing")
    found = re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)$", header.read_text(), re.MULTILINE)
    numbers = {name: int(number) for name, number in found}
    assert len(numbers) > 200
    # All bits set: another process, new namespaces, an unknown family; but a personality that is only asked for, and no
    # option or command that there is.
    refused = {
        name for name, number in numbers.items() if verdict(machine, number, *[2**64 - 1] * 6, network=network) != ALLOW
    }
    assert refused == (NAMES if network else NAMES | NAMES_TOO) & numbers.keys()


NEW_NAMESPACES = [0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000]


@BOTH
@given(flags=WORDS, rest=ARGUMENTS)
def test_clone_and_unshare_make_no_namespaces(machine: str, flags: int, rest: tuple[int, ...]) -> None:
    clone, unshare = ((56, 272), (220, 97))[MACHINES.index(machine)]
    asks = any(flags & one for one in NEW_NAMESPACES)
    assert verdict(machine, clone, flags, *rest) == (EPERM if asks else ALLOW)
    assert verdict(machine, clone, flags & ~sum(NEW_NAMESPACES), *rest) == ALLOW
    for one in (*NEW_NAMESPACES, 0x80):
        assert verdict(machine, clone, flags | one, *rest) == EPERM or one == 0x80
        assert verdict(machine, unshare, flags | one, *rest) == EPERM
    assert verdict(machine, unshare, flags & (0x200 | 0x400 | 0x40000 | 0xFFFFFFFF << 32), *rest) == ALLOW


@BOTH
@given(number=st.integers(0, 2**32 - 1), high=HIGH_HALVES, rest=ARGUMENTS)
def test_only_the_low_half_of_a_terminals_command_counts(
    machine: str, number: int, high: int, rest: tuple[int, ...]
) -> None:
    ioctl = (16, 29)[MACHINES.index(machine)]
    for command in (0x5412, 0x541C, 0x5423):
        assert verdict(machine, ioctl, rest[0], high | command, *rest) == EPERM
    assume(number not in (0x5412, 0x541C, 0x5423))
    assert verdict(machine, ioctl, rest[0], high | number, *rest) == ALLOW


@BOTH
@given(persona=st.integers(0, 2**32 - 1), high=HIGH_HALVES)
def test_a_personality_may_be_asked_for_and_be_linux(machine: str, persona: int, high: int) -> None:
    number = (135, 92)[MACHINES.index(machine)]
    assert verdict(machine, number, high) == verdict(machine, number, high | 0xFFFFFFFF) == ALLOW
    assume(persona not in (0, 0xFFFFFFFF))
    assert verdict(machine, number, high | persona) == EPERM


SHARED, PRIVATE, ANONYMOUS = 0x01, 0x02, 0x20


@BOTH
@given(flags=WORDS, file=WORDS, rest=ARGUMENTS, network=st.booleans())
def test_memory_is_shared_through_a_file_only(
    machine: str, flags: int, file: int, rest: tuple[int, ...], network: bool
) -> None:
    def asked(flags: int) -> int:
        return verdict(machine, (9, 222)[MACHINES.index(machine)], *rest[:3], flags, file, rest[5], network=network)

    # MAP_SHARED_VALIDATE is both of SHARED and PRIVATE.
    assert asked(flags | SHARED | ANONYMOUS) == EPERM
    assert asked(flags & ~ANONYMOUS | SHARED) == ALLOW
    assert asked(flags & ~SHARED | PRIVATE | ANONYMOUS) == ALLOW
    assert asked(flags) == (EPERM if flags & SHARED and flags & ANONYMOUS else ALLOW)


@BOTH
@given(
    level=st.integers(0, 2**32 - 1) | st.sampled_from([0, 1, 6]),
    option=st.integers(0, 2**32 - 1) | st.integers(0, 90),
    high=HIGH_HALVES,
    rest=ARGUMENTS,
    network=st.booleans(),
)
def test_the_buffers_of_sockets_are_not_set(
    machine: str, level: int, option: int, high: int, rest: tuple[int, ...], network: bool
) -> None:
    def asked(level: int, option: int) -> int:
        arguments = (rest[0], high | level, high | option, *rest[3:])
        return verdict(machine, (54, 208)[MACHINES.index(machine)], *arguments, network=network)

    # SO_SNDBUF, SO_RCVBUF, and both with FORCE.
    buffers = (7, 8, 32, 33)
    assert {asked(1, one) for one in buffers} == {EPERM}
    assert asked(level, option) == (EPERM if level == 1 and option in buffers else ALLOW)
    # SO_REUSEADDR, SO_RCVTIMEO and SO_SNDTIMEO; TCP_NODELAY, and a TCP_USER_TIMEOUT beside it.
    assert {asked(1, one) for one in (2, 20, 21)} | {asked(6, one) for one in (1, 18)} == {ALLOW}


@BOTH
@given(command=st.integers(0, 2**32 - 1) | st.integers(0, 20), high=HIGH_HALVES, rest=ARGUMENTS, network=st.booleans())
def test_a_file_that_is_ready_sends_no_signal_of_ones_choice(
    machine: str, command: int, high: int, rest: tuple[int, ...], network: bool
) -> None:
    def asked(command: int) -> int:
        number = (72, 25)[MACHINES.index(machine)]
        return verdict(machine, number, rest[0], high | command, *rest[2:], network=network)

    # F_SETSIG; F_DUPFD, F_SETFD, F_GETFL, F_SETFL, F_SETLK, F_DUPFD_CLOEXEC.
    assert asked(10) == EPERM
    assert {asked(one) for one in (0, 2, 3, 4, 6, 1030)} == {ALLOW}
    assert asked(command) == (EPERM if command == 10 else ALLOW)


@BOTH
@given(family=st.integers(0, 2**32 - 1) | st.integers(0, 50), kind=WORDS, protocol=WORDS, high=HIGH_HALVES)
def test_sockets_are_of_one_family(machine: str, family: int, kind: int, protocol: int, high: int) -> None:
    for number in ((41, 53), (198, 199))[MACHINES.index(machine)]:
        expected = ALLOW if family == 1 else EAFNOSUPPORT
        assert verdict(machine, number, high | family, kind, protocol) == expected
        # A datagram socket reaches others by a mere name.
        expected = EAFNOSUPPORT if family != 1 else EPERM if kind & 0xF in (2, 3) else ALLOW
        assert verdict(machine, number, high | family, kind, protocol, network=False) == expected


@BOTH
@given(process=st.integers(0, 2**32 - 1), high=HIGH_HALVES, rest=ARGUMENTS)
def test_without_namespaces_a_process_sets_limits_and_priorities_of_itself_only(
    machine: str, process: int, high: int, rest: tuple[int, ...]
) -> None:
    column = MACHINES.index(machine)
    expected = ALLOW if process == 0 else EPERM
    for number in ((302, 261), (203, 122), (314, 274), (142, 118)):
        assert verdict(machine, number[column], high | process, *rest, network=False) == expected
    # libzmq aborts if this fails for the threads that it starts.
    pretended = ALLOW if process == 0 else 0x50000
    assert verdict(machine, (144, 119)[column], high | process, *rest, network=False) == pretended
    for number, one_process in (((141, 140), 0), ((251, 30), 1)):
        assert verdict(machine, number[column], high | one_process, process, *rest, network=False) == expected
        assert verdict(machine, number[column], high | 2, process, *rest, network=False) == EPERM


@pytest.mark.parametrize("machine", ["armv7l", "riscv64", "i686", ""])
def test_for_another_machine_there_is_none(machine: str) -> None:
    with pytest.raises(ValueError, match="there is one for x86_64 and aarch64"):
        program(apart=True, machine=machine)


# ------------------------------------------------------------------------------------------- the filter, in the kernel

#: What a process does first: it puts itself under the filter, as kernels do.
START = """
import ctypes, importlib.util, json, os, sys
if sys.argv[1] != "-":
    spec = importlib.util.spec_from_file_location("confinement", sys.argv[1])
    confinement = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(confinement)
    confinement.filter_system_calls(bytes.fromhex(sys.argv[2]))
libc = ctypes.CDLL(None, use_errno=True)
def answer(name, *arguments):
    ctypes.set_errno(0)
    result = getattr(libc, name)(*map(ctypes.c_long, arguments))
    return ctypes.get_errno() if result == -1 else -result
def error(act, *arguments):
    try:
        act(*arguments)
    except OSError as wrong:
        return wrong.errno
    return 0
"""


def run(
    body: str, *, network: bool = True, before: tuple[str, ...] = (), **more: Any
) -> subprocess.CompletedProcess[str]:
    """Runs `body` under the filter; with a command `before` it, that one has to load the filter."""
    told = ["-", ""] if before else [str(CONFINEMENT), program(apart=network).hex()]
    return subprocess.run(
        [*before, sys.executable, "-I", "-c", START + body, *told],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        # A thread for each processor would be of no use, and there may be few to have.
        env={"OPENBLAS_NUM_THREADS": "1", "PATH": os.defpath},
        **more,
    )


def told(body: str, **more: Any) -> Any:
    """What the last line that `body` prints says, in JSON."""
    done = run(body, **more)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


#: With arguments that do no harm if they are not refused.
CALLS = """
wrong = ctypes.create_string_buffer(bytes([255] * 512))
at = ctypes.addressof(wrong)
before_1970 = (ctypes.c_long * 2)(-1, 0)
then = ctypes.addressof(before_1970)
calls = [("mount", 0, 0, 0, 0, 0), ("umount2", 0, 0), ("pivot_root", 0, 0), ("chroot", 0), ("ptrace", 0, 0, 0, 0),
    ("process_vm_readv", -1, 0, 0, 0, 0, 0), ("process_vm_writev", -1, 0, 0, 0, 0, 0), ("setns", -1, 0),
    ("name_to_handle_at", -1, 0, 0, 0, 0), ("open_by_handle_at", -1, 0, 0), ("fanotify_init", -1, 0),
    ("unshare", 0x10000000), ("unshare", 0x20000), ("unshare", 0x40000000), ("personality", 0x0040000),
    ("swapon", 0, 0), ("swapoff", 0), ("reboot", 0), ("quotactl", 0, 0, 0, 0), ("klogctl", 10, 0, 0), ("acct", 1),
    ("settimeofday", then, 0), ("clock_settime", 0, then), ("adjtimex", at), ("shmget", 1, 4096, 0),
    ("shmat", -1, 0, 0), ("shmctl", -1, 0, 0), ("semget", 1, 1, 0), ("msgget", 1, 0)]
calls += [("syscall", number, 0, -1, 0, 0, 0) for number in (428, 429, 430, 431, 432, 433, 438, 440, 442)]
answers = {f"{name}{arguments}": answer(name, *arguments) for name, *arguments in calls}
missing = [answer("syscall", number, 0, 0, 0) for number in (425, 426, 427, 435, 447, 470, 1000)]
missing += [answer("memfd_create", at, -1)]
"""


@KERNEL
@pytest.mark.parametrize("network", [True, False])
def test_the_kernel_refuses_them(network: bool) -> None:
    answers, missing = told(CALLS + "print(json.dumps([answers, missing]))", network=network)
    assert set(answers.values()) == {errno.EPERM}, answers
    assert set(missing) == {errno.ENOSYS}, missing


@KERNEL
def test_nothing_is_typed_into_a_terminal() -> None:
    body = """
first, second = os.openpty()
print(json.dumps([answer("ioctl", second, high | command, 0) for high in (0, 1 << 40) for command in (0x5412, 0x541C)]))
"""
    assert told(body) == [errno.EPERM] * 4


@KERNEL
@pytest.mark.parametrize("network", [True, False])
def test_the_kernel_keeps_no_memory_that_nobody_is_seen_to_have(network: bool, tmp_path: Path) -> None:
    body = f"""
import fcntl, mmap, signal, socket
one = socket.socket(socket.AF_UNIX)
file = open({str(tmp_path / "file")!r}, "w+b")
file.truncate(4096)
anonymous, timer = mmap.MAP_ANONYMOUS, ctypes.create_string_buffer(8)
refused = [error(mmap.mmap, -1, 4096, mmap.MAP_SHARED | anonymous),
    *(error(one.setsockopt, socket.SOL_SOCKET, option, 1 << 20) for option in (7, 8, 32, 33)),
    error(fcntl.fcntl, one, fcntl.F_SETSIG, signal.SIGCONT), answer("timer_create", 1, 0, ctypes.addressof(timer))]
unknown = [error(os.setxattr, file.name, "user.x", b"x"), error(os.setxattr, file.fileno(), "user.x", b"x"),
    error(os.removexattr, file.name, "user.x")]
allowed = [error(mmap.mmap, -1, 4096, mmap.MAP_PRIVATE | anonymous), error(mmap.mmap, file.fileno(), 4096),
    error(one.setsockopt, socket.SOL_SOCKET, socket.SO_REUSEADDR, 1), error(one.settimeout, 1),
    error(fcntl.fcntl, one, fcntl.F_GETFL), error(fcntl.lockf, file, fcntl.LOCK_EX),
    error(signal.setitimer, signal.ITIMER_REAL, 100), error(os.listxattr, file.name)]
print(json.dumps([refused, unknown, allowed]))
"""
    assert told(body, network=network) == [[errno.EPERM] * 7, [errno.EOPNOTSUPP] * 3, [0] * 8]


@KERNEL
def test_the_kernel_makes_sockets_of_one_family() -> None:
    body = """
import socket
print(json.dumps({name: error(socket.socket, *arguments) for name, *arguments in [
    ("unix", 1, 1), ("unix datagram", 1, 2), ("inet", 2, 1), ("inet6", 10, 1), ("route", 16, 3, 0), ("audit", 16, 3, 9),
    ("alg", 38, 5), ("packet", 17, 3), ("vsock", 40, 1), ("bluetooth", 31, 3), ("can", 29, 3), ("xdp", 44, 3)]}))
"""
    none = dict.fromkeys(
        ("inet", "inet6", "route", "audit", "alg", "packet", "vsock", "bluetooth", "can", "xdp"), errno.EAFNOSUPPORT
    )
    assert told(body) == {"unix": 0, "unix datagram": 0} | none
    assert told(body, network=False) == {"unix": 0, "unix datagram": errno.EPERM} | none


@KERNEL
def test_without_namespaces_neither_sockets_nor_other_processes_nor_files_are_reached(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("x")
    (tmp_path / "theirs").chmod(0o640)
    body = f"""
import resource, socket, shutil
os.chdir({str(tmp_path)!r})
listening, connecting = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
listening.bind("socket")
listening.listen()
def change(name):
    with open(name) as opened:
        os.chmod(name, 0o777), os.chown(name, 1, 1), os.utime(name, (1, 1))
        os.fchmod(opened.fileno(), 0o777), os.fchown(opened.fileno(), 1, 1), os.utime(opened.fileno(), (1, 1))
print(json.dumps([
    error(connecting.connect, "socket"), error(resource.prlimit, os.getppid(), resource.RLIMIT_NOFILE, (64, 64)),
    error(os.sched_setaffinity, os.getppid(), {{0}}), error(os.setpriority, os.PRIO_PROCESS, os.getppid(), 19),
    error(os.setpriority, os.PRIO_USER, 0, 19), error(os.setxattr, "theirs", "user.x", b"x"), answer("inotify_init"),
    change("theirs"), error(os.sched_setaffinity, 0, os.sched_getaffinity(0)), error(os.nice, 1),
    error(shutil.copy2, "theirs", "mine")]))
"""
    before = (tmp_path / "theirs").stat()
    refused = [errno.EPERM] * 5 + [errno.EOPNOTSUPP, errno.ENOSYS]
    assert told(body, network=False) == [*refused, None, 0, 0, 0]
    after = (tmp_path / "theirs").stat()
    assert (after.st_mode, after.st_uid, after.st_mtime_ns) == (before.st_mode, before.st_uid, before.st_mtime_ns)
    assert (tmp_path / "mine").read_text() == "x"


@KERNEL
@pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86_64 has a second set of numbers")
def test_the_kernel_kills_for_the_second_set_of_numbers() -> None:
    assert run("libc.syscall(ctypes.c_long(0x40000000 | 39))").returncode == -signal.SIGSYS


HONEST_CODE = {
    "tables": "import numpy, pandas; print(int(pandas.DataFrame({'x': numpy.arange(4)}).x.sum()))",
    "linear algebra": "import numpy; print(int(numpy.linalg.det(numpy.eye(300)) * 6))",
    "threads": """
import concurrent.futures
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    print(sum(pool.map(int, "123")))""",
    "processes": "import subprocess; print(subprocess.run(['echo', '6'], capture_output=True).stdout.decode())",
    "a shell": "print(os.popen('echo 12 | wc -c | xargs expr 3 +').read())",
    "a pool of processes": """
import multiprocessing
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(sum(pool.map(int, "123")))""",
    "shared memory": """
from multiprocessing import shared_memory
shared = shared_memory.SharedMemory(create=True, size=6)
print(len(bytes(shared.buf[:6])))
shared.close(), shared.unlink()""",
    "temporary files": """
import tempfile
with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryFile() as file:
    print(file.write(b"123456"))""",
    "copies of files": """
import shutil, tempfile
with tempfile.TemporaryDirectory() as directory:
    open(directory + "/a", "w").write("123456")
    print(os.stat(shutil.copy2(directory + "/a", directory + "/b")).st_size)""",
    "a pair of sockets": "import socket; a, b = socket.socketpair(); a.send(b'6'); print(b.recv(1).decode())",
    "asyncio": """
import asyncio
async def main():
    process = await asyncio.create_subprocess_exec("echo", "6", stdout=-1)
    return (await process.communicate())[0].decode()
print(asyncio.run(main()))""",
    "C calling Python": "print(ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(lambda value: value + 1)(5))",
    "a database": "import sqlite3; print(sqlite3.connect(':memory:').execute('select 6').fetchone()[0])",
    "randomness": "import secrets; print(len(secrets.token_bytes(6)))",
}


@KERNEL
@pytest.mark.parametrize("network", [True, False])
@pytest.mark.parametrize("what", HONEST_CODE)
def test_honest_code_works(what: str, network: bool) -> None:
    done = run(HONEST_CODE[what], network=network)
    assert (done.returncode, done.stdout.strip()) == (0, "6"), done.stderr


@KERNEL
def test_a_socket_with_a_path_connects_processes(tmp_path: Path) -> None:
    body = f"""
import socket
with socket.socket(socket.AF_UNIX) as listening:
    listening.bind({str(tmp_path / "socket")!r})
    listening.listen()
    if not os.fork():
        with socket.socket(socket.AF_UNIX) as other:
            other.connect({str(tmp_path / "socket")!r})
            other.send(b"6")
        os._exit(0)
    print(listening.accept()[0].recv(1).decode())
"""
    assert told(body) == 6


# ------------------------------------------------------------------------------------------- the filter, in bubblewrap


@KERNEL
@pytest.mark.skipif(BWRAP is None, reason="bubblewrap is not installed: the filter is not tried through it")
def test_bubblewrap_takes_it() -> None:
    assert BWRAP
    reading, writing = os.pipe()
    try:
        # 2 kB fit into a pipe.
        with os.fdopen(writing, "wb") as told_to:
            told_to.write(program(apart=True))
        space = ("--unshare-all", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc")
        before = (BWRAP, *space, "--die-with-parent", "--seccomp", str(reading), "--")
        body = """
import re
answers |= {"state": re.search(r"Seccomp:\\t(\\d)", open("/proc/self/status").read())[1]}
print(json.dumps([answers, missing]))
"""
        done = run(HONEST_CODE["a pool of processes"] + CALLS + body, before=before, pass_fds=(reading,))
    finally:
        os.close(reading)
    if "namespace" in done.stderr:
        pytest.skip(f"namespaces are missing here, the filter is not tried through bubblewrap: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()
    answers, missing = json.loads(last)
    assert first == "6"
    assert answers.pop("state") == "2"
    assert set(answers.values()) == {errno.EPERM}, answers
    assert set(missing) == {errno.ENOSYS}, missing
