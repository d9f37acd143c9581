"""How far the doctor is, in one line for somebody who looks on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

#: Is told how many checks are done, and of how many.
Tell = Callable[[int, int], object]


def tell_nobody(done: int, of: int) -> None:
    """For those who do not look on."""


@contextmanager
def progress_on(out: TextIO) -> Iterator[Tell]:
    """What tells it on `out`, if that is a terminal; when the block ends the line is gone."""
    if not out.isatty():
        yield tell_nobody
        return
    line = _Line(out)
    try:
        yield line.tell
    finally:
        line.erase()


class _Line:
    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._width = 0

    def tell(self, done: int, of: int) -> None:
        told = f"{done} of {of} checks"
        self._width = len(told)
        self._write(told)

    def erase(self) -> None:
        # With blanks: not every terminal knows an escape for it.
        self._write(" " * self._width + "\r")

    def _write(self, text: str) -> None:
        print(f"\r{text}", end="", file=self._out, flush=True)
