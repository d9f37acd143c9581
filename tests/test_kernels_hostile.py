"""The hostile battery: code that looks for secrets, files, networks, processes and privileges, and finds none.

All of it runs in real sandboxes: of bubblewrap, and, where the same is promised of it, of Landlock. That bombs cost
nobody but their own kernel is in `test_kernels_hostile_bombs.py`; what a kernel says and leaves behind, in
`test_kernels_hostile_talk.py`.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import tools
from besieging import Siege, besieged, told

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="NOT TESTED: sandboxes are Linux's")

PROJECT = Path(tools.__file__).parents[1]

#: What there is not; Landlock denies what it hides.
HIDDEN = {"ENOENT", "EACCES"}

#: What each attempt may use. `attempt` says how it ended: the name of the error, or what it got.
TOOLS = """
import ctypes, errno, os, signal, socket, struct, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
def attempt(act, *arguments):
    try:
        got = act(*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno, repr(error))
    return f"got {got!r}"
def call(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *[a if isinstance(a, bytes) else ctypes.c_long(a) for a in arguments])
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result
"""


@pytest.fixture(scope="module", params=["bwrap", "landlock"])
async def siege(request: pytest.FixtureRequest) -> AsyncIterator[Siege]:
    async with besieged(request.param) as siege:
        await siege.said(TOOLS)
        yield siege
        await siege.goes_on()


@pytest.fixture
def secret(tmp_path: Path, siege: Siege) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(siege.canary)
    # Everybody may read it: what hides it is the sandbox alone.
    for directory in (path, *path.parents):
        if directory.stat().st_uid == os.getuid() and directory != Path("/"):
            directory.chmod(directory.stat().st_mode | 0o555)
    return path


# -- keys --------------------------------------------------------------------------------------------------


async def test_the_environment_has_no_key_of_the_server(siege: Siege) -> None:
    found = json.loads(await siege.said("import json; print(json.dumps(dict(os.environ)))"))
    assert siege.canary not in found.values()
    assert "FLORETTE_UPSTREAM_KEY" not in found
    assert not {name for name in found if "KEY" in name or "TOKEN" in name or "PYTEST" in name}, found


SEARCH = """
import pathlib
found, seen = [], 0
wanted = "{reversed}"[::-1].encode()
for directory in pathlib.Path("/proc").glob("[0-9s]*") if os.access("/proc", os.R_OK) else []:
    for name in ("environ", "cmdline", "auxv", "mounts", "mountinfo", "maps", "task/*/environ", "fd/*"):
        for path in directory.glob(name):
            try:
                if not path.is_file():
                    continue
                with path.open("rb") as file:
                    seen += 1
                    found += [str(path)] if wanted in file.read(1 << 20) else []
            except OSError:
                pass
