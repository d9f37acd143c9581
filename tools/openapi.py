"""An OpenAPI document -> its operations, each with a name, a description and one schema for all that it takes.

    parameters of the path, the operation (path, query, header) --.
    the fields of a JSON body that is an object ------------------+--> one object's schema
    any other JSON body, as the field `body` --------------------'

Source: OpenAPI 3.0.4 and 3.1.1, "Paths Object", "Operation Object", "Parameter Object", "Request Body Object".
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tools.openapi_schemas import Schemas

#: In the order in which they are told. TRACE sends keys back, and HEAD has nothing to tell.
_METHODS = ("get", "post", "put", "patch", "delete", "options")

#: The styles that are written, by where the parameter stands; the first is the default.
_STYLES = {
    "path": ("simple",),
    "query": ("form", "spaceDelimited", "pipeDelimited", "deepObject"),
    "header": ("simple",),
}

#: These the specification gives no parameters for: they are made from other things.
_NO_PARAMETERS = frozenset({"accept", "content-type", "authorization"})

#: OpenAI's bound for names; and enough of a description to choose by.
_MAX_NAME = 64
_MAX_DESCRIPTION = 1_000

_JSON = re.compile(r"application/([\w.+-]+\+)?json|\*/\*|application/\*", re.ASCII | re.IGNORECASE)


class Unfit(ValueError):
    """The operation cannot be called; the message says why, in the words after "the operation"."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter: `argument` is what it is called in the schema, `name` what in the request."""

    argument: str
    name: str
    where: Literal["path", "query", "header"]
    style: str
    explode: bool
    is_json: bool


@dataclass(frozen=True, slots=True)
class Operation:
    """What can be called. `body` names the arguments that are the JSON body's fields, or the one that is all of it."""

    name: str
    description: str
    method: str
    path: str
    server: str | None
    schema: Mapping[str, Any]
    parameters: Sequence[Parameter]
    body: Sequence[str]
    body_is_one: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """An operation as it stands in the document. `words` choose it: its tags, its operationId, or else its name."""

    name: str
    own_name: str
    words: frozenset[str]
    method: str
    path: str
    item: Mapping[str, Any]
    shared: Mapping[str, Any]


def entries(document: Mapping[str, Any], prefix: str = "") -> Iterator[Entry]:
    """The operations of a document that `check` lets pass, with names that differ."""
    schemas = Schemas(document)
    names: set[str] = set()
    for path, shared in document["paths"].items():
        shared = schemas.resolved(shared)
        for method in _METHODS:
            item = shared.get(method) if isinstance(shared, Mapping) else None
            if isinstance(item, Mapping):
                own = str(item.get("operationId") or _valid(f"{method}_{path}"))
                words = frozenset(map(str, [own, *(item.get("tags") or ())]))
                yield Entry(_unique(_valid(prefix + own), names), own, words, method, str(path), item, shared)


def _valid(wanted: str) -> str:
    return re.sub(r"_{2,}", "_", re.sub(r"[^A-Za-z0-9_-]", "_", wanted)).strip("_")[:_MAX_NAME] or "operation"


def _unique(name: str, taken: set[str]) -> str:
    number = 1
    unique = name
    while unique in taken:
        number += 1
        unique = f"{name[: _MAX_NAME - len(str(number)) - 1]}_{number}"
    taken.add(unique)
    return unique


def read_operation(document: Mapping[str, Any], entry: Entry, given_headers: Collection[str]) -> Operation:
    """The operation, without the headers that are given anyway (lower-case). Unfit says why it cannot be called."""
    try:
        return _Reader(document, entry, given_headers).operation()
    except Unfit:
        raise
    except ValueError as error:
        raise Unfit(f"cannot be read: {error}") from None
    except (AttributeError, LookupError, TypeError, RecursionError):
        raise Unfit("cannot be read: it does not have the form that OpenAPI says") from None


