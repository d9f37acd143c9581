"""Places for kernels: so many in all, and so many for each caller. Who finds none waits, in order.

A place that is given back may be taken at once, but no kernel is begun in it before the one that was there has gone:
so there are never more kernels than places.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tools.errors import RetryableToolError, ToolError


@dataclass(frozen=True, slots=True)
class Place:
    """Whose place it is; `kept` for a session, or for one cell only. A caller's are counted apart.

    So cells that leave nothing behind end no session of their caller's, and still nobody takes all places with them.
    """

    caller: str
    kept: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    place: Place
    turn: asyncio.Future[None]


class Room:
    """`spare` is asked when there is no place: it gives one back, and says if it has.

    It is asked for one of the caller's own (`True`), or for any that the caller may have (`False`). `crowded` is told
    when somebody begins to wait.
    """

    def __init__(
        self, places: int, places_per_caller: int, spare: Callable[[str, bool], bool], crowded: Callable[[], None]
    ) -> None:
        self._places = places
        self._places_per_caller = places_per_caller
        self._spare = spare
        self._crowded = crowded
        self._held: Counter[Place] = Counter()
        self._leaving: dict[asyncio.Future[Any], Place] = {}
        self._waiting: list[_Waiter] = []

    @property
    def is_awaited(self) -> bool:
        """Somebody waits for a place."""
        return bool(self._waiting)

    async def take(self, place: Place, until: float) -> None:
        """Takes a place, where a kernel may be begun. RetryableToolError if there is none until then, by the loop."""
        waiter = _Waiter(place, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        self.look()
        try:
            if not waiter.turn.done():
                self._crowded()
                await self._turn(waiter, until)
            while self._is_full(place):
                await asyncio.wait(self._leaving, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            self._give_up(waiter)
            raise

    def give_back(self, place: Place, gone: asyncio.Future[Any]) -> None:
        """Gives a place back; its kernel has left it when `gone` is done. To `look` who may have it is the caller's."""
        self._free(place)
        if not gone.done():
            self._leaving[gone] = place
            gone.add_done_callback(self._leaving.pop)

    def look(self) -> None:
        """Gives places to those who wait, in order; who waits for one of its own caller's holds up nobody else."""
        for waiter in list(self._waiting):
            # Who is leaving in this moment has cancelled its turn.
            if not waiter.turn.done() and self._fits(waiter.place):
                self._waiting.remove(waiter)
                self._held[waiter.place] += 1
                waiter.turn.set_result(None)

    def refuse(self, error: ToolError) -> None:
        """Tells all who wait that they wait in vain."""
        for waiter in list(self._waiting):
            if not waiter.turn.done():
                self._waiting.remove(waiter)
                waiter.turn.set_exception(error)

    async def _turn(self, waiter: _Waiter, until: float) -> None:
        try:
            async with asyncio.timeout_at(until):
                await waiter.turn
        except TimeoutError:
            if waiter in self._waiting:
                raise RetryableToolError(
                    f"All kernels are in use: there are {self._places}, and {self._places_per_caller} for one caller."
                ) from None
            # Its turn came in the same moment.
            waiter.turn.result()

    def _give_up(self, waiter: _Waiter) -> None:
        if waiter in self._waiting:
            self._waiting.remove(waiter)
        elif not waiter.turn.cancelled() and waiter.turn.exception() is None:
            self._free(waiter.place)
            self.look()

    def _free(self, place: Place) -> None:
        self._held[place] -= 1
        if not self._held[place]:
            del self._held[place]

    def _fits(self, place: Place) -> bool:
        crowded = self._held[place] >= self._places_per_caller
        if crowded and not (place.kept and self._spare(place.caller, True)):
            return False
        return self._held.total() < self._places or self._spare(place.caller, False)

    def _is_full(self, place: Place) -> bool:
        leaving = Counter(self._leaving.values())
        own = self._held[place] + leaving[place]
        return own > self._places_per_caller or self._held.total() + leaving.total() > self._places
