"""Control characters in the strings of a JSON text are escaped, and nothing else is touched, however it is cut.

Source: RFC 8259, section 7; Python's own reader without `strict` takes what is to be escaped.
"""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutting import cut_text
from proxy.strings import StringEscapes

CONTROLS = st.text(st.characters(max_codepoint=0x22), max_size=6)
VALUES = st.recursive(
    CONTROLS | st.text(max_size=6) | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(CONTROLS, inner, max_size=3),
    max_leaves=6,
)
RAW = {json.dumps(chr(code))[1:-1]: chr(code) for code in range(0x20)}


def escaped(*pieces: str) -> str:
    """What the pieces of one text become."""
    escapes = StringEscapes()
    return "".join(map(escapes.feed, pieces))


def unescaped(text: str) -> str:
    """A JSON text with its control characters raw, as models and guided decoding write them."""
    for escape, char in RAW.items():
        # An even number of backslashes before it is text of its own.
        parts = text.split("\\\\")
        text = "\\\\".join(part.replace(escape, char) for part in parts)
    return text


@given(value=VALUES, indent=st.sampled_from([None, 1]), places=st.lists(st.integers(0, 40), max_size=4))
def test_a_valid_text_is_not_touched(value: Any, indent: int | None, places: list[int]) -> None:
    text = json.dumps(value, indent=indent)
    assert escaped(*cut_text(text, sorted(places))) == text


@given(value=VALUES, indent=st.sampled_from([None, 1]), places=st.lists(st.integers(0, 40), max_size=4))
def test_raw_control_characters_come_out_as_what_they_mean(value: Any, indent: int | None, places: list[int]) -> None:
    text = unescaped(json.dumps(value, indent=indent))
    assert json.loads(text, strict=False) == value
    assert json.loads(escaped(*cut_text(text, sorted(places)))) == value


@given(text=st.text('"\\\n\t\x05 a{}', max_size=20))
def test_it_is_the_same_however_it_is_cut_and_nothing_waits(text: str) -> None:
    """One sign out for each that went in, whatever the text."""
    escapes = StringEscapes()
    said = [escapes.feed(char) for char in text]
    assert all(said)
    assert "".join(said) == escaped(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('"a\nb"', '"a\\nb"'),
        ('"a\\\nb"', '"a\\nb"'),
        ('"\x1b"', '"\\u001b"'),
        ('{\n"a": "\\\\\n"}', '{\n"a": "\\\\\\n"}'),
    ],
)
def test_what_it_makes_of_a_text(text: str, told: str) -> None:
    """A backslash before a raw line end stands for that line end."""
    assert escaped(text) == escaped(*text) == told
