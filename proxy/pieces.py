"""What an upstream sends -> pieces of its choices, in one shape whatever the server's version and mood.

Source: vLLM 0.32.0 on the wire (and older ones for `reasoning_content`): many chunks are empty, the finish chunk may
carry text, one read may hold many chunks. Neighbouring chunks that carry nothing but text become one piece, so
that a burst costs one pass through the parser instead of hundreds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from proxy.errors import FloretteError, UpstreamBroken
from proxy.refusals import refusal
from proxy.sse import DONE

_HEAD_WITHOUT = frozenset(("object", "choices", "usage"))
_HEAD_USUAL = frozenset(("id", "object", "created", "model", "choices"))
_CHOICE_USUAL = frozenset(("index", "delta", "message", "finish_reason"))
_NOTHING: dict[str, Any] = {}


@dataclass(slots=True)
class Piece:
    """A part of choice `choice`, or with `choice` None of the answer as a whole, whose further fields are `head`.

    `fields` are further fields of the choice.
    """

    choice: int | None
    content: str = ""
    reasoning: str = ""
    finish: str | None = None
    fields: Mapping[str, Any] | None = None
    head: Mapping[str, Any] | None = None


class _Template:
    """The bytes of a chunk around its text: those of a stream hardly ever differ in anything else.

    To compare them costs a quarter of what reading the whole chunk costs, which is most of the cost of a burst.
    """

    def __init__(self, prefix: bytes, suffix: bytes, choice: int) -> None:
        self._prefix = prefix
        self._suffix = suffix
        self.choice = choice

    @classmethod
    def of(cls, payload: bytes, choice: dict[str, Any]) -> "_Template | None":
        """That of a chunk of nothing but text; None if its text does not tell where it stands."""
        content = choice["delta"]["content"]
        # Letters and digits are written in one way only; standing there once, they stand where the text does.
        quoted = b'"%b"' % content.encode() if content.isascii() and content.isalnum() else b""
        if not quoted or payload.count(quoted) != 1:
            return None
        prefix, _, suffix = payload.partition(quoted)
        return cls(prefix, suffix, choice["index"])

    def text_in(self, payload: bytes) -> str | None:
        """The text of a chunk that differs in its text alone: one JSON string in the place of another."""
        if not (payload.startswith(self._prefix) and payload.endswith(self._suffix)):
            return None
        try:
            text = orjson.loads(payload[len(self._prefix) : len(payload) - len(self._suffix)])
        except orjson.JSONDecodeError:
            return None
        return text if isinstance(text, str) else None


class PieceReader:
    """Reads the payloads of one streamed answer, until it is `done` or has `failed`.

    `usage` is the last that came, `chunks` counts what came.

    With `each_usage`, a usage that stands on a chunk with choices is passed on, too (`continuous_usage_stats`).
    """

    def __init__(self, *, each_usage: bool = False) -> None:
        self._each_usage = each_usage
        self._first: Mapping[str, Any] | None = None
        self._template: _Template | None = None
        self.usage: Mapping[str, Any] | None = None
        self.chunks = 0
        self.done = False
        self.failed: FloretteError | None = None

    def feed(self, payloads: Sequence[bytes]) -> list[Piece]:
        """The pieces in these payloads, up to the one that is no chunk, or that reports an error: see `failed`."""
        pieces: list[Piece] = []
        self.chunks += len(payloads)
        for payload in payloads:
            text = self._template.text_in(payload) if self._template else None
            if self._template and text is not None:
                _add_text(pieces, self._template.choice, text)
                continue
            if payload == DONE:
                self.done = True
                break
            try:
                self._read(payload, pieces)
            except FloretteError as error:
                self.failed = error
                break
        return pieces

    def _read(self, payload: bytes, pieces: list[Piece]) -> None:
        chunk = _parsed(payload)
        choices = chunk.get("choices") or ()
        usual = chunk.keys() == _HEAD_USUAL
        if not usual or self._first is None:
            self._read_head(chunk, pieces, bool(choices))
        for choice in choices:
            plain = _add(pieces, choice, "delta")
            if usual and plain and len(choices) == 1:
                self._template = _Template.of(payload, choice)

    def _read_head(self, chunk: dict[str, Any], pieces: list[Piece], has_choices: bool) -> None:
        self.usage = chunk.get("usage") or self.usage
        without = _HEAD_USUAL if self._each_usage and has_choices else _HEAD_WITHOUT
        first = self._first or {}
        head = {
            name: value
            for name, value in chunk.items()
            if name not in without and value is not None and first.get(name) != value
        }
        if self._first is None:
            self._first = head
        if head:
            pieces.append(Piece(None, head=head))


def read_whole(body: bytes) -> tuple[list[Piece], Mapping[str, Any] | None]:
    """The pieces and the usage of an answer that was not streamed. UpstreamBroken for what is none."""
    answer = _parsed(body)
    choices = answer.get("choices")
    if choices is None:
        raise UpstreamBroken("The upstream's answer has no choices; is it a chat server?")
    pieces = [Piece(None, head={name: value for name, value in answer.items() if name not in _HEAD_WITHOUT})]
    for choice in choices:
        _add(pieces, choice, "message")
        # Some servers give none; what is not streamed is finished all the same.
        pieces[-1].finish = pieces[-1].finish or "stop"
    return pieces, answer.get("usage")


def _parsed(payload: bytes) -> dict[str, Any]:
    try:
        chunk = orjson.loads(payload)
    except orjson.JSONDecodeError:
        raise UpstreamBroken("The upstream sent something that is not JSON.") from None
    if not isinstance(chunk, dict):
        raise UpstreamBroken("The upstream sent JSON that is not an object.")
    if error := chunk.get("error"):
        status = error.get("code") if isinstance(error, dict) else None
        if isinstance(status, int) and 400 <= status < 500:
            # A refusal that came late, after a good status.
            raise refusal(status, {}, payload, key_is_ours=False)
        message = error.get("message") if isinstance(error, dict) else error
        raise UpstreamBroken(f"The upstream failed while it answered: {message}")
    if not isinstance(chunk.get("choices") or [], list) or not isinstance(chunk.get("usage") or {}, dict):
        raise _not_a_completion()
    return chunk


def _not_a_completion() -> UpstreamBroken:
    return UpstreamBroken("The upstream sent JSON that is no chat completion.")


def _add_text(pieces: list[Piece], index: int, text: str) -> None:
    last = pieces[-1] if pieces else None
    if last is None or last.choice != index or last.finish or last.fields:
        pieces.append(Piece(index, text))
    else:
        last.content += text


def _add(pieces: list[Piece], choice: Any, key: str) -> bool:
    # True if the choice holds a text and nothing else.
    said = (choice.get(key) or _NOTHING) if isinstance(choice, dict) else None
    if not isinstance(said, dict):
        raise _not_a_completion()
    index = choice.get("index") or 0
    content = said.get("content") or ""
    reasoning = said.get("reasoning") or said.get("reasoning_content") or ""
    finish = choice.get("finish_reason")
    if not (isinstance(index, int) and index >= 0 and isinstance(content, str) and isinstance(reasoning, str)):
        raise _not_a_completion()
    further = [item for item in choice.items() if item[1] is not None and item[0] not in _CHOICE_USUAL]
    last = pieces[-1] if pieces else None
    if last is None or last.choice != index or last.finish or further or last.fields or (last.content and reasoning):
        pieces.append(Piece(index, content, reasoning, finish, dict(further) if further else None))
    else:
        last.content += content
        last.reasoning += reasoning
        last.finish = finish
    return bool(content) and "index" in choice and not (reasoning or finish or further)
