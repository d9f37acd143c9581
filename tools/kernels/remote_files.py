"""The files of a kernel on another machine: the kernel itself is asked to write and to read them, in pieces.

Whatever it answers was written by a stranger's code: it may keep files back, or invent some, and nothing else.
"""

import base64
import binascii
import errno
import json
import os
import secrets
import unicodedata
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

from tools.errors import ToolError
from tools.sandbox.workdir import Changed

_SOURCE = (Path(__file__).parent / "inside" / "files.py").read_text("utf-8")

#: A piece in base64 is a message of 1.4 MB, which every gateway takes: tornado's own limit is 10 MB.
CHUNK_BYTES = 1 << 20

#: As many as the kernel's side tells at most, and the longest path that Linux takes.
_MAX_LISTED = 10_000
_MAX_PATH_CHARS = 4096

#: Controls, lone surrogates, and what ends a line: no part of a name that is told.
_UNTOLD = frozenset(("Cc", "Cs", "Zl", "Zp"))

#: inode, size, and when it was changed: what tells a file from the one that it was before.
_Mark = tuple[int, int, int, int]


class RemoteFiles:
    """The working directory of a kernel, and what was in it when it was looked at last. One call at a time.

    `ask` has the kernel evaluate an expression, and gives the text that it is; ToolError if there is no answer.
    """

    def __init__(self, ask: Callable[[str], Awaitable[str]], *, max_files: int, max_bytes: int) -> None:
        self._ask = ask
        self._max_files = max_files
        self._max_bytes = max_bytes
        self.directory = "."
        self._seen: dict[str, _Mark] = {}
        #: So many files the last `changes` did not tell of, as there were too many.
        self.left_out = 0
        #: Into these directories the last `changes` did not look: they are too deep, or hold too much.
        self.unread: list[str] = []

    def found(self, answered: str) -> None:
        """Takes the kernel's answer to `WHERE`: to be asked before any user's code has run."""
        self.directory = _bytes_of(answered).decode("utf-8", "replace")

    async def go_on(self, directory: str) -> None:
        """Takes that as the directory, and what is there as known."""
        self.directory = directory
        await self.changes()

    async def put(self, name: str, path: Path) -> None:
        """Copies the file at `path` to `name`. ToolError if it does not fit; OSError if it cannot be read."""
        if "\0" in name or any(segment in ("", ".", "..") for segment in name.split("/")):
            raise ToolError(f"{_told(name)!r} is no name that a file in the working directory can have.")
        temporary = f".{secrets.token_hex(8)}.part"
        with path.open("rb") as file:
            part = file.read(CHUNK_BYTES)
            while True:
                following = file.read(CHUNK_BYTES)
                encoded = base64.b64encode(part).decode()
                answer = await self._ask(_question("put", self.directory, name, temporary, encoded, not following))
                self._check(answer, name)
                if not following:
                    break
                part = following
        mark = _mark_of(_json_of(answer))
        if mark is not None:
            self._seen[name] = mark

    async def changes(self) -> list[Changed]:
        """The files that are new or changed since this was asked last, or were put there; none without an answer."""
        try:
            told = _json_of(await self._ask(_question("list", self.directory)))
        except ToolError:
            self.left_out, self.unread = 0, []
            return []
        now, self.unread = _listed(_part(told, "files")), _unread(_part(told, "unread"))
        changed = sorted(
            Changed(_told(path), path, mark[1]) for path, mark in now.items() if self._seen.get(path) != mark
        )
        self._seen = now
        self.left_out = max(0, len(changed) - self._max_files)
        return changed[: self._max_files]

    async def read(self, file: Changed) -> AsyncGenerator[bytes, None]:
        """What is in a file that was found, in pieces. ToolError if it is too long, or there is no answer."""
        if file.size_bytes > self._max_bytes:
            raise ToolError(f"It is longer than {self._max_bytes:,} bytes.")
        for begin in range(0, file.size_bytes, CHUNK_BYTES):
            wanted = min(CHUNK_BYTES, file.size_bytes - begin)
            piece = _bytes_of(await self._ask(_question("read", self.directory, file.path, begin, wanted)))[:wanted]
            yield piece
            if len(piece) < wanted:
                # It has shrunk, or gone.
                return

    def _check(self, answer: str, name: str) -> None:
        if not answer.startswith("error:"):
            return
        number = int(answer[6:]) if answer[6:].isdecimal() and len(answer) < 12 else 0
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise ToolError(f"There is no room left in the working directory for {_told(name)!r}.")
        if number == errno.EFBIG:
            raise ToolError(f"{_told(name)!r} is larger than a file may be there.")
        raise ToolError(f"{_told(name)!r} cannot be put there: {os.strerror(number)}.")


def _question(what: str, *arguments: object) -> str:
    # As an expression it leaves no name behind. In ASCII any file's name can be sent, also what is no text.
    given = ", ".join(map(ascii, (what, *arguments)))
    return f"(lambda own: (__import__('builtins').exec({_SOURCE!a}, own), own['answer']({given}))[1])({{}})"


#: Asks a kernel where it works.
WHERE = _question("where")


def _bytes_of(answer: str) -> bytes:
    if not answer.startswith("ok:"):
        return b""
    try:
        return base64.b64decode(answer[3:], validate=True)
    except (binascii.Error, ValueError):
        return b""


def _json_of(answer: str) -> Any:
    try:
        return json.loads(_bytes_of(answer))
    except (ValueError, RecursionError):
        return None


def _part(told: Any, name: str) -> list[Any]:
    part = told.get(name) if isinstance(told, dict) else None
    return part[:_MAX_LISTED] if isinstance(part, list) else []


def _unread(told: list[Any]) -> list[str]:
    return [_told(path) or "." for path in told if path == "" or _is_theirs(path)]


def _listed(told: list[Any]) -> dict[str, _Mark]:
    found: dict[str, _Mark] = {}
    for entry in told:
        if isinstance(entry, list) and len(entry) == 5 and _is_theirs(entry[0]) and (mark := _mark_of(entry[1:])):
            found[entry[0]] = mark
    return found


def _is_theirs(path: object) -> bool:
    return (
        isinstance(path, str)
        and len(path) <= _MAX_PATH_CHARS
        and "\0" not in path
        and not any(segment == "__pycache__" or segment[:1] in ("", ".") for segment in path.split("/"))
    )


def _mark_of(told: Any) -> _Mark | None:
    if not isinstance(told, list) or len(told) != 4 or not all(type(number) is int and number >= 0 for number in told):
        return None
    inode, size_bytes, modified_ns, changed_ns = told
    return inode, size_bytes, modified_ns, changed_ns


def _told(path: str) -> str:
    return "".join("\ufffd" if unicodedata.category(char) in _UNTOLD else char for char in path)
