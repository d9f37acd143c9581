"""Kernels without processes, and a loop whose time passes at once when nothing else is to be done.

A cell's code is a row of steps, joined by "; ":  `take 5` (seconds), `write NAME`, `die`. What it shows is which kernel
it ran in. Whatever no kernel would bear (two cells at once, a cell while it is paused, an end that comes twice) raises.
"""

import asyncio
import selectors
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

from tools.attached import AttachedFile
from tools.errors import ToolError
from tools.kernels.kernel import Changes, Kernel
from tools.outcomes import Outcome, Shown
from tools.sandbox.workdir import Changed

#: What the model is told.
KEPT = "The kernel was restarted: variables and imports of earlier cells are lost, their files are kept."
LOST = (
    "The kernel was restarted: variables, imports and files of earlier cells are lost;"
    " only attached files are there again."
)
ANEW = (
    "The session had ended and starts anew: variables, imports and files of earlier cells are lost;"
    " only attached files are there again."
)
DIED = "The kernel has ended, and its variables and imports with it."

#: The limits of sessions: unused, and in all.
IDLE_S = 1200.0
LIFE_S = 21_600.0

#: Of one cell so many files are kept.
MOST_FILES = 3


class _Hurrying(selectors.DefaultSelector):
    now_s = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0)
        if not found and timeout is None:
            raise AssertionError("everybody waits, and nothing will ever come")
        if not found and timeout:
            self.now_s += timeout
        return found


class PretendLoop(asyncio.SelectorEventLoop):
    """Where everybody waits, time jumps to when the first need not wait any more."""

    def __init__(self) -> None:
        self._hurrying = _Hurrying()
        super().__init__(self._hurrying)

    def time(self) -> float:
        return self._hurrying.now_s


def now_s() -> float:
    """The time of the running loop."""
    return asyncio.get_running_loop().time()


async def pass_s(seconds: float = 0.001) -> None:
    """Lets time pass, in which everybody does what there is to do."""
    await asyncio.sleep(seconds)


class Pretend:
    """A kernel. `files` are in its working directory; `cells` it has begun."""

    def __init__(self, number: int, close_s: float = 0.0) -> None:
        self.number = number
        self.files: dict[str, str] = {}
        self.cells: list[str] = []
        self.puts: list[str] = []
        self.cancelled = 0
        self.is_running = False
        self.is_paused = False
        self.closing = False
        self.gone = False
        #: What goes wrong.
        self.refuses: set[str] = set()
        self.files_go_with_it = False
        self.files_are_unreadable = False
        self.inherit_s = 0.0
        self.reading_s = 0.0
        self.settles_s = 0.0
        self.fails_to_inherit = False
        self._close_s = close_s
        self._new: list[str] = []
        self._died = asyncio.Event()

    @property
    def alive(self) -> bool:
        return not self._died.is_set()

    def die(self) -> None:
        self._died.set()

    async def execute(self, code: str, *, time_s: float) -> Outcome:
        assert not (self.is_running or self.is_paused), "a cell at the wrong time"
        self.is_running = True
        self.cells.append(code)
        until_s = now_s() + time_s
        try:
            for step in code.split("; "):
                await self._do(*step.partition(" ")[::2], until_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.is_running = False
        status: Any = "timeout" if now_s() > until_s else "ok" if self.alive else "died"
        return Outcome(status, (Shown(f"kernel {self.number}"),), notes=("as it was",) if "note" in code else ())

    async def _do(self, verb: str, what: str, until_s: float) -> None:
        match verb:
            case "take":
                try:
                    async with asyncio.timeout(min(float(what), until_s + 1 - now_s())):
                        await self._died.wait()
                except TimeoutError:
                    pass
            case "write":
                self.files[what] = "written"
                self._new.append(what)
            case "die":
                self.die()

    async def settled(self) -> None:
        if self.settles_s:
            await pass_s(self.settles_s)

    async def put(self, name: str, path: Path) -> None:
        assert not self.is_paused
        if name in self.refuses:
            raise ToolError("It is too long.")
        self.files[name] = str(path)
        self.puts.append(str(path))

    async def changes(self) -> Changes:
        if self.files_are_unreadable:
            raise OSError("no such directory")
        made, self._new = [Changed(name, name, 7) for name in self._new], []
        return Changes(made[:MOST_FILES], max(0, len(made) - MOST_FILES))

    async def read(self, file: Changed) -> AsyncGenerator[bytes, None]:
        if file.path in self.refuses:
            raise ToolError("It is too long.")
        yield b"writ"
        await pass_s(self.reading_s)
        yield b"ten"

    async def inherit(self, dead: Kernel) -> list[str] | None:
        assert isinstance(dead, Pretend)
        assert not (dead.alive or dead.closing), "inherited from one that lives, or has gone"
        await pass_s(self.inherit_s)
        if self.fails_to_inherit:
            raise OSError("no such directory")
        if dead.files_go_with_it:
            return None
        self.files = {name: path for name, path in dead.files.items() if name not in self.refuses}
        return sorted(dead.files.keys() - self.files.keys())

    def pause(self) -> None:
        assert not (self.is_running or self.is_paused or self.closing), "paused at the wrong time"
        self.is_paused = True

    def resume(self) -> None:
        assert self.is_paused, "resumed though it ran"
        self.is_paused = False

    async def aclose(self) -> None:
        assert not self.closing, "ended twice"
        self.closing = True
        await pass_s(self._close_s)
        self.die()
        self.gone = True


class Begin:
    """What a pool begins kernels with; `made` are all, ended ones included. `failures`: so many of the next fail."""

    def __init__(self, *, takes_s: float = 0.0, close_s: float = 0.0) -> None:
        self.takes_s = takes_s
        self.close_s = close_s
        self.made: list[Pretend] = []
        self.begun_s: list[float] = []
        self.failures = 0
        self.cancelled = 0
        self.at_once = 0
        self.is_stubborn = False
        self.equip: Callable[[Pretend], None] = lambda kernel: None

    async def __call__(self) -> Pretend:
        self.begun_s.append(now_s())
        self.at_once += 1
        try:
            await pass_s(self.takes_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            if not self.is_stubborn:
                raise
        finally:
            self.at_once -= 1
        if self.failures:
            self.failures -= 1
            raise ToolError("There is no bubblewrap here.")
        self.made.append(Pretend(len(self.made), self.close_s))
        self.equip(self.made[-1])
        return self.made[-1]

    @property
    def alive(self) -> list[Pretend]:
        return [kernel for kernel in self.made if kernel.alive]


def attached(file_id: str, name: str) -> AttachedFile:
    """A file that is told apart from others of that name by its path."""
    return AttachedFile(file_id, name, 7, file_id, Path(file_id))
