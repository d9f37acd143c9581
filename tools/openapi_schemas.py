"""The schemas of an OpenAPI document -> JSON schemas that stand by themselves, short enough for a prompt.

References are written out, since nothing that reads a tool's schema has the document. What refers to itself is cut
off after a few levels, where anything fits.

Source: OpenAPI 3.0.4 and 3.1.1, "Schema Object" and "Reference Object"; RFC 6901 for what references point with.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

#: References within references; people's documents have three or four, and only recursive ones more.
_MAX_DEPTH = 8

#: One operation's schemas may have so many parts, written out: a model reads them all, in every request.
_MAX_PARTS = 3_000

#: So many references may lead from one to the next.
_MAX_HOPS = 20

_SCHEMA = ("additionalProperties", "items", "not", "propertyNames", "contains")
_SCHEMAS = ("allOf", "anyOf", "oneOf", "prefixItems")
_NAMED_SCHEMAS = ("properties", "patternProperties")

#: What says something about values; examples, links and notes for code generators are left out.
_PLAIN = (
    *("type", "format", "description", "enum", "const", "default", "required", "minimum", "maximum"),
    *(
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
        "minLength",
        "maxLength",
        "pattern",
        "minItems",
        "maxItems",
    ),
    *("uniqueItems", "minProperties", "maxProperties"),
)


class Schemas:
    """Reads the schemas of one document. Each operation takes a reader of its own, as the parts are counted."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        self._parts = 0

    def resolved(self, node: Any) -> Any:
        """The node, or what it refers to. ValueError if that is not in the document."""
        for _ in range(_MAX_HOPS):
            if not (isinstance(node, Mapping) and isinstance(node.get("$ref"), str)):
                return node
            beside = {word: value for word, value in node.items() if word != "$ref"}
            target = self._at(node["$ref"])
            # In 3.1 there may be a description of its own beside a reference.
            node = {**target, **beside} if isinstance(target, Mapping) else target
        raise ValueError("its references lead nowhere")

    def schema(self, node: Any, depth: int = 0) -> dict[str, Any]:
        """The schema, written out. ValueError for a reference that leads nowhere, or a schema without an end."""
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise ValueError("its schemas are too large for a model to read")
        depth += isinstance(node, Mapping) and "$ref" in node
        node = self.resolved(node)
        if not isinstance(node, Mapping) or depth > _MAX_DEPTH:
            # `true` and `false` are schemas, too; where one of them matters, no model is helped by it.
            return {}
        written = {word: node[word] for word in _PLAIN if word in node}
        for word in _SCHEMA:
            if word in node:
                given = node[word]
                written[word] = given if isinstance(given, bool) else self.schema(given, depth)
        for word in _SCHEMAS:
            if word in node:
                written[word] = [self.schema(each, depth) for each in node[word]]
        for word in _NAMED_SCHEMAS:
            if word in node:
                written[word] = {
                    str(name): self.schema(each, depth) for name, each in node[word].items() if self._can_be_sent(each)
                }
        return _as_of_today(written, node)

    def _can_be_sent(self, schema: Any) -> bool:
        resolved = self.resolved(schema)
        return not (isinstance(resolved, Mapping) and resolved.get("readOnly") is True)

    def _at(self, reference: str) -> Any:
        if not reference.startswith("#/"):
            raise ValueError(f"it refers to another document, {reference!r}, which is not read")
        node: Any = self._document
        for step in reference[2:].split("/"):
            name = unquote(step).replace("~1", "/").replace("~0", "~")
            if isinstance(node, list) and name.isdecimal() and int(name) < len(node):
                node = node[int(name)]
            elif isinstance(node, Mapping) and name in node:
                node = node[name]
            else:
                raise ValueError(f"it refers to {reference!r}, which is not there")
        return node


def _as_of_today(written: dict[str, Any], node: Mapping[str, Any]) -> dict[str, Any]:
    # OpenAPI 3.0 has words of its own for two things.
    for word, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(written.get(word), bool) and written.pop(word) and bound in written:
            written[word] = written.pop(bound)
    if node.get("nullable") is True and isinstance(written.get("type"), str):
        written["type"] = [written["type"], "null"]
        if "enum" in written and None not in written["enum"]:
            written["enum"] = [*written["enum"], None]
    if "required" in written and "properties" in written:
        written["required"] = [name for name in written["required"] if name in written["properties"]]
    return written
