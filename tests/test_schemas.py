"""What a schema admits at a place: never less than a valid instance may hold, and nothing a caller sends can hurt it.

Source: JSON Schema 2020-12, as the jsonschema package checks it.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.exceptions import Unresolvable

from proxy.formats.schemas import ANYTHING, KINDS, View, view_of
from test_laws import json_values

NAMES = ("a", "b", "x-1", "d\n", "")
PATTERNS = ("", "^a", "b$", "^a$", "x-", "^.*$", ".+", "^x.+", "a.*", "[a-c]", "^a|b$")

scalars = st.sampled_from([None, True, False, 0, -3, 2.0, 1.5, 10**400, "", "a", "5", "null"])
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=6,
)
types = st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object"])
words = {"type": types | st.lists(types, min_size=1, max_size=3, unique=True), "nullable": st.booleans()}
plain_schemas: st.SearchStrategy[Any] = (
    st.booleans()
    | st.fixed_dictionaries({}, optional=words)
    | st.fixed_dictionaries({"enum": st.lists(scalars | st.just([]) | st.just({}), min_size=1, max_size=4)})
    | st.fixed_dictionaries({"const": values})
)
#: These stand for members and items only: the package does not survive a schema that is nothing but itself.
references = st.fixed_dictionaries(
    {"$ref": st.sampled_from(["#", "#/$defs/a", "#/$defs/b", "#/anyOf/0"])}, optional=words
)


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    some = st.lists(inner, min_size=1, max_size=3)
    member = inner | references
    named = {
        "properties": st.dictionaries(st.sampled_from(NAMES), member, max_size=3),
        "additionalProperties": member,
        "patternProperties": st.dictionaries(st.sampled_from(PATTERNS), member, max_size=2),
    }
    listed = {"items": member, "prefixItems": st.lists(member, min_size=1, max_size=3)}
    joined = {"anyOf": some, "oneOf": some, "allOf": some, "not": inner}
    return st.one_of(*(st.fixed_dictionaries({}, optional=words | more) for more in (named, listed, joined)))


schemas = st.recursive(plain_schemas, _nested, max_leaves=8)
documents = st.builds(
    lambda schema, definitions: {**schema, "$defs": definitions} if isinstance(schema, dict) else schema,
    schemas,
    st.dictionaries(st.sampled_from(["a", "b"]), schemas, max_size=2),
)


def is_valid(instance: Any, schema: Any) -> bool:
    """True if the package says so; not if the schema refers to nowhere."""
    try:
        return Draft202012Validator(schema, registry=Registry()).is_valid(instance)
    except Unresolvable:
        return False


def kind_of(value: Any) -> str:
    if isinstance(value, float) and not value.is_integer():
        return "fraction"
    names = {type(None): "null", bool: "boolean", int: "integer", float: "integer", str: "string"}
    return names.get(type(value)) or ("array" if isinstance(value, list) else "object")


def places(value: Any, view: View) -> Iterator[tuple[Any, View]]:
    """Each value in a value, and the view of the place where it stands."""
    yield value, view
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from places(item, view.item(index))
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from places(item, view.named(name))


@given(documents, values)
def test_a_view_is_never_narrower_than_its_schema(schema: Any, instance: Any) -> None:
    assume(is_valid(instance, schema))
    for value, view in places(instance, view_of(schema)):
        assert kind_of(value) in view.kinds


SCHEMA_WORDS = (
    *("type", "enum", "const", "nullable", "anyOf", "oneOf", "allOf", "$ref", "$id", "$defs", "definitions"),
    *("properties", "additionalProperties", "patternProperties", "items", "prefixItems", "additionalItems"),
    *("required", "a", "(", "^a"),
)
nonsense = st.recursive(
    json_values | st.sampled_from([10**400, float("nan"), "#", "#/", "#/%", "#/~", "#x", "#/anyOf/0", "http://x/#/a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(SCHEMA_WORDS), inner, max_size=4),
    max_leaves=12,
)


@given(nonsense, st.text(max_size=3), st.integers(0, 3))
def test_whatever_stands_in_the_place_of_a_schema_has_a_view(schema: Any, name: str, index: int) -> None:
    view = view_of(schema)
    for inner in (view, view.named(name), view.named("a").named("a"), view.item(index), view.item(0).item(1)):
        assert inner.kinds
        assert inner.kinds <= KINDS
        assert inner.takes_text in (True, False)


NUMBER = frozenset(("integer", "fraction"))
NODE = {"type": "object", "properties": {"next": {"$ref": "#"}, "value": {"type": "integer"}}}
TREE = {
    "$defs": {
        "tree": {"anyOf": [{"$ref": "#/$defs/leaf"}, {"$ref": "#/$defs/fork"}]},
        "leaf": {"type": "object", "properties": {"a": {"$ref": "#/$defs/tree"}, "size": {"type": "integer"}}},
        "fork": {"type": "object", "properties": {"a": {"$ref": "#/$defs/tree"}, "size": {"type": "null"}}},
    },
    "$ref": "#/$defs/tree",
}


@pytest.mark.parametrize(
    ("schema", "kinds"),
    [
        ({"type": "integer"}, {"integer"}),
        ({"type": "number"}, NUMBER),
        ({"type": ["integer", "null"]}, {"integer", "null"}),
        ({"enum": [1, 2.0, None]}, {"integer", "null"}),
        ({"enum": ["a", [], {}, True]}, {"string", "array", "object", "boolean"}),
        ({"const": 1.5}, {"fraction"}),
        ({"const": float("inf")}, {"fraction"}),
        ({"type": "number", "enum": [1, "a"]}, {"integer"}),
        ({"type": "integer", "nullable": True}, {"integer", "null"}),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, {"integer", "null"}),
        ({"oneOf": [{"const": 1}, {"const": True}, False]}, {"integer", "boolean"}),
        ({"allOf": [{"type": ["integer", "string"]}, {"type": ["number", "null"]}]}, {"integer"}),
        ({"type": "integer", "anyOf": [{"minimum": 3}, {"maximum": 1}]}, {"integer"}),
        ({"allOf": [{"anyOf": [{"type": "integer"}, {"type": "null"}]} for _ in range(10)]}, {"integer", "null"}),
        ({"allOf": [{"anyOf": [{"type": "integer", "minimum": n} for n in range(9)]}] * 2}, {"integer"}),
        ({"$ref": "#/definitions/a", "definitions": {"a": {"type": "array"}}}, {"array"}),
        ({"$ref": "#/$defs/a~1b%20c", "$defs": {"a/b c": {"type": "array"}}}, {"array"}),
        ({"anyOf": [{"type": "array"}, {"$ref": "#/anyOf/0"}]}, {"array"}),
        ({"$ref": "#/$defs/a", "nullable": True, "$defs": {"a": {"type": "array"}}}, {"array", "null"}),
    ],
)
def test_a_view_tells_what_may_stand_there(schema: dict[str, Any], kinds: set[str]) -> None:
    assert view_of(schema).kinds == kinds


@pytest.mark.parametrize(
    "schema",
    [
        *(None, 5, "integer", [], True, False, {}),
        *({"type": "int"}, {"type": ["integer", 5]}, {"type": []}, {"type": {"a": 1}}, {"enum": []}, {"enum": "a"}),
        *({"type": "integer", "enum": ["a"]}, {"anyOf": [False]}, {"anyOf": "x"}, {"allOf": [{}, True]}),
        *({"$ref": "#"}, {"$ref": "#/a"}, {"$ref": 5}, {"$ref": "http://x/"}, {"$ref": "#/anyOf/9", "anyOf": [{}]}),
        {"anyOf": [{"$ref": "#"}, {"type": "integer"}]},
        {"anyOf": [{"$id": "http://x/", "$ref": "#/$defs/a"}], "$defs": {"a": {"type": "integer"}}},
        {"anyOf": [{"type": "integer", "minimum": number} for number in range(100)]},
        {"enum": [(), 1]},
    ],
)
def test_where_nothing_is_clear_anything_may_stand(schema: Any) -> None:
    assert view_of(schema).kinds == KINDS


def test_schemas_nested_without_end_are_not_followed() -> None:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(5000):
        schema = {"anyOf": [schema]}
    assert view_of(schema).kinds == KINDS


def test_a_view_goes_inside_objects() -> None:
    view = view_of(
        {
            "properties": {"a": {"type": "integer"}},
            "patternProperties": {"^x-": {"type": "string"}},
            "additionalProperties": {"type": "null"},
        }
    )
    kinds = {name: view.named(name).kinds for name in ("a", "x-a", "b", "x-\n")}
    assert kinds == {"a": {"integer"}, "x-a": {"string"}, "b": {"null"}, "x-\n": KINDS}


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("", ["", "a"], []),
        ("^.*$", ["", "a"], []),
        (".+", ["a"], [""]),
        ("^a", ["a", "ab"], ["", "ba"]),
        ("a$", ["a", "ba"], ["ab"]),
        ("^a$", ["a"], ["aa", "b"]),
        ("a", ["bab"], ["b"]),
        ("^a.+", ["ab"], ["a", "b"]),
        ("a.+$", ["bab"], ["ba"]),
        ("^a.*$", ["a", "ab"], ["ba"]),
    ],
)
def test_a_plain_pattern_is_told_without_running_it(pattern: str, yes: list[str], no: list[str]) -> None:
    view = view_of({"patternProperties": {pattern: {"type": "null"}}, "additionalProperties": {"type": "array"}})
    assert [view.named(name).kinds for name in yes] == [{"null"}] * len(yes)
    assert [view.named(name).kinds for name in no] == [{"array"}] * len(no)


@pytest.mark.parametrize("pattern", ["[a-z]", "^(a+)+$", "(", "a|b", r"\d"])
def test_another_pattern_may_mean_anything(pattern: str) -> None:
    view = view_of({"patternProperties": {pattern: {"type": "null"}}, "additionalProperties": {"type": "array"}})
    assert view.named("a").kinds == KINDS


def test_a_view_goes_inside_arrays() -> None:
    new = view_of({"type": "array", "prefixItems": [{"type": "integer"}], "items": {"type": "null"}})
    old = view_of({"type": "array", "items": [{"type": "integer"}], "additionalItems": {"type": "null"}})
    for view in (new, old):
        assert [view.item(index).kinds for index in range(3)] == [{"integer"}, {"null"}, {"null"}]
    assert view_of({"prefixItems": [{"type": "integer"}]}).item(1).kinds == KINDS


def test_a_schema_may_refer_to_itself() -> None:
    view = view_of(NODE)
    for _ in range(100):
        view = view.named("next")
    assert view.named("value").kinds == {"integer"}
    view = view_of(TREE)
    for _ in range(100):
        view = view.named("a")
    assert view.named("size").kinds == {"integer", "null"}


def test_what_may_not_stand_there_has_no_insides() -> None:
    """A model that writes an object where a string is due is wrong already: nothing is known of what is in it."""
    assert view_of({"type": "string", "properties": {"a": {"type": "integer"}}}).named("a") is ANYTHING
    either = view_of({"anyOf": [{"type": "string"}, {"type": "object", "properties": {"a": {"type": "integer"}}}]})
    assert either.named("a").kinds == {"integer"}
    assert either.item(0) is ANYTHING


@pytest.mark.parametrize(
    ("schema", "takes"),
    [
        ({"type": "string"}, True),
        ({"type": ["string", "null"]}, True),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, True),
        ({"type": "string", "enum": ["a"]}, False),
        ({"anyOf": [{"const": "a"}, {"type": "null"}]}, False),
        ({"type": ["string", "integer"]}, False),
        ({"type": "null"}, False),
        ({}, False),
    ],
)
def test_a_view_tells_whether_any_text_may_stand_there(schema: dict[str, Any], takes: bool) -> None:
    assert view_of(schema).takes_text is takes
