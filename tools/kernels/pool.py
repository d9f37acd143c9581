"""Kernels that are ready before anybody needs one.

begin -> paused, ready -> taken (resumed) -> ended        by one taker only, and never ready again
      -> taken, if somebody waits for it already -> ended
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from tools.errors import ToolError
from tools.kernels.kernel import Kernel

logger = logging.getLogger(__name__)

#: The pause after a kernel could not be begun; it doubles up to the longest. What is missing may be brought in a
#: minute, and a try costs as much as a start.
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0

#: Told to those who come, or still wait, when all is being ended.
CLOSED = "No code can be run any more: the server is being stopped."

_Begun = asyncio.Task[Kernel]


class Pool:
    """Begins kernels, keeps `size` of them ready, and ends what it has begun.

    `begin` gives a running kernel, or raises ToolError with a sentence for the model.
    """

    def __init__(self, begin: Callable[[], Awaitable[Kernel]], size: int) -> None:
        self._begin = begin
        self._size = size
        self._started = False
        self._closed = False
        self._ready: deque[Kernel] = deque()
        self._beginning: set[_Begun] = set()
        # Those of them that nobody waits for: they will be ready ones, or the next taker's.
        self._coming: deque[_Begun] = deque()
        self._running: set[Kernel] = set()
        self._ending: dict[Kernel, asyncio.Task[None]] = {}
        self._pause_s = _FIRST_PAUSE_S
        self._next_try: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begins to fill the pool, in the background."""
        self._started = True
        self._refill()

    async def take(self) -> Kernel:
        """A running kernel that is the taker's alone, until it gives it to `end`.

        Raises what beginning one raises, which is a ToolError, and ToolError once the pool is closed.
        """
        kernel = self._taken() or await self._awaited()
        self._refill()
        return kernel

    def add(self, kernel: Kernel) -> None:
        """Takes a kernel that somebody else began: it is a taker's, as those that were taken."""
        self._running.add(kernel)

    def end(self, kernel: Kernel, close: Callable[[], Awaitable[None]] | None = None) -> asyncio.Future[None]:
        """Ends a kernel of this pool, aside; the future, which is not to be cancelled, is done when it has gone.

        `close` is what to do with it in place of its end.
        """
        if kernel in self._running:
            self._running.discard(kernel)
            self._ending[kernel] = closing = asyncio.create_task(_close(close or kernel.aclose))
            closing.add_done_callback(lambda _: self._ending.pop(kernel))
        if kernel in self._ending:
            return self._ending[kernel]
        gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        gone.set_result(None)
        return gone

    async def aclose(self) -> None:
        """Ends all kernels, also those being begun and those that were taken, and gives no more."""
        self._closed = True
        self._try_at_once()
        self._ready.clear()
        for begun in self._beginning:
            begun.cancel()
        self._end_all()
        await _all(self._beginning)
        # Some were begun in spite of it.
        self._end_all()
        await _all(self._ending.values())

    # -- taking --------------------------------------------------------------------------------------------

    def _taken(self) -> Kernel | None:
        self._check_open()
        while self._ready:
            kernel = self._ready.popleft()
            if kernel.alive:
                kernel.resume()
                return kernel
            self.end(kernel)
        return None

    async def _awaited(self) -> Kernel:
        begun = self._coming.popleft() if self._coming else self._begun()
        try:
            await asyncio.wait({begun})
        except asyncio.CancelledError:
            self._leave(begun)
            raise
        self._check_open()
        return begun.result()

    def _leave(self, begun: _Begun) -> None:
        if begun.done():
            if not begun.cancelled() and begun.exception() is None:
                self._keep(begun.result())
        elif len(self._ready) + len(self._coming) < self._size:
            self._coming.append(begun)
        else:
            begun.add_done_callback(self._drop)
            begun.cancel()

    def _drop(self, begun: _Begun) -> None:
        # It may have come although it was cancelled.
        if not begun.cancelled() and begun.exception() is None:
            self.end(begun.result())

    def _check_open(self) -> None:
        if self._closed:
            raise ToolError(CLOSED)

    # -- filling -------------------------------------------------------------------------------------------

    def _refill(self) -> None:
        # One at a time, and none while somebody waits for one: that would take longer.
        idle = not self._beginning and self._next_try is None and not self._closed
        if self._started and idle and len(self._ready) < self._size:
            self._coming.append(self._begun())

    def _begun(self) -> _Begun:
        begun = asyncio.create_task(self._made())
        self._beginning.add(begun)
        begun.add_done_callback(self._arrived)
        return begun

    async def _made(self) -> Kernel:
        kernel = await self._begin()
        self._running.add(kernel)
        return kernel

    def _arrived(self, begun: _Begun) -> None:
        self._beginning.discard(begun)
        is_wanted = begun not in self._coming
        if not is_wanted:
            self._coming.remove(begun)
        if not begun.cancelled():
            if error := begun.exception():
                self._failed(error)
            else:
                self._try_at_once()
                if not is_wanted:
                    self._keep(begun.result())
        self._refill()

    def _keep(self, kernel: Kernel) -> None:
        if self._closed or len(self._ready) >= self._size:
            self.end(kernel)
        else:
            kernel.pause()
            self._ready.append(kernel)

    def _failed(self, error: BaseException) -> None:
        bug = None if isinstance(error, ToolError) else error
        logger.error("a kernel cannot be begun: %s", error, exc_info=bug)
        if self._next_try is None and self._started:
            self._next_try = asyncio.get_running_loop().call_later(self._pause_s, self._try_again)
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)

    def _try_again(self) -> None:
        self._next_try = None
        self._refill()

    def _try_at_once(self) -> None:
        self._pause_s = _FIRST_PAUSE_S
        if self._next_try:
            self._next_try.cancel()
            self._next_try = None

    # -- ending --------------------------------------------------------------------------------------------

    def _end_all(self) -> None:
        for kernel in list(self._running):
            self.end(kernel)


async def _close(close: Callable[[], Awaitable[None]]) -> None:
    try:
        await close()
    except Exception:
        logger.exception("a kernel cannot be ended")


async def _all(tasks: Collection[asyncio.Task[Any]]) -> None:
    if tasks:
        await asyncio.wait(list(tasks))
