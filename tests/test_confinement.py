"""Processes that confine themselves, and then try what they can: each test asks one from inside."""

import errno
import json
import os
import platform
import select
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tools.sandbox.seccomp import program

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"), reason="confinement is Linux's"
)

CONFINEMENT = Path(__file__).parent.parent / "tools/sandbox/confinement.py"

#: Long enough for any machine; what takes so long hangs.
PATIENCE_S = 60.0

START = """
import importlib.util, json, os, sys
spec = importlib.util.spec_from_file_location("confinement", sys.argv[1])
confinement = importlib.util.module_from_spec(spec)
spec.loader.exec_module(confinement)
told = json.loads(sys.argv[2])
def error(act, *arguments):
    try:
        act(*arguments)
    except OSError as wrong:
        return wrong.errno
    except Exception as wrong:
        return type(wrong).__name__
    return 0
"""


def command(body: str, **told: Any) -> list[str]:
    """A process that runs `body` with `told` and `confinement`."""
    return [sys.executable, "-I", "-c", START + body, str(CONFINEMENT), json.dumps(told)]


def answer(body: str, **told: Any) -> Any:
    """What `body` prints, in JSON."""
    done = subprocess.run(command(body, **told), capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# -------------------------------------------------------------------------------------------------------------- limits

LIMIT = "confinement.limit(memory_bytes=256 << 20, processes=20, file_bytes=1 << 20, open_files=32)\n"


def test_the_limits_cannot_be_raised_again() -> None:
    body = """
import resource
names = ["DATA", "AS", "NPROC", "FSIZE", "NOFILE", "CORE", "MSGQUEUE", "MEMLOCK"]
print(json.dumps({name: resource.getrlimit(getattr(resource, "RLIMIT_" + name)) for name in names}))
"""
    limits = answer(LIMIT + body)
    assert all(soft == hard for soft, hard in limits.values())
    assert {name: soft for name, (soft, _) in limits.items()} == {
        **{"DATA": 256 << 20, "AS": 1 << 30, "NPROC": 20, "FSIZE": 1 << 20, "NOFILE": 32, "CORE": 0, "MSGQUEUE": 0},
        "MEMLOCK": 64 << 10,
    }


def test_a_limit_that_is_narrower_already_stays() -> None:
    body = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (20, 30))
if os.geteuid() == 0:
    os.setuid(10_000 + os.getpid() % 50_000)
confinement.limit(memory_bytes=256 << 20, processes=20, file_bytes=1 << 20, open_files=32)
print(json.dumps(resource.getrlimit(resource.RLIMIT_NOFILE)))
"""
    assert answer(body) == [30, 30]


def test_memory_files_and_their_length_are_bounded(tmp_path: Path) -> None:
    body = """
