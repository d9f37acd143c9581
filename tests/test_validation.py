"""What is wrong with a JSON text by a schema; and that no schema can do any harm.

Source: JSON Schema 2020-12, with the jsonschema package as the reference for what is valid.
"""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from proxy.validation import fault_in
from scripted import ScriptedUpstream

CITY: Any = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "array", "items": {"type": "integer", "minimum": 0}}},
    "required": ["city"],
    "additionalProperties": False,
}

# -- what is wrong -----------------------------------------------------------------------------------------

FAULTS: list[tuple[Any, str, str]] = [
    (CITY, '{"city": 1}', "at 'city': 1 is not of type 'string'"),
    (CITY, '{"city": "x", "days": [1, -2]}', "at 'days[1]': -2 is less than the minimum of 0"),
    (CITY, "[]", "[] is not of type 'object'"),
    (
        CITY,
        '{"town": 1}',
        "'city' is a required property; Additional properties are not allowed ('town' was unexpected)",
    ),
    ({"anyOf": [{"type": "string"}, CITY]}, '{"city": 1}', "at 'city': 1 is not of type 'string'"),
    ({"enum": ["C", "F"]}, '"K"', "'K' is not one of ['C', 'F']"),
    ({"$ref": "#/$defs/City", "$defs": {"City": CITY}}, "{}", "'city' is a required property"),
    ({"uniqueItems": True}, '[{"a": 1, "b": 2}, {"b": 2, "a": 1}]', "the items must differ from one another"),
]


@pytest.mark.parametrize(("schema", "text", "fault"), FAULTS)
def test_a_fault_says_where_it_is_and_what(schema: Any, text: str, fault: str) -> None:
    assert fault_in(text, schema) == fault


def test_of_many_faults_the_first_are_told() -> None:
    told = fault_in(json.dumps([1] * 50), {"items": {"type": "string"}})
    assert told is not None
    assert [part.partition(":")[0] for part in told.split("; ")] == ["at '[0]'", "at '[1]'", "at '[2]'"]


def test_a_fault_of_a_long_text_is_short_and_still_says_what_is_wrong() -> None:
    """The message quotes the text first."""
    told = fault_in(json.dumps({"a": "x" * 5000}), {"properties": {"a": {"type": "integer"}}})
    assert told is not None
    assert told.startswith("at 'a': 'xxx")
    assert told.endswith("xxx' is not of type 'integer'")
    assert len(told) < 350


@pytest.mark.parametrize(
    "text",
    ["", "{", "{'a': 1}", '{"a": 1,}', "NaN", '{"a": Infinity}', '{"a": "\n"}', "1 2", "[" * 100_000, "9" * 5000],
)
def test_what_no_json_parser_takes_is_a_fault(text: str) -> None:
    assert fault_in(text, {}) == "it is not valid JSON"


# -- what is right -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (CITY, '{"city": "Rome", "days": []}'),
        ({"type": "string", "nullable": True}, "null"),
        ({"enum": ["C"], "nullable": True}, "null"),
        ({"type": "integer", "minimum": 1, "exclusiveMinimum": False}, "1"),
        ({"type": "integer", "maximum": 2, "exclusiveMaximum": True}, "1"),
        ({"uniqueItems": True}, "[1, 2, [1], [2]]"),
        ({"uniqueItems": True}, '"aa"'),
        ({"uniqueItems": False}, "[1, 1]"),
        ({"additionalProperties": False, "patternProperties": {"^x-": {}}}, '{"x-a": 1}'),
        ({"definitions": {"P": {"type": "integer"}}, "$ref": "#/definitions/P"}, "1"),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "items": {"type": "integer"}}, "[1]"),
    ],
)
def test_what_the_schema_means_to_allow_is_no_fault(schema: Any, text: str) -> None:
    """OpenAPI's `nullable` and draft 4's flags are in many a tool's schema."""
    assert fault_in(text, schema) is None


