"""A store in one SQLite file: it outlives the process, and the processes of one machine share it.

Source: SQLite's "Write-Ahead Logging" (many readers and one writer at a time, on a local disk) and "Pragma statements".
"""

import asyncio
import math
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar

from tools.storing import StoreError, cost_bytes, key_bytes

T = TypeVar("T")

#: So long another process may keep its turn at writing, which takes milliseconds; more is a disk that hangs.
_BUSY_TIMEOUT_S = 5.0

#: When an entry was used is noted to the minute, so that reading is seldom writing.
_GRAIN_S = 60.0

#: Says that a database is a store of this form ("FlS1"); another form gets another number.
_APPLICATION_ID = 0x466C5331

#: Behind all that begin with a prefix, as UTF-8 has no such byte.
_LAST = b"\xff"

# The sum is kept by triggers, or each `put` would have to read the sizes of all entries.
_SCHEMA = """
BEGIN IMMEDIATE;
PRAGMA application_id = 0x466C5331;
CREATE TABLE IF NOT EXISTS entries (
    key BLOB PRIMARY KEY, value BLOB NOT NULL, cost INTEGER NOT NULL, ends_at REAL NOT NULL, used_at REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS entries_by_end ON entries (ends_at);
CREATE INDEX IF NOT EXISTS entries_by_use ON entries (used_at, cost);
CREATE TABLE IF NOT EXISTS held (id INTEGER PRIMARY KEY CHECK (id = 0), bytes INTEGER NOT NULL);
INSERT OR IGNORE INTO held VALUES (0, 0);
CREATE TRIGGER IF NOT EXISTS entry_comes AFTER INSERT ON entries
    BEGIN UPDATE held SET bytes = bytes + new.cost; END;
CREATE TRIGGER IF NOT EXISTS entry_goes AFTER DELETE ON entries
    BEGIN UPDATE held SET bytes = bytes - old.cost; END;
COMMIT;
"""


