"""An object in quotes is read as the object inside, however it is quoted, escaped and cut.

Source: RFC 8259's strings, Python's repr, and what models were seen to write; `test_arguments` has single values.
"""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.formats.arguments import ObjectReader
from proxy.formats.parsing import Reader
from proxy.formats.quoted import OBJECT, OBJECT_SO_FAR, reader_of
from proxy.formats.schemas import ANYTHING, View
from test_arguments import SCHEMA, pieces, printable, read_each_way
from test_laws import json_objects


def read_quoted(text: str, schema: View = ANYTHING) -> tuple[Any, str | None]:
    opening = OBJECT.match(text)
    assert opening

    def new() -> Reader:
        return reader_of(opening, ObjectReader("✿", schema), "✿")[1]

    place, _ = reader_of(opening, ObjectReader("✿"), "✿")
    out, rest, _ = read_each_way(new, text[place:])
    return json.loads(out), rest


@given(json_objects, st.booleans(), st.sampled_from([None, 1, "\t"]), st.booleans())
def test_an_object_in_quotes_is_the_object(
    value: dict[str, Any], in_ascii: bool, indent: Any, twice_in_ascii: bool
) -> None:
    text = json.dumps(value, ensure_ascii=in_ascii, indent=indent)
    assert read_quoted(json.dumps(text, ensure_ascii=twice_in_ascii)) == (value, '"')


@given(st.dictionaries(printable, printable | st.integers() | st.none(), max_size=3))
def test_an_object_in_pythons_quotes_is_the_object(value: dict[str, Any]) -> None:
    text = repr(json.dumps(value, ensure_ascii=False))
    assert read_quoted(text) == (value, text[0])


@pytest.mark.parametrize(
    ("text", "meant", "rest"),
    [
        (r'"{\"a\": \"x\\ny\"}" then', {"a": "x\ny"}, '" then'),
        (r"'{\"a\": \"it\'s\"}'", {"a": "it's"}, "'"),
        (r"""'{"a": "say \"hi\" now"}'""", {"a": 'say "hi" now'}, "'"),
        (r"""'{"a": "x\ny", "b": "\x41\q"}'""", {"a": "x\ny", "b": "Aq"}, "'"),
        (r"""'{"a": "it's", "b": 'x'}'""", {"a": "it's", "b": "x"}, "'"),
        (r'"{"a": "x\ny\\z"}"', {"a": "x\ny\\z"}, '"'),
        (r"""'{'a': True,}'""", {"a": True}, "'"),
        (r'"{a: 1, b: \"x\"}"', {"a": 1, "b": "x"}, '"'),
        (r'"\n{\n \"a\": {} \n}\n"', {"a": {}}, r'\n"'),
        ("'{}'", {}, "'"),
        (r'"{\"\ud83c\udf38\": \"\ud83c\"}"', {"🌸": "\ud83c"}, '"'),
        (r'"{\"a\": \"\ud83c\u4e2d\\u4e2d\udf38\"}"', {"a": "\ud83c中中\udf38"}, '"'),
        (r'"{\"a\": \"\u12', {"a": ""}, None),
        (r'"{\"a\": \"\ud83c\u', {"a": ""}, None),
        (r'"{\"a\": \"x\"" ', {"a": "x"}, None),
        (r'"{\"a\": [1"✿FUNCTION✿', {"a": [1]}, "✿FUNCTION✿"),
        (r'"{\"a\": [1✿FUNCTION✿', {"a": [1]}, "✿FUNCTION✿"),
        (r'"{\"a\": \u273f', {"a": None}, r"\u273f"),
        (r'"{\"a\": 1"' + " " * 65 + "x", {"a": 1}, " " * 65 + "x"),
        (r'"{\"a\": \"✿\"}"', {"a": "✿"}, '"'),
    ],
)
def test_quotes_and_escapes_around_an_object_are_taken_away(text: str, meant: Any, rest: str | None) -> None:
    assert read_quoted(text) == (meant, rest)


def test_an_object_in_quotes_is_read_by_its_schema() -> None:
    assert read_quoted(r'"{\"count\": \"5\", \"tags\": \"[1]\"}"', SCHEMA) == ({"count": 5, "tags": ["1"]}, '"')


def test_an_object_in_quotes_is_passed_on_while_it_comes() -> None:
    opening = OBJECT.match(r'"{\"a\": \"')
    assert opening
    _, reader = reader_of(opening, ObjectReader("✿"), "✿")
    assert reader.feed(r"{\"a\": \"") == ('{"a": "', None)
    assert reader.midway
    assert reader.feed("words") == ("words", None)
    assert reader.feed("\\") == ("", None)
    assert reader.feed(r"\n") == (r"\n", None)
    assert not reader.over


@given(st.sampled_from(["'", '"']), st.sampled_from(["", "\\"]), st.sampled_from(["'", '"']), pieces)
def test_any_text_at_all_in_quotes_becomes_an_object(outer: str, escape: str, inner: str, said: list[str]) -> None:
    value, _ = read_quoted(f"{outer}{{{escape}{inner}{''.join(said)}", SCHEMA)
    assert isinstance(value, dict)


@given(st.sampled_from(['"', "'"]), st.text("\\nt \n{}a:\"'$", max_size=8), st.text(max_size=3))
def test_what_may_still_become_an_object_is_waited_for(outer: str, begin: str, behind: str) -> None:
    """So that the decision never depends on where the text was cut."""
    text = outer + begin + behind
    for end in range(1, len(text) + 1):
        if OBJECT_SO_FAR.fullmatch(text[:end]) is None:
            assert bool(OBJECT.match(text[:end])) == bool(OBJECT.match(text))
            break
        assert OBJECT.match(text[:end]) is None
