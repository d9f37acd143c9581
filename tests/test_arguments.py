"""The argument readers: valid JSON verbatim, everything else mended into JSON, however it is cut.

Source: RFC 8259, JSON5 1.0 (as the json5 package reads it), Python's repr, and what models were seen to write.
"""

import json
import math
from typing import Any

import json5
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from proxy.formats.arguments import MAX_DEPTH, ObjectReader
from proxy.formats.fences import BareReader, BlockReader, fenced
from proxy.formats.parsing import Reader
from test_laws import json_objects, json_texts


def read_with(reader: Reader, text: str, size: int) -> tuple[str, str | None, int]:
    """The JSON text, what follows it (None if the end completed it), and the number of repairs."""
    out = ""
    for start in range(0, len(text), size):
        said, rest = reader.feed(text[start : start + size])
        out += said
        if rest is not None:
            return out, rest + text[start + size :], reader.repairs
    return out + reader.close(), None, reader.repairs


def read(text: str) -> tuple[str, str | None, int]:
    """The same, which must not depend on how the text is cut."""
    whole = read_with(ObjectReader("✿"), text, max(len(text), 1))
    assert read_with(ObjectReader("✿"), text, 1) == whole
    assert read_with(ObjectReader("✿"), text, 3) == whole
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
        ]
    ),
    min_size=1,
    max_size=6,
)
between = st.sampled_from(["", " ", "\n", "/* x */", "// y\n", "/**/", "\u00a0", "/* * / */", "\t"])


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
    whole = read_with(BlockReader("code", fence, "✿"), text, max(len(text), 1))
    assert read_with(BlockReader("code", fence, "✿"), text, 1) == whole
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
    assert read_with(BlockReader("code", "```", "✿"), "print(1)\n", 4)[2] == 1


@pytest.mark.parametrize(
    ("text", "value", "rest"),
    [
        ("Paris, \n France \n", "Paris, \n France", None),
        ("a✿b", "a", "✿b"),
        ("", "", None),
        ('"x"\t\\', '"x"\t\\', None),
    ],
)
def test_bare_text_ends_at_a_marker_or_at_the_end(text: str, value: str, rest: str | None) -> None:
    whole = read_with(BareReader("city", "✿"), text, max(len(text), 1))
    assert (json.loads(whole[0]), whole[1]) == ({"city": value}, rest)
    assert read_with(BareReader("city", "✿"), text, 1) == whole


def test_no_number_is_lost_by_mending() -> None:
    out, _, _ = read("{a: 0xDEADBEEF, b: -0x10, c: +1.5e3, d: .5e-1}")
    values = json.loads(out)
    assert values == {"a": 0xDEADBEEF, "b": -16, "c": 1500.0, "d": values["d"]}
    assert math.isclose(values["d"], 0.05)
