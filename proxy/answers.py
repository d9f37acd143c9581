"""How an answer leaves: bytes to the caller while it is there, and an end that tells what happened.

An `Answer` is an ASGI response around a coroutine that writes to an `Outlet`. When the caller leaves, the coroutine
is cancelled wherever it waits, which closes the upstream's connection and frees its GPU: streamed or not, before or
after the first byte. (Starlette does this for streamed bodies only.) What goes wrong before the first byte becomes
an HTTP status, afterwards one error event, never a false end.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from proxy.errors import FloretteError, ShuttingDown
from proxy.sse import encode, to_json

#: The key of the scope under which `app` keeps the server's own `send`.
SERVER_SEND = "florette.send"

Headers = Iterable[tuple[bytes, bytes]]

logger = logging.getLogger(__name__)

_JSON: Headers = ((b"content-type", b"application/json"),)

#: No cache keeps an event stream, and nginx does not gather it (`proxy_buffering` is on by default there).
EVENT_STREAM: Headers = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class Outlet:
    """The way to the caller. `start` once, `write` at will, `end` once."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._started = False
        self._is_event_stream = False

    async def start(self, status: int, headers: Headers, *, event_stream: bool = False) -> None:
        """Sends status and headers. An `event_stream` can still report an error afterwards."""
        self._started, self._is_event_stream = True, event_stream
        await self._send({"type": "http.response.start", "status": status, "headers": list(headers)})

    async def write(self, data: bytes) -> None:
        """Sends a part of the body."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        """Sends the last part of the body."""
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def json(self, status: int, body: Any, headers: Headers = ()) -> None:
        """Sends a whole JSON answer."""
        content = to_json(body)
        length = (b"content-length", str(len(content)).encode())
        await self.start(status, [*_JSON, length, *headers])
        await self.end(content)

    async def fail(self, error: FloretteError) -> None:
        """Tells the caller of an error, in the way that is still open."""
        if not self._started:
            headers = [(name.encode(), value.encode()) for name, value in error.headers.items()]
            await self.json(error.status, error.body(), headers)
        elif self._is_event_stream:
            # A blank line first: what broke may have broken inside a line.
            await self.end(b"\n\n" + encode(error.body()))
        # Else there is no way to tell: uvicorn closes the connection of an answer that was not ended.


class Answer(Response):
    """An ASGI response that is given up as soon as the caller leaves."""

    def __init__(self, respond: Callable[[Outlet], Awaitable[None]]) -> None:
        super().__init__()
        self._respond = respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the coroutine until it is done or the caller is gone."""
        outlet = Outlet(scope.get(SERVER_SEND, send))
        try:
            async with anyio.create_task_group() as group:
                # A task of its own: in the request's, each wake-up would go through 20 frames of middleware.
                group.start_soon(self._answer, outlet, group.cancel_scope)
                await _gone(receive)
                group.cancel_scope.cancel()
        except anyio.get_cancelled_exc_class():
            # Not the caller left: the server ends, and its grace period is over. The task ends with the answer.
            await outlet.fail(ShuttingDown("The server is shutting down; ask again."))

    async def _answer(self, outlet: Outlet, scope: anyio.CancelScope) -> None:
        await self._guarded(outlet)
        scope.cancel()

    async def _guarded(self, outlet: Outlet) -> None:
        try:
            await self._respond(outlet)
        except FloretteError as error:
            if error.status >= 500:
                logger.warning("answered %d (%s): %s", error.status, error.code or error.type, error.message)
            await outlet.fail(error)
        except Exception:
            logger.exception("a request failed because of a bug")
            await outlet.fail(FloretteError("Florette failed because of a bug; the server's log has the details."))


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