print(found, seen)
"""


async def test_no_file_of_a_process_holds_a_key_of_the_server(siege: Siege) -> None:
    found = await siege.said(SEARCH.replace("{reversed}", siege.canary[::-1]))
    assert found.startswith("[] ")
    assert siege.isolation == "landlock" or int(found.removeprefix("[] ")) > 10


@pytest.mark.parametrize("path", ["environ", "mem", "maps", "root/etc/passwd", "cwd", "fd", "fd/0", "stack"])
async def test_nothing_of_the_servers_process_can_be_read(siege: Siege, path: str) -> None:
    # Its number is known to nobody inside; all that there are below are tried, too.
    for pid in (str(os.getpid()), str(os.getppid())):
        assert await siege.said(f"print(attempt(os.open, '/proc/{pid}/{path}', 0))") in HIDDEN


@pytest.mark.parametrize("whose", ["1", "self", "{os.getppid()}"])
async def test_what_the_processes_inside_have_for_a_root_shows_nothing_of_the_machine(siege: Siege, whose: str) -> None:
    for path in ("etc/passwd", "etc/hostname", str(Path(tools.__file__)).lstrip("/"), "proc/self/root/etc/passwd"):
        for way in ("root", "cwd", "root/../.."):
            assert await siege.said(f"print(attempt(os.open, f'/proc/{whose}/{way}/{path}', 0))") in HIDDEN


async def test_only_processes_of_the_sandbox_are_to_be_seen(siege: Siege) -> None:
    seen = await siege.said("print(attempt(lambda: sorted(int(n) for n in os.listdir('/proc') if n.isdigit())))")
    if siege.isolation == "landlock":
        assert seen == "EACCES"
    else:
        # Its first process, the kernel, and perhaps what an attempt has left to be reaped.
        assert len(json.loads(seen.removeprefix("got "))) <= 3, seen


async def test_no_open_file_is_one_of_the_servers(siege: Siege) -> None:
    kinds = await siege.said(
        "import stat\n"
        "for number in range(1024):\n"
        "    try: mode = os.fstat(number).st_mode\n"
        "    except OSError: continue\n"
        "    if stat.S_ISREG(mode) or stat.S_ISDIR(mode): print(number, oct(mode))"
    )
    assert kinds == ""


# -- files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/etc/shadow",
        "/etc/hostname",
        "/root/.bashrc",
        "/home",
        "/var/log",
        "/root/.ssh",
        "/proc/self/root/etc/passwd",
        "/sys/class",
        "/boot",
        "/../../../../etc/passwd",
        "/dev/mem",
        "/dev/kmsg",
        "/proc/kcore",
        "/var/run/docker.sock",
        "/proc/1/cwd",
        "/dev/kvm",
        "/dev/vda",
        "/proc/keys",
    ],
)
async def test_files_of_the_machine_are_not_there(siege: Siege, path: str) -> None:
    look = f"open({path!r}, 'rb').read(10) if not os.path.isdir({path!r}) else os.listdir({path!r})"
    got = await siege.said(f"print(attempt(lambda: {look}))")
    # An empty directory of that name tells nothing, nor does a list of keys that is empty.
    assert got in {*HIDDEN, "EPERM", "got []", "got b''"}, got


async def test_files_of_the_project_and_its_config_are_not_there(siege: Siege, secret: Path) -> None:
    for path in (Path(tools.__file__), PROJECT / "pyproject.toml", PROJECT / ".git/HEAD", secret):
        assert path.exists()
        assert await siege.said(f"print(attempt(open, {str(path)!r}))") in HIDDEN
    assert await siege.said(f"print(attempt(os.listdir, {str(secret.parent)!r}))") in HIDDEN


async def test_files_of_another_session_are_not_there(siege: Siege) -> None:
    other = siege.session()
    where = await siege.said("open('mine.txt', 'w').write('mine'); os = __import__('os'); print(os.getcwd())", other)
    assert await siege.said(f"print(attempt(open, {where + '/mine.txt'!r}))") in HIDDEN
    assert "mine.txt" not in await siege.said(f"print(attempt(os.listdir, {where!r}), os.listdir())")
    assert await siege.said("print(open('mine.txt').read())", other) == "mine"


@pytest.mark.parametrize(
    "path",
    [
        "/usr/bin/x",
        "/usr/lib/x",
        "/etc/x",
        "/x",
        "/dev/x",
        "/bin/x",
        "/proc/sys/kernel/core_pattern",
        "/var/x",
        "/proc/sys/vm/overcommit_memory",
        "/proc/sysrq-trigger",
        "/sys/x",
        "/mnt/x",
        "{sys.prefix}/x",
        "{os.path.dirname(os.__file__)}/x.py",
        "{zmq}/x.py",
        "{sys.executable}",
    ],
)
async def test_nothing_can_be_written_where_others_read(siege: Siege, path: str) -> None:
    where = f"f{path!r}.replace('zmq', os.path.dirname(__import__('zmq').__file__))".replace("{zmq}", "zmq")
    assert await siege.said(f"print(attempt(open, {where}, 'ab'))") in {"EROFS", "EACCES", "ENOENT", "EPERM", "ETXTBSY"}


async def test_the_files_that_a_kernel_was_started_with_cannot_be_changed(siege: Siege) -> None:
    found = await siege.said(
        "import pathlib\n"
        "for place in (pathlib.Path('/run/florette'), pathlib.Path.cwd().parent / 'files'):\n"
        "    for name in ('boot.py', 'confinement.py'):\n"
        "        print(attempt(open, place / name, 'ab'), attempt(os.unlink, place / name))"
    )
    assert set(found.split()) <= {"EROFS", "EACCES", "ENOENT", "EPERM", "EBUSY"}


# -- networks ----------------------------------------------------------------------------------------------


@pytest.fixture
def listening() -> Iterator[dict[str, socket.socket]]:
    made = {
        "tcp": socket.create_server(("127.0.0.1", 0)),
        "udp": socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "abstract": socket.socket(socket.AF_UNIX),
    }
    made["udp"].bind(("127.0.0.1", 0))
    made["abstract"].bind("\0florette-" + os.urandom(8).hex())
    made["abstract"].listen()
    for one in made.values():
        one.setblocking(False)
    yield made
    for one in made.values():
        one.close()


CUT_OFF = {"ENETUNREACH", "ECONNREFUSED", "EAFNOSUPPORT", "EPERM", "EACCES", "EADDRNOTAVAIL", "EHOSTUNREACH", "EINVAL"}


@pytest.mark.parametrize(
    "address",
    [
        ("192.0.2.1", 443),
        ("169.254.169.254", 80),
        ("10.0.0.1", 80),
        ("172.17.0.1", 2375),
        ("224.0.0.1", 80),
        ("255.255.255.255", 80),
        ("2001:db8::1", 443),
        ("fe80::1", 80),
        ("::1", 80),
        ("0.0.0.0", 80),  # noqa: S104
    ],
)
@pytest.mark.parametrize("kind", ["SOCK_STREAM", "SOCK_DGRAM"])
async def test_no_address_can_be_reached(siege: Siege, address: tuple[str, int], kind: str) -> None:
    family = "AF_INET6" if ":" in address[0] else "AF_INET"
    # A datagram to one's own loopback goes nowhere, and is told so the next time.
    send = "s.connect(a); s.send(b'x'); s.send(b'x')"
    code = f"def go(a):\n    s = socket.socket(socket.{family}, socket.{kind}); s.settimeout(1)\n    {send}"
    assert await siege.said(f"{code}\nprint(attempt(go, {address!r}))") in CUT_OFF


async def test_a_server_on_the_machines_loopback_is_not_reached(
    siege: Siege, listening: dict[str, socket.socket]
) -> None:
    tcp, udp = listening["tcp"].getsockname(), listening["udp"].getsockname()
    assert await siege.said(f"print(attempt(socket.create_connection, {tcp!r}, 1))") in CUT_OFF
    await siege.said(f"print(attempt(lambda: socket.socket(2, 2).sendto(b'x', {udp!r})))")
    for reached in (listening["tcp"].accept, lambda: listening["udp"].recv(1)):
        with pytest.raises(BlockingIOError):
            reached()


async def test_sockets_of_the_machine_are_not_reached(
    siege: Siege, listening: dict[str, socket.socket], tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as on_disk:
        path = str(tmp_path / "s")
        on_disk.bind(path)
        on_disk.listen()
        on_disk.setblocking(False)
        for address in (path, listening["abstract"].getsockname().decode()):
            got = await siege.said(f"print(attempt(lambda: socket.socket(1).connect({address!r})))")
            assert got in {"ENOENT", *CUT_OFF}
        for one in (on_disk, listening["abstract"]):
            with pytest.raises(BlockingIOError):
                one.accept()


@pytest.mark.parametrize("family", ["AF_VSOCK", "AF_PACKET", "AF_ALG", "AF_BLUETOOTH", "AF_CAN", "AF_TIPC", "AF_KEY"])
async def test_there_are_no_rare_kinds_of_sockets(siege: Siege, family: str) -> None:
    number = {"AF_BLUETOOTH": 31, "AF_KEY": 15}.get(family, getattr(socket, family, 0))
    for kind in (1, 2, 3, 5):
        assert await siege.said(f"print(attempt(socket.socket, {number}, {kind}))") == "EAFNOSUPPORT"


async def test_the_system_is_not_spoken_to_through_netlink_nor_raw_sockets(siege: Siege) -> None:
    tries = await siege.said("print(*{attempt(socket.socket, 16, 3, kind) for kind in range(1, 22)})")
    assert tries == "EAFNOSUPPORT"
    assert await siege.said("print(attempt(socket.socket, 2, 3, 1))") in {"EPERM", "EAFNOSUPPORT"}


async def test_names_are_not_looked_up(siege: Siege) -> None:
    outcome = await siege.run("socket.getaddrinfo('example.com', 443)")
    assert "gaierror" in told(outcome)


# -- other processes ---------------------------------------------------------------------------------------


async def test_the_server_cannot_be_signalled(siege: Siege) -> None:
    for number in ("SIGKILL", "SIGTERM", "SIGSTOP"):
        assert await siege.said(f"print(attempt(os.kill, {os.getpid()}, signal.{number}))") in {"ESRCH", "EPERM"}


async def test_neither_the_parent_nor_the_first_process_is_killed(siege: Siege) -> None:
    # The first process of a namespace takes such a signal, and nothing comes of it.
    for pid in ("os.getppid()", "1"):
        for number in ("SIGKILL", "SIGTERM", "SIGSTOP"):
            got = await siege.said(f"print(attempt(os.kill, {pid}, signal.{number}))")
            assert got == "EPERM" or (got == "got None" and siege.isolation == "bwrap")
    assert await siege.said("print(6 * 7)") == "42"


async def test_killing_everybody_hits_nobody_else(siege: Siege) -> None:
    session = siege.session()
    code = "p = os.fork() or time.sleep(60)\ntry: os.kill(-1, 9)\nfinally: print(os.waitpid(p, 0)[1])"
    outcome = await siege.attack(code, session)
    assert outcome.status == "ok", outcome
    await siege.said("print(6 * 7)")


async def test_killing_the_own_group_ends_the_own_kernel_only(siege: Siege) -> None:
    session = siege.session()
    outcome = await siege.attack("os.killpg(0, 9)", session)
    assert outcome.status == "died"
    assert told(await siege.run("1", session)).endswith("their files are kept.")


async def test_other_processes_cannot_be_traced_nor_their_files_taken(siege: Siege) -> None:
    calls = {
        "ptrace": "101, 16, {pid}",
        "process_vm_readv": "310, {pid}, 0, 0, 0, 0, 0",
        "process_vm_writev": "311, {pid}, 0, 0, 0, 0, 0",
        "kcmp": "312, {pid}, {pid}, 0, 0, 0",
    }
    for pid in (str(os.getpid()), "1", "os.getppid()", "0"):
        for name, arguments in calls.items():
            got = await siege.said(f"print(attempt(call, {arguments.format(pid=pid)}))")
            assert got == "EPERM", (name, pid, got)


async def test_other_processes_keep_their_limits_and_their_priority(siege: Siege) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE), os.getpriority(os.PRIO_PROCESS, 0), os.sched_getaffinity(0)
    for act in ("resource.prlimit, {pid}, resource.RLIMIT_NOFILE, (3, 3)", "os.setpriority, 0, {pid}, 19"):
        got = await siege.said(f"import resource; print(attempt({act.format(pid=os.getpid())}))")
        assert got in {"ESRCH", "EPERM"}
    assert await siege.said(f"print(attempt(os.sched_setaffinity, {os.getpid()}, [0]))") in {"ESRCH", "EPERM"}
    after = resource.getrlimit(resource.RLIMIT_NOFILE), os.getpriority(os.PRIO_PROCESS, 0), os.sched_getaffinity(0)
    assert after == before


# -- privileges --------------------------------------------------------------------------------------------

_X86_64 = {
    "mount": "165, b'x', b'/tmp', b'tmpfs', 0, 0",
    "remount": "165, 0, b'/usr', 0, 32, 0",
    "umount": "166, b'/tmp', 2",
    "umount of all above": "166, b'/', 2",
    "pivot_root": "155, b'/tmp', b'/tmp'",
    "chroot": "161, b'/tmp'",
    "open_tree": "428, -100, b'/', 1",
    "fsopen": "430, b'tmpfs', 0",
    "unshare of users": "272, 0x10000000",
    "unshare of mounts": "272, 0x20000",
    "unshare of networks": "272, 0x40000000",
    "unshare of processes": "272, 0x20000000",
    "clone into new users": "56, 0x10000011, 0, 0, 0, 0",
    "clone3": "435, bytes(88), 88",
    "setns": "308, 0, 0",
    "keyctl": "250, 0, -3, 0",
    "add_key": "248, b'user', b'a', b'b', 1, -3",
    "bpf": "321, 0, bytes(120), 120",
    "perf_event_open": "298, bytes(112), 0, -1, -1, 0",
    "io_uring_setup": "425, 1, bytes(120)",
    "userfaultfd": "323, 1",
    "memfd_create": "319, b'x', 0",
    "memfd_secret": "447, 0",
    "shmget": "29, 0, 4096, 0o1600",
    "open_by_handle_at": "304, -100, bytes(16), 0",
    "init_module": "175, 0, 0, b''",
    "kexec_load": "246, 0, 0, 0, 0",
    "reboot": "169, 0xfee1dead, 672274793, 0, 0",
    "swapon": "167, b'/tmp', 0",
    "syslog": "103, 3, bytes(100), 100",
    "settimeofday": "164, bytes(16), 0",
    "iopl": "172, 3",
    "personality without random addresses": "135, 0x40000",
    "a call that is newer than the filter": "600",
    "setuid": "105, 0",
    "setgid": "106, 0",
    "mknod of a disk": "133, b'/tmp/disk', 0o60666, 0x800",
    "sethostname": "170, b'x', 1",
}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are x86_64's; test_seccomp.py has the others")
@pytest.mark.parametrize("name", _X86_64)
async def test_a_system_call_that_leads_out_is_refused(siege: Siege, name: str) -> None:
    assert await siege.said(f"print(attempt(call, {_X86_64[name]}))") in {"EPERM", "ENOSYS", "EINVAL", "EACCES"}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="only x86_64 has other sets of system calls")
async def test_a_system_call_by_its_32_bit_number_ends_the_one_who_makes_it(siege: Siege) -> None:
    code = (
        "p = os.fork()\nif not p: libc.syscall(ctypes.c_long(0x40000000 + 39)); os._exit(0)\nprint(os.waitpid(p, 0)[1])"
    )
    assert int(await siege.said(code)) & 0x7F == 31


async def test_programs_that_make_one_root_make_nobody_root(siege: Siege) -> None:
    assert await siege.said("print(libc.prctl(39, 0, 0, 0, 0))") == "1"
    tried = await siege.said(
        "for command in (['su', '-c', 'id -u'], ['mount', '-t', 'tmpfs', 'x', '/tmp'], ['passwd', '-d', 'root'], "
        "['newgrp'], ['chsh', '-s', '/bin/sh', 'root']):\n"
        "    try: got = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=2)\n"
        "    except (OSError, subprocess.TimeoutExpired): continue\n"
        "    print(command[0], got.returncode == 0)"
    )
    assert "True" not in tried, tried


async def test_no_capability_is_held_and_none_can_be_gained(siege: Siege) -> None:
    # struct __user_cap_header_struct, of version 3, and the three sets of each half.
    held = await siege.said(
        "sets = ctypes.create_string_buffer(24)\n"
        "libc.capget(struct.pack('Ii', 0x20080522, 0), sets)\n"
        "print(struct.unpack('6I', sets.raw)[:2], os.getuid() != 0, os.geteuid() == os.getuid())"
    )
    assert held == "(0, 0) True True"


async def test_a_crash_leaves_no_core(siege: Siege) -> None:
    code = (
        "import resource\np = os.fork()\nif not p: ctypes.string_at(0)\nprint(os.waitpid(p, 0)[1] & 0x80, os.listdir())"
    )
    session = siege.session()
    await siege.said(TOOLS, session)
    assert await siege.said(code, session) == "0 []"
    outcome = await siege.run("resource.setrlimit(resource.RLIMIT_CORE, (1, 1))", session)
    assert "not allowed to raise maximum limit" in told(outcome)


# -- what is chosen ----------------------------------------------------------------------------------------

#: As on a machine without Landlock: asked for it, the kernel says that there is no such call.
WITHOUT_LANDLOCK = """
import struct
from tools.sandbox.confinement import filter_system_calls
filter_system_calls(b"".join(struct.pack("<HBBI", *word) for word in
    [(0x20, 0, 0, 0), (0x15, 0, 1, 444), (0x06, 0, 0, 0x50026), (0x06, 0, 0, 0x7FFF0000)]))
