"""Requests in which each of the schema's objects can stand, so that any of its fields can be tried.

The objects refer to one another (a result to its call, a choice to a tool), so they are written out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from openai_schema import REQUEST, Json
from probing import Path

HI: Json = {"role": "user", "content": "hi"}
PLAIN: Json = {"model": "m", "messages": [HI]}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
FUNCTIONS: list[Json] = [{"name": "f", "parameters": CITY}, {"name": "g"}]
TOOLS: list[Json] = [{"type": "function", "function": function} for function in FUNCTIONS]

_CALLS: list[Json] = [{"id": name, "type": "function", "function": {"name": name, "arguments": "{}"}} for name in "fg"]
_ALLOWED = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]}


@dataclass(frozen=True)
class Carrier:
    """A request with the object at `path`. `tools`: what makes it one with tools, if it is not yet."""

    request: Json
    path: Path = ()
    tools: Json = field(default_factory=lambda: {"tools": TOOLS})


def _messages(*messages: Json, at: Path) -> Carrier:
    return Carrier({"messages": messages}, ("messages", *at))


def _part(part: Json) -> Carrier:
    return _messages({"role": "user", "content": [part]}, at=(0, "content", 0))


def _choice(choice: Json) -> Carrier:
    return Carrier({"tool_choice": choice}, ("tool_choice",))


def _format(answer_format: Json) -> Carrier:
    return Carrier({"response_format": answer_format}, ("response_format",))


def _results(role: str, *results: Json) -> Carrier:
    # In the order of neither the calls nor the tools: whose result it is must be read.
    calls = (
        [{"role": "assistant", "tool_calls": _CALLS}]
        if role == "tool"
        else [{"role": "assistant", "function_call": call["function"]} for call in _CALLS]
    )
    return _messages(HI, *calls, *({"role": role, **result} for result in results), at=(1 + len(calls),))


_MESSAGE = "ChatCompletionRequest{}Message"
_PART = "ChatCompletionRequestMessageContentPart{}"

CARRIERS: Mapping[str, Carrier] = {
    REQUEST: Carrier({}),
    _MESSAGE.format("System"): _messages({"role": "system", "content": "Be brief."}, HI, at=(0,)),
    _MESSAGE.format("Developer"): _messages({"role": "developer", "content": "Be brief."}, HI, at=(0,)),
    _MESSAGE.format("User"): _messages(HI, at=(0,)),
    _MESSAGE.format("Assistant"): _messages(HI, {"role": "assistant"}, HI, at=(1,)),
    _MESSAGE.format("Tool"): _results(
        "tool", {"tool_call_id": "g", "content": "18"}, {"tool_call_id": "f", "content": "19"}
    ),
    _MESSAGE.format("Function"): _results("function", {"name": "g", "content": "18"}, {"name": "f", "content": "19"}),
    _PART.format("Text"): _part({"type": "text", "text": "hi"}),
    _PART.format("Image"): _part({"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}),
    _PART.format("Audio"): _part({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}),
    _PART.format("File"): _part({"type": "file", "file": {"file_id": "file-1"}}),
    _PART.format("Refusal"): _messages(
        HI, {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}, HI, at=(1, "content", 0)
    ),
    "ChatCompletionTool": Carrier({"tools": TOOLS[:1]}, ("tools", 0)),
    "FunctionObject": Carrier({"tools": TOOLS[:1]}, ("tools", 0, "function")),
    "CustomToolChatCompletions": Carrier({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, ("tools", 0)),
    "ChatCompletionFunctions": Carrier({"functions": FUNCTIONS[:1]}, ("functions", 0), {}),
    "ChatCompletionNamedToolChoice": _choice(TOOLS[0]),
    "ChatCompletionNamedToolChoiceCustom": _choice({"type": "custom", "custom": {"name": "f"}}),
    "ChatCompletionAllowedToolsChoice": _choice({"type": "allowed_tools", "allowed_tools": _ALLOWED}),
    "ChatCompletionFunctionCallOption": Carrier(
        {"function_call": {"name": "f"}}, ("function_call",), {"functions": FUNCTIONS}
    ),
    "ResponseFormatText": _format({"type": "text"}),
    "ResponseFormatJsonObject": _format({"type": "json_object"}),
    "ResponseFormatJsonSchema": _format({"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}),
}


@dataclass(frozen=True)
class Trial:
    """A value for a field of a carrier's object that tells more than any example by the schema, and where."""

    value: Any
    request: Json = field(default_factory=dict)
    tools: Json | None = None


_ANSWERED = {"messages": [HI, {"role": "assistant"}, {"role": "tool", "tool_call_id": "g", "content": "18"}]}
_TO_ALLOW = {"mode": "required", "tools": [TOOLS[1]]}

#: Definition and field -> what is tried in the place of one example.
TRIALS: Mapping[tuple[str, str], list[Trial]] = {
    (REQUEST, "messages"): [Trial([HI])],
    (REQUEST, "stop"): [Trial(["END"]), Trial("")],
    (REQUEST, "modalities"): [Trial(["text"]), Trial(["text", "audio"])],
    (REQUEST, "response_format"): [
        Trial({"type": "text"}),
        Trial({"type": "json_object"}),
        Trial({"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}),
    ],
    (REQUEST, "stream_options"): [Trial({"include_usage": True, "include_obfuscation": True}, {"stream": True})],
    (REQUEST, "tools"): [Trial(TOOLS, tools={})],
    (REQUEST, "functions"): [Trial(FUNCTIONS, tools={})],
    (REQUEST, "tool_choice"): [Trial("none"), Trial("required")],
    (REQUEST, "parallel_tool_calls"): [Trial(False)],
    (REQUEST, "function_call"): [Trial("none", tools={"functions": FUNCTIONS})],
    ("ChatCompletionRequestAssistantMessage", "tool_calls"): [
        Trial(_CALLS, _ANSWERED),
        Trial([{"id": "f", "type": "custom", "custom": {"name": "f", "input": "x"}}, _CALLS[1]], _ANSWERED),
    ],
    ("ChatCompletionRequestToolMessage", "tool_call_id"): [Trial("g")],
    ("ChatCompletionRequestFunctionMessage", "name"): [Trial("g")],
    ("ChatCompletionRequestMessageContentPartFile", "file"): [Trial({"file_id": "file-1"})],
    ("ChatCompletionNamedToolChoice", "function"): [Trial({"name": "f"})],
    ("ChatCompletionAllowedToolsChoice", "allowed_tools"): [Trial(_TO_ALLOW)],
    ("ChatCompletionFunctionCallOption", "name"): [Trial("f")],
}
