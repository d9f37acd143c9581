"""The argument readers: valid JSON verbatim, everything else mended into JSON, however it is cut.

With a schema, what is valid stays verbatim, and what is not is mended only where nothing is lost by it.

Source: RFC 8259, JSON5 1.0 (as the json5 package reads it), Python's repr, and what models were seen to write.
"""

import gc
import json
import math
import time
from collections.abc import Callable
from typing import Any

import json5
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from parsing import parser_for
from parsing import read as read_answer
from proxy.events import CallArguments, CallStart, Runaway
from proxy.formats.arguments import MAX_BLANKS, MAX_DEPTH, ObjectReader
from proxy.formats.fences import BareReader, BlockReader, fenced
from proxy.formats.parsing import Reader
from proxy.formats.quoted import MAX_HELD, OBJECT, reader_of
from proxy.formats.schemas import ANYTHING, View, view_of
from proxy.formats.words import MAX_DIGITS
from proxy.wire import Tool
from test_laws import json_objects, json_texts
from test_schemas import documents, is_valid, values


def read_with(reader: Reader, text: str, size: int) -> tuple[str, str | None, int]:
    """The JSON text, what follows it (None if the end completed it), and the number of repairs."""
    out = ""
    for start in range(0, len(text), size):
        said, rest = reader.feed(text[start : start + size])
        out += said
        if rest is not None:
            return out, rest + text[start + size :], reader.repairs
    return out + reader.close(), None, reader.repairs


def read(text: str, schema: View = ANYTHING) -> tuple[str, str | None, int]:
    """The same, which must not depend on how the text is cut."""
    return read_each_way(lambda: ObjectReader("✿", schema), text)


def read_each_way(new: Callable[[], Reader], text: str) -> tuple[str, str | None, int]:
    whole = read_with(new(), text, max(len(text), 1))
    assert read_with(new(), text, 1) == whole
    assert read_with(new(), text, 3) == whole
    return whole


@given(json_texts(), st.text())
def test_valid_json_comes_out_verbatim(text: str, behind: str) -> None:
    assert read(text + behind) == (text, behind, 0)


@given(json_objects)
def test_what_json5_can_write_is_read_as_json5_reads_it(value: dict[str, Any]) -> None:
    text = json5.dumps(value, trailing_commas=True, indent=1)
    assert json.loads(read(text)[0]) == value


json5_texts = st.lists(
    st.sampled_from(
        [
            *(
                "'a'",
                '"b"',
                "c",
                "$d",
                "1",
                ".5",
                "5.",
                "+1",
                "-2e3",
                "0x1F",
                "true",
                "null",
                "'it\\'s'",
                "'\"'",
            ),
            *(
                '"\\x41\\v\\0"',
                '"a\\\nb"',
                '"a\\\r\nb"',
                "'\\q\\u0041'",
                "[1,]",
                "{a: 1,}",
                "[]",
                "{}",
                "[{b: 2}, 3]",
            ),
            *("-.5", "12345678901234567890123", "1E5", '"\t"', '"\u2028"', '"/*"', "'//'", "false"),
            *("+0X1f", "-0x0", "1.e-2", "'\\\u2028\\b'", '"\\\r"', "{$a_1: 1, \u4e2d: 2, \\u0061b: 3}", "{NaN: [[]]}"),
        ]
    ),
    min_size=1,
    max_size=6,
)
between = st.sampled_from(
    [
        *("", " ", "\n", "/* x */", "// y\n", "/**/", "\u00a0", "/* * / */", "\t", "\v\f", "\ufeff", "\u2028"),
        *("// y\r", "// y\r\n", "// y\u2028", "//\u2029", "/***/", "/* // */"),
    ]
)


@given(json5_texts, st.lists(between, min_size=30, max_size=30))
def test_json5_means_what_json5_says(values: list[str], gaps: list[str]) -> None:
    gap = iter(gaps).__next__
    members = [f"{gap()}k{number}{gap()}:{gap()}{value}{gap()}" for number, value in enumerate(values)]
    text = "{" + ",".join(members) + "}"
    try:
        meant = json5.loads(text)
    except ValueError:
        assume(False)
    assert json.loads(read(text)[0]) == meant


pieces = st.lists(
    st.sampled_from([*"{}[],:\"'\\/*# \n\t✿-.0x", "null", "True", "a", "//", "/*", "*/", "\\u00", "\\x", '"k":', "1e"])
    | st.text(max_size=3),
    max_size=16,
)