class _Reader:
    """Gathers what one operation takes."""

    def __init__(self, document: Mapping[str, Any], entry: Entry, given_headers: Collection[str]) -> None:
        self._document = document
        self._entry = entry
        self._given_headers = given_headers
        self._schemas = Schemas(document)
        self._properties: dict[str, Any] = {}
        self._required: list[str] = []

    def operation(self) -> Operation:
        parameters = [read for each in self._declared() if (read := self._parameter(each))]
        missing = set(re.findall(r"\{([^}]*)\}", self._entry.path)) - {
            parameter.name for parameter in parameters if parameter.where == "path"
        }
        if missing:
            raise Unfit(f"says nothing about its path parameter {min(missing)!r}")
        body, body_is_one = self._body()
        schema = {
            "type": "object",
            "properties": self._properties,
            "required": self._required,
            "additionalProperties": False,
        }
        return Operation(
            name=self._entry.name,
            description=self._description(),
            method=self._entry.method.upper(),
            path=self._entry.path,
            server=self._server(),
            schema=schema,
            parameters=parameters,
            body=body,
            body_is_one=body_is_one,
        )

    def _declared(self) -> list[Mapping[str, Any]]:
        # The operation's own take the place of those that it shares with the others of its path.
        both = [*(self._entry.shared.get("parameters") or ()), *(self._entry.item.get("parameters") or ())]
        declared = [self._schemas.resolved(each) for each in both]
        return list({(each["name"], each["in"]): each for each in declared}.values())

    def _parameter(self, declared: Mapping[str, Any]) -> Parameter | None:
        name, where = str(declared["name"]), declared["in"]
        if where not in _STYLES:
            if declared.get("required"):
                raise Unfit(f"needs the {where} parameter {name!r}, which cannot be sent")
            return None
        if where == "header" and name.lower() in {*_NO_PARAMETERS, *self._given_headers}:
            return None
        style = declared.get("style", _STYLES[where][0])
        if style not in _STYLES[where]:
            raise Unfit(f"has the parameter {name!r} in the style {style!r}, which is not known here")
        argument = name if name not in self._properties else f"{where}_{name}"
        media = next(iter((declared.get("content") or {}).values()), None)
        schema = self._schemas.schema((media or declared).get("schema") or {"type": "string"})
        self._add(argument, schema, declared, required=where == "path" or declared.get("required") is True)
        return Parameter(argument, name, where, style, declared.get("explode", style == "form"), media is not None)

    def _body(self) -> tuple[Sequence[str], bool]:
        declared = self._schemas.resolved(self._entry.item.get("requestBody"))
        if not declared:
            return (), False
        contents = declared.get("content") or {}
        media = next((content for kind, content in contents.items() if _JSON.match(kind)), None)
        is_required = declared.get("required") is True
        if media is None:
            if is_required:
                raise Unfit(f"takes a body of {' or '.join(contents) or 'no type'}, and only JSON is sent")
            return (), False
        schema = self._schemas.schema(media.get("schema") or {})
        if is_required and self._can_be_merged(schema):
            fields = schema["properties"]
            self._properties |= fields
            self._required += schema.get("required", [])
            return tuple(fields), False
        argument = "body" if "body" not in self._properties else "request_body"
        self._add(argument, schema, declared, required=is_required)
        return (argument,), True

    def _can_be_merged(self, schema: Mapping[str, Any]) -> bool:
        # Flat arguments are easier for a model; but nothing that a rule connects is torn apart.
        connects = {"allOf", "anyOf", "oneOf", "not", "patternProperties", "minProperties", "maxProperties"}
        return bool(
            schema.get("type") == "object"
            and schema.get("properties")
            and not schema.get("additionalProperties")
            and not connects & schema.keys()
            and not self._properties.keys() & schema["properties"].keys()
        )

    def _add(self, argument: str, schema: dict[str, Any], declared: Mapping[str, Any], *, required: bool) -> None:
        about = {"description": declared["description"]} if isinstance(declared.get("description"), str) else {}
        self._properties[argument] = schema | about
        if required:
            self._required.append(argument)

    def _description(self) -> str:
        said = [self._entry.item.get("summary"), self._entry.item.get("description")]
        text = "\n".join(dict.fromkeys(text.strip() for text in said if isinstance(text, str) and text.strip()))
        return text[:_MAX_DESCRIPTION] or f"{self._entry.method.upper()} {self._entry.path}"

    def _server(self) -> str | None:
        for owner in (self._entry.item, self._entry.shared, self._document):
            for server in owner.get("servers") or ():
                url = str(server["url"])
                for name, variable in (server.get("variables") or {}).items():
                    url = url.replace(f"{{{name}}}", str(variable["default"]))
                return url
        return None
