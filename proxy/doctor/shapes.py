"""The wire form: rules over the chunks of a stream, and over the JSON of a whole completion.

Sources: OpenAI's OpenAPI document 2.3.0 (CreateChatCompletionStreamResponse, CreateChatCompletionResponse), and what
its Python SDK does with chunks: `accumulate_delta` joins every text that comes twice, so that an id sent again becomes
"call_1call_1", and `.stream()` loses a call whose later pieces say `"type": null`.
"""

import json
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from proxy.doctor.exchange import Answer
from proxy.doctor.findings import Finding, fail, warn
from proxy.doctor.rule import rule
from proxy.doctor.said import as_object, entries, objects
from proxy.doctor.sse import DONE, Json, Stream

AREA = "wire form"

#: So many chunks that say nothing are no accident: the model goes on and is not heard.
_IDLE_CHUNKS = 3

_HEAD = {"id": str, "created": int, "model": str}


@rule(AREA, "a stream is JSON events and nothing else", "streams")
def events(answer: Answer, stream: Stream) -> Iterator[Finding]:
    """An `event:` name would hide the event from the SDK; half an event is lost."""
    if not answer.content_type.startswith("text/event-stream"):
        yield fail("The content-type is another.", answer, answer.content_type, "text/event-stream")
    for line in stream.strays[:1]:
        yield fail("A line is neither data nor a comment.", answer, line, "data: {...}")
    for payload in stream.unread[:1]:
        yield fail("An event's data is no JSON object.", answer, payload, "a chat.completion.chunk")
    if stream.unended:
        yield fail("The last event is not ended.", answer, stream.unended, "a blank line behind each event")


@rule(AREA, "[DONE] ends a stream, and the answer with it", "streams")
def done(answer: Answer, stream: Stream) -> Iterator[Finding]:
    """A stream without it broke; async clients read on behind it, so that the answer has to end there."""
    ends = [place for place, payload in enumerate(stream.payloads, 1) if payload == DONE]
    if ends != [len(stream.payloads)]:
        last = stream.payloads[-1] if stream.payloads else "no event at all"
        yield fail("[DONE] is not its one last event.", answer, f"{len(ends)} times; the last event: {last}", DONE)
    if answer.broke:
        yield fail("The answer did not end well.", answer, answer.broke)


@rule(AREA, "every chunk has the fields of a chunk", "streams")
def chunk_fields(answer: Answer, stream: Stream) -> Iterator[Finding]:
    """Errors that come mid-stream are told here, too."""
    for chunk in stream.chunks:
        if "error" in chunk:
            yield fail("An error came in the middle of the stream.", answer, _json(chunk), "a chat.completion.chunk")
            continue
        wrong = _wrong(chunk, {"object": "chat.completion.chunk", **_HEAD, "choices": list})
        for entry in objects(chunk.get("choices")):
            wrong += _wrong(entry, {"index": int, "delta": dict})
            wrong += [] if entry.get("finish_reason") is None else _wrong(entry, {"finish_reason": str})
        if wrong:
            yield fail("Fields of a chunk are missing or of another type.", answer, _json(chunk), ", ".join(wrong))


@rule(AREA, "one id, created and model on all chunks", "streams")
def one_head(answer: Answer, stream: Stream) -> Iterator[Finding]:
    """Clients tell answers apart by the id."""
    for name in _HEAD:
        seen = dict.fromkeys(_json(chunk.get(name)) for chunk in stream.chunks if "error" not in chunk)
        if len(seen) > 1:
            yield fail(f"The {name} changes on the way.", answer, f"{name}: {', then '.join(seen)}", "one")


