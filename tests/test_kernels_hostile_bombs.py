"""The hostile battery: bombs of every kind cost their own kernel, at most, and neither the server nor a neighbour.

Each bomb has a bound of its own, a few times the limit, in case that nothing else stops it.
"""

import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from besieging import EITHER, LANDLOCK, MEGABYTE, SMALL, Siege, Sieges, said, told
from tools.outcomes import Picture

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="NOT TESTED: sandboxes are Linux's")

#: A session that one attack after the other uses, where none leaves anything but a kernel that answers, or is replaced.
PRISONER = "prisoner"

FILES_KEPT = "variables and imports of earlier cells are lost, their files are kept."


@pytest.fixture(scope="module")
async def sieges() -> AsyncIterator[Sieges]:
    async with Sieges() as sieges:
        yield sieges


@pytest.fixture
async def siege(request: pytest.FixtureRequest, sieges: Sieges) -> Siege:
    return await sieges.of(getattr(request, "param", "auto"))


def resident_bytes() -> int:
    """What the server has in use."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


# -- memory ------------------------------------------------------------------------------------------------


@EITHER
@pytest.mark.parametrize("code", ["'a' * 10**10", "x = []\nwhile len(x) < 20: x.append(bytearray(50_000_000))"])
async def test_memory_of_one_process_ends_where_its_limit_is(siege: Siege, code: str) -> None:
    await siege.said("kept = 1")
    outcome = await siege.attack(code, PRISONER)
    assert outcome.status == "error"
    assert "MemoryError" in told(outcome)
    assert await siege.said("x = None; kept") == "1"


CHILDREN = """
for child in range(12):
    if not os.fork():
        kept = bytearray(60 << 20)
        time.sleep(10); os._exit(0)
time.sleep(10)
"""

#: Shared with a file's memory, what is written counts for no process's limit, and is in use by all of them.
SHARED = """
held = []
for _ in range(6):
    file = open(f"/dev/shm/{_}", "w+b"); file.truncate(8 << 20); held.append(mmap.mmap(file.fileno(), 8 << 20))
for part in held: part.write(bytes(8 << 20))
for child in range(8):
    if not os.fork():
        kept = bytearray(50 << 20); [part.seek(0) or part.read() for part in held]
        time.sleep(10); os._exit(0)
time.sleep(10)
"""


@EITHER
@pytest.mark.parametrize("code", [CHILDREN, SHARED])
async def test_memory_of_many_processes_ends_the_kernel(siege: Siege, code: str) -> None:
    session = siege.session()
    # Where there is no /dev/shm for it, that is a file on disk, whose memory is as shared.
    code = code.replace("/dev/shm", "/dev/shm" if siege.isolation == "bwrap" else ".")  # noqa: S108
    await siege.said("open('kept.txt', 'w').write('kept')", session)
    outcome = await siege.attack(code, session)
    assert outcome.status == "limit", outcome
    assert "It used more memory than it may, so its kernel was killed." in told(outcome)
    again = await siege.run("print(open('kept.txt').read())", session)
    assert said(again) == "kept"
    assert FILES_KEPT in told(again)


LIBC = """
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
NOWHERE = 2**64 - 1
"""

#: Of each piece a page stays mapped, which keeps the rest.
ANONYMOUS = f"""
{LIBC}
size, held = 8 << 20, 0
while held < 400 << 20:
    place = libc.mmap(None, size, 3, FLAGS, FILE, 0)
    if place == NOWHERE: break
    libc.memset(place, 1, size); libc.munmap(place + 4096, size - 4096); held += size
print(held)
"""

ATTRIBUTES = """
open("x", "w").close()
value, held = b"x" * 60_000, 0
try:
    for number in range(9000):
        os.setxattr("x", f"user.{number}", value); held += len(value)
except OSError: pass
print(held)
"""

#: The system's own notes on each: of the mapping, of the file that nobody sees, and of its name.
MAPPINGS = f"""
{LIBC}
number = 0
while libc.mmap(None, 4096, number % 2 * 2 + 1, 0x21, -1, 0) != NOWHERE: number += 1
print(1200 * number)
"""

REFUSED = {
    "shared memory without a name": ANONYMOUS.replace("FLAGS", "0x21").replace("FILE", "-1"),
    "shared memory of /dev/zero": "try: zero = os.open('/dev/zero', os.O_RDWR)\nexcept OSError: zero = -1\n"
    + ANONYMOUS.replace("FLAGS", "1").replace("FILE", "zero"),
    "attributes of a file": ATTRIBUTES,
    "many small mappings": MAPPINGS,
}


@EITHER
@pytest.mark.parametrize("name", REFUSED)
async def test_memory_that_no_process_shows_as_its_own_is_not_to_be_had(siege: Siege, name: str) -> None:
    outcome = await siege.attack(REFUSED[name], PRISONER)
    assert (outcome.status, said(outcome)) == ("ok", "0")


#: What each of four processes writes into all of its sockets, as much as they take.
SOCKETS = """
def fill(pairs):
    held = 0
    for one in (one for pair in pairs for one in pair):
        with contextlib.suppress(OSError): one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        one.setblocking(False)
        with contextlib.suppress(OSError):
            while True: held += one.send(bytes(200_000))
    return held
