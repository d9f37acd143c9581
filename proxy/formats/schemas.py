"""What a JSON schema admits at each place of an instance, as far as that is plain.

    view_of(schema)  .named("filters")  .item(0)  .kinds -> {"string", "null"}

A view is never narrower than its schema: whatever a valid instance may hold at a place is among the kinds. Schemas
come from callers and may be anything at all, so nothing here raises, no pattern of theirs is run as one, and what is
unclear (words that nobody knows, a reference to elsewhere or to itself, too many cases) admits anything.

Source: JSON Schema 2020-12 and its forerunners back to draft 4; OpenAPI 3.0 for `nullable`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

#: JSON Schema's types, with numbers told apart: an `integer` has no fraction, however it is written.
KINDS = frozenset(("null", "boolean", "integer", "fraction", "string", "array", "object"))

_TYPES = {name: frozenset((name,)) for name in KINDS - {"fraction"}} | {"number": frozenset(("integer", "fraction"))}

#: Where one of these stands, the type is not all that says what may.
_COMPOUND = frozenset(("$id", "$ref", "allOf", "anyOf", "const", "enum", "nullable", "oneOf"))

#: Unions in tools have a handful of members; with `allOf` they multiply, and each value is held against each case.
_MAX_CASES = 64
#: So many schemas refer to one another before one says what is meant; deeper ones would cost Python its stack.
_MAX_STEPS = 64

#: Words with `.*` or `.+` behind them at most, and anchors: patterns that can be told without running them.
_PLAIN_PATTERN = re.compile(r"(\^?)([A-Za-z0-9_-]*)(\.[*+])?(\$?)")


@dataclass(frozen=True, slots=True)
class _Case:
    """Schemas that hold all at once, and the kinds that they leave."""

    rules: tuple[Mapping[str, Any], ...]
    kinds: frozenset[str]


_Cases = tuple[_Case, ...]

_ANY_CASE: _Cases = (_Case((), KINDS),)
_NULL_CASE: _Cases = (_Case((), frozenset(("null",))),)


@dataclass(frozen=True, slots=True)
class View:
    """What may stand at one place: `kinds`, a subset of KINDS and never empty."""

    _schemas: "_Schemas"
    _cases: _Cases
    kinds: frozenset[str] = KINDS

    def named(self, name: str) -> "View":
        """What may stand at this name, if an object stands here."""
        return self._inside("object", name)

    def item(self, index: int) -> "View":
        """What may stand at this index, if an array stands here."""
        return self._inside("array", index)

    @property
    def takes_text(self) -> bool:
        """True if any string may stand here, and nothing else but null."""
        free = any("string" in case.kinds and not _is_listed(case.rules) for case in self._cases)
        return free and self.kinds <= {"string", "null"}

    def _inside(self, kind: str, step: str | int) -> "View":
        if self is ANYTHING:
            return self
        if len(self._cases) == 1 and len(self._cases[0].rules) == 1 and kind in self.kinds:
            return self._schemas.view_of(_member(self._cases[0].rules[0], step))
        found: list[_Case] = []
        for case in self._cases:
            if kind in case.kinds:
                found += self._schemas.all_of(_member(rule, step) for rule in case.rules)
        return self._schemas.view(tuple(found))


class _Schemas:
    """One schema with all that stands in it; remembers what it has worked out."""

    def __init__(self, root: Any) -> None:
        self._root = root
        # By identity: the parts live as long as the root, and comparing them by value could take long.
        self._known: dict[int, _Cases] = {}
        self._views: dict[int, View] = {}

    def view_of(self, schema: Any) -> View:
        """The view of a schema that stands in this one, or of anything that stands where one should."""
        if not isinstance(schema, dict):
            return ANYTHING
        if id(schema) not in self._views:
            # Most schemas are plain ones, and are looked at once only.
            plain = _plain_kinds(schema)
            seen = View(self, (_Case((schema,), plain),), plain) if plain else self.view(self.cases(schema))
            self._views[id(schema)] = seen
        return self._views[id(schema)]

    def view(self, cases: _Cases) -> View:
        """The cases as one view; if there are none the schema is at odds with itself, or with the model."""
        cases = _bounded(cases)
        if not cases or any(case.kinds == KINDS and not case.rules for case in cases):
            return ANYTHING
        return View(self, cases, frozenset().union(*(case.kinds for case in cases)))

    def all_of(self, schemas: Iterable[Any], open_ids: frozenset[int] = frozenset()) -> _Cases:
        """The cases in which all of the schemas hold."""
        cases = _ANY_CASE
        for schema in schemas:
            cases = _both(cases, self.cases(schema, open_ids))
        return cases

    def cases(self, schema: Any, open_ids: frozenset[int] = frozenset()) -> _Cases:
        """The cases in which the schema holds; `open_ids` are those that are being worked out."""
        if schema is False:
            return ()
        if not isinstance(schema, dict) or id(schema) in open_ids or len(open_ids) > _MAX_STEPS:
            return _ANY_CASE
        if id(schema) not in self._known:
            self._known[id(schema)] = _bounded(self._work_out(schema, open_ids | {id(schema)}))
        return self._known[id(schema)]

    def _work_out(self, schema: dict[str, Any], open_ids: frozenset[int]) -> _Cases:
        if "$id" in schema and schema is not self._root:
            # Its references are not ours.
            return _ANY_CASE
        nullable = _NULL_CASE if schema.get("nullable") is True else ()
        if "$ref" in schema:
            # Whether what stands beside a reference counts is a matter of the draft.
            return self.cases(self._target(schema["$ref"]), open_ids) + nullable
        cases: _Cases = (_Case((schema,), _kinds_of(schema)),)
        for word in ("anyOf", "oneOf"):
            if branches := _as_list(schema.get(word)):
                either = [case for branch in branches for case in self.cases(branch, open_ids)]
                cases = _both(cases, _bounded(tuple(either)))
        return _both(cases, self.all_of(_as_list(schema.get("allOf")), open_ids)) + nullable

    def _target(self, reference: Any) -> Any:
        # What stands at `#/...`; anything for a reference that leads elsewhere, or nowhere.
        if not isinstance(reference, str) or not (reference + "/").startswith("#/"):
            return True
        found = self._root
        for step in unquote(reference).split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and name in map(str, range(min(len(found), _MAX_CASES))):
                found = found[int(name)]
            elif isinstance(found, dict) and name in found:
                found = found[name]
            else:
                return True
        return found


#: What a place admits of which nothing is known.
ANYTHING = View(_Schemas(True), _ANY_CASE)


def view_of(schema: Any) -> View:
    """The view of a JSON schema, or of anything that stands where one should."""
    return _Schemas(schema).view_of(schema)


# -- cases -------------------------------------------------------------------------------------------------


def _bounded(cases: _Cases) -> _Cases:
    # Each case once, if anything can stand in it; too many are as good as any.
    once = {(case.kinds, *map(id, case.rules)): case for case in cases if case.kinds}
    return tuple(once.values()) if len(once) <= _MAX_CASES else _ANY_CASE


def _both(some: _Cases, others: _Cases) -> _Cases:
    if some is _ANY_CASE or others is _ANY_CASE:
        return others if some is _ANY_CASE else some
    if len(some) * len(others) > _MAX_CASES:
        # To leave some out is to admit more.
        return some
    return _bounded(tuple(_joined(one, other) for one in some for other in others))


def _joined(one: _Case, other: _Case) -> _Case:
    rules = {id(rule): rule for rule in one.rules + other.rules}
    return _Case(tuple(rules.values())[:_MAX_CASES], one.kinds & other.kinds)


# -- one schema --------------------------------------------------------------------------------------------


def _as_list(given: Any) -> list[Any]:
    return given if isinstance(given, list) else []


def _plain_kinds(schema: Mapping[str, Any]) -> frozenset[str] | None:
    # Those of a schema that says so by its type alone.
    given = schema.get("type")
    return _TYPES.get(given) if isinstance(given, str) and _COMPOUND.isdisjoint(schema) else None


def _kinds_of(schema: Mapping[str, Any]) -> frozenset[str]:
    kinds = _kinds_of_type(schema.get("type"))
    if values := _as_list(schema.get("enum")):
        kinds &= frozenset().union(*map(_kinds_of_value, values))
    return kinds & _kinds_of_value(schema["const"]) if "const" in schema else kinds


def _kinds_of_type(given: Any) -> frozenset[str]:
    names = given if isinstance(given, list) and given else [given]
    found = [_TYPES.get(name, KINDS) if isinstance(name, str) else KINDS for name in names]
    return frozenset().union(*found)


def _kinds_of_value(value: Any) -> frozenset[str]:
    match value:
        case None:
            return _TYPES["null"]
        case bool():
            return _TYPES["boolean"]
        case float() if not value.is_integer():
            return frozenset(("fraction",))
        case int() | float():
            return _TYPES["integer"]
        case str():
            return _TYPES["string"]
        case list():
            return _TYPES["array"]
        case dict():
            return _TYPES["object"]
        case _:
            return KINDS


def _is_listed(rules: Iterable[Mapping[str, Any]]) -> bool:
    return any("enum" in rule or "const" in rule for rule in rules)


def _member(schema: Mapping[str, Any], step: str | int) -> Any:
    return _item(schema, step) if isinstance(step, int) else _property(schema, step)


def _property(schema: Mapping[str, Any], name: str) -> Any:
    properties, patterns = schema.get("properties"), schema.get("patternProperties")
    if isinstance(properties, dict) and name in properties:
        return properties[name]
    unclear = False
    for pattern, found in patterns.items() if isinstance(patterns, dict) else ():
        matches = _matches(pattern, name)
        if matches:
            return found
        unclear |= matches is None
    return True if unclear else schema.get("additionalProperties", True)


def _matches(pattern: Any, name: str) -> bool | None:
    # None if only running the pattern could tell; a dot is no line end.
    plain = _PLAIN_PATTERN.fullmatch(pattern) if isinstance(pattern, str) else None
    if plain is None or len(f"{name}.".splitlines()) > 1:
        return None
    begin, word, wild, end = plain.groups(default="")
    if wild == ".+":
        # One sign must be left for the dot.
        if not name:
            return False
        name = name[:-1]
    if wild or not end:
        return name.startswith(word) if begin else word in name
    return name == word if begin else name.endswith(word)


def _item(schema: Mapping[str, Any], index: int) -> Any:
    first, others = schema.get("prefixItems"), schema.get("items", True)
    if isinstance(others, list):
        # As it was written before 2020.
        first, others = others, schema.get("additionalItems", True)
    return first[index] if isinstance(first, list) and index < len(first) else others