"""

ASK = """
from tools.errors import ToolUnavailable
from tools.sandbox.isolation import find
from tools.sandbox.launching import Program
try:
    print(find({isolation!r}, Program(("/usr/bin/python3",), {{}}, (), 1 << 20)).name)
except ToolUnavailable as reason:
    print("refused:", reason)
"""


def chosen(isolation: str, tmp_path: Path, before: str = "") -> str:
    """What is chosen on a machine without bubblewrap."""
    if setpriv := shutil.which("setpriv"):
        (tmp_path / "setpriv").symlink_to(setpriv)
    done = subprocess.run(
        [sys.executable, "-c", before + ASK.format(isolation=isolation)],
        env={"PATH": str(tmp_path), "PYTHONPATH": str(PROJECT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_without_any_sandbox_no_code_is_run_and_what_would_help_is_told(tmp_path: Path) -> None:
    refused = chosen("auto", tmp_path, WITHOUT_LANDLOCK)
    assert refused.startswith("refused: code cannot be isolated here"), refused
    assert "apt-get install bubblewrap" in refused
    assert "Linux 6.12" in refused


@pytest.mark.parametrize("isolation", ["bwrap", "landlock"])
def test_what_is_asked_for_by_name_is_replaced_by_nothing_less(tmp_path: Path, isolation: str) -> None:
    assert chosen(isolation, tmp_path, WITHOUT_LANDLOCK).startswith("refused: code cannot be isolated here")


def test_bubblewrap_asked_for_by_name_is_not_replaced_by_landlock(tmp_path: Path) -> None:
    assert chosen("bwrap", tmp_path).startswith("refused: code cannot be isolated here")


def test_none_is_chosen_in_so_many_words_only(tmp_path: Path) -> None:
    assert chosen("none", tmp_path, WITHOUT_LANDLOCK) == "none"