@given(pieces)
def test_any_text_at_all_becomes_an_object(said: list[str]) -> None:
    out, _, _ = read("{" + "".join(said))
    assert isinstance(json.loads(out), dict)


#: What repr writes as it is; the rest it escapes in ways of its own (\x, \U), which JSON5 has not.
printable = st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" ", exclude_characters="\\"))


@given(st.dictionaries(printable, printable | st.integers() | st.none() | st.booleans(), max_size=4))
def test_pythons_way_to_write_a_dict_is_understood(value: dict[str, Any]) -> None:
    assert json.loads(read(repr(value))[0]) == value


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("{'a': 'it's', b: True, c: None,}", {"a": "it's", "b": True, "c": None}),
        ('{"a": "line1\nline2\x01"}', {"a": "line1\nline2\x01"}),
        ('{"a": "he said "hi" there", "b": 2}', {"a": 'he said "hi" there', "b": 2}),
        ('{"a": {"b": 1}', {"a": {"b": 1}}),
        ('{"a": [1, 2}', {"a": [1, 2]}),
        ('{"a": {"b": [1}, "c": 2}', {"a": {"b": [1]}, "c": 2}),
        ('{"a": 1]}', {"a": 1}),
        ('{"a": }', {"a": None}),
        ('{"a": , "b": 1}', {"a": None, "b": 1}),
        ('{"a"}', {"a": None}),
        ('{"a"', {"a": None}),
        ('{"a":', {"a": None}),
        ('{"a": "x', {"a": "x"}),
        ('{"a": "x"', {"a": "x"}),
        ('{"a": "x\\', {"a": "x"}),
        ('{"a": tru', {"a": "tru"}),
        ('{"a": 1 "b": 2}', {"a": 1, "b": 2}),
        ('{"a": 1\n"b": 2}', {"a": 1, "b": 2}),
        ('{"a": "x"\n"b": "y"}', {"a": "x", "b": "y"}),
        ('{"a" [1]}', {'a" [1]}': None}),
        ("{a: New York, b: 10:30, c: a/b}", {"a": "New York", "b": "10:30", "c": "a/b"}),
        ("{a: 1/, b: 2}", {"a": "1/", "b": 2}),
        ("{a: 007, b: 1_000, c: -}", {"a": "007", "b": "1_000", "c": "-"}),
        ("{a: 0x" + "f" * 5000 + "}", {"a": "0x" + "f" * 5000}),
        ("{a: NaN, b: -Infinity, c: undefined, d: NULL}", {"a": None, "b": None, "c": None, "d": None}),
        ("{a: +NaN, b: +infinity}", {"a": None, "b": None}),
        ("{a: 1\uff12, \uff11: \uff11}", {"a": "1\uff12", "\uff11": "\uff11"}),
        ("{a\\u0062\\ud83d: 1}", {"ab\ud83d": 1}),
        ("{,,a: 1,,b: 2,}", {"a": 1, "b": 2}),
        ("{a: [1,,2,]}", {"a": [1, 2]}),
        ("{a:: 1}", {"a": 1}),
        ('{"a": 1: 2}', {"a": "1: 2"}),
        ('{"a": "1": 2}', {"a": "1", "2": None}),
        ("{# python\na: 1 # more\n, b: None # last\n, c: #fff}", {"a": 1, "b": None, "c": "#fff"}),
        ("{a: 1 /* never closed", {"a": 1}),
        ('{"a": "\\u12", "b": "\\xz", "c": "\\q"}', {"a": "u12", "b": "xz", "c": "q"}),
        ('{"a": "\\', {"a": ""}),
        ('{"a": 1, /', {"a": 1}),
        ('{"a": b/', {"a": "b"}),
        ("{{a: 1}}", {"a": 1}),
        ("{a: [:1]}", {"a": [1]}),
        ('{"a": 1 \u00a0}', {"a": 1}),
        ("{a: 1}}", {"a": 1}),
        ('{"a" : "b" // c\n}', {"a": "b"}),
        ('{"path": /etc/hosts, /b: 2}', {"path": "/etc/hosts", "/b": 2}),
        ('{"a": "\\x41\\v\\0"}', {"a": "A\v\0"}),
        ('{"a": "x\\\r\ny\\\rz\\\nw"}', {"a": "xyzw"}),
    ],
)
def test_what_models_write_instead_of_json_is_mended(text: str, meant: Any) -> None:
    out, _, repairs = read(text)
    assert json.loads(out) == meant
    assert repairs > 0 or text == "{a: 1}}"


