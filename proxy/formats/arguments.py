"""The model's text of an argument object -> JSON text of an object, as it comes.

Valid JSON comes out as it went in, character for character. Whatever else a model writes is mended on the way:
Python's and JSON5's literals, quotes, numbers and comments, unquoted keys and values, trailing and missing commas,
raw control characters and quotes inside strings, brackets that do not match. Each mend is counted in `repairs`.

One state for each place in the grammar; each consumes what it can of the text and says where it stopped:

    KEY -> COLON -> VALUE -> NEXT -> KEY ...      the object, with STRING and WORD for keys and values
    STRING -> QUOTE                               a quote ends a string only if the grammar goes on behind it
    COMMENT                                       // ... newline, # ... newline, /* ... */

Source: RFC 8259 for what is valid, JSON5 1.0 and Python's repr for what models write instead.
"""

import json
import re
from collections.abc import Callable
from functools import cache

#: Deeper than any schema, and well within what callers' JSON parsers take (Python's stops near 1,000).
MAX_DEPTH = 128

_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
#: Python writes integers of up to 4,300 decimal digits; a longer one is left a string.
_HEX = re.compile(r"[+-]?0[xX][0-9a-fA-F]{1,1000}")
#: JSON5's numbers: a plus sign, nothing before the point or nothing behind it.
_LOOSE_NUMBER = re.compile(r"\+?(-?)(?=\.?\d)(0|[1-9]\d*)?(?:\.(\d*))?([eE][+-]?\d+)?")
#: What Python and JavaScript call them, in lower case. JSON has no numbers that are none.
_LITERALS = {
    "true": "true",
    "false": "false",
    **dict.fromkeys(("null", "none", "undefined", "nan", "infinity", "+infinity", "-infinity"), "null"),
}

_PYTHON_COMMENT = re.compile(r"\s#\s.*", re.DOTALL)
_BLANK = re.compile(r"\s+")
_JSON_BLANKS = frozenset(" \t\r\n")
_PLAIN = {'"': re.compile(r'[^"\\\x00-\x1f]+'), "'": re.compile(r"[^'\"\\\x00-\x1f]+")}
#: How many characters must be there before an escape can be judged; any other takes 2.
_ESCAPE_SIZE = {"x": 4, "u": 6, "\r": 3}
_JSON5_ESCAPES = {"'": "'", "0": "\\u0000", "v": "\\u000b", "\n": "", "\u2028": "", "\u2029": ""}
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')

#: What may stand behind a string: the grammar's own signs, a comment, or a string after a forgotten comma.
_BEHIND_STRING = frozenset(",:}]/#\"'")


