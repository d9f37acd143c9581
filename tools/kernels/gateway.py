"""Kernels on other machines: those of a Jupyter Kernel Gateway, an Enterprise Gateway, or a Jupyter Server.

    POST /api/kernels -> the kernel's id      WS /api/kernels/<id>/channels: its messages      DELETE: it ends

Sources: jupyter_server's REST API, and its "WebSocket kernel wire protocols", of which all speak the first (JSON).
"""

import asyncio
import contextlib
import json
import socket
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from tools.errors import ToolError
from tools.kernel_settings import KernelSettings
from tools.kernels.cells import INTERRUPTS, CellLimits
from tools.kernels.driving import Driver
from tools.kernels.gateway_requests import REQUEST_TIMEOUT_S, START_TIMEOUT_S, Requests, part
from tools.kernels.kernel import Changes, Kernel
from tools.kernels.remote_files import CHUNK_BYTES, WHERE, RemoteFiles
from tools.outcomes import Outcome, Piece, Raised
from tools.sandbox.workdir import Changed

#: What a kernel put out right after we came may not have reached us: then it is asked again.
_GREETING_AGAIN_S = 0.5

#: A kernel that has nothing to do answers within milliseconds; threads that its code left behind may hold it up.
_ANSWER_TIMEOUT_S = 30.0

#: A message that is too long costs the connection, and a cell that puts out some of them may go on nevertheless.
_MOST_CONNECTIONS = 10

#: What the gateway says of a kernel when its process had ended, and another has taken its place, or none could.
_GONE = frozenset(("restarting", "autorestarting", "dead"))

#: Told of a cell during which the connection broke: what was on its way has gone.
_LOST = "The connection to the kernel broke while the code ran: some of its output may be lost."

#: What gateways put out in place of what they leave out, as it is too much at once.
_RATE_EXCEEDED = ("IOPub data rate exceeded", "IOPub message rate exceeded")
_FLOODED = "The code put out more at once than the gateway of the kernels passes on: the rest is left out."

#: What a question of ours brings, which is none of a cell's output: that it is busy, the answer, that it is idle; and a
#: piece of a file in base64, which is the longest of them.
_ANSWER_MESSAGES = 3
_ANSWER_BYTES = CHUNK_BYTES * 3 // 2

Message = Mapping[str, Any]


