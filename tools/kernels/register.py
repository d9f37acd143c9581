"""What the workers that share a store know of each other's sessions, and whose turn it is at one.

turn -> the session's lease -> what is noted: which kernel, whose it was last -> the cell -> noted anew -> given back
"""

import hashlib
import json
import logging
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

from tools.errors import RetryableToolError
from tools.kernels.lease import leased
from tools.storing import Store, StoreError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """What all workers are to know of a session.

    Its kernel, and the directory of its files; without a `kernel_id` the kernel has gone. `holder` is the worker that
    used it last. `born_at` and `used_at` are seconds since 1970. `put` are the ids of the attached files that were put
    there. `executions`: so many cells the kernel has run.
    """

    kernel_id: str
    directory: str
    holder: str
    born_at: float
    used_at: float
    put: tuple[str, ...]
    executions: int


class Turn:
    """One worker's turn at a session. `entry` is what was noted of it when the turn began, None if nothing was."""

    def __init__(self, store: Store, key: str, ttl_s: float, entry: Entry | None) -> None:
        self.entry = entry
        self._store = store
        self._key = key
        self._ttl_s = ttl_s

    async def note(self, entry: Entry) -> bool:
        """Notes it for whose turn comes next; False if the store fails, which is logged."""
        try:
            await self._store.put(self._key, _written(asdict(entry)), ttl_s=self._ttl_s)
        except StoreError as error:
            logger.warning("a kernel session is not noted, and other workers may begin another: %s", error)
            return False
        return True


class Register:
    """The sessions of all who share the store; each is remembered for `ttl_s` after it was noted last.

    `holder` is a name that no other worker has.
    """

    def __init__(self, store: Store, *, holder: str, ttl_s: float) -> None:
        self.holder = holder
        self._store = store
        self._ttl_s = ttl_s

    @asynccontextmanager
    async def turn(self, caller: str, session: str, until: float) -> AsyncIterator[Turn]:
        """One worker's at a time, and of a worker one cell's.

        RetryableToolError if it does not come by `until`, on the loop's clock, or if the store fails before it has.
        Fails the store later, the turn goes on: the kernel itself runs one cell after the other.
        """
        name = _name(caller, session)
        async with AsyncExitStack() as held:
            try:
                await held.enter_async_context(leased(self._store, f"kernel-turn/{name}", until))
            except StoreError as error:
                raise _unknown(error) from None
            except TimeoutError:
                raise RetryableToolError("The session is in use: another cell of it is still running.") from None
            yield Turn(self._store, _key(name), self._ttl_s, await self._noted(name))

    async def _noted(self, name: str) -> Entry | None:
        try:
            return _read(await self._store.get(_key(name)))
        except StoreError as error:
            raise _unknown(error) from None


def _name(caller: str, session: str) -> str:
    # Hashed, since both are whatever somebody chose.
    return hashlib.sha256(_written([caller, session])).hexdigest()


def _key(name: str) -> str:
    return f"kernel-session/{name}"


def _written(value: Any) -> bytes:
    # As it is: a text may hold half of a surrogate pair.
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _read(kept: bytes | None) -> Entry | None:
    try:
        noted = json.loads(kept or b"null", parse_int=float)
    except (ValueError, RecursionError):
        return None
    match noted:
        case {
            "kernel_id": str(kernel_id),
            "directory": str(directory),
            "holder": str(holder),
            "born_at": float(born_at),
            "used_at": float(used_at),
            "put": [*put],
            "executions": float(executions),
        } if all(map(math.isfinite, (born_at, used_at, executions))) and all(isinstance(each, str) for each in put):
            return Entry(kernel_id, directory, holder, born_at, used_at, tuple(put), int(executions))
        case _:
            return None


def _unknown(error: StoreError) -> RetryableToolError:
    logger.warning("a kernel session is not looked up: %s", error)
    return RetryableToolError("The session cannot be looked up at the moment.")
