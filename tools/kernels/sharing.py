"""Sessions that several workers have in common: each cell finds the kernel where the one before it left it.

turn -> the kernel that is noted, attached to unless it is here still -> the cell -> noted, with whose it was last
    -> at rest: let go of as soon as another worker uses it

Who used a kernel last ends it, when the session is over there. If that worker has died, the gateway does, as it ends
what nobody uses.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, cast

from tools.errors import RetryableToolError
from tools.kernels.kernel import Kernel
from tools.kernels.pool import Pool
from tools.kernels.register import Entry, Register, Turn
from tools.kernels.session import Session

Key = tuple[str, str]

#: Who only looks whether a session is its to end has its turn for milliseconds; a cell may have it for a minute.
_LOOKING_S = 2.0


class SharedKernel(Kernel, Protocol):
    """A kernel that other workers can attach to."""

    @property
    def id(self) -> str:
        """What it is found by."""
        ...

    @property
    def executions(self) -> int:
        """So many cells it has run."""
        ...

    @property
    def directory(self) -> str:
        """Where its files are, wherever its code goes."""
        ...

    def rest(self) -> None:
        """No cell of ours runs: it is let go of as soon as somebody else uses it, and is not `alive` then."""
        ...

    async def let_go(self) -> None:
        """Closes it here, and leaves it running; nothing, if that has been done."""
        ...


class Gateway(Protocol):
    """Where the kernels are."""

    async def attach(self, kernel_id: str, directory: str, executions: int) -> SharedKernel | None:
        """A kernel that runs there, and has run so many cells; None if it has gone, also if another has its place.

        RetryableToolError if that cannot be told at the moment.
        """
        ...

    async def end(self, kernel_id: str) -> None:
        """Ends a kernel, if it is there still."""
        ...


class SessionTurn(Protocol):
    """As long as it lasts, no other worker uses the session."""

    async def catch_up(self, session: Session) -> None:
        """Takes the session to where its last cell left it, whichever worker ran that. ToolError if it cannot."""
        ...


class Sharing(Protocol):
    """What is to be done since other workers may have the same sessions."""

    def turn(self, key: Key, session: Session, until: float) -> AbstractAsyncContextManager[SessionTurn]:
        """The session's turn. RetryableToolError if it does not come by `until`, on the loop's clock."""
        ...

    def end(self, key: Key, session: Session) -> asyncio.Future[Any]:
        """Ends the session here, and aside its kernel, if it was used here last; done when it has gone."""
        ...

    async def aclose(self) -> None:
        """Returns when nothing is done aside any more."""
        ...


class Alone:
    """Nobody else has the sessions, and their kernels stay with them."""

    @asynccontextmanager
    async def turn(self, key: Key, session: Session, until: float) -> AsyncIterator[SessionTurn]:
        """As `Sharing` says: at once."""
        yield self

    async def catch_up(self, session: Session) -> None:
        """As `SessionTurn` says: it is there."""

    def end(self, key: Key, session: Session) -> asyncio.Future[Any]:
        """As `Sharing` says."""
        return session.end()

    async def aclose(self) -> None:
        """As `Sharing` says."""


class Shared:
    """Workers with the same register have the same sessions, whose kernels are all at the gateway.

    `pool` and `clock` are those of the sessions; `now` gives seconds since 1970.
    """

    def __init__(
        self,
        register: Register,
        gateway: Gateway,
        pool: Pool,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._register = register
        self._gateway = gateway
        self._pool = pool
        self._clock = clock
        self._now = now
        self._aside: set[asyncio.Task[None]] = set()
        self._leaving: dict[Key, asyncio.Task[None]] = {}

    @asynccontextmanager
    async def turn(self, key: Key, session: Session, until: float) -> AsyncIterator[SessionTurn]:
        """As `Sharing` says."""
        held = AsyncExitStack()
        turn = _SharedTurn(self, await held.enter_async_context(self._register.turn(*key, until)))
        is_waited_for = True
        try:
            yield turn
        except asyncio.CancelledError:
            # Its cell is being stopped. Who comes next waits for that, and who leaves does not.
            is_waited_for = False
            raise
        finally:
            leaving = self._leaving[key] = self._do(self._leave(turn, session, held))
            leaving.add_done_callback(partial(self._left, key))
            if is_waited_for:
                await asyncio.shield(leaving)

    def end(self, key: Key, session: Session) -> asyncio.Future[Any]:
        """As `Sharing` says."""
        if session.kernel is None:
            return session.end()
        return session.end(partial(self._end, key, cast(SharedKernel, session.kernel)))

    async def aclose(self) -> None:
        """As `Sharing` says."""
        while self._aside:
            await asyncio.wait(self._aside)

    async def attached(self, session: Session, entry: Entry) -> None:
        """Takes the session to where the entry says that it is."""
        # All kernels of this pool are the gateway's.
        ours = cast(SharedKernel | None, session.kernel)
        if ours is not None and entry.holder == self._register.holder and (ours.alive or not entry.kernel_id):
            return
        kernel = None
        if entry.kernel_id:
            kernel = await self._gateway.attach(entry.kernel_id, entry.directory, entry.executions)
        if ours is not None:
            # Where others have begun anew, while it could not be noted that it is here, nobody wants it any more.
            self._pool.end(ours, ours.let_go if ours.id == entry.kernel_id else ours.aclose)
        if kernel is not None:
            self._pool.add(kernel)
            ago_s = self._clock() - self._now()
            session.born_s, session.used_s = entry.born_at + ago_s, entry.used_at + ago_s
        session.take_over(kernel, entry.put)

    async def _leave(self, turn: "_SharedTurn", session: Session, held: AsyncExitStack) -> None:
        async with held:
            if not turn.is_caught_up or session.kernel is None:
                return
            kernel = cast(SharedKernel, session.kernel)
            await kernel.settled()
            now = self._now()
            born_at = now - (self._clock() - session.born_s)
            kernel_id = kernel.id if kernel.alive else ""
            holder, put = self._register.holder, session.put
            await turn.noted.note(Entry(kernel_id, kernel.directory, holder, born_at, now, put, kernel.executions))
            kernel.rest()

    async def _end(self, key: Key, kernel: SharedKernel) -> None:
        if key in self._leaving:
            await asyncio.wait({self._leaving[key]})
        ended_at = self._now()
        # If its turn does not come, another worker uses it, and will end it.
        with suppress(RetryableToolError):
            async with self._register.turn(*key, asyncio.get_running_loop().time() + _LOOKING_S) as turn:
                entry = turn.entry
                if entry is None or entry.kernel_id != kernel.id:
                    # It could not be noted that it is here, so it is nobody else's.
                    await kernel.aclose()
                elif entry.holder == self._register.holder and entry.used_at <= ended_at:
                    # Used later, it is a new session of ours that has taken it up again.
                    await self._gateway.end(entry.kernel_id)
                    await turn.note(replace(entry, kernel_id=""))
        await kernel.let_go()

    def _left(self, key: Key, leaving: asyncio.Task[None]) -> None:
        if self._leaving.get(key) is leaving:
            del self._leaving[key]

    def _do(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)
        return task


class _SharedTurn:
    """See `SessionTurn`."""

    def __init__(self, sharing: Shared, noted: Turn) -> None:
        self.noted = noted
        self.is_caught_up = False
        self._sharing = sharing

    async def catch_up(self, session: Session) -> None:
        if self.noted.entry is not None:
            await self._sharing.attached(session, self.noted.entry)
        self.is_caught_up = True
