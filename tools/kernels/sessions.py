"""Sessions: which kernel runs a cell, and how long it lives.

run -> the session's lock -> a place (others make room, or one waits) -> its kernel, from the pool -> the cell
    -> idle: paused at once, ended by the sweep, or earlier where its place is needed
"""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from tools.attached import AttachedFile
from tools.errors import ToolError
from tools.kernels.pool import CLOSED, Pool
from tools.kernels.room import Place, Room
from tools.kernels.session import AskedCell, Lost, Session
from tools.kernels.sharing import Alone, Key, SessionTurn, Sharing
from tools.outcomes import Keep, Outcome, kept_nowhere

#: A session that was used within so long is not ended for another caller: somebody may be reading, or thinking.
_THINKING_S = 60.0

#: Of so many sessions that have ended it is remembered that there were any: a few MB, and days of a busy server.
_REMEMBERED = 10_000


class Sessions:
    """The sessions of all callers, with kernels of the pool, which is theirs; `sharing` says who else has them.

    `clock` gives seconds that only go forward, in step with the loop's.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        sessions: int,
        sessions_per_caller: int,
        session_idle_s: float,
        session_life_s: float,
        wait_s: float,
        pause_after_s: float = 0.5,
        sharing: Sharing | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._room = Room(sessions, sessions_per_caller, self._spare, self._plan_all)
        self._idle_s = session_idle_s
        self._life_s = session_life_s
        self._wait_s = wait_s
        self._pause_after_s = pause_after_s
        self._sharing = sharing or Alone()
        self._clock = clock
        # The least recently used first.
        self._sessions: OrderedDict[Key, Session] = OrderedDict()
        self._ended: OrderedDict[Key, None] = OrderedDict()
        self._sweeping: asyncio.TimerHandle | None = None
        self._sweep_at_s = 0.0
        self._closed = False
        self._runs = 0
        self._quiet = asyncio.Event()

    async def run(
        self,
        code: str,
        *,
        caller: str,
        session: str | None,
        files: Sequence[AttachedFile] = (),
        time_s: float,
        within_s: float = math.inf,
        keep: Keep = kept_nowhere,
    ) -> Outcome:
        """Runs a cell in the kernel of the caller's session, or, without a session, in one of its own.

        `files` are put there first, each once; those that it makes are given to `keep`. The cell has `time_s`, or less
        if its waiting took so long that its outcome would not be there `within_s`. RetryableToolError if there is no
        room; ToolError if no kernel can be begun.
        """
        self._check_open()
        now = asyncio.get_running_loop().time()
        until, cell = now + self._wait_s, AskedCell(code, files, time_s, now + within_s, keep)
        self._runs += 1
        self._quiet.clear()
        try:
            if session is None:
                return await self._once(caller, until, cell)
            return await self._in_turn((caller, session), until, cell)
        finally:
            self._runs -= 1
            if not self._runs:
                self._quiet.set()

    def sweep(self) -> None:
        """Ends the sessions whose time is over, and gives places to those who wait."""
        for key in [key for key, session in self._sessions.items() if self._is_over(session)]:
            self._end(key)
        self._look()
        self._plan_all()

    async def aclose(self) -> None:
        """Ends all kernels; cells that run end with them, and no more are run."""
        self._closed = True
        self._stop_sweeping()
        self._room.refuse(_closed())
        for key in [key for key, session in self._sessions.items() if not session.users]:
            self._end(key)
        await self._pool.aclose()
        if self._runs:
            await self._quiet.wait()
            # Some have come to a kernel meanwhile, and left it.
            await self._pool.aclose()
        await self._sharing.aclose()

    # -- one cell ------------------------------------------------------------------------------------------

    async def _once(self, caller: str, until: float, cell: AskedCell) -> Outcome:
        place = Place(caller, kept=False)
        await self._room.take(place, until)
        session = Session(self._pool, self._pause_after_s)
        try:
            return await session.run(cell)
        finally:
            self._room.give_back(place, session.end())
            self._look()

    async def _in_turn(self, key: Key, until: float, cell: AskedCell) -> Outcome:
        session = self._sessions.get(key) or self._new(key)
        session.users += 1
        session.stay()
        try:
            async with session.lock:
                self._check_open()
                # Before its turn: who has that, and waits, keeps another worker from ending what it used last.
                await self._seat(key, session, until)
                async with self._sharing.turn(key, session, until) as turn:
                    await self._settle(session, turn)
                    try:
                        return await session.run(cell)
                    finally:
                        session.used_s = self._clock()
        finally:
            session.users -= 1
            if not session.users:
                self._left(key, session)

    def _new(self, key: Key) -> Session:
        lost = Lost.ALL if key in self._ended else Lost.NOTHING
        self._ended.pop(key, None)
        self._sessions[key] = session = Session(self._pool, self._pause_after_s, lost)
        return session

    async def _seat(self, key: Key, session: Session, until: float) -> None:
        if not session.has_place:
            await self._room.take(Place(key[0], kept=True), until)
            session.has_place = True
            session.born_s = session.used_s = self._clock()

    async def _settle(self, session: Session, turn: SessionTurn) -> None:
        self._check_open()
        await turn.catch_up(session)
        self._check_open()
        if self._clock() >= self._due_s(session):
            session.renew()
            session.born_s = session.used_s = self._clock()

    def _left(self, key: Key, session: Session) -> None:
        if self._closed or session.kernel is None:
            self._end(key)
        else:
            self._sessions.move_to_end(key)
            session.rest()
            self._plan([session])
        self._look()

    # -- the ends of sessions ------------------------------------------------------------------------------

    def _end(self, key: Key) -> None:
        session = self._sessions.pop(key)
        if session.kernel or session.lost:
            self._ended[key] = None
            if len(self._ended) > _REMEMBERED:
                self._ended.popitem(last=False)
        gone = self._sharing.end(key, session)
        if session.has_place:
            self._room.give_back(Place(key[0], kept=True), gone)

    def _spare(self, caller: str, own: bool) -> bool:
        idle = [(key, session) for key, session in self._sessions.items() if not session.users]
        mine = [key for key, _ in idle if key[0] == caller]
        others = [key for key, session in idle if session.used_s + _THINKING_S <= self._clock()]
        spared = (mine or ([] if own else others))[:1]
        for key in spared:
            self._end(key)
        return bool(spared)

    def _due_s(self, session: Session) -> float:
        return min(session.used_s + self._idle_s, session.born_s + self._life_s)

    def _is_over(self, session: Session) -> bool:
        return not session.users and self._due_s(session) <= self._clock()

    # -- time ----------------------------------------------------------------------------------------------

    def _look(self) -> None:
        if not self._closed:
            self._room.look()

    def _plan_all(self) -> None:
        self._plan(self._sessions.values())

    def _plan(self, sessions: Iterable[Session]) -> None:
        moments = [self._next_s(session) for session in sessions if not session.users]
        if moments and not self._closed and (self._sweeping is None or min(moments) < self._sweep_at_s):
            self._stop_sweeping()
            self._sweep_at_s = min(moments)
            wait_s = max(0.0, self._sweep_at_s - self._clock())
            self._sweeping = asyncio.get_running_loop().call_later(wait_s, self._swept)

    def _next_s(self, session: Session) -> float:
        due_s, spare_s = self._due_s(session), session.used_s + _THINKING_S
        return min(due_s, spare_s) if self._room.is_awaited and spare_s > self._clock() else due_s

    def _swept(self) -> None:
        self._sweeping = None
        self.sweep()

    def _stop_sweeping(self) -> None:
        if self._sweeping:
            self._sweeping.cancel()
            self._sweeping = None

    def _check_open(self) -> None:
        if self._closed:
            raise _closed()


def _closed() -> ToolError:
    return ToolError(CLOSED)
