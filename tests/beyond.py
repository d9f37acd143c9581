"""Where Florette keeps to more, or to other, than OpenAI's published schema says; nothing else is relaxed.

`NULL_IN_CHUNKS` is what it may write, `TAKEN` what it takes.
"""

from dataclasses import dataclass
from typing import Any

from openai_schema import CHUNK, REQUEST, Definitions, Json, Judge, Place, relaxed

#: OpenAI itself sends these as null in its recorded streams, and the schema does not allow it. (It does allow a null
#: `service_tier`, which is recorded, too.)
NULL_IN_CHUNKS = ("choices[].finish_reason", "usage", "system_fingerprint")


@dataclass(frozen=True)
class Taken:
    """What may stand at `places` besides, with None nothing at all; and a request with it."""

    places: tuple[Place, ...]
    besides: Json | None
    request: Json


_HI = {"role": "user", "content": "hi"}
_CONTENTS = tuple(
    (f"ChatCompletionRequest{role}Message", "content")
    for role in ("Developer", "System", "User", "Assistant", "Tool", "Function")
)
_OBJECTS = {"type": "array", "items": {"type": "object"}}


def _request(*messages: Json, **further: Any) -> Json:
    return {"model": "m", "messages": [_HI, *messages], **further}


def _tool(**function: Any) -> Json:
    return _request(tools=[{"type": "function", "function": {"name": "f", **function}}])


_CALL = "ChatCompletionMessageToolCall"
_FUNCTION = {"name": "f", "arguments": "{}"}
_CALLED = {"id": "a", "type": "function", "function": _FUNCTION}

#: What `docs/compatibility.md` calls it -> what it is.
TAKEN = {
    "`model` left out": Taken(((REQUEST, "model"),), None, {"messages": [_HI]}),
    "`messages[].content` of parts of any type, or none": Taken(
        _CONTENTS, _OBJECTS, _request({"role": "user", "content": [{"type": "output_text", "text": "hi"}]})
    ),
    "`messages[].content` null": Taken(_CONTENTS, {"type": "null"}, _request({"role": "user", "content": None})),
    "`messages[].name` of a function message left out": Taken(
        (("ChatCompletionRequestFunctionMessage", "name"),), None, _request({"role": "function", "content": "18"})
    ),
    "`messages[].tool_calls` null": Taken(
        (("ChatCompletionRequestAssistantMessage", "tool_calls"),),
        {"type": "null"},
        _request({"role": "assistant", "content": "hi", "tool_calls": None}),
    ),
    "`messages[].tool_calls[].id` null": Taken(
        ((_CALL, "id"),), {"type": "null"}, _request({"role": "assistant", "tool_calls": [_CALLED | {"id": None}]})
    ),
    "`messages[].tool_calls[].type` left out": Taken(
        ((_CALL, "type"),), None, _request({"role": "assistant", "tool_calls": [{"id": "a", "function": _FUNCTION}]})
    ),
    "`messages[].tool_calls[].function.arguments` as an object, or null": Taken(
        ((_CALL, "function.arguments"),),
        {"type": ["object", "null"]},
        _request({"role": "assistant", "tool_calls": [_CALLED | {"function": _FUNCTION | {"arguments": {"x": 1}}}]}),
    ),
    "`tools`, `functions` null": Taken(
        ((REQUEST, "tools"), (REQUEST, "functions")), {"type": "null"}, _request(tools=None, functions=None)
    ),
    "`functions` empty": Taken(((REQUEST, "functions"),), {"type": "array", "maxItems": 0}, _request(functions=[])),
    "`parameters` as a list": Taken(
        (("FunctionObject", "parameters"), ("ChatCompletionFunctions", "parameters")),
        _OBJECTS,
        _tool(parameters=[{"name": "city", "type": "string", "required": True}]),
    ),
    "`stop` of up to 32 strings, or of none": Taken(
        ((REQUEST, "stop"),),
        {"type": "array", "items": {"type": "string"}, "maxItems": 32},
        _tool() | {"stop": list("abcdefgh")},
    ),
    "`seed` of any size": Taken(((REQUEST, "seed"),), {"type": "integer"}, _request(seed=2**70)),
    "`response_format` null, or of a type of vLLM's own": Taken(
        ((REQUEST, "response_format"),),
        {"type": ["object", "null"]},
        _request(response_format={"type": "structural_tag", "format": {"type": "any_text"}}),
    ),
}


def _taken() -> Definitions:
    besides: dict[Place, Json] = {}
    for taken in TAKEN.values():
        for place in taken.places:
            if taken.besides is not None:
                besides[place] = {"anyOf": [*besides.get(place, {}).get("anyOf", ()), taken.besides]}
    return relaxed(besides, [place for taken in TAKEN.values() if taken.besides is None for place in taken.places])


_OF_REQUESTS = Judge(_taken())
_OF_ANSWERS = Judge(relaxed({(CHUNK, path): {"type": "null"} for path in NULL_IN_CHUNKS}))


def request_complaint(request: Any) -> str | None:
    """What of the request Florette need not take; None if nothing."""
    return _OF_REQUESTS.complaint(REQUEST, request)


def answer_complaint(definition: str, answer: Any) -> str | None:
    """What of an answer, chunk, error or list is not what OpenAI would send; None if nothing."""
    return _OF_ANSWERS.complaint(definition, answer)
