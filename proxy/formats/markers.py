"""Where a literal marker stands in a stream of text, or may still come to stand, however the stream is cut.

`Scanner.find` looks for the first of several literals; `Lines` knows whether a place is at the start of a line and
whether it is inside a code fence. Both look at each character a bounded number of times.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

#: What may stand between the start of a line, or the text before, and a marker: blanks and Markdown's bold.
DECORATION = " \t\r\n\v\f\u3000*"


@dataclass(frozen=True, slots=True)
class Found:
    """A literal stands at `start`..`end`; `literal` is its canonical spelling."""

    literal: str
    start: int
    end: int


class Scanner:
    """Finds literals, whatever their case. It keeps no state: `scanner_for` gives the same one to all."""

    def __init__(self, literals: Sequence[str]) -> None:
        self._literals = {literal.lower(): literal for literal in literals}
        self._pattern = re.compile("|".join(map(re.escape, literals)), re.IGNORECASE | re.ASCII)
        self._leads = tuple({literal[0] for literal in literals})
        self._prefixes = {literal[:size] for literal in self._literals for size in range(1, len(literal))}

    def find(self, text: str, at: int) -> Found | None:
        """The first literal at or behind `at`."""
        found = self._pattern.search(text, at)
        return Found(self._literals[found.group().lower()], *found.span()) if found else None

    def match(self, text: str, at: int) -> Found | None:
        """The literal that stands exactly at `at`."""
        found = self._pattern.match(text, at)
        return Found(self._literals[found.group().lower()], *found.span()) if found else None

    def partial(self, text: str, at: int) -> int:
        """Where the end of `text` may be the beginning of a literal; the length of `text` if it is not."""
        size = len(text)
        start = max((text.rfind(lead, at) for lead in self._leads), default=-1)
        return start if start >= 0 and text[start:].lower() in self._prefixes else size


@cache
def scanner_for(*literals: str) -> Scanner:
    """The scanner of these literals; making one costs more than parsing a short answer."""
    return Scanner(literals)


class Lines:
    """Follows a text line by line, as far as its Markdown matters here."""

    def __init__(self) -> None:
        self.in_fence = False
        self._head = ""

    @property
    def at_start(self) -> bool:
        """True if nothing but decoration stands on the current line."""
        return not self._head

    def feed(self, text: str) -> None:
        """Goes on by `text`."""
        *ended, rest = text.split("\n")
        for part in ended:
            self._add(part)
            self.in_fence ^= self._head == "```"
            self._head = ""
        self._add(rest)

    def _add(self, part: str) -> None:
        if len(self._head) < 3:
            self._head = (self._head + part).lstrip(DECORATION)[:3]
