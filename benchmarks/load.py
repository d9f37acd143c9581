"""The load: many callers over bare sockets, in a process of its own.

Run as `python -m benchmarks.load`: takes one Order as a line of JSON on stdin, does it, and prints one
Outcome as a line of JSON, over and over until stdin ends.
"""

import asyncio
import json
import re
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import cast

import uvloop

from benchmarks.answer import STAMP_DIGITS

_STAMP = re.compile(rb"<(\d{%d})>" % STAMP_DIGITS)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_LAST = b"\r\n0\r\n\r\n"
#: Enough of an answer's end to hold the finish chunk, [DONE] and the framing.
_TAIL_BYTES = 2048
#: A paced answer takes 4 s; whatever takes this long hangs.
_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Order:
    """`streams` callers send `body` to 127.0.0.1:`port`, each `rounds` times, one after the other.

    They begin evenly over `spread_s`. An answer is good if `expected` stands near its end. With `hold` the
    work is done as soon as every caller has its first delta; connections stay open until the process ends.
    """

    port: int
    body: str
    streams: int
    rounds: int = 1
    spread_s: float = 0.0
    expected: str = ""
    hold: bool = False


@dataclass(slots=True)
class Outcome:
    """`delays_ms`: from the upstream's sending of the first token to its arrival here, for each answer.

    `reads` counts how often bytes arrived: fewer than events, if events arrived together.
    """

    good: int = 0
    bad: int = 0
    reads: int = 0
    seconds: float = 0.0
    delays_ms: list[float] = field(default_factory=list)


class _Caller(asyncio.Protocol):
    """One connection; `over` is done when its last answer is there or the connection is lost."""

    def __init__(self, order: Order, outcome: Outcome, over: asyncio.Future[None]) -> None:
        self._order = order
        self._outcome = outcome
        self.over = over
        self._request = _request(order)
        self._transport: asyncio.Transport | None = None
        self._left = order.rounds
        self._begin()

    def _begin(self) -> None:
        self._head = b""
        self._started = False
        self._end = -1
        self._size = 0
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, _: Exception | None) -> None:
        self._outcome.bad += self._left
        self._left = 0
        self._finish()

    def send(self) -> None:
        """Sends the next request."""
        if self._transport is not None:
            self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._outcome.reads += 1
        self._size += len(data)
        self._tail = data[-_TAIL_BYTES:] if len(data) >= _TAIL_BYTES else (self._tail + data)[-_TAIL_BYTES:]
        if not self._started:
            self._look_for_start(data)
        if self._size == self._end or self._tail.endswith(_LAST):
            self._ended()

    def _look_for_start(self, data: bytes) -> None:
        self._head += data
        if stamp := _STAMP.search(self._head):
            if sent_ns := int(stamp[1]):
                self._outcome.delays_ms.append((time.monotonic_ns() - sent_ns) / 1e6)
            head, _, _ = self._head.partition(b"\r\n\r\n")
            if length := _LENGTH.search(head):
                self._end = len(head) + 4 + int(length[1])
            self._started = True
            if self._order.hold:
                self._outcome.good += 1
                self._left = 0
                self._finish()

    def _ended(self) -> None:
        good = self._order.expected.encode() in self._tail and self._started
        self._outcome.good += good
        self._outcome.bad += not good
        self._left -= 1
        self._begin()
        if self._left:
            self.send()
        else:
            self._finish()

    def _finish(self) -> None:
        if not self.over.done():
            self.over.set_result(None)

    def close(self) -> None:
        """Closes the connection, unless it is to be held."""
        if self._transport is not None and not self._order.hold:
            self._transport.close()


def _request(order: Order) -> bytes:
    body = order.body.encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{order.port}\r\nAccept: */*\r\n"
        "Authorization: Bearer bench\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _do(order: Order) -> Outcome:
    loop = asyncio.get_running_loop()
    outcome = Outcome()
    callers = []
    for _ in range(order.streams):
        _, caller = await loop.create_connection(
            lambda: _Caller(order, outcome, loop.create_future()), "127.0.0.1", order.port
        )
        callers.append(caller)
    started_s = loop.time()
    for number, caller in enumerate(callers):
        loop.call_at(started_s + order.spread_s * number / order.streams, caller.send)
    async with asyncio.timeout(_PATIENCE_S):
        await asyncio.gather(*(caller.over for caller in callers))
    outcome.seconds = loop.time() - started_s
    for caller in callers:
        caller.close()
    return outcome


async def _work() -> None:
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        outcome = await _do(Order(**json.loads(line)))
        print(json.dumps(asdict(outcome)), flush=True)


if __name__ == "__main__":
    uvloop.run(_work())
