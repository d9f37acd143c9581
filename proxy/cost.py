"""What one answer costs, in tokens: what the upstream told, or else an estimate.

The estimate takes four characters for a token, the usual rule for English: those of the texts in the request, and
those of the answer as far as it came. A stream that passes through is counted by its chunks with text, since vLLM
sends a token in each. Whoever leaves an answer in the middle pays for what came until then.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from proxy.events import CHARACTERS_PER_TOKEN, CallArguments, CallStart, Event, Reasoning, Text, Usage

#: The fields of a chunk's delta, or of a completion's choice, that hold what the model wrote.
_WRITTEN = ("content", "text", "reasoning", "reasoning_content", "tool_calls", "function_call")

#: So much of an answer's end is looked through for its usage: only the choices, or the embeddings, are longer.
_TAIL_BYTES = 64 * 1024

#: Inside a JSON string the second quote would have a backslash before it.
_USAGE = re.compile(rb'"usage"\s*:\s*')


class Cost:
    """Counts one answer to the request `body`. `writes`: the model writes, it does not only read."""

    def __init__(self, body: Mapping[str, Any], *, writes: bool = True) -> None:
        self._asked = _characters(body)
        self._writes = writes
        self._told: int | None = None
        self._came = 0
        self._tail = b""

    def events(self, said: Iterable[tuple[int, Event]]) -> None:
        """Counts what a turn said."""
        for _, event in said:
            match event:
                case Text(text) | Reasoning(text) | CallArguments(_, text) | CallStart(name=text):
                    self._came += len(text)
                case Usage(usage):
                    self._tell(usage)

    def payloads(self, payloads: Iterable[bytes]) -> None:
        """Counts chunks of a stream that passes through, whatever they hold."""
        for payload in payloads:
            chunk = _parsed(payload)
            self._tell(chunk.get("usage"))
            choices = chunk.get("choices")
            if isinstance(choices, list) and any(map(_has_text, choices)):
                self._came += CHARACTERS_PER_TOKEN

    def part(self, data: bytes) -> None:
        """Counts a part of an answer that passes through whole."""
        self._came += len(data) if self._writes else 0
        self._tail = (self._tail + data)[-_TAIL_BYTES:]

    def tokens(self, *, refused: bool) -> int:
        """What the answer cost. One that was `refused` before anything came, and without usage, cost nothing."""
        self._tell(_usage_in(self._tail))
        if self._told is not None:
            return self._told
        if refused and not self._came:
            return 0
        return -(-(self._asked + self._came) // CHARACTERS_PER_TOKEN)

    def _tell(self, usage: Any) -> None:
        if not isinstance(usage, Mapping):
            return
        # Rerankers tell the total alone.
        read, written = usage.get("prompt_tokens"), usage.get("completion_tokens") or 0
        told = read + written if isinstance(read, int) and isinstance(written, int) else usage.get("total_tokens")
        if isinstance(told, int) and told >= 0:
            self._told = told


def _characters(body: Mapping[str, Any]) -> int:
    # Of all texts in the request; not by recursion, since a request may be nested deeply.
    found = 0
    unread: list[Any] = [body]
    while unread:
        value = unread.pop()
        if isinstance(value, str):
            # An image in a URL is no text.
            found += 0 if value.startswith("data:") else len(value)
        elif isinstance(value, dict):
            unread += value.values()
        elif isinstance(value, list):
            unread += value
            # A prompt may be a list of tokens.
            found += CHARACTERS_PER_TOKEN * sum(type(item) is int for item in value)
    return found


def _parsed(payload: bytes) -> dict[str, Any]:
    try:
        chunk = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return {}
    return chunk if isinstance(chunk, dict) else {}


def _has_text(choice: Any) -> bool:
    said = choice.get("delta", choice) if isinstance(choice, dict) else None
    return isinstance(said, dict) and any(said.get(field) for field in _WRITTEN)


def _usage_in(tail: bytes) -> Any:
    # The usage at the end of an answer's JSON; None if none can be read.
    *_, last = (None, *_USAGE.finditer(tail))
    if last is None:
        return None
    try:
        return json.JSONDecoder().raw_decode(tail[last.end() :].decode("utf-8", "replace"))[0]
    except (ValueError, RecursionError):
        return None
