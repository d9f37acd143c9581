"""A fake vLLM that costs next to nothing: encoded answers out of a bare asyncio protocol.

The request's `model` says how it answers: `paced-20` one event every 20 ms, `burst-0` everything at once,
`hold-0` a half at once and then nothing. Run as `python -m benchmarks.fake_vllm`; prints its port.
"""

import asyncio
import re
import time
from typing import cast

import uvloop

from benchmarks.answer import STAMP_DIGITS, Encoded, encoded

_HEAD = b"HTTP/1.1 200 OK\r\ndate: Fri, 20 Nov 2026 14:00:00 GMT\r\nserver: uvicorn\r\n"
_STREAM_HEAD = _HEAD + b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
_JSON_HEAD = _HEAD + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n"
_LAST = b"0\r\n\r\n"
_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_MODEL = re.compile(rb'"model": ?"(paced|burst|hold)-(\d+)"')
_STREAMED = re.compile(rb'"stream": ?true')


class _Connection(asyncio.Protocol):
    """Answers the requests of one connection, one after the other."""

    def __init__(self, answer: Encoded, loop: asyncio.AbstractEventLoop) -> None:
        self._answer = answer
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._timer: asyncio.TimerHandle | None = None
        self._at = 0
        self._pace_s = 0.0
        self._due_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if found and len(body) >= (int(length[1]) if length else 0):
            self._received = b""
            self._respond(body)

    def _respond(self, body: bytes) -> None:
        model = _MODEL.search(body)
        if model is None:
            self._write(_NOT_FOUND)
        elif not _STREAMED.search(body):
            whole = self._answer.whole
            self._write(_JSON_HEAD % len(whole) + whole)
        elif model[1] == b"paced":
            self._write(_STREAM_HEAD)
            self._pace_s = int(model[2]) / 1000
            self._at, self._due_s = 0, self._loop.time() + self._pace_s
            self._timer = self._loop.call_at(self._due_s, self._go_on)
        else:
            rest = self._answer.rest
            said = rest[: len(rest) // 2] if model[1] == b"hold" else (*rest, _LAST)
            self._write(b"".join((_STREAM_HEAD, self._stamped(), *said)))

    def _go_on(self) -> None:
        rest = self._answer.rest
        if self._at < len(rest) - 1:
            self._write(rest[self._at - 1] if self._at else self._stamped())
            self._at += 1
            self._due_s += self._pace_s
            self._timer = self._loop.call_at(self._due_s, self._go_on)
        else:
            # [DONE] and the end of the body come right behind the finish chunk, as from vLLM.
            self._write(rest[-2] + rest[-1] + _LAST)

    def _stamped(self) -> bytes:
        first, at = self._answer.first, self._answer.stamp_at
        return first[:at] + b"%0*d" % (STAMP_DIGITS, time.monotonic_ns()) + first[at + STAMP_DIGITS :]

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    answer = encoded()
    server = await loop.create_server(lambda: _Connection(answer, loop), "127.0.0.1", 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve())
