"""A lock over all processes that share a store: a key in it that is one's own, for as long as one says so.

add our token -> it is ours       renewed while it is held -> deleted, if it still is our token
              -> it is another's: tried again, until it is given back, or its holder has died and its time is over
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress

from tools.storing import Store, StoreError

logger = logging.getLogger(__name__)

#: So long after its holder has died it is anybody's again, and so long the store may be out of reach, or the event
#: loop held up, before it is lost to a holder that lives. A store that is started anew takes seconds.
_LEASE_S = 30.0

#: One renewal may fail, even by a timeout, and the next still comes in time.
_RENEWED_EACH_S = _LEASE_S / 3

#: The pauses of who waits double from the first, with which a short cell is hardly waited for longer than it takes, to
#: the longest, with which the store is asked four times a second.
_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 0.25


@asynccontextmanager
async def leased(store: Store, key: str, until: float) -> AsyncIterator[None]:
    """Meanwhile the key is ours alone. It is given back in any case, and waited for that, also by who is cancelled.

    TimeoutError if it is not ours by `until`, on the loop's clock; StoreError if the store fails before it is. If it
    fails later, that is logged, and another may take the lease when its time is over.
    """
    lease = _Lease(store, key)
    try:
        await lease.take(until)
    except BaseException:
        # It may have come to be ours: the answer was lost, or not waited for.
        with suppress(StoreError):
            await _unbroken(lease.give_back())
        raise
    holding = asyncio.create_task(lease.hold())
    try:
        yield
    finally:
        lease.left.set()
        await _unbroken(holding)


class _Lease:
    def __init__(self, store: Store, key: str) -> None:
        self.left = asyncio.Event()
        self._store = store
        self._key = key
        self._token = secrets.token_bytes(16)

    async def take(self, until: float) -> None:
        loop = asyncio.get_running_loop()
        pause_s = _FIRST_PAUSE_S
        while not await self._is_ours():
            left_s = until - loop.time()
            if left_s <= 0:
                raise TimeoutError
            await asyncio.sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def hold(self) -> None:
        failed = False
        while not await self._is_left():
            try:
                if not await self._is_renewed():
                    logger.warning("the turn at a kernel session is lost: another worker has taken it meanwhile")
                    return
            except StoreError as error:
                if not failed:
                    logger.warning("the turn at a kernel session is not renewed, and may be lost: %s", error)
                failed = True
        try:
            await self.give_back()
        except StoreError as error:
            logger.warning("the turn at a kernel session is given back in %g s only: %s", _LEASE_S, error)

    async def give_back(self) -> None:
        await self._store.delete(self._key, only=self._token)

    async def _is_left(self) -> bool:
        with suppress(TimeoutError):
            await asyncio.wait_for(self.left.wait(), _RENEWED_EACH_S)
        return self.left.is_set()

    async def _is_ours(self) -> bool:
        # Where the answer to an earlier `add` was lost, it has been ours since then.
        return await self._is_added() or await self._store.get(self._key) == self._token

    async def _is_renewed(self) -> bool:
        # What is gone, from a store that was started anew, say, may be had again; what is another's may not.
        replaced = await self._store.replace(self._key, self._token, self._token, ttl_s=_LEASE_S)
        return replaced or await self._is_added()

    async def _is_added(self) -> bool:
        return await self._store.add(self._key, self._token, ttl_s=_LEASE_S)


async def _unbroken(work: Awaitable[None]) -> None:
    """Waits until the work has ended, however often it is cancelled, and is cancelled then."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled:
        raise cancelled
    task.result()
