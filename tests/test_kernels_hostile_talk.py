"""The hostile battery: kernels that lie, break off, or write when nobody asked, and what they leave for the server."""

import asyncio
import os
import socket
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from besieging import EITHER, MEGABYTE, Siege, Sieges, said, told
from keeping import Kept
from tools.attached import AttachedFile

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="NOT TESTED: sandboxes are Linux's")

#: Some time in which a kernel could do what it must not.
AWHILE_S = 0.5

#: A session that one attack after the other uses, where none leaves anything but a kernel that answers, or is replaced.
PRISONER = "prisoner"

RESTARTED = "The kernel was restarted: variables and imports of earlier cells are lost, their files are kept."
DIED = "The Python kernel died while the code ran."
NO_MESSAGE = "It sent what is no message, so its kernel was killed."
TOO_MUCH = "It put out far more than it may, so its kernel was killed."

#: What a kernel's own code has of it: its sockets, and the key that its messages are signed with.
KERNEL = """
from ipykernel.kernelapp import IPKernelApp
app = IPKernelApp.instance()
kernel, keys = app.kernel, app.kernel.session
parent = kernel.get_parent("shell")
thread = getattr(app.iopub_thread, "_iopub_thread", app.iopub_thread)
def put_out(act):
    # A socket is its thread's alone.
    import threading
    done = threading.Event()
    thread.schedule(lambda: (act(thread.socket), done.set()))
    done.wait(20)
def message(kind, content, parent=parent):
    head = keys.msg(kind, parent=parent)
    parts = [keys.pack(head["header"]), keys.pack(parent["header"]), b"{}"]
    parts.append(content if isinstance(content, bytes) else keys.pack(content))
    return [b"x", b"<IDS|MSG>", keys.sign(parts), *parts]
other = {"header": {**parent["header"], "msg_id": "other"}}
"""


@pytest.fixture(scope="module")
async def sieges() -> AsyncIterator[Sieges]:
    async with Sieges() as sieges:
        yield sieges


@pytest.fixture
async def siege(request: pytest.FixtureRequest, sieges: Sieges) -> Siege:
    return await sieges.of(getattr(request, "param", "auto"))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


# -- messages ----------------------------------------------------------------------------------------------


async def test_a_forged_end_does_not_end_the_cell(siege: Siege) -> None:
    session = siege.session()
    forge = "put_out(lambda s: s.send_multipart(message('status', {'execution_state': 'idle'})))"
    outcome = await siege.attack(f"{KERNEL}\n{forge}\ntime.sleep(0.2); print('after')", session)
    assert said(outcome) == "after"


async def test_who_forges_end_and_answer_harms_himself_only(siege: Siege) -> None:
    session = siege.session()
    forge = (
        "put_out(lambda s: s.send_multipart(message('status', {'execution_state': 'idle'})))\n"
        "content = {'status': 'ok', 'execution_count': 1, 'user_expressions': {}, 'payload': []}\n"
        "me = kernel._get_shell_context_var(kernel._shell_parent_ident)\n"
        "keys.send(kernel.shell_socket, 'execute_reply', content, parent, ident=me)\n"
        "time.sleep(0.3); print('late')"
    )
    await siege.attack(f"{KERNEL}\n{forge}", session)
    after = await siege.run("print('mine')", session)
    assert said(after) == "mine"


NONSENSE = {
    "no frames of ours": "[b'garbage']",
    "a wrong signature": "[b'x', b'<IDS|MSG>', b'0' * 64, b'{}', b'{}', b'{}', b'{}']",
    "no JSON": "message('stream', b'{')",
    "JSON that is too deep": "message('stream', b'[' * 50_000 + b']' * 50_000)",
    "a number that is too long": "message('stream', b'1' * 1_000_000)",
    "no header": "[b'x', b'<IDS|MSG>', keys.sign([b'null'] * 4), *[b'null'] * 4]",
}


@pytest.mark.parametrize("kind", NONSENSE)
async def test_what_is_no_message_ends_the_kernel(siege: Siege, kind: str) -> None:
    code = f"{KERNEL}\nprint('before')\nput_out(lambda s: s.send_multipart({NONSENSE[kind]}))\ntime.sleep(9)"
    outcome = await siege.attack(code, PRISONER)
    assert outcome.status == "limit", outcome
    assert NO_MESSAGE in told(outcome)
    assert RESTARTED in told(await siege.run("1", PRISONER))


