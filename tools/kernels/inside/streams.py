"""What a kernel writes, told with the cell that wrote it. Runs inside the sandbox, beside `boot.py`.

What Python writes is told at once. What programs write, and processes that were forked, comes through a pipe, and each
cell has its own: a program that goes on behind its cell has that cell's still. `flush`, with which each cell ends, puts
a mark into the pipe, and waits until it has come out.
"""

import contextlib
import contextvars
import fcntl
import os
import select
import termios
import threading
import time
from collections.abc import Callable
from typing import Any

#: As much as a pipe holds.
_PIPE_BYTES = 65_536

#: So many bytes by chance nobody else writes.
_MARK_BYTES = 16

#: What nobody wants is read no faster than a pipe in so long: whoever writes it waits, and cells have the processor.
#: The mark of a cell is through nevertheless within two of these pauses.
_UNWANTED_PAUSE_S = 0.01

#: To read what a pipe holds takes microseconds, on a loaded machine much longer.
_FLUSH_S = 2.0


class Pipe:
    """Hands on to `tell` what is written into it, in the context of its making; `tell` gives whether more is wanted.

    OSError if there can be no more descriptors.
    """

    def __init__(self, tell: Callable[[str], bool]) -> None:
        self.seen = threading.Event()
        self._tell = tell
        self._context = contextvars.copy_context()
        self._mark = b""
        self._unwritten = b""
        self._is_reading = False
        self.out, self._into = os.pipe()

    def take(self, descriptor: int) -> None:
        """What is written to this descriptor comes here."""
        # The other one stays ours, whatever the user's code puts in the place of this.
        os.dup2(self._into, descriptor)

    def write(self, data: bytes) -> None:
        """Writes as a program does."""
        os.write(self._into, data)

    @property
    def is_told(self) -> bool:
        """Nothing that was written waits to be told. In this order: what is being read is not there any more."""
        waiting = bytearray(4)
        fcntl.ioctl(self.out, termios.FIONREAD, waiting)
        return not any(waiting) and not self._is_reading

    def mark(self) -> None:
        """Once more it is to be `seen` that all before has been told."""
        self.seen.clear()
        self._mark = os.urandom(_MARK_BYTES)
        self.write(self._mark)

    def read(self) -> bool:
        """Tells what has come; gives whether more is wanted. EOFError if nobody is left who could write."""
        self._is_reading = True
        try:
            return self._tell_all(os.read(self.out, _PIPE_BYTES))
        finally:
            self._is_reading = False

    def _tell_all(self, read: bytes) -> bool:
        if not read:
            raise EOFError
        mark = self._mark
        before, seen, rest = (self._unwritten + read).rpartition(mark) if mark else (b"", b"", self._unwritten + read)
        held = max((n for n in range(1, len(mark)) if rest.endswith(mark[:n])), default=0)
        whole = before + rest[: len(rest) - held]
        self._unwritten = rest[len(rest) - held :]
        is_wanted = not whole or self._context.run(self._tell, whole.decode(errors="replace"))
        if seen:
            self.seen.set()
        return is_wanted

    def close(self) -> None:
        """It is used by nobody any more but by those who have it already."""
        os.close(self._into)


class Reader:
    """A thread that reads pipes. One for all: where memory is short, to start a thread can wait for ever."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._pipes: dict[int, Pipe] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """False if the user's code has broken it."""
        return self._thread.is_alive()

    def add(self, pipe: Pipe) -> None:
        """Reads this one, too, to its end. OSError if there can be no more."""
        self._pipes[pipe.out] = pipe
        self._epoll.register(pipe.out, select.EPOLLIN)

    def _run(self) -> None:
        while True:
            are_wanted = [self._read(descriptor) for descriptor, _ in self._epoll.poll()]
            if not all(are_wanted):
                time.sleep(_UNWANTED_PAUSE_S)

    def _read(self, descriptor: int) -> bool:
        try:
            return self._pipes[descriptor].read()
        except (OSError, EOFError):
            del self._pipes[descriptor]
            with contextlib.suppress(OSError):
                self._epoll.unregister(descriptor)
                os.close(descriptor)
            return True


class _Cell:
    """So many characters it has written."""

    written = 0


def stream_class(iostream: Any, output_chars: int) -> Any:
    """The class of a kernel's stdout and stderr, made of that in `ipykernel.iostream`.

    Of one cell `output_chars` are told, of both together; what waits to be sent would take memory.
    """
    cell: contextvars.ContextVar[_Cell] = contextvars.ContextVar("cell")
    nobodys = _Cell()
    streams: list[Any] = []
    reader = Reader()

    class Stream(iostream.OutStream):  # type: ignore[misc]
        """What is written, as long as anybody wants it: what waits to be sent takes memory, too."""

        def _setup_stream_redirects(self, name: str) -> None:
            self._original_stdstream_fd = {"stdout": 1, "stderr": 2}[name]
            self._original_stdstream_copy = os.dup(self._original_stdstream_fd)
            self._pipe = self._opened()
            streams.append(self)

        def flush(self) -> None:
            is_ours = os.getpid() == self._master_pid and threading.current_thread() is threading.main_thread()
            if is_ours and reader.is_alive:
                with contextlib.suppress(OSError):
                    # To ask takes a hundredth of the time that the mark takes, and most cells start no programs.
                    if not self._pipe.is_told:
                        self._pipe.mark()
                        self._pipe.seen.wait(_FLUSH_S)
            super().flush()

        def write(self, string: str) -> Any:
            if not isinstance(string, str):
                # It raises what is due.
                return super().write(string)
            if os.getpid() != self._master_pid:
                # The thread that would send it is not in a process that was forked; the one that reads the pipe is.
                self._pipe.write(string.encode("utf-8", "replace"))
                return len(string)
            now = cell.get(nobodys)
            wanted = string[: max(0, output_chars - now.written)]
            now.written += len(string)
            # Half a character of UTF-16 would break the message that carries it.
            super().write(wanted.encode("utf-8", "replace").decode())
            return len(string)

        def close(self) -> None:
            # It ends with the process: what cells to come write is to be told, too, whatever this one closes.
            self.flush()

        def _tell(self, text: str) -> bool:
            # Whatever the user's code has made of it: the thread is for all cells to come.
            with contextlib.suppress(Exception):
                self.write(text)
            return cell.get(nobodys).written < output_chars

        def _renew(self) -> None:
            # Where there is no room for another one, it is shared with the cell before.
            with contextlib.suppress(OSError):
                before, self._pipe = self._pipe, self._opened()
                before.close()

        def _opened(self) -> Pipe:
            pipe = Pipe(self._tell)
            reader.add(pipe)
            pipe.take(self._original_stdstream_fd)
            return pipe

        @staticmethod
        def begin() -> None:
            """A cell begins."""
            cell.set(_Cell())
            for stream in streams if reader.is_alive else ():
                stream._renew()

    return Stream
