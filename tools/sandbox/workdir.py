"""The working directory of a sandbox, seen from outside: files go in, and what was made comes out.

Whoever runs in the sandbox may put anything there, and change it while it is looked at. So all is opened by
`open_beneath`, which follows no link, and nothing is read but regular files. Hard links do no harm: they lead to no
other file system, and to no file that whoever made them could not reach.
"""

import errno
import os
import secrets
import stat
import threading
import unicodedata
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tools.errors import ToolError
from tools.sandbox.directory_walk import Mark, mark_of, walk
from tools.sandbox.system_calls import making_files_as, open_beneath, used_inodes

#: Files are copied in such pieces: a mebibyte costs little memory, and larger ones are no faster.
_CHUNK_BYTES = 1 << 20

#: Controls, lone surrogates, and what ends a line: no part of a name that is told.
_UNTOLD = frozenset(("Cc", "Cs", "Zl", "Zp"))


class Changed(NamedTuple):
    """A file that is new or changed: `path` leads to it, and `name` is what of that can be told."""

    name: str
    path: str
    size_bytes: int


class Workdir:
    """The directory of `fd`, an open directory, which is this object's from now on. The files stay while it is open.

    `owner` is the user and the group, by one number, to whom what is put there belongs; None: the server's. Of the
    files made at most `max_files` are told at a time, and those longer than `max_bytes` are not read. For threads, one
    call at a time; only `close` may come at any time, and the calls behind it raise ToolError.
    """

    def __init__(
        self,
        fd: int,
        *,
        owner: int | None = None,
        max_files: int = 20,
        max_bytes: int = 64 << 20,
    ) -> None:
        self._fd = fd
        self._owner = owner
        self._max_files = max_files
        self._max_bytes = max_bytes
        self._seen: dict[str, Mark] = {}
        self._left_out = 0
        self._unread: list[str] = []
        self._closed = False
        self._closing = threading.Lock()

    @property
    def left_out(self) -> int:
        """So many files the last `changes` did not tell of, as there were too many."""
        return self._left_out

    @property
    def unread(self) -> list[str]:
        """The directories into which the last `changes` did not look: they are too deep, or hold too much."""
        return self._unread

    def put(self, name: str, source: Path | BinaryIO) -> None:
        """Copies the source to `name`: a name, or a path whose directories are made; what was there is replaced.

        ToolError if it does not fit or cannot be there, and then nothing is left of it; OSError if the source cannot
        be read.
        """
        with self._held() as root:
            if isinstance(source, Path):
                with source.open("rb") as opened:
                    self._put(root, name, opened)
            else:
                self._put(root, name, source)

    def changes(self) -> list[Changed]:
        """The files that are new or changed since this was asked last, or were put there, by their names.

        Without those that are hidden, or that Python keeps for itself. What is changed through a shared memory map
        only is not seen: in a tmpfs that leaves no trace.
        """
        with self._held() as root:
            found = walk(root, is_skipped=_is_none_of_theirs)
        now = found.files
        changed = sorted(
            Changed(_told(path), path, mark.size_bytes) for path, mark in now.items() if self._seen.get(path) != mark
        )
        self._seen = now
        self._left_out = max(0, len(changed) - self._max_files)
        self._unread = [_told(path) or "." for path in found.unread]
        return changed[: self._max_files]

    def pieces(self, file: Changed) -> Generator[bytes, None, None]:
        """What is in a file that was found. ToolError if it is too long, or gone, or no file any more."""
        with self._held() as root, _reading(root, file) as source:
            # No more than it has, though it grow: then it has changed again, and is told of the next time.
            left_bytes = os.fstat(source.fileno()).st_size
            if left_bytes > self._max_bytes:
                raise ToolError(f"It is longer than {self._max_bytes:,} bytes.")
            while piece := source.read(min(left_bytes, _CHUNK_BYTES)):
                yield piece
                left_bytes -= len(piece)

    def copy_from(self, other: "Workdir") -> list[str]:
        """Copies what is in the directory of a sandbox that has ended -> the names of what could not be copied.

        Directories are made, links are left out, and no file counts as new.
        """
        with other._held() as theirs, self._held() as root:
            found = walk(theirs)
            unfit = [path + "/" for path in found.unread]
            for path in found.directories:
                with suppress(ToolError):
                    os.close(self._directory(root, path.split("/"), path))
            for path in found.files:
                try:
                    self._copy(root, path, theirs)
                except ToolError:
                    unfit.append(path)
        return sorted(_told(path) for path in unfit)

    def used_inodes(self) -> int:
        """So many files, directories and links are on its file system."""
        with self._held() as root:
            return used_inodes(root)

    def close(self) -> None:
        """Lets go of the directory; a call that is under way comes to its end."""
        with self._closing:
            if not self._closed:
                self._closed = True
                os.close(self._fd)

    @contextmanager
    def _held(self) -> Iterator[int]:
        # Each call has a descriptor of its own: under the number of a closed one another sandbox's directory may come.
        with self._closing:
            if self._closed:
                raise ToolError("The working directory is gone.")
            own = os.dup(self._fd)
        try:
            yield own
        finally:
            os.close(own)

    # -- in ------------------------------------------------------------------------------------------------

    def _put(self, root: int, name: str, source: BinaryIO) -> None:
        *parents, last = _segments(name)
        directory = self._directory(root, parents, name)
        try:
            # Hidden, so that it is no change.
            temporary = f".{secrets.token_hex(8)}.part"
            with _telling(name), making_files_as(self._owner):
                file = open_beneath(directory, temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode=0o644)
            try:
                _write(file, source, name)
                with _telling(name), making_files_as(self._owner):
                    os.rename(temporary, last, src_dir_fd=directory, dst_dir_fd=directory)
                # Only now: to be renamed is a change, too.
                self._seen[name] = mark_of(os.fstat(file))
            except BaseException:
                with suppress(OSError), making_files_as(self._owner):
                    os.unlink(temporary, dir_fd=directory)
                raise
            finally:
                os.close(file)
        finally:
            os.close(directory)

    def _directory(self, root: int, segments: list[str], name: str) -> int:
        # Step by step: each is made in the one that was opened, wherever that has been moved to meanwhile.
        directory = os.dup(root)
        for segment in segments:
            try:
                with _telling(name), making_files_as(self._owner):
                    with suppress(FileExistsError):
                        os.mkdir(segment, 0o755, dir_fd=directory)
                    within = open_beneath(directory, segment, os.O_DIRECTORY)
            finally:
                os.close(directory)
            directory = within
        return directory

    def _copy(self, root: int, path: str, theirs: int) -> None:
        with _telling(path):
            source = _opened(theirs, path)
        if source:
            with source:
                # What is long and empty takes no room where it is, and all of it here: many of those are not tried.
                free = os.fstatvfs(root)
                if os.fstat(source.fileno()).st_size > free.f_bavail * free.f_frsize:
                    raise ToolError(f"There is no room left in the working directory for {_told(path)!r}.")
                self._put(root, path, source)