def test_of_a_name_that_comes_twice_both_pass() -> None:
    """Whoever reads the JSON takes the last."""
    assert read('{"a": 1, "a": 2}') == ('{"a": 1, "a": 2}', "", 0)


def test_a_repair_keeps_what_needs_none_verbatim() -> None:
    assert read('{ "a" : 1.50 ,\n "b" : "\\u5317\\/" , }')[0] == '{ "a" : 1.50 ,\n "b" : "\\u5317\\/"  }'


def test_many_digits_are_kept() -> None:
    text = '{"a": ' + "9" * 400 + "}"
    assert read(text) == (text, "", 0)


def test_a_marker_outside_a_string_ends_the_object() -> None:
    out, rest, repairs = read('{"a": [1, "✿", {"b": ✿FUNCTION✿: f')
    assert (json.loads(out), rest, repairs) == ({"a": [1, "✿", {"b": None}]}, "✿FUNCTION✿: f", 4)


@pytest.mark.parametrize(("text", "rest"), [("{a✿b: 1}", "✿b: 1}"), ("{a: b✿}", "✿}"), ('{"a"✿', "✿"), ("{✿", "✿")])
def test_a_marker_ends_the_object_in_every_place(text: str, rest: str) -> None:
    out, behind, _ = read(text)
    assert isinstance(json.loads(out), dict)
    assert behind == rest


def test_nesting_has_a_limit() -> None:
    """Deeper values are cut off, so that the caller's own JSON parser can read what it gets."""
    out, rest, _ = read('{"a":' + "[" * 500)
    depth, value = 0, json.loads(out)["a"]
    while value:
        depth, value = depth + 1, value[0]
    assert depth == MAX_DEPTH - 1
    assert rest is not None


def test_a_reader_knows_whether_it_is_inside_a_string() -> None:
    reader = ObjectReader("✿")
    reader.feed('{"a": "x')
    assert reader.midway
    reader.feed('"')
    assert not reader.midway


# -- code --------------------------------------------------------------------------------------------------


def read_block(text: str, fence: str = "```") -> tuple[Any, str | None]:
    whole = read_with(BlockReader("code", fence), text, max(len(text), 1))
    assert read_with(BlockReader("code", fence), text, 1) == whole
    return json.loads(whole[0])["code"], whole[1]


@pytest.mark.parametrize(
    ("text", "code", "rest"),
    [
        ("print(1)\n```\n", "print(1)", None),
        ("print(1)\n```", "print(1)", None),
        ("a\n\n```", "a\n", None),
        ("```", "", None),
        ("", "", None),
        ("never closed\n", "never closed", None),
        ("a\n  ``` \nprose", "a", None),
        ("a\n```bash\nls\n```\nb\n```\n", "a\n```bash\nls\n```\nb", None),
        ("s = '''\n```\nx\n```\n'''\n```\nprose", "s = '''\n```\nx\n```\n'''", None),
        ("a\n```\nprose\n```py\nb\n```\n", "a", "\nb\n```\n"),
        ("a\n# ✿FUNCTION✿: no\n```\n\n✿FUNCTION✿: f", "a\n# ✿FUNCTION✿: no", "✿FUNCTION✿: f"),
        ("a\n✿RESULT✿", "a", "✿RESULT✿"),
        ("a\n  ✿RESULT✿", "a", "✿RESULT✿"),
        ("a\n```" + "x" * 300 + "\n```", "a\n```" + "x" * 300, None),
        ("a\n" + " " * 300 + "b\n```", "a\n" + " " * 300 + "b", None),
        ("a\r\n```\r\n", "a\r", None),
    ],
)
def test_a_block_ends_at_its_last_fence(text: str, code: str, rest: str | None) -> None:
    got, behind = read_block(text)
    assert got == code
    assert (behind or "") == (rest or "").removeprefix("\n") or behind == rest


@given(st.text())
def test_code_survives_its_block(code: str) -> None:
    assume(not any(line.lstrip().startswith("✿") for line in code.split("\n")))
    block = fenced(code, "py")
    fence, _, body = block.partition("py\n")
    assert read_block(body, fence)[0] == code


def test_an_unclosed_block_counts_as_a_repair() -> None:
    assert read_with(BlockReader("code", "```"), "print(1)\n", 4)[2] == 1


