"""The results of calls, kept for the next equal call; equal calls at the same time are made once.

through -> is the same call being made?  join it
        -> is its result in the store?   give it
        -> make it, keep it, give it     an error is given to all who wait, and not kept
"""

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tools.items import ContentItem, Details, TextItem, from_json, to_json
from tools.storing import Store, StoreError

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: A result with more characters of text and bytes of data is not kept: a few such would push out all the small ones.
_MAX_SIZE = 1_000_000

#: So long a store that failed is left alone: until then every call would wait for it, and the log would be full of it.
_REST_S = 10.0

Items = list[ContentItem]


@dataclass(frozen=True, slots=True)
class CacheScope:
    """What a result depends on beside the arguments.

    `tenant` is whose it is, None if it is anybody's; `file_hashes` tell the files of the conversation.
    """

    tenant: str | None = None
    file_hashes: tuple[str, ...] = ()


class ToolCache:
    """Results in a store. A store that fails costs the results and never a call. `clock` gives seconds."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._resting_until = -float("inf")
        self._flights: dict[str, _Flight] = {}

    def key(
        self, tool_name: str, version: str, options_digest: str, arguments: Mapping[str, Any], scope: CacheScope
    ) -> str:
        """The key of a call. ValueError for arguments that JSON cannot hold."""
        depends_on = [tool_name, version, options_digest, arguments, scope.tenant, scope.file_hashes]
        written = json.dumps(depends_on, sort_keys=True, allow_nan=False)
        return f"results/{hashlib.sha256(written.encode()).hexdigest()}"

    async def get(self, key: str) -> Items | None:
        """The result that is kept under the key; None if there is none that can be read."""
        kept = await self._asked(self._store.get, key)
        return None if kept is None else _read(kept)

    async def put(self, key: str, items: Sequence[ContentItem], ttl_s: float) -> None:
        """Keeps a result for `ttl_s`, unless it is very long."""
        if sum(map(_size, items)) <= _MAX_SIZE:
            # As it is: a text may hold half of a surrogate pair.
            content = json.dumps(to_json(items), ensure_ascii=False).encode("utf-8", "surrogatepass")
            await self._asked(lambda name: self._store.put(name, content, ttl_s=ttl_s), key)

    async def through(self, key: str, ttl_s: float, make: Callable[[], Awaitable[Items]]) -> tuple[Items, bool]:
        """The result that is kept, or that `make` gives, which is then kept; and whether it was kept.

        Raises what `make` raises. It is cancelled when all who wait for it have been.
        """
        while (flight := self._flights.get(key)) and flight.is_left:
            # It is being cancelled, and two would run at once.
            await asyncio.wait({flight.task})
        if flight is None:
            flight = self._flights[key] = _Flight(asyncio.create_task(self._found_or_made(key, ttl_s, make)))
            flight.task.add_done_callback(lambda task: self._landed(key, task))
        items, hit = await flight.joined()
        return list(items), hit

    async def _found_or_made(self, key: str, ttl_s: float, make: Callable[[], Awaitable[Items]]) -> tuple[Items, bool]:
        kept = await self.get(key)
        if kept is not None:
            return kept, True
        items = await make()
        await self.put(key, items, ttl_s)
        return items, False

    def _landed(self, key: str, task: "asyncio.Task[tuple[Items, bool]]") -> None:
        del self._flights[key]
        # An error that comes out of a cancelled run is nobody's; unread, asyncio would complain of it.
        if not task.cancelled():
            task.exception()

    async def _asked(self, ask: Callable[[str], Awaitable[T]], key: str) -> T | None:
        if self._clock() < self._resting_until:
            return None
        try:
            return await ask(key)
        except StoreError as error:
            # Calls side by side may all have waited for it.
            if self._clock() >= self._resting_until:
                logger.warning("results of tools are not cached for the next %g s: %s", _REST_S, error)
            self._resting_until = self._clock() + _REST_S
            return None


class _Flight:
    """One run, and how many wait for it. A task of its own, so that none of them is needed for the others."""

    def __init__(self, task: "asyncio.Task[tuple[Items, bool]]") -> None:
        self.task = task
        self._waiting = 0

    @property
    def is_left(self) -> bool:
        """Nobody waits any more, so it is being cancelled."""
        return not self._waiting

    async def joined(self) -> tuple[Items, bool]:
        """The result. When the last who waits is cancelled, the run is, and has ended before this raises."""
        self._waiting += 1
        try:
            await asyncio.wait({self.task})
        finally:
            self._waiting -= 1
            if not self._waiting and not self.task.done():
                self.task.cancel()
                await asyncio.wait({self.task})
        return self.task.result()


def _size(item: ContentItem) -> int:
    if isinstance(item, TextItem):
        return len(item.text)
    return len(json.dumps(item.data)) if isinstance(item, Details) else len(item.data or b"") + len(item.url or "")


def _read(kept: bytes) -> Items | None:
    try:
        return from_json(json.loads(kept))
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