ODD = {
    "bytes that are no text": "message('stream', b'\"\\xff\"')",
    "lists for objects": "message('stream', b'[1]')",
    "a stream of numbers": "message('stream', {'name': 'stdout', 'text': 7})",
    "an error of nothing": "message('error', {'traceback': {'a': 1}, 'ename': 3})",
    "an infinite number": "message('display_data', b'{\"data\": {\"text/plain\": NaN}}')",
    "somebody else's output": "message('stream', {'name': 'stdout', 'text': 'x'}, other)",
    "a welcome": "message('iopub_welcome', {})",
}


@pytest.mark.parametrize("kind", ODD)
async def test_a_message_that_makes_no_sense_does_no_harm(siege: Siege, kind: str) -> None:
    await siege.attack(f"{KERNEL}\nput_out(lambda s: s.send_multipart({ODD[kind]}))", PRISONER)
    assert await siege.said("print('mine')") == "mine"


async def test_what_nobody_reads_is_not_kept_in_the_servers_memory(siege: Siege) -> None:
    before = resident_bytes()
    code = (
        f"{KERNEL}\nimport threading, zmq\n"
        "me = kernel._get_shell_context_var(kernel._shell_parent_ident)[0]\n"
        "one, done, sent = [me, *message('x', '1' * (1 << 20))[1:]], threading.Event(), 0\n"
        "def send():\n"
        "    global sent\n"
        "    until = time.time() + 1.5\n"
        "    while time.time() < until and sent < 2000:\n"
        "        try: app.control_socket.send_multipart(one, zmq.NOBLOCK, copy=False); sent += 1\n"
        "        except zmq.ZMQError: time.sleep(0.001)\n"
        "    done.set()\n"
        "app.control_thread.io_loop.add_callback(send)\ndone.wait(5); print(sent); time.sleep(9)"
    )
    outcome = await siege.attack(code)
    assert outcome.status == "limit", outcome
    assert TOO_MUCH in told(outcome)
    assert resident_bytes() - before < 60 * MEGABYTE


FLOODS = {"of the cell": "long, parent", "of another cell": "long, other"}


@pytest.mark.parametrize("kind", FLOODS)
async def test_a_flood_of_messages_does_not_silence_the_server(siege: Siege, kind: str) -> None:
    before = resident_bytes()
    code = (
        f"{KERNEL}\n"
        "long = b'[' + b'[],' * 80_000 + b'[]]'\n"
        f"one = (lambda content, parent: message('stream', content, parent))({FLOODS[kind]})\n"
        "until, left = time.time() + 3, 50\n"
        "def send(socket):\n"
        "    global left\n"
        "    while left and time.time() < until: socket.send_multipart(one); left -= 1\n"
        "put_out(send)"
    )
    outcome = await siege.attack(code)
    assert outcome.status == "limit", outcome
    assert TOO_MUCH in told(outcome)
    assert resident_bytes() - before < 100 * MEGABYTE


# -- questions and exits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ask", ["input('name? ')", "__import__('getpass').getpass()", "sys.stdin.readline() or 1 / 0"])
async def test_a_question_is_refused_at_once(siege: Siege, ask: str) -> None:
    outcome = await siege.attack(ask, PRISONER)
    assert outcome.status == "error"
    # Nobody was waited for.
    assert outcome.duration_s < 5
    assert await siege.said("6 * 7") == "42"


EXITS = {
    "os._exit": "os._exit(0)",
    "an abort": "os.abort()",
    "a null pointer": "ctypes.string_at(0)",
    "a kill": "os.kill(os.getpid(), signal.SIGKILL)",
    "another program": "os.execv('/bin/true', ['true'])",
}


@pytest.mark.parametrize(
    ("siege", "kind"),
    [*(("auto", kind) for kind in EXITS), ("landlock", "a kill"), ("landlock", "another program")],
    indirect=["siege"],
)
async def test_a_kernel_that_ends_is_replaced_and_the_model_is_told(siege: Siege, kind: str) -> None:
    code = f"open('f', 'w').write({kind!r}); print('before', flush=True)\n{EXITS[kind]}"
    outcome = await siege.attack(code, PRISONER)
    assert outcome.status == "died", outcome
    assert told(outcome).startswith(DIED)
    again = await siege.run("print(open('f').read())", PRISONER)
    assert said(again) == kind
    assert RESTARTED in told(again)