@pytest.mark.parametrize(("nullable", "text"), [(True, "1"), (False, "null"), ("yes", "null")])
def test_nullable_allows_null_and_nothing_else(nullable: Any, text: str) -> None:
    assert fault_in(text, {"type": "string", "nullable": nullable})


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, 2.0]) | st.sampled_from(["", "a", "bb"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=6,
)
SMALL = st.integers(0, 3)
NAMES = st.sampled_from("ab")


TYPES = ["object", "array", "string", "integer", "number", "boolean", "null", ["array", "null"]]


def schemas_of(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Schemas of what tools' schemas are made of."""
    several = st.lists(inner, min_size=1, max_size=2)
    words: dict[str, st.SearchStrategy[Any]] = {
        "type": st.sampled_from(TYPES),
        "properties": st.dictionaries(NAMES, inner, max_size=2),
        "required": st.lists(NAMES, unique=True, max_size=2),
        "additionalProperties": inner,
        "items": inner,
        "prefixItems": several,
        "anyOf": several,
        "oneOf": several,
        "allOf": several,
        "not": inner,
        "enum": st.lists(VALUES, min_size=1, max_size=3),
        "const": VALUES,
        "minimum": SMALL,
        "exclusiveMaximum": SMALL,
        "multipleOf": st.sampled_from([2, 0.5]),
        "minLength": SMALL,
        "maxItems": SMALL,
        "uniqueItems": st.booleans(),
        "maxProperties": SMALL,
        "contains": inner,
        "dependentRequired": st.just({"a": ["b"]}),
        "if": inner,
        "then": inner,
        "else": inner,
    }
    rules = st.one_of([st.tuples(st.just(word), rule) for word, rule in words.items()])
    return st.lists(rules, max_size=3).map(dict)


SIMPLE = schemas_of(st.booleans())
SCHEMAS = schemas_of(SIMPLE | st.sampled_from([{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}]))


@given(value=VALUES, schema=SCHEMAS, one=SIMPLE, other=SIMPLE)
def test_what_is_valid_is_what_the_reference_says(value: Any, schema: Any, one: Any, other: Any) -> None:
    whole = {**schema, "$defs": {"A": one, "B": other}}
    assert (fault_in(json.dumps(value), whole) is None) == Draft202012Validator(whole).is_valid(value)


# -- what must do no harm ----------------------------------------------------------------------------------

WORDS = sorted(
    {*Draft202012Validator.VALIDATORS, "$defs", "$id", "$anchor", "$schema", "nullable", "format", "default"}
)
TEXTS = st.text(max_size=5) | st.sampled_from(
    [
        "#",
        "#a",
        "#/$defs",
        "#/x/0",
        "string",
        "array",
        "object",
        "float",
        "(a+)+$",
        "[",
        "http://json-schema.org/draft-07/schema#",
    ]
)
JUNK: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4)
        | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=12,
)


@given(value=JUNK | VALUES, schema=st.dictionaries(st.sampled_from(WORDS), JUNK, max_size=5))
def test_no_schema_makes_it_raise(value: Any, schema: Any) -> None:
    told = fault_in(json.dumps(value), schema)
    assert told is None or told


@given(text=st.text(max_size=20))
def test_no_text_makes_it_raise(text: str) -> None:
    """What is found to be right is an object with a city, as hypothesis comes to write one now and then."""
    fault = fault_in(text, CITY)
    assert fault or isinstance(json.loads(text)["city"], str)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "float"},
        {"$ref": "#/nowhere"},
        {"$ref": "#"},
        {"multipleOf": 0},
        {"items": [{"type": "string"}]},
        {"minLength": "2", "minimum": "2", "minItems": "2"},
        {"properties": []},
        {"anyOf": 1},
    ],
    ids=repr,
)
@pytest.mark.parametrize("text", ["1", '"1"', "[1]", '{"a": 1}'])
def test_a_schema_that_is_none_blames_nobody(schema: Any, text: str) -> None:
    assert fault_in(text, schema) is None


@pytest.mark.parametrize(("levels", "found"), [(45, True), (200, False)])
def test_schemas_are_followed_to_a_depth_that_no_tool_has(levels: int, found: bool) -> None:
    """At the end of Python's stack `referencing` panics, which is no Exception, and ends more than the check."""
    schema: Any = {"type": "string"}
    for _ in range(levels):
        schema = {"properties": {"a": schema}}
    text = '{"a":' * levels + "1" + "}" * levels
    assert (fault_in(text, schema) is not None) == found


