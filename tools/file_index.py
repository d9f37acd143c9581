"""What is known of the files of a store: one row each, in SQLite.

A row is there before its blob is, and is marked before its blob goes: a blob without a living row is of no use to
anybody, at any moment, in any of the processes that share the store.

    coming --finish--> here --delete, expire--> gone --after a day--> no row
       |`----nothing came for an hour------------^
       `------forget--------------------------------------------------^

Source: SQLite's "Write-Ahead Logging": many readers and one writer at a time, on a local disk.
"""

import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from tools.stored_file import FileError, NoSuchFile, QuotaExceeded, StoredFile

#: So long a writer waits for the other processes: each of them is done in milliseconds.
_BUSY_TIMEOUT_S = 10.0

#: An upload of which nothing came for so long was given up, by a process that could not say so.
_STALE_S = 3600

#: So long it is remembered where a deleted file stood, for whoever pages through a list and deletes as it goes.
_REMEMBERED_S = 86_400

_SCHEMA = """
CREATE TABLE files (
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    purpose TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    sha256 TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('coming', 'here', 'gone')),
    touched_at REAL NOT NULL,
    seq INTEGER PRIMARY KEY AUTOINCREMENT
);
CREATE INDEX files_of_owner ON files (owner);
CREATE VIEW living AS
    SELECT *, coalesce(expires_at, 9e18) AS ends_at FROM files WHERE state != 'gone';
CREATE TABLE secrets (name TEXT PRIMARY KEY, secret BLOB NOT NULL);
"""

#: So many columns of a row, the first ones, are those of a StoredFile.
_FIELDS = 8


