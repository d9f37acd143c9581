"""What a kernel is to sessions and pools, wherever it runs."""

from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from tools.outcomes import Outcome
from tools.sandbox.workdir import Changed


class Changes(NamedTuple):
    """The files that a cell made or changed; `left_out`: so many more, as there were too many.

    `unread`: the directories into which nobody looked, as they are too deep, or hold too much.
    """

    files: list[Changed]
    left_out: int
    unread: Sequence[str] = ()


class Kernel(Protocol):
    """One running kernel and its working directory. It runs one cell at a time."""

    @property
    def alive(self) -> bool:
        """False once its process has ended, or it was closed."""
        ...

    async def execute(self, code: str, *, time_s: float) -> Outcome:
        """Runs a cell for `time_s` at most; its files are asked for apart.

        Raises nothing; when it is cancelled, the cell ends. If the kernel is closed meanwhile, it has `died`.
        """
        ...

    async def settled(self) -> None:
        """Returns when a cell that was cancelled has ended; only then it is certain whether the kernel lives on."""
        ...

    async def put(self, name: str, path: Path) -> None:
        """Puts a copy of the file at `path` into the working directory, in place of what has that name there.

        ToolError if it does not fit.
        """
        ...

    async def changes(self) -> Changes:
        """The files that are new or changed since this was asked last, or were put there."""
        ...

    def read(self, file: Changed) -> AsyncGenerator[bytes, None]:
        """What is in a file of `changes`, in pieces; to be closed. ToolError if it cannot be read, or is too long."""
        ...

    async def inherit(self, dead: "Kernel") -> list[str] | None:
        """Takes over the files of a kernel that has died; gives the names of those that could not be.

        None if all have gone with it.
        """
        ...

    def pause(self) -> None:
        """Stops all that runs in it, until `resume`: it uses no processor."""
        ...

    def resume(self) -> None:
        """Lets it run on."""
        ...

    async def aclose(self) -> None:
        """Ends it, and all that runs in it."""
        ...