@contextmanager
def _reading(root: int, file: Changed) -> Iterator[BinaryIO]:
    try:
        source = _opened(root, file.path)
    except OSError as error:
        raise ToolError(f"It cannot be read: {os.strerror(error.errno or 0)}.") from None
    if source is None:
        raise ToolError("It is no file any more.")
    with source:
        yield source


def _opened(root: int, path: str) -> BinaryIO | None:
    # None: whatever it was when it was found, it is no file.
    descriptor = open_beneath(root, path, os.O_RDONLY)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    return None


def _is_none_of_theirs(name: str) -> bool:
    return name.startswith(".") or name == "__pycache__"


def _told(path: str) -> str:
    return "".join("\ufffd" if unicodedata.category(char) in _UNTOLD else char for char in path)


def _segments(name: str) -> list[str]:
    segments = name.split("/")
    if "\0" in name or any(segment in ("", ".", "..") for segment in segments):
        raise ToolError(f"{_told(name)!r} is no name that a file in the working directory can have.")
    return segments


def _write(file: int, source: BinaryIO, name: str) -> None:
    while chunk := source.read(_CHUNK_BYTES):
        rest = memoryview(chunk)
        with _telling(name):
            while rest:
                rest = rest[os.write(file, rest) :]


@contextmanager
def _telling(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.EOVERFLOW:
            # Not the file's fault: the owner is nobody whom the sandbox has.
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ToolError(f"There is no room left in the working directory for {_told(name)!r}.") from None
        if error.errno == errno.EFBIG:
            raise ToolError(f"{_told(name)!r} is larger than a file may be there.") from None
        raise ToolError(f"{_told(name)!r} cannot be put there: {os.strerror(error.errno or 0)}.") from None
    except UnicodeError:
        raise ToolError(f"{_told(name)!r} is no name that a file in the working directory can have.") from None
