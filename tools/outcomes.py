"""What became of a piece of code, and who runs code: what tools, and those who set them up, need to know of kernels."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from tools.attached import AttachedFile

#: Keeps a file for the caller, whole or in pieces, and gives the URL at which it can be had. ToolError if it cannot.
Keep = Callable[[str, bytes | AsyncIterator[bytes]], Awaitable[str]]

#: How a cell ended. `error`: it raised; `timeout`: it was interrupted, or its kernel killed, after its time; `limit`:
#: it wrote or used more than it may; `died`: its kernel ended.
CellStatus = Literal["ok", "error", "timeout", "limit", "died"]


@dataclass(frozen=True, slots=True)
class Written:
    """Text that a cell wrote to `stdout` or `stderr`, in one go."""

    stream: Literal["stdout", "stderr"]
    text: str


@dataclass(frozen=True, slots=True)
class Shown:
    """What a cell displayed, or, if `is_result`, the value of its last expression, as plain text."""

    text: str
    is_result: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """An image that a cell displayed; its bytes are of the kind that the end of its `name` says."""

    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Raised:
    """An exception that ended a cell; the traceback is plain text and holds the name and the message, too."""

    name: str
    message: str
    traceback: str


Piece = Written | Shown | Picture | Raised


@dataclass(frozen=True, slots=True)
class MadeFile:
    """A file that the code made or changed, by its path in the working directory.

    `url` is where it was kept; None: it was not, and a note of the outcome says why.
    """

    name: str
    size_bytes: int
    url: str | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one cell: what it put out, in order, the files it made, and `notes` on what was out of the way."""

    status: CellStatus
    pieces: tuple[Piece, ...] = ()
    files: tuple[MadeFile, ...] = ()
    notes: tuple[str, ...] = ()
    duration_s: float = 0.0


async def kept_nowhere(name: str, _: bytes | AsyncIterator[bytes]) -> str:
    """A `Keep` for where nobody wants the files: the name in place of a URL."""
    return name


class Kernels(Protocol):
    """Runs Python code for tools, each session in a kernel of its own."""

    def unavailable(self) -> str | None:
        """Why no code can be run here, and what would help; None if it can."""
        ...

    def described(self) -> Mapping[str, Any]:
        """What is in force, for people: the isolation with its layers, and the limits."""
        ...

    async def start(self) -> None:
        """Makes kernels ready in the background; called once, when the server is up."""
        ...

    async def run(
        self,
        code: str,
        *,
        caller: str,
        session: str | None,
        files: Sequence[AttachedFile] = (),
        time_s: float | None = None,
        keep: Keep = kept_nowhere,
    ) -> Outcome:
        """Runs a cell in the kernel of the caller's session; without a session, in a fresh one that ends with it.

        `files` are put into the working directory first; those that the code makes are given to `keep`. `time_s` is
        the time for all of it, waits included: the cell is stopped early enough for its outcome to come in time.
        ToolError if there is no room for a kernel, or it cannot be started.
        """
        ...

    async def aclose(self) -> None:
        """Ends all kernels."""
        ...
