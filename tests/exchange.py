"""One request to the scripted upstream and the line on which it is answered.

`Received` is what came in, `Reply` what is to go out, `Line` the connection while it goes out.
"""

import asyncio
import json
import socket
import struct
import threading
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import responses
from typing import Any

#: The turns of the loop left to a reader on the same loop before each write, so that two writes are two
#: reads and no clock is involved. httpx and aiohttp need 2 (the socket is seen readable, the reading task
#: wakes); the rest is for a reader that passes on what it read before it reads again.
TURNS_PER_READ = 6


@dataclass(frozen=True)
class Received:
    """A request as it came. Header names are lower-case; `path` holds the query, too.

    `connection` counts the connections of the server, `number` the requests of one script from 0. `left` is
    set when the peer closes the connection before its answer is complete.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    connection: int = 0
    number: int = 0
    left: threading.Event = field(default_factory=threading.Event, compare=False, repr=False)

    @property
    def json(self) -> Any:
        """The body, parsed; ValueError when it is not JSON."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Reply:
    """An answer as bytes: each of `writes` is one network write, and one HTTP chunk when `chunked`."""

    writes: Sequence[bytes]
    content_type: str
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    chunked: bool = False

    def head(self) -> bytes:
        """The status line and the headers, the blank line included."""
        size = sum(map(len, self.writes))
        framing = {"transfer-encoding": "chunked"} if self.chunked else {"content-length": str(size)}
        fields = {"content-type": self.content_type, **framing, **self.headers}
        lines = [f"HTTP/1.1 {self.status} {responses.get(self.status, '')}"]
        lines += [f"{name}: {value}" for name, value in fields.items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


class Line:
    """A connection during one answer. Its methods raise ConnectionError when the peer has gone.

    `waiting` says that the step waits for something outside, which the end of a script may cut short.
    """

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._chunked = False
        self.closed = False
        self.waiting = False

    async def begin(self, reply: Reply) -> None:
        """Sends the head of `reply` as one write."""
        self._chunked = reply.chunked
        await self._write(reply.head())

    async def send(self, data: bytes) -> None:
        """Sends `data` as one write; an empty one is left out, since an empty chunk would end the answer."""
        if data:
            await self._write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    async def end(self) -> None:
        """Completes the answer; the connection can carry the next one."""
        if self._chunked:
            await self._write(b"0\r\n\r\n")

    async def wait(self, event: Awaitable[Any]) -> None:
        """Keeps the peer waiting for `event`."""
        self.waiting = True
        await event
        self.waiting = False

    async def let_read(self) -> None:
        """Gives a peer on the same loop the time to read what was sent."""
        for _ in range(TURNS_PER_READ):
            await asyncio.sleep(0)

    def close(self) -> None:
        """Closes the connection in the usual way (FIN)."""
        self.closed = True
        self._writer.close()

    def reset(self) -> None:
        """Breaks the connection (RST), if there still is one."""
        self.closed = True
        connection = self._writer.get_extra_info("socket")
        if connection.fileno() >= 0:
            linger_for_no_time = struct.pack("ii", 1, 0)  # which makes closing a socket reset its connection
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_for_no_time)
        self._writer.transport.abort()

    async def _write(self, data: bytes) -> None:
        await self.let_read()
        self._writer.write(data)
        await self._writer.drain()