class SqliteStore:
    """A Store in the file `path`, with at most `max_bytes` of entries; what was not used for the longest goes first.

    The file is made if it is not there, and its directory, too; none but their owner can read them. `now` gives
    seconds since 1970. StoreError if the file is damaged, or something else.
    """

    def __init__(self, path: Path, max_bytes: int, now: Callable[[], float]) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._now = now
        self._db = _opened(path)
        # One thread, so that one statement runs at a time, and a slow disk does not take the threads of others.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite-store")

    async def get(self, key: str) -> bytes | None:
        """See Store."""
        name = key_bytes(key)
        return await self._run(lambda: self._get(name))

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None) -> None:
        """See Store. A value that has no room in the whole store is not kept."""
        name = key_bytes(key)
        await self._run(lambda: self._put(name, value, ttl_s))

    async def add(self, key: str, value: bytes, *, ttl_s: float | None = None) -> bool:
        """See Store. A value that has no room in the whole store is not kept."""
        name = key_bytes(key)
        return await self._run(lambda: self._add(name, value, ttl_s))

    async def replace(self, key: str, old: bytes, value: bytes, *, ttl_s: float | None = None) -> bool:
        """See Store. A value that has no room in the whole store is not kept, and the older one goes."""
        name = key_bytes(key)
        return await self._run(lambda: self._replace(name, old, value, ttl_s))

    async def delete(self, key: str, *, only: bytes | None = None) -> bool:
        """See Store."""
        name = key_bytes(key)
        return await self._run(lambda: self._delete(name, only))

    async def scan(self, prefix: str, *, after: str = "", limit: int = 100) -> list[str]:
        """See Store."""
        first, last = prefix.encode(), after.encode()
        return await self._run(lambda: self._scan(first, last, limit))

    async def aclose(self) -> None:
        """See Store. What has begun is finished."""
        await asyncio.to_thread(self._close)

    async def _run(self, ask: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, ask)
        except sqlite3.Error as error:
            raise StoreError(f"the database {self._path} cannot be used: {error}") from None

    # -- in the thread -----------------------------------------------------------------------------------------

    def _get(self, key: bytes) -> bytes | None:
        now = self._now()
        found = self._db.execute("SELECT value, used_at FROM entries WHERE key = ? AND ends_at > ?", (key, now))
        row = found.fetchone()
        if row is None:
            return None
        value, used_at = row
        if abs(now - used_at) >= _GRAIN_S:
            self._db.execute("UPDATE entries SET used_at = ? WHERE key = ?", (now, key))
        return bytes(value)

    def _put(self, key: bytes, value: bytes, ttl_s: float | None) -> None:
        with self._writing():
            self._keep(key, value, ttl_s)

    def _add(self, key: bytes, value: bytes, ttl_s: float | None) -> bool:
        with self._writing():
            return self._living(key) is None and self._keep(key, value, ttl_s)

    def _replace(self, key: bytes, old: bytes, value: bytes, ttl_s: float | None) -> bool:
        with self._writing():
            found = self._living(key) == old
            if found:
                self._keep(key, value, ttl_s)
            return found

    def _delete(self, key: bytes, only: bytes | None) -> bool:
        with self._writing():
            found = self._living(key)
            if found is None or only not in (None, found):
                return False
            self._db.execute("DELETE FROM entries WHERE key = ?", (key,))
            return True

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Meanwhile no other process writes. Leaves by a commit, or by a rollback if anything is raised."""
        self._db.execute("BEGIN IMMEDIATE")
        with self._db:
            yield

    def _living(self, key: bytes) -> bytes | None:
        found = self._db.execute("SELECT value FROM entries WHERE key = ? AND ends_at > ?", (key, self._now()))
        row = found.fetchone()
        return row and bytes(row[0])

    def _keep(self, key: bytes, value: bytes, ttl_s: float | None) -> bool:
        now = self._now()
        cost = cost_bytes(key, value)
        ends_at = math.inf if ttl_s is None else now + ttl_s
        self._db.execute("DELETE FROM entries WHERE key = ? OR ends_at <= ?", (key, now))
        if cost > self._max_bytes or ends_at <= now:
            return False
        self._make_room(cost)
        self._db.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", (key, value, cost, ends_at, now))
        return True

    def _make_room(self, cost: int) -> None:
        [[held]] = self._db.execute("SELECT bytes FROM held")
        excess = held + cost - self._max_bytes
        going = []
        if excess > 0:
            with closing(self._db.execute("SELECT rowid, cost FROM entries ORDER BY used_at, rowid")) as oldest:
                while excess > 0:
                    rowid, freed = oldest.fetchone()
                    going.append((rowid,))
                    excess -= freed
        self._db.executemany("DELETE FROM entries WHERE rowid = ?", going)

    def _scan(self, prefix: bytes, after: bytes, limit: int) -> list[str]:
        found = self._db.execute(
            "SELECT key FROM entries WHERE key >= ? AND key < ? AND key > ? AND ends_at > ? ORDER BY key LIMIT ?",
            (prefix, prefix + _LAST, after, self._now(), limit),
        )
        return [key.decode() for [key] in found]

    def _close(self) -> None:
        self._thread.shutdown()
        self._db.close()


def _opened(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        # Made here, since SQLite would let others read it.
        path.touch(mode=0o600)
        db = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"the database {path} cannot be opened: {error}") from None
    try:
        _prepare(db, path)
    except BaseException:
        db.close()
        raise
    return db


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    try:
        # In this order: another process may be making them both just now.
        [[tables]] = db.execute("SELECT count(*) FROM sqlite_master")
        [[application_id]] = db.execute("PRAGMA application_id")
        if tables and application_id != _APPLICATION_ID:
            raise StoreError(f"the database {path} is that of another program")
        [[found]] = db.execute("PRAGMA quick_check(1)")
        if found != "ok":
            raise StoreError(f"the database {path} is damaged, move it away: {found}")
        db.execute("PRAGMA journal_mode = WAL")
        # With a write-ahead log a power cut may cost the last entries, and never the whole.
        db.execute("PRAGMA synchronous = NORMAL")
        db.executescript(_SCHEMA)
    except sqlite3.Error as error:
        raise StoreError(f"the database {path} cannot be used, move it away if it is damaged: {error}") from None
