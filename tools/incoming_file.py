"""One file on its way into a store: begun, added to, and then finished or abandoned."""

import hashlib
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import BinaryIO

from tools.file_root import FileRoot
from tools.stored_file import FileTooLarge, StoredFile


class IncomingFile:
    """The file `file` of `root`, of at most `max_bytes`. For threads: nothing here is asynchronous.

    `abandon` is the last word, whenever it is said: a thread that was left alone and comes late does nothing.
    """

    def __init__(self, file: StoredFile, root: FileRoot, max_bytes: int, now: Callable[[], float]) -> None:
        self._file = file
        self._root = root
        self._max_bytes = max_bytes
        self._now = now
        self._part = root.blob(file.id).with_suffix(".part")
        self._hash = hashlib.sha256()
        self._size_bytes = 0
        self._out: BinaryIO | None = None
        self._abandoned = False
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Makes place. QuotaExceeded if the owner has as many files as may be."""
        with self._lock:
            if not self._abandoned:
                self._root.index.begin(self._file, self._now())
                self._part.touch(mode=0o600, exist_ok=False)
                self._out = self._part.open("wb")

    def add(self, data: bytes) -> None:
        """Takes a piece of the content. FileTooLarge, QuotaExceeded, or FileError if nothing came for too long."""
        with self._lock:
            if self._out:
                size_bytes = self._size_bytes + len(data)
                if size_bytes > self._max_bytes:
                    raise FileTooLarge(f"The file is larger than the {self._max_bytes:,} bytes that it may have.")
                self._root.index.grow(self._file, size_bytes, self._now())
                self._out.write(data)
                self._hash.update(data)
                self._size_bytes = size_bytes

    def finish(self) -> StoredFile:
        """Shows the file to others -> what is known of it. FileError if nothing came for too long."""
        with self._lock:
            file = replace(self._file, size_bytes=self._size_bytes, sha256=self._hash.hexdigest())
            if self._out:
                self._out.flush()
                # Else a machine that stops at the wrong moment leaves an empty file under a good name.
                os.fsync(self._out.fileno())
                self._out.close()
                self._root.index.finish(file, lambda: self._part.rename(self._root.blob(file.id)))
            return file

    def abandon(self) -> None:
        """Leaves nothing of the file, though it be finished."""
        with self._lock:
            out, self._out, self._abandoned = self._out, None, True
            if out:
                # What is still to be written may be what failed; nobody wants it any more.
                with suppress(OSError):
                    out.close()
            # First what is of no use to anybody: on a disk that it has filled the index could not write.
            self._part.unlink(missing_ok=True)
            self._root.index.forget(self._file.id)
            self._root.blob(self._file.id).unlink(missing_ok=True)