@pytest.mark.parametrize(
    ("text", "value", "rest"),
    [
        ("Paris, \n France \n", "Paris, \n France", None),
        ("a✿FUNCTION✿b", "a", "✿FUNCTION✿b"),
        ("a✿b ✿ARGS✿", "a✿b", "✿ARGS✿"),
        ("a ✿FUNC", "a ✿FUNC", None),
        ("✿✿", "✿✿", None),
        ("", "", None),
        ('"x"\t\\', '"x"\t\\', None),
    ],
)
def test_bare_text_ends_at_a_marker_or_at_the_end(text: str, value: str, rest: str | None) -> None:
    whole = read_with(BareReader("city"), text, max(len(text), 1))
    assert (json.loads(whole[0]), whole[1]) == ({"city": value}, rest)
    assert read_with(BareReader("city"), text, 1) == whole


def test_no_number_is_lost_by_mending() -> None:
    out, _, _ = read("{a: 0xDEADBEEF, b: -0x10, c: +1.5e3, d: .5e-1}")
    values = json.loads(out)
    assert values == {"a": 0xDEADBEEF, "b": -16, "c": 1500.0, "d": values["d"]}
    assert math.isclose(values["d"], 0.05)


# -- by schema ---------------------------------------------------------------------------------------------

SCHEMA = view_of(
    {
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "label": {"type": ["string", "null"]},
            "unit": {"enum": ["1", "2"]},
            "count": {"type": "integer"},
            "ratio": {"type": "number"},
            "half": {"enum": [0.5]},
            "flag": {"type": "boolean"},
            "limit": {"type": ["integer", "null"]},
            "tags": {"type": "array", "items": {"type": "string"}},
            "counts": {"type": "array", "items": {"type": "integer"}},
            "pair": {"prefixItems": [{"type": "integer"}, {"type": "boolean"}]},
            "filter": {"type": "object", "properties": {"max": {"type": "integer"}, "in": {"$ref": "#"}}},
            "either": {"anyOf": [{"type": "array"}, {"type": "object"}]},
            "mixed": {"type": ["integer", "string"]},
            "any": {},
        },
    }
)


@pytest.mark.parametrize(
    ("text", "given"),
    [
        # numbers
        ('{"count": "5"}', '{"count": 5}'),
        ("{'count': '-5'}", '{"count": -5}'),
        ('{"count": "5.0"}', '{"count": 5.0}'),
        ('{"count": "' + "9" * 400 + '"}', '{"count": ' + "9" * 400 + "}"),
        ('{"ratio": "5"}', '{"ratio": 5}'),
        ('{"ratio": "-1.50e3"}', '{"ratio": -1.50e3}'),
        ('{"half": "0.50"}', '{"half": 0.50}'),
        ('{"limit": "5"}', '{"limit": 5}'),
        # literals
        ('{"flag": "true"}', '{"flag": true}'),
        ('{"flag": "False"}', '{"flag": false}'),
        ('{"limit": "null"}', '{"limit": null}'),
        ('{"limit": "None"}', '{"limit": null}'),
        # arrays and objects
        ('{"tags": "[\\"a\\", \\"5\\"]"}', '{"tags": ["a", "5"]}'),
        ('{"tags": " \\n[ ]\\t"}', '{"tags": [ ]}'),
        ('{"counts": "[\\"1\\", 2]" , "count": "3"}', '{"counts": [1, 2] , "count": 3}'),
        ('{"filter": "{\\"max\\": \\"5\\", \\"x\\": {}}"\n}', '{"filter": {"max": 5, "x": {}}\n}'),
        ('{"filter": {"in": {"count": "1"}}}', '{"filter": {"in": {"count": 1}}}'),
        ('{"either": "[]", "either": "{}"}', '{"either": [], "either": {}}'),
        ('{"counts": ["1", "2"], "pair": ["1", "true", "2"]}', '{"counts": [1, 2], "pair": [1, true, "2"]}'),
        # words where only a string may stand, with the model's own characters
        ('{"text": 5}', '{"text": "5"}'),
        ('{"text": -1.50e+3, "label": true}', '{"text": "-1.50e+3", "label": "true"}'),
        ("{text: True, label: 0x1F}", '{"text": "True", "label": "0x1F"}'),
        ("{text: +4930123, label: .5}", '{"text": "+4930123", "label": ".5"}'),
        ("{text: NaN, label: Infinity}", '{"text": "NaN", "label": "Infinity"}'),
        ('{"tags": [1, "2"], "unit": 1}', '{"tags": ["1", "2"], "unit": "1"}'),
        # names that are mended, and one that comes escaped
        ('{count: "5", \'flag\': "true"}', '{"count": 5, "flag": true}'),
        ('{"c\\u006funt": "5"}', '{"c\\u006funt": 5}'),
        ('{"count": "5', '{"count": 5}'),
        ('{"tags": "[]', '{"tags": []}'),
    ],
)
def test_what_the_schema_rules_out_is_mended_if_nothing_is_lost(text: str, given: str) -> None:
    out, _, repairs = read(text, SCHEMA)
    assert out == given
    assert repairs > 0