@pytest.mark.parametrize("leave", ["exit()", "quit()", "sys.exit(3)", "raise SystemExit"])
async def test_who_leaves_finds_a_kernel_again(siege: Siege, leave: str) -> None:
    await siege.attack(leave, PRISONER)
    again = await siege.run("6 * 7", PRISONER)
    assert said(again) == "42"


async def test_a_kernel_goes_on_without_its_sockets_names_and_its_connection_file(siege: Siege) -> None:
    session = siege.session()
    code = (
        "import glob\nkept = 1\n"
        "for path in [*glob.glob('/run/k-*'), *glob.glob('/tmp/.*'), *glob.glob('/tmp/**', recursive=True)]:\n"
        "    if not os.path.isdir(path) and os.path.lexists(path): os.unlink(path)\n"
    )
    await siege.attack(code, session)
    assert await siege.said("kept", session) == "1"
    late = await siege.run("while True: pass", session, time_s=0.2)
    assert late.status == "timeout"
    assert await siege.said("kept", session) == "1"


async def test_sockets_put_in_the_place_of_the_kernels_lead_nowhere(siege: Siege, tmp_path: Path) -> None:
    session = siege.session()
    with socket.socket(socket.AF_UNIX) as elsewhere:
        path = str(tmp_path / "s")
        elsewhere.bind(path)
        elsewhere.listen()
        elsewhere.setblocking(False)
        plant = f"for n in range(1, 6): os.unlink(f'/run/k-{{n}}'); os.symlink({path!r}, f'/run/k-{{n}}')"
        # What is longer than a message may be has the server connect again.
        lose = "from IPython.display import display; display({'text/plain': 'x' * (30 << 20)}, raw=True)"
        await siege.attack(f"{plant}\n{lose}", session)
        with pytest.raises(BlockingIOError):
            elsewhere.accept()
    assert await siege.said("6 * 7", session) == "42"


async def test_what_a_cell_replaces_is_replaced_in_its_own_kernel_only(siege: Siege) -> None:
    session = siege.session()
    code = (
        "import builtins, json, zmq, ipykernel.iostream, jupyter_client.session\n"
        "def broken(*a, **k): raise RuntimeError('broken')\n"
        "builtins.print = builtins.len = json.dumps = json.loads = zmq.Socket.send_multipart = broken\n"
        "jupyter_client.session.Session.send = ipykernel.iostream.OutStream.write = broken\n"
    )
    outcome = await siege.attack(code, session, time_s=0.5)
    assert outcome.status in {"timeout", "died", "limit"}, outcome
    assert await siege.said("print(len('ab'))", siege.session()) == "2"
    assert (await siege.run("print(len('ab'))", session)).status == "ok"


# -- between cells -----------------------------------------------------------------------------------------


async def test_what_a_thread_writes_after_its_cell_is_in_no_other(siege: Siege) -> None:
    session = siege.session()
    code = (
        "import threading\n"
        "def write():\n    while True: print('late'); print('late', file=sys.stderr); time.sleep(0.01)\n"
        "threading.Thread(target=write, daemon=True).start()"
    )
    await siege.attack(code, session)
    for _ in range(2):
        assert await siege.said("time.sleep(0.1); print('mine')", session) == "mine"


async def test_what_a_process_writes_after_its_cell_is_in_no_other(siege: Siege) -> None:
    session = siege.session()
    await siege.attack(
        "import subprocess; subprocess.Popen(['sh', '-c', 'while true; do echo late; sleep 0.02; done'])", session
    )
    assert await siege.said("time.sleep(0.2); print('mine')", session) == "mine"


