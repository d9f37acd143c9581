"""A store in the memory of this process: quick, and gone at its end."""

import heapq
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from tools.storing import cost_bytes, key_bytes


@dataclass(frozen=True, slots=True)
class _Entry:
    value: bytes
    ends_at: float
    cost: int


class MemoryStore:
    """A Store that holds at most `max_bytes`; what was not used for the longest goes first. `now` gives seconds."""

    def __init__(self, max_bytes: int, now: Callable[[], float]) -> None:
        self._max_bytes = max_bytes
        self._now = now
        # The one used last stands last.
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._held_bytes = 0
        # A heap of ends and keys; some are of entries that are not there any more.
        self._ends: list[tuple[float, str]] = []

    async def get(self, key: str) -> bytes | None:
        """See Store."""
        entry = self._living(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry.value

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None) -> None:
        """See Store. A value that has no room in the whole store is not kept."""
        self._put(key, value, ttl_s)

    async def add(self, key: str, value: bytes, *, ttl_s: float | None = None) -> bool:
        """See Store. A value that has no room in the whole store is not kept."""
        return self._living(key) is None and self._put(key, value, ttl_s)

    async def replace(self, key: str, old: bytes, value: bytes, *, ttl_s: float | None = None) -> bool:
        """See Store. A value that has no room in the whole store is not kept, and the older one goes."""
        entry = self._living(key)
        if entry is None or entry.value != old:
            return False
        self._put(key, value, ttl_s)
        return True

    async def delete(self, key: str, *, only: bytes | None = None) -> bool:
        """See Store."""
        entry = self._living(key)
        if entry is None or only not in (None, entry.value):
            return False
        self._drop(key)
        return True

    async def scan(self, prefix: str, *, after: str = "", limit: int = 100) -> list[str]:
        """See Store."""
        self._drop_ended(self._now())
        return heapq.nsmallest(limit, (key for key in self._entries if key.startswith(prefix) and key > after))

    async def aclose(self) -> None:
        """See Store."""
        self._entries.clear()

    def _living(self, key: str) -> _Entry | None:
        key_bytes(key)
        entry = self._entries.get(key)
        return entry if entry and entry.ends_at > self._now() else None

    def _put(self, key: str, value: bytes, ttl_s: float | None) -> bool:
        cost = cost_bytes(key_bytes(key), value)
        now = self._now()
        self._drop(key)
        self._drop_ended(now)
        if cost > self._max_bytes or (ttl_s is not None and ttl_s <= 0):
            return False
        while self._held_bytes + cost > self._max_bytes:
            self._drop(next(iter(self._entries)))
        self._keep(key, _Entry(value, math.inf if ttl_s is None else now + ttl_s, cost))
        return True

    def _keep(self, key: str, entry: _Entry) -> None:
        self._entries[key] = entry
        self._held_bytes += entry.cost
        if entry.ends_at < math.inf:
            heapq.heappush(self._ends, (entry.ends_at, key))
        # At least half of the heap is of use: a key that is put again and again does not fill the memory.
        if len(self._ends) > 2 * len(self._entries):
            self._ends = [(each.ends_at, name) for name, each in self._entries.items() if each.ends_at < math.inf]
            heapq.heapify(self._ends)

    def _drop(self, key: str) -> None:
        if entry := self._entries.pop(key, None):
            self._held_bytes -= entry.cost

    def _drop_ended(self, now: float) -> None:
        while self._ends and self._ends[0][0] <= now:
            ends_at, key = heapq.heappop(self._ends)
            entry = self._entries.get(key)
            if entry and entry.ends_at == ends_at:
                self._drop(key)
