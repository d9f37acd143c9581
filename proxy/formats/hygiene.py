"""Markers and control tokens in text that is not the model's: made harmless in the prompt, and good in the answer.

Whoever writes a web page, a document or a chat message must not be able to speak as the model, or as the chat
template. A WORD JOINER (U+2060, no width, no line break) behind the first character makes plain text of a marker:

    ✿FUNCTION✿   <->   ✿<U+2060>FUNCTION✿        <|im_start|>   <->   <<U+2060>|im_start|>

It is put in behind a first character that a marker or another joiner follows, and one is taken out wherever one
stands behind such a character, so that every text comes back as it was, one that holds such joiners already included.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from proxy.events import CallArguments, ParserEvent, Reasoning, Text
from proxy.formats.base import Parser, Prompt

_JOINER = "\u2060"

#: `<|im_end|>` and its kind, in any model's spelling, full-width bars included.
CONTROL_TOKENS = (r"<\|[^|<>\s]{1,40}\|>", r"<｜[^｜<>\s]{1,40}｜>")


class Escapes:
    """Makes what matches one of the patterns harmless; each pattern begins with one literal character, its lead.

    Joiners are doubled behind all `leads`, the patterns' own and others that are escaped elsewhere in the same prompt:
    what is taken out of an answer does not tell from which text it came. Without any lead no text is changed.
    """

    def __init__(self, patterns: Sequence[str], leads: str = "") -> None:
        self.patterns = tuple(patterns)
        self.leads = "".join(sorted({*leads, *(pattern[0] for pattern in patterns)}))
        bodies = "".join(f"|(?<={pattern[0]}){pattern[1:]}" for pattern in patterns)
        place = f"(?<=[{self.leads}])(?={_JOINER}{bodies})" if self.leads else "(?!)"
        self._place = re.compile(place, re.IGNORECASE | re.ASCII)

    def escape(self, text: str) -> str:
        """The text with nothing in it that matches."""
        # Most texts have no lead, which is seen at once.
        return self._place.sub(_JOINER, text) if any(map(text.__contains__, self.leads)) else text


def restoring(parser: Parser, prompt: Prompt) -> Parser:
    """The parser of an answer to the prompt, made to take out of it what was put into the prompt."""
    return Restoring(parser, prompt.escaped) if prompt.escaped else parser


class Restoring:
    """A parser that takes the joiners behind any of `leads` out of what another parser reads."""

    def __init__(self, parser: Parser, leads: str) -> None:
        self._parser = parser
        self._leads = leads
        self._last: Text | Reasoning | CallArguments | None = None
        self._held = ""

    @property
    def midway(self) -> bool:
        """See `Parser.midway`."""
        return self._parser.midway

    def feed(self, text: str) -> list[ParserEvent]:
        """See `Parser.feed`."""
        return self._restore(self._parser.feed(text))

    def think(self, text: str) -> list[ParserEvent]:
        """See `Parser.think`."""
        return self._restore(self._parser.think(text))

    def close(self, *, truncated: bool = False) -> list[ParserEvent]:
        """See `Parser.close`."""
        return [*self._restore(self._parser.close(truncated=truncated)), *self._released()]

    def _restore(self, events: Sequence[ParserEvent]) -> list[ParserEvent]:
        return [restored for event in events for restored in self._restored(event)]

    def _restored(self, event: ParserEvent) -> list[ParserEvent]:
        if not isinstance(event, Text | Reasoning | CallArguments):
            return [*self._released(), event]
        before = self._released() if type(event) is not type(self._last) else []
        self._last = event
        undo = _undo(self._leads, is_json=isinstance(event, CallArguments))
        text, self._held = undo.split(self._held + event.text)
        return [*before, replace(event, text=text)] if text else before

    def _released(self) -> list[ParserEvent]:
        held, self._held = self._held, ""
        return [replace(self._last, text=held)] if held and self._last else []


class _Undo:
    """How the joiners come out of one kind of text; in JSON either character may be written as an escape."""

    def __init__(self, leads: str, *, is_json: bool) -> None:
        before = [spelling for lead in leads for spelling in _spellings(lead, is_json=is_json)]
        behind = _spellings(_JOINER, is_json=is_json)
        # An escaped backslash begins no escape: taken whole, it is out of the way.
        other = r"|\\[^u]" if is_json else ""
        self._found = re.compile(f"({_either(before)})(?:{_either(behind)}){other}", re.IGNORECASE)
        whole = [(lead + joiner).lower() for lead in before for joiner in behind]
        self._begun = frozenset(spelling[:size] for spelling in whole for size in range(1, len(spelling)))
        self._longest = max(map(len, whole)) - 1

    def split(self, text: str) -> tuple[str, str]:
        """The text as it was, and its end if that may be the beginning of a lead with a joiner."""
        said: list[str] = []
        end = 0
        for found in self._found.finditer(text):
            said += (text[end : found.start()], found.group(1) or found.group())
            end = found.end()
        sizes = range(min(self._longest, len(text) - end), 0, -1)
        keep = next((size for size in sizes if text[-size:].lower() in self._begun), 0)
        return "".join(said) + text[end : len(text) - keep], text[len(text) - keep :]


@cache
def _undo(leads: str, *, is_json: bool) -> _Undo:
    return _Undo(leads, is_json=is_json)


def _spellings(char: str, *, is_json: bool) -> list[str]:
    return [char, f"\\u{ord(char):04x}"] if is_json else [char]


def _either(spellings: Sequence[str]) -> str:
    return "|".join(map(re.escape, spellings))