@rule(AREA, "the role comes once, and first", "streams")
def role_once(answer: Answer, stream: Stream) -> Iterator[Finding]:
    """A role sent again becomes "assistantassistant"."""
    for deltas in _deltas(stream):
        roles = [(place, delta["role"]) for place, delta in enumerate(deltas) if delta.get("role") is not None]
        if roles != [(0, "assistant")]:
            came = ", ".join(f"{role!r} in delta {place}" for place, role in roles[:5]) or "no role"
            yield fail("The role is not in the first delta alone.", answer, came, "'assistant' in delta 0")


@rule(AREA, "a call's id, type and name come once, with its first piece", "streams")
def call_heads(answer: Answer, stream: Stream) -> Iterator[Finding]:
    """Null or again is not once: see above what the SDK makes of it."""
    for first, *later in _calls(stream):
        wanted: Json = {"id": str, "type": "function"} if "function" in first else {}
        function = as_object(first.get("function", first))
        if wrong := _wrong(first, wanted) + _wrong(function, {"name": str}):
            yield fail("A call's first piece lacks some of them.", answer, _json(first), ", ".join(wrong))
        for piece in later:
            inner = as_object(piece.get("function", piece))
            if again := [name for name in ("id", "type") if name in piece] + ["name"] * ("name" in inner):
                yield fail("A later piece has them again.", answer, _json(piece), f"no {', '.join(again)}")


@rule(AREA, 'a call\'s arguments begin as "" and go on as text', "streams")
def call_arguments(answer: Answer, stream: Stream) -> Iterator[Finding]:
    """Many clients add piece to piece without looking: a missing one is None to them."""
    for first, *later in _calls(stream):
        begun, due = as_object(first.get("function", first)).get("arguments"), '"arguments": ""'
        if not isinstance(begun, str):
            yield fail("A call's first piece has no arguments.", answer, _json(first), due)
        elif begun:
            yield warn("A call's first piece has arguments in it already.", answer, _json(first), due)
        for piece in later:
            if not isinstance(as_object(piece.get("function", piece)).get("arguments"), str):
                yield fail("A later piece has no arguments.", answer, _json(piece), '"arguments": "..."')


@rule(AREA, "calls are numbered 0, 1, ... and do not interleave", "streams")
def call_order(answer: Answer, stream: Stream) -> Iterator[Finding]:
    """What comes behind the next call's beginning is lost to clients that have closed the one before."""
    for deltas in _deltas(stream):
        numbers = [call.get("index") for delta in deltas for call in objects(delta.get("tool_calls"))]
        runs = [number for number, _ in groupby(numbers)]
        if runs != list(range(len(runs))):
            yield fail("The indexes are out of order.", answer, f"index {_json(runs)}", "0, 1, ... each in one run")


@rule(AREA, "choices come up in order", "streams")
def choice_order(answer: Answer, stream: Stream) -> Iterator[Finding]:
    """The SDK's own stream reader keeps them in a list."""
    numbers = list(dict.fromkeys(_json(entry.get("index")) for entry in entries(stream.chunks)))
    if numbers != [str(place) for place in range(len(numbers))]:
        yield fail("Choices come up out of order.", answer, f"index {', '.join(numbers)}", "0, 1, ...")


@rule(AREA, "each choice finishes once, and says nothing behind it", "streams")
def one_finish(answer: Answer, stream: Stream) -> Iterator[Finding]:
    """No finish looks like a broken stream, two like two answers."""
    for same in _choices(stream):
        ends = [place for place, entry in enumerate(same, 1) if entry.get("finish_reason") is not None]
        if ends != [len(same)]:
            came = f"finish_reason in chunks {_json(ends)} of {len(same)}"
            yield fail("finish_reason is not in the last chunk alone.", answer, came, "one finish chunk, the last")


@rule(AREA, "a stream ends when its last call does", "streams")
def no_idling(answer: Answer, stream: Stream) -> Iterator[Finding]:
    """What is generated and thrown away is paid for, and waited for."""
    for same in _choices(stream):
        calling = [place for place, entry in enumerate(same) if as_object(entry.get("delta")).get("tool_calls")]
        idle = [entry for entry in same[calling[-1] + 1 :] if _says_nothing(entry)] if calling else []
        if len(idle) >= _IDLE_CHUNKS:
            came = f"{len(idle)} chunks like {_json(idle[0])}"
            yield warn("Chunks that say nothing follow the last call.", answer, came, "the finish chunk")


