"""The same tool on kernels of a real Jupyter Kernel Gateway, which are in sandboxes by our provisioner."""

import ast
import asyncio
import contextlib
import hashlib
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from gateway_server import CANARY, GatewayServer, gateway_server
from keeping import Kept
from serving import HANG_S
from tools.attached import AttachedFile
from tools.errors import RetryableToolError, ToolError
from tools.kernel_settings import KernelSettings
from tools.kernels.gateway import Gateway, GatewayKernel
from tools.kernels.service import open_kernels
from tools.outcomes import Kernels, MadeFile, Outcome, Picture, Raised, Shown, Written
from tools.stores import Store, open_store


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayServer]:
    """One for all tests that leave it alive. What a cell needs it imports itself: so kernels start quickly."""
    with gateway_server(preload=[], memory_bytes=512 << 20) as server:
        yield server


@contextlib.asynccontextmanager
async def _kernels(gateway: GatewayServer, shared: Store | None = None, **settings: Any) -> AsyncIterator[Kernels]:
    given = {"url": gateway.url, "token": gateway.token, "pool": 0, **settings}
    kernels = open_kernels(KernelSettings(backend="gateway", **given), shared)
    try:
        yield kernels
    finally:
        await kernels.aclose()


async def _run(kernels: Kernels, code: str, session: str | None = "one", **kwargs: Any) -> Outcome:
    return await kernels.run(code, caller="me", session=session, **kwargs)


def _value(outcome: Outcome) -> Any:
    [shown] = [piece for piece in outcome.pieces if isinstance(piece, Shown)]
    return ast.literal_eval(shown.text)


def _attached(path: Path, name: str) -> AttachedFile:
    data = path.read_bytes()
    return AttachedFile(f"file-{name}", name, len(data), hashlib.sha256(data).hexdigest(), path)


async def test_a_session_goes_on_from_cell_to_cell(gateway: GatewayServer) -> None:
    async with _kernels(gateway) as kernels:
        assert (await _run(kernels, "x = 40")).status == "ok"
        failed = await _run(kernels, "print('before'); 1 / 0")
        assert failed.status == "error"
        assert [type(piece) for piece in failed.pieces] == [Written, Raised]
        told = await _run(kernels, "print('out'); import sys; print('err', file=sys.stderr); x + 2")
        assert told.status == "ok"
        assert set(told.pieces) == {Written("stdout", "out\n"), Written("stderr", "err\n"), Shown("42", is_result=True)}


@pytest.mark.parametrize("nothing", ["", " \n "])
async def test_a_cell_of_nothing_costs_nothing(gateway: GatewayServer, nothing: str) -> None:
    async with _kernels(gateway) as kernels:
        await _run(kernels, "x = 1")
        assert (await _run(kernels, nothing)).status == "ok"
        assert _value(await _run(kernels, "x")) == 1


async def test_a_figure_is_a_picture(gateway: GatewayServer) -> None:
    async with _kernels(gateway) as kernels:
        outcome = await _run(kernels, "import matplotlib.pyplot as plt\nplt.plot([1, 3, 2])\nplt.show()")
        [picture] = [piece for piece in outcome.pieces if isinstance(piece, Picture)]
        assert picture.data.startswith(b"\x89PNG")
        assert picture.name == "image-1.png"


async def test_what_takes_too_long_is_interrupted_and_its_kernel_lives_on(gateway: GatewayServer) -> None:
    async with _kernels(gateway) as kernels:
        await _run(kernels, "x = 1")
        late = await _run(kernels, "print('begun')\nwhile True: pass", time_s=0.5)
        assert late.status == "timeout"
        assert late.pieces == (Written("stdout", "begun\n"),)
        assert _value(await _run(kernels, "x")) == 1


async def test_what_does_not_heed_the_interrupt_costs_its_kernel(gateway: GatewayServer) -> None:
    deaf = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nsum(range(10**12))"
    async with _kernels(gateway, interrupt_grace_s=0.3) as kernels:
        await _run(kernels, "x = 1")
        late = await _run(kernels, deaf, time_s=0.3)
        assert late.status == "timeout"
        assert any("killed" in note for note in late.notes)
        anew = await _run(kernels, "'x' in globals()")
        assert anew.pieces == (Shown("False", is_result=True),)
        assert any("restarted" in note for note in anew.notes)