@pytest.mark.parametrize(
    "text",
    [
        '{"text": "5", "label": "null", "unit": "1"}',
        '{"text": "[1]", "any": "{}", "mixed": "5", "mixed": 5, "mixed": "null"}',
        '{"any": 5, "other": "5", "any": {"count": "5"}, "pair": [1, true, "x"]}',
        '{"label": null, "limit": null, "text": null, "count": 1e3}',
        # what is no value of the kind that is due stays
        '{"count": "five", "count": "5 ", "count": "5.5", "count": "05", "count": "", "count": "1e3", "count": "-"}',
        '{"count": "true", "flag": "5", "flag": "TRUE", "flag": "yes", "count": "null", "flag": 1, "count": true}',
        '{"ratio": "1e999", "ratio": "NaN", "ratio": "0x1F", "half": "1_0", "count": "\\uff15"}',
        '{"tags": "a, b", "tags": "{}", "filter": "[]", "tags": "[1,]", "tags": "[NaN]", "tags": "[1] x", "tags": "["}',
        '{"tags": "[\\"\\ud800\\"]", "filter": "{\'a\': 1}", "tags": "5", "counts": "\\u005b]", "tags": ""}',
        '{"count": "' + "9" * (MAX_DIGITS + 1) + '"}',
        '{"tags": "' + " " * 65 + '[]"}',
        '{"tags": "[' + " " * MAX_BLANKS + ' ]"}',
        '{"tags": "' + "[" * MAX_DEPTH + "]" * MAX_DEPTH + '"}',
        '{"tags": "' + "[" * 5000 + '"}',
        '{"tags": {"count": "5"}, "text": ["1"], "text": {"count": "1"}, "filter": ["1"]}',
    ],
)
def test_whatever_else_the_schema_says_valid_json_passes_verbatim(text: str) -> None:
    assert read(text, SCHEMA) == (text, "", 0)


def test_a_string_that_is_held_too_long_is_passed_on_as_one() -> None:
    reader = ObjectReader("✿", SCHEMA)
    begin = '{"tags": "[1' + " " * (MAX_HELD - 2)
    assert reader.feed(begin) == ('{"tags": ', None)
    assert reader.feed(" ") == (begin[9:] + " ", None)
    assert reader.feed("x") == ("x", None)
    read(begin + " x]" + '", "count": "1"}', SCHEMA)


def test_quotes_that_should_have_been_escaped_make_it_a_string() -> None:
    out, _, _ = read('{"tags": "[ "a b" and c ]"}', SCHEMA)
    assert json.loads(out) == {"tags": '[ "a b" and c ]'}


def test_a_string_is_held_back_only_while_it_can_be_something_else() -> None:
    reader = ObjectReader("✿", SCHEMA)
    assert reader.feed('{"count": "') == ('{"count": ', None)
    assert reader.midway
    assert reader.feed("a") == ('"a', None)
    assert reader.feed("b") == ("b", None)
    assert reader.feed('", "tags": "\\n') == ('", "tags": ', None)
    assert reader.feed("x") == ('"\\nx', None)


@given(documents, st.dictionaries(st.sampled_from(["a", "b"]), values, max_size=3), st.integers(1, 5))
def test_a_valid_instance_is_never_changed_and_streams_as_without_a_schema(
    schema: Any, instance: dict[str, Any], size: int
) -> None:
    assume(is_valid(instance, schema))
    text = json.dumps(instance)
    typed, untyped = ObjectReader("✿", view_of(schema)), ObjectReader("✿")
    for start in range(0, len(text), size):
        assert typed.feed(text[start : start + size]) == untyped.feed(text[start : start + size])
    assert typed.repairs == 0