@cache
def _words(end: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    # Unquoted keys and values.
    key, value = r"\s:,{}\[\]\"'/", r",{}\[\]\"'\n\r/"
    return re.compile(f"[^{key}{re.escape(end)}]+"), re.compile(f"[^{value}{re.escape(end)}]+")


class ObjectReader:
    """Reads one object, from its `{` on; `end` is a character that, outside strings, cannot be part of it.

    `feed` gives the JSON text that can be passed on, and, once the object is complete, what follows it.
    """

    def __init__(self, end: str) -> None:
        self.repairs = 0
        self.over = False
        self._end = end
        self._word_in_key, self._word_in_value = _words(end)
        self._stack: list[str] = []
        self._out: list[str] = []
        self._held = ""
        self._comma: list[str] = []
        self._word: list[str] = []
        self._quote = '"'
        self._is_key = False
        self._behind: list[str] = []
        self._comment_end = ""
        self._state: Callable[[str, int], int] = self._value
        self._before_comment: Callable[[str, int], int] = self._value
        self._stopped = False

    @property
    def midway(self) -> bool:
        """True if the text so far ends inside a string."""
        return self._state == self._string

    def feed(self, text: str) -> tuple[str, str | None]:
        """JSON text to pass on, and the rest of `text` behind the object (None while it is open)."""
        if self._state == self._string and not self._held and _PLAIN[self._quote].fullmatch(text):
            # Most of what comes: the middle of a string.
            return text, None
        text = self._held + text
        at, size = 0, len(text)
        while at < size and not self._stopped:
            moved = self._state(text, at)
            if moved < 0:
                break
            at = moved
        self._held = "" if self._stopped else text[at:]
        return self._take(), text[at:] if self._stopped else None

    def close(self) -> str:
        """The JSON text that completes the object when the model stopped in the middle of it."""
        if self._state == self._comment:
            self._state = self._before_comment
        if self._state == self._string:
            self._emit('"', repaired=True)
            self._after_token()
        elif self._state == self._quoted:
            self._end_string()
        elif self._state == self._in_word:
            self._end_word()
        self._held = ""
        self._unwind(0)
        return self._take()

    def _take(self) -> str:
        out = "".join(self._out)
        self._out.clear()
        return out

    def _emit(self, text: str, *, repaired: bool = False) -> None:
        self._out.append(text)
        self.repairs += repaired

    def _flush_comma(self) -> None:
        self._out += self._comma
        self._comma.clear()

    # -- between tokens ------------------------------------------------------------------------------------

    def _skip(self, text: str, at: int) -> int:
        # Blanks, comments and the end sign stand anywhere between tokens. Gives `at` when a token begins there.
        if blank := _BLANK.match(text, at):
            valid = "".join([char for char in blank.group() if char in _JSON_BLANKS])
            (self._comma or self._out).append(valid)
            self.repairs += len(blank.group()) - len(valid)
            return blank.end()
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
            return self._begin_comment("\n", at + 1) if following.isspace() else at
        if following in "/*":
            return self._begin_comment("\n" if following == "/" else "*/", at + 2)
        return at

    def _begin_comment(self, end: str, at: int) -> int:
        self.repairs += 1
        self._comment_end, self._before_comment, self._state = end, self._state, self._comment
        return at

    def _comment(self, text: str, at: int) -> int:
        found = text.find(self._comment_end, at)
        if found < 0:
            # The last character may be the first of a `*/`.
            stop = len(text) - (self._comment_end == "*/" and text.endswith("*"))
            return stop if stop > at else -1
        self._state = self._before_comment
        return found + 2 if self._comment_end == "*/" else found

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
        if char in "\"'":
            self._quote = char
            self._emit('"', repaired=char == "'")
            self._state = self._string
            return at + 1
        self._state = self._in_word
        return at

    def _string(self, text: str, at: int) -> int:
        if plain := _PLAIN[self._quote].match(text, at):
            self._emit(plain.group())
            return plain.end()
        char = text[at]
        if char == self._quote:
            self._state = self._quoted
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
            return blank.end()
        if text[at] in _BEHIND_STRING or text[at] == self._end:
            self._end_string()
            return at
        self._emit(("\\" if self._quote == '"' else "") + self._quote, repaired=True)
        inside, self._behind = "".join(self._behind), []
        self._emit(json.dumps(inside, ensure_ascii=False)[1:-1])
        self._state = self._string
        return at

    def _end_string(self) -> None:
        self._emit('"')
        blanks, self._behind = "".join(self._behind), []
        self._after_token()
        if blanks:
            self._skip(blanks, 0)

    def _after_token(self) -> None:
        self._state = self._colon if self._is_key else self._next

    # -- words: numbers, literals, unquoted keys and values ------------------------------------------------

    def _in_word(self, text: str, at: int) -> int:
        pattern = self._word_in_key if self._is_key else self._word_in_value
        if found := pattern.match(text, at):
            self._word.append(found.group())
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
            self._emit(json.dumps(word, ensure_ascii=False), repaired=True)
        else:
            mended = _value_of(word)
            self._emit(mended, repaired=mended != word)
        self._after_token()
        if len(word) < len(raw):
            self._skip(raw, len(word))


def _value_of(word: str) -> str:
    # A bare word where a value is due -> JSON text: itself, what it means in Python or JSON5, or a string.
    word = _PYTHON_COMMENT.sub("", word).rstrip()
    if _NUMBER.fullmatch(word) or word in ("true", "false", "null"):
        return word
    if word.lower() in _LITERALS:
        return _LITERALS[word.lower()]
    if _HEX.fullmatch(word):
        return _hex_to_decimal(word)
    if number := _LOOSE_NUMBER.fullmatch(word):
        sign, whole, fraction, exponent = number.groups(default="")
        return f"{sign}{whole or 0}.{fraction or 0}{exponent}" if "." in word else f"{sign}{whole}{exponent}"
    return json.dumps(word, ensure_ascii=False)


def _hex_to_decimal(word: str) -> str:
    return str(int(word.removeprefix("+"), 16))


def _may_be_hex(text: str) -> bool:
    return all(char in "0123456789abcdefABCDEF" for char in text)
