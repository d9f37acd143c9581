"""Where small values are kept, by a URL: in memory, in an SQLite file, or in Redis.

    memory:                         this process; gone at its end
    sqlite:///cache.db              a file in the current directory; with four slashes an absolute path:
    sqlite:////var/lib/x/cache.db
    redis://:password@host:6379/0   Redis; rediss:// for TLS, unix:// for a socket of this machine

Source: SQLAlchemy's "Database URLs" for SQLite's, redis-py's `from_url` for those of Redis.
"""

import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from tools.memory_store import MemoryStore
from tools.sqlite_store import SqliteStore
from tools.storing import Store, StoreError

__all__ = ["MEMORY", "Store", "StoreError", "checked_url", "open_store"]

#: The URL of a store that nobody shares.
MEMORY = "memory:"
_SQLITE = "sqlite:///"
_REDIS = ("redis://", "rediss://", "unix://")


def checked_url(url: str) -> str:
    """The URL, if it is one of a store; nothing is opened. ValueError if it is none, without what may be a password."""
    if url.startswith(_REDIS):
        _redis(url)
    elif url != MEMORY and not (url.startswith(_SQLITE) and url != _SQLITE):
        raise ValueError("a store's URL is 'memory:', 'sqlite:///path.db' or 'redis://host:port/0'")
    return url


def open_store(url: str, *, max_bytes: int, now: Callable[[], float] = time.time) -> Store:
    """The store at the URL.

    `max_bytes` bounds what is held in memory or SQLite: what was not used for the longest goes first. Redis bounds
    itself. `now` gives seconds since 1970; the clock of Redis is its own. ValueError for what is no URL of a store,
    StoreError if an SQLite file cannot be used.
    """
    if checked_url(url) == MEMORY:
        return MemoryStore(max_bytes, now)
    if url.startswith(_SQLITE):
        return SqliteStore(Path(url.removeprefix(_SQLITE)), max_bytes, now)
    return _redis(url)


def _redis(url: str) -> Store:
    # Its library takes a tenth of a second to load, so it is loaded where there is a Redis.
    store: Store = import_module("tools.redis_store").RedisStore(url)
    return store
