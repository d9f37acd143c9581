"""An OpenAPI 3 document -> its operations, each with what a call needs: method, path, and where each parameter goes.

References within the document are put in place, up to a depth: a schema that refers to itself has no end otherwise.

Source: OpenAPI Specification 3.0 and 3.1, "Path Item Object", "Operation Object", "Parameter Object".
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Json = Mapping[str, Any]
Place = Literal["path", "query", "header", "body", "whole_body"]

_METHODS = ("get", "post", "put", "patch", "delete")

#: A reference within what is referred to, so often; what lies deeper may be anything.
_MAX_DEPTH = 6

#: References may make of a small document a huge one: so many parts are put in place for one operation.
_MAX_PARTS = 20_000

_NO_NAME = re.compile(r"[^A-Za-z0-9_-]+")

#: OpenAI's bound for the name of a function.
_MAX_NAME = 64


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation. `places` says where each of the parameters goes; those of the header are told to no model."""

    name: str
    description: str
    method: str
    path: str
    parameters: dict[str, Any]
    places: Mapping[str, Place]
    tags: Sequence[str]


def operations(document: Any, prefix: str = "") -> list[Operation]:
    """The operations of a document. ValueError if it is none of OpenAPI 3."""
    if not isinstance(document, Mapping) or not str(document.get("openapi", "")).startswith("3."):
        raise ValueError("the document is not of OpenAPI 3: it has no 'openapi: 3...'")
    paths = document.get("paths")
    if not isinstance(paths, Mapping) or not paths:
        raise ValueError("the document has no 'paths'")
    found: dict[str, Operation] = {}
    for path, item in paths.items():
        for method, told in _told(document, item):
            operation = _operation(document, item, str(path), method, told, prefix)
            if operation.name in found:
                raise ValueError(f"two operations would be named {operation.name!r}; give them an 'operationId'")
            found[operation.name] = operation
    return list(found.values())


def _told(document: Json, item: Any) -> Iterator[tuple[str, Json]]:
    item = _Resolver(document).resolved(item)
    if isinstance(item, Mapping):
        for method in _METHODS:
            if isinstance(item.get(method), Mapping):
                yield method, item[method]


def _operation(document: Json, item: Json, path: str, method: str, told: Json, prefix: str) -> Operation:
    resolver = _Resolver(document)
    properties: dict[str, Any] = {}
    places: dict[str, Place] = {}
    required: list[str] = []
    parameters = [resolver.resolved(each) for each in [*_list(item.get("parameters")), *_list(told.get("parameters"))]]
    for parameter in filter(lambda each: isinstance(each, Mapping), parameters):
        name, place = str(parameter.get("name")), parameter.get("in")
        if place in ("path", "query", "header"):
            schema = resolver.whole(parameter.get("schema") or {"type": "string"})
            described = {"description": parameter["description"]} if parameter.get("description") else {}
            properties[name], places[name] = {**schema, **described}, place
            required += [name] if parameter.get("required") or place == "path" else []
    _add_body(resolver, told, properties, places, required)
    name = _name(prefix + str(told.get("operationId") or f"{method}{path}"))
    about = str(told.get("description") or told.get("summary") or f"{method.upper()} {path}").strip()
    schema = {
        "type": "object",
        "properties": properties,
        "required": sorted(set(required)),
        "additionalProperties": False,
    }
    return Operation(name, about, method.upper(), path, schema, places, [str(tag) for tag in _list(told.get("tags"))])


def _add_body(
    resolver: "_Resolver", told: Json, properties: dict[str, Any], places: dict[str, Place], required: list[str]
) -> None:
    body = resolver.resolved(told.get("requestBody"))
    content = body.get("content") if isinstance(body, Mapping) else None
    media = content.get("application/json") if isinstance(content, Mapping) else None
    if not isinstance(media, Mapping):
        return
    schema = resolver.whole(media.get("schema") or {})
    inner = schema.get("properties")
    if isinstance(inner, Mapping) and not inner.keys() & properties.keys():
        properties |= inner
        places |= dict.fromkeys(inner, "body")
        required += [name for name in _list(schema.get("required")) if name in inner]
    else:
        # A list, or one whose names are taken: it is a parameter of its own.
        properties["body"], places["body"] = schema, "whole_body"
        required += ["body"] if body.get("required") else []


def _name(wanted: str) -> str:
    return _NO_NAME.sub("_", wanted).strip("_")[:_MAX_NAME] or "operation"


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


class _Resolver:
    """Puts the document's own references in place."""

    def __init__(self, document: Json) -> None:
        self._document = document
        self._parts_left = _MAX_PARTS

    def resolved(self, value: Any) -> Any:
        """What the value refers to, if it does. ValueError for a reference that leads nowhere."""
        for _ in range(_MAX_DEPTH):
            reference = value.get("$ref") if isinstance(value, Mapping) else None
            if not isinstance(reference, str):
                return value
            value = self._at(reference)
        raise ValueError(f"the reference {reference!r} has no end")

    def whole(self, value: Any) -> dict[str, Any]:
        """A schema with all that it refers to; what is too deep may be anything."""
        whole = self._whole(value, 0)
        return whole if isinstance(whole, dict) else {}

    def _whole(self, value: Any, depth: int) -> Any:
        self._parts_left -= 1
        if self._parts_left < 0:
            raise ValueError("an operation's schema is too large to be told to a model")
        if isinstance(value, Mapping) and "$ref" in value:
            return self._whole(self.resolved(value), depth + 1) if depth < _MAX_DEPTH else {}
        if isinstance(value, Mapping):
            return {str(name): self._whole(inner, depth) for name, inner in value.items()}
        return [self._whole(inner, depth) for inner in value] if isinstance(value, list) else value

    def _at(self, reference: str) -> Any:
        if not reference.startswith("#/"):
            raise ValueError(f"the reference {reference!r} leads out of the document; put it all into one")
        found: Any = self._document
        for step in reference[2:].split("/"):
            step = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, Mapping) or step not in found:
                raise ValueError(f"the reference {reference!r} leads nowhere")
            found = found[step]
        return found