class FileIndex:
    """The rows of the store whose database is `path`. For threads: nothing here is asynchronous.

    `quota_bytes` and `max_files` are what each owner may keep. Every `now` is in seconds since 1970.
    """

    def __init__(self, path: Path, *, quota_bytes: int, max_files: int) -> None:
        if not path.exists():
            _make(path)
        self._quota_bytes = quota_bytes
        self._max_files = max_files
        self._lock = threading.Lock()
        self._db = _connected(path)

    def close(self) -> None:
        """Nothing can be asked any more."""
        with self._lock:
            self._db.close()

    def secret(self) -> bytes:
        """The random secret of this store, the same in all of its processes."""
        with self._writing() as db:
            db.execute("INSERT OR IGNORE INTO secrets VALUES ('links', ?)", (secrets.token_bytes(32),))
            [[secret]] = db.execute("SELECT secret FROM secrets WHERE name = 'links'")
        return bytes(secret)

    # -- a file comes ------------------------------------------------------------------------------------------

    def begin(self, file: StoredFile, now: float) -> None:
        """The file is coming. QuotaExceeded if its owner has as many as may be."""
        with self._writing() as db:
            count, _ = _kept(db, file, now)
            if count >= self._max_files:
                raise QuotaExceeded(f"There are {count:,} files, and no more may be kept; delete some first.")
            db.execute(
                "INSERT INTO files VALUES (?, ?, ?, ?, 0, ?, ?, '', 'coming', ?, NULL)",
                (file.id, file.owner, file.name, file.purpose, file.created_at, file.expires_at, now),
            )

    def grow(self, file: StoredFile, size_bytes: int, now: float) -> None:
        """So much of a file has come. QuotaExceeded if its owner may not keep so much; FileError if it was given up."""
        with self._writing() as db:
            _, others_bytes = _kept(db, file, now)
            if others_bytes + size_bytes > self._quota_bytes:
                raise QuotaExceeded(
                    f"There are {others_bytes:,} bytes of other files, and no more than {self._quota_bytes:,} in all "
                    "may be kept; delete some first."
                )
            came = "UPDATE files SET size_bytes = ?, touched_at = ? WHERE id = ? AND state = 'coming'"
            _not_given_up(db.execute(came, (size_bytes, now, file.id)))

    def finish(self, file: StoredFile, put_in_place: Callable[[], object]) -> None:
        """All of the file has come: its blob is put in place, and it is here. FileError if it was given up."""
        with self._writing() as db:
            done = "UPDATE files SET size_bytes = ?, sha256 = ?, state = 'here' WHERE id = ? AND state = 'coming'"
            _not_given_up(db.execute(done, (file.size_bytes, file.sha256, file.id)))
            # Within: nobody sees the one without the other.
            put_in_place()

    def forget(self, file_id: str) -> None:
        """The file, if it is known at all, was never there."""
        with self._writing() as db:
            db.execute("DELETE FROM files WHERE id = ?", (file_id,))

    # -- a file is here ----------------------------------------------------------------------------------------

    def get(self, file_id: str, now: float, *, owner: str | None = None) -> StoredFile:
        """The file; NoSuchFile if there is none, or if it is not that owner's."""
        with self._lock:
            row = self._db.execute(
                "SELECT * FROM living WHERE id = :id AND owner = coalesce(:owner, owner) "
                "AND state = 'here' AND ends_at > :now",
                {"id": file_id, "owner": owner, "now": now},
            ).fetchone()
        if row is None:
            raise NoSuchFile(file_id)
        return StoredFile(*row[:_FIELDS])

    def list(
        self, owner: str, now: float, *, purpose: str | None, after: str | None, limit: int, newest_first: bool
    ) -> list[StoredFile]:
        """At most so many of the owner's files, those behind the file `after`; NoSuchFile if that never was."""
        with self._lock:
            at = None if after is None else self._position(owner, after)
            rows = self._db.execute(
                "SELECT * FROM living WHERE owner = :owner AND purpose = coalesce(:purpose, purpose) "
                "AND state = 'here' AND ends_at > :now AND (:at IS NULL OR seq * :sign > :at * :sign) "
                "ORDER BY seq * :sign LIMIT :limit",
                {
                    "owner": owner,
                    "purpose": purpose,
                    "now": now,
                    "at": at,
                    "sign": -1 if newest_first else 1,
                    "limit": limit,
                },
            ).fetchall()
        return [StoredFile(*row[:_FIELDS]) for row in rows]

    def delete(self, owner: str, file_id: str, now: float) -> None:
        """The file is gone. NoSuchFile if there was none, or if it is not that owner's."""
        self.get(file_id, now, owner=owner)
        with self._writing() as db:
            db.execute("UPDATE files SET state = 'gone', touched_at = ? WHERE id = ?", (now, file_id))

    # -- what remains ------------------------------------------------------------------------------------------

    def sweep(self, now: float) -> None:
        """What has expired, or was given up while it came, is gone."""
        with self._writing() as db:
            db.execute(
                "UPDATE files SET state = 'gone', touched_at = :now WHERE state = 'here' AND expires_at <= :now "
                "OR state = 'coming' AND touched_at < :stale",
                {"now": now, "stale": now - _STALE_S},
            )
            db.execute("DELETE FROM files WHERE state = 'gone' AND touched_at < ?", (now - _REMEMBERED_S,))

    def living(self) -> set[str]:
        """The ids of the files that are here or coming."""
        with self._lock:
            return {file_id for (file_id,) in self._db.execute("SELECT id FROM living")}

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._db as db:
            # At once, so that what is read is still true when it is written upon.
            db.execute("BEGIN IMMEDIATE")
            yield db

    def _position(self, owner: str, file_id: str) -> int:
        row = self._db.execute("SELECT seq FROM files WHERE id = ? AND owner = ?", (file_id, owner)).fetchone()
        if row is None:
            raise NoSuchFile(file_id)
        return int(row[0])


def _make(path: Path) -> None:
    # Elsewhere, and then put in place whole: of processes that begin together, one would find the database locked
    # while another one switches its journal, and that is not waited for.
    with TemporaryDirectory(prefix="new-", dir=path.parent) as directory:
        made = Path(directory, path.name)
        # SQLite would let others read it.
        made.touch(mode=0o600)
        with closing(_connected(made)) as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.executescript(_SCHEMA)
        with suppress(FileExistsError):
            path.hardlink_to(made)


def _connected(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)


def _kept(db: sqlite3.Connection, file: StoredFile, now: float) -> tuple[int, int]:
    # How many other files the owner has, and of how many bytes, those that are coming included.
    [kept] = db.execute(
        "SELECT count(*), coalesce(sum(size_bytes), 0) FROM living WHERE owner = ? AND id != ? AND ends_at > ?",
        (file.owner, file.id, now),
    )
    return int(kept[0]), int(kept[1])


def _not_given_up(update: sqlite3.Cursor) -> None:
    if not update.rowcount:
        raise FileError("The file stood still for too long while it came, and was given up.")