@pytest.mark.parametrize("end", ["import os; os._exit(0)", "import ctypes; ctypes.string_at(0)"])
async def test_a_kernel_that_ended_by_itself_is_not_taken_for_the_one_that_the_gateway_puts_in_its_place(
    gateway: GatewayServer, end: str
) -> None:
    async with _kernels(gateway) as kernels:
        await _run(kernels, "x = 1")
        assert (await _run(kernels, end)).status == "died"
        anew = await _run(kernels, "'x' in globals()")
        assert anew.pieces == (Shown("False", is_result=True),)
        assert any("restarted" in note for note in anew.notes)
    assert gateway.kernels() == []


async def test_memory_is_bounded_at_the_gateway_over_all_processes(gateway: GatewayServer) -> None:
    bomb = (
        "import os, time\n"
        "for _ in range(20):\n"
        "    if not os.fork():\n"
        "        held = b'x' * (60 << 20); time.sleep(60); os._exit(0)\n"
        "time.sleep(60)"
    )
    async with _kernels(gateway) as kernels:
        assert (await _run(kernels, bomb, time_s=30)).status == "died"


async def test_files_go_in_and_those_that_were_made_come_out(gateway: GatewayServer, tmp_path: Path) -> None:
    # Longer than one piece, and no text.
    given = bytes(range(256)) * 10_000
    path = tmp_path / "given"
    path.write_bytes(given)
    async with _kernels(gateway) as kernels:
        files = [_attached(path, "给定 'x'.bin"), _attached(path, "same.bin")]
        outcome = await _run(kernels, "data = open(\"给定 'x'.bin\", 'rb').read(); len(data)", files=files)
        assert _value(outcome) == len(given)
        assert outcome.files == ()
        kept = Kept()
        made = await _run(
            kernels,
            "import os\nos.makedirs('sub')\n"
            "open('sub/back.bin', 'wb').write(data[::-1])\nopen('same.bin', 'ab').write(b'!')\nopen('empty', 'w')",
            keep=kept,
        )
        assert [file.name for file in made.files] == ["empty", "same.bin", "sub/back.bin"]
        assert kept.files == {
            "sub/back.bin": given[::-1],
            "same.bin": given + b"!",
            "empty": b"",
        }
        assert (await _run(kernels, "1")).files == ()


async def test_servers_with_one_store_have_their_sessions_in_common(gateway: GatewayServer, tmp_path: Path) -> None:
    before = set(gateway.kernels())
    path = tmp_path / "given"
    path.write_bytes(b"given")
    stores = [open_store(f"sqlite:///{tmp_path / 'state.db'}", max_bytes=10**6) for _ in range(2)]
    async with _kernels(gateway, shared=stores[0]) as one, _kernels(gateway, shared=stores[1]) as other:
        assert (
            await _run(one, "import os; x = 40; open('made', 'w')", files=[_attached(path, "given")])
        ).status == "ok"
        [kernel] = set(gateway.kernels()) - before
        kept = Kept()
        gone_on = await _run(other, "os.chdir('/tmp'); x += 2; open('/mnt/data/given', 'a').write('!'); x", keep=kept)
        assert _value(gone_on) == 42
        assert kept.files == {"given": b"given!"}
        back = await _run(one, "os.getcwd(), x", files=[_attached(path, "given")])
        assert (_value(back), back.files, back.notes) == (("/tmp", 42), (), ())  # noqa: S108
        # It ends meanwhile, and nobody is told before the next cell.
        async with httpx.AsyncClient(headers={"Authorization": f"token {gateway.token}"}, trust_env=False) as http:
            await http.delete(f"{gateway.url}/api/kernels/{kernel}")
        anew = await _run(other, "'x' in globals()")
        assert (_value(anew), anew.notes[0].split(":")[0]) == (False, "The session had ended and starts anew")
        assert len(set(gateway.kernels()) - before) == 1
    assert set(gateway.kernels()) == before
    for store in stores:
        await store.aclose()


