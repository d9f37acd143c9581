"""One session: its kernel, the files that were put there, and what the model is to be told of its past."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

from tools.attached import AttachedFile
from tools.errors import ToolError
from tools.kernels.kernel import Kernel
from tools.kernels.pool import Pool
from tools.outcomes import Keep, MadeFile, Outcome
from tools.sandbox.workdir import Changed

logger = logging.getLogger(__name__)


class Lost(IntEnum):
    """How much of what earlier cells had made is gone; the larger includes the smaller."""

    NOTHING = 0
    VARIABLES = 1
    FILES = 2
    ALL = 3


_TOLD = {
    Lost.VARIABLES: "The kernel was restarted: variables and imports of earlier cells are lost, their files are kept.",
    Lost.FILES: (
        "The kernel was restarted: variables, imports and files of earlier cells are lost;"
        " only attached files are there again."
    ),
    Lost.ALL: (
        "The session had ended and starts anew: variables, imports and files of earlier cells are lost;"
        " only attached files are there again."
    ),
}

#: So many of the files that are lost are named.
_MOST_NAMES = 10

_DIED = "The kernel has ended, and its variables and imports with it."

#: The least time that a cell gets: less than that is none.
_LEAST_S = 1.0

#: A cell is stopped so long before its outcome is to be there: to interrupt it, or to kill it, and to keep its files.
_MARGIN_S = 4.0

#: Of that, so much is left when no more files are kept: to tell of all that.
_TELLING_S = 1.0


@dataclass(frozen=True, slots=True)
class AskedCell:
    """A cell that is to be run for `time_s` at most; its outcome is to be there at `due_at`, on the loop's clock.

    `files` are put there before, and `keep` is given those that it makes.
    """

    code: str
    files: Sequence[AttachedFile]
    time_s: float
    due_at: float
    keep: Keep


class Session:
    """A kernel of the pool's, made when it is needed. Whoever calls `run` or `renew` holds the `lock`.

    `lost`: what is to be told with the first outcome. `users` counts those who run a cell or wait for the lock.
    """

    def __init__(self, pool: Pool, pause_after_s: float, lost: Lost = Lost.NOTHING) -> None:
        self.lock = asyncio.Lock()
        self.users = 0
        self.has_place = False
        self.kernel: Kernel | None = None
        self.lost = lost
        #: When its life began, and when it was last in use.
        self.born_s = 0.0
        self.used_s = 0.0
        self._pool = pool
        self._pause_after_s = pause_after_s
        self._put: dict[str, None] = {}
        self._gone: list[str] = []
        self._going: list[asyncio.Future[None]] = []
        self._pausing: asyncio.TimerHandle | None = None
        self._is_paused = False

    @property
    def put(self) -> tuple[str, ...]:
        """The ids of the attached files that lie there."""
        return tuple(self._put)

    async def run(self, cell: AskedCell) -> Outcome:
        """Runs a cell. ToolError if no kernel can be had."""
        kernel = await self._running()
        notes = await self._bring(kernel, cell.files)
        left_s = cell.due_at - _MARGIN_S - asyncio.get_running_loop().time()
        outcome = await kernel.execute(cell.code, time_s=min(cell.time_s, max(_LEAST_S, left_s)))
        made = await _made(kernel, cell, notes)
        told = [*([_TOLD[self.lost]] if self.lost else []), *_but_for(self._gone)]
        self.lost, self._gone = Lost.NOTHING, []
        died = [] if kernel.alive else [_DIED]
        return replace(outcome, files=(*outcome.files, *made), notes=(*told, *outcome.notes, *notes, *died))

    def renew(self) -> None:
        """Ends the kernel; the next cell gets one that knows nothing of it."""
        if self.kernel:
            self._going.append(self._pool.end(self.kernel))
            self.kernel = None
            self._lose(Lost.ALL)

    def take_over(self, kernel: Kernel | None, put: Sequence[str]) -> None:
        """Goes on with a kernel where these files were put; None: it has gone, with all that was there."""
        self.kernel = kernel
        self._put = dict.fromkeys(put)
        self.lost, self._gone = Lost.NOTHING, []
        if kernel is None:
            self._lose(Lost.ALL)

    def rest(self) -> None:
        """The kernel has nothing to do: it is paused in a while, unless it is used again."""
        self._pausing = asyncio.get_running_loop().call_later(self._pause_after_s, self._pause)

    def stay(self) -> None:
        """The kernel is not to be paused."""
        if self._pausing:
            self._pausing.cancel()
            self._pausing = None

    def end(self, close: Callable[[], Awaitable[None]] | None = None) -> asyncio.Future[Any]:
        """Ends the kernel aside, by `close` if given; the future is done when nothing of the session runs here."""
        self.stay()
        if self.kernel:
            self._going.append(self._pool.end(self.kernel, close))
        return asyncio.gather(*self._going)

    def _pause(self) -> None:
        self._pausing = None
        if self.kernel and self.kernel.alive:
            self.kernel.pause()
            self._is_paused = True

    async def _running(self) -> Kernel:
        if self.kernel is not None:
            await self.kernel.settled()
        if self.kernel is None:
            self.kernel = await self._fresh()
        elif not self.kernel.alive:
            self.kernel = await self._heir(self.kernel)
        elif self._is_paused:
            self.kernel.resume()
        self._is_paused = False
        return self.kernel

    async def _fresh(self) -> Kernel:
        # A session has one place: there is no kernel before the one that was there has gone.
        if self._going:
            await asyncio.wait(self._going)
            self._going.clear()
        return await self._pool.take()

    async def _heir(self, dead: Kernel) -> Kernel:
        fresh = await self._fresh()
        try:
            gone = await _inherited(fresh, dead)
        except asyncio.CancelledError:
            # The next cell tries again: what is dead keeps its files.
            self._going.append(self._pool.end(fresh))
            raise
        self._pool.end(dead)
        self._lose(Lost.FILES if gone is None else Lost.VARIABLES)
        if gone:
            self._gone = gone
        return fresh

    def _lose(self, lost: Lost) -> None:
        self.lost = max(self.lost, lost)
        if lost >= Lost.FILES:
            self._put.clear()

    async def _bring(self, kernel: Kernel, files: Sequence[AttachedFile]) -> list[str]:
        notes = []
        for file in files:
            if file.id not in self._put:
                try:
                    await kernel.put(file.name, file.path)
                    self._put[file.id] = None
                except ToolError as error:
                    notes.append(f"The attached file {file.name!r} is not there: {error.message}")
        return notes


async def _inherited(fresh: Kernel, dead: Kernel) -> list[str] | None:
    try:
        return await fresh.inherit(dead)
    except Exception:
        logger.exception("the files of a kernel that has died cannot be taken over")
        return None


def _but_for(gone: Sequence[str]) -> list[str]:
    return [f"Of the files these are lost, too: {_named(gone)}."] if gone else []


def _named(names: Sequence[str]) -> str:
    return f"{', '.join(map(repr, names[:_MOST_NAMES]))}{', ...' if len(names) > _MOST_NAMES else ''}"


async def _made(kernel: Kernel, cell: AskedCell, notes: list[str]) -> list[MadeFile]:
    try:
        changes = await kernel.changes()
    except Exception:
        # What the cell has said is worth more than its files.
        logger.exception("the files of a cell cannot be read")
        notes.append("The files that the cell made cannot be read.")
        return []
    made: list[MadeFile] = []
    unkept: dict[str, list[str]] = {}
    for file in changes.files:
        try:
            url = await _kept(kernel, file, cell)
        except ToolError as error:
            url = None
            unkept.setdefault(error.message, []).append(file.name)
        made.append(MadeFile(file.name, file.size_bytes, url))
    notes += [f"Not kept: {_named(names)}. {why}" for why, names in unkept.items()]
    if changes.left_out:
        more = f"{changes.left_out:,} more files are in the working directory"
        notes.append(f"{more}, and are not kept: they are too many.")
    if changes.unread:
        notes.append(f"Not looked for files in {_named(changes.unread)}: too deep, or too many files.")
    return made


async def _kept(kernel: Kernel, file: Changed, cell: AskedCell) -> str:
    try:
        async with asyncio.timeout_at(cell.due_at - _TELLING_S), aclosing(kernel.read(file)) as pieces:
            return await cell.keep(file.name, pieces)
    except TimeoutError:
        raise ToolError("There was no time for it.") from None
