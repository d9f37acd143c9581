"""What a kernel writes, told with the cell that wrote it. Runs inside the sandbox, beside `boot.py`.

What Python writes is told at once. What programs write, and processes that were forked, comes through a pipe that a
thread of ipykernel's reads, when it comes to it; so `flush`, with which each cell ends, puts a mark into the pipe, and
waits until it has come out.
"""

import os
import threading
from typing import Any

#: As much as a pipe holds.
_PIPE_BYTES = 65_536

#: So many bytes by chance nobody else writes.
_MARK_BYTES = 16

#: To read what a pipe holds takes microseconds, on a loaded machine much longer.
_FLUSH_S = 2.0


def stream_class(iostream: Any, output_chars: int) -> Any:
    """The class of a kernel's stdout and stderr, made of that in `ipykernel.iostream`.

    Of one cell `output_chars` are told, of both together; what waits to be sent would take memory.
    """

    class Stream(iostream.OutStream):  # type: ignore[misc]
        """What is written, as long as anybody wants it: what waits to be sent takes memory, too."""

        written = 0
        _mark = b""

        def _setup_stream_redirects(self, name: str) -> None:
            super()._setup_stream_redirects(name)
            # The user's code may put something else in the place of the first.
            self._pipe = os.dup(self._original_stdstream_fd)

        def _watch_pipe_fd(self) -> None:
            unwritten = b""
            while read := os.read(self._fid, _PIPE_BYTES):
                mark = self._mark
                before, seen, unwritten = (unwritten + read).rpartition(mark) if mark else (b"", b"", unwritten + read)
                ends = range(1, len(mark))
                held = max((n for n in ends if unwritten.endswith(mark[:n])), default=0)
                whole = before + unwritten[: len(unwritten) - held]
                unwritten = unwritten[len(unwritten) - held :]
                if whole:
                    self.write(whole.decode(errors="replace"))
                if seen:
                    self._seen.set()

        def flush(self) -> None:
            is_ours = os.getpid() == self._master_pid and threading.current_thread() is threading.main_thread()
            if is_ours and self._should_watch and self.watch_fd_thread.is_alive():
                self._seen = threading.Event()
                self._mark = os.urandom(_MARK_BYTES)
                os.write(self._pipe, self._mark)
                self._seen.wait(_FLUSH_S)
            super().flush()

        def write(self, string: str) -> Any:
            if not isinstance(string, str):
                # It raises what is due.
                return super().write(string)
            if os.getpid() != self._master_pid:
                # The thread that would send it is not in a process that was forked; the one that reads the pipe is.
                os.write(self._pipe, string.encode("utf-8", "replace"))
                return len(string)
            wanted = string[: max(0, output_chars - Stream.written)]
            Stream.written += len(string)
            # Half a character of UTF-16 would break the message that carries it.
            super().write(wanted.encode("utf-8", "replace").decode())
            return len(string)

        @classmethod
        def begin(cls) -> None:
            """A cell begins."""
            cls.written = 0

    return Stream