digits = st.integers().map(str)
scalars: dict[str, st.SearchStrategy[Any]] = {
    "integer": st.integers(),
    "number": st.floats(allow_nan=False, allow_infinity=False) | st.integers(),
    "boolean": st.booleans(),
    "null": st.none(),
    "string": st.text(max_size=5) | digits | st.sampled_from(["true", "null", "[1]", "{}", "1.50"]),
}


@st.composite
def twisted(draw: st.DrawFn, depth: int = 2) -> tuple[Any, Any, Any]:
    """A schema, a valid value, and the value as a model may write it: in quotes, or without them."""
    kind = draw(st.sampled_from([*scalars, "array", "object"] if depth else [*scalars]))
    quoted = draw(st.booleans())
    if kind == "array":
        schema, value, written = draw(twisted(depth - 1))
        size = draw(st.integers(0, 2))
        written = [written] * size
        return {"type": kind, "items": schema}, [value] * size, json.dumps(written) if quoted else written
    if kind == "object":
        members = draw(st.dictionaries(st.text(max_size=3), twisted(depth - 1), max_size=2))
        written = {name: member[2] for name, member in members.items()}
        schema = {"type": kind, "properties": {name: member[0] for name, member in members.items()}}
        return schema, {name: member[1] for name, member in members.items()}, json.dumps(written) if quoted else written
    value = draw(scalars[kind])
    if kind == "string":
        bare = value.removeprefix("-").isdecimal() and str(int(value)) == value
        return {"type": kind}, value, int(value) if bare and quoted else value
    return {"type": kind}, value, draw(st.sampled_from([str(value), json.dumps(value)])) if quoted else value


@given(st.dictionaries(st.text(max_size=3), twisted(), max_size=3), st.booleans())
def test_what_a_model_put_into_quotes_comes_out_as_it_was_meant(
    members: dict[str, tuple[Any, Any, Any]], ascii_only: bool
) -> None:
    schema = {"type": "object", "properties": {name: member[0] for name, member in members.items()}}
    text = json.dumps({name: member[2] for name, member in members.items()}, ensure_ascii=ascii_only)
    out, rest, _ = read(text, view_of(schema))
    assert json.loads(out) == {name: member[1] for name, member in members.items()}
    assert rest == ""


@given(documents, pieces)
def test_any_text_at_all_becomes_an_object_whatever_the_schema(schema: Any, said: list[str]) -> None:
    text = "".join(said)
    for begin in ("{", '{"a":', '{"a": "', '{"a": ["', '{"b": {"a": "['):
        out, _, _ = read(begin + text, view_of(schema))
        assert isinstance(json.loads(out), dict)


# -- a model that goes on for ever -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        ("{", '"a": 1}'),
        ('{"a"', ": 1}"),
        ('{"a":', "1}"),
        ('{"a": 1', "}"),
        ('{"a": 1,', '"b": 2}'),
        ('{"a": x', "y}"),
        ('{"a": "x"', "}"),
        ('{"a": [', "1]}"),
        ('{"a": [1', ", 2]}"),
        ("{/* x", "*/a: 1}"),
        ("{// x", "\na: 1}"),
        ("{a: 1 // x\n", "}"),
        ("{a: x\n", "}"),
    ],
)
@pytest.mark.parametrize("blank", [" ", "\t", "\u00a0"])
def test_blanks_without_end_are_a_runaway(begin: str, end: str, blank: str) -> None:
    """The bound lies far above what an honest pretty-print needs, which the next test shows."""
    few = blank * (MAX_BLANKS - 1)
    out, rest, _ = read(begin + few + end)
    assert isinstance(json.loads(out), dict)
    assert rest == ""
    outs = set()
    for size in (1, 7, 10**5):
        reader = ObjectReader("✿")
        text = begin + few + blank * 2 + end
        said = [reader.feed(text[start : start + size]) for start in range(0, len(text), size) if not reader.runaway]
        assert reader.runaway
        outs.add("".join(out for out, _ in said))
    assert len(outs) == 1


def test_the_deepest_honest_pretty_print_passes() -> None:
    value: Any = 1
    for _ in range(MAX_DEPTH - 1):
        value = {"a": value}
    text = json.dumps({"a": value}, indent=8)
    assert read_with(ObjectReader("✿"), text, 100) == (text, "", 0)


