"""A file that is kept, and what can be wrong with one.

FileError
|-- NoSuchFile        unknown, expired, deleted or another owner's
|-- FileTooLarge      longer than any may be
`-- QuotaExceeded     its owner keeps as much as may be
"""

from dataclasses import dataclass


class FileError(Exception):
    """Something is wrong with a file; the message is one sentence for a person."""

    @property
    def message(self) -> str:
        """The sentence."""
        return str(self)


class NoSuchFile(FileError):
    """There is no such file, or no longer, or it is another owner's: nobody can tell which."""

    def __init__(self, file_id: str) -> None:
        super().__init__(f"No such file: {file_id}.")


class FileTooLarge(FileError):
    """The file is longer than any may be."""


class QuotaExceeded(FileError):
    """The owner's files are as many, or as long, as they may be."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that is kept. Moments are in seconds since 1970; `sha256` is in hexadecimal digits."""

    id: str
    owner: str
    name: str
    purpose: str
    size_bytes: int
    created_at: int
    expires_at: int | None
    sha256: str
