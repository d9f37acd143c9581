"""A JSON text as it comes -> the same, with the control characters in its strings escaped.

Models write the ends of lines into strings as they are, and guided decoding lets them (xgrammar, as in vLLM 0.32.0),
other control characters, too: a text that fits its schema and that no JSON parser takes.

Source: RFC 8259, section 7.
"""

import json
import re

#: A string's ends, what a backslash makes of the next character, and what no string may hold.
_SIGNS = re.compile(r'"|\\.?|[\x00-\x1f]', re.DOTALL)

_ESCAPED = {chr(code): json.dumps(chr(code))[1:-1] for code in range(0x20)}


class StringEscapes:
    """Goes through one JSON text; all else in it stays as it is, and so does a text that is valid."""

    def __init__(self) -> None:
        self._in_string = False
        self._begun = False

    def feed(self, text: str) -> str:
        """The same text, escaped; nothing is held back."""
        if not self._begun or not text:
            return _SIGNS.sub(self._written, text)
        self._begun = False
        # The backslash is passed on already.
        first = self._written_out("\\" + text[0])[1:]
        return first + _SIGNS.sub(self._written, text[1:])

    def _written(self, found: re.Match[str]) -> str:
        sign = found.group()
        if sign == '"':
            self._in_string = not self._in_string
        self._begun = sign == "\\"
        return self._written_out(sign)

    def _written_out(self, sign: str) -> str:
        return _ESCAPED.get(sign[-1], sign) if self._in_string else sign
