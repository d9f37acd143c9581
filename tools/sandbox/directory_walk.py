"""What is in a directory, found by somebody who trusts nothing that is there."""

import errno
import os
import stat
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from tools.sandbox.system_calls import open_beneath

#: So many names are looked at: an unpacked project has some thousand files, and to look at 10,000 takes about 0.1 s.
_MAX_ENTRIES = 10_000

#: So many names make the longest path; what people make is seldom half as deep.
_MAX_DEPTH = 16


class Mark(NamedTuple):
    """Tells a file from the one that it was before."""

    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int


@dataclass(slots=True)
class Walked:
    """What was found, by the path below the directory; what is in `unread` was not read, or not to its end."""

    files: dict[str, Mark] = field(default_factory=dict)
    directories: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)


def mark_of(found: os.stat_result) -> Mark:
    """The mark of a file."""
    return Mark(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def walk(root: int, *, is_skipped: Callable[[str], bool] = lambda _: False) -> Walked:
    """The regular files and the directories below the directory `root`, the upper ones first.

    No link is followed and no mount is crossed. Names for which `is_skipped` is true are passed over, with all that is
    below them. What goes away meanwhile is no error.
    """
    walked = Walked()
    waiting = deque([""])
    left = _MAX_ENTRIES
    while waiting:
        path = waiting.popleft()
        entries = _entries(root, path, left + 1) if path.count("/") < _MAX_DEPTH - 1 else None
        if entries is None or len(entries) > left:
            walked.unread.append(path)
        for name, found in (entries or [])[:left]:
            left -= 1
            below = f"{path}/{name}" if path else name
            if is_skipped(name) or found is None:
                continue
            if stat.S_ISREG(found.st_mode):
                walked.files[below] = mark_of(found)
            elif stat.S_ISDIR(found.st_mode):
                walked.directories.append(below)
                waiting.append(below)
    return walked


def _entries(root: int, path: str, most: int) -> list[tuple[str, os.stat_result | None]] | None:
    # None: it must not be read. Of what goes away meanwhile there is only the name.
    try:
        directory = open_beneath(root, path or ".", os.O_DIRECTORY)
    except OSError as error:
        return None if error.errno == errno.EACCES else []
    try:
        with os.scandir(directory) as names:
            return [(entry.name, _found(directory, entry.name)) for entry in islice(names, most)]
    finally:
        os.close(directory)


def _found(directory: int, name: str) -> os.stat_result | None:
    with suppress(OSError):
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    return None
