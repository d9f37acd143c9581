r"""JSON in quotes: a value where no string may stand (`"5"` for an integer), or a whole object (`"{\"a\": 1}"`).

Source: what models were seen to write; RFC 8259 for a string's escapes, and Python's repr for single quotes.
"""

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from proxy.formats.parsing import Reader
from proxy.formats.words import MAX_DIGITS, NUMBER

#: A longer string is passed on as one: twice what a model can write of one value in 8,192 tokens.
MAX_HELD = 65_536

#: So many blanks may stand between a string's quote and what it begins with, and so on; more are no honest JSON.
_MAX_BLANKS = 64

_BLANKS = rf"(?:[ \t\r\n]|\\[nrt]){{0,{_MAX_BLANKS}}}+"
_NAME = r"[\w$]{1,64}+"
_FIRST_SIGN = re.compile(rf'"{_BLANKS}(.)', re.DOTALL)
_FIRST_SIGNS = {
    "null": "nN",
    "boolean": "tTfF",
    "integer": "-0123456789",
    "fraction": "-0123456789",
    "array": "[",
    "object": "{",
}
_NAMED = {
    "null": {"null": "null", "None": "null"},
    "boolean": {"true": "true", "True": "true", "false": "false", "False": "false"},
}
_INTEGER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.0+)?", re.ASCII)

#: `"{\"a`, `'{"a`, `'{a:` or `"{}"`: an object in quotes. What is no object may begin with a brace, too: `"{x} and y"`.
OBJECT = re.compile(
    rf"""(?P<outer>["']){_BLANKS}\{{{_BLANKS}"""
    rf"""(?:(?P<escaped>\\?)(?P<inner>["'])|{_NAME}{_BLANKS}:|\}}{_BLANKS}(?P=outer))"""
)
#: What may still become that.
OBJECT_SO_FAR = re.compile(rf"""["']{_BLANKS}(?:\{{{_BLANKS}(?:(?:{_NAME}|\}}){_BLANKS})?)?\\?""")

_HEX = "[0-9a-fA-F]"
_PAIR = rf"u[dD][89abAB]{_HEX}{{2}}\\u[dD][c-fC-F]{_HEX}{{2}}"
_ESCAPE = re.compile(rf"\\(?:[\\/bfnrt]|{_PAIR}|u(?![dD][89a-fA-F]){_HEX}{{4}})")
#: A sign of its own, or half of a pair.
_ESCAPE_SO_FAR = re.compile(
    rf"\\(?:u{_HEX}{{0,3}}|u[dD][89abAB]{_HEX}{{2}}(?:\\(?:u(?:[dD](?:[c-fC-F]{_HEX}?)?)?)?)?)?\Z"
)


class QuotedValue:
    """A string where only other kinds may stand (see `schemas`), held back until it is known what it means."""

    def __init__(self, kinds: frozenset[str]) -> None:
        self.said = ['"']
        self._kinds = kinds
        self._first_signs = "".join(_FIRST_SIGNS[kind] for kind in kinds)
        self._begun = False
        self._size = 0

    def add(self, pieces: Sequence[str]) -> bool:
        """Goes on by these pieces of JSON text; False if it can be nothing but a string, which is then `said`."""
        # A line that goes on (`\` at its end) says nothing.
        self.said += filter(None, pieces)
        self._size += sum(map(len, pieces))
        if self._begun:
            return self._size <= MAX_HELD
        first = _FIRST_SIGN.match("".join(self.said))
        self._begun = first is not None
        return first is None or (self._size <= MAX_HELD and first[1] in self._first_signs)

    def meaning(self) -> str | None:
        """The JSON text that the whole string stands for; None if it is a string all the same."""
        text: str = json.loads("".join(self.said) + '"')
        for name in self._kinds & _NAMED.keys():
            if text in _NAMED[name]:
                return _NAMED[name][text]
        if text[:1] in _FIRST_SIGNS["integer"]:
            return text if self._is_number(text) else None
        text = text.strip(" \t\r\n")
        kind = {"[": "array", "{": "object"}.get(text[:1])
        return text if kind in self._kinds and _is_json(text) else None

    def _is_number(self, text: str) -> bool:
        if len(text) > MAX_DIGITS:
            return False
        if "integer" in self._kinds and _INTEGER.fullmatch(text):
            return True
        # One that is too great for callers is better left as it is.
        return "fraction" in self._kinds and bool(NUMBER.fullmatch(text)) and math.isfinite(float(text))


