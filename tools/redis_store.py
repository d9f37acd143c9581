"""A store in Redis, which replicas on several machines share.

Source: Redis's commands SET (PX, NX), GET, DEL, EVAL (nothing comes between its steps) and SCAN (MATCH takes globs).
"""

import heapq
import math
import re
from collections.abc import Awaitable
from typing import Any, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from tools.storing import StoreError, key_bytes

T = TypeVar("T")

#: Our keys begin so, since others may use the same database.
_OURS = b"florette:"

#: So long an answer may take, and a connection: a Redis that is well takes a millisecond, and a call waits meanwhile.
_TIMEOUT_S = 2.0

#: Once more, at once: a connection that lay idle may have been closed by the other side.
_RETRIES = 1

#: So many commands are on their way at the same time; one more waits its turn.
_CONNECTIONS = 32

#: A step of SCAN looks at so many keys: some hundred microseconds in which Redis serves nobody else.
_SCAN_STEP = 1000

#: What has a meaning in a pattern of MATCH.
_GLOB = re.compile(rb"[*?\[\]\\]")

#: With the key, what is to be there, what is to be kept, and for how many milliseconds; without an end "".
_REPLACE = """
if redis.call("GET", KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[3] == "" then redis.call("SET", KEYS[1], ARGV[2]) else redis.call("SET", KEYS[1], ARGV[2], "PX", ARGV[3]) end
return 1
"""

#: With the key, and what is to be there.
_DELETE_ONLY = """
if redis.call("GET", KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call("DEL", KEYS[1])
"""


class RedisStore:
    """A Store in the Redis at `url`; nothing is opened before the first use. ValueError for what is no URL of Redis.

    A command is given once more if its answer was lost with the connection. If it had been done already, `add`,
    `replace` and `delete` say False: who has to know looks if its own value is there.
    """

    def __init__(self, url: str) -> None:
        try:
            pool = BlockingConnectionPool.from_url(
                url,
                max_connections=_CONNECTIONS,
                timeout=_TIMEOUT_S,
                socket_timeout=_TIMEOUT_S,
                socket_connect_timeout=_TIMEOUT_S,
                retry=Retry(NoBackoff(), _RETRIES),
            )
            # Not connected: an unknown option in the URL would otherwise be found at the first use.
            pool.connection_class(**pool.connection_kwargs)
        except (TypeError, ValueError):
            # Their own words may quote the password.
            raise ValueError("the URL of Redis is to be like redis://:password@host:6379/0") from None
        told = pool.connection_kwargs
        # Its own types allow for answers as text, too, which nobody asks for here.
        self._redis: Any = Redis.from_pool(pool)
        self._where = told.get("path") or f"{told.get('host', 'localhost')}:{told.get('port', 6379)}"
        self._password = told.get("password")

    async def get(self, key: str) -> bytes | None:
        """See Store."""
        value: bytes | None = await self._asked(self._redis.get(_name(key)))
        return value

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None) -> None:
        """See Store. How much there may be is Redis's own setting (maxmemory)."""
        if ttl_s is not None and ttl_s <= 0:
            await self.delete(key)
        else:
            await self._asked(self._redis.set(_name(key), value, px=_ms(ttl_s)))

    async def add(self, key: str, value: bytes, *, ttl_s: float | None = None) -> bool:
        """See Store."""
        if ttl_s is not None and ttl_s <= 0:
            return False
        return bool(await self._asked(self._redis.set(_name(key), value, px=_ms(ttl_s), nx=True)))

    async def replace(self, key: str, old: bytes, value: bytes, *, ttl_s: float | None = None) -> bool:
        """See Store."""
        if ttl_s is not None and ttl_s <= 0:
            return await self.delete(key, only=old)
        ttl_ms = "" if ttl_s is None else _ms(ttl_s)
        return bool(await self._asked(self._redis.eval(_REPLACE, 1, _name(key), old, value, ttl_ms)))

    async def delete(self, key: str, *, only: bytes | None = None) -> bool:
        """See Store."""
        name = _name(key)
        deleted = self._redis.delete(name) if only is None else self._redis.eval(_DELETE_ONLY, 1, name, only)
        return bool(await self._asked(deleted))

    async def scan(self, prefix: str, *, after: str = "", limit: int = 100) -> list[str]:
        """See Store. Redis has to look at all keys that it holds."""
        pattern = _OURS + _GLOB.sub(rb"\\\g<0>", prefix.encode()) + b"*"
        # SCAN may give a key twice.
        found: set[str] = set()
        cursor = -1
        while cursor:
            step = self._redis.scan(max(cursor, 0), match=pattern, count=_SCAN_STEP)
            cursor, names = await self._asked(step)
            found.update(name.removeprefix(_OURS).decode() for name in names)
        return heapq.nsmallest(limit, (key for key in found if key > after))

    async def aclose(self) -> None:
        """See Store."""
        await self._redis.aclose()

    async def _asked(self, answer: Awaitable[T]) -> T:
        try:
            return await answer
        except (RedisError, OSError) as error:
            said = str(error).replace(self._password, "***") if self._password else str(error)
            raise StoreError(f"Redis at {self._where} cannot be used: {said or type(error).__name__}") from None


def _name(key: str) -> bytes:
    return _OURS + key_bytes(key)


def _ms(ttl_s: float | None) -> int | None:
    return None if ttl_s is None else math.ceil(ttl_s * 1000)