class Gateway:
    """Begins kernels in the gateway of the settings. Used inside one loop."""

    def __init__(self, settings: KernelSettings) -> None:
        self._settings = settings
        self._requests: Requests | None = None
        self._leaving: set[asyncio.Task[None]] = set()

    async def begin(self) -> Kernel:
        """A new kernel, ready to run its first cell. ToolError if the gateway does not start one."""
        requests = self._opened()
        starting = asyncio.create_task(requests.start(self._settings.kernel_name))
        try:
            kernel_id = await asyncio.shield(starting)
        except asyncio.CancelledError:
            # The gateway starts it nevertheless.
            self._aside(_left(requests, starting))
            raise
        kernel = GatewayKernel(requests, kernel_id, self._settings)
        try:
            await kernel.greeted()
        except BaseException:
            # Whoever leaves may be told to leave once more.
            await asyncio.shield(self._aside(kernel.aclose()))
            raise
        return kernel

    async def attach(self, kernel_id: str, directory: str, executions: int) -> "GatewayKernel | None":
        """A kernel that was let go of after so many cells; None if it has gone. ToolError if it does not answer.

        It has gone, too, if it ended while nobody was there to see it: then another has its id, which is ended.
        RetryableToolError if the gateway cannot be reached.
        """
        requests = self._opened()
        if not await requests.knows(kernel_id):
            return None
        kernel = GatewayKernel(requests, kernel_id, self._settings)
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                await kernel.greeted(directory)
        except TimeoutError:
            # It runs a cell of somebody who was killed, and whose it was to stop it.
            await asyncio.shield(self._aside(kernel.aclose()))
            return None
        except BaseException as error:
            has_gone = isinstance(error, ToolError) and not kernel.alive
            await asyncio.shield(self._aside(kernel.let_go()))
            if has_gone:
                return None
            raise
        if kernel.executions < executions:
            await asyncio.shield(self._aside(kernel.aclose()))
            return None
        return kernel

    async def end(self, kernel_id: str) -> None:
        """Ends a kernel that was let go of."""
        await self._opened().end(kernel_id)

    async def aclose(self) -> None:
        """Lets go of the gateway; its kernels have been closed."""
        if self._leaving:
            await asyncio.wait(self._leaving.copy())
        if self._requests is not None:
            await self._requests.aclose()

    def _opened(self) -> Requests:
        # In the loop.
        if self._requests is None:
            self._requests = Requests(self._settings)
        return self._requests

    def _aside(self, ending: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(ending)
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        return task


async def _left(requests: "Requests", starting: "asyncio.Task[str]") -> None:
    with contextlib.suppress(ToolError):
        await requests.end(await starting)


class GatewayKernel:
    """As `Kernel` says."""

    def __init__(self, requests: "Requests", kernel_id: str, settings: KernelSettings) -> None:
        self._requests = requests
        self._id = kernel_id
        # Under the same name we get what was said while we were away.
        self._session = uuid.uuid4().hex
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._connected = asyncio.Event()
        self._connections = 0
        self._questions: dict[str, _Question] = {}
        self._has_greeted = False
        self._is_at_rest = False
        self._cell = _SentCell("", "", has_reply=True)
        self._executions = 0
        self._resuming: asyncio.Task[None] | None = None
        self._interrupting: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._files = RemoteFiles(self._ask, max_files=settings.files, max_bytes=settings.file_bytes)
        self._driver = Driver(
            CellLimits(settings.output_bytes, settings.messages, settings.images, settings.image_bytes),
            settings.interrupt_grace_s,
            partial(requests.interrupt, kernel_id),
            self._kill,
            self._renew,
        )
        self._reader = asyncio.create_task(self._read())

    @property
    def id(self) -> str:
        """As `SharedKernel` says."""
        return self._id

    @property
    def executions(self) -> int:
        """As `SharedKernel` says."""
        return self._executions

    @property
    def directory(self) -> str:
        """As `SharedKernel` says."""
        return self._files.directory

    @property
    def alive(self) -> bool:
        """As `Kernel` says."""
        return self._driver.alive

    async def execute(self, code: str, *, time_s: float) -> Outcome:
        """As `Kernel` says."""
        self._is_at_rest = False
        self._cell = cell = _SentCell(uuid.uuid4().hex, code)
        self._connections = 0
        outcome = await self._driver.run(cell.msg_id, partial(self._send_cell, cell), time_s)
        if cell.is_flooding:
            outcome = replace(outcome, notes=(*outcome.notes, _FLOODED))
        if cell.was_interrupted and outcome.status != "timeout":
            kept = [piece for piece in outcome.pieces if not _is_interrupt(piece)]
            outcome = replace(outcome, status="limit", pieces=tuple(kept))
        if cell.was_cut_off:
            outcome = replace(outcome, notes=(*outcome.notes, _LOST))
        return outcome

    async def settled(self) -> None:
        """As `Kernel` says."""
        await self._driver.settled()

    async def put(self, name: str, path: Path) -> None:
        """As `Kernel` says."""
        await self._files.put(name, path)

    async def changes(self) -> Changes:
        """As `Kernel` says."""
        files = await self._files.changes()
        return Changes(files, self._files.left_out, self._files.unread)

    def read(self, file: Changed) -> AsyncGenerator[bytes, None]:
        """As `Kernel` says."""
        return self._files.read(file)

    async def inherit(self, dead: Kernel) -> None:
        """Never: the files of a kernel end with it, or lie where only the gateway reaches them."""
        return

    def pause(self) -> None:
        """Nothing: gateways have no word for it."""

    def resume(self) -> None:
        """Nothing, as nothing was paused."""

    async def aclose(self) -> None:
        """As `Kernel` says."""
        self._kill()
        await self._gone()

    def rest(self) -> None:
        """As `SharedKernel` says."""
        self._is_at_rest = True

    async def let_go(self) -> None:
        """As `SharedKernel` says."""
        self._leave(ends_it=False)
        await self._gone()

    async def _gone(self) -> None:
        tasks = (self._reader, self._resuming, self._interrupting, self._ending)
        await asyncio.wait({task for task in tasks if task is not None})
        await self._driver.settled()

    # -- questions of ours -------------------------------------------------------------------------------------

    async def greeted(self, directory: str | None = None) -> None:
        """Returns when what the kernel puts out reaches us. ToolError if that does not happen.

        Of one that was let go of, `directory` is where its files are; those that are there are no news.
        """
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                answer = await self._greeting()
        except TimeoutError:
            raise ToolError("A kernel started at the gateway, and did not answer.") from None
        if not self.alive:
            raise ToolError("A kernel started at the gateway, and ended at once.")
        self._has_greeted = True
        self._executions = part(answer, "execution_count", int)
        if directory is None:
            self._files.found(_value_of(answer))
        else:
            await self._files.go_on(directory)

    async def _greeting(self) -> Message:
        while True:
            async with self._asking(WHERE) as question:
                answer = await question.answer
                try:
                    async with asyncio.timeout(_GREETING_AGAIN_S if self.alive else 0):
                        await question.idle.wait()
                except TimeoutError:
                    if self.alive:
                        continue
                return answer

    async def _ask(self, expression: str) -> str:
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S), self._asking(expression) as question:
                return _value_of(await question.answer)
        except TimeoutError:
            raise ToolError("The kernel does not answer.") from None

    @contextlib.asynccontextmanager
    async def _asking(self, expression: str) -> AsyncIterator["_Question"]:
        # No cell: it has no output, no number, and no place in the history.
        self._driver.expects(messages=_ANSWER_MESSAGES, size_bytes=_ANSWER_BYTES)
        msg_id = uuid.uuid4().hex
        question = self._questions[msg_id] = _Question()
        content = {"code": "", "silent": True, "store_history": False, "user_expressions": {"florette": expression}}
        try:
            if not await self._send(msg_id, content):
                question.answered({})
            yield question
        finally:
            del self._questions[msg_id]

    # -- the connection ----------------------------------------------------------------------------------------

    async def _send_cell(self, cell: "_SentCell") -> None:
        # If it fails, the connection has broken, and it is sent again when there is another.
        await self._send(cell.msg_id, {"code": cell.code, "silent": False, "store_history": True})

    async def _send(self, msg_id: str, content: Message) -> bool:
        message = {
            "channel": "shell",
            "header": {
                "msg_id": msg_id,
                "msg_type": "execute_request",
                "username": "florette",
                "session": self._session,
                "date": datetime.now(UTC).isoformat(),
                "version": "5.4",
            },
            "parent_header": {},
            "metadata": {},
            "content": {"user_expressions": {}, "allow_stdin": False, "stop_on_error": False, **content},
            "buffers": [],
        }
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                await self._connected.wait()
                if self._socket is None or not self.alive:
                    return False
                await self._socket.send_str(json.dumps(message))
        except (aiohttp.ClientError, OSError):
            return False
        return True

    async def _read(self) -> None:
        try:
            while self.alive and await self._connect():
                assert self._socket is not None
                async for frame in self._socket:
                    # Others get their turn, however much there is to be read.
                    await asyncio.sleep(0)
                    if frame.type is aiohttp.WSMsgType.TEXT and self._driver.admits([frame.data.encode()]):
                        self._hear(frame.data)
                        _acknowledge(self._socket)
                if self.alive:
                    # Else nobody is to wait for another connection.
                    self._connected.clear()
        finally:
            self._kill()

    async def _connect(self) -> bool:
        self._connections += 1
        if self._connections > _MOST_CONNECTIONS:
            self._driver.end("It put out too much at once, so its kernel was killed.")
            return False
        again = self._socket is not None
        try:
            if again and not await self._requests.knows(self._id):
                return False
            self._socket = await self._requests.channels(self._id, self._session)
        except ToolError:
            return False
        self._connected.set()
        # What it puts out after its answer may have been on its way, too.
        self._cell.was_cut_off = again
        if again and not self._cell.has_reply:
            # One at a time, or the cell could be run twice.
            if self._resuming is not None:
                self._resuming.cancel()
            self._resuming = asyncio.create_task(self._resume(self._cell))
        return True

    async def _resume(self, cell: "_SentCell") -> None:
        # The kernel answers one after the other: when it answers this, the cell's answer is here, or was lost, or the
        # cell has never come there; then the number of cells that were run is the same as before.
        async with self._asking("0") as question:
            answer = await question.answer
        if not answer or cell.has_reply:
            return
        executions = part(answer, "execution_count", int)
        if executions == self._executions:
            cell.was_cut_off = False
            await self._send_cell(cell)
        else:
            self._executions = executions
            self._driver.heard("shell", _execute_reply(cell.msg_id))

    def _hear(self, text: str) -> None:
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            self._driver.end("It sent what is no message, so its kernel was killed.")
            return
        msg_id = part(part(message, "parent_header", dict), "msg_id", str)
        content = part(message, "content", dict)
        question = self._questions.get(msg_id)
        if message.get("channel") == "iopub":
            self._hear_iopub(message, content, question)
        elif message.get("channel") == "shell" and question is not None:
            question.answered(content)
        elif message.get("channel") == "shell":
            self._hear_shell(message, content, is_cell=msg_id == self._cell.msg_id)

    def _hear_iopub(self, message: Message, content: Message, question: "_Question | None") -> None:
        state = part(content, "execution_state", str)
        if self._is_at_rest and part(part(message, "parent_header", dict), "session", str) not in ("", self._session):
            # Another worker uses it: what it does there is not ours to count, or to end.
            self._leave(ends_it=False)
            return
        if state in _GONE or (state == "starting" and self._has_greeted):
            # What runs under its id now, if anything, knows nothing of what the cells before had made.
            self._kill()
            return
        if question is not None and state == "idle":
            question.idle.set()
        if part(content, "text", str).startswith(_RATE_EXCEEDED):
            self._hear_that_it_floods(part(part(message, "parent_header", dict), "msg_id", str))
        else:
            self._driver.heard("iopub", message)

    def _hear_that_it_floods(self, msg_id: str) -> None:
        # What the gateway left out we cannot count.
        cell = self._cell
        if cell.msg_id == msg_id:
            cell.is_flooding = True
            if not cell.has_reply and not cell.was_interrupted:
                cell.was_interrupted = True
                self._interrupting = asyncio.create_task(self._requests.interrupt(self._id))

    def _hear_shell(self, message: Message, content: Message, *, is_cell: bool) -> None:
        if is_cell:
            self._cell.has_reply = True
            executions = part(content, "execution_count", int)
            # IPython does not count a cell of nothing.
            least = self._executions + bool(self._cell.code.strip())
            if executions and executions < least:
                self._kill()
                return
            self._executions = executions
        self._driver.heard("shell", message)

    async def _renew(self) -> None:
        """Nothing: what is lost was lost on the way, and whoever reads from a connection renews it when it breaks."""

    # -- its end -----------------------------------------------------------------------------------------------

    def _kill(self) -> None:
        self._leave(ends_it=True)

    def _leave(self, *, ends_it: bool) -> None:
        if self._ending is None:
            self._ending = asyncio.create_task(self._left(ends_it=ends_it))
            self._driver.ended()
            # Whoever waits goes on.
            self._connected.set()
            for question in [*self._questions.values()]:
                question.answered({})

    async def _left(self, *, ends_it: bool) -> None:
        if self._socket is not None:
            await self._socket.close()
        self._reader.cancel()
        if ends_it:
            await self._requests.end(self._id)