async def test_a_kernel_that_ended_while_nobody_was_there_is_not_taken_for_the_one_in_its_place(
    gateway: GatewayServer,
) -> None:
    """As when the worker that had it last was killed, too."""
    begun = Gateway(KernelSettings(backend="gateway", url=gateway.url, token=SecretStr(gateway.token)))
    kernel = await begun.begin()
    assert isinstance(kernel, GatewayKernel)
    await kernel.execute("import os, threading; threading.Timer(0.3, os._exit, [1]).start()", time_s=HANG_S)
    restarts = gateway.said().count("restarting kernel")
    await kernel.let_go()
    while gateway.said().count("restarting kernel") == restarts:
        await asyncio.to_thread(gateway.heard)
    assert await begun.attach(kernel.id, kernel.directory, kernel.executions) is None
    assert gateway.kernels() == []
    await begun.aclose()


async def test_a_kernel_that_was_let_go_of_is_found_again(gateway: GatewayServer) -> None:
    begun = Gateway(KernelSettings(backend="gateway", url=gateway.url, token=SecretStr(gateway.token)))
    kernel = await begun.begin()
    assert isinstance(kernel, GatewayKernel)
    await kernel.execute("x = 41", time_s=HANG_S)
    await kernel.let_go()
    again = await begun.attach(kernel.id, kernel.directory, kernel.executions)
    assert again and _value(await again.execute("x + 1", time_s=HANG_S)) == 42
    await again.aclose()
    assert await begun.attach(kernel.id, kernel.directory, kernel.executions) is None
    await begun.aclose()


async def test_files_that_are_kept_are_no_flood_of_the_cells(gateway: GatewayServer) -> None:
    # In pieces of a megabyte they come through the channel that output comes through.
    kept = Kept()
    async with _kernels(gateway, images=0, output_bytes=10_000, messages=10) as kernels:
        made = await _run(kernels, "x = 1\nfor n in range(8): open(f'{n}', 'wb').write(bytes(3 << 20))", keep=kept)
        assert (made.status, made.notes) == ("ok", ())
        assert [len(data) for data in kept.files.values()] == [3 << 20] * 8
        assert _value(await _run(kernels, "x")) == 1


async def test_a_kernel_that_ends_while_its_files_are_kept_holds_nobody_up(gateway: GatewayServer) -> None:
    kept = Kept()
    code = "import os, threading\nfor n in range(12): open(f'{n}', 'wb').write(bytes(5 << 20))\n"
    async with _kernels(gateway) as kernels, asyncio.timeout(25):
        made = await _run(kernels, code + "threading.Timer(0.2, os._exit, [1]).start()", keep=kept)
    assert len(kept.files) < 12 and any(note.startswith("Not kept: ") for note in made.notes)


async def test_what_is_no_file_of_theirs_is_not_told(gateway: GatewayServer) -> None:
    code = """
        import os
        os.symlink('/etc/passwd', 'link')
        os.symlink('/proc', 'linked')
        os.mkfifo('pipe')
        os.makedirs('.hidden'); open('.hidden/a', 'w'); open('.b', 'w')
        os.makedirs('__pycache__'); open('__pycache__/c', 'w')
        os.makedirs('/'.join('d' * 30)); open('/'.join('d' * 30) + '/e', 'w')
        open(b'f\\xff\\n', 'w').write('f')
        os.chdir('/tmp')
        open('elsewhere', 'w')
    """
    async with _kernels(gateway) as kernels:
        kept = Kept()
        await _run(kernels, "\n".join(line.strip() for line in code.splitlines()), keep=kept)
        assert kept.files == {"f\ufffd\ufffd": b"f"}


async def test_a_file_that_is_too_long_is_told_and_not_read(gateway: GatewayServer) -> None:
    async with _kernels(gateway, file_bytes=1 << 20) as kernels:
        outcome = await _run(kernels, "open('long', 'wb').write(bytes((1 << 20) + 1))", keep=Kept())
        assert outcome.files == (MadeFile("long", (1 << 20) + 1, None),)
        assert outcome.notes == ("Not kept: 'long'. It is longer than 1,048,576 bytes.",)


