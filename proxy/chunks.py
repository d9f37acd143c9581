"""Events -> OpenAI's chat.completion.chunk objects, and the same events -> one chat.completion.

What SDKs demand of the chunks (seen with openai 3.52 and langchain-openai 1.7): the role once per choice and first;
a call's id, type and name once, with `arguments: ""`, and no null or empty ones after; choices first appear in
ascending order; one finish chunk per choice; the usage chunk has `choices: []` and is the last.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from proxy.events import (
    CallArguments,
    CallStart,
    Dialog,
    Event,
    Extras,
    Reasoning,
    Session,
    Text,
    ToolEnd,
    ToolEvent,
    ToolProgress,
    ToolStart,
    TurnEnd,
    TurnStart,
    Usage,
    Waiting,
)
from proxy.sse import COMMENT, encode, to_json

Chunk = dict[str, Any]

#: The objects of an answer that hold token counts.
_COUNTS = ("usage", "prompt_tokens_details", "completion_tokens_details")

#: The fields that stand on every chunk; any other of the answer's fields stands on one.
_LASTING = ("id", "created", "model", "system_fingerprint", "service_tier")


@dataclass(frozen=True, slots=True)
class Style:
    """How an answer is written: `legacy` in `function_call`; the name of the reasoning field; with its usage?

    `model` is what the caller calls the model; if that `is_alias`, the upstream's own name for it is not told.
    `tells_tools`: with what became of calls that were run here; `tells_dialog`: with all messages of the answer.
    """

    legacy: bool = False
    reasoning_field: str = "reasoning_content"
    tells_usage: bool = True
    model: str = ""
    is_alias: bool = False
    tells_tools: bool = False
    tells_dialog: bool = False


class ChunkWriter:
    """Writes one streamed answer. `defaults` are `id`, `created` and `model`, should the upstream not send them."""

    def __init__(self, style: Style, defaults: Mapping[str, Any]) -> None:
        self._style = style
        self._head: Chunk = {**defaults, "object": "chat.completion.chunk"}
        self._once: Chunk = {}
        self._template_of: tuple[int, int] | None = None
        self._before = self._behind = b""
        self._extras: dict[int, Chunk] = {}
        self._begun = False
        self._said: set[int] = set()

    def encoded(self, choice: int, event: Event) -> bytes:
        """The same chunks as bytes of an event stream; a Waiting is a comment, which clients skip."""
        if type(event) is Waiting:
            return COMMENT
        if type(event) is not CallArguments or self._extras or self._once:
            return b"".join([encode(chunk) for chunk in self.write(choice, event)])
        # Most of what is written: only the text differs from one to the next.
        if (choice, event.index) != self._template_of:
            self._template_of = (choice, event.index)
            [chunk] = self.write(choice, CallArguments(event.index, "\0"))
            self._before, _, self._behind = encode(chunk).rpartition(b'"\\u0000"')
        return b"%b%b%b" % (self._before, to_json(event.text), self._behind)

    def write(self, choice: int, event: Event) -> list[Chunk]:
        """The chunks that tell of the event; most events make one."""
        match event:
            case CallArguments(index, text):
                return [self._chunk(choice, self._arguments(index, text))]
            case Text(text):
                self._said.add(choice)
                return [self._chunk(choice, {"content": text})]
            case Reasoning(text):
                self._said.add(choice)
                return [self._chunk(choice, {self._style.reasoning_field: text})]
            case TurnStart(head):
                return self._start(choice, head)
            case CallStart(index, call_id, name):
                self._said.add(choice)
                return [self._chunk(choice, self._call(index, call_id, name))]
            case Extras(fields, head):
                self._keep(head)
                self._extras[choice] = _joined(self._extras.get(choice, {}), _complete(fields))
                return []
            case TurnEnd():
                return self._end(choice, event)
            case Usage(usage) if self._style.tells_usage:
                return [self._aside("usage", _without_nulls(usage))]
            case ToolStart() | ToolProgress() | ToolEnd() if self._style.tells_tools:
                return [self._aside("florette", _tool_event(event))]
            case Dialog(messages) if self._style.tells_dialog:
                return [self._aside("florette", {"messages": _in_style(messages, self._style)})]
            case Session(session):
                return [self._aside("florette", {"session": session})]
            case _:
                return []

    def _aside(self, name: str, told: Any) -> Chunk:
        return {**self._head, **self._take_once(), "choices": [], name: told}

    def _start(self, choice: int, head: Mapping[str, Any]) -> list[Chunk]:
        if not self._begun:
            self._keep(head)
            self._begun = True
        return [self._chunk(choice, {"role": "assistant", "content": None})]

    def _end(self, choice: int, event: TurnEnd) -> list[Chunk]:
        # An empty answer is an empty text, as when it is not streamed.
        silent = [] if choice in self._said else [self._chunk(choice, {"content": ""})]
        finish = _finish(event.finish_reason, self._style)
        return [*silent, self._chunk(choice, {}, finish, event.fields)]

    def _keep(self, head: Mapping[str, Any]) -> None:
        self._template_of = None
        head = _named(head, self._style)
        self._head |= {name: head[name] for name in _LASTING if head.get(name)}
        self._once |= _without_nulls({name: value for name, value in head.items() if name not in _LASTING})

    def _call(self, index: int, call_id: str, name: str) -> Chunk:
        function = {"name": name, "arguments": ""}
        if self._style.legacy:
            return {"function_call": function}
        return {"tool_calls": [{"index": index, "id": call_id, "type": "function", "function": function}]}

    def _arguments(self, index: int, text: str) -> Chunk:
        if self._style.legacy:
            return {"function_call": {"arguments": text}}
        return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}

    def _chunk(
        self, choice: int, delta: Chunk, finish: str | None = None, fields: Mapping[str, Any] | None = None
    ) -> Chunk:
        written: Chunk = {"index": choice, "delta": delta, "logprobs": None, "finish_reason": finish}
        if self._extras:
            written |= self._extras.pop(choice, {})
        if fields:
            written |= fields
        if self._once:
            return {**self._head, **self._take_once(), "choices": [written]}
        return {**self._head, "choices": [written]}

    def _take_once(self) -> Chunk:
        once, self._once = self._once, {}
        return once


@dataclass(slots=True)
class _Choice:
    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[tuple[str, str, list[str]]] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)
    finish: str = "stop"

    def add(self, event: Event) -> None:
        match event:
            case Text(text):
                self.text.append(text)
            case Reasoning(text):
                self.reasoning.append(text)
            case CallStart(_, call_id, name):
                self.calls.append((call_id, name, []))
            case CallArguments(index, text):
                self.calls[index][2].append(text)
            case Extras(fields):
                self.fields = _joined(self.fields, _complete(fields))
            case TurnEnd(finish, fields):
                self.finish = finish
                self.fields |= fields

    def message(self, style: Style) -> dict[str, Any]:
        silent = not self.text and (self.calls or self.reasoning)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if silent else "".join(self.text),
            "refusal": None,
        }
        if self.reasoning:
            message[style.reasoning_field] = "".join(self.reasoning)
        calls = [
            {"id": call_id, "type": "function", "function": {"name": name, "arguments": "".join(arguments)}}
            for call_id, name, arguments in self.calls
        ]
        if calls and style.legacy:
            message["function_call"] = calls[0]["function"]
        elif calls:
            message["tool_calls"] = calls
        return message


class Collector:
    """Folds the same events into one chat.completion."""

    def __init__(self, style: Style, defaults: Mapping[str, Any]) -> None:
        self._style = style
        self._head: dict[str, Any] = {**defaults, "object": "chat.completion"}
        self._choices: dict[int, _Choice] = {}
        self._usage: dict[str, Any] = {}
        self._florette: dict[str, Any] = {}

    def add(self, choice: int, event: Event) -> None:
        """Goes on by an event."""
        match event:
            case TurnStart(head):
                self._head |= {name: value for name, value in _named(head, self._style).items() if value is not None}
                self._choices[choice] = _Choice()
            case Usage(usage):
                self._usage = {"usage": _without_nulls(usage)}
            case ToolStart() | ToolProgress() | ToolEnd() if self._style.tells_tools:
                self._florette.setdefault("events", []).append(_tool_event(event))
            case Dialog(messages) if self._style.tells_dialog:
                self._florette["messages"] = _in_style(messages, self._style)
            case Session(session):
                self._florette["session"] = session
            case ToolStart() | ToolProgress() | ToolEnd() | Dialog() | Waiting():
                pass
            case _:
                self._choices[choice].add(event)

    def completion(self) -> dict[str, Any]:
        """The whole answer."""
        choices = [self._written(index, self._choices[index]) for index in sorted(self._choices)]
        florette = {"florette": self._florette} if self._florette else {}
        return {**self._head, "choices": choices, **self._usage, **florette}

    def _written(self, index: int, choice: _Choice) -> dict[str, Any]:
        return {
            "index": index,
            "message": choice.message(self._style),
            "logprobs": None,
            "finish_reason": _finish(choice.finish, self._style),
            **choice.fields,
        }


def _named(head: Mapping[str, Any], style: Style) -> Mapping[str, Any]:
    return {**head, "model": style.model} if style.is_alias and "model" in head else head


def _tool_event(event: ToolEvent) -> Chunk:
    match event:
        case ToolStart(call_id, name, arguments):
            return {"type": "tool_call", "id": call_id, "name": name, "arguments": arguments}
        case ToolProgress(call_id, text):
            return {"type": "tool_progress", "id": call_id, "text": text}
    told = {"type": "tool_result", "id": event.id, "name": event.name, "status": event.status, "content": event.text}
    details = {} if event.details is None else {"details": event.details}
    return {**told, "duration_s": round(event.duration_s, 3), "cached": event.cached, **details}


def _in_style(messages: Sequence[Mapping[str, Any]], style: Style) -> list[Mapping[str, Any]]:
    return [_as_function(message, messages) for message in messages] if style.legacy else list(messages)


def _as_function(message: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    # The older form has one call in a message, and its results have a name and no id.
    if calls := message.get("tool_calls"):
        return {"role": "assistant", "content": message["content"], "function_call": calls[0]["function"]}
    if message["role"] == "tool":
        made = [call for other in messages for call in other.get("tool_calls", ())]
        name = next(call["function"]["name"] for call in made if call["id"] == message["tool_call_id"])
        return {"role": "function", "name": name, "content": message["content"]}
    return message


def _complete(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    # OpenAI's log probabilities always have both lists; vLLM's have one.
    logprobs = fields.get("logprobs")
    both = {"content": None, "refusal": None}
    return {**fields, "logprobs": both | logprobs} if isinstance(logprobs, dict) else fields


def _without_nulls(fields: Mapping[str, Any]) -> Chunk:
    # vLLM's usage has null for details that it did not count; in OpenAI's schema they may be missing, but not null.
    return {
        name: _without_nulls(value) if name in _COUNTS and isinstance(value, dict) else value
        for name, value in fields.items()
        if value is not None
    }


def _joined(before: Chunk, fields: Mapping[str, Any]) -> Chunk:
    # Of several upstream chunks that are told in one: lists (log probabilities, token ids) go on, the rest is newer.
    joined = dict(before)
    for name, value in fields.items():
        last = joined.get(name)
        if isinstance(last, dict) and isinstance(value, dict):
            joined[name] = _joined(last, value)
        else:
            joined[name] = last + value if isinstance(last, list) and isinstance(value, list) else value
    return joined


def _finish(reason: str, style: Style) -> str:
    return "function_call" if style.legacy and reason == "tool_calls" else reason