def test_what_is_deeper_than_the_stack_blames_nobody() -> None:
    schema = {"$ref": "#/$defs/List", "$defs": {"List": {"items": {"$ref": "#/$defs/List"}, "type": "array"}}}
    assert fault_in("[" * 900 + "]" * 900, schema) is None
    deep: Any = {"type": "string"}
    for _ in range(5000):
        deep = {"not": deep}
    assert fault_in("1", deep) is None


@pytest.mark.parametrize("word", ["$ref", "$dynamicRef", "$schema", "$id"])
def test_nothing_is_fetched(upstream: ScriptedUpstream, word: str) -> None:
    """Or a caller could have Florette ask whatever it can reach."""
    elsewhere = f"{upstream.url}/schema.json"
    for schema in ({word: elsewhere}, {"properties": {"a": {word: elsewhere, "$ref": "other.json"}}}):
        assert fault_in('{"a": 1}', schema) is None
    assert upstream.received == []


#: Takes a regular expression's matcher longer than there is time.
EVIL = "(a+)+$"
LONG = "a" * 60 + "!"
DIALECT = "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize(
    "schema",
    [
        {"items": {"pattern": EVIL}},
        {"items": {"propertyNames": {"pattern": EVIL}}},
        {"items": {"patternProperties": {EVIL: {}}}},
        {"items": {"patternProperties": {EVIL: {}}, "additionalProperties": False}},
        {"items": {"patternProperties": {EVIL: {}}, "unevaluatedProperties": False}},
        {"allOf": [{"items": {"patternProperties": {EVIL: {}}}}], "unevaluatedItems": False},
        {"items": {"$schema": DIALECT, "pattern": EVIL}},
        {"items": {"$schema": DIALECT, "patternProperties": {EVIL: {}}}},
        {"$schema": DIALECT, "items": {"anyOf": [{"pattern": EVIL}, {"$ref": "#"}]}},
        {"items": {"format": "regex"}},
    ],
    ids=repr,
)
@pytest.mark.parametrize("item", [LONG, {LONG: LONG}])
def test_no_pattern_of_a_schema_is_run(schema: Any, item: Any) -> None:
    """It would not end: this test fails by taking for ever."""
    assert fault_in(json.dumps([item]), schema) is None


def bomb(word: str, end: Any) -> Any:
    """A schema of 60 lines that means 2**60 schemas."""
    steps = {f"s{number}": {word: [{"$ref": f"#/$defs/s{number + 1}"}] * 2} for number in range(60)}
    return {"$ref": "#/$defs/s0", "$defs": {**steps, "s60": end}}


HEAVY = {
    "anyOf": (bomb("anyOf", {"type": "string"}), "1"),
    "oneOf": (bomb("oneOf", {}), "1"),
    "allOf": (bomb("allOf", {"type": "integer"}), "1"),
    "long quotes": ({"anyOf": [{"type": "integer"}] * 20_000}, json.dumps("x" * 100_000)),
    "many items": ({"anyOf": [{"items": {"type": "string"}}] * 100}, json.dumps([1] * 100_000)),
    "many values": ({"items": {"enum": list(range(10_000))}}, json.dumps([-1] * 10_000)),
    "unlike one another": ({"uniqueItems": True}, json.dumps([{"a": number} for number in range(50_000)])),
}


@pytest.mark.parametrize(("schema", "text"), HEAVY.values(), ids=HEAVY)
def test_what_takes_too_long_to_check_is_given_up(schema: Any, text: str) -> None:
    """All callers wait meanwhile. Each of these would take minutes at least."""
    told = fault_in(text, schema)
    assert told is None or "is not one of" in told


def test_what_tools_are_given_is_checked_to_its_end() -> None:
    items = {"type": "object", "properties": {name: {"type": "string"} for name in "abcde"}, "required": ["a"]}
    given = [dict.fromkeys("abcde", "x")] * 999 + [{"b": "x"}]
    assert fault_in(json.dumps(given), {"items": items}) == "at '[999]': 'a' is a required property"
