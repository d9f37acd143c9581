"""An operation and its arguments -> the request: what follows the server's URL, the headers, the body.

What a model writes stays within the place it is for: values are percent-encoded, and none can be a step up in a path.

Source: OpenAPI 3.1.1, "Style Values", which is RFC 6570 (URI Template); RFC 3986 for what has to be encoded.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from tools.errors import InvalidArguments
from tools.openapi import Operation, Parameter

#: Between the values of an array that is not exploded.
_BETWEEN = {"form": ",", "simple": ",", "spaceDelimited": "%20", "pipeDelimited": "%7C"}

#: Beyond it a float has no digits behind the point, and its digits are not all true.
_MAX_EXACT = 2**53


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """A request without its server; `body` None: without a body."""

    target: str
    headers: Mapping[str, str]
    body: bytes | None


def write_request(operation: Operation, arguments: Mapping[str, Any]) -> ApiRequest:
    """The request. InvalidArguments for a value that has no place where it is to stand."""
    path = operation.path
    query: list[str] = []
    headers: dict[str, str] = {}
    for parameter in operation.parameters:
        value = arguments.get(parameter.argument)
        if parameter.where == "path":
            path = path.replace(f"{{{parameter.name}}}", _in_path(parameter, value))
        elif value is None:
            continue
        elif parameter.where == "query":
            query += _in_query(parameter, value)
        else:
            headers[parameter.name.lower()] = _in_header(parameter, value)
    target = path + ("?" + "&".join(query) if query else "")
    return ApiRequest(target, headers, _body(operation, arguments))


def _in_path(parameter: Parameter, value: Any) -> str:
    text = _simple(parameter, value, _encoded)
    if text in ("", ".", ".."):
        raise InvalidArguments(f"The parameter {parameter.argument!r} must not be empty, '.' or '..'.")
    return text


def _in_header(parameter: Parameter, value: Any) -> str:
    text = _simple(parameter, value, str)
    if not text.isprintable():
        raise InvalidArguments(f"The parameter {parameter.argument!r} must not have line breaks in it.")
    return text


def _in_query(parameter: Parameter, value: Any) -> Iterator[str]:
    name = _encoded(parameter.name)
    if parameter.is_json or not isinstance(value, list | dict):
        yield f"{name}={_encoded(_json(value) if parameter.is_json else _text(value))}"
    elif parameter.style == "deepObject" and isinstance(value, dict):
        yield from (f"{name}%5B{_encoded(key)}%5D={_encoded(_text(each))}" for key, each in value.items())
    elif parameter.explode and isinstance(value, dict):
        yield from (f"{_encoded(key)}={_encoded(_text(each))}" for key, each in value.items())
    elif parameter.explode:
        yield from (f"{name}={_encoded(_text(each))}" for each in value)
    else:
        yield f"{name}={_BETWEEN.get(parameter.style, ',').join(map(_encoded, _flat(value)))}"


def _simple(parameter: Parameter, value: Any, encoded: Callable[[str], str]) -> str:
    if parameter.is_json or not isinstance(value, list | dict):
        return encoded(_json(value) if parameter.is_json else _text(value))
    if parameter.explode and isinstance(value, dict):
        return ",".join(f"{encoded(key)}={encoded(_text(each))}" for key, each in value.items())
    return ",".join(map(encoded, _flat(value)))


def _flat(value: list[Any] | dict[str, Any]) -> list[str]:
    parts = value if isinstance(value, list) else [part for pair in value.items() for part in pair]
    return [_text(part) for part in parts]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < _MAX_EXACT:
        # JSON schema takes 3.0 for an integer; servers seldom do.
        return str(int(value))
    return _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _encoded(text: str) -> str:
    # Half of a surrogate pair has no bytes.
    return quote(text, safe="", errors="replace")


def _body(operation: Operation, arguments: Mapping[str, Any]) -> bytes | None:
    given = {name: arguments[name] for name in operation.body if name in arguments}
    if operation.body_is_one:
        return next((_bytes(value) for value in given.values()), None)
    return _bytes(given) if operation.body else None


def _bytes(value: Any) -> bytes:
    return _json(value).encode("utf-8", "replace")
