"""The command line of bubblewrap: what a program in the sandbox sees, and what it does not.

Nothing of the machine is there but what is named; no network but a loopback of its own, no other process, no
capability. All that can be written to is memory of a fixed size. Source: bubblewrap 0.8's manual, and our measurements
where an order or a number has a reason.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

#: Where the program works.
WORKDIR = "/mnt/data"

#: For sockets and the like, which are to be reached from outside.
RUN_DIR = "/run"

#: For temporary files.
TMP_DIR = "/tmp"  # noqa: S108 - inside the sandbox

#: For what processes share: multiprocessing's semaphores.
SHM_DIR = "/dev/shm"  # noqa: S108 - inside the sandbox

#: All that can be written to.
WRITABLE = (WORKDIR, RUN_DIR, TMP_DIR, SHM_DIR)

#: Who the program is inside; outside it is whoever started the sandbox.
USER_ID = 1000

#: Room below /tmp, /dev/shm and /run: for temporary files, for what is shared, and for sockets.
_TMP_BYTES = 64 << 20
_SHM_BYTES = 64 << 20
_RUN_BYTES = 1 << 20

#: The system's directories that are links into /usr on all current distributions.
_LINKED = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")

#: Of /etc: where libraries and fonts are, what time it is, and what links of /usr lead to.
_ETC = ("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/fonts", "/etc/localtime", "/etc/alternatives", "/etc/ssl/certs")

#: What libraries read of /proc; the real one cannot be mounted in some containers.
_PROC = ("cpuinfo", "meminfo", "stat", "filesystems")


@dataclass(frozen=True, slots=True)
class View:
    """What a sandbox shows of the machine.

    `readable` are the paths beside the system's own, each with where it lies outside; `disk_bytes` is the room in the
    working directory. `real_proc`: /proc is mounted anew; else it is a bare imitation.
    """

    readable: Mapping[str, str]
    disk_bytes: int
    environment: Mapping[str, str]
    real_proc: bool = True


@dataclass(frozen=True, slots=True)
class Descriptors:
    """Open files that bubblewrap itself uses.

    It reads the filter of system calls, and what is to be found at a path inside, and writes the ids of its processes.
    """

    seccomp: int
    info: int
    files: Mapping[str, int]


def arguments(view: View, descriptors: Descriptors, command: Sequence[str]) -> list[str]:
    """Bubblewrap's arguments, without its own name."""
    return [
        *("--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
        *("--uid", str(USER_ID), "--gid", str(USER_ID), "--cap-drop", "ALL"),
        # Without a session of its own it could push keystrokes into our terminal, or signal our process group.
        *("--die-with-parent", "--new-session"),
        # Before all that may lie below it.
        *_tmpfs(TMP_DIR, _TMP_BYTES),
        *_tmpfs(RUN_DIR, _RUN_BYTES),
        *_system(),
        *(word for path, outside in view.readable.items() for word in ("--ro-bind", outside, path)),
        *(["--proc", "/proc"] if view.real_proc else _bare_proc(command[0])),
        # The device of zeros, shared, is memory that no limit counts.
        *("--dev", "/dev", "--dev-bind", "/dev/null", "/dev/zero"),
        *_tmpfs(SHM_DIR, _SHM_BYTES),
        *_tmpfs(WORKDIR, view.disk_bytes),
        *(word for path, number in descriptors.files.items() for word in ("--ro-bind-data", str(number), path)),
        # Both are tmpfs, of half the machine's memory: last, as nothing can be mounted behind it.
        *("--remount-ro", "/dev", "--remount-ro", "/"),
        *("--chdir", WORKDIR, "--clearenv"),
        *("--setenv", "HOME", WORKDIR, "--setenv", "TMPDIR", TMP_DIR),
        *(word for name, value in view.environment.items() for word in ("--setenv", name, value)),
        *("--seccomp", str(descriptors.seccomp), "--info-fd", str(descriptors.info), "--"),
        *command,
    ]


def _tmpfs(path: str, size_bytes: int) -> tuple[str, ...]:
    return ("--size", str(size_bytes), "--tmpfs", path)


def _system() -> list[str]:
    words = ["--ro-bind", "/usr", "/usr"]
    for path in map(Path, _LINKED):
        if path.is_symlink():
            words += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            words += ["--ro-bind", str(path), str(path)]
    for name in _ETC:
        words += ["--ro-bind-try", name, name]
    return words


def _bare_proc(program: str) -> list[str]:
    # Not the machine's own, which would show the processes outside, with their environments. Some builds of Python find
    # their library by where /proc says that they are.
    words = ["--dir", "/proc/self", "--symlink", str(Path(program).resolve()), "/proc/self/exe"]
    for name in _PROC:
        words += ["--ro-bind-try", f"/proc/{name}", f"/proc/{name}"]
    return words
