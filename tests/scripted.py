"""An upstream that plays a script: one step for each request, in the order in which the requests arrive.

A raw asyncio HTTP/1.1 server on a loopback port, so that it can do what no web framework lets one do: cut a
character in two, break a connection, fall silent. It says afterwards what of the script was not played.
"""

import asyncio
import contextlib
import reprlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import count

from exchange import Line, Received
from serving import PATIENCE_S, LoopThread
from steps import Fails, Obeys, Step

#: A step, or a function that chooses one by the request, for requests that come in no certain order.
Play = Step | Callable[[Received], Step]

#: What one read takes from a connection at most; asyncio's own buffer holds as much.
READ_BYTES = 65536


class Inbox:
    """What a peer sends, split into requests. Bodies need a content-length."""

    def __init__(self, reader: asyncio.StreamReader, connection: int) -> None:
        self._reader = reader
        self._connection = connection
        self._unread = bytearray()

    async def request(self) -> Received | None:
        """The next request, or None when the peer has closed; ValueError when we cannot read it."""
        while (end := self._unread.find(b"\r\n\r\n")) < 0:
            if not await self._more():
                return None
        first, *lines = self._take(end + 4).decode("latin-1").splitlines()[:-1]
        method, path, _ = first.split(" ", 2)
        headers = dict(_header(line) for line in lines)
        if "transfer-encoding" in headers:
            raise ValueError(f"{method} {path} came with a chunked body, which is not read here")
        size = int(headers.get("content-length", 0))
        while len(self._unread) < size:
            if not await self._more():
                return None
        return Received(method, path, headers, self._take(size), self._connection)

    async def until_closed(self) -> None:
        """Waits until the peer has closed; what it sends meanwhile is kept for the next request."""
        while await self._more():
            pass

    async def _more(self) -> bool:
        try:
            data = await self._reader.read(READ_BYTES)
        except ConnectionError:  # the peer closed with a reset
            return False
        self._unread += data
        return bool(data)

    def _take(self, size: int) -> bytes:
        taken = bytes(self._unread[:size])
        del self._unread[:size]
        return taken


def _header(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.lower(), value.strip()


class ScriptedUpstream:
    """The server. `url` ends with `/v1`; `received` holds the requests of the running script.

    Give it steps inside `fresh()`: the fixture `upstream` is inside one already. Whether it `takes_grammars` (no, as
    long as nobody says otherwise) it tells aside: such requests are `probes`, and need no step. `probed` answers them
    in another way. (Florette remembers what a model told; name one of your own.)
    """

    def __init__(self, loop_thread: LoopThread) -> None:
        self.received: list[Received] = []
        self.takes_grammars = False
        self.probed: Play | None = None
        self.probes: list[Received] = []
        self._loop_thread = loop_thread
        self._script: deque[Play] = deque()
        self._complaints: list[str] = []
        self._arrival = threading.Condition()
        self._connection_numbers = count()
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._answers: dict[asyncio.Task[None], Line] = {}
        self._server = loop_thread.run(asyncio.start_server(self._converse, "127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    def script(self, *steps: Play) -> None:
        """Adds steps to the script."""
        self._script.extend(steps)

    def wait_for(self, requests: int) -> list[Received]:
        """The requests, once there are so many; AssertionError when they do not come."""
        with self._arrival:
            came = self._arrival.wait_for(lambda: len(self.received) >= requests, PATIENCE_S)
        assert came, f"{len(self.received)} requests came, not {requests}"
        return self.received

    @contextlib.contextmanager
    def fresh(self) -> Iterator["ScriptedUpstream"]:
        """An empty script, which ends with the block.

        AssertionError when it was not played as written: a step without its request, a request without a
        step, a step that raised, a complaint of the event loop.
        """
        self._loop_thread.run(self._forget())
        try:
            yield self
        finally:
            self._loop_thread.run(self._settle())
        complaints = self._complaints + self._loop_thread.complaints()
        complaints += [f"this step had no request: {step}" for step in self._script]
        assert not complaints, "\n".join(complaints)

    def close(self) -> None:
        """Stops listening and drops every connection."""
        self._loop_thread.run(self._close())

    async def _forget(self) -> None:
        self.received = []
        self.takes_grammars = False
        self.probed = None
        self.probes = []
        self._complaints = []
        self._script.clear()

    async def _settle(self) -> None:
        for line in self._answers.values():
            if line.waiting:
                line.reset()
        await _finish(self._answers)
        for playing, line in self._answers.items():
            if not playing.done():
                line.reset()
        await _finish(self._answers)

    async def _close(self) -> None:
        self._server.close()
        for writer in self._connections.values():
            writer.transport.abort()
        await _finish(self._connections)
        await self._server.wait_closed()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = _this_task()
        self._connections[task] = writer
        inbox = Inbox(reader, next(self._connection_numbers))
        try:
            while request := await inbox.request():
                if not await self._answer(self._record(request), inbox, writer):
                    break
        except ValueError as error:
            self._complaints.append(str(error))
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            del self._connections[task]

    async def _answer(self, request: Received, inbox: Inbox, writer: asyncio.StreamWriter) -> bool:
        """Plays a step to its end or until the peer leaves; whether the connection can carry another."""
        line = Line(writer)
        playing = asyncio.create_task(self._play(request, line))
        leaving = asyncio.create_task(inbox.until_closed())
        self._answers[playing] = line
        await asyncio.wait({playing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not playing.done():
            request.left.set()
            line.reset()
        for task in (playing, leaving):
            task.cancel()
        await asyncio.wait({playing, leaving})
        del self._answers[playing]
        return not (line.closed or request.left.is_set() or request.headers.get("connection") == "close")

    async def _play(self, request: Received, line: Line) -> None:
        try:
            await self._step_for(request).play(request, line)
        except ConnectionError:
            request.left.set()
        except Exception as error:  # noqa: BLE001 - whatever it is, the test has to know
            self._complaints.append(f"answering {_told(request)} raised {error!r}")
            line.reset()

    def _record(self, request: Received) -> Received:
        kept = self.probes if _is_probe(request) else self.received
        numbered = replace(request, number=len(kept))
        with self._arrival:
            kept.append(numbered)
            self._arrival.notify_all()
        return numbered

    def _step_for(self, request: Received) -> Step:
        if _is_probe(request):
            step = self.probed or (Obeys() if self.takes_grammars else Fails(400))
            return step if isinstance(step, Step) else step(request)
        if not self._script:
            self._complaints.append(f"no step was left for {_told(request)}")
            return Fails(500)
        step = self._script.popleft()
        return step if isinstance(step, Step) else step(request)


def _is_probe(request: Received) -> bool:
    # It only wants to know whether the upstream can be made to say a word.
    if b"const_string" not in request.body:
        return False
    match request.json:
        case {"response_format": {"type": "structural_tag", "format": {"type": "const_string"}}}:
            return True
        case _:
            return False


def _told(request: Received) -> str:
    return f"{request.method} {request.path} {reprlib.repr(request.body)}"


async def _finish(tasks: Iterable[asyncio.Task[None]]) -> None:
    if waited_for := set(tasks):
        await asyncio.wait(waited_for, timeout=PATIENCE_S / 4)


def _this_task() -> asyncio.Task[None]:
    task = asyncio.current_task()
    assert task is not None
    return task
