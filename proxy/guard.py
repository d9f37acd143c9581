"""The guard before all routes: who may not ask is answered here, before its body is read.

A lease lasts as long as the request, so none is lost, whether the answer ends, fails, or is left before it began.
"""

import math
from collections.abc import Callable, Mapping

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.answers import SERVER_SEND
from proxy.auth import Keys, Lease
from proxy.errors import FloretteError

#: The key of the scope under which the routes find the request's Lease.
LEASE = "florette.lease"

_LENGTH = b"content-length"

Headers = list[tuple[bytes, bytes]]


def _never(_: Scope) -> bool:
    return False


class Guard:
    """ASGI: lets pass what `keys` admits, and anything that asks for one of the `open_paths`, or that `is_open`."""

    def __init__(
        self, app: ASGIApp, keys: Keys, open_paths: frozenset[str], is_open: Callable[[Scope], bool] = _never
    ) -> None:
        self._app = app
        self._keys = keys
        self._open_paths = open_paths
        self._is_open = is_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 401 or 429 itself."""
        if scope["type"] != "http" or scope["path"] in self._open_paths or self._is_open(scope):
            await self._app(scope, receive, send)
            return
        try:
            lease = self._keys.admit(_authorization(scope))
        except FloretteError as error:
            await JSONResponse(error.body(), error.status, error.headers)(scope, receive, send)
            return
        scope[LEASE] = lease
        if lease.is_limited:
            # Not for the others: it is one more call for each streamed event.
            scope[SERVER_SEND] = _Watched(scope[SERVER_SEND], lease)
            send = _Watched(send, lease)
        try:
            await self._app(scope, receive, send)
        finally:
            lease.release()


def _authorization(scope: Scope) -> bytes | None:
    return next((value for name, value in scope["headers"] if name == b"authorization"), None)


class _Watched:
    """The way out of an answer: tells of the limits when it begins, and ends the lease before its last bytes leave.

    Not after them: who has read them may ask again at once.
    """

    def __init__(self, send: Send, lease: Lease) -> None:
        self._send = send
        self._lease = lease
        self._bytes_due: float = math.inf

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers: Headers = message["headers"]
            self._bytes_due = next((int(value) for name, value in headers if name.lower() == _LENGTH), math.inf)
            message["headers"] = _with(headers, self._lease.begin(message["status"]))
        else:
            # Where the length was announced, the reader knows the end before it is told of it.
            self._bytes_due -= len(message.get("body", b""))
            if self._bytes_due <= 0 or not message.get("more_body"):
                self._lease.release()
        await self._send(message)


def _with(headers: Headers, ours: Mapping[str, str]) -> Headers:
    # The upstream may have limits of its own; the caller's are these.
    added = [(name.encode(), value.encode()) for name, value in ours.items()]
    names = {name for name, _ in added}
    return [*(header for header in headers if header[0].lower() not in names), *added]
