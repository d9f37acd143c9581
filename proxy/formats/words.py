"""A word without quotes, where a value is due -> JSON text: itself, what Python or JSON5 mean by it, or a string.

Source: RFC 8259 for numbers, JSON5 1.0 and Python's repr for what models write instead.
"""

import json
import re

#: Python writes integers of up to 4,300 decimal digits, and reads no longer ones.
MAX_DIGITS = 4300

NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)
#: No more than `MAX_DIGITS` in decimal; a longer one is left a string.
_HEX = re.compile(r"[+-]?0[xX][0-9a-fA-F]{1,1000}")
#: JSON5's numbers: a plus sign, nothing before the point or nothing behind it.
_LOOSE_NUMBER = re.compile(r"\+?(-?)(?=\.?\d)(0|[1-9]\d*)?(?:\.(\d*))?([eE][+-]?\d+)?", re.ASCII)
#: What Python and JavaScript call them, in lower case.
_LITERALS = {"true": "true", "false": "false", **dict.fromkeys(("null", "none", "undefined"), "null")}
#: JSON has no numbers that are none.
_NO_NUMBERS = frozenset(f"{sign}{name}" for sign in ("", "+", "-") for name in ("nan", "infinity"))

_PYTHON_COMMENT = re.compile(r"\s#\s.*", re.DOTALL)

_ESCAPED_IN_KEY = re.compile(r"\\\\(u[0-9a-fA-F]{4})")


def key_of(word: str) -> str:
    """The JSON string of a word where a key is due."""
    # JSON5: `\u0061` is an `a` in a name, too.
    return _ESCAPED_IN_KEY.sub(r"\\\1", json.dumps(word, ensure_ascii=False))


def value_of(word: str, kinds: frozenset[str]) -> str:
    """The JSON text of a word where a value of one of these kinds is due (see `schemas`)."""
    if "#" in word:
        word = _PYTHON_COMMENT.sub("", word).rstrip()
    mended, kind = _meaning_of(word)
    admitted = kind in kinds or (kind == "fraction" and "integer" in kinds)
    # Where a string is optional, models write null for it: that is no string of four letters.
    if admitted or kind == "null" or "string" not in kinds:
        return mended
    return json.dumps(word, ensure_ascii=False)


def _meaning_of(word: str) -> tuple[str, str]:
    # The JSON text and its kind; a number counts as a `fraction`, whatever its value.
    if NUMBER.fullmatch(word):
        return word, "fraction"
    lowered = word.lower()
    if lowered in _LITERALS:
        literal = _LITERALS[lowered]
        return literal, "null" if literal == "null" else "boolean"
    if lowered in _NO_NUMBERS:
        return "null", "fraction"
    if _HEX.fullmatch(word):
        return str(int(word, 16)), "fraction"
    if number := _LOOSE_NUMBER.fullmatch(word):
        sign, whole, fraction, exponent = number.groups(default="")
        point = f".{fraction or 0}" if "." in word else ""
        return f"{sign}{whole or 0}{point}{exponent}", "fraction"
    return json.dumps(word, ensure_ascii=False), "string"