def made():
    with contextlib.suppress(OSError):
        for _ in range(NUMBER): yield MAKE
import contextlib
server = SERVER
told, tell = os.pipe()
for _ in range(4):
    if not os.fork():
        pairs = list(made())
        os.write(tell, b"%20d" % fill(pairs)); time.sleep(10); os._exit(0)
print(sum(int(os.read(told, 20)) for _ in range(4)))
"""

PAIRS = SOCKETS.replace("MAKE", "socket.socketpair()").replace("SERVER", "None")


async def test_sockets_are_counted_as_what_lies_in_them_is_nobodys_memory(siege: Siege) -> None:
    outcome = await siege.attack(f"{PAIRS.replace('NUMBER', '110')}\ntime.sleep(5)")
    assert outcome.status == "limit", outcome
    assert "It used more sockets than it may, so its kernel was killed." in told(outcome)


@EITHER
async def test_sockets_that_are_few_enough_hold_little(siege: Siege) -> None:
    outcome = await siege.attack(PAIRS.replace("NUMBER", "30"))
    assert outcome.status in {"ok", "limit"}, outcome
    held = int(said(outcome)) if outcome.status == "ok" else 0
    assert held < SMALL["memory_bytes"], f"{held >> 20} MB"


async def test_files_in_memory_have_no_room_of_their_own(siege: Siege) -> None:
    code = (
        "for place in ('/tmp', '/dev/shm', '/run', '.'):\n"
        "    try:\n"
        "        for number in range(40):\n"
        "            with open(f'{place}/{number}', 'wb') as file: file.write(bytes(4 << 20))\n"
        "    except OSError as error: print(place, number, error.strerror)"
    )
    # 64 MB in /tmp and in /dev/shm, 1 MB in /run, and here what was set.
    full = "No space left on device"
    outcome = await siege.attack(code)
    found = [f"/tmp 15 {full}", f"/dev/shm 16 {full}", f"/run 0 {full}", f". 4 {full}"]  # noqa: S108
    assert said(outcome).splitlines() == found


# -- processes and threads ---------------------------------------------------------------------------------

FORKS = "made = 0\ntry:\n    while made < 300: made += bool(os.fork() or time.sleep(10))\nexcept OSError as e: print(e)"


async def test_a_fork_bomb_ends_at_the_limit_of_processes(siege: Siege) -> None:
    session = siege.session()
    outcome = await siege.attack(f"{FORKS}\nprint(made)", session)
    error, made = said(outcome).splitlines()
    assert "Resource temporarily unavailable" in error
    assert int(made) < SMALL["processes"]
    assert await siege.said("for _ in range(made): os.kill(-1, 9) if not _ else os.wait()\nmade > 1", session) == "True"


@LANDLOCK
async def test_a_fork_bomb_where_processes_are_counted_for_the_user_as_a_whole_ends_its_kernel(siege: Siege) -> None:
    outcome = await siege.attack(f"{FORKS}\ntime.sleep(5)")
    assert outcome.status == "limit", outcome
    assert "It used more processes than it may, so its kernel was killed." in told(outcome)


async def test_a_bomb_of_forks_that_fork_is_over_with_its_cell(siege: Siege) -> None:
    session = siege.session()
    code = "until = time.time() + 8\nwhile time.time() < until:\n    try: os.fork()\n    except OSError: pass"
    outcome = await siege.attack(code, session, time_s=0.5)
    assert outcome.status in {"timeout", "limit"}, outcome
    assert (await siege.run("6 * 7", session)).status in {"ok", "error"}


async def test_a_bomb_of_threads_ends_at_the_limit_of_processes(siege: Siege) -> None:
    code = (
        "import threading\nmade = 0\n"
        "try:\n"
        "    while made < 300: threading.Thread(target=time.sleep, args=(1,), daemon=True).start(); made += 1\n"
        "except RuntimeError as error: print(error)\n"
        "print(made)"
    )
    error, made = said(await siege.attack(code)).splitlines()
    assert error == "can't start new thread"
    assert int(made) < SMALL["processes"]


async def test_all_processors_are_not_taken_from_a_neighbour(siege: Siege) -> None:
    code = "for _ in range(12):\n    if not os.fork():\n        while True: pass\nwhile True: pass"
    outcome = await siege.attack(code, time_s=0.5)
    assert outcome.status == "timeout"


# -- disk --------------------------------------------------------------------------------------------------


async def test_a_file_ends_at_its_longest_and_the_disk_at_its_size(siege: Siege) -> None:
    session = siege.session()
    one = await siege.attack(
        "with open('long', 'wb') as file:\n    while file.tell() < 30 << 20: file.write(bytes(1 << 20))", session
    )
    assert "File too large" in told(one)
    many = await siege.attack("for n in range(50): open(f'f{n}', 'wb').write(bytes(1 << 20))", session)
    assert "No space left on device" in told(many)
    assert await siege.said("os.remove('long'); open('f', 'w').write('there is room again')", session)


async def test_a_sparse_file_is_not_longer_than_a_file_may_be(siege: Siege) -> None:
    outcome = await siege.attack("open('sparse', 'wb').truncate(200 << 20)")
    assert "File too large" in told(outcome)


SPARSE = """
for number in range(40):
    with open(f"{number:02}", "wb") as file: file.truncate(8 << 20)