@rule(AREA, "a completion has the fields of a completion", "completions")
def completion_fields(answer: Answer, whole: Json) -> Iterator[Finding]:
    """Content is null or text, and there even beside calls."""
    if not answer.content_type.startswith("application/json"):
        yield fail("The content-type is another.", answer, answer.content_type, "application/json")
    if answer.broke:
        yield fail("The answer did not end well.", answer, answer.broke)
    wrong = _wrong(whole, {"object": "chat.completion", **_HEAD})
    for entry in objects(whole.get("choices")):
        message = as_object(entry.get("message"))
        wrong += _wrong(entry, {"index": int, "finish_reason": str}) + _wrong(message, {"role": "assistant"})
        if not isinstance(message.get("content", 0), str | None):
            wrong.append('"content": text or null')
    if wrong:
        yield fail("Fields are missing or of another type.", answer, answer.text, ", ".join(wrong))


@rule(AREA, "a call in a completion has id, type, name and arguments as text", "completions")
def completion_calls(answer: Answer, whole: Json) -> Iterator[Finding]:
    """Arguments are JSON in a string, never an object."""
    for entry in objects(whole.get("choices")):
        calls = as_object(entry.get("message")).get("tool_calls")
        if calls == []:
            yield warn("An answer without calls has an empty list of them.", answer, '"tool_calls": []', "no such key")
        for call in objects(calls):
            function = as_object(call.get("function"))
            wrong = _wrong(call, {"id": str, "type": "function"}) + _wrong(function, {"name": str})
            if wrong or not isinstance(function.get("arguments"), str):
                due = ", ".join(wrong or ['"arguments": "{...}"'])
                yield fail("A call lacks some of them.", answer, _json(call), due)


def _wrong(fields: Json, wanted: Json) -> list[str]:
    """What should stand there instead, for each field that is not as wanted: a value or a type."""
    return [
        f'"{name}": {_json(due) if isinstance(due, str) else _TYPES[due]}'
        for name, due in wanted.items()
        if not _fits(fields.get(name), due)
    ]


_TYPES: dict[Any, str] = {str: "text", int: "a number", list: "a list", dict: "an object"}


def _fits(value: Any, due: Any) -> bool:
    if isinstance(due, str):
        return bool(value == due)
    # An empty id or name is as good as none.
    return isinstance(value, due) and value != ""


def _choices(stream: Stream) -> Iterator[list[Json]]:
    """Each choice's entries of all chunks."""
    found: dict[str, list[Json]] = {}
    for entry in entries(stream.chunks):
        found.setdefault(_json(entry.get("index")), []).append(entry)
    yield from found.values()


def _deltas(stream: Stream) -> Iterator[list[Json]]:
    return ([as_object(entry.get("delta")) for entry in same] for same in _choices(stream))


def _calls(stream: Stream) -> Iterator[list[Json]]:
    """Each call's pieces; of the older form there is one call at most."""
    for deltas in _deltas(stream):
        yield from _grouped(call for delta in deltas for call in objects(delta.get("tool_calls")))
        older = [delta["function_call"] for delta in deltas if as_object(delta.get("function_call"))]
        yield from [older] if older else []


def _grouped(calls: Iterable[Json]) -> list[list[Json]]:
    found: dict[str, list[Json]] = {}
    for call in calls:
        found.setdefault(_json(call.get("index")), []).append(call)
    return list(found.values())


def _says_nothing(entry: Json) -> bool:
    delta = as_object(entry.get("delta"))
    return entry.get("finish_reason") is None and not any(delta.values())


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