@pytest.mark.parametrize(
    "spoiling",
    [
        "import base64; base64.b64encode = lambda _: b'!!'",
        "__import__ = None",
        "get_ipython().display_formatter.formatters['text/plain'].for_type(str, lambda s, p, c: p.text('ok:!!'))",
        "get_ipython().user_expressions = lambda _: {'florette': 'nothing'}",
        "import json; json.dumps = lambda _: '[1, [2], [3, 4, 5, 6, 7]]'",
    ],
)
async def test_a_kernel_that_does_not_answer_as_it_should_keeps_its_files_to_itself(
    gateway: GatewayServer, spoiling: str
) -> None:
    async with _kernels(gateway) as kernels:
        outcome = await _run(kernels, f"open('a', 'w').write('a')\n{spoiling}\nprint('said')")
        assert outcome.pieces == (Written("stdout", "said\n"),)
        assert outcome.files == ()
        assert (await _run(kernels, "print('goes on')")).pieces == (Written("stdout", "goes on\n"),)


async def test_our_own_questions_leave_nothing_behind(gateway: GatewayServer, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"a")
    async with _kernels(gateway) as kernels:
        await _run(kernels, "before = set(globals()); 6 * 7", files=[_attached(path, "a")])
        assert _value(await _run(kernels, "_")) == 42
        told = await _run(
            kernels,
            "import os\n([[name for name in set(globals()) - before if name[0] != '_'], In, os.listdir()])",
        )
        names, history, files = _value(told)
        assert set(names) <= {"before", "os"}
        assert len(history) == 4
        assert files == ["a"]


async def test_two_sessions_know_nothing_of_each_other(gateway: GatewayServer) -> None:
    look = "import os; (['x' in globals(), os.listdir('.')])"
    async with _kernels(gateway) as kernels:
        await asyncio.gather(*(_run(kernels, f"x = open('{name}', 'w')", name) for name in ("one", "two")))
        one, two = await asyncio.gather(*(_run(kernels, look, name) for name in ("one", "two")))
        assert (_value(one), _value(two)) == ([True, ["one"]], [True, ["two"]])


async def test_the_kernel_is_in_a_sandbox_of_the_gateway(gateway: GatewayServer) -> None:
    look = f"""
        import os, socket, glob
        def found():
            for path in glob.glob('/proc/[0-9]*/environ') + glob.glob('/proc/[0-9]*/cmdline'):
                try: yield open(path).read()
                except OSError: pass
        def connected():
            try: socket.create_connection(('127.0.0.1', {gateway.port}), 2); return True
            except OSError: return False
        ([list(found()) + [str(os.environ)], connected(), os.path.exists('/etc/passwd'), os.getcwd()])
    """
    async with _kernels(gateway) as kernels:
        outcome = await _run(kernels, "\n".join(line[8:] for line in look.splitlines()))
        texts, connected, sees_machine, place = _value(outcome)
        assert not [text for text in texts if CANARY in text or gateway.token in text]
        assert (connected, sees_machine, place) == (False, False, "/mnt/data")


