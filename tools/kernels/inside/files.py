"""Writes and reads a kernel's files where only the kernel itself reaches them.

`tools.kernels.remote_files` has the kernel run this text, each time anew: nothing of it stays in the user's namespace.
`answer` gives `ok:` and bytes in base64, or `error:` and the number of the system's error.
"""

import base64
import contextlib
import json
import os
import stat
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: As in `tools.sandbox.directory_walk`: so many names are looked at, and so many make the longest path.
_MAX_ENTRIES = 10_000
_MAX_DEPTH = 16

#: A list is one message, and that is not to be too long for a gateway. Ten thousand names of usual length fit.
_MAX_LISTING_BYTES = 1_000_000

#: What is told of a file beside its name: four numbers.
_MARK_BYTES = 80


def answer(what: str, *arguments: Any) -> str:
    """Does what is asked for, by its name."""
    try:
        return f"ok:{base64.b64encode(_QUESTIONS[what](*arguments)).decode()}"
    except OSError as error:
        return f"error:{error.errno}"


def _where() -> bytes:
    return str(Path.cwd()).encode()


def _put(directory: str, name: str, temporary: str, part: str, is_last: bool) -> bytes:
    # Until it is whole it is hidden, so that it is no change.
    path = Path(directory, name)
    hidden = path.with_name(temporary)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with hidden.open("ab") as file:
            file.write(base64.b64decode(part))
        if not is_last:
            return b""
        hidden.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            hidden.unlink()
        raise
    return json.dumps(_mark(path.lstat())).encode()


def _list(directory: str) -> bytes:
    # `unread` are the directories into which nobody looks: they are too deep, or hold too much.
    found: list[Any] = []
    unread: list[str] = []
    room_bytes, left = _MAX_LISTING_BYTES, _MAX_ENTRIES
    waiting = deque([""])
    while waiting:
        above = waiting.popleft()
        for name, status in _entries(Path(directory, above)):
            below = f"{above}/{name}" if above else name
            left -= 1
            room_bytes -= len(json.dumps(below)) + _MARK_BYTES
            if left < 0 or room_bytes < 0:
                return json.dumps({"files": found, "unread": [*unread, above]}).encode()
            if name.startswith(".") or name == "__pycache__" or status is None:
                continue
            if stat.S_ISDIR(status.st_mode):
                (waiting if below.count("/") < _MAX_DEPTH - 1 else unread).append(below)
            elif stat.S_ISREG(status.st_mode):
                found.append([below, *_mark(status)])
    return json.dumps({"files": found, "unread": unread}).encode()


def _read(directory: str, name: str, offset: int, size: int) -> bytes:
    descriptor = os.open(Path(directory, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)


_QUESTIONS: dict[str, Callable[..., bytes]] = {"where": _where, "put": _put, "list": _list, "read": _read}


def _entries(directory: Path) -> list[tuple[str, "os.stat_result | None"]]:
    with contextlib.suppress(OSError):
        return [(path.name, _status(path)) for path in sorted(directory.iterdir())]
    return []


def _status(path: Path) -> "os.stat_result | None":
    with contextlib.suppress(OSError):
        return path.lstat()
    return None


def _mark(status: os.stat_result) -> list[int]:
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