#: What goes on beside the cell that starts it: all of it at the same time.
WORKERS = """
import threading
def work(until=time.time() + 20):
    while time.time() < until: pass
    return True
threading.Thread(target=work, daemon=True).start()
if not os.fork(): work() and os._exit(0)
if not os.fork():
    os.setsid()
    os.fork() and os._exit(0)
    work() and os._exit(0)
if not os.fork():
    # Stopped, it is to be woken by a timer every 50 ms.
    signal.signal(signal.SIGCONT, lambda *_: None)
    libc, timer = ctypes.CDLL(None), ctypes.c_void_p()
    libc.timer_create(1, struct.pack("Qii48x", 0, signal.SIGCONT, 0), ctypes.byref(timer))
    libc.timer_settime(timer, 0, struct.pack("4q", 0, 50_000_000, 0, 50_000_000), None)
    work() and os._exit(0)
time.sleep(0.1)
"""


@EITHER
async def test_nothing_of_a_session_uses_the_processor_between_its_cells(siege: Siege) -> None:
    session = siege.session()
    assert (await siege.attack(WORKERS, session)).status == "ok"
    await _come_to_rest()


async def _come_to_rest() -> None:
    """Fails unless all that this process has started comes to rest, for which it has ten seconds, and stays there."""
    for _ in range(50):
        # It is paused half a second after its cell.
        if await _used_s(0.2) < 0.02:
            break
    assert await _used_s(AWHILE_S) < 0.1 * AWHILE_S


async def _used_s(time_s: float) -> float:
    before = _processor_s()
    await asyncio.sleep(time_s)
    return _processor_s() - before


def _processor_s() -> float:
    """What all descendants of this process have used so far."""
    used, waiting = 0.0, [os.getpid()]
    for pid in waiting:
        try:
            waiting += [
                int(child)
                for task in Path(f"/proc/{pid}/task").iterdir()
                for child in (task / "children").read_text("ascii").split()
            ]
            if pid != os.getpid():
                fields = Path(f"/proc/{pid}/stat").read_text("ascii", errors="replace").rpartition(")")[2].split()
                used += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
        except OSError:
            continue
    return used