async def test_the_token_is_asked_for_and_told_to_nobody(
    gateway: GatewayServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with _kernels(gateway, token="not-this-one-5f1e") as kernels:
        with pytest.raises(
            ToolError, match=r"the gateway of the kernels refuses to start one \(status 40[13]\)"
        ) as raised:
            await _run(kernels, "1")
    async with _kernels(gateway) as kernels:
        await _run(kernels, "1")
    said = f"{raised.value} {caplog.text} {raised.value.__cause__!r}"
    assert "not-this-one-5f1e" not in said
    assert gateway.token not in said


async def test_a_kernelspec_that_is_not_there_is_told_to_the_operator(
    gateway: GatewayServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with _kernels(gateway, kernel_name="absent") as kernels:
        with pytest.raises(ToolError, match=r"could not start one \(status 500\)"):
            await _run(kernels, "1")
    assert "No such kernel named absent" in caplog.text


async def test_an_image_that_is_too_long_for_a_message_is_lost_and_the_cell_says_so(gateway: GatewayServer) -> None:
    code = (
        "import os\nfrom IPython.display import Image, display\n"
        "print('before')\nx = 1\n"
        "display(Image(data=b'\\x89PNG\\r\\n\\x1a\\n' + os.urandom(9_000_000), format='png'))"
    )
    async with _kernels(gateway) as kernels:
        outcome = await _run(kernels, code)
        assert outcome.pieces[:1] == (Written("stdout", "before\n"),)
        assert not [piece for piece in outcome.pieces if isinstance(piece, Picture)]
        assert any("lost" in note for note in outcome.notes)
        assert _value(await _run(kernels, "x")) == 1


async def test_output_without_end_is_cut_off_and_interrupted(gateway: GatewayServer) -> None:
    async with _kernels(gateway, output_bytes=100_000) as kernels:
        outcome = await _run(kernels, "while True: print('x' * 1000)", time_s=20)
        assert outcome.status == "limit"
        assert outcome.duration_s < 10
        assert sum(len(piece.text) for piece in outcome.pieces if isinstance(piece, Written)) <= 100_000


class _Relay:
    """Passes connections on to the gateway, and breaks them when it is asked to."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: list[asyncio.StreamWriter] = []
        self.is_cut_off = False

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_cut_off:
            writer.transport.abort()
            return
        onward_reader, onward = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += [writer, onward]
        with contextlib.suppress(OSError):
            await asyncio.gather(_pump(reader, onward), _pump(onward_reader, writer))

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def _relayed(gateway: GatewayServer) -> AsyncIterator[tuple[_Relay, str]]:
    relay = _Relay(gateway.port)
    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    try:
        yield relay, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        relay.cut()
        server.close()


async def test_a_connection_that_breaks_is_made_anew_and_the_cell_goes_on(gateway: GatewayServer) -> None:
    async with _relayed(gateway) as (relay, url), _kernels(gateway, url=url) as kernels:
        await _run(kernels, "import time; x = 1")
        running = asyncio.create_task(_run(kernels, "time.sleep(1.5); print('at the end'); x + 1"))
        asyncio.get_running_loop().call_later(0.5, relay.cut)
        outcome = await running
        assert outcome.status == "ok"
        assert outcome.pieces == (Written("stdout", "at the end\n"), Shown("2", is_result=True))
        relay.cut()
        counted = await _run(kernels, "x += 1; x")
        assert counted.pieces == (Shown("2", is_result=True),)


async def test_a_kernel_that_cannot_be_reached_any_more_counts_as_dead(gateway: GatewayServer) -> None:
    async with _relayed(gateway) as (relay, url), _kernels(gateway, url=url) as kernels:
        await _run(kernels, "import time")
        running = asyncio.create_task(_run(kernels, "time.sleep(30)"))

        def cut_off() -> None:
            relay.is_cut_off = True
            relay.cut()

        asyncio.get_running_loop().call_later(1, cut_off)
        assert (await running).status == "died"
        relay.is_cut_off = False


async def _until_another_is_started(gateway: GatewayServer, before: str) -> None:
    while "Kernel started" not in gateway.said()[len(before) :]:
        await asyncio.to_thread(gateway.heard)


async def test_a_kernel_that_nobody_waits_for_any_more_is_ended(gateway: GatewayServer) -> None:
    async with _kernels(gateway) as kernels:
        before = gateway.said()
        leaving = asyncio.create_task(_run(kernels, "1", None))
        await _until_another_is_started(gateway, before)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
    assert gateway.kernels() == []


async def test_a_gateway_that_has_gone_is_told_and_used_again_when_it_is_back(gateway: GatewayServer) -> None:
    async with _kernels(gateway) as kernels:
        await _run(kernels, "x = 1")
        await asyncio.to_thread(gateway.stop)
        try:
            with pytest.raises(RetryableToolError, match="the gateway of the kernels cannot be reached"):
                # A cell that began before that was noticed dies with its kernel.
                while (await _run(kernels, "x")).status == "died":
                    pass
        finally:
            await asyncio.to_thread(gateway.start)
        anew = await _run(kernels, "'x' in globals()")
        assert anew.pieces == (Shown("False", is_result=True),)
        assert any("restarted" in note for note in anew.notes)
