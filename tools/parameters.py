"""A tool's parameters, in any of three forms -> one JSON schema, and arguments held against it.

The forms: Qwen-Agent's list, a JSON schema, a function with type hints.

Source: Qwen-Agent's `BaseTool.parameters` (a list of {name, type, description, required}); JSON Schema 2020-12, as the
jsonschema package checks it; docstrings in Google's style.
"""

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, get_type_hints

from jsonschema import Draft202012Validator, SchemaError, ValidationError
from jsonschema.exceptions import best_match
from pydantic import BaseModel, ConfigDict, Field, create_model

from tools.errors import InvalidArguments

Schema = Mapping[str, Any]
Parameters = Schema | Sequence[Mapping[str, Any]]

#: So many mistakes are told at once, each in so many characters: more would tell a model no more.
_MAX_FAULTS = 3
_MAX_FAULT = 300

#: A section of a docstring, and one entry of its `Args:`.
_SECTION = re.compile(r"^\s*(Args|Arguments|Returns|Raises|Yields|Examples?):\s*$", re.MULTILINE)
_ENTRY = re.compile(r"^\s*(\w+)(?:\s*\([^)]*\))?:\s*(.+)$")


def as_schema(parameters: Parameters) -> dict[str, Any]:
    """The JSON schema of the parameters. ValueError if they are none."""
    schema = dict(parameters) if isinstance(parameters, Mapping) else _of_list(parameters)
    schema.setdefault("type", "object")
    schema.setdefault("properties", {})
    if schema["type"] != "object":
        raise ValueError("a tool's parameters must be an object's schema")
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"the parameters are no JSON schema: {error.message}") from None
    return schema


def _of_list(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if not all(isinstance(entry, Mapping) and entry.get("name") for entry in entries):
        raise ValueError("each parameter in the list must have a 'name'")
    properties = {
        entry["name"]: {"type": "string"}
        | {word: rule for word, rule in entry.items() if word not in ("name", "required")}
        for entry in entries
    }
    if len(properties) < len(entries):
        raise ValueError("two parameters have the same name")
    required = [entry["name"] for entry in entries if entry.get("required")]
    return {"type": "object", "properties": properties, "required": required}


def parse(params: str | Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as an object. InvalidArguments for what is none; no text at all is an empty object."""
    if isinstance(params, Mapping):
        return dict(params)
    try:
        given = json.loads(params or "{}", parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise InvalidArguments("The arguments are not valid JSON; write one JSON object.") from None
    if not isinstance(given, dict):
        raise InvalidArguments("The arguments must be one JSON object.")
    return given


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def validated(params: str | Mapping[str, Any], schema: Schema) -> dict[str, Any]:
    """The arguments, with the schema's defaults for those that are missing. InvalidArguments says what is wrong."""
    given = parse(params)
    properties: Mapping[str, Any] = schema.get("properties", {})
    defaults = {
        name: rule["default"] for name, rule in properties.items() if isinstance(rule, Mapping) and "default" in rule
    }
    arguments = {**defaults, **given}
    errors = [
        best_match([error]) for error in islice(_validator(json.dumps(schema)).iter_errors(arguments), _MAX_FAULTS)
    ]
    if errors:
        known = ", ".join(map(repr, properties)) or "none"
        raise InvalidArguments(f"Invalid arguments: {'; '.join(map(_told, errors))}. The parameters are: {known}.")
    return arguments


@lru_cache(maxsize=1024)
def _validator(schema: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads(schema))


def _told(error: ValidationError) -> str:
    where = "".join(f"[{step!r}]" if isinstance(step, int) else f".{step}" for step in error.absolute_path).lstrip(".")
    message = error.message
    if len(message) > _MAX_FAULT:
        # It quotes the arguments first, and says what is wrong with them last.
        message = f"{message[: _MAX_FAULT // 2]} ... {message[-_MAX_FAULT // 2 :]}"
    return f"at '{where}': {message}" if where else message


# -- functions ---------------------------------------------------------------------------------------------


def of_function(function: Callable[..., Any]) -> tuple[str, type[BaseModel], dict[str, Any]]:
    """The description, the model and the schema of a function with type hints and a docstring.

    A parameter named `context` is the call's ToolContext and none of the model's. ValueError if a parameter has no
    type, or one that JSON cannot hold.
    """
    description, told = _docstring(inspect.getdoc(function) or "")
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name == "context":
            continue
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ValueError(f"{function.__name__}() cannot be a tool: '{name}' has no name of its own")
        if name not in hints:
            raise ValueError(f"{function.__name__}() cannot be a tool: '{name}' has no type hint")
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[name] = (hints[name], Field(default, description=told.get(name)))
    model = create_model(function.__name__, __config__=ConfigDict(extra="forbid"), **fields)
    return description, model, _bare(model.model_json_schema())


def _docstring(text: str) -> tuple[str, dict[str, str]]:
    # What stands before the first section, and what `Args:` says of each parameter.
    parts = _SECTION.split(text)
    description = " ".join(parts[0].split())
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    told: dict[str, str] = {}
    last = ""
    for line in (sections.get("Args") or sections.get("Arguments") or "").splitlines():
        if entry := _ENTRY.match(line):
            last = entry[1]
            told[last] = entry[2].strip()
        elif line.strip() and last:
            told[last] += " " + line.strip()
    return description, told


def _bare(schema: Any) -> Any:
    # Pydantic gives a title to everything, which costs a model tokens and tells it nothing.
    if isinstance(schema, dict):
        return {
            word: {name: _bare(rule) for name, rule in value.items()}
            if word in ("properties", "$defs")
            else _bare(value)
            for word, value in schema.items()
            if word != "title" or not isinstance(value, str)
        }
    return [_bare(each) for each in schema] if isinstance(schema, list) else schema
