"""Structural tags: what an answer may be, in the form in which vLLM's guided decoding takes it.

    answer = [thinking] ( calls [end] | any text, calls in it | JSON of a schema )

Source: xgrammar's structural tags as vLLM 0.32.0 takes them in `response_format`; each form here was run there.
"""

from collections.abc import Sequence
from typing import Any, Literal

from proxy.formats.base import Grammar, Schema, ToolUse
from proxy.wire import Tool

#: When an answer gets a grammar: where the request asks for what it gives, wherever there are tools, never.
Guided = Literal["auto", "always", "off"]

#: One blank between two signs of JSON is enough; without a bound a small model can go on with blanks for ever.
_MAX_BLANKS = 1

#: Words of a schema that xgrammar takes and does not hold an answer to, or not always.
_UNHEARD = frozenset(
    (
        "contains",
        "dependencies",
        "dependentRequired",
        "dependentSchemas",
        "else",
        "if",
        "minContains",
        "maxContains",
        "not",
        "oneOf",
        "then",
        "uniqueItems",
    )
)
#: Beside one of these it hears of nothing else, but for what says nothing about the instance, or says it twice.
_ALONE = ("$ref", "allOf", "anyOf", "pattern")
_BESIDE = frozenset(
    ("$defs", "$id", "$schema", "default", "definitions", "deprecated", "description", "examples", "title")
)

_THINKING: Grammar = {"type": "tag", "begin": "", "content": {"type": "any_text"}, "end": "</think>\n\n"}


def structural_tag(grammar: Grammar) -> dict[str, Any]:
    """The `response_format` of a grammar."""
    return {"type": "structural_tag", "format": grammar}


def call(begin: str, tool: Tool, end: str) -> Grammar:
    """A call: `begin`, arguments that fit the tool's schema, `end`."""
    # A schema that does not say so means it: nothing else is ever handed on as a call.
    arguments = {**tool.json_schema, "type": "object"}
    return {"type": "tag", "begin": begin, "content": _json(arguments), "end": end}


def enforces(schema: Any) -> bool:
    """True if what the grammar of the schema admits is sure to fit it; else it has to be looked at."""
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting += part
        elif isinstance(part, dict):
            if not _is_heard(part):
                return False
            waiting += part.values()
    return True


def _is_heard(schema: dict[str, Any]) -> bool:
    words = schema.keys() - _BESIDE - {"type"}
    if not _UNHEARD.isdisjoint(words) or (len(words) > 1 and any(word in words for word in _ALONE)):
        return False
    several = schema.get("allOf")
    if isinstance(several, list) and len(several) > 1:
        return False
    # Of names that are none of its properties it asks for none.
    required, known = schema.get("required"), schema.get("properties")
    names = required if isinstance(required, list) else []
    return not schema.get("additionalProperties") or all(isinstance(known, dict) and name in known for name in names)


def block(begin: str) -> Grammar:
    """A call whose input is a Markdown block of Python."""
    return {"type": "tag", "begin": f"{begin}\n```py\n", "content": {"type": "any_text"}, "end": "\n```\n"}


def answer(
    use: ToolUse,
    begun: Sequence[Grammar],
    anew: Sequence[Grammar],
    *,
    trigger: str,
    thinking: bool,
    between: str = "",
    end: str = "",
    lead: str = "",
) -> Grammar:
    """All that an answer may be.

    `begun` are the calls as they go on behind the prompt's prefill, `anew` as they begin anywhere else, with
    `trigger`; `between` stands between two calls, `end` is what a model writes behind all of them, if anything, and
    `lead` what may stand before an answer without any.
    """
    first: Grammar = {"type": "or", "elements": list(begun)}
    calls = first if use.single else _sequence(first, _more(anew, between, end))
    if use.demands:
        wanted = calls
    elif use.answer is not None:
        said = [_json(use.answer), *([_sequence(_const(lead), _json(use.answer))] if lead else [])]
        wanted = {"type": "or", "elements": [*said, calls]}
    else:
        wanted = {"type": "triggered_tags", "triggers": [trigger], "tags": list(anew), "stop_after_first": use.single}
    return _sequence(_THINKING, wanted) if thinking else wanted


def _more(anew: Sequence[Grammar], between: str, end: str) -> Grammar:
    tags = [{**tag, "begin": f"{between}{tag['begin']}"} for tag in anew]
    if end:
        # It has to be there: a model that means to write it, and may not, makes a call that it does not mean.
        tags.append({"type": "tag", "begin": end, "content": _const(":"), "end": ""})
    return {"type": "tags_with_separator", "tags": tags, "separator": ""}


def _sequence(*elements: Grammar) -> Grammar:
    return {"type": "sequence", "elements": list(elements)}


def _const(value: str) -> Grammar:
    return {"type": "const_string", "value": value}


def _json(schema: Schema) -> Grammar:
    return {"type": "json_schema", "json_schema": schema, "max_whitespace_cnt": _MAX_BLANKS}
