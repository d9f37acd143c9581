"""Values by a JSON schema: one telling example, or any instance at all.

Only what OpenAI's published schema uses is known; a keyword that is not raises, so that a new version of the schema
does not quietly test less.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

from openai_schema import Json, parts, resolved

#: Keywords that say nothing of what is valid, and those that are known below.
_SAYING_NOTHING = {"title", "description", "default", "deprecated", "format"}
_KNOWN = {
    *("type", "enum", "properties", "required", "additionalProperties", "items", "anyOf", "oneOf", "allOf"),
    *("minimum", "maximum", "minItems", "maxItems", "maxLength"),
}

#: How long lists, how many optional fields and how long texts are drawn.
_FEW = 3
_SHORT = 12


def leaves(schema: Json) -> list[Json]:
    """The forms that a value may have: the schema without references and unions."""
    schema = resolved(schema)
    unknown = schema.keys() - _KNOWN - _SAYING_NOTHING
    assert not unknown, f"{sorted(unknown)} of {schema} is not known here"
    variants = [variant for step, variant in parts(schema) if not step]
    return [leaf for variant in variants for leaf in leaves(variant)] if variants else [schema]


# -- one example -------------------------------------------------------------------------------------------


def example(schema: Json, path: Sequence[str], name: str = "text") -> Any:
    """A value with every field, of the first form that has the field at the path."""
    for leaf in leaves(schema):
        if _kind(leaf) != "null" and (not path or any(_leads(inner, path[1:]) for inner in _at(leaf, path[0]))):
            return _example(leaf, path, name)
    raise LookupError(f"{schema} has nothing at {path}")


def _leads(schema: Json, path: Sequence[str]) -> bool:
    return not path or any(_leads(inner, path[1:]) for leaf in leaves(schema) for inner in _at(leaf, path[0]))


def _at(leaf: Json, step: str) -> list[Json]:
    return [inner for taken, inner in parts(leaf) if taken == step]


def _example(leaf: Json, path: Sequence[str], name: str) -> Any:
    if "enum" in leaf:
        return next(value for value in leaf["enum"] if value is not None)
    match _kind(leaf):
        case "object":
            return _object(leaf, path)
        case "array":
            return [example(leaf["items"], path[1:], name)]
        case "integer":
            return min(max(2, leaf.get("minimum", 2)), leaf.get("maximum", 2))
        case "number":
            return 0.25
        case "boolean":
            return True
        case _:
            return {"uri": f"https://example.com/{name}.png", "date": "2030-01-01"}.get(
                leaf.get("format", ""), f"a_{name}"
            )


def _object(leaf: Json, path: Sequence[str]) -> Json:
    own: Json = leaf.get("properties", {})
    made = {name: example(inner, path[1:] if path and path[0] == name else (), name) for name, inner in own.items()}
    further = leaf.get("additionalProperties")
    if isinstance(further, dict):
        return {**made, "further": example(further, (), "value")}
    return made or {"further": "value"}


def _kind(leaf: Json) -> str:
    kinds = leaf.get("type", "object")
    return str(kinds if isinstance(kinds, str) else next(kind for kind in kinds if kind != "null"))


# -- any instance ------------------------------------------------------------------------------------------


def instances(schema: Json, preferred: Mapping[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    """Any instance; a field of one of the `preferred` names is drawn from there, so that fields fit together."""
    schema = resolved(schema)
    if "allOf" in schema:
        return st.tuples(*(instances(part, preferred) for part in schema["allOf"])).map(_merged)
    return st.one_of([_instances(leaf, preferred) for leaf in leaves(schema)])


def _merged(made: Sequence[Json]) -> Json:
    return {name: value for part in made for name, value in part.items()}


def _instances(leaf: Json, preferred: Mapping[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    if "enum" in leaf:
        return st.sampled_from(leaf["enum"])
    kinds = leaf.get("type", "object")
    return st.one_of([_of_kind(kind, leaf, preferred) for kind in ([kinds] if isinstance(kinds, str) else kinds)])


def _of_kind(kind: str, leaf: Json, preferred: Mapping[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    match kind:
        case "object":
            return _objects(leaf, preferred)
        case "array":
            fewest = leaf.get("minItems", 0)
            most = min(leaf.get("maxItems", _FEW), _FEW)
            return st.lists(instances(leaf["items"], preferred), min_size=fewest, max_size=most)
        case "integer":
            return st.integers(leaf.get("minimum"), leaf.get("maximum"))
        case "number":
            return st.floats(leaf.get("minimum"), leaf.get("maximum"), allow_nan=False, allow_infinity=False)
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
        case _:
            return st.text(max_size=min(leaf.get("maxLength", _SHORT), _SHORT))


def _objects(leaf: Json, preferred: Mapping[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Json]:
    own = leaf.get("properties", {})
    values = {name: instances(inner, preferred) for name, inner in own.items()}
    values |= {name: preferred[name] for name in own.keys() & preferred.keys()}
    needed = {name: values.pop(name) for name in leaf.get("required", ())}
    further = leaf.get("additionalProperties")
    if isinstance(further, dict):
        return st.dictionaries(st.text(max_size=_SHORT), instances(further, preferred), max_size=_FEW)
    if not values:
        return st.fixed_dictionaries(needed)
    some = st.lists(st.sampled_from(sorted(values)), max_size=_FEW, unique=True)
    return some.flatmap(lambda names: st.fixed_dictionaries({**needed, **{name: values[name] for name in names}}))
