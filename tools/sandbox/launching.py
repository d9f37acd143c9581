"""What is started in a sandbox, and what is left of it to us: its processes, its directories, and its end."""

import asyncio
import contextlib
import os
import resource
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import IO, Protocol, TypeVar

from tools.errors import ToolError

T = TypeVar("T")

#: What dies with its parent dies with the thread that started it, so all are started by one that lives as long as we.
LAUNCHER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="florette-launcher")

#: Those who wait for what is being started, each in a thread: as many as there may be starts at the same time, so that
#: nobody else waits for a free one.
WAITING = ThreadPoolExecutor(max_workers=64, thread_name_prefix="florette-starting")

#: A start that takes longer is none: on a loaded machine it takes some seconds.
_START_TIMEOUT_S = 60.0

#: So much of what a program says when it does not start is told: a traceback.
_MOST_SAID_BYTES = 4000

#: The first process of a sandbox has a tenth of this.
_ROOT_BYTES = 10_000_000


@dataclass(frozen=True, slots=True)
class Places:
    """Where a program in the sandbox works, and where it makes its sockets and its temporary files."""

    workdir: str
    run_dir: str
    tmp_dir: str
    #: All that it can write to, if nobody else can: then what is there is its own.
    writable: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Program:
    """What to start.

    `command` begins with the path of a program. `files` are put beside each other, by their names; `{files}` in a word
    of the command is the directory where. `stdin` is what the program reads there, given the places. `readable` are
    the paths that it may read beside the system's own, `disk_bytes` is the room where it works.
    """

    command: Sequence[str]
    files: Mapping[str, Path]
    readable: Sequence[Path]
    disk_bytes: int
    stdin: Callable[[Places], bytes] = lambda _: b""
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


class Launcher(Protocol):
    """Starts programs in sandboxes of one kind."""

    async def launch(self, program: Program) -> "Sandbox":
        """Starts it. ToolError if the sandbox cannot be made."""
        ...


@dataclass(frozen=True, slots=True)
class Warden:
    """The pipes to `warden.py`: a byte in `alive` ends the program, its closing the rest; `ended` tells of the end."""

    alive: int
    ended: int


class Sandbox:
    """A running program. Made inside the loop that uses it.

    `root_pid` is the process from which all others descend; `outside` are its places as we reach them. Without a
    warden, all ends with the root, and `process` with it.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], root_pid: int, outside: Places, warden: Warden | None = None
    ) -> None:
        self.root_pid = root_pid
        self.outside = outside
        self._process = process
        self._warden = warden
        self._ended = asyncio.Event()
        self._gone = asyncio.Event()
        self._on_end: list[Callable[[], None]] = []
        self._killing = threading.Lock()
        self._closed = False
        self._loop = asyncio.get_running_loop()
        # Ids of processes are given anew as soon as one has ended; what these stand for does not change.
        self._root = os.pidfd_open(root_pid)
        self._outer = os.pidfd_open(process.pid)
        self._loop.add_reader(self._outer, self._reap)
        if warden:
            self._loop.add_reader(warden.ended, self._end)

    @property
    def alive(self) -> bool:
        """False once the program has ended, and all that it started."""
        return not self._ended.is_set()

    def on_end(self, call: Callable[[], None]) -> None:
        """Calls it when that has happened."""
        self._on_end.append(call)

    async def ready(self) -> None:
        """Waits until the program writes the line `ready`: only then its places are there.

        ToolError, with what it says instead, if it does not.
        """
        said = await self._read(lambda output: output.readline(_MOST_SAID_BYTES))
        if said.strip() != b"ready":
            said += await self._read(lambda output: output.read(_MOST_SAID_BYTES))
            raise ToolError(f"A program did not start in the sandbox: {said.decode('utf-8', 'replace').strip()}")
        if self._warden is None:
            # It waits for processes and does nothing else; taken over, it is not to do more. The program has its own.
            # Root in a container may not do that, and the watch is there for all.
            with contextlib.suppress(PermissionError):
                resource.prlimit(self.root_pid, resource.RLIMIT_DATA, (_ROOT_BYTES, _ROOT_BYTES))

    async def all_said(self, most_bytes: int) -> bytes:
        """All that it writes, `most_bytes` at most."""
        return await self._read(lambda output: output.read(most_bytes))

    async def _read(self, read: Callable[[IO[bytes]], bytes]) -> bytes:
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                return await self._loop.run_in_executor(WAITING, read, self._process.stdout)
        except TimeoutError:
            raise ToolError("A program in the sandbox was silent for too long.") from None

    def kill(self) -> None:
        """Kills the program and all that it started; may be called from any thread, and again."""
        with self._killing, contextlib.suppress(ProcessLookupError, BrokenPipeError):
            if self._gone.is_set() or self._closed:
                return
            if self._warden:
                os.write(self._warden.alive, b"k")
                return
            signal.pidfd_send_signal(self._root, signal.SIGKILL)
            signal.pidfd_send_signal(self._outer, signal.SIGKILL)

    async def aclose(self) -> None:
        """Kills it, and returns when nothing of it is there any more."""
        self.kill()
        if self._warden and not self._gone.is_set():
            await self._ended.wait()
            with self._killing:
                # Once: its number may soon be another's.
                if not self._closed:
                    os.close(self._warden.alive)
                self._closed = True
        await self._gone.wait()

    def _end(self) -> None:
        if self._warden:
            self._loop.remove_reader(self._warden.ended)
        self._ended.set()
        for call in self._on_end:
            call()
        self._on_end.clear()

    def _reap(self) -> None:
        self._loop.remove_reader(self._outer)
        self._process.wait()
        with self._killing:
            self._gone.set()
            os.close(self._root)
            os.close(self._outer)
        if self._process.stdout:
            self._process.stdout.close()
        self._end()
        if self._warden:
            os.close(self._warden.ended)


async def launched(spawn: Callable[[], T], dispose: Callable[[T], None]) -> T:
    """What `spawn` gives, which the launcher runs; if nobody waits for it any more, it is disposed of."""
    spawning = asyncio.get_running_loop().run_in_executor(LAUNCHER, spawn)

    def forget(done: asyncio.Future[T]) -> None:
        if done.exception() is None:
            dispose(done.result())

    try:
        return await asyncio.shield(spawning)
    except asyncio.CancelledError:
        spawning.add_done_callback(forget)
        raise


def in_memory(content: bytes, opened: ExitStack) -> int:
    """A descriptor from which the content can be read, which `opened` closes."""
    descriptor = os.memfd_create("florette", os.MFD_CLOEXEC)
    opened.callback(os.close, descriptor)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
