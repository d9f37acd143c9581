"""Drives one kernel through its cells, wherever it runs: sends, reads until all is said, and stops what takes too long.

run -> send ... messages ... -> done
            `-> its time is over, or it puts out too much -> interrupt ... -> done, or kill
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal

from tools.kernels.cells import Cell, CellLimits
from tools.outcomes import CellStatus, Outcome

#: The kernel's answer is here, and nothing of the cell's output comes any more, not even that it was all: it is lost.
_LOST_AFTER_S = 1.0

#: A kernel that puts out so many times what a cell may does not merely say too much: it would keep us busy with nothing
#: but reading it, and is ended.
_ENDURED = 5

#: Of what is slow to read, less: 4 MB of brackets take a third of a second.
_ENDURED_DENSE = 2

#: Brackets in so many bytes of a message, from which on it may be built to be slow to read: 80 ns for each, in which
#: nothing else is done. Figures and text have a few in all.
_DENSE_BYTES_PER_BRACKET = 20

Message = Mapping[str, Any]


class Driver:
    """Runs one cell at a time.

    `interrupt` has the kernel stop its cell, and returns when that cannot hit a later one; `kill` ends it; `renew`
    makes the connection anew when output was lost. Whoever reads from the kernel calls `heard`, and `ended` at its end.
    """

    def __init__(
        self,
        limits: CellLimits,
        grace_s: float,
        interrupt: Callable[[], Awaitable[None]],
        kill: Callable[[], None],
        renew: Callable[[], Awaitable[None]],
    ) -> None:
        self._limits = limits
        self._grace_s = grace_s
        self._interrupt = interrupt
        self._kill = kill
        self._renew = renew
        self._cell: Cell | None = None
        self._news = asyncio.Event()
        self._has_ended = False
        self._why: str | None = None
        self._notes: list[str] = []
        self._came: Counter[str] = Counter()
        self._stopping: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """False once the kernel has ended."""
        return not self._has_ended

    def heard(self, channel: Literal["iopub", "shell"], message: Message) -> None:
        """A message has come from the kernel."""
        cell = self._cell
        if cell is not None:
            (cell.iopub if channel == "iopub" else cell.shell)(message)
            if cell.has_reply or cell.over:
                # Before that nothing of it is waited for.
                self._news.set()

    def admits(self, frames: Sequence[bytes]) -> bool:
        """Counts what has come, before it is read, whichever cell it belongs to; False if it is not to be read."""
        size_bytes = sum(map(len, frames))
        brackets = sum(frame.count(b"[") + frame.count(b"{") for frame in frames)
        is_dense = brackets * _DENSE_BYTES_PER_BRACKET > size_bytes > _DENSE_BYTES_PER_BRACKET * 100
        self._came.update(messages=1, size_bytes=size_bytes, dense_bytes=size_bytes if is_dense else 0)
        limits = self._limits
        too_much = (
            self._came["messages"] > _ENDURED * limits.messages
            or self._came["size_bytes"] > _ENDURED * (limits.output_bytes + limits.images * limits.image_bytes)
            or self._came["dense_bytes"] > _ENDURED_DENSE * limits.output_bytes
        )
        if too_much:
            self.end("It put out far more than it may, so its kernel was killed.")
        return not too_much

    def expects(self, *, messages: int, size_bytes: int) -> None:
        """So much more may come: it was asked for, beside the cell."""
        self._came.subtract({"messages": messages, "size_bytes": size_bytes})

    def end(self, why: str) -> None:
        """Kills the kernel; `why` is told as a note of its cell. May be called from any thread, if `kill` may."""
        self._why = self._why or why
        self._kill()

    def ended(self) -> None:
        """The kernel has ended."""
        self._has_ended = True
        self._news.set()

    async def run(self, msg_id: str, send: Callable[[], Awaitable[None]], time_s: float) -> Outcome:
        """Runs the cell that `send` sends, in a message of this id.

        When it is cancelled, the cell is stopped behind it, and the next one waits for that.
        """
        began = time.monotonic()
        await self.settled()
        cell = Cell(msg_id, self._limits)
        if not self.alive:
            return self._outcome(cell, None, began)
        self._came.clear()
        self._notes.clear()
        self._cell = cell
        try:
            await send()
            late = await self._finished(cell, time_s)
            return self._outcome(cell, "timeout" if late else None, began)
        except asyncio.CancelledError:
            self._stopping = asyncio.create_task(self._stopped(cell))
            raise
        finally:
            if self.is_settled:
                self._cell = None

    @property
    def is_settled(self) -> bool:
        """False while a cell that was cancelled is being stopped."""
        return self._stopping is None or self._stopping.done()

    async def settled(self) -> None:
        """Returns when a cell that was cancelled has ended, or its kernel has."""
        if self._stopping is not None:
            await asyncio.wait({self._stopping})

    async def _finished(self, cell: Cell, time_s: float) -> bool:
        # Gives whether its time was over.
        late = False
        try:
            async with asyncio.timeout(time_s):
                await self._heard_all(cell, until_over=True)
        except TimeoutError:
            late = True
        if late or (cell.over and not cell.is_done and self.alive):
            await self._stop(cell)
        return late

    async def _stop(self, cell: Cell) -> None:
        try:
            async with asyncio.timeout(self._grace_s):
                await self._interrupt()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._grace_s / 2):
                        await self._heard_all(cell, until_over=False)
                if self.alive and not cell.has_reply:
                    # One that came before the kernel had begun with the cell has done nothing.
                    await self._interrupt()
                await self._heard_all(cell, until_over=False)
        except TimeoutError:
            if self.alive:
                self.end("It did not heed the interrupt, so its kernel was killed.")
            while self.alive:
                await self._heard()

    async def _stopped(self, cell: Cell) -> None:
        try:
            await self._stop(cell)
        finally:
            self._cell = None

    async def _heard_all(self, cell: Cell, *, until_over: bool) -> None:
        while self.alive and not cell.is_done and not (until_over and cell.over):
            try:
                async with asyncio.timeout(_LOST_AFTER_S if cell.has_reply else None):
                    await self._heard()
            except TimeoutError:
                self._notes.append("Some of its output was lost: it was too much at once.")
                await self._renew()
                return

    async def _heard(self) -> None:
        await self._news.wait()
        self._news.clear()

    def _outcome(self, cell: Cell, status: CellStatus | None, began: float) -> Outcome:
        notes = [*self._notes]
        if not self.alive:
            notes += [self._why] if self._why else []
            status = status or ("limit" if self._why else "died")
        return cell.outcome(status, time.monotonic() - began, notes)
