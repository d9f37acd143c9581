"""What a structural tag admits: a small, slow matcher of xgrammar's tags, as far as Florette writes them.

Source: xgrammar's documentation of structural tags; each form was held against xgrammar 0.2's own matcher.
"""

import json
from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any

from jsonschema import Draft202012Validator

Tag = dict[str, Any]

_DECODER = json.JSONDecoder(strict=False)


def admits(tag: Tag, text: str) -> bool:
    """True if the whole text is an answer that the tag allows. KeyError for a tag of an unknown form."""
    return len(text) in _ends(tag, text, 0)


def _ends(tag: Tag, text: str, at: int) -> set[int]:
    """Where what the tag allows may end, if it begins at this place."""
    return _FORMS[tag["type"]](text, at, **{key: value for key, value in tag.items() if key != "type"})


def _const(text: str, at: int, *, value: str) -> set[int]:
    return {at + len(value)} if text.startswith(value, at) else set()


def _any(text: str, at: int) -> set[int]:
    return set(range(at, len(text) + 1))


def _json(text: str, at: int, *, json_schema: Any, max_whitespace_cnt: int) -> set[int]:
    assert max_whitespace_cnt > 0, "vLLM refuses 0"
    try:
        value, end = _DECODER.raw_decode(text, at)
    except ValueError:
        return set()
    return {end} if Draft202012Validator(json_schema).is_valid(value) else set()


def _tag(text: str, at: int, *, begin: str, content: Tag, end: str) -> set[int]:
    if not text.startswith(begin, at):
        return set()
    found = _ends(content, text, at + len(begin))
    if content["type"] == "any_text":
        # It goes on up to the first end.
        first = text.find(end, at + len(begin))
        found &= {first}
    return {place + len(end) for place in found if text.startswith(end, place)}


def _or(text: str, at: int, *, elements: list[Tag]) -> set[int]:
    return _all_ends(elements, text, [at])


def _sequence(text: str, at: int, *, elements: list[Tag]) -> set[int]:
    return reduce(lambda places, element: _all_ends([element], text, places), elements, {at})


def _tags(text: str, at: int, *, tags: list[Tag], separator: str) -> set[int]:
    assert not separator
    return _repeated(tags, text, {at})


def _triggered(text: str, at: int, *, triggers: list[str], tags: list[Tag], stop_after_first: bool) -> set[int]:
    # Any text, but where a trigger stands a tag has to follow.
    [trigger] = triggers
    assert all(tag["begin"].startswith(trigger) for tag in tags)
    found = text.find(trigger, at)
    if found < 0:
        return _any(text, at)
    behind = _all_ends(tags, text, [found])
    if not stop_after_first:
        further = {"type": "triggered_tags", "triggers": triggers, "tags": tags, "stop_after_first": False}
        behind = _all_ends([further], text, behind)
    return behind | set(range(at, found + 1))


def _all_ends(tags: Iterable[Tag], text: str, places: Iterable[int]) -> set[int]:
    return {end for place in places for tag in tags for end in _ends(tag, text, place)}


def _repeated(tags: list[Tag], text: str, places: set[int]) -> set[int]:
    further = _all_ends(tags, text, places) - places
    return _repeated(tags, text, places | further) if further else places


_FORMS: dict[str, Callable[..., set[int]]] = {
    "const_string": _const,
    "any_text": _any,
    "json_schema": _json,
    "tag": _tag,
    "or": _or,
    "sequence": _sequence,
    "tags_with_separator": _tags,
    "triggered_tags": _triggered,
}