def _is_json(text: str) -> bool:
    try:
        # Half of a surrogate pair could not be sent.
        text.encode()
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(name: str) -> Any:
    raise ValueError(f"JSON has no {name}")


def reader_of(opening: re.Match[str], reader: Reader, end: str) -> tuple[int, Reader]:
    """Where to read an object in quotes (a match of OBJECT) from, and what reads it; `end` as in `reader`."""
    place = opening.string.index("{", opening.start())
    outer, inner = opening["outer"], opening["inner"]
    if inner == outer and not opening["escaped"]:
        # Nothing is escaped: the quotes around the object mean nothing.
        return place, reader
    return place, QuotedReader(reader, outer, outer + (inner if opening["escaped"] else ""), end)


class QuotedReader:
    """Reads an object that stands in a string, from its `{` on: `reader` gets it without the escapes.

    `quote` ends the string; a backslash is taken off each of the quotes in `escaped`; `end` is the reader's own.
    """

    def __init__(self, reader: Reader, quote: str, escaped: str, end: str) -> None:
        self.repairs = 1
        self._reader = reader
        self._quote = quote
        self._escaped = escaped
        self._end = end
        self._plain = re.compile(rf"[^\\{quote}]+")
        self._held = ""

    @property
    def midway(self) -> bool:
        """True if the text so far ends inside a string of the object."""
        return self._reader.midway

    @property
    def over(self) -> bool:
        """See `Reader`."""
        return self._reader.over

    @property
    def runaway(self) -> bool:
        """See `Reader`."""
        return self._reader.runaway

    def feed(self, text: str) -> tuple[str, str | None]:
        """JSON text to pass on, and the text behind the object (None while it is open)."""
        text, at = self._held + text, 0
        out: list[str] = []
        while at < len(text) and (step := self._step(text, at)):
            end, meant = step
            said, rest = self._reader.feed(meant) if meant else (self._reader.close(), "")
            out.append(said)
            if rest is not None:
                return self._finish(out), text[self._place_of(rest, meant, at, end) :]
            at = end
        self._held = text[at:]
        return "".join(out), None

    def close(self) -> str:
        """The JSON text that completes the object."""
        return self._finish([self._reader.close()])

    def _finish(self, out: list[str]) -> str:
        self.repairs += self._reader.repairs
        return "".join(out)

    def _place_of(self, rest: str, meant: str, at: int, end: int) -> int:
        # Where in the string the reader stopped: an escape is one sign, or none of the object.
        if len(meant) == end - at:
            return end - len(rest)
        return at if rest else end

    def _step(self, text: str, at: int) -> tuple[int, str] | None:
        # Up to where, and what it means; nothing if that is the end of the string, None if more has to come.
        if plain := self._plain.match(text, at):
            return plain.end(), plain.group()
        if text[at] == self._quote:
            return self._quote_inside(text, at)
        if escape := _ESCAPE.match(text, at):
            return escape.end(), json.loads(f'"{escape.group()}"')
        if _ESCAPE_SO_FAR.match(text, at):
            return None
        following = text[at + 1]
        # The reader knows what else a backslash may mean.
        return at + 2, following if following in self._escaped else text[at : at + 2]

    def _quote_inside(self, text: str, at: int) -> tuple[int, str] | None:
        # One that should have been escaped, unless nothing comes behind it.
        behind = text[at + 1 : at + 2 + _MAX_BLANKS]
        solid = behind.lstrip()
        if solid and not solid.startswith(self._end):
            return at + 1, self._quote
        return (at + 1, "") if solid or len(behind) > _MAX_BLANKS else None
