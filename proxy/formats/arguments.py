"""The model's text of an argument object -> JSON text of an object, as it comes.

Valid JSON comes out as it went in, character for character. Whatever else a model writes is mended on the way:
Python's and JSON5's literals, quotes, numbers and comments, unquoted keys and values, trailing and missing commas,
raw control characters and quotes inside strings, brackets that do not match. Where the tool's schema is known, what
is valid JSON of the wrong kind is mended, too, if nothing is lost by it: `"5"` where only an integer may stand, `5`
where only a string may. What the schema admits is never touched. Each mend is counted in `repairs`.

One state for each place in the grammar; each consumes what it can of the text and says where it stopped:

    KEY -> COLON -> VALUE -> NEXT -> KEY ...      the object, with STRING and WORD for keys and values
    STRING -> QUOTE                               a quote ends a string only if the grammar goes on behind it
    COMMENT                                       // ... newline, # ... newline, /* ... */

A string stands in one of three states: STRING, which most of them pass through; IN_KEY, where the name must be
known to find its schema; and IN_DOUBT, where no string may stand, so that it is held back until its meaning is clear.

Source: RFC 8259 for what is valid, JSON5 1.0 and Python's repr for what models write instead.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

from proxy.formats.quoted import QuotedValue
from proxy.formats.schemas import ANYTHING, View
from proxy.formats.words import key_of, value_of

#: Deeper than any schema, and well within what callers' JSON parsers take (Python's stops near 1,000).
MAX_DEPTH = 128

#: So many blanks in a row outside strings mean that the model goes on for ever. Four times what an honest
#: pretty-print can need: MAX_DEPTH levels of 8 blanks.
MAX_BLANKS = 4096

_BLANK = re.compile(r"[\s\ufeff]+")
_TOO_MANY_BLANKS = re.compile(rf"(?<!\s)\s{{{MAX_BLANKS + 1}}}")
_JSON_BLANKS = frozenset(" \t\r\n")
_PLAIN = {'"': re.compile(r'[^"\\\x00-\x1f]+'), "'": re.compile(r"[^'\"\\\x00-\x1f]+")}
#: How many characters must be there before an escape can be judged; any other takes 2.
_ESCAPE_SIZE = {"x": 4, "u": 6, "\r": 3}
_JSON5_ESCAPES = {"'": "'", "0": "\\u0000", "v": "\\u000b", "\n": "", "\u2028": "", "\u2029": ""}
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')

#: JSON5's ends of lines.
_LINE_END = re.compile("[\n\r\u2028\u2029]")
_COMMENT_END = re.compile(r"\*/")

_STRINGS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"')
_DEPTH = {"{": 1, "[": 1, "}": -1, "]": -1}

#: What may stand behind a string: the grammar's own signs, a comment, or a string after a forgotten comma.
_BEHIND_STRING = frozenset(",:}]/#\"'")


@cache
def _words(end: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    # Unquoted keys and values.
    key, value = r"\s\ufeff:,{}\[\]\"'/", r"\ufeff,{}\[\]\"'\n\r/"
    return re.compile(f"[^{key}{re.escape(end)}]+"), re.compile(f"[^{value}{re.escape(end)}]+")


@dataclass(slots=True)
class _Place:
    """An object or array that is open, as its schema sees it."""

    view: View
    name: str = ""
    items: int = 0

    def due(self, closer: str) -> View:
        # What may stand at the value that begins.
        if closer == "}":
            return self.view.named(self.name)
        self.items += 1
        return self.view.item(self.items - 1)


class ObjectReader:
    """Reads one object, from its `{` on; `end` is a character that, outside strings, cannot be part of it.

    `schema` is what the object should be. `feed` gives the JSON text that can be passed on, and, once the object is
    complete, what follows it; where the model writes blanks without end it stops, and `runaway` is true.
    """

    def __init__(self, end: str, schema: View = ANYTHING) -> None:
        self.repairs = 0
        self.over = False
        self.runaway = False
        self._end = end
        self._due = schema
        self._typed = schema is not ANYTHING
        self._places: list[_Place] = []
        self._name: list[str] | None = None
        self._doubt: QuotedValue | None = None
        self._word_in_key, self._word_in_value = _words(end)
        self._stack: list[str] = []
        self._out: list[str] = []
        self._held = ""
        self._straight: re.Pattern[str] | None = None
        self._comma: list[str] = []
        self._word: list[str] = []
        self._quote = '"'
        self._is_key = False
        self._behind: list[str] = []
        self._blanks = 0
        self._comment_end = _LINE_END
        self._state: Callable[[str, int], int] = self._value
        self._inside: Callable[[str, int], int] = self._string
        self._before_comment: Callable[[str, int], int] = self._value
        self._stopped = False

    @property
    def midway(self) -> bool:
        """True if the text so far ends inside a string."""
        return self._state == self._inside

    def feed(self, text: str) -> tuple[str, str | None]:
        """JSON text to pass on, and the rest of `text` behind the object (None while it is open)."""
        if self._straight and self._straight.fullmatch(text):
            # Most of what comes: the middle of a string.
            return text, None
        text = self._held + text
        at = self._go_through(text)
        self._held = "" if self._stopped else text[at:]
        self._straight = _PLAIN[self._quote] if self._state == self._string and not self._held else None
        return self._take(), text[at:] if self._stopped else None

    def close(self) -> str:
        """The JSON text that completes the object when the model stopped in the middle of it."""
        if self._state == self._comment:
            self._state = self._before_comment
        if self._state == self._inside:
            self.repairs += 1
            self._end_string()
        elif self._state == self._quoted:
            self._end_string()
        elif self._state == self._in_word:
            self._end_word()
        self._held = ""
        self._unwind(0)
        return self._take()

    def _go_through(self, text: str) -> int:
        # Up to where the text could be read.
        at, size = 0, len(text)
        while at < size and not self._stopped:
            moved = self._state(text, at)
            if moved < 0:
                break
            at = moved
        return at

    def _take(self) -> str:
        out = "".join(self._out)
        self._out.clear()
        return out

    def _emit(self, text: str, *, repaired: bool = False) -> None:
        self._out.append(text)
        self.repairs += repaired
        if self._name is not None:
            self._name.append(text)

    def _flush_comma(self) -> None:
        self._out += self._comma
        self._comma.clear()

    # -- between tokens ------------------------------------------------------------------------------------

    def _skip(self, text: str, at: int) -> int:
        # Blanks, comments and the end sign stand anywhere between tokens. Gives `at` when a token begins there.
        if blank := _BLANK.match(text, at):
            said = blank.group()
            self._blanks += len(said)
            if self._blanks > MAX_BLANKS:
                self.runaway = self._stopped = True
                said = said[: MAX_BLANKS - self._blanks]
            valid = "".join([char for char in said if char in _JSON_BLANKS])
            (self._comma or self._out).append(valid)
            self.repairs += len(said) - len(valid)
            return blank.end()
        self._blanks = 0
        char = text[at]
        if char == self._end:
            self._unwind(0)
        elif char in "#/":
            return self._maybe_comment(char, text, at)
        return at

    def _maybe_comment(self, char: str, text: str, at: int) -> int:
        if at + 1 == len(text):
            return -1
        following = text[at + 1]
        if char == "#":
            # `#fff` is a value.
            return self._begin_comment(_LINE_END, at + 1) if following.isspace() else at
        if following in "/*":
            return self._begin_comment(_LINE_END if following == "/" else _COMMENT_END, at + 2)
        return at

    def _begin_comment(self, end: re.Pattern[str], at: int) -> int:
        self.repairs += 1
        self._comment_end, self._before_comment, self._state = end, self._state, self._comment
        return at

    def _comment(self, text: str, at: int) -> int:
        found = self._comment_end.search(text, at)
        # The last character may be the first of a `*/`.
        end = found.start() if found else len(text) - (self._comment_end is _COMMENT_END and text.endswith("*"))
        self._pass_over(text[at:end])
        if found is None:
            return end if end > at else -1
        self._state = self._before_comment
        if self._comment_end is _LINE_END:
            # It is a blank like others.
            return end
        self._blanks = 0
        return found.end()

    def _pass_over(self, text: str) -> None:
        # What is no blank between tokens may hold blanks without end, too.
        lead = len(text) - len(text.lstrip())
        if self._blanks + lead > MAX_BLANKS or _TOO_MANY_BLANKS.search(text):
            self.runaway = self._stopped = True
        self._blanks = self._blanks + lead if lead == len(text) else len(text) - len(text.rstrip())

    def _key(self, text: str, at: int) -> int:
        moved = self._skip(text, at)
        if moved != at or self._stopped:
            return moved
        char = text[at]
        if char in "}]":
            return self._close_bracket(char, at)
        if char in ",:{[":
            self.repairs += 1
            return at + 1
        self._flush_comma()
        return self._begin_token(char, at, is_key=True)

    def _colon(self, text: str, at: int) -> int:
        moved = self._skip(text, at)
        if moved != at or self._stopped:
            return moved
        self._emit(":", repaired=text[at] != ":")
        self._state = self._value
        return at + (text[at] == ":")

    def _value(self, text: str, at: int) -> int:
        moved = self._skip(text, at)
        if moved != at or self._stopped:
            return moved
        char = text[at]
        if char in "}]" and self._stack and self._stack[-1] == "]":
            return self._close_bracket(char, at)
        if char in "},]:":
            return self._no_value(char, at)
        self._flush_comma()
        if self._places:
            self._due = self._places[-1].due(self._stack[-1])
        if char in "{[":
            return self._open_bracket(char, at)
        return self._begin_token(char, at, is_key=False)

    def _no_value(self, char: str, at: int) -> int:
        self.repairs += 1
        if char == ":" or (char == "," and self._stack[-1] == "]"):
            return at + 1
        self._emit("null")
        self._state = self._next
        return at

    def _next(self, text: str, at: int) -> int:
        moved = self._skip(text, at)
        if moved != at or self._stopped:
            return moved
        char = text[at]
        if char in "}]":
            return self._close_bracket(char, at)
        if char == ":":
            self.repairs += 1
            return at + 1
        self._comma.append(",")
        self._state = self._key if self._stack[-1] == "}" else self._value
        if char == ",":
            return at + 1
        self.repairs += 1
        return at

    # -- brackets ------------------------------------------------------------------------------------------

    def _open_bracket(self, char: str, at: int) -> int:
        if len(self._stack) == MAX_DEPTH:
            self._emit("null", repaired=True)
            self._state = self._next
            self._unwind(0)
            return at
        self._stack.append("}" if char == "{" else "]")
        if self._typed:
            self._places.append(_Place(self._due))
        self._emit(char)
        self._state = self._key if char == "{" else self._value
        return at + 1

    def _close_bracket(self, char: str, at: int) -> int:
        if char not in self._stack:
            self.repairs += 1
            return at + 1
        depth = len(self._stack) - 1
        while self._stack[depth] != char:
            depth -= 1
        self._unwind(depth + 1)
        self._pop()
        return at + 1

    def _pop(self) -> None:
        if self._comma:
            # A trailing comma goes, the blanks behind it stay.
            self._comma.pop(0)
            self.repairs += 1
            self._flush_comma()
        self._emit(self._stack.pop())
        if self._places:
            self._places.pop()
        self._state = self._next
        self._stopped = not self._stack

    def _unwind(self, depth: int) -> None:
        # Closes everything deeper than `depth`, as if the model had.
        if self._state == self._colon:
            self._emit(": null", repaired=True)
        elif self._state == self._value and self._stack and self._stack[-1] == "}":
            self._emit("null", repaired=True)
        self._state = self._next
        while len(self._stack) > depth:
            self.repairs += 1
            self._pop()
        self._stopped = not self._stack

    # -- strings -------------------------------------------------------------------------------------------

    def _begin_token(self, char: str, at: int, *, is_key: bool) -> int:
        self._is_key = is_key
        if is_key and self._places:
            self._name = []
        if char not in "\"'":
            self._state = self._in_word
            return at
        self._quote = char
        self.repairs += char == "'"
        if is_key or "string" in self._due.kinds:
            self._emit('"')
            self._inside = self._string if self._name is None else self._in_key
        else:
            self._doubt = QuotedValue(self._due.kinds)
            self._inside = self._in_doubt
        self._state = self._inside
        return at + 1

    def _in_key(self, text: str, at: int) -> int:
        # A state of its own, since what `feed` passes straight through is not noted.
        return self._string(text, at)

    def _in_doubt(self, text: str, at: int) -> int:
        assert self._doubt is not None
        before = len(self._out)
        moved = self._string(text, at)
        pieces = self._out[before:]
        del self._out[before:]
        if not self._doubt.add(pieces):
            self._believe()
        return moved

    def _believe(self) -> None:
        # It is a string, whatever may stand there.
        if self._doubt:
            self._out += self._doubt.said
            self._doubt, self._inside = None, self._string
            self._state = self._inside

    def _string(self, text: str, at: int) -> int:
        if plain := _PLAIN[self._quote].match(text, at):
            self._emit(plain.group())
            return plain.end()
        char = text[at]
        if char == self._quote:
            self._state = self._quoted
            self._blanks = 0
            return at + 1
        if char == "\\":
            return self._escape(text, at)
        # A raw control character, or a double quote in a single-quoted string.
        self._emit(json.dumps(char)[1:-1], repaired=True)
        return at + 1

    def _escape(self, text: str, at: int) -> int:
        if valid := _ESCAPE.match(text, at):
            self._emit(valid.group())
            return valid.end()
        following = text[at + 1 : at + 2]
        digits = text[at + 2 : at + _ESCAPE_SIZE.get(following, 2)]
        if at + _ESCAPE_SIZE.get(following, 2) > len(text) and _may_be_hex(digits):
            return -1
        self.repairs += 1
        if following == "x" and _may_be_hex(digits):
            self._emit("\\u00" + digits)
            return at + 4
        if following in _JSON5_ESCAPES:
            self._emit(_JSON5_ESCAPES[following])
            return at + 2
        if following == "\r":
            return at + 2 + (text[at + 2] == "\n")
        # JSON5: the backslash before any other sign is as good as not there.
        return at + 1

    def _quoted(self, text: str, at: int) -> int:
        # A quote has been read: it ends the string if what stands behind fits the grammar, else it is inside.
        if blank := _BLANK.match(text, at):
            self._behind.append(blank.group())
            self._pass_over(blank.group())
            return blank.end()
        if text[at] in _BEHIND_STRING or text[at] == self._end:
            self._end_string()
            return at
        self._believe()
        self._emit(("\\" if self._quote == '"' else "") + self._quote, repaired=True)
        inside, self._behind = "".join(self._behind), []
        self._emit(json.dumps(inside, ensure_ascii=False)[1:-1])
        self._state = self._inside
        return at

    def _end_string(self) -> None:
        blanks, self._behind = "".join(self._behind), []
        doubt, self._doubt = self._doubt, None
        if doubt is None:
            self._emit('"')
            self._after_token()
        else:
            self._end_doubt(doubt)
        self._blanks = 0
        if blanks:
            self._skip(blanks, 0)

    def _end_doubt(self, doubt: QuotedValue) -> None:
        meaning = doubt.meaning()
        self._state = self._next
        if meaning is None or (meaning[0] in "{[" and not self._has_room_for(meaning)):
            self._out += [*doubt.said, '"']
        elif meaning[0] in "{[":
            # Read like any other text: there may be a string inside that is to be none.
            self.repairs += 1
            self._open_bracket(meaning[0], 0)
            self._go_through(meaning[1:])
        else:
            self._emit(meaning, repaired=True)

    def _has_room_for(self, text: str) -> bool:
        bare = _STRINGS.sub('""', text)
        depth = max(accumulate(_DEPTH.get(char, 0) for char in bare))
        return len(self._stack) + depth <= MAX_DEPTH and not _TOO_MANY_BLANKS.search(bare)

    def _after_token(self) -> None:
        self._state = self._colon if self._is_key else self._next
        if self._name is not None:
            name = "".join(self._name)
            self._places[-1].name = json.loads(name) if "\\" in name else name[1:-1]
            self._name = None

    # -- words: numbers, literals, unquoted keys and values ------------------------------------------------

    def _in_word(self, text: str, at: int) -> int:
        pattern = self._word_in_key if self._is_key else self._word_in_value
        if found := pattern.match(text, at):
            said = found.group()
            self._word.append(said)
            if self._blanks or said[-1].isspace() or len(said) > MAX_BLANKS:
                self._pass_over(said)
            return found.end()
        if text[at] == "/":
            if at + 1 == len(text):
                return -1
            if text[at + 1] not in "/*":
                self._word.append("/")
                return at + 1
        self._end_word()
        return at

    def _end_word(self) -> None:
        raw = "".join(self._word)
        self._word = []
        word = raw.rstrip()
        if self._is_key:
            self._emit(key_of(word), repaired=True)
        else:
            mended = value_of(word, self._due.kinds)
            self._emit(mended, repaired=mended != word)
        self._after_token()
        self._blanks = 0
        if len(word) < len(raw):
            self._skip(raw, len(word))


def _may_be_hex(text: str) -> bool:
    return all(char in "0123456789abcdefABCDEF" for char in text)