def test_blanks_inside_a_string_may_be_many() -> None:
    text = json.dumps({"a": " " * 3 * MAX_BLANKS})
    assert read(text) == (text, "", 0)


def test_blanks_are_counted_in_a_row() -> None:
    many = " " * (MAX_BLANKS - 10)
    text = f"{{{many}/* x{many}*/{many}a{many}:{many}x{many}y{many},{many}'b'{many}:{many}[{many}'c'{many}]{many}}}"
    out, rest, _ = read(text)
    assert json.loads(out) == {"a": f"x{many}y", "b": ["c"]}
    assert rest == ""


BLANKS = " " * 10_000


@pytest.mark.parametrize(
    ("said", "arguments"),
    [
        (f'{{"a": {BLANKS}', '{"a": ' + " " * (MAX_BLANKS - 1)),
        (f'{{"a": 1{BLANKS}', '{"a": '),
        (f'{{"a": "x"{BLANKS}', '{"a": "x'),
        (rf'"{{\"a\": [{BLANKS}', '{"a": [' + " " * MAX_BLANKS),
    ],
)
def test_nothing_follows_a_runaway(said: str, arguments: str) -> None:
    text = f"Hm. ✿FUNCTION✿: now\n✿ARGS✿: {{}} x\n✿FUNCTION✿: get\n✿ARGS✿: {said}"
    for size in (1, 1000, 10**5):
        parser = parser_for()
        events = [event for start in range(0, len(text), size) for event in parser.feed(text[start : start + size])]
        assert isinstance(events[-1], Runaway)
        assert "blanks" in events[-1].reason
        assert "".join(event.text for event in events if isinstance(event, CallArguments)) == "{}" + arguments
        assert not parser.midway
        assert parser.feed("1}\n✿FUNCTION✿: now\n") == []
        assert parser.close() == []


# -- through the parser ------------------------------------------------------------------------------------

TYPED = Tool(
    name="look_up",
    parameters={
        "type": "object",
        "properties": {
            "query": {"type": "string"},
            "limit": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "tags": {"type": "array", "items": {"type": "string"}},
        },
    },
)
LISTED = Tool(
    name="old_style",
    parameters=[
        {"name": "query", "type": "string", "required": True},
        {"name": "limit", "type": "integer", "required": False},
    ],
)
OPTIONAL = Tool(
    name="may_be",
    parameters={"type": "object", "properties": {"city": {"anyOf": [{"type": "string"}, {"type": "null"}]}}},
)
BOTH = Tool(
    name="both",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string"}, "unit": {"type": ["string", "null"]}},
        "required": ["city", "unit"],
    },
)
CODE = Tool(name="code_interpreter")


@pytest.mark.parametrize(
    ("name", "said", "arguments"),
    [
        ("look_up", '{"query": 5, "limit": "7", "tags": "[\\"a\\"]"}', '{"query": "5", "limit": 7, "tags": ["a"]}'),
        ("look_up", '```json\n{"limit": "7"}\n```', '{"limit": 7}'),
        ("look_up", r'"{\"limit\": \"7\"}"', '{"limit": 7}'),
        ("look_up", """'{"limit": "7"}'""", '{"limit": 7}'),
        ("look_up", '"{"limit": "7"}"', '{"limit": 7}'),
        ("look_up", "'{}'", "{}"),
        ("look_up", "'{x} and y'", """{"query": "'{x} and y'"}"""),
        ("look_up", "'{", """{"query": "'{"}"""),
        ("look_up", "'tis", """{"query": "'tis"}"""),
        ("look_up", "Tru", '{"query": "Tru"}'),
        ("look_up", "trueish", '{"query": "trueish"}'),
        ("old_style", '{"query": 5, "limit": "7"}', '{"query": "5", "limit": 7}'),
        ("nobody_knows", '{"query": 5, "limit": "7"}', '{"query": 5, "limit": "7"}'),
        ("may_be", "Paris", '{"city": "Paris"}'),
        ("both", "Paris", '{"city": "Paris"}'),
        ("code_interpreter", r'"{\"code\": \"1\\n2\"}"', r'{"code": "1\n2"}'),
        ("code_interpreter", "'{}'.format(1)", """{"code": "'{}'.format(1)"}"""),
    ],
)
def test_arguments_are_read_by_the_tools_schema(name: str, said: str, arguments: str) -> None:
    text = f"✿FUNCTION✿: {name}\n✿ARGS✿: {said}"
    tools = [TYPED, LISTED, OPTIONAL, BOTH, CODE]
    whole = read_answer(text, parser_for(tools=tools))
    assert whole.calls == [(name, arguments)]
    assert read_answer(list(text), parser_for(tools=tools)) == whole


