"""A JSON schema and the user's words -> a value that is valid under it.

Any JSON will do as a schema: what makes no sense in it is passed over. A value's depth and size are bounded.
"""

import itertools
import json
import re
from collections import deque
from collections.abc import Sequence
from math import ceil, inf
from typing import Any

from proxy.demo.words import arithmetic, as_code, numbers, quoted, words

Json = dict[str, Any]

#: The most characters, items and values that a schema is given, however many it demands.
_LONGEST = 1000
#: Deeper than people nest what a tool takes: a schema that goes on there demands itself.
_DEEPEST = 12
#: A longer chain of references refers to itself.
_LONGEST_CHAIN = 16
#: Between a float and a bound that it must not reach.
_FLOAT_STEP = 0.001
#: These take all that was said.
_WHOLE = frozenset(("prompt", "query", "question", "text", "message", "content", "input"))
_FORMATS = {
    "date": "2025-01-01",
    "time": "00:00:00Z",
    "date-time": "2025-01-01T00:00:00Z",
    "email": "demo@example.com",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "ipv4": "127.0.0.1",
}


class Form:
    """Fills a schema from a text and its subjects; these and its numbers are used up in order."""

    def __init__(self, schema: Json, text: str, subjects: Sequence[str]) -> None:
        self._root = schema
        self._text = text
        self._subjects = deque(subjects)
        self._numbers = deque(numbers(text))
        self._steps = itertools.count()

    def value(self) -> Any:
        """A value for the schema."""
        return self._fill(self._root)

    def arguments(self) -> str:
        """The same for a tool's parameters: an object, as JSON."""
        return json.dumps(as_dict(self._fill({**self._root, "type": "object"})), ensure_ascii=False)

    def takes_one(self) -> bool:
        """Whether one free string is all that is required: then several things are several calls."""
        flat = self._resolve(self._root)
        needed = as_list(flat.get("required"))
        field = self._resolve(as_dict(flat.get("properties")).get(str(needed[0]))) if needed else {}
        free = _kind(field) == "string" and not field.keys() & {"enum", "const", "format"}
        return free and len(needed) == 1

    def _resolve(self, schema: object) -> Json:
        """The schema with $ref and allOf worked in, and the first of anyOf or oneOf that is not null."""
        flat = dict(as_dict(schema))
        for _ in range(_LONGEST_CHAIN):
            branches = as_list(flat.pop("allOf", None))
            if isinstance(path := flat.pop("$ref", None), str):
                branches.append(self._at(path))
            either = as_list(flat.pop("anyOf", None)) or as_list(flat.pop("oneOf", None))
            branches += [branch for branch in either if as_dict(branch).get("type") != "null"][:1]
            for branch in map(as_dict, branches):
                fields = {**as_dict(flat.get("properties")), **as_dict(branch.get("properties"))}
                needed = [*as_list(flat.get("required")), *as_list(branch.get("required"))]
                flat |= branch | ({"properties": fields, "required": needed} if fields else {})
        return flat

    def _at(self, path: str) -> Json:
        found = self._root
        for step in path.strip("#/").split("/") if path.strip("#/") else ():
            found = as_dict(found.get(step.replace("~1", "/").replace("~0", "~")))
        return found

    def _fill(self, schema: object, name: str = "", depth: int = 0) -> Any:
        flat = self._resolve(schema)
        if "const" in flat or depth > _DEEPEST or next(self._steps) > _LONGEST:
            return flat.get("const")
        if values := as_list(flat.get("enum")):
            return next(filter(self._mentions, values), values[0])
        match _kind(flat):
            case "object":
                return self._object(flat, depth)
            case "array":
                return self._array(flat, name, depth)
            case "integer":
                return ceil(self._number(flat, 1))
            case "number":
                return self._number(flat, _FLOAT_STEP)
            case "boolean":
                return True
            case "null":
                return None
        return self._string(flat, name)

    def _mentions(self, value: object) -> bool:
        word = re.escape(str(value).lower())
        return re.search(rf"(?<![a-z0-9]){word}(?![a-z0-9])", self._text.lower()) is not None

    def _object(self, schema: Json, depth: int) -> Json:
        properties = as_dict(schema.get("properties"))
        needed = [str(name) for name in as_list(schema.get("required"))]
        named = (name for name in properties if name in needed or (not depth and self._asks(name, properties)))
        names = dict.fromkeys([*named, *needed])
        return {name: self._fill(properties.get(name), name, depth + 1) for name in names}

    def _asks(self, name: str, properties: Json) -> bool:
        enum = as_list(self._resolve(properties[name]).get("enum"))
        return bool(words(name) & words(self._text)) or any(map(self._mentions, enum))

    def _array(self, schema: Json, name: str, depth: int) -> list[Any]:
        items, least = self._resolve(schema.get("items")), _size(schema.get("minItems"), 1)
        if enum := sorted(as_list(items.get("enum")), key=lambda value: not self._mentions(value)):
            return enum[: max(least, sum(map(self._mentions, enum)))]
        waiting = {"string": len(self._subjects), **dict.fromkeys(("integer", "number"), len(self._numbers))}
        count = max(least, waiting.get(_kind(items), 0))
        count = min(count, _size(schema.get("maxItems"), _LONGEST))
        return [self._fill(items, name, depth + 1) for _ in range(count)]

    def _number(self, schema: Json, step: float) -> float:
        low = max(_finite(schema.get("minimum"), -inf), _finite(schema.get("exclusiveMinimum"), -inf) + step)
        high = min(_finite(schema.get("maximum"), inf), _finite(schema.get("exclusiveMaximum"), inf) - step)
        said = self._numbers.popleft() if self._numbers else _finite(schema.get("default"), 1)
        value, unit = max(low, min(said, high)), _finite(schema.get("multipleOf"), 0)
        return ceil(value / unit) * unit if unit > 1e-6 else value  # a smaller unit would overflow

    def _string(self, schema: Json, name: str) -> str:
        if name == "code":
            return as_code(self._text)
        if name.startswith("expr"):
            return arithmetic(self._text) or self._text
        if known := _FORMATS.get(str(schema.get("format"))):
            return known
        whole = not self._subjects or (name in _WHOLE and not quoted(self._text))
        value = self._text if whole else self._subjects[0]
        if not whole and len(self._subjects) > 1:
            self._subjects.popleft()
        longest = _size(schema.get("maxLength"), len(value) + _LONGEST)
        return value.ljust(_size(schema.get("minLength"), 0), ".")[:longest]


def as_dict(value: object) -> Json:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def as_list(value: object) -> list[Any]:
    """The value if it is a list, else an empty one."""
    return list(value) if isinstance(value, list) else []


def _kind(schema: Json) -> str:
    types = schema.get("type")
    kinds = [kind for kind in (types if isinstance(types, list) else [types]) if isinstance(kind, str)]
    guess = "object" if "properties" in schema else "array" if "items" in schema else "string"
    return next((kind for kind in kinds if kind != "null"), kinds[0] if kinds else guess)


def _finite(value: object, default: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return default
    return value if abs(value) < 1e15 else default  # beyond it floats skip integers; and neither inf nor NaN


def _size(value: object, default: int) -> int:
    return int(max(0, min(_finite(value, default), max(default, _LONGEST))))
