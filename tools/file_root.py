"""The directory of a file store: a database, and a blob for each file, named by its id. Only its user reads it."""

import base64
import hashlib
import hmac
import threading
from pathlib import Path

from tools.file_index import FileIndex

#: What has expired is never given out; so often those who hand files over make room on the disk.
_SWEEP_EVERY_S = 600

#: Of a signature: 128 bits cannot be guessed, and are 22 characters in a link.
_SIGNATURE_BYTES = 16


class FileRoot:
    """What is below `path`, which is made if it is not there. For threads: nothing here is asynchronous."""

    def __init__(self, path: Path, *, quota_bytes: int, max_files: int) -> None:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._blobs = path / "blobs"
        self._blobs.mkdir(mode=0o700, exist_ok=True)
        self.index = FileIndex(path / "files.db", quota_bytes=quota_bytes, max_files=max_files)
        self._secret = self.index.secret()
        self._swept_at = 0.0
        self._sweeping = threading.Lock()

    def close(self) -> None:
        """Nothing can be asked any more."""
        self.index.close()

    def blob(self, file_id: str) -> Path:
        """Where the bytes of this file are, or are to be; the id must be one of the index."""
        return self._blobs / file_id

    def signature(self, file_id: str) -> str:
        """What only this store can write behind an id: 22 characters that a link can hold."""
        digest = hmac.digest(self._secret, file_id.encode(errors="replace"), hashlib.sha256)
        return base64.urlsafe_b64encode(digest[:_SIGNATURE_BYTES]).rstrip(b"=").decode()

    def sweep_now_and_then(self, now: float) -> None:
        """Sweeps, if that is long ago."""
        with self._sweeping:
            due = now >= self._swept_at + _SWEEP_EVERY_S
            if due:
                self._swept_at = now
        if due:
            self.sweep(now)

    def sweep(self, now: float) -> None:
        """Removes what has expired, and the blobs of files that are not there."""
        self.index.sweep(now)
        # First the blobs, then the rows: each blob that is found had its row before.
        blobs = list(self._blobs.iterdir())
        living = self.index.living()
        for blob in blobs:
            if blob.stem not in living:
                blob.unlink(missing_ok=True)
