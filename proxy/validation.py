"""Does a JSON text fit a JSON schema, and if not, what is wrong, in words that a model can act on.

Schemas come from callers: nothing is fetched for a `$ref`, no pattern of theirs is run over a text (a pattern can
take years), and what takes too long to check is let pass; so is what nobody knows the meaning of.

Source: JSON Schema 2020-12, as the jsonschema package checks it; OpenAPI 3.0 for `nullable`, draft 4 for an
`exclusiveMinimum` of true.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.exceptions import UndefinedTypeCheck, UnknownType, best_match
from jsonschema.validators import extend
from referencing import Registry
from referencing.exceptions import Unresolvable

Rule = Callable[[Any, Any, Any, Mapping[str, Any]], Iterable[ValidationError] | None]

#: So many mistakes are told at once, each in so many characters: more would tell a model no more.
_MAX_FAULTS = 3
_MAX_FAULT = 300

#: So many rules are applied, and mistakes passed on: at most half a second's work, and enough for 1,000 objects of
#: five fields. References can make a small schema a huge one, and arguments can be long.
_MAX_STEPS = 30_000
#: Rules within rules: each costs some 5 of Python's 1,000 frames, and at their end referencing's Rust code panics.
_MAX_DEPTH = 100
#: A mistake's message quotes what it is about, however long: so much of it takes as long as a step.
_QUOTED_PER_STEP = 64

_RULES: Mapping[str, Rule] = Draft202012Validator.VALIDATORS

#: What a schema that is none, or too much of one, can raise.
_UNUSABLE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    UndefinedTypeCheck,
    UnknownType,
    Unresolvable,
    ValueError,
)


class _TooLong(ValueError):
    """The check is given up."""


class _Steps:
    """What may still be looked at. It travels as the `format_checker`, which jsonschema hands on to every step."""

    def __init__(self) -> None:
        self._left = _MAX_STEPS
        self._depth = 0

    def take(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0:
            raise _TooLong

    @contextmanager
    def within(self) -> Iterator[None]:
        self._depth += 1
        try:
            if self._depth > _MAX_DEPTH:
                raise _TooLong
            yield
        finally:
            self._depth -= 1


def _counted(check: Rule) -> Rule:
    def counted(validator: Any, rule: Any, instance: Any, schema: Mapping[str, Any]) -> Iterator[ValidationError]:
        steps: _Steps = validator.format_checker
        steps.take(1 + (len(rule) if isinstance(rule, list | dict) else 0))
        with steps.within():
            for error in check(validator, rule, instance, schema) or ():
                steps.take(1 + len(error.message) // _QUOTED_PER_STEP)
                yield error

    return counted


# -- rules of our own --------------------------------------------------------------------------------------


def _never_wrong(*_: Any) -> Iterator[ValidationError]:
    return iter(())


def _no_others(validator: Any, rule: Any, instance: Any, schema: Mapping[str, Any]) -> Iterable[ValidationError] | None:
    # But for names that a pattern may allow.
    if "patternProperties" in schema:
        return None
    return _RULES["additionalProperties"](validator, rule, instance, schema)


def _or_null(word: str) -> Rule:
    def check(validator: Any, rule: Any, instance: Any, schema: Mapping[str, Any]) -> Iterable[ValidationError] | None:
        if instance is None and schema.get("nullable") is True:
            return None
        return _RULES[word](validator, rule, instance, schema)

    return check


def _or_flag(word: str) -> Rule:
    def check(validator: Any, rule: Any, instance: Any, schema: Mapping[str, Any]) -> Iterable[ValidationError] | None:
        return None if isinstance(rule, bool) else _RULES[word](validator, rule, instance, schema)

    return check


def _all_differ(validator: Any, rule: Any, instance: Any, _: Mapping[str, Any]) -> Iterator[ValidationError]:
    # The package compares each with each.
    if rule is True and isinstance(instance, list):
        validator.format_checker.take(len(instance))
        seen = {json.dumps(item, sort_keys=True) for item in instance}
        if len(seen) < len(instance):
            yield ValidationError("the items must differ from one another")


_OURS: Mapping[str, Rule] = {
    # What is left out by these would be told by running patterns.
    "pattern": _never_wrong,
    "patternProperties": _never_wrong,
    "unevaluatedProperties": _never_wrong,
    "unevaluatedItems": _never_wrong,
    "additionalProperties": _no_others,
    "type": _or_null("type"),
    "enum": _or_null("enum"),
    "exclusiveMinimum": _or_flag("exclusiveMinimum"),
    "exclusiveMaximum": _or_flag("exclusiveMaximum"),
    "uniqueItems": _all_differ,
}

_Validator: Any = extend(  # type: ignore[no-untyped-call]
    Draft202012Validator, {word: _counted(check) for word, check in {**_RULES, **_OURS}.items()}
)


def fault_in(text: str, schema: Mapping[str, Any]) -> str | None:
    """What is wrong with the JSON text by the schema; None if nothing is, or if the schema cannot be used."""
    try:
        value = json.loads(text, parse_float=_number, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return "it is not valid JSON"
    try:
        return "; ".join(_told(error) for error in _errors(value, schema)) or None
    except _UNUSABLE:
        # A model cannot be blamed for it.
        return None


def _number(written: str) -> float:
    # 2.0 is the same number as 2, also where a list's items have to differ.
    value = float(written)
    return int(value) if value.is_integer() else value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _errors(value: Any, schema: Mapping[str, Any]) -> list[ValidationError]:
    rules = {word: rule for word, rule in schema.items() if word != "$schema"}
    if '"$schema"' in json.dumps(rules):
        # What is of another dialect would be checked by its rules: its patterns would be run.
        return []
    steps: Any = _Steps()
    errors = _Validator(rules, registry=Registry(), format_checker=steps).iter_errors(value)
    return [best_match([error]) for error in islice(errors, _MAX_FAULTS)]


def _told(error: ValidationError) -> str:
    where = "".join(f"[{step!r}]" if isinstance(step, int) else f".{step}" for step in error.absolute_path)
    message = error.message
    if len(message) > _MAX_FAULT:
        # It quotes the model's text first, and says what is wrong with it last.
        message = f"{message[: _MAX_FAULT // 2]} ... {message[-_MAX_FAULT // 2 :]}"
    return f"at '{where.lstrip('.')}': {message}" if where else message