@pytest.mark.parametrize("said", ['"{x} and y"', '"Paris"', '"', '"{', "true", "False, then", "[1]", "-5"])
def test_an_input_that_is_no_object_is_text(said: str) -> None:
    text = f"✿FUNCTION✿: f\n✿ARGS✿: {said}"
    for tools in (None, [Tool(name="f", parameters=TYPED.parameters)]):
        assert read_answer(text, parser_for(tools=tools)).text == text
        assert read_answer(list(text), parser_for(tools=tools)).text == text


def test_a_value_in_doubt_is_nothing_that_was_said_if_the_model_is_cut_off() -> None:
    answer = read_answer('✿FUNCTION✿: f\n✿ARGS✿: {"a": "12', truncated=True)
    assert (answer.calls, answer.truncated) == ([("f", '{"a": ')], True)


def test_a_call_is_announced_as_soon_as_an_object_stands_in_quotes() -> None:
    parser = parser_for()
    assert parser.feed('✿FUNCTION✿: get\n✿ARGS✿: "') == []
    assert parser.feed('{\\"') == [CallStart(0, "call_0", "get"), CallArguments(0, '{"')]


# -- time --------------------------------------------------------------------------------------------------


def _times(count: int) -> dict[str, str]:
    return {
        "string": '{"text": "' + "some words " * 10 * count + '"}',
        "held": '{"tags": "[' + "1, " * count + '2]"}',
        "wrong": '{"counts": [' + '"12", "a", ' * 4 * count + "3]}",
        "nested": '{"filter": {' + '"in": {"count": "5", "x": [1.5, true]},' * 2 * count + "}}",
        "lines": '{"tags": "' + "\\\n" * 20 * count + '"}',
        "word": "{text: " + "some words " * 5 * count + "}",
        "key": '{"' + "some words " * 5 * count + '": 1}',
        "comments": "{" + "/* a * b */ // c\n" * 3 * count + "}",
        "quotes": '{"text": "' + 'say "hi" ' * 5 * count + '"}',
        "escapes": '{"text": "' + "\\n\\u4e2d\n\\q" * 5 * count + '"}',
        "quoted": '"{' + r"\"a\": \"\\n\"," * 2 * count + '}"',
    }


def _seconds(text: str) -> float:
    opening = OBJECT.match(text)
    reader: Reader = ObjectReader("✿", SCHEMA)
    if opening:
        _, reader = reader_of(opening, reader, "✿")
        text = text[1:]
    begun = time.process_time()
    for start in range(0, len(text), 4):
        reader.feed(text[start : start + 4])
    reader.close()
    return time.process_time() - begun


@pytest.mark.parametrize("name", _times(0))
def test_time_is_linear_in_the_text(name: str) -> None:
    """Four times the text takes about four times as long; sixteen times would be a square."""
    gc.collect()
    short, long = (min(_seconds(_times(count)[name]) for _ in range(2)) for count in (200, 800))
    assert long < 10 * short


@pytest.mark.parametrize("before", ["✿FUNCTION✿: f\n", "✿FUNCTION✿: f\n✿ARGS✿:"])
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_blanks_without_end_before_the_arguments_are_a_runaway_too(before: str, size: int) -> None:
    """As those inside: a small model can spend all its tokens on them."""
    parser = parser_for()
    text = before + " " * 10_000 + '{"a": 1}'
    events = [event for start in range(0, len(text), size) for event in parser.feed(text[start : start + size])]
    assert [type(event) for event in [*events, *parser.close()]] == [Runaway]


def test_a_call_that_is_cut_off_in_its_name_leaves_no_half_a_marker() -> None:
    """With a name that nobody told the model it may have been anything, so it stays."""
    assert read_answer("Look: ✿FUNCTION✿: get_cur", truncated=True).text == "Look:"
    assert read_answer("Look: ✿FUNCTION✿: get_cur", truncated=True).dropped == len("✿FUNCTION✿:get_cur")
    assert read_answer("Look: ✿FUNCTION✿: sing", truncated=True).text == "Look: ✿FUNCTION✿: sing"
    assert read_answer("Look: ✿FUNCTION✿: get_cur").text == "Look: ✿FUNCTION✿: get_cur"
