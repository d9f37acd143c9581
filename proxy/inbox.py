"""Where the turn and the tools of one answer put what is to be told, and whoever writes the answer takes it out."""

import asyncio
from collections.abc import Sequence

from proxy.turns import Said

#: So many batches may lie here before a turn waits: a caller that reads slowly slows its upstream down, too.
_MOST_BATCHES = 64


class Inbox:
    """A bounded queue with many writers and one reader."""

    def __init__(self) -> None:
        self._said: list[Said] = []
        self._batches = 0
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    @property
    def empty(self) -> bool:
        """True if there is nothing to take."""
        return not self._said

    async def put(self, said: Sequence[Said]) -> None:
        """Adds a batch, once there is room."""
        await self._room.wait()
        self.tell(said)

    def tell(self, said: Sequence[Said]) -> None:
        """Adds a batch at once: what tools say is little, and a tool cannot wait."""
        self._said += said
        self._batches += 1
        if self._batches >= _MOST_BATCHES:
            self._room.clear()
        self._news.set()

    def wake(self) -> None:
        """Something has ended: the reader is to look, though there may be nothing to take."""
        self._news.set()

    async def take(self, within_s: float) -> list[Said] | None:
        """All that is there, perhaps nothing; None if nothing has come for so long."""
        try:
            async with asyncio.timeout(within_s):
                await self._news.wait()
        except TimeoutError:
            return None
        said, self._said, self._batches = self._said, [], 0
        self._news.clear()
        self._room.set()
        return said