class _Question:
    """Something that we asked the kernel."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self.idle = asyncio.Event()

    def answered(self, content: Message) -> None:
        """The kernel has answered; without content, it never will."""
        if not self.answer.done():
            self.answer.set_result(content)


class _SentCell:
    """What we know of the cell that was sent last."""

    def __init__(self, msg_id: str, code: str, *, has_reply: bool = False) -> None:
        self.msg_id = msg_id
        self.code = code
        self.has_reply = has_reply
        self.was_cut_off = False
        self.is_flooding = False
        self.was_interrupted = False


def _value_of(answer: Message) -> str:
    # What is shown of a str are quotes and what we sent, in which there is nothing to escape.
    told = part(part(answer, "user_expressions", dict), "florette", dict)
    shown: str = part(part(told, "data", dict), "text/plain", str)
    if part(told, "status", str) != "ok":
        raise ToolError("The kernel does not answer.")
    return shown.strip("'")


def _execute_reply(msg_id: str) -> Message:
    return {
        "header": {"msg_type": "execute_reply"},
        "parent_header": {"msg_id": msg_id},
        "content": {"status": "ok"},
    }


def _is_interrupt(piece: Piece) -> bool:
    return isinstance(piece, Raised) and piece.name in INTERRUPTS


def _acknowledge(channels: aiohttp.ClientWebSocketResponse) -> None:
    # Servers write what belongs together in several pieces, and do not send the next one before the last is
    # acknowledged, which Linux would delay by 40 ms: each cell would take ten times as long.
    connection = channels.get_extra_info("socket")
    if connection is not None and hasattr(socket, "TCP_QUICKACK"):
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
