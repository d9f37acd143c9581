"""Files of callers, and those that tools make: bytes in, an id out. Each owner sees its own only.

Any number of stores, in any number of processes, may share one root.
"""

import asyncio
import hmac
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

import anyio
from anyio.to_thread import run_sync

from tools.file_names import plain_name
from tools.file_root import FileRoot
from tools.incoming_file import IncomingFile
from tools.stored_file import FileError, FileTooLarge, NoSuchFile, QuotaExceeded, StoredFile

__all__ = ["FileError", "FileStore", "FileTooLarge", "NoSuchFile", "QuotaExceeded", "StoredFile"]

T = TypeVar("T")


class FileStore:
    """The files below `root`; with none, in a directory of the store's own that is removed by `aclose`.

    A file has at most `max_file_bytes`, and an owner's files together at most `quota_bytes`, of `max_files`. Each is
    kept for `ttl_s`; None: for ever. The seams: `now` gives seconds since 1970, `new_id` the random part of an id.

    Nothing is opened before the first use. OSError and sqlite3.Error come out as they are.
    """

    def __init__(
        self,
        root: Path | None,
        *,
        max_file_bytes: int,
        quota_bytes: int,
        ttl_s: int | None,
        max_files: int = 10_000,  # OpenAI's list tells as many at once, and so few are quickly counted
        now: Callable[[], float] = time.time,
        new_id: Callable[[], str] = lambda: secrets.token_hex(12),
    ) -> None:
        self.max_file_bytes = max_file_bytes
        self._path = root
        self._quota_bytes = quota_bytes
        self._ttl_s = ttl_s
        self._max_files = max_files
        self._now = now
        self._new_id = new_id
        self._opening = threading.Lock()
        self._root: FileRoot | None = None
        self._own: Path | None = None
        self._closed = False

    async def create(
        self,
        owner: str,
        name: str,
        purpose: str,
        data: bytes | AsyncIterator[bytes],
        *,
        expires_after_s: int | None = None,
    ) -> StoredFile:
        """Keeps the bytes, for `expires_after_s` if that is less than `ttl_s`; of `name` the last segment is kept.

        FileTooLarge or QuotaExceeded as soon as that is certain. What fails or is cancelled leaves nothing.
        """
        root = await self._with(self._swept)
        file = self._described(owner, plain_name(name), purpose, expires_after_s)
        incoming = IncomingFile(file, root, self.max_file_bytes, self._now)
        try:
            await run_sync(incoming.begin)
            if isinstance(data, bytes):
                await run_sync(incoming.add, data)
            else:
                async for piece in data:
                    await run_sync(incoming.add, piece)
            return await run_sync(incoming.finish)
        except BaseException:
            # A task of its own: anyio's shield holds off no cancellation of asyncio's, and a second one may come.
            with anyio.CancelScope(shield=True):
                await asyncio.shield(asyncio.create_task(run_sync(incoming.abandon)))
            raise

    async def get(self, owner: str, file_id: str) -> StoredFile:
        """What is known of the file. NoSuchFile if it is unknown, expired, deleted or another owner's."""
        return await self._with(lambda root: root.index.get(file_id, self._now(), owner=owner))

    async def list(
        self,
        owner: str,
        *,
        purpose: str | None = None,
        after: str | None = None,
        limit: int = 10_000,
        newest_first: bool = True,
    ) -> tuple[list[StoredFile], bool]:
        """At most `limit` of the owner's files, those behind the file `after`, and whether there are more.

        NoSuchFile if the owner never had the file `after`; it may have been deleted within the last day.
        """
        found = await self._with(
            lambda root: root.index.list(
                owner, self._now(), purpose=purpose, after=after, limit=limit + 1, newest_first=newest_first
            )
        )
        return found[:limit], len(found) > limit

    async def delete(self, owner: str, file_id: str) -> None:
        """Deletes the file. NoSuchFile as `get`. Who is reading it reads on."""

        def delete(root: FileRoot) -> None:
            root.index.delete(owner, file_id, self._now())
            root.blob(file_id).unlink(missing_ok=True)

        await self._with(delete)

    async def path(self, owner: str, file_id: str) -> Path:
        """Where the file's bytes are, for reading only. NoSuchFile as `get`."""

        def path(root: FileRoot) -> Path:
            root.index.get(file_id, self._now(), owner=owner)
            blob = root.blob(file_id)
            if not blob.is_file():
                raise NoSuchFile(file_id)
            return blob

        return await self._with(path)

    async def sign(self, file_id: str) -> str:
        """The signature of a link to this file: who has it may read the file while it is there."""
        return await self._with(lambda root: root.signature(file_id))

    async def signed(self, file_id: str, signature: str) -> StoredFile:
        """The file to which a link with this signature leads. NoSuchFile if it leads to none."""

        def signed(root: FileRoot) -> StoredFile:
            if not hmac.compare_digest(root.signature(file_id).encode(), signature.encode(errors="replace")):
                raise NoSuchFile(file_id)
            return root.index.get(file_id, self._now())

        return await self._with(signed)

    async def sweep(self) -> None:
        """Removes what has expired, and blobs that belong to no file. The first use and `create` see to that, too."""
        if self._path or self._root:
            await self._with(lambda root: root.sweep(self._now()))

    async def aclose(self) -> None:
        """Closes the store for good."""
        await run_sync(self._close)

    def _described(self, owner: str, name: str, purpose: str, expires_after_s: int | None) -> StoredFile:
        created_at = int(self._now())
        ends = [seconds for seconds in (expires_after_s, self._ttl_s) if seconds is not None]
        expires_at = created_at + min(ends) if ends else None
        return StoredFile(f"file-{self._new_id()}", owner, name, purpose, 0, created_at, expires_at, "")

    # -- in threads --------------------------------------------------------------------------------------------

    async def _with(self, use: Callable[[FileRoot], T]) -> T:
        return await run_sync(lambda: use(self._open()))

    def _open(self) -> FileRoot:
        with self._opening:
            if self._closed:
                raise RuntimeError("the file store is closed")
            if self._root is None:
                path = self._path or self._made_own()
                self._root = FileRoot(path, quota_bytes=self._quota_bytes, max_files=self._max_files)
                self._root.sweep_now_and_then(self._now())
            return self._root

    def _made_own(self) -> Path:
        self._own = self._own or Path(tempfile.mkdtemp(prefix="florette-files-"))
        return self._own

    def _swept(self, root: FileRoot) -> FileRoot:
        root.sweep_now_and_then(self._now())
        return root

    def _close(self) -> None:
        with self._opening:
            self._closed = True
            if self._root:
                self._root.close()
                self._root = None
            if self._own:
                shutil.rmtree(self._own)