#: `jmp .`, written over what the sandbox's first process goes on with when a child of its has ended.
TAKEN_OVER = """
with open("/proc/1/syscall") as told, open("/proc/1/mem", "r+b", 0) as memory:
    memory.seek(int(told.read().split()[-1], 16)); memory.write(bytes([0xEB, 0xFE]))
if not os.fork():
    if not os.fork(): os._exit(0)
    os._exit(0)
time.sleep(0.2)
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the instruction is x86_64's")
async def test_the_first_process_of_a_sandbox_is_paused_too_or_cannot_be_taken_over(siege: Siege) -> None:
    session = siege.session()
    await siege.attack(TAKEN_OVER, session)
    await _come_to_rest()


async def test_memory_is_watched_between_cells(siege: Siege) -> None:
    session = siege.session()
    code = (
        "for child in range(10):\n"
        "    if not os.fork():\n"
        "        time.sleep(0.05); kept = bytearray(60 << 20); time.sleep(20); os._exit(0)\n"
    )
    assert (await siege.attack(code, session)).status == "ok"
    await asyncio.sleep(AWHILE_S)
    # On a machine that is slow enough they are paused before they have it, and go on with the next cell.
    again = await siege.run("import time; time.sleep(2)", session)
    assert RESTARTED in told(again) or again.status == "limit"


async def test_a_cell_that_is_given_up_does_not_go_on(siege: Siege) -> None:
    session = siege.session()
    await siege.said("1", session)
    code = "import time\ndef go():\n    try: time.sleep(60)\n    except BaseException: go()\ngo()"
    running = asyncio.create_task(siege.run(code, session))
    await asyncio.wait({running}, timeout=0.3)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await siege.goes_on()
    again = await siege.run("6 * 7", session)
    assert said(again) == "42"
    assert RESTARTED in told(again)


#: Sends to where nobody listens any more would wait for ever.
HANG_UP = f"{KERNEL}\napp.control_socket.close(); app.shell_socket.close()\nwhile True: pass"


@EITHER
async def test_a_kernel_that_hangs_up_holds_nobody_up(siege: Siege) -> None:
    session = siege.session()
    outcome = await siege.attack(HANG_UP, session, time_s=5.0)
    assert outcome.status in ("timeout", "died")
    assert said(await siege.run("6 * 7", session)) == "42"


# -- what is left for the server ---------------------------------------------------------------------------

LINKS = """
os.symlink("/etc/passwd", "passwd.txt"); os.symlink("/proc/1/root/etc/passwd", "first.txt")
os.symlink("/proc/self/environ", "environ.txt"); os.symlink("/", "directory"); os.symlink("..", "above")
os.symlink("/proc/1/root", "root"); os.symlink("loop", "loop"); os.mkfifo("pipe.csv")
waiting = socket.socket(1); waiting.bind("socket.csv")
open("real.txt", "w").write("real"); os.link("real.txt", "hard.txt")
"""


async def test_links_and_pipes_are_not_followed_by_the_server(siege: Siege) -> None:
    session = siege.session()
    kept = Kept()
    outcome = await siege.attack(LINKS, session, keep=kept)
    assert [file.name for file in outcome.files] == ["hard.txt", "real.txt"]
    assert kept.files == {"real.txt": b"real", "hard.txt": b"real"}
    await siege.attack("os._exit(1)", session)
    again = await siege.run("import os; print(sorted(os.listdir()))", session)
    assert said(again) == "['hard.txt', 'real.txt']"


async def test_a_file_that_is_swapped_for_a_link_while_it_is_read_shows_nothing_of_the_machine(siege: Siege) -> None:
    session = siege.session()
    code = (
        "if not os.fork():\n"
        "    until = time.time() + 4\n"
        "    while time.time() < until:\n"
        "        for name in ('f', 'd/f'):\n"
        "            try:\n"
        "                os.makedirs('d', exist_ok=True); open('t', 'w').write('mine' * 1000); os.rename('t', name)\n"
        "                os.symlink('/etc/passwd', 't'); os.rename('t', name)\n"
        "                os.symlink('/etc', 't'); os.rename('d', 'e'); os.rename('t', 'd'); os.unlink('d')\n"
        "                os.rename('e', 'd')\n"
        "            except OSError: pass\n"
        "    os._exit(0)"
    )
    await siege.attack(code, session)
    kept = Kept()
    for _ in range(30):
        await siege.run("1", session, keep=kept)
        assert not any(b"root:x:0" in data for data in kept.files.values())
    assert kept.files, "it has been read at all"


async def test_names_of_files_are_told_in_one_line_and_lead_nowhere(siege: Siege) -> None:
    code = (
        "for name in (b'a\\n\\nstdout:\\n', b'x' * 255, b'\\xff\\xfe.txt', b'\\xed\\xb2\\x80', b'```', b'\\x1b[2J', "
        "b'..', b'C:\\\\x', b' ', b'-rf', '\\u2028'.encode(), b'\\r'):\n"
        "    try: open(name, 'w').write('x')\n"
        "    except OSError: pass"
    )
    outcome = await siege.attack(code)
    assert len(outcome.files) == 11
    assert all("/" not in file.name and file.name.isprintable() for file in outcome.files), outcome.files
    assert told(outcome).startswith("Files: ")
    assert len(told(outcome).splitlines()) == 1
    told(outcome).encode()


async def test_a_file_is_put_where_the_code_has_planted_something_else(siege: Siege, tmp_path: Path) -> None:
    attached = tmp_path / "attached"
    attached.write_text("attached")
    session = siege.session()
    plant = "os.symlink('/tmp/elsewhere', 'a.csv'); os.mkfifo('b.csv'); os.mkdir('c.csv'); os.symlink('.', 'd')"
    await siege.attack(plant, session)
    names = ("a.csv", "b.csv", "c.csv", "d/e.csv")
    files = [AttachedFile(name, name, 8, "", attached) for name in names]
    look = (
        "import os\nfor name in ('a.csv', 'b.csv'): print(open(name).read())\n"
        "print(os.path.islink('a.csv'), os.path.exists('/tmp/elsewhere'), os.path.exists('e.csv'))"
    )
    outcome = await siege.run(look, session, files=files)
    assert said(outcome).splitlines() == ["attached", "attached", "False False False"]
    assert sum("is not there" in note for note in outcome.notes) == 2
    assert stat.S_IMODE(attached.stat().st_mode) & 0o200


async def test_sessions_of_the_same_name_are_not_the_same_for_another_caller(siege: Siege) -> None:
    session = siege.session()
    await siege.said("mine = 1; open('mine', 'w').write('1')", session)
    outcome = await siege.kernels.run(
        "import os; print(os.listdir(), 'mine' in globals())", caller="x", session=session
    )
    assert said(outcome) == "[] False"