import mmap
few, much = bytearray(64 << 20), error(bytearray, 300 << 20)
address_space = error(mmap.mmap, -1, 2 << 30, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
with open(told["file"], "wb", buffering=0) as file:
    long = error(lambda: [file.write(bytes(1 << 19)) for _ in range(3)])
opened = []
many = error(lambda: [opened.append(os.dup(1)) for _ in range(40)])
print(json.dumps([much, address_space, long, many, len(opened)]))
"""
    found = answer(LIMIT + body, file=str(tmp_path / "long"))
    assert found[:4] == ["MemoryError", errno.ENOMEM, errno.EFBIG, errno.EMFILE]
    assert 20 < found[4] < 32
    assert (tmp_path / "long").stat().st_size == 1 << 20


def test_threads_and_processes_are_bounded() -> None:
    # A user of its own, if it may have one: root is not bounded, and other users have processes already.
    body = """
import resource, threading
if os.geteuid() == 0:
    os.setuid(10_000 + os.getpid() % 50_000)
confinement.limit(memory_bytes=1 << 30, processes=20, file_bytes=1 << 20, open_files=32)
end, threads = threading.Event(), []
def start():
    for _ in range(40):
        thread = threading.Thread(target=end.wait)
        thread.start()
        threads.append(thread)
found = error(start), error(os.fork)
end.set()
print(json.dumps([found, len(threads)]))
"""
    refused, threads = answer(body)
    assert refused == ["RuntimeError", errno.EAGAIN]
    assert threads == 19 if os.geteuid() == 0 else threads < 20


# --------------------------------------------------------------------------------------------------- system call filter


def test_the_filter_holds_for_threads_that_were_there_before() -> None:
    body = """
import threading
filtered, found = threading.Event(), []
def try_it():
    filtered.wait()
    found.append(error(os.memfd_create, "x"))
thread = threading.Thread(target=try_it)
thread.start()
confinement.filter_system_calls(bytes.fromhex(told["program"]))
filtered.set()
thread.join()
print(json.dumps([*found, error(os.memfd_create, "x")]))
"""
    assert answer(body, program=program(apart=True).hex()) == [errno.ENOSYS] * 2


def test_two_filters_hold_both() -> None:
    body = """
import socket
confinement.filter_system_calls(bytes.fromhex(told["first"]))
confinement.filter_system_calls(bytes.fromhex(told["second"]))
print(json.dumps([error(socket.socket, socket.AF_INET), error(os.memfd_create, "x")]))
"""
    programs = {"first": program(apart=False).hex(), "second": program(apart=True).hex()}
    assert answer(body, **programs) == [errno.EAFNOSUPPORT, errno.ENOSYS]


def test_what_the_kernel_does_not_take_is_an_error() -> None:
    body = "print(json.dumps([error(confinement.filter_system_calls, bytes.fromhex(code)) for code in told['codes']]))"
    # Nothing, half an instruction, no return at the end, an instruction that there is not.
    codes = ["", "0600", "2000000000000000", "ffff000000000000"]
    assert answer(body, codes=codes) == [errno.EINVAL] * 4


def test_a_thread_with_a_filter_of_its_own_is_an_error() -> None:
    body = """
import ctypes, struct, threading
done, end = threading.Event(), threading.Event()
def alone():
    # As filter_system_calls does, for one thread.
    code = ctypes.create_string_buffer(bytes.fromhex(told["program"]))
    ctypes.CDLL(None).prctl(38, *map(ctypes.c_ulong, (1, 0, 0, 0)))
    filter = ctypes.create_string_buffer(struct.pack("@HP", len(code) // 8, ctypes.addressof(code)))
    assert ctypes.CDLL(None).prctl(22, *map(ctypes.c_ulong, (2, ctypes.addressof(filter), 0, 0))) == 0
    done.set()
    end.wait()
thread = threading.Thread(target=alone)
thread.start()
done.wait()
found = error(confinement.filter_system_calls, bytes.fromhex(told["program"]))
end.set()
print(json.dumps(found))
"""
    assert answer(body, program=program(apart=True).hex()) == errno.EBUSY


STATE = """
import ctypes
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status"))
print(json.dumps([ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), status["NoNewPrivs"].strip(), status["Seccomp"].strip()]))
"""


def test_a_confined_process_gains_no_privileges_and_can_be_looked_at_from_outside() -> None:
    confine = """
confinement.limit(memory_bytes=1 << 30, processes=1000, file_bytes=1 << 20, open_files=32)
confinement.die_with_parent(os.getppid())
confinement.restrict(["/"], [])
confinement.filter_system_calls(bytes.fromhex(told["program"]))
"""
    # The first is PR_GET_DUMPABLE.
    assert answer(STATE, program="") == [1, "0", "0"]
    assert answer(_needs_landlock(confine) + STATE, program=program(apart=True).hex()) == [1, "1", "2"]


@pytest.mark.parametrize(
    "confine", ["confinement.restrict(['/'], [])", "confinement.filter_system_calls(bytes.fromhex(told['program']))"]
)
def test_either_alone_keeps_root_from_gaining_privileges_too(confine: str) -> None:
    dumpable, no_new_privileges, _ = answer(_needs_landlock(confine) + "\n" + STATE, program=program(apart=True).hex())
    assert (dumpable, no_new_privileges) == (1, "1")


# ------------------------------------------------------------------------------------------------------------- Landlock


def _needs_landlock(body: str) -> str:
    version = answer("print(confinement.landlock_version())")
    if version < 6:
        pytest.skip(f"this kernel's Landlock is of version {version}, and 6 is needed: it is not tested")
    return body


RESTRICT = """
import resource, shutil, signal, socket, subprocess
confinement.restrict(told.get("readable", []) + ["/usr", "/lib", "/bin", sys.prefix, sys.base_prefix],
    told.get("writable", []) + ["/dev/null"])
"""


def restricted(body: str, **told: Any) -> Any:
    return answer(_needs_landlock(RESTRICT + body), **told)


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    """A directory that is to be read, one for anything, a file of each kind, and one that is none of these."""
    made = {name: tmp_path / name for name in ("library", "work", "secret", "font", "device")}
    for name in ("library", "work", "secret"):
        made[name].mkdir()
        (made[name] / "file").write_text(name)
        (made[name] / "program").write_text("#!/bin/sh\necho ran\n")
        (made[name] / "program").chmod(0o755)
    (made["work"] / "link").symlink_to(made["secret"] / "file")
    for name in ("font", "device"):
        made[name].write_text(name)
    return {name: str(path) for name, path in made.items()}


def test_of_all_files_only_those_named_are_reached(places: dict[str, str]) -> None:
    body = """
def try_all(place):
    return [error(open, place + "/file"), error(os.listdir, place), error(open, place + "/file", "r+"),
        error(open, place + "/new", "w"), error(os.mkdir, place + "/directory"), error(os.truncate, place + "/file", 1),
        error(os.unlink, place + "/program.old"), error(os.symlink, "x", place + "/symlink"),
        error(os.mkfifo, place + "/fifo"), error(subprocess.check_output, [place + "/program"])]
print(json.dumps({place: try_all(told[place]) for place in ("library", "work", "secret")}))
"""
    for place in ("library", "work", "secret"):
        Path(places[place], "program.old").touch()
    found = restricted(body, readable=[places["library"]], writable=[places["work"]], **places)
    assert found["work"] == [0] * 10
    assert found["library"] == [0, 0, *[errno.EACCES] * 7, 0]
    assert found["secret"] == [errno.EACCES] * 10
    assert Path(places["secret"], "file").read_text() == "secret"


def test_no_way_leads_around(places: dict[str, str]) -> None:
    body = """
os.chdir(told["work"])
print(json.dumps([error(open, path) for path in ("link", "../secret/file", "/proc/self/root" + told["secret"] + "/file",
    "/etc/passwd", "/proc/self/environ", "/proc/" + str(os.getppid()) + "/environ", told["font"])]
    + [error(os.rename, told["secret"] + "/file", "taken"), error(os.link, told["secret"] + "/file", "linked"),
    error(os.rename, "file", told["secret"] + "/given"),
    subprocess.run(["cat", "../secret/file"], stderr=subprocess.DEVNULL).returncode]))
"""
    found = restricted(body, writable=[places["work"]], **places)
    # A link would be into another directory, which Landlock tells as if it were another disk.
    assert found == [*[errno.EACCES] * 8, errno.EXDEV, errno.EACCES, 1]


def test_single_files_are_reached_too(places: dict[str, str]) -> None:
    body = """
print(json.dumps([open(told["font"]).read(), error(open, told["font"], "w"), error(open, told["device"], "r+"),
    error(os.listdir, told["work"])]))
"""
    found = restricted(body, readable=[places["font"]], writable=[places["device"]], **places)
    assert found == ["font", errno.EACCES, 0, errno.EACCES]


def test_there_is_no_tcp() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        body = """
print(json.dumps([error(socket.create_connection, ("127.0.0.1", told["port"])),
    error(socket.socket().bind, ("127.0.0.1", 0))]))
"""
        assert restricted(body, port=server.getsockname()[1]) == [errno.EACCES] * 2


def test_others_are_neither_signalled_nor_reached_by_name() -> None:
    name = f"florette-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(b"\0" + name.encode())
        server.listen()
        body = """
own, other = socket.socket(socket.AF_UNIX), subprocess.Popen(["cat"], stdin=subprocess.PIPE)
own.bind(b"\\0" + told["name"].encode() + b"-own")
own.listen()
def connect(name):
    with socket.socket(socket.AF_UNIX) as connecting:
        connecting.connect(name)
print(json.dumps([error(os.kill, os.getppid(), 0), error(connect, b"\\0" + told["name"].encode()),
    error(connect, own.getsockname()), error(os.kill, other.pid, signal.SIGKILL)]))
"""
        assert restricted(body, name=name) == [errno.EPERM, errno.EPERM, 0, 0]


def test_a_path_that_is_missing_is_an_error_and_nothing_is_left_open(tmp_path: Path) -> None:
    body = """
before = len(os.listdir("/proc/self/fd"))
missing = error(confinement.restrict, ["/usr"], [told["missing"]])
print(json.dumps([missing, len(os.listdir("/proc/self/fd")) - before, error(open, "/proc/self/status")]))
"""
    assert answer(_needs_landlock(body), missing=str(tmp_path / "missing")) == [errno.ENOENT, 0, 0]


def test_with_other_threads_landlock_is_refused() -> None:
    body = """
import threading
end = threading.Event()
thread = threading.Thread(target=end.wait)
thread.start()
found = error(confinement.restrict, ["/"], [])
end.set()
print(json.dumps([found, error(open, "/proc/self/status", "r")]))
"""
    assert answer(_needs_landlock(body)) == [errno.EBUSY, 0]


def test_without_landlock_its_version_is_0_and_it_is_refused() -> None:
    # ld nr; if it is landlock_create_ruleset: ENOSYS; else: allowed. So does a kernel without it answer.
    without = b"".join(
        struct.pack("<HBBI", *instruction)
        for instruction in [
            (0x20, 0, 0, 0),
            (0x15, 0, 1, 444),
            (6, 0, 0, 0x50000 | errno.ENOSYS),
            (6, 0, 0, 0x7FFF0000),
        ]
    )
    body = """
confinement.filter_system_calls(bytes.fromhex(told["program"]))
try:
    confinement.restrict(["/"], [])
except OSError as wrong:
    print(json.dumps([confinement.landlock_version(), wrong.errno, wrong.strerror]))
"""
    assert answer(body, program=without.hex()) == [
        *(0, errno.ENOSYS),
        "this kernel has no Landlock: version 6 (Linux 6.12) is needed",
    ]


# --------------------------------------------------------------------------------------------------------------- parent

CHILD = """
import subprocess
child = subprocess.Popen([sys.executable, "-I", "-c", told["code"], *sys.argv[1:]])
child.wait()
"""


def test_a_process_ends_with_its_parent() -> None:
    code = START + "confinement.die_with_parent(os.getppid())\nprint('ready', flush=True)\nsys.stdin.read()"
    with subprocess.Popen(command(CHILD, code=code), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdin and parent.stdout
        assert parent.stdout.readline() == b"ready\n"
        parent.kill()
        # The other end is closed when the child has gone, too, which nothing else ends: its stdin stays open.
        assert select.select([parent.stdout], [], [], PATIENCE_S)[0]
        assert parent.stdout.read() == b""
        assert parent.wait() == -signal.SIGKILL


def test_a_process_whose_parent_has_gone_ends_at_once() -> None:
    body = "confinement.die_with_parent(told['parent'])\nprint('alive')"
    for parent, expected in ((os.getpid(), (0, "alive\n")), (os.getppid(), (1, ""))):
        done = subprocess.run(command(body, parent=parent), capture_output=True, text=True, timeout=PATIENCE_S)
        assert (done.returncode, done.stdout) == expected