"""


async def test_many_sparse_files_are_not_read_into_the_servers_memory(siege: Siege) -> None:
    read_bytes = longest_bytes = 0

    async def keep(name: str, data: bytes | AsyncIterator[bytes]) -> str:
        nonlocal read_bytes, longest_bytes
        assert not isinstance(data, bytes)
        async for piece in data:
            read_bytes += len(piece)
            longest_bytes = max(longest_bytes, len(piece))
        return name

    outcome = await siege.attack(SPARSE, keep=keep)
    assert len(outcome.files) == 20
    assert (read_bytes, longest_bytes) == (20 * 8 * MEGABYTE, MEGABYTE)
    assert len(told(outcome)) < 2000


#: Not as many in one place as it may have in all.
INODES = """
for place in PLACES:
    os.mkdir(f"{place}/i")
    for number in range(50_000 // len(PLACES) + 500):
        os.close(os.open(f"{place}/i/{number}", os.O_CREAT | os.O_WRONLY))
time.sleep(5)
"""


async def test_files_without_anything_in_them_are_counted_wherever_they_are(siege: Siege) -> None:
    places = (".", "/tmp", "/dev/shm", "/run")  # noqa: S108
    outcome = await siege.attack(f"PLACES = {places}\n{INODES}")
    assert outcome.status == "limit", outcome
    assert "It used more inodes than it may, so its kernel was killed." in told(outcome)


async def test_thousands_of_files_are_left_where_they_are(siege: Siege) -> None:
    outcome = await siege.attack("for n in range(5000): open(f'{n:04}', 'w').close()")
    assert [file.name for file in outcome.files] == [f"{number:04}" for number in range(20)]


# -- output ------------------------------------------------------------------------------------------------

ENDLESS = {
    "lines": "while True: print('x' * 100)",
    "one line": "while True: sys.stdout.write('x' * 1000)",
    "100 MB at once": "for _ in range(10): sys.stdout.write('x' * 10_000_000)",
    "lines of a process": "get_ipython().system('yes')",
    "lines past Python": "while True: os.write(1, b'x' * 10_000)",
    "displays": "from IPython.display import display\nwhile True: display(1)",
    "displays that are replaced": (
        "from IPython.display import display\nd = display(0, display_id=True)\nwhile True: d.update(1)"
    ),
    "a traceback": "raise ValueError('x' * 300_000)",
    "a result": "'x' * 1_000_000",
    "groups of exceptions": "raise ExceptionGroup('x', [ValueError('y' * 1000) for _ in range(2000)])",
}


@pytest.mark.parametrize("kind", ENDLESS)
async def test_output_without_an_end_is_ended(siege: Siege, kind: str) -> None:
    before = resident_bytes()
    outcome = await siege.attack(ENDLESS[kind], PRISONER, time_s=3.0)
    assert outcome.status != "ok"
    assert outcome.duration_s < 5.0
    assert len(told(outcome)) < 2 * SMALL["output_bytes"]
    assert resident_bytes() - before < 100 * MEGABYTE
    assert (await siege.run("6 * 7", PRISONER)).status == "ok"


BIG = {
    "text": "display({'text/plain': 'x' * (4 << 20)}, raw=True)",
    "pieces of 100 MB": "for _ in range(20): display({'text/plain': 'x' * (5 << 20)}, raw=True)",
    "a picture": "display({'image/png': 'iVBORw0KGgo' + 'A' * (4 << 20)}, raw=True)",
    "pictures": "for _ in range(20): display({'image/png': 'iVBORw0KGgo' + 'A' * (1 << 20)}, raw=True)",
    "a picture that is none": "display({'image/png': 'x' * 1000}, raw=True)",
    "a picture that is no text": "display({'image/png': {'a': [1]}}, raw=True)",
    "an unknown kind": "display({'application/x': 'x' * (4 << 20)}, raw=True)",
    "a deep bundle": "d = {}\nfor _ in range(900): d = {'a': d}\ndisplay({'application/json': d}, raw=True)",
}


@pytest.mark.parametrize("kind", BIG)
async def test_a_display_that_is_too_big_is_left_out(siege: Siege, kind: str) -> None:
    before = resident_bytes()
    outcome = await siege.attack(f"from IPython.display import display\nprint('before')\n{BIG[kind]}", PRISONER)
    assert said(outcome).startswith("before")
    assert len(told(outcome)) < 2 * SMALL["output_bytes"]
    pictures = [piece for piece in outcome.pieces if isinstance(piece, Picture)]
    assert len(pictures) <= SMALL["images"]
    assert all(len(picture.data) <= SMALL["image_bytes"] for picture in pictures)
    assert resident_bytes() - before < 100 * MEGABYTE
    assert await siege.said("print('heard again')") == "heard again"


async def test_a_picture_of_100_megabytes_costs_its_own_kernel_at_most(siege: Siege) -> None:
    before = resident_bytes()
    code = "from IPython.display import display; display({'image/png': 'A' * 100_000_000}, raw=True)"
    outcome = await siege.attack(code, PRISONER)
    assert not any(isinstance(piece, Picture) for piece in outcome.pieces)
    assert resident_bytes() - before < 50 * MEGABYTE
    assert said(await siege.run("6 * 7", PRISONER)) == "42"


async def test_a_picture_of_enormous_extent_is_not_unpacked_by_the_server(siege: Siege) -> None:
    # 100,000 x 100,000 pixels, all of them nothing, in some kilobytes.
    code = (
        "import base64, zlib\nfrom IPython.display import display\n"
        "def chunk(kind, data):\n"
        "    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))\n"
        "head = struct.pack('>IIBBBBB', 100_000, 100_000, 1, 0, 0, 0, 0)\n"
        "png = b'\\x89PNG\\r\\n\\x1a\\n' + chunk(b'IHDR', head)\n"
        "png += chunk(b'IDAT', zlib.compress(bytes(10**7))) + chunk(b'IEND', b'')\n"
        "display({'image/png': base64.b64encode(png).decode()}, raw=True)"
    )
    before = resident_bytes()
    outcome = await siege.attack(code)
    (picture,) = outcome.pieces
    assert isinstance(picture, Picture)
    assert len(picture.data) < SMALL["image_bytes"]
    assert resident_bytes() - before < 50 * MEGABYTE


# -- time --------------------------------------------------------------------------------------------------

HEEDS = {
    "sleep": "time.sleep(60)",
    "a loop": "while True: pass",
    "a lock": "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()",
}

IGNORES = {
    "a loop that goes on": "def go():\n    try: time.sleep(60)\n    except BaseException: go()\ngo()",
    "signals": "signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass",
    "a power": "3 ** 10**8",
    "a stopped kernel": "os.kill(os.getpid(), signal.SIGSTOP)",
    "what is done at the end": "try: time.sleep(60)\nfinally: signal.signal(2, signal.SIG_IGN); time.sleep(60)",
}


@pytest.mark.parametrize("kind", HEEDS)
async def test_what_takes_too_long_is_interrupted_and_the_kernel_goes_on(siege: Siege, kind: str) -> None:
    outcome = await siege.attack(f"kept = {kind!r}\n{HEEDS[kind]}", PRISONER, time_s=0.3)
    assert outcome.status == "timeout"
    assert told(outcome).startswith("The code took too long and was stopped.")
    assert await siege.said("print(kept)") == kind


@pytest.mark.parametrize(
    ("siege", "kind"),
    [*(("auto", kind) for kind in IGNORES), ("landlock", "a stopped kernel")],
    indirect=["siege"],
)
async def test_what_does_not_heed_the_interrupt_is_killed(siege: Siege, kind: str) -> None:
    outcome = await siege.attack(f"open('f', 'w').write({kind!r})\n{IGNORES[kind]}", PRISONER, time_s=0.3)
    assert outcome.status == "timeout"
    assert "It did not heed the interrupt, so its kernel was killed." in told(outcome)
    again = await siege.run("print(open('f').read())", PRISONER)
    assert said(again) == kind
    assert FILES_KEPT in told(again)
