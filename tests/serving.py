"""One background event loop, and ASGI apps served on it over real loopback sockets.

Tests stay synchronous: servers live on the loop's thread, and a test talks to them as any client would.
"""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import uvicorn
from starlette.types import ASGIApp

T = TypeVar("T")

#: What is asked of the loop takes milliseconds; a loaded machine may need some seconds, and more is a hang.
PATIENCE_S = 30.0

#: What a client waits for an answer: only a hang takes so long, however loaded the machine is.
HANG_S = 60.0

#: Longer than any test run, so that a client never finds its pooled connection closed by the clock.
KEEP_ALIVE_S = 3600

#: An app whose callers have left has nothing to finish; uvicorn cancels what still runs then, and says so.
GRACE_S = 2


class LoopThread:
    """An asyncio loop that runs in a thread of its own until `close`.

    What the loop reports as gone wrong (a task's exception that nobody read, a callback that raised) is
    remembered until `complaints` fetches it.
    """

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(self._remember)
        self._complaints: list[str] = []
        self._thread = threading.Thread(target=self.loop.run_forever, name="test-servers", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result; TimeoutError after `PATIENCE_S`."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return future.result(PATIENCE_S)
        finally:
            future.cancel()

    def complaints(self) -> list[str]:
        """What the loop reported since the last time."""
        found, self._complaints = self._complaints, []
        return found

    def close(self) -> None:
        """Stops the thread; AssertionError for tasks left running and for complaints not fetched."""
        leaked = self.run(_cancel_all())
        self.run(self.loop.shutdown_asyncgens())
        self.run(self.loop.shutdown_default_executor())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
        complaints = [*(f"still running: {task}" for task in leaked), *self.complaints()]
        assert not complaints, "\n".join(complaints)

    def _remember(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._complaints.append(f"the event loop reported {context}")


async def _cancel_all() -> list[str]:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    names = [repr(task) for task in tasks]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return names


class _Server(uvicorn.Server):
    """A uvicorn server that tells when it is up and is told when to end, so that nobody has to poll.

    (Uvicorn itself looks ten times a second, and there are dozens of servers at a time.)
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()
        self.ending = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self.ending.wait()


class Servers:
    """Apps served on free loopback ports until the block ends.

    They end together, as each takes a tenth of a second. What still runs `grace_s` after the block is cancelled.
    """

    def __init__(self, loop_thread: LoopThread, grace_s: int = GRACE_S) -> None:
        self._loop_thread = loop_thread
        self._grace_s = grace_s
        self._running: dict[asyncio.Task[None], _Server] = {}

    def __enter__(self) -> "Servers":
        return self

    def __exit__(self, *_: object) -> None:
        self._loop_thread.run(self._end())

    def serve(self, app: ASGIApp) -> str:
        """Serves it -> its URL, `http://127.0.0.1:<port>`. RuntimeError when the app's lifespan fails to start."""
        # Named as TCP, or asyncio leaves Nagle's algorithm on, and every request waits 40 ms for an acknowledgement.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        config = uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="warning",
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=self._grace_s,
        )
        server = _Server(config)
        self._running[self._loop_thread.run(_start(server, listener))] = server
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    async def _end(self) -> None:
        for server in self._running.values():
            server.ending.set()
        await asyncio.gather(*self._running)


@contextlib.contextmanager
def serve_app(app: ASGIApp, loop_thread: LoopThread, grace_s: int = GRACE_S) -> Iterator[str]:
    """Serves one app while the block runs; gives its URL. As `Servers` does it."""
    with Servers(loop_thread, grace_s) as servers:
        yield servers.serve(app)


async def _start(server: _Server, listener: socket.socket) -> asyncio.Task[None]:
    serving = asyncio.create_task(_serve(server, listener))
    up = asyncio.create_task(server.up.wait())
    await asyncio.wait({serving, up}, return_when=asyncio.FIRST_COMPLETED)
    up.cancel()
    if serving.done():
        serving.result()
    return serving


async def _serve(server: _Server, listener: socket.socket) -> None:
    try:
        await server.serve(sockets=[listener])
    except SystemExit as stopped:  # in a task it would end the loop's thread without a word
        listener.close()
        raise RuntimeError("the app did not start; its log says why") from stopped


@contextlib.contextmanager
def nobody_listens() -> Iterator[str]:
    """A loopback URL that refuses connections: its port is taken, and nothing listens there."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"
