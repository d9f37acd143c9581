"""OpenAI's published schema of chat completions: what is valid, and which fields there are.

Source: `data/openai_chat_schema.json`; `data/README.md` says where that comes from.
"""

import copy
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import fastjsonschema
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

Json = dict[str, Any]
Definitions = Mapping[str, Json]

#: A definition and the path of one of its fields.
Place = tuple[str, str]

_PUBLISHED: Json = json.loads((Path(__file__).parent / "data" / "openai_chat_schema.json").read_text("utf-8"))
DEFINITIONS: Definitions = _PUBLISHED["$defs"]

REQUEST = "CreateChatCompletionRequest"
ANSWER = "CreateChatCompletionResponse"
CHUNK = "CreateChatCompletionStreamResponse"
ERROR = "ErrorResponse"
MODELS = "ListModelsResponse"


# -- what is valid -----------------------------------------------------------------------------------------


def relaxed(besides: Mapping[Place, Json], missing: Collection[Place] = ()) -> Definitions:
    """The definitions, where fields may be an instance of another schema, too, or may be `missing`."""
    definitions = copy.deepcopy(dict(DEFINITIONS))
    for name, field in missing:
        [required] = [found for found in _values(definitions[name], "required") if field in found]
        required.remove(field)
    for (name, path), other in besides.items():
        *parents, field = split_path(path)
        at = [definitions[name]]
        for step in parents:
            at = [inner for schema in at for inner in _inside(schema, step)]
        [found] = [found for schema in at for found in _values(schema, "properties") if field in found]
        found[field] = {"anyOf": [found[field], other]}
    return definitions


def _values(schema: Json, keyword: str) -> Iterator[Any]:
    # Of the schema and of its variants, but not of what it refers to, which is others', too.
    if keyword in schema:
        yield schema[keyword]
    for step, inner in parts(schema):
        if not step:
            yield from _values(inner, keyword)


def _inside(schema: Json, step: str) -> Iterator[Json]:
    for there, inner in parts(schema):
        if there == step:
            yield inner
        elif not there:
            yield from _inside(inner, step)


class Judge:
    """Holds values against definitions."""

    def __init__(self, definitions: Definitions) -> None:
        self._definitions = definitions
        self._compiled: dict[str, Callable[[Any], object]] = {}

    def complaint(self, definition: str, value: Any) -> str | None:
        """What is wrong with the value as an instance of the definition; None if nothing is."""
        # What is valid, as nearly all is, is judged by code made from the schema: in a twentieth of the time.
        try:
            self._validate(definition)(value)
        except fastjsonschema.JsonSchemaValueException:
            error = best_match(Draft202012Validator(self._schema(definition)).iter_errors(value))
            return error and f"{definition}{error.json_path[1:]}: {error.message[:500]}"
        return None

    def _schema(self, definition: str) -> Json:
        return {"$ref": f"#/$defs/{definition}", "$defs": self._definitions}

    def _validate(self, definition: str) -> Callable[[Any], object]:
        if definition not in self._compiled:
            # It would write defaults into the value, and knows no newer draft; the definitions use nothing newer.
            schema = {"$schema": "http://json-schema.org/draft-07/schema#", **self._schema(definition)}
            self._compiled[definition] = fastjsonschema.compile(schema, use_default=False, detailed_exceptions=False)
        return self._compiled[definition]


_PUBLISHED_JUDGE = Judge(DEFINITIONS)


def complaint(definition: str, value: Any) -> str | None:
    """What is wrong with the value as an instance of the published definition; None if nothing is."""
    return _PUBLISHED_JUDGE.complaint(definition, value)


# -- which fields there are --------------------------------------------------------------------------------


def fields(schema: Json, apart: Collection[str] = ()) -> list[str]:
    """The paths of all fields (`tools[].function`); what is of a definition that stands `apart` is not followed."""
    return list(dict.fromkeys(_paths(schema, apart, "")))


def _paths(schema: Json, apart: Collection[str], path: str) -> Iterator[str]:
    if named(schema) in apart:
        return
    for step, inner in parts(resolved(schema)):
        there = _joined(path, step)
        if step not in ("", "[]"):
            yield there
        yield from _paths(inner, apart, there)


def reached(definition: str, apart: Collection[str]) -> dict[str, set[str]]:
    """The definition, and those of the ones that stand apart which it leads to, with the paths at which they stand."""
    found: dict[str, set[str]] = {definition: {""}}
    waiting = [definition]
    while waiting:
        name = waiting.pop()
        for met, path in _met({"allOf": [DEFINITIONS[name]]}, apart, ""):
            there = {f"{before}.{path}".strip(".") for before in found[name]}
            if not there <= found.setdefault(met, set()):
                found[met] |= there
                waiting.append(met)
    return found


def _met(schema: Json, apart: Collection[str], path: str) -> Iterator[tuple[str, str]]:
    if named(schema) in apart:
        yield named(schema), path
        return
    for step, inner in parts(resolved(schema)):
        yield from _met(inner, apart, _joined(path, step))


def _joined(path: str, step: str) -> str:
    return path + step if step in ("", "[]") else f"{path}.{step}".lstrip(".")


def split_path(path: str) -> list[str]:
    """`a.b[].c` -> a, b, [], c."""
    return path.replace("[]", ".[]").lstrip(".").split(".")


def named(schema: Json) -> str:
    """The name of the definition that the schema refers to, or nothing."""
    return str(schema.get("$ref", "")).removeprefix("#/$defs/")


def resolved(schema: Json) -> Json:
    """The schema, or the definition that it refers to."""
    return DEFINITIONS[named(schema)] if "$ref" in schema else schema


def parts(schema: Json) -> Iterator[tuple[str, Json]]:
    """Each schema inside, and the step that leads there: a field, `[]` to the items of a list, nothing to a variant."""
    for union in ("allOf", "anyOf", "oneOf"):
        yield from (("", variant) for variant in schema.get(union, ()))
    yield from schema.get("properties", {}).items()
    if "items" in schema:
        yield "[]", schema["items"]
